"""Asks a person in the terminal what the nodes of `tpo_graph.human` want to know.

A line becomes a reply as LangGraph Studio sends it. What can't be meant is asked again at once, in the numbers that
were offered; whether the reply as a whole makes sense is for the node to say.
"""

import contextlib
import math
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.text import Text

from tpo_graph.cli.output import clean, plural
from tpo_graph.types import JSON, JSONObject

_INDENT = "    "


def ask(question: JSONObject, *, read: Callable[[], str] | None = None, out: TextIO | None = None) -> JSON:
    """Show what an interrupt has to show, and ask what it asks: a choice, a rating, or an edited critique.

    An empty line accepts what is proposed. The end of the input (Ctrl-D) stops the run with the best so far.

    Args:
        question: the value of the interrupt.
        read: reads one line, "" at the end of the input; standard input when None.
        out: where the question goes; stderr when None, so that stdout has nothing but the answer.

    Returns:
        The value to resume the run with.

    Raises:
        EOFError: the input ended where a rating is needed, without which a run can't go on.
    """
    terminal = _Terminal(read or sys.stdin.readline, out or sys.stderr)
    terminal.show("")
    questions = {"tpo_choice": _ask_choice, "tpo_rating": _ask_rating, "tpo_critique": _ask_critique}
    return questions[question["kind"]](question, terminal)


class _Terminal:
    """Where a question is shown and its answer is typed."""

    def __init__(self, read: Callable[[], str], out: TextIO) -> None:
        self._read = read
        self._out = out

    def show(self, line: str) -> None:
        print(line, file=self._out)

    def show_text(self, text: str) -> None:
        """Show a text with an indent; on a terminal its lines break between words."""
        lines = clean(text).splitlines()
        if self._out.isatty():
            console = Console(file=self._out)
            width = max(20, console.width - len(_INDENT))
            lines = [part.plain.rstrip() for line in lines for part in Text(line).wrap(console, width)]
        self.show("".join(f"{_INDENT}{line}\n" for line in lines))

    def show_candidates(self, candidates: list[JSONObject]) -> dict[str, str]:
        """Show candidates, and return their ids by the numbers in front of them."""
        for number, candidate in enumerate(candidates, 1):
            reward = f"  reward {candidate['reward']:+.3f}" if "reward" in candidate else ""
            self.show(f"[{number}] {candidate['id']}{reward}")
            self.show_text(candidate["text"])
        return {str(number): candidate["id"] for number, candidate in enumerate(candidates, 1)}

    def show_problem(self, question: JSONObject) -> None:
        """Show what was wrong with the reply before, right above the next one."""
        if question["problem"]:
            self.show(clean(question["problem"]))

    def ask_id(self, prompt: str, ids: Mapping[str, str], *, words: Collection[str] = ("",)) -> str | None:
        """A candidate's id, typed as its number or itself; one of `words`; None at the end of the input."""
        while (typed := self.ask_line(prompt)) is not None:
            if typed in ids or typed in ids.values() or typed.lower() in words:
                return ids.get(typed, typed)
            self.show(f"There is no {clean(typed)!r} here; these are: {', '.join(ids)}.")
        return None

    def ask_line(self, prompt: str) -> str | None:
        """One line without the white space around it; None at the end of the input."""
        print(prompt, end="", file=self._out, flush=True)
        try:
            line = self._read()
        except OSError:  # its terminal has closed
            line = ""
        return line.strip() if line else None


def _ask_choice(question: JSONObject, terminal: _Terminal) -> JSON:
    ids = terminal.show_candidates(question["candidates"])
    numbers = {name: number for number, name in ids.items()}
    terminal.show(question["question"])
    terminal.show_problem(question)
    best, worst = numbers[question["best"]], numbers[question["worst"]]
    chosen = terminal.ask_id(f"Best [{best}], or s to stop: ", ids, words=("", "s", "stop"))
    if chosen is None or chosen.lower() in ("s", "stop"):
        return {"stop": True}
    answer = {"best": chosen} if chosen else {}
    if question["ends"]:
        return answer or "ok"  # nothing is compared any more
    others = {number: name for number, name in ids.items() if name != (chosen or question["best"])}
    if chosen == question["worst"] and best != worst:
        worst = "the lowest of the others"
    if rejected := terminal.ask_id(f"Worst [{worst}]: ", others):
        answer["worst"] = rejected
    if "critique" in question["answer"] and (critique := terminal.ask_line("Critique [the critic writes it]: ")):
        answer["critique"] = critique
    return answer or "ok"


def _ask_rating(question: JSONObject, terminal: _Terminal) -> JSON:
    ids = terminal.show_candidates(question["candidates"])
    names = list(ids.values())
    if best := question["best_so_far"]:
        ids["b"] = best["id"]
        terminal.show(f"[b] the best so far: {best['id']}  reward {best['reward']:+.3f}")
        terminal.show_text(best["text"])
    terminal.show_problem(question)
    example = " ".join(["7", "3.5", "5"][: len(names)])
    prompt = f"Ratings in this order, as in {example} (empty: pick the best instead): "
    while typed := terminal.ask_line(prompt):
        words = typed.replace(",", " ").split()
        ratings = [number for word in words if (number := _number(word)) is not None]
        if len(ratings) == len(words) == len(names):
            return {"ratings": dict(zip(names, ratings, strict=True))}
        wrong = [clean(word) for word in words if _number(word) is None]
        problem = f"{wrong[0]!r} is not a number" if wrong else f"{plural(len(words), 'rating')} typed"
        terminal.show(f"{problem}; {plural(len(names), 'number')} needed, one for each candidate.")
    chosen = terminal.ask_id("Best: ", ids, words=()) if typed is not None else None
    if chosen is None:
        raise EOFError("the input ended before the candidates were rated")
    answer = {"best": chosen}
    others = {number: name for number, name in ids.items() if number != "b" and name != chosen}
    if others and (rejected := terminal.ask_id("Worst [none]: ", others)):
        answer["worst"] = rejected
    return answer


def _number(word: str) -> float | None:
    with contextlib.suppress(ValueError):
        return number if math.isfinite(number := float(word)) else None
    return None


def _ask_critique(question: JSONObject, terminal: _Terminal) -> JSON:
    terminal.show(f"{question['question']}\n\ncritique:")
    terminal.show_text(question["critique"])
    if question["gradient"]:
        terminal.show("advice that goes with it (another critique gets its own):")
        terminal.show_text(question["gradient"])
    terminal.show_problem(question)
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or shutil.which("nano") or shutil.which("vi")
    name = Path(shlex.split(editor)[0]).name if editor else ""
    typed = terminal.ask_line(f"Another critique [this one]{f', or e to edit it in {name}' if editor else ''}: ")
    if editor and typed == "e":
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "critique.txt"
            file.write_text(question["critique"], encoding="utf-8")
            try:
                # what it prints belongs to the terminal, and not into the answer
                subprocess.run([*shlex.split(editor), str(file)], check=False, stdout=sys.stderr)
            except (OSError, ValueError) as error:
                terminal.show(f"The editor {editor!r} can't be started: {error}. The critique stays as it is.")
            typed = file.read_text(encoding="utf-8").strip()
    # in an object: a text alone may be a word that means something
    return {"critique": typed} if typed else "ok"
