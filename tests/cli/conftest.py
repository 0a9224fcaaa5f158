"""The command in this process, in a process of its own, and on a terminal of its own."""

import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cli.launcher import REWARDS
from tests.servers import ChatServer
from tpo_graph.cli.commands import execute
from tpo_graph.rewards.load import SCHEMES

ROOT = Path(__file__).parents[2]
LAUNCHER = Path(__file__).with_name("launcher.py")
SNAPSHOTS = Path(__file__).with_name("snapshots")
CONTROL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Error(NamedTuple):
    """The exit code of a command that failed, and its two lines."""

    code: int
    message: str
    hint: str


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> Error:
        """The error, which is all that stands behind the progress."""
        assert "Traceback" not in self.err
        _, found, after = f"\n{self.err}".rpartition("\nerror: ")
        assert found, self.err
        message, hint = after.splitlines()
        assert hint.startswith("hint: ")
        return Error(self.code, message, hint.removeprefix("hint: "))


@pytest.fixture
def tpo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Runs the command in this process, with the rewards of the launcher."""
    monkeypatch.setenv("COLUMNS", "80")
    for name, loader in REWARDS.items():
        monkeypatch.setitem(SCHEMES, name, loader)

    def run(*arguments: str) -> Ended:
        capsys.readouterr()
        code = execute(arguments)
        return Ended(code, *capsys.readouterr())

    return run


def environment(**more: str) -> dict[str, str]:
    """Variables for a process of its own: this source tree, and a terminal like any."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8", "TERM": "xterm-256color", **more}


def command(*arguments: str | bytes) -> list[str | bytes]:
    """The command line of the launcher, warnings as errors."""
    return [sys.executable, "-W", "error", str(LAUNCHER), *arguments]


def run_process(*arguments: str | bytes, stdin: str = "", **variables: str) -> Ended:
    """Run the command in a process, with pipes."""
    done = subprocess.run(
        command(*arguments),
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=120,
        env=environment(**variables),
        cwd=ROOT,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


class Terminal:
    """The command on a pseudo-terminal; all three streams are the terminal."""

    def __init__(self, *arguments: str, columns: int = 80, **variables: str) -> None:
        self._master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        self.process = subprocess.Popen(
            command(*arguments),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment(**variables),
            cwd=ROOT,
            start_new_session=True,
        )
        os.close(slave)
        self.raw = b""

    def read(self, *, until: str = "", seconds: float = 120) -> str:
        """What the terminal got so far: up to the end, or until a text shows up."""
        give_up = time.monotonic() + seconds
        while not until or until not in self.text:
            left = give_up - time.monotonic()
            assert left > 0 and select.select([self._master], [], [], left)[0], f"no output in time:\n{self.text}"
            try:
                piece = os.read(self._master, 65536)
            except OSError:  # the other side is closed
                piece = b""
            if not piece:
                assert not until, self.text
                break
            self.raw += piece
        return self.text

    def type(self, text: str) -> None:
        """Keys, as a person presses them."""
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def wait(self) -> int:
        """Read to the end; the exit code."""
        self.read()
        os.close(self._master)
        return self.process.wait(60)

    @property
    def text(self) -> str:
        """The text without control codes."""
        return CONTROL_CODES.sub("", self.raw.decode("utf-8", "replace")).replace("\r\n", "\n")


def at(server: ChatServer, *, reward: str = "number") -> Sequence[str]:
    """The flags for a policy and a reward model."""
    return ["--policy", f"server:{server.url}#scripted", "--reward", reward]


def snapshot(name: str, text: str) -> None:
    """Compare with a file; TPO_UPDATE_SNAPSHOTS=1 writes it."""
    file = SNAPSHOTS / name
    if UPDATE:
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


UPDATE = os.environ.get("TPO_UPDATE_SNAPSHOTS") == "1"
