"""Checkpoints that are made once a session, reward models that are closed with their test, and the pipeline's scores.

torch is imported by the fixtures that need it, so that tests without them stay quick.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from tpo_graph.rewards.local import ClassifierReward, SingleScore

if TYPE_CHECKING:
    from tpo_graph.rewards.local.checkpoint import Checkpoint

CPU = {"device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """A function that returns the folder of a checkpoint, which is made once for each set of arguments."""
    import torch

    from tests.rewards.local.checkpoints import make_checkpoint

    folders: dict[str, Path] = {}

    def get(kind: str, **changes: Any) -> Path:
        key = f"{kind} {sorted(changes.items(), key=str)}"
        if key not in folders:
            folders[key] = make_checkpoint(tmp_path_factory.mktemp(kind), kind, **changes)
        return folders[key]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny models are faster on one thread, and the machine stays free for others
    yield get
    torch.set_num_threads(threads)


@pytest.fixture
def loaded(checkpoint: Callable[..., Path]) -> Callable[..., "Checkpoint"]:
    """A function that loads a checkpoint without serving it, so that a test can change or watch its model."""
    from tpo_graph.rewards.local.checkpoint import load_checkpoint

    def load(kind: str | Path, **options: Any) -> "Checkpoint":
        folder = kind if isinstance(kind, Path) else checkpoint(kind)
        return load_checkpoint(str(folder), **{**CPU, "extraction": SingleScore(), **options})

    return load


@pytest.fixture
def reward(checkpoint: Callable[..., Path]) -> Iterator[Callable[..., ClassifierReward]]:
    """A function that returns the reward model of an architecture, a folder or a loaded checkpoint, and closes it."""
    models: list[ClassifierReward] = []

    def load(source: "str | Path | Checkpoint", **options: Any) -> ClassifierReward:
        if isinstance(source, str | Path):
            folder = checkpoint(source) if isinstance(source, str) else source
            models.append(ClassifierReward.from_pretrained(str(folder), **{**CPU, **options}))
        else:
            models.append(ClassifierReward(source, **options))
        return models[-1]

    yield load
    for model in models:
        model.close()


@pytest.fixture
def conversation() -> list[BaseMessage]:
    """A system message, a turn and a question: some fifty tokens more than a sliding window."""
    return [
        SystemMessage("You answer in one sentence."),
        HumanMessage("Is the sky blue because air scatters light?"),
        AIMessage("Yes, short waves of light more than long ones."),
        HumanMessage("Why do warm rooms make people sleepy?"),
    ]


@pytest.fixture
def responses() -> list[str]:
    """Responses of very different lengths, an empty one and equal ones among them."""
    return [
        "Since the body spends less on keeping its heat.",
        "Warm.",
        "The sky is blue because air scatters short waves. " * 8,
        "Zürich, naïve, 東京!",
        "",
        "Warm.",
        "\n\nThe body rests: less heat, more sleep; some more text with punctuation, and 3 + 4 = 7.",
    ]
