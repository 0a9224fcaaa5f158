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

ROOT = Path(__file__).parents[2]
LAUNCHER = Path(__file__).with_name("launcher.py")


class Command:
    """The command, with its lines as they come."""

    def __init__(self, *arguments: str, **variables: str) -> None:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", str(LAUNCHER), *arguments],
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
        give_up = time.monotonic() + 60
        while not (found := re.search(r"serving at (\S+)/v1", "".join(self.lines))):
            assert self.process.poll() is None and time.monotonic() < give_up, self.lines
            time.sleep(0.02)
        return found[1]

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
    return ["--policy", f"m=server:{behind.url}#scripted", "--reward", "number", "--port", "0", *more]


def test_it_serves_and_ends_with_ctrl_c(chat_server):
    behind = chat_server()
    with command(*flags(behind, "--n", "2", "--depth", "1", "--log-requests"), TPO_API_KEY="first second") as started:
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


def test_requests_finish_within_the_grace(chat_server):
    behind = chat_server(seconds=0.7)
    with command(*flags(behind)) as started:
        body = {"model": "bon-1", "messages": [{"role": "user", "content": "q"}]}
        answers = []
        ask = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{root}/v1/chat/completions", json=body, timeout=30))
        )
        root = started.address()
        # a page that a browser has open may point its own name at this machine
        assert httpx.get(f"{root}/health", headers={"host": "attacker.example"}).status_code == 400
        assert httpx.get(f"{root}/health", headers={"host": "localhost:1"}).status_code == 200
        ask.start()
        behind.asked.wait(30)
        started.process.send_signal(signal.SIGTERM)
        ask.join(30)
        assert answers[0].json()["choices"][0]["message"]["content"] == "cand 0"
        # uvicorn ends by the signal that it was sent, as supervisors expect
        assert started.end() == -signal.SIGTERM


@pytest.mark.parametrize(("grace", "signals"), [("0.2", 1), ("600", 2)])
def test_after_the_grace_they_are_told(chat_server, grace, signals):
    behind = chat_server(always="hang")
    with command(*flags(behind, "--grace-seconds", grace)) as started:
        body = {"model": "bon-1", "messages": [{"role": "user", "content": "q"}]}
        answers = []
        root = started.address()
        ask = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{root}/v1/chat/completions", json=body, timeout=30))
        )
        ask.start()
        behind.asked.wait(30)
        for _ in range(signals):
            started.process.send_signal(signal.SIGINT)
            time.sleep(0.3)  # two at once may come as one
        ask.join(30)
        assert answers[0].status_code == 503
        assert started.end() == 0
        assert "Traceback" not in "".join(started.lines)


def test_every_limit_is_a_flag_with_its_default():
    flags = inspect.signature(serve).parameters
    assert {limit.name: flags[limit.name].default for limit in fields(Limits)} == asdict(Limits())


def test_a_body_that_does_not_come_is_not_waited_for(chat_server):
    with command(*flags(chat_server(), "--max-body-seconds", "0.1")) as started:
        address = started.address().removeprefix("http://").split(":")
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        with socket.create_connection(address, timeout=30) as slow:
            slow.sendall(f"{head}content-length: 9\r\n\r\n".encode())
            told = b"".join(iter(lambda: slow.recv(4096), b"")).decode()
    assert told.startswith("HTTP/1.1 408 ") and "within 0.1 s" in told


@pytest.fixture
def here() -> Callable[..., None]:
    """The command in this process, which no server of it outlives."""
    app = typer.Typer()
    app.command()(serve)

    def run(*arguments: str) -> None:
        typer.main.get_command(app).main(list(arguments), standalone_mode=False)

    return run


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--host", "0.0.0.0"], "it has no API key"),
        (["--policy", "a=local", "--policy", "a=local:x.gguf"], "Two policies are called 'a'"),
        (["--depth", "-1"], "depth='-1'"),
        (["--max-body-seconds", "0"], "max_body_seconds=0"),
        (["--prompts", "nowhere"], "No prompt pack 'nowhere'"),
        (["--config", "nowhere.toml"], "can't be read"),
        (["--host", "no.such.host.invalid", "--without-key"], "can't use the address"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_loaded(here, capsys, arguments, says):
    with pytest.raises(TPOError, match=re.escape(says)):
        here(*arguments, "--port", "0")
    assert "loading" not in capsys.readouterr().err


def test_a_port_that_is_taken_and_no_key(here, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(TPOError, match="--port 0 takes a port"):
        here("--host", "0.0.0.0", "--without-key", "--port", str(taken.getsockname()[1]))
    assert capsys.readouterr().err.startswith("warning: at 0.0.0.0 other machines can reach the server")


@pytest.mark.parametrize(
    ("host", "alone"), [("localhost", True), ("127.0.0.9", True), ("::1", True), ("::", False), ("example.com", False)]
)
def test_loopback(host, alone):
    assert is_loopback(host) == alone
