"""Local reward models against one text at a time through the plain transformers pipeline, in the same run.

    python benchmarks/rewards.py --size medium --threads 2

Random weights of a decoder (llama) and an encoder (bert): the time does not depend on what a model has learned. Both
sides render the chat template, tokenise and run in float32 on the CPU. Their runs alternate, and each side's best run
counts. "times" is how many times less processor time the package takes; the scores must agree to 1e-4.

Prints a table, then one line of JSON. Exits with 1 when scores differ, or when a shape takes more processor time than
one by one: "times" below 0.95, which leaves five hundredths to noise.
"""

import asyncio
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from langchain_core.messages import HumanMessage
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    pipeline,
)
from transformers.utils import logging as transformers_logging

from tpo_graph.rewards.local import ClassifierReward

Query = tuple[str, list[str]]  # the user's text, the responses
Shape = list[list[Query]]  # calls one after the other; the queries of one call run at the same time

WORDS = [f"w{index}" for index in range(2000)]
TOLERANCE = 1e-4
LEAST_TIMES = 0.95
WARM_UP: Shape = [[("w1 w2", ["w3", "w4 w5 w6"])]]


class Size(StrEnum):
    """Parameters of the decoder: about 10, 30 or 60 million."""

    small = "small"
    medium = "medium"
    large = "large"


LAYERS_AND_WIDTH = {Size.small: (6, 384), Size.medium: (8, 512), Size.large: (12, 640)}


@dataclass
class Result:
    """One shape on one model."""

    model: str
    shape: str
    texts: int
    times: float
    pipeline_cpu_seconds: float
    cpu_seconds: float
    times_by_clock: float
    pipeline_peak_mb: float
    peak_mb: float
    largest_difference: float


def words(chance: random.Random, count: int) -> str:
    """A text of that many tokens."""
    return " ".join(chance.choices(WORDS, k=count))


def shapes(chance: random.Random) -> dict[str, Callable[[int], Shape]]:
    """What is scored, by name: functions of the number of tokens that a model takes."""

    def answers(count: int, low: int, high: int) -> list[str]:
        return [words(chance, chance.randint(low, high)) for _ in range(count)]

    def long_shared(limit: int) -> Shape:
        return [[(words(chance, min(1000, limit - 60)), answers(20, 20, 50))]]

    def next_steps(limit: int) -> Shape:
        conversation = words(chance, min(1000, limit - 60))
        return [[(conversation, answers(5, 20, 50))] for _ in range(4)]

    def duplicates(_: int) -> Shape:
        return [[(words(chance, 200), answers(6, 20, 60) * 4)]]

    return {
        "long conversation, 20 short answers": long_shared,
        "long conversation, 4 steps of 5": next_steps,
        "one conversation, mixed lengths": lambda _: [[(words(chance, 40), answers(16, 10, 400))]],
        "24 queries at once, mixed lengths": lambda _: [
            [(words(chance, chance.randint(5, 200)), answers(1, 10, 250)) for _ in range(24)]
        ],
        "16 queries at once, 5 answers each": lambda _: [[(words(chance, 80), answers(5, 30, 80)) for _ in range(16)]],
        "tiny texts": lambda _: [[(words(chance, 5), answers(1, 3, 12)) for _ in range(60)]],
        "one text a call": lambda _: [[(words(chance, 100), answers(1, 50, 150))] for _ in range(10)],
        "long answers": lambda _: [[(words(chance, 30), answers(5, 380, 440))]],
        "duplicates, 6 different of 24": duplicates,
    }


def write_checkpoint(folder: Path, kind: str, size: Size) -> tuple[int, int]:
    """Write a random model; returns its parameters and the tokens it takes."""
    specials = ["<s>", "</s>", "<pad>", "<|start|>", "<|end|>"]
    core = Tokenizer(
        models.WordLevel({word: at for at, word in enumerate([*specials, "user", "assistant", *WORDS])}, "w0")
    )
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **names)  # type: ignore[no-untyped-call]  # untyped there
    tokenizer.add_special_tokens({"extra_special_tokens": specials[3:]})
    tokenizer.chat_template = "{% for m in messages %}<|start|> {{ m['role'] }} {{ m['content'] }} <|end|> {% endfor %}"
    layers, width = LAYERS_AND_WIDTH[size]
    shared = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "pad_token_id": tokenizer.pad_token_id,
        "num_labels": 1,
    }
    config: PreTrainedConfig
    if kind == "decoder":
        limit = 4096
        config = LlamaConfig(
            **shared, intermediate_size=3 * width, num_key_value_heads=width // 128, max_position_embeddings=limit
        )
    else:
        limit = 512
        config = BertConfig(**shared, intermediate_size=4 * width, max_position_embeddings=limit)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]  # untyped there
    for name, weight in model.named_parameters():
        if name.startswith(("score", "classifier")) and weight.ndim > 1:
            torch.nn.init.normal_(weight, std=1.0)  # spread the scores, so that differences show
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.num_parameters(), limit


@contextmanager
def peak_memory(peaks: list[float]) -> Iterator[None]:
    """Append the most memory, in MB, that the process took beyond its start (0 where /proc is missing)."""
    statm = Path("/proc/self/statm")

    def resident() -> float:
        return int(statm.read_text().split()[1]) * 4096 / 1e6 if statm.exists() else 0.0

    start = top = resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal top
        while not done.wait(0.003):
            top = max(top, resident())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        peaks.append(max(top, resident()) - start)


def one_by_one(classify: Any, shape: Shape) -> list[float]:
    """Scores through the pipeline, one text at a time."""
    scores = []
    for call in shape:
        for query, responses in call:
            for response in responses:
                turns = [{"role": "user", "content": query}, {"role": "assistant", "content": response}]
                text = classify.tokenizer.apply_chat_template(turns, tokenize=False)
                scores.append(float(classify(text, function_to_apply="none")[0]["score"]))
    return scores


