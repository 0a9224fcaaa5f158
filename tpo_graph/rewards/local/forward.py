"""One forward pass: texts in, the model's numbers at their positions out."""

import inspect
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_layers import GenericForSequenceClassification, GenericForTokenClassification

from tpo_graph._private_api import attention_of, keys_and_values, layer_types_of, prefix_cache
from tpo_graph.rewards.local.encoding import EncodedText, TokenIds, common_start
from tpo_graph.rewards.local.extractions import HeadKind

# What a loaded model is, and so how its texts may share a forward pass.
#
# Decided from the model's class and config, never by trying and catching: an architecture that is not known to give a
# padded text the score of the same text alone is run one text at a time.

# Decoders with their own copy of the generic class: `score` on the hidden state of the last token that is not padding.
LAST_TOKEN_CLASSES = frozenset(
    {"GPT2ForSequenceClassification", "GPTNeoXForSequenceClassification", "OPTForSequenceClassification"}
)

# Encoders that mask right padding fully; the tests compare each with a batch of one. Others mix tokens past the mask
# (FNet), pick their attention by the padded length (BigBird) or read the end of the row (XLNet).
PADDED_ENCODERS = frozenset(
    {
        "albert",
        "bert",
        "deberta",
        "deberta-v2",
        "distilbert",
        "electra",
        "modernbert",
        "mpnet",
        "roberta",
        "xlm-roberta",
    }
)

# Rotary scalings that look at the longest text of the batch: a text's score then depends on its neighbours.
LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})

# Layers whose keys and values of a prefix do not depend on what follows, and can be cut at any token.
PREFIX_LAYERS = frozenset({"full_attention", "sliding_attention"})


POSITION_TABLES = frozenset({"position_embeddings", "wpe", "embed_positions"})


@dataclass(frozen=True, slots=True)
class Architecture:
    """How a model is run.

    Attributes:
        readout: `positions` reads a linear head at chosen tokens of the backbone's hidden states; `logits` reads a
            causal model's next-token logits at chosen tokens; `whole` takes what the model's own forward returns.
        padded: texts of different lengths may share a batch, padded on the right.
        shared_prefix: the keys and values of a common start may be kept and reused.
    """

    readout: Literal["positions", "logits", "whole"]
    padded: bool
    shared_prefix: bool


def describe(model: PreTrainedModel, head: HeadKind) -> Architecture:
    """Describe a loaded model."""
    # code that came with a checkpoint may do anything with padding and positions: it runs as its authors ran it
    own_code = not type(model).__module__.startswith("transformers.")
    name = type(model).__name__
    reads_positions = not own_code and (
        head == "value"
        or isinstance(model, GenericForSequenceClassification | GenericForTokenClassification)
        or name in LAST_TOKEN_CLASSES
    )
    if head == "causal":
        readout: Literal["positions", "logits", "whole"] = "logits"
    else:
        readout = "positions" if reads_positions else "whole"
    decoder = not own_code and readout != "whole"
    config = model.config.get_text_config(decoder=True)
    steady = not _length_dependent(config)
    return Architecture(
        readout=readout,
        padded=steady and (decoder or (not own_code and model.config.model_type in PADDED_ENCODERS)),
        shared_prefix=steady and decoder and _prefix_is_causal(config),
    )


def pad_id_of(model: PreTrainedModel) -> int | None:
    """The id that the model's own pooling skips at the end of a text, from its config."""
    pad = model.config.get_text_config().pad_token_id
    return pad if isinstance(pad, int) else None


def position_limit(model: PreTrainedModel) -> tuple[int | None, bool]:
    """Tokens that the model takes, and whether more would fail (a table of positions) and not merely be untrained."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rsplit(".", 1)[-1] in POSITION_TABLES:
            # RoBERTa counts positions from its pad id, OPT from an offset of 2
            skipped = getattr(module, "offset", 0) if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - skipped, True
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return (limit if isinstance(limit, int) and limit > 0 else None), False


def _length_dependent(config: PreTrainedConfig) -> bool:
    rope = getattr(config, "rope_parameters", None) or {}
    # one dict, or one a layer type
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    return any(kind.get("rope_type") in LENGTH_DEPENDENT_ROPE for kind in kinds)


def _prefix_is_causal(config: PreTrainedConfig) -> bool:
    return bool(
        set(layer_types_of(config)) <= PREFIX_LAYERS
        and getattr(config, "is_causal", True)
        and not getattr(config, "use_bidirectional_attention", False)
        and attention_of(config) in ("sdpa", "eager")
    )


# Which texts run in one forward pass: pure functions over lengths and token ids.

MAX_ROWS = 128
"""Rows of a batch; more gain nothing on any device, and would make the search for the best division slow."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What a forward pass may hold and what it costs on a device.

    Attributes:
        tokens: tokens of a batch, padding included. A text that is longer runs alone.
        continued_tokens: the same for texts that go on from a shared prefix, which is not counted.
        pass_tokens: the fixed cost of a pass, in tokens that could run in the same time: padding up to this is worth
            a pass saved.
        prefix_rows: tokens of a batch on a shared prefix, each row counted with the whole prefix (memory of attention).
    """

    tokens: int
    continued_tokens: int
    pass_tokens: int
    prefix_rows: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts for one forward pass.

    Attributes:
        prefix: token ids that all texts begin with, whose keys and values are reused; () for none.
        texts: what to score.
    """

    prefix: TokenIds
    texts: tuple[EncodedText, ...]


