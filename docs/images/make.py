"""Makes the pictures of runs in README and docs, each from what the real thing shows: `make pictures`.

    python -m docs.images.make [POLICY REWARD]   run.svg and ask.svg

It runs the command's own session and reporter on a console that records; without names it is with the embedded models.
"""

import contextlib
import io
import os
import re
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

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


def run_on_a_screen(name: str, command: str, request: RunRequest) -> None:
    """Run, and save the screen as NAME.svg."""
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


def terminal(policy: str = "local", reward: str = "local") -> None:
    """The two screens."""
    models = {"policy": policy, "reward model": reward}
    settings = TPOSettings(seed=6)
    run_on_a_screen("run", f'tpo-graph run --seed 6 "{QUESTION}"', RunRequest(QUESTION, settings, models))
    command = f'tpo-graph run --ask --n 3 --depth 1 --seed 6 "{QUESTION}"'
    settings = TPOSettings(n=3, depth=1, seed=6)
    run_on_a_screen("ask", command, RunRequest(QUESTION, settings, models, ask=True))


if __name__ == "__main__":
    terminal(*sys.argv[1:])
