"""Scripts in an interpreter of their own, for what would spoil or block the process that runs the tests."""

import subprocess
import sys
import textwrap
from collections.abc import Sequence

_WATCHDOG = """
import os as _os, threading as _threading
_timer = _threading.Timer({seconds}, lambda: _os._exit(99))
_timer.daemon = True
_timer.start()
"""


def run_script(
    script: str, *, stuck_after: float = 20.0, flags: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a script and wait for its end.

    Args:
        script: Python code. A line `# watch` in it starts the clock (put it behind the imports).
        stuck_after: seconds after which the script is ended with exit code 99.
        flags: of the interpreter.
    """
    code = textwrap.dedent(script).replace("# watch", _WATCHDOG.format(seconds=stuck_after))
    return subprocess.run(
        [sys.executable, *flags, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
