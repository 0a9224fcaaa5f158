"""The entry point: light, so that Ctrl-C is understood while the command itself is still imported."""

import os
import sys
from typing import NoReturn

from tpo_graph.cli import process


def main() -> NoReturn:
    """Run the command with the arguments of the process, and end the process with its exit code."""
    work_is_left = False
    try:
        process.prepare()
        from tpo_graph.cli.commands import execute
        from tpo_graph.cli.session import unfinished_work

        code = execute(sys.argv[1:])
        work_is_left = unfinished_work()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = process.interrupt_code()
    if not work_is_left:
        sys.exit(code)
    # a thread inside torch, llama.cpp or a request can't be told to stop, and a normal exit would wait for it
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
