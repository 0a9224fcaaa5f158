"""What TPO is for: a model's answer is aligned to a preference while it answers, by a reward that the eye can check.

Run it with:  python examples/demo.py "Why is the sky blue?"
A second argument is another policy, as in local:0.5b. The policy is not trained, and its first draft does not know the
preference: critiques and revisions bring it in, because the reward model prefers answers that follow it.
"""

import re
import sys
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import BaseMessage
from rich.console import Console
from rich.table import Table

from tpo_graph import RewardModel, TPOSettings, create_tpo_graph, load_policy, load_reward

PREFERENCE = (
    "exactly three sentences in plain words: the answer, an example that begins with 'For example,', "
    "and a question to the reader at the end"
)
SETTINGS = TPOSettings(preference=PREFERENCE, sample_max_new_tokens=200, update_max_new_tokens=200)
_LONGEST_PLAIN_WORD = 11


def sentences(text: str) -> list[str]:
    """The sentences of a text."""
    return [part for part in re.split(r"(?<=[.!?])\s+", text.strip()) if re.search(r"\w", part)]


def rules_met(text: str) -> dict[str, float]:
    """How far a text follows each rule of the preference, from 0 to 1."""
    parts = sentences(text)
    words = re.findall(r"[^\W\d_]+", text)
    long_words = sum(len(word) > _LONGEST_PLAIN_WORD for word in words)
    return {
        "three sentences": 1 / (1 + abs(len(parts) - 3)),
        "plain words": max(0.0, 1 - long_words / 4) if words else 0.0,
        "'For example,'": 1.0 if sum(part.startswith("For example,") for part in parts) == 1 else 0.0,
        "ends with a question": 1.0 if parts and parts[-1].endswith("?") else 0.0,
    }


class FollowsTheRules:
    """The sum of the four rules; what the guard scores below 0, broken text as a rule, loses that much.

    Args:
        guard: a reward model that knows broken text from whole.
    """

    highest_reward = 4.0

    def __init__(self, guard: RewardModel) -> None:
        self._guard = guard

    async def score(self, messages: Sequence[BaseMessage], responses: Sequence[str]) -> list[float]:
        """From 0 to 4 for whole text."""
        whole = await self._guard.score(messages, responses)
        return [
            sum(rules_met(response).values()) + min(0.0, score)
            for response, score in zip(responses, whole, strict=True)
        ]


def main(question: str, policy: str) -> None:
    """Answer, and show the first draft and the answer side by side."""
    console = Console()
    console.print(f"[bold]{question}[/]\nThe reader wants {PREFERENCE}.\n")
    graph = create_tpo_graph(load_policy(policy), FollowsTheRules(load_reward("local")), settings=SETTINGS)
    result: dict[str, Any] = {}
    shown = 0
    with console.status("step 0: writing and scoring first drafts") as status:
        for result in graph.stream({"query": question}, stream_mode="values"):
            for record in result.get("trajectory", [])[shown:]:
                shown += 1
                console.print(f"step {record['step']}: best reward {record['best_reward']:+.2f}")
                status.update(f"step {shown}: comparing best and worst, writing and scoring revisions")
    first = next(candidate for candidate in result["cache"] if candidate["id"] == "0-0")
    table = Table(show_lines=True)
    table.add_column("", no_wrap=True)
    for title, candidate in (("first draft", first), ("answer", result["best"])):
        table.add_column(f"{title}, reward {candidate['reward']:+.2f}", ratio=1)
    table.add_row("", first["text"], result["answer"])
    for rule, before in rules_met(first["text"]).items():
        after = rules_met(result["answer"])[rule]
        table.add_row(rule, *("yes" if met == 1 else f"{met:.0%}" for met in (before, after)))
    console.print(table)
    usage = result["usage"].values()
    requests, read, written = (sum(use[key] for use in usage) for key in ("requests", "input_tokens", "output_tokens"))
    console.print(
        f"{result['step']} steps, {requests} requests, {read:,} tokens read, {written:,} written; "
        f"stopped by {result['stop_reason']}"
    )


if __name__ == "__main__":
    asked = sys.argv[1] if len(sys.argv) > 1 else "Why is the sky blue?"
    main(asked, sys.argv[2] if len(sys.argv) > 2 else "local:1.5b")
