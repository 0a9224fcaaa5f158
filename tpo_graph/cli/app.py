"""The entry point: light, so that Ctrl-C is understood while the command itself is still imported."""

import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command with the arguments of the process, and end the process with its exit code."""
    work_is_left = False
    try:
        from tpo_graph.cli import process

        process.prepare()
        from tpo_graph.cli.commands import execute
        from tpo_graph.cli.session import unfinished_work

        code = execute(sys.argv[1:])
        process.end_at_next_signal()
        work_is_left = unfinished_work()
    except KeyboardInterrupt as interrupt:
        print("interrupted", file=sys.stderr)
        code = interrupt.args[0] if interrupt.args else 130
    if not work_is_left:
        sys.exit(code)
    # a thread inside torch, llama.cpp or a request can't be told to stop, and a normal exit would wait for it
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
