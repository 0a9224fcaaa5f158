"""A `langgraph dev` of this repository's langgraph.json, in a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import httpx

ROOT = Path(__file__).parents[2]
_BOOT = 120  # seconds, on a machine that is busy


class DevelopmentServer:
    """Runs `langgraph dev` for a `with` block, without a key and without a way out of this machine.

    Args:
        folder: where it keeps what it writes.
        config: the langgraph.json.
        **variables: for its environment.

    Attributes:
        url: its address.
        log: where its output goes.
    """

    def __init__(self, folder: Path, *, config: Path = ROOT / "langgraph.json", **variables: str) -> None:
        self.log = folder / "langgraph-dev.log"
        self._folder, self._config, self._variables = folder, config, variables
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "langgraph_cli", "dev", "--config", str(self._config)]
        command += ["--port", str(self._port), "--no-browser", "--no-reload"]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TPO_", "LANG", "OPENAI_"))}
        chosen = {"LANGGRAPH_CLI_NO_ANALYTICS": "1", "NO_COLOR": "1", "HOME": str(self._folder)}
        # where the embedded model is unpacked, once for all
        chosen["XDG_CACHE_HOME"] = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        chosen |= {"LANGSMITH_TRACING": "false", "PYTHONPATH": str(ROOT)}
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                # it keeps what its threads hold in a folder where it was started
                command,
                cwd=self._folder,
                env=kept | chosen | self._variables,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._wait()
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)

    def _wait(self) -> None:
        until = time.monotonic() + _BOOT
        while time.monotonic() < until and self._process.poll() is None:
            try:
                if httpx.get(f"{self.url}/ok", timeout=5, trust_env=False).status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.1)
        if self._process.poll() is None:
            self.__exit__()
        raise RuntimeError(f"langgraph dev did not start:\n{self.log.read_text()[-4000:]}")
