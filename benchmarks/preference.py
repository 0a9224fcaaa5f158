"""Whether the demo's answers follow its preference better than first drafts, and than as many samples.

    python benchmarks/preference.py --policy local:1.5b

For each question the run of examples/demo.py: the share of the four rules that the first draft meets, the best of step
0, the answer of D2-N5 (15 samples) and the best of 15 first drafts. Means over the questions, with 95% intervals from
10,000 bootstrap samples of the questions (seed 0). Every question is printed as it ends.

Prints a table, then one line of JSON.
"""

import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tpo_graph import TPOSettings, create_tpo_graph, load_policy, load_reward

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from demo import SETTINGS, FollowsTheRules, rules_met  # an example is no package

QUESTIONS = (
    "Why is the sky blue?",
    "How do I keep basil alive indoors?",
    "What is a good way to start running?",
    "Why do cats purr?",
    "How does a microwave oven heat food?",
    "What should I pack for a weekend in the mountains?",
    "Why do we yawn?",
    "How can I remember names better?",
    "What makes bread rise?",
    "Is it better to shower in the morning or in the evening?",
    "How do noise-cancelling headphones work?",
    "What is inflation?",
    "How do I apologise to a friend whom I let down?",
    "Why does the moon change its shape?",
    "How can I fall asleep faster?",
    "What does a vaccine do?",
    "How do I keep my plants alive when I travel?",
    "Why is the sea salty?",
    "How can I save money on groceries?",
    "What is the difference between weather and climate?",
    "How do I ask for a pay rise?",
    "Why do leaves change colour in autumn?",
    "How does a rainbow form?",
    "What is a fair way to share chores at home?",
    "How do I stop biting my nails?",
    "Why do we have leap years?",
    "How can I learn a language on my own?",
    "What makes a password strong?",
    "How do I make good coffee without a machine?",
    "Why does ice float?",
)
METHODS = ("first draft", "best of 5", "answer, D2-N5", "best of 15")


def interval(values: list[float]) -> tuple[float, float]:
    """The 95% bootstrap interval of a mean."""
    chance = random.Random(0)
    means = sorted(statistics.fmean(chance.choices(values, k=len(values))) for _ in range(10_000))
    return means[249], means[9749]


def main(
    policy: Annotated[str, typer.Option(help="The policy.")] = "local:1.5b",
    questions: Annotated[int, typer.Option(help="How many of the questions.", min=2, max=len(QUESTIONS))] = 30,
    n: Annotated[int, typer.Option(help="N.", min=2)] = 5,
    depth: Annotated[int, typer.Option(help="D.", min=1)] = 2,
) -> None:
    """Measure and print."""
    graph = create_tpo_graph(load_policy(policy), FollowsTheRules(load_reward("local")), settings=SETTINGS)
    shares: dict[str, list[float]] = {method: [] for method in METHODS}
    seconds, lost, revisions = [], 0, 0
    for place, question in enumerate(QUESTIONS[:questions]):
        start = time.perf_counter()
        run = graph.invoke({"query": question}, context=TPOSettings(n=n, depth=depth, seed=place))
        seconds.append(time.perf_counter() - start)
        many = TPOSettings(mode="bon", n=n * (depth + 1), seed=place)
        best_of_all = graph.invoke({"query": question}, context=many)["answer"]
        drafts = [candidate for candidate in run["cache"] if candidate["step"] == 0]
        texts = (drafts[0]["text"], max(drafts, key=lambda c: c["reward"])["text"], run["answer"], best_of_all)
        for method, text in zip(METHODS, texts, strict=True):
            shares[method].append(statistics.fmean(rules_met(text).values()))
        revisions += len(run["cache"]) - len(drafts)
        lost += sum(failure["phase"] == "update" for failure in run["failures"])
        row = "  ".join(f"{values[-1]:.2f}" for values in shares.values())
        typer.echo(f"{row}  {seconds[-1]:5.0f} s  {question}", err=True)
    table = Table(title=f"Share of the four rules met, {questions} questions, {policy}", title_justify="left")
    for column in ("", "mean", "95% interval", "all rules met"):
        table.add_column(column, justify="left" if not column else "right")
    for method, values in shares.items():
        low, high = interval(values)
        whole = sum(value == 1 for value in values)
        table.add_row(method, f"{statistics.fmean(values):.2f}", f"{low:.2f} to {high:.2f}", f"{whole} of {questions}")
    Console().print(table)
    typer.echo(
        json.dumps(
            {
                "policy": policy,
                "shares": shares,
                "seconds": seconds,
                "revisions": revisions,
                "lost_revisions": lost,
            }
        )
    )


if __name__ == "__main__":
    typer.run(main)
