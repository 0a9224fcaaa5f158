"""`tpo-graph serve` in a process of its own, and how it ends."""

import inspect
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path

import httpx
import openai
import pytest
import typer

from tpo_graph import TPOError
from tpo_graph.cli.serve import serve
from tpo_graph.serving import Limits
from tpo_graph.serving.app import is_loopback

BODY = {"model": "bon-1", "messages": [{"role": "user", "content": "q"}]}
ROOT = Path(__file__).parents[2]


class Command:
    """The command, with its lines as they come."""

    def __init__(self, *arguments: str, **variables: str) -> None:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tpo_graph", "serve", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**kept, "PYTHONPATH": str(ROOT), **variables},
            cwd=ROOT,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=lambda: self.lines.extend(iter(self.process.stderr.readline, "")))
        self._reader.start()

    def address(self) -> str:
        deadline = time.monotonic() + 60
        while not (match := re.search(r"serving at (\S+)/v1", "".join(self.lines))):
            assert self.process.poll() is None and time.monotonic() < deadline, self.lines
            time.sleep(0.02)
        return match[1]

    def wait_until_it_refuses(self) -> None:
        """Wait until it takes no more connections."""
        address = self.address().removeprefix("http://").split(":")
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                socket.create_connection(address).close()
            except OSError:
                return
            time.sleep(0.02)
        raise AssertionError("it still takes connections")

    def end(self) -> int:
        code = self.process.wait(60)
        self._reader.join(10)
        return code


@contextmanager
def command(*arguments: str, **variables: str) -> Iterator[Command]:
    started = Command(*arguments, **variables)
    try:
        yield started
    finally:
        started.process.kill()
        started.end()
        started.process.stdout.close()
        started.process.stderr.close()


def flags(behind, *more: str) -> list[str]:
    reward = "python:tests.tpo_script:last_number"
    return ["--policy", f"m=server:{behind.url}#scripted", "--reward", reward, "--port", "0", *more]


@pytest.mark.subprocess
def test_it_serves_and_ends_with_ctrl_c(chat_server):
    options = flags(chat_server(), "--n", "2", "--depth", "1", "--log-requests")
    with command(*options, TPO_API_KEY="first second") as started:
        root = started.address()
        with openai.OpenAI(base_url=f"{root}/v1", api_key="second", max_retries=0) as client:
            answer = client.chat.completions.create(model="tpo/m", messages=[{"role": "user", "content": "q"}])
            assert (answer.choices[0].message.content, answer.tpo["steps"]) == ("rev 5", 1)
            with pytest.raises(openai.AuthenticationError):
                client.with_options(api_key="third").models.list()
        started.process.send_signal(signal.SIGINT)
        assert started.end() == 0
        assert started.process.stdout.read() == ""
        text = "".join(started.lines)
        assert '"POST /v1/chat/completions HTTP/1.1" 200' in text
        assert text.endswith("ended\n")
        assert "Traceback" not in text


@pytest.mark.subprocess
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_requests_finish_within_the_grace_period(chat_server, number):
    behind = chat_server(seconds=0.7)
    with command(*flags(behind)) as started, ThreadPoolExecutor(1) as pool:
        root = started.address()
        # a page in a browser may point its own name at this machine
        assert httpx.get(f"{root}/health", headers={"host": "attacker.example"}).status_code == 400
        assert httpx.get(f"{root}/health", headers={"host": "localhost:1"}).status_code == 200
        answer = pool.submit(httpx.post, f"{root}/v1/chat/completions", json=BODY, timeout=30)
        behind.asked.wait(30)
        started.process.send_signal(number)
        assert answer.result(30).json()["choices"][0]["message"]["content"] == "cand 0"
        # uvicorn ends by the signal that it was sent, as supervisors expect
        assert started.end() == -number


@pytest.mark.subprocess
@pytest.mark.parametrize(("grace", "signals"), [("0.2", 1), ("600", 2)])
def test_requests_that_take_longer_get_an_answer_too(chat_server, grace, signals):
    behind = chat_server(always="hang")
    with command(*flags(behind, "--grace-seconds", grace)) as started, ThreadPoolExecutor(1) as pool:
        root = started.address()
        answer = pool.submit(httpx.post, f"{root}/v1/chat/completions", json=BODY, timeout=30)
        behind.asked.wait(30)
        for _ in range(signals):
            started.process.send_signal(signal.SIGINT)
            started.wait_until_it_refuses()  # two signals at once may arrive as one
        assert answer.result(30).status_code == 503
        assert started.end() == 0
        assert "Traceback" not in "".join(started.lines)


def test_every_limit_is_a_flag_with_its_default():
    flags = inspect.signature(serve).parameters
    assert {limit.name: flags[limit.name].default for limit in fields(Limits)} == asdict(Limits())


@pytest.fixture
def here() -> Callable[..., None]:
    """The command in this process, which no server of it outlives."""
    app = typer.Typer()
    app.command()(serve)

    def run(*arguments: str) -> None:
        typer.main.get_command(app).main(list(arguments), standalone_mode=False)

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "it has no API key"),
        (["--policy", "a=local", "--policy", "a=local:x.gguf"], "Two policies are called 'a'"),
        (["--variant", "other"], "Unknown variant 'other'"),
        (["--depth", "-1"], "depth='-1'"),
        (["--timeout", "30", "--max-retries", "-1"], "max_retries='-1'"),
        (["--max-body-seconds", "0"], "max_body_seconds=0"),
        (["--prompts", "nowhere"], "No prompt pack 'nowhere'"),
        (["--config", "nowhere.toml"], "can't be read"),
        (["--host", "no.such.host.invalid", "--without-key"], "can't use the address"),
    ],
)
def test_what_is_wrong_is_reported_before_anything_is_loaded(here, capsys, arguments, message):
    with pytest.raises(TPOError, match=re.escape(message)):
        here(*arguments, "--port", "0")
    assert "loading" not in capsys.readouterr().err


def test_a_port_that_is_taken_and_no_key(here, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(TPOError, match="--port 0 takes a port"):
        here("--host", "0.0.0.0", "--without-key", "--port", str(taken.getsockname()[1]))
    assert capsys.readouterr().err.startswith("warning: at 0.0.0.0 other machines can reach the server")


def test_loopback():
    assert all(map(is_loopback, ("localhost", "127.0.0.9", "::1")))
    assert not any(map(is_loopback, ("::", "example.com")))
