"""Two tiny reward models, servers over them, and clients of these servers.

torch is imported by the fixtures that need it, so that a run without these tests stays quick.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from tests.rewards.served.wire import RewardServer
from tests.servers import Host
from tpo_graph import RewardModel, load_reward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONVERSATION: list[BaseMessage] = [
    SystemMessage("Be brief."),
    HumanMessage("Why is the sky blue?"),
    AIMessage("Air scatters blue light."),
    HumanMessage("And at sunset?"),
]
RESPONSES = ["It is red.", "Light takes a longer way through air.", "No idea, sorry!", "x", "Zürich 東京?"]

# OpenRLHF's server ends each text with the end token, as this template does
LLAMA_TEMPLATE = "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>{% endfor %}"


@dataclass
class TinyModel:
    """A checkpoint and how it is read.

    Attributes:
        folder: the checkpoint.
        tokenizer: with a chat template.
        score: raw score of token ids, in a batch of one.
    """

    folder: Path
    tokenizer: "PreTrainedTokenizerFast"
    score: Callable[[list[int]], float]


def _make(folder: Path, kind: str) -> TinyModel:
    import torch
    from transformers import AutoModelForSequenceClassification

    from tests.rewards.local.checkpoints import make_checkpoint, make_tokenizer

    torch.set_num_threads(1)  # tiny models are faster on one thread
    tokenizer = make_tokenizer(decoder=kind == "llama")
    if kind == "llama":
        tokenizer.chat_template = LLAMA_TEMPLATE
    make_checkpoint(folder, kind, tokenizer=tokenizer)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()

    def score(ids: list[int]) -> float:
        with torch.inference_mode():
            return model(input_ids=torch.tensor([ids])).logits[0, 0].item()

    return TinyModel(folder, tokenizer, score)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return _make(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return _make(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.close()


@pytest.fixture
def serve(host: Host, llama: TinyModel) -> Callable[..., RewardServer]:
    """Starts a server over a tiny model."""

    def start(tiny: TinyModel = llama, **options: Any) -> RewardServer:
        def encode_chat(messages: list[dict[str, str]]) -> list[int]:
            return tiny.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)

        defaults = {
            "score_ids": tiny.score,
            "encode": lambda text, special: tiny.tokenizer.encode(text, add_special_tokens=special),
            "encode_chat": encode_chat,
            "eos": tiny.tokenizer.eos_token or "",
        }
        return host.add(RewardServer(**{**defaults, **options}))

    return start


@pytest.fixture
def connect(serve: Callable[..., RewardServer], llama: TinyModel) -> Callable[..., tuple[RewardServer, RewardModel]]:
    """Starts a server, and loads the reward model behind it by its name; it waits next to nothing between attempts."""

    def start(
        scheme: str, *, tiny: TinyModel = llama, options: dict[str, Any] | None = None, **server_options: Any
    ) -> tuple[RewardServer, RewardModel]:
        server = serve(tiny, **server_options)
        path = "/sglang" if scheme == "sglang" else ""
        defaults = {"retry_wait": 0.005} | ({} if scheme == "nim" else {"tokenizer": str(tiny.folder)})
        return server, load_reward(f"{scheme}:{server.url}{path}#rm", **{**defaults, **(options or {})})

    return start
