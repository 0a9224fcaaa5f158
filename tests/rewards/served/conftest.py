"""Two tiny reward models of their own, and servers over them."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    pipeline,
)

from tests.rewards.served.wire import Host, RewardServer

torch.set_num_threads(1)

CONVERSATION: list[BaseMessage] = [
    SystemMessage("Be brief."),
    HumanMessage("Why is the sky blue?"),
    AIMessage("Air scatters blue light."),
    HumanMessage("And at sunset?"),
]
RESPONSES = ["It is red.", "Light takes a longer way through air.", "No idea, sorry!", "x", "Zürich 東京?"]

_SPECIALS = ["<s>", "<pad>", "<|start|>", "<|end|>", "[CLS]", "[SEP]"]
_LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>{% endfor %}"
)
_BERT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% if not loop.last %}[SEP]{% endif %}{% endfor %}"
)


@dataclass
class TinyModel:
    """A checkpoint and how it is read.

    Attributes:
        folder: the checkpoint.
        tokenizer: with a chat template.
        score: raw score of token ids, in a batch of one.
    """

    folder: Path
    tokenizer: PreTrainedTokenizerFast
    score: Callable[[list[int]], float]

    def by_pipeline(self, messages: Sequence[BaseMessage], response: str) -> float:
        """What the plain transformers pipeline gives, one text at a time."""
        roles = {"human": "user", "ai": "assistant", "system": "system"}
        turns = [{"role": roles[message.type], "content": message.text} for message in messages]
        text = self.tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": response}], tokenize=False)
        # the template of a decoder writes the begin token itself
        special = not text.startswith("<s>")
        return self._pipeline(text, function_to_apply="none", add_special_tokens=special)[0]["score"]

    @cached_property
    def _pipeline(self) -> Callable[..., Any]:
        return pipeline("text-classification", model=str(self.folder), tokenizer=self.tokenizer, device="cpu")


def _tokenizer(*, decoder: bool) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={token: place for place, token in enumerate([*_SPECIALS, *alphabet])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    single = "<s> $A" if decoder else "[CLS] $A [SEP]"
    core.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(name, _SPECIALS.index(name)) for name in single.split() if name != "$A"]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        extra_special_tokens=["<|start|>", "<|end|>"],
        **({"bos_token": "<s>", "eos_token": "<|end|>"} if decoder else {"cls_token": "[CLS]", "sep_token": "[SEP]"}),
    )
    tokenizer.chat_template = _LLAMA_TEMPLATE if decoder else _BERT_TEMPLATE
    return tokenizer


def _make(folder: Path, *, decoder: bool) -> TinyModel:
    tokenizer = _tokenizer(decoder=decoder)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    kind = LlamaConfig if decoder else BertConfig
    config = kind(
        vocab_size=len(tokenizer),
        num_labels=1,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.6)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    def score(ids: list[int]) -> float:
        with torch.inference_mode():
            return model(input_ids=torch.tensor([ids])).logits[0, 0].item()

    return TinyModel(folder, tokenizer, score)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return _make(tmp_path_factory.mktemp("llama"), decoder=True)


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return _make(tmp_path_factory.mktemp("bert"), decoder=False)


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.close()


@pytest.fixture
def serve(host: Host) -> Callable[..., RewardServer]:
    """Starts servers over a tiny model."""

    def start(tiny: TinyModel, **options: Any) -> RewardServer:
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