def together(reward: ClassifierReward, shape: Shape) -> list[float]:
    """Scores through the package."""

    async def run() -> list[float]:
        scores: list[float] = []
        for call in shape:
            parts = await asyncio.gather(*(reward.score([HumanMessage(query)], answers) for query, answers in call))
            scores += [score for part in parts for score in part]
        return scores

    return asyncio.run(run())


def measure(kind: str, folder: Path, *, limit: int, repeats: int, seed: int, only: str) -> Iterator[Result]:
    """Compare on every shape."""
    classify = pipeline("text-classification", model=str(folder), device="cpu", dtype=torch.float32)
    for name, make in shapes(random.Random(seed)).items():
        shape = make(limit)
        if only not in name:
            continue
        texts = sum(len(answers) for call in shape for _, answers in call)
        spent: dict[str, list[tuple[float, float]]] = {"pipeline": [], "package": []}
        peaks: dict[str, list[float]] = {"pipeline": [], "package": []}
        scores: dict[str, Sequence[float]] = {}
        for repeat in range(repeats):
            # a new one each time, so that no prefix is left from the last repeat
            reward = ClassifierReward.from_pretrained(str(folder), device="cpu", dtype="float32")
            sides: list[tuple[str, Callable[[], list[float]]]] = [
                ("pipeline", partial(one_by_one, classify, shape)),
                ("package", partial(together, reward, shape)),
            ]
            together(reward, WARM_UP)  # the first pass reads the weights from the file
            one_by_one(classify, WARM_UP)
            for side, run in sides if repeat % 2 else reversed(sides):
                with peak_memory(peaks[side]):
                    cpu, clock = time.process_time(), time.perf_counter()
                    scores[side] = run()
                    spent[side].append((time.process_time() - cpu, time.perf_counter() - clock))
            reward.close()
        best = {side: [min(column) for column in zip(*runs, strict=True)] for side, runs in spent.items()}
        yield Result(
            model=kind,
            shape=name,
            texts=texts,
            times=best["pipeline"][0] / best["package"][0],
            pipeline_cpu_seconds=best["pipeline"][0],
            cpu_seconds=best["package"][0],
            times_by_clock=best["pipeline"][1] / best["package"][1],
            pipeline_peak_mb=statistics.median(peaks["pipeline"]),
            peak_mb=statistics.median(peaks["package"]),
            largest_difference=max(
                abs(one - other) for one, other in zip(scores["pipeline"], scores["package"], strict=True)
            ),
        )


def main(
    *,
    size: Annotated[Size, typer.Option(help="Of the models.")] = Size.medium,
    threads: Annotated[int, typer.Option(help="Threads for torch.")] = 2,
    repeats: Annotated[int, typer.Option(help="Runs of each side on each shape; the best counts.")] = 2,
    seed: Annotated[int, typer.Option(help="For the texts.")] = 0,
    only: Annotated[str, typer.Option(help="Only shapes whose name holds this.")] = "",
    model: Annotated[str, typer.Option(help="decoder, encoder or both.")] = "both",
) -> None:
    """Compare local scoring with the pipeline, one text at a time."""
    torch.set_num_threads(threads)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # untyped in the library
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # untyped in the library
    console = Console()
    results: list[Result] = []
    parameters: dict[str, int] = {}
    for kind in ("decoder", "encoder") if model == "both" else (model,):
        with tempfile.TemporaryDirectory() as folder:
            parameters[kind], limit = write_checkpoint(Path(folder), kind, size)
            table = Table(title=f"{kind}, {parameters[kind] / 1e6:.0f} million parameters, {threads} thread(s)")
            for column in (
                "shape",
                "texts",
                "times",
                "pipeline CPU",
                "our CPU",
                "pipeline peak",
                "our peak",
                "difference",
            ):
                table.add_column(column, justify="left" if column == "shape" else "right")
            for result in measure(kind, Path(folder), limit=limit, repeats=repeats, seed=seed, only=only):
                results.append(result)
                table.add_row(
                    result.shape,
                    str(result.texts),
                    f"{result.times:.2f}",
                    f"{result.pipeline_cpu_seconds:.2f} s",
                    f"{result.cpu_seconds:.2f} s",
                    f"{result.pipeline_peak_mb:.0f} MB",
                    f"{result.peak_mb:.0f} MB",
                    f"{result.largest_difference:.0e}",
                )
            console.print(table)
    if not results:
        raise typer.BadParameter(f"No shape has {only!r} in its name.", param_hint="--only")
    largest = max(result.largest_difference for result in results)
    slowest = min(results, key=lambda result: result.times)
    summary = {
        "benchmark": "rewards",
        "torch": torch.__version__,
        "threads": threads,
        "parameters": parameters,
        "slowest": slowest.times,
        "least_times": LEAST_TIMES,
        "largest_difference": largest,
        "results": [{key: _rounded(value) for key, value in vars(result).items()} for result in results],
    }
    print(json.dumps(summary))
    if largest > TOLERANCE:
        print(f"scores differ by up to {largest:.1e}; {TOLERANCE:.0e} is allowed", file=sys.stderr)
    if slowest.times < LEAST_TIMES:
        comparison = f"{slowest.shape!r} on the {slowest.model} is {slowest.times:.2f} times as fast as one by one"
        print(f"{comparison}; at least {LEAST_TIMES} is wanted", file=sys.stderr)
    if largest > TOLERANCE or slowest.times < LEAST_TIMES:
        raise typer.Exit(1)


def _rounded(value: object) -> object:
    return float(f"{value:.3g}") if isinstance(value, float) else value


if __name__ == "__main__":
    typer.run(main)
