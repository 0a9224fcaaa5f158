"""Chromium without a window, driven over its debugging protocol: what a page did, asked for and said."""

import asyncio
import itertools
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium")
_FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]


class Page:
    """A page that is open.

    Attributes:
        requests: the addresses of all requests since it was opened, its own file included.
        log: what the browser wrote to the console, as violations of the content security policy are.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self.requests: list[str] = []
        self.log: list[str] = []

    async def send(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._receive()
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    async def open(self, address: str) -> None:
        """Load a page, and let it do what it wants to do."""
        for domain in ("Page", "Network", "Log", "Runtime"):
            await self.send(f"{domain}.enable")
        self._loaded = False
        await self.send("Page.navigate", url=address)
        while not self._loaded:
            await self._receive()
        await asyncio.sleep(0.3)
        await self.send("Page.getNavigationHistory")  # the events until then come before its answer

    async def run(self, script: str) -> Any:
        """The value of a script's last expression."""
        done = await self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    async def press(self, *keys: str) -> None:
        """Press keys, one after the other."""
        for key in keys:
            code = {"Tab": 9, "Enter": 13}.get(key, 0)
            text = {"text": "\r"} if key == "Enter" else {}
            for kind in ("rawKeyDown" if not text else "keyDown", "keyUp"):
                event = {"key": key, "code": key, "windowsVirtualKeyCode": code, **(text if kind == "keyDown" else {})}
                await self.send("Input.dispatchKeyEvent", type=kind, **event)

    async def _receive(self) -> dict[str, Any]:
        message = await self._socket.receive_json(timeout=60)
        event, parameters = message.get("method"), message.get("params", {})
        if event == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif event == "Log.entryAdded":
            self.log.append(parameters["entry"]["text"])
        elif event in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            self.log.append(str(parameters))
        elif event == "Page.loadEventFired":
            self._loaded = True
        return message


@asynccontextmanager
async def browser_page(folder: Path) -> AsyncIterator[Page]:
    """A browser with an empty page; it ends with the block.

    Args:
        folder: an empty folder for its profile.
    """
    assert CHROMIUM is not None
    process = await asyncio.create_subprocess_exec(
        CHROMIUM,
        *_FLAGS,
        f"--user-data-dir={folder}",
        "--remote-debugging-port=0",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        port_file = folder / "DevToolsActivePort"
        async with asyncio.timeout(60):
            while not (port_file.exists() and port_file.read_text().count("\n")):  # noqa: ASYNC110  # a file of Chromium's
                await asyncio.sleep(0.05)
        port = port_file.read_text().split("\n")[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                targets = await answer.json()
            address = next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page")
            async with session.ws_connect(address, max_msg_size=0) as socket:
                yield Page(socket)
    finally:
        process.terminate()
        await process.wait()
