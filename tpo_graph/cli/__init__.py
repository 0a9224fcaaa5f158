"""The command `tpo-graph`.

Results go to stdout, all else to stderr. Nothing heavy is imported until a command needs it, so that `--help`
is quick and the first line of progress comes before the models' libraries are loaded.
"""

import io
import os
import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command with the arguments of the process, and end the process with its exit code."""
    from tpo_graph.cli.app import execute
    from tpo_graph.cli.session import work_is_left

    if isinstance(sys.stdout, io.TextIOWrapper):
        # an answer that the terminal's encoding has no letters for is better than none
        sys.stdout.reconfigure(errors="backslashreplace")
    code = int(execute(sys.argv[1:]))
    if not work_is_left():
        sys.exit(code)
    # a thread inside torch, llama.cpp or a request can't be told to stop, and a normal exit would wait for it
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
