"""Asks a person in the terminal what `human_select_node` wants to know."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from tpo_graph.cli.safe_text import clean

__all__ = ["ask"]

Read = Callable[[], str]


def ask(question: Mapping[str, Any], *, read: Read | None = None, out: TextIO | None = None) -> Any:  # Any: JSON, both
    """Show the candidates of an interrupt, and ask for best, worst and critique.

    An empty line accepts what is proposed. The end of the input (Ctrl-D) stops the run with the best so far.

    Args:
        question: the value of the interrupt.
        read: reads one line, "" at the end of the input; standard input when None.
        out: where the question goes; stderr when None, so that stdout has the answer alone.

    Returns:
        The value to resume the run with.
    """
    read, out = read or sys.stdin.readline, out or sys.stderr
    numbers = {candidate["id"]: str(place) for place, candidate in enumerate(question["candidates"], 1)}
    if question["problem"]:
        print(f"{question['problem']}\n", file=out)
    for candidate in question["candidates"]:
        print(f"[{numbers[candidate['id']]}] {candidate['id']}  reward {candidate['reward']:+.3f}", file=out)
        print("".join(f"    {line}\n" for line in clean(candidate["text"]).splitlines()), file=out)
    print(question["question"], file=out)
    ids = {number: name for name, number in numbers.items()}
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


def _line(prompt: str, read: Read, out: TextIO) -> str | None:
    """One line without the white space around it; None at the end of the input."""
    print(prompt, end="", file=out, flush=True)
    line = read()
    return line.strip() if line else None