def split_by_length(texts: Sequence[EncodedText], limits: BatchLimits, *, skipped: int = 0) -> list[list[EncodedText]]:
    """Divide texts into the batches that cost least: a pass costs its rows times its longest row, and a fixed part.

    Args:
        texts: in any order.
        limits: of a pass.
        skipped: ids at the start of each text that are not run again.

    Returns:
        Batches of similar length, the longest first, so that too little memory shows at once.
    """
    tokens = limits.continued_tokens if skipped else limits.tokens
    ordered = sorted(texts, key=lambda one: len(one.ids), reverse=True)
    # cheapest[i]: the cost of the texts from i on, and where the batch that starts at i ends
    cheapest: list[tuple[int, int]] = [(0, 0)] * (len(ordered) + 1)
    for start in range(len(ordered) - 1, -1, -1):
        longest = len(ordered[start].ids) - skipped
        last = min(start + max(min(tokens // longest, MAX_ROWS), 1), len(ordered))
        cheapest[start] = min(
            (limits.pass_tokens + (end - start) * longest + cheapest[end][0], end) for end in range(start + 1, last + 1)
        )
    batches = []
    start = 0
    while start < len(ordered):
        end = cheapest[start][1]
        batches.append(ordered[start:end])
        start = end
    return batches


def worthwhile(limits: BatchLimits, *, prefix: int, texts: int, total: int, kept: bool) -> bool:
    """Whether a prefix is worth a pass of its own.

    Splitting a text costs a pass, and masked attention over the prefix is slower than plain causal attention, so that
    a small saving is none.

    Args:
        limits: of a pass.
        prefix: its tokens.
        texts: how many texts share it.
        total: tokens of all these texts.
        kept: whether it was run before.
    """
    saved = prefix * (texts if kept else texts - 1)
    return saved >= 4 * limits.pass_tokens and saved >= 0.2 * total


def prefix_of(texts: Sequence[EncodedText]) -> TokenIds:
    """The longest start that texts of one conversation can share; () when they share none.

    Every text keeps at least one token after it, and all its positions.
    """
    length = min(min(text.shared, len(text.ids) - 1, *text.positions) for text in texts)
    return texts[0].ids[: max(length, 0)]


# Keys and values of a conversation, run once and reused for all its responses, in every step of a run.

SEEN_ONCE = 256
"""How many prefixes of single texts are remembered, to keep those that come again."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """A prefix that has been run.

    Attributes:
        ids: its tokens.
        layers: keys and values of each layer, each (1, heads, tokens, head size).
    """

    ids: TokenIds
    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    @property
    def bytes(self) -> int:
        """Memory of all keys and values."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)

    def cache(self, length: int) -> Cache:
        """A cache of the first `length` tokens for one forward pass over any number of rows."""
        return prefix_cache([(keys[:, :, :length], values[:, :, :length]) for keys, values in self.layers])


def run_prefix(model: PreTrainedModel, ids: TokenIds) -> Prefix:
    """Run the backbone over a prefix and keep its keys and values."""
    # without a config every layer keeps all tokens, the sliding ones too
    cache = DynamicCache()
    model.base_model(input_ids=torch.tensor([ids], device=model.device), past_key_values=cache, use_cache=True)
    return Prefix(ids, keys_and_values(cache))


class KeptPrefixes:
    """The prefixes used last, up to a number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        """Keep up to `max_bytes` of keys and values. The newest is kept whatever its size: its batches are to come."""
        self._max_bytes = max_bytes
        self._kept: OrderedDict[TokenIds, Prefix] = OrderedDict()
        self._bytes = 0
        self._seen: OrderedDict[int, None] = OrderedDict()

    @property
    def bytes(self) -> int:
        """Memory of what is kept."""
        return self._bytes

    def __len__(self) -> int:
        """How many prefixes are kept."""
        return len(self._kept)

    def find(self, ids: Sequence[int]) -> tuple[Prefix, int] | None:
        """The kept prefix that shares most with `ids`, and how many tokens of it can be used.

        A response may merge with the last token of what precedes it, so nearly all of `ids` is enough.
        """
        wanted = tuple(ids)
        best: tuple[Prefix, int] | None = None
        for kept in reversed(self._kept.values()):
            length = common_start(kept.ids, wanted)
            if length >= 0.9 * len(wanted) and (best is None or length > best[1]):
                best = kept, length
        if best is not None:
            self._kept.move_to_end(best[0].ids)
        return best

    def keep(self, prefix: Prefix) -> None:
        """Add a prefix, and drop the ones used least recently until all fit."""
        self._kept[prefix.ids] = prefix
        self._bytes += prefix.bytes
        while self._bytes > self._max_bytes and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.bytes

    def seen_before(self, ids: TokenIds) -> bool:
        """Whether this prefix was asked about before; it is remembered for the next time."""
        key = hash(ids)
        known = key in self._seen
        self._seen[key] = None
        self._seen.move_to_end(key)
        while len(self._seen) > SEEN_ONCE:
            self._seen.popitem(last=False)
        return known

    def clear(self) -> None:
        """Drop everything that is kept."""
        self._kept.clear()
        self._bytes = 0


class Forward:
    """Runs a model on texts padded on the right, and reads it at the positions of the unpadded ids."""

    def __init__(
        self,
        model: PreTrainedModel,
        architecture: Architecture,
        *,
        value_head: torch.nn.Module | None,
        columns: Sequence[int],
    ) -> None:
        """Prepare the pass.

        Args:
            model: in evaluation mode.
            architecture: what it is.
            value_head: takes the place of the model's own head.
            columns: outputs to return for each position; () for all of them.
        """
        self._model = model
        self._architecture = architecture
        self._head = value_head if value_head is not None else getattr(model, "score", None)
        self._columns = list(columns)
        # padding is masked, and no position is read in it, so that any id does; encoders count positions by their own
        pad = model.config.get_text_config().pad_token_id
        self._pad = pad if isinstance(pad, int) and pad >= 0 else 0
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._takes_use_cache = "use_cache" in inspect.signature(model.forward).parameters

    def __call__(
        self, texts: Sequence[EncodedText], cache: Cache | None = None, skipped: int = 0
    ) -> list[list[list[float]]]:
        """Run texts together.

        Args:
            texts: of any lengths.
            cache: keys and values of the first `skipped` ids, which all texts share.
            skipped: tokens that are not run again.

        Returns:
            For each text its outputs, (positions, columns) as nested lists.
        """
        ids, mask = self._padded(texts, skipped)
        if self._architecture.readout == "whole":
            more = {"use_cache": False} if self._takes_use_cache else {}
            # a model's own code may find the end of a text by its mask
            mask = torch.ones_like(ids) if mask is None else mask
            logits = self._model(input_ids=ids, attention_mask=mask, **more).logits
            return [[row] for row in self._picked(logits)]
        device = ids.device
        rows = torch.tensor([row for row, text in enumerate(texts) for _ in text.positions], device=device)
        columns = torch.tensor([at - skipped for text in texts for at in text.positions], device=device)
        if not len(rows):
            return [[] for _ in texts]
        inputs: dict[str, object] = {
            "input_ids": ids,
            "attention_mask": mask,
            "past_key_values": cache,
            "use_cache": cache is not None,
        }
        if self._architecture.readout == "logits":
            outputs = self._next_token_logits(inputs, rows, columns)
        else:
            assert self._head is not None
            hidden = self._model.base_model(**inputs).last_hidden_state[rows, columns]  # (all positions, hidden size)
            weight = next(self._head.parameters())
            outputs = self._head(hidden.to(weight.dtype))
        flat = iter(self._picked(outputs))
        return [[next(flat) for _ in text.positions] for text in texts]

    def _next_token_logits(self, inputs: dict[str, object], rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Logits (all positions, vocabulary) through the model's own head, with whatever scaling it applies."""
        if not self._keeps_logits:
            whole: torch.Tensor = self._model(**inputs).logits[rows, columns]
            return whole
        kept, where = torch.unique(columns, return_inverse=True)
        logits: torch.Tensor = self._model(**inputs, logits_to_keep=kept).logits[rows, where]
        return logits

    def _picked(self, outputs: torch.Tensor) -> list[list[float]]:
        chosen = outputs[:, self._columns] if self._columns else outputs
        numbers: list[list[float]] = chosen.float().tolist()
        return numbers

    def _padded(self, texts: Sequence[EncodedText], skipped: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Ids (rows, longest) and mask (rows, skipped + longest); no mask when nothing is padded, which is faster."""
        longest = max(len(text.ids) for text in texts)
        ids = torch.tensor(
            [[*text.ids[skipped:], *[self._pad] * (longest - len(text.ids))] for text in texts],
            device=self._model.device,
        )
        if all(len(text.ids) == longest for text in texts):
            return ids, None
        lengths = torch.tensor([len(text.ids) for text in texts], device=ids.device)
        return ids, (torch.arange(longest, device=ids.device) < lengths[:, None]).long()
