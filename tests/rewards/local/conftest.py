"""Tiny checkpoints, made on the spot: random weights, a byte-level tokenizer and a chat template each."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast, pipeline

from tests.rewards.local.tokens import make_tokenizer
from tpo_graph.rewards.local import ClassifierReward
from tpo_graph.rewards.local.checkpoint import quiet_loading


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tiny models are faster on one thread, and the machine stays free for others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
ROPE = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 2048}

DECODERS: dict[str, dict[str, object]] = {
    "llama": ROPE,
    "qwen2": ROPE,
    "qwen3": ROPE,
    "mistral": {**ROPE, "sliding_window": 16},
    "gemma2": {**ROPE, "sliding_window": 16, "query_pre_attn_scalar": 8},
    "gemma3_text": {
        **ROPE,
        "sliding_window": 16,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "phi3": ROPE,
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 1024},
    "gpt_neox": {**SIZES, "max_position_embeddings": 1024},
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
        "max_position_embeddings": 1024,
    },
}
ENCODERS: dict[str, dict[str, object]] = {
    "bert": {**SIZES, "max_position_embeddings": 512},
    "roberta": {**SIZES, "max_position_embeddings": 514, "type_vocab_size": 1},
    "xlm-roberta": {**SIZES, "max_position_embeddings": 514, "type_vocab_size": 1},
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 3, "n_heads": 4, "max_position_embeddings": 512},
    "electra": {**SIZES, "embedding_size": 32, "max_position_embeddings": 512},
    "albert": {**SIZES, "embedding_size": 16, "max_position_embeddings": 512},
    "mpnet": {**SIZES, "max_position_embeddings": 514},
    "deberta": {
        **SIZES,
        "max_position_embeddings": 512,
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_biased_input": False,
    },
    "deberta-v2": {
        **SIZES,
        "max_position_embeddings": 512,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 16,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "conv_kernel_size": 3,
        "position_biased_input": False,
    },
    "modernbert": {
        **SIZES,
        "max_position_embeddings": 1024,
        "local_attention": 16,
        "classifier_pooling": "mean",
        "cls_token_id": 5,
        "sep_token_id": 6,
    },
}
ONE_BY_ONE: dict[str, dict[str, object]] = {
    # mixes all positions of a row, padding included
    "fnet": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 512},
    # reads the last position of a row
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
}


def make_checkpoint(
    folder: Path,
    kind: str,
    *,
    tokenizer: PreTrainedTokenizerFast | None = None,
    auto_class: type = AutoModelForSequenceClassification,
    **changes: object,
) -> Path:
    """Write a random model of an architecture, whose scores spread widely enough for a comparison to mean something."""
    sizes = {**DECODERS, **ENCODERS, **ONE_BY_ONE}[kind]
    tokenizer = tokenizer or make_tokenizer(decoder=kind in DECODERS)
    options = {
        "vocab_size": len(tokenizer),
        "num_labels": 1,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **sizes,
        **changes,
    }
    torch.manual_seed(7)
    with quiet_loading():
        model = auto_class.from_config(AutoConfig.for_model(kind, **options)).eval()
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                wide = 1.0 if "emb" in name or "wte" in name else 2.0 / math.sqrt(weight.shape[1])
                torch.nn.init.normal_(weight, std=wide)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that makes a checkpoint once for each set of arguments."""
    made: dict[str, Path] = {}

    def get(kind: str, **changes: object) -> Path:
        key = f"{kind} {sorted(changes.items(), key=str)}"
        if key not in made:
            made[key] = make_checkpoint(tmp_path_factory.mktemp(kind), kind, **changes)  # type: ignore[arg-type]
        return made[key]

    return get


@pytest.fixture
def reward(checkpoint: Callable[..., Path]) -> Iterator[Callable[..., ClassifierReward]]:
    """Loads the reward model of an architecture on the CPU in float32, and closes it with the test."""
    loaded: list[ClassifierReward] = []

    def load(kind: str | Path, *, make: Mapping[str, object] | None = None, **options: Any) -> ClassifierReward:
        folder = kind if isinstance(kind, Path) else checkpoint(kind, **(make or {}))
        loaded.append(ClassifierReward.from_pretrained(str(folder), **{"device": "cpu", "dtype": "float32", **options}))
        return loaded[-1]

    yield load
    for one in loaded:
        one.close()


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


@pytest.fixture(scope="session")
def pipeline_scores() -> Callable[[Path, Sequence[BaseMessage], Sequence[str]], list[float]]:
    """The reference: one text at a time through the plain pipeline, without a doubled begin token."""

    def score(folder: Path, messages: Sequence[BaseMessage], texts: Sequence[str]) -> list[float]:
        with quiet_loading():
            classify = pipeline("text-classification", model=str(folder), device="cpu", dtype=torch.float32)
        roles = {"human": "user", "ai": "assistant", "system": "system"}
        turns = [{"role": roles[message.type], "content": message.content} for message in messages]
        scores = []
        for text in texts:
            rendered = classify.tokenizer.apply_chat_template(
                [*turns, {"role": "assistant", "content": text}], tokenize=False
            ).removeprefix(classify.tokenizer.bos_token or "\0")
            scores.append(float(classify(rendered, function_to_apply="none")[0]["score"]))
        return scores

    return score
