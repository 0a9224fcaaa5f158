"""Asks a person in the terminal what the nodes with a person in them want to know."""

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from tpo_graph.cli.display import clean

Read = Callable[[], str]
Question = Mapping[str, Any]  # Any: JSON
_INDENT = "    "


def ask(question: Question, *, read: Read | None = None, out: TextIO | None = None) -> Any:  # Any: JSON
    """Show what an interrupt has to show, and ask what it asks: a choice, a rating, or an edited critique.

    An empty line accepts what is proposed. The end of the input (Ctrl-D) stops the run with the best so far.

    Args:
        question: the value of the interrupt.
        read: reads one line, "" at the end of the input; standard input when None.
        out: where the question goes; stderr when None, so that stdout has the answer alone.

    Returns:
        The value to resume the run with.

    Raises:
        KeyboardInterrupt: the input ended where a rating is needed, and a run without one can't go on.
    """
    read, out = read or sys.stdin.readline, out or sys.stderr
    print(file=out)
    if question["problem"]:
        print(f"{clean(question['problem'])}\n", file=out)
    return {"tpo_choice": _choice, "tpo_rating": _rating, "tpo_critique": _critique}[question["kind"]](
        question, read, out
    )


def _choice(question: Question, read: Read, out: TextIO) -> Any:  # Any: JSON
    ids = _show_candidates(question, out)
    numbers = {name: number for number, name in ids.items()}
    print(question["question"], file=out)
    best, worst = numbers[question["best"]], numbers[question["worst"]]
    chosen = _line(f"Best [{best}], or s to stop: ", read, out)
    if chosen is None or chosen.lower() in ("s", "stop"):
        return {"stop": True}
    answer = {"best": ids.get(chosen, chosen)} if chosen else {}
    if question["ends"] not in (None, "no_preference"):
        return answer or "ok"  # nothing is compared any more
    if chosen == worst and best != worst:
        worst = "the lowest of the others"
    if rejected := _line(f"Worst [{worst}]: ", read, out):
        answer["worst"] = ids.get(rejected, rejected)
    if "critique" in question["answer"] and (critique := _line("Critique [the critic writes it]: ", read, out)):
        answer["critique"] = critique
    return answer or "ok"


def _rating(question: Question, read: Read, out: TextIO) -> Any:  # Any: JSON
    ids = _show_candidates(question, out)
    if best := question["best_so_far"]:
        ids["b"] = best["id"]
        print(f"[b] the best so far: {best['id']}  reward {best['reward']:+.3f}", file=out)
        _show_text(best["text"], out)
    names = [each["id"] for each in question["candidates"]]
    example = " ".join(["7", "3.5", "5"][: len(names)])
    told = _line(f"A rating for each, in this order, as in {example} (empty: pick the best instead): ", read, out)
    if told:
        ratings = [_number(word) for word in told.replace(",", " ").split()]
        return {"ratings": dict(zip(names, ratings, strict=True)) if len(ratings) == len(names) else told}
    chosen = _line("Best: ", read, out) if told is not None else None
    if chosen is None:
        raise KeyboardInterrupt
    rejected = _line("Worst [none]: ", read, out)
    answer = {"best": ids.get(chosen, chosen)}
    return answer | ({"worst": ids.get(rejected, rejected)} if rejected else {})


def _critique(question: Question, read: Read, out: TextIO) -> Any:  # Any: JSON
    print(f"{question['question']}\n\ncritique:", file=out)
    _show_text(question["critique"], out)
    if question["gradient"]:
        print("advice that goes with it (another critique gets its own):", file=out)
        _show_text(question["gradient"], out)
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    told = _line(f"Another critique [this one]{', or e to edit it' if editor else ''}: ", read, out)
    if editor and told == "e":
        told = _edited(question["critique"], editor, out)
    # in an object: a text alone may be a word that means something
    return {"critique": told} if told else "ok"


def _edited(text: str, editor: str, out: TextIO) -> str:
    """The text after the person's editor had it; as it was when there is no such editor."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "critique.txt"
        file.write_text(text, encoding="utf-8")
        try:
            # its output belongs to the terminal, and not into the answer
            subprocess.run([*shlex.split(editor), str(file)], check=False, stdout=sys.stderr)
        except (OSError, ValueError) as error:
            print(f"The editor {editor!r} can't be started: {error}. The critique stays as it is.", file=out)
        return file.read_text(encoding="utf-8").strip()


def _show_candidates(question: Question, out: TextIO) -> dict[str, str]:
    """Show the candidates; their ids by the numbers in front of them."""
    for place, candidate in enumerate(question["candidates"], 1):
        reward = f"  reward {candidate['reward']:+.3f}" if "reward" in candidate else ""
        print(f"[{place}] {candidate['id']}{reward}", file=out)
        _show_text(candidate["text"], out)
    return {str(place): candidate["id"] for place, candidate in enumerate(question["candidates"], 1)}


def _show_text(text: str, out: TextIO) -> None:
    """Show a text with an indent; on a terminal its lines break between words."""
    lines = clean(text).splitlines()
    if out.isatty():
        console = Console(file=out)
        width = max(20, console.width - len(_INDENT))
        lines = [part.plain.rstrip() for line in lines for part in Text(line).wrap(console, width)]
    print("".join(f"{_INDENT}{line}\n" for line in lines), file=out)


def _number(word: str) -> float | str:
    """A number, or the word for the node to say what is wrong with it."""
    try:
        return float(word)
    except ValueError:
        return word


def _line(prompt: str, read: Read, out: TextIO) -> str | None:
    """One line without the white space around it; None at the end of the input."""
    print(prompt, end="", file=out, flush=True)
    line = read()
    return line.strip() if line else None
