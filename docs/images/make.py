"""Makes the pictures of docs/studio.md, each from what the real thing shows: `make pictures`.

    python -m docs.images.make terminal [POLICY REWARD]   run.svg, ask.svg, and the diagram of the run in studio.md
    python -m docs.images.make server SCRIPT              server.png, with chromium

The first runs the command's own session and reporter on a console that records; without names it is with the embedded
models. The second starts `langgraph dev` and photographs its page `/docs`. That page loads its script from the web;
SCRIPT is a copy of it: `dist/browser/standalone.js` of the npm package @scalar/api-reference.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.text import Text

from tests.studio.development_server import DevelopmentServer
from tpo_graph.cli.display import Reporter
from tpo_graph.cli.outcome import RunRequest
from tpo_graph.cli.output import clean
from tpo_graph.cli.session import answer
from tpo_graph.settings import TPOSettings

HERE = Path(__file__).parent
WIDTH = 100
QUESTION = "Why does warmth make you feel tired?"
# the second draft, the worst as proposed, no critique; another text for the critic's; the best as proposed
TYPED = ["2", "", "", "Name a cause, and stay short.", ""]


class Screen(io.StringIO):
    """Standard error on a console, for what writes plain lines."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def isatty(self) -> bool:
        """What is shown is laid out as on a terminal."""
        return True

    def write(self, text: str) -> int:
        """Show it."""
        width = self._console.width
        for line in text.splitlines(keepends=True):
            # a terminal goes on in the next line, where the console would cut
            shown = line.rstrip("\n")
            pieces = [shown[at : at + width] for at in range(0, len(shown), width)]
            self._console.out("\n".join(pieces) + line[len(shown) :], end="", highlight=False)
        return len(text)


class Keyboard(io.StringIO):
    """A person's lines, which a terminal shows as they are typed."""

    def __init__(self, console: Console, lines: list[str]) -> None:
        super().__init__()
        self._console, self._lines = console, lines

    def readline(self, *_: Any) -> str:
        """The next line, shown."""
        line = self._lines.pop(0)
        self._console.out(line, style="bold", highlight=False)
        return f"{line}\n"


def run_on_a_screen(name: str, command: str, request: RunRequest) -> dict[str, Any]:
    """Run, and save the screen as NAME.svg; the last state of the run."""
    os.environ["COLUMNS"] = str(WIDTH)
    # no terminal: what moves would be recorded over and over
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=False)
    console.print(Text(f"$ {command}", "bold"))
    with contextlib.redirect_stderr(Screen(console)):
        sys.stdin = Keyboard(console, list(TYPED))
        outcome = answer(request, Reporter(console))
        sys.stdin = sys.__stdin__
    if outcome.error:
        raise outcome.error
    console.print(Text(clean(outcome.state["answer"])))
    svg = console.export_svg(title="tpo-graph")
    # a page that shows the picture need not fetch a font
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL).replace("Fira Code", "monospace")
    (HERE / f"{name}.svg").write_text(svg, encoding="utf-8")
    return dict(outcome.state)


def diagram(state: dict[str, Any]) -> str:
    """A run as Mermaid: its steps with their rewards, and between them what the critic said."""
    lines = ["flowchart TD"]
    for record in state["trajectory"]:
        step = record["step"]
        told = [f"step {step}: {record['candidates']} candidates"]
        told += [f"best {record['best_id']} {record['best_reward']:+.3f}", f"worst {record['worst_reward']:+.3f}"]
        lines.append(f'    s{step}["{"<br/>".join(told)}"]')
        if step > 0:
            critique = f"<b>loss</b> {_short(record['loss'])}<br/><b>gradient</b> {_short(record['gradient'])}"
            lines.append(f'    s{step - 1} -- "{critique}" --> s{step}')
    lines.append(f'    answer(["{state["stop_reason"]}: the answer is {state["best"]["id"]}"])')
    lines.append(f"    s{state['trajectory'][-1]['step']} --> answer")
    return "\n".join(lines)


def _short(text: str) -> str:
    """The beginning of a text, without what means something in a diagram."""
    words = re.sub(r"[^\w\s.,;:'()-]", "", " ".join(text.split()))
    return words if len(words) <= 90 else f"{words[:90].rsplit(' ', 1)[0]} ..."


def terminal(policy: str = "local", reward: str = "local") -> None:
    """The two screens, and the diagram."""
    models = {"policy": policy, "reward model": reward}
    settings = TPOSettings(seed=6)
    state = run_on_a_screen("run", f'tpo-graph run --seed 6 "{QUESTION}"', RunRequest(QUESTION, settings, models))
    page = HERE.parent / "studio.md"
    text, found = re.subn(
        r"(<!-- run: begin -->\n).*?(<!-- run: end -->)",
        lambda mark: f"{mark[1]}```mermaid\n{diagram(state)}\n```\n{mark[2]}",
        page.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    assert found == 1, "the page has no place for the diagram"
    page.write_text(text, encoding="utf-8")
    command = f'tpo-graph run --ask --n 3 --depth 1 --seed 6 "{QUESTION}"'
    settings = TPOSettings(n=3, depth=1, seed=6)
    run_on_a_screen("ask", command, RunRequest(QUESTION, settings, models, ask=True))


def server(script: str) -> None:
    """The server's page, photographed."""
    with tempfile.TemporaryDirectory() as name, DevelopmentServer(Path(name)) as running:
        html = httpx.get(f"{running.url}/docs", trust_env=False).text
        page = Path(name) / "docs.html"
        copy = f'src="{Path(script).resolve().as_uri()}"'
        page.write_text(re.sub(r'src="https://[^"]*"', copy, html), encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,800"]
        flags += ["--virtual-time-budget=20000", f"--screenshot={HERE / 'server.png'}"]
        subprocess.run(["chromium", *flags, page.as_uri()], check=True, capture_output=True, timeout=120)


if __name__ == "__main__":
    {"terminal": terminal, "server": server}[sys.argv[1]](*sys.argv[2:])
