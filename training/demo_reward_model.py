"""The network behind the demonstration reward: its tokenizer, its start from MiniLM, how it is made small, and scoring.

The architecture is ELECTRA's, a plain transformers class: it is BERT's encoder with an embedding that may be narrower
than the hidden layers, which is where a small model with a large vocabulary saves most.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from demo_reward_data import Message
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    PreTrainedTokenizerFast,
)

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[SYSTEM]", "[USER]", "[ASSISTANT]", "[RESPONSE]")
POSITIONS = 512

# The response that is judged has its own mark, so that the model need not count turns.
CHAT_TEMPLATE = (
    "[CLS]{% for message in messages %}"
    "{% if message['role'] == 'user' %}[USER]"
    "{% elif message['role'] == 'system' %}[SYSTEM]"
    "{% elif loop.last %}[RESPONSE]"
    "{% else %}[ASSISTANT]{% endif %}"
    "{{ message['content'] | trim }}"
    "{% endfor %}[SEP]"
)


def build_tokenizer(source: Path, texts: Iterable[str], size: int) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """Cuts a BERT tokenizer down to the pieces that are frequent in the texts.

    Every single-character piece stays, so whatever the full vocabulary could spell the small one can spell too.

    Args:
        source: Folder with BERT's `tokenizer.json`.
        texts: What to count pieces in.
        size: How many pieces to keep, the specials included.

    Returns:
        The tokenizer, and for each of its ids the id in the source (the four turn marks borrow `[unused]` ids).
    """
    spec = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    full = Tokenizer.from_file(str(source / "tokenizer.json"))
    full.no_truncation()
    full.no_padding()
    counts = Counter(i for encoding in full.encode_batch(list(texts)) for i in encoding.ids)
    old = spec["model"]["vocab"]
    characters = [piece for piece in old if len(piece.removeprefix("##")) == 1]
    ranked = sorted((p for p in old if not p.startswith("[")), key=lambda p: (-counts[old[p]], old[p]))
    kept = list(dict.fromkeys([*SPECIALS, *characters, *ranked]))[:size]
    borrowed = iter(range(1, 100))
    origin = [old[p] if p in old else old[f"[unused{next(borrowed)}]"] for p in kept]

    spec["model"]["vocab"] = {piece: i for i, piece in enumerate(kept)}
    # No template of its own: the chat template writes [CLS] and [SEP], and nothing may add them a second time.
    spec["post_processor"] = spec["truncation"] = spec["padding"] = None
    spec["added_tokens"] = [
        {"id": i, "content": token, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for i, token in enumerate(SPECIALS)
    ]
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # the library has no types there
        tokenizer_object=Tokenizer.from_str(json.dumps(spec)),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        additional_special_tokens=["[SYSTEM]", "[USER]", "[ASSISTANT]", "[RESPONSE]"],
        model_max_length=POSITIONS,
        truncation_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer, origin


def from_minilm(source: Path, origin: Sequence[int]) -> ElectraForSequenceClassification:
    """Puts MiniLM's encoder into an ELECTRA classifier with one logit; only the head starts from nothing.

    Args:
        source: Folder with `config.json` and `model.safetensors` of all-MiniLM-L6-v2.
        origin: For each new token id, its id in MiniLM.
    """
    bert = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config = ElectraConfig(
        vocab_size=len(origin),
        embedding_size=bert["hidden_size"],
        hidden_size=bert["hidden_size"],
        num_hidden_layers=bert["num_hidden_layers"],
        num_attention_heads=bert["num_attention_heads"],
        intermediate_size=bert["intermediate_size"],
        max_position_embeddings=bert["max_position_embeddings"],
        pad_token_id=0,
        num_labels=1,  # type: ignore[call-arg]  # a keyword of every config
    )
    model = ElectraForSequenceClassification(config)
    weights = load_file(source / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] = weights["embeddings.word_embeddings.weight"][list(origin)]
    own = model.electra.state_dict()
    model.electra.load_state_dict({name: w for name, w in weights.items() if name in own}, strict=True)
    return model


def render(
    tokenizer: PreTrainedTokenizerFast, prompt: Sequence[Message], response: str, limit: int = POSITIONS
) -> list[int]:
    """Turns a conversation and a response into token ids; what is over the limit goes from the start."""
    messages = [*prompt, {"role": "assistant", "content": response}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][-limit:]
    return ids


def padded(rows: Sequence[Sequence[int]], size: int = 16) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """Yields batches of rows of similar length: their places in `rows`, their ids (B, T) and the mask (B, T)."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), size):
        places = order[start : start + size]
        chunk = [torch.tensor(rows[i]) for i in places]
        ids = torch.nn.utils.rnn.pad_sequence(chunk, batch_first=True)  # padded with 0 = [PAD]
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(c) for c in chunk], batch_first=True)
        yield places, ids, mask


def in_order(parts: Sequence[torch.Tensor], places: Sequence[int]) -> torch.Tensor:
    """Puts what was computed by `padded` batches back in the order of the rows; shape (len(places),)."""
    return torch.cat(list(parts))[torch.tensor(places).argsort()]


def score_batch(model: torch.nn.Module, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Scores rows of token ids of any lengths with a one-logit classifier; float32, shape (len(rows),)."""
    parts, places = [], []
    for where, ids, mask in padded(rows):
        parts.append(model(input_ids=ids, attention_mask=mask).logits[:, 0].float())
        places += where
    return in_order(parts, places)


def save(model: ElectraForSequenceClassification, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes the checkpoint: weights stored in half precision, to be loaded and run in float32."""
    folder.mkdir(parents=True, exist_ok=True)
    half = AutoModelForSequenceClassification.from_config(model.config)  # type: ignore[no-untyped-call]  # the library has no types there
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    # A reader that is told no precision takes the one in the config; half precision is slow on CPUs.
    edit_json(folder / "config.json", dtype="float32")
    # The name that older transformers know too, and nothing about where this tokenizer was read from.
    edit_json(
        folder / "tokenizer_config.json",
        tokenizer_class="PreTrainedTokenizerFast",
        is_local=None,
        local_files_only=None,
    )


def edit_json(path: Path, **values: str | None) -> None:
    """Sets keys of a JSON object in a file; None removes a key."""
    content = json.loads(path.read_text(encoding="utf-8")) | values
    content = {key: value for key, value in content.items() if key not in values or value is not None}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
