"""Scores encoded texts with a loaded model: one forward pass, then batches, reused prefixes and too little memory.

How texts may share a pass is decided from the model's class and config, never by trying and catching: an architecture
that is not known to give a padded text the score of the same text alone is run one text at a time.
"""

import gc
import inspect
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_layers import GenericForSequenceClassification, GenericForTokenClassification

from tpo_graph._bounded_cache import BoundedCache
from tpo_graph._private_api import attention_of, keys_and_values, layer_types_of, prefix_cache
from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.rewards.local.batches import Batch, BatchLimits, prefix_of, split_by_length, worthwhile
from tpo_graph.rewards.local.checkpoint import Checkpoint
from tpo_graph.rewards.local.encoding import EncodedText, TokenIds, common_start, single_token_id
from tpo_graph.rewards.local.extractions import Extraction, HeadKind

# Decoders with their own copy of the generic class: `score` on the hidden state of the last token that is not padding.
LAST_TOKEN_CLASSES = frozenset(
    {"GPT2ForSequenceClassification", "GPTNeoXForSequenceClassification", "OPTForSequenceClassification"}
)

# Encoders that mask right padding fully; the tests compare each with a batch of one. Others mix tokens past the mask
# (FNet), pick their attention by the padded length (BigBird) or read the end of the row (XLNet).
PADDED_ENCODERS = frozenset(
    {"albert", "bert", "deberta", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet"}
    | {"roberta", "xlm-roberta"}
)

# Rotary scalings that look at the longest text of the batch: a text's score then depends on its neighbours.
LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})

# Layers whose keys and values of a prefix do not depend on what follows, and can be cut at any token.
PREFIX_LAYERS = frozenset({"full_attention", "sliding_attention"})


def pad_id_of(model: PreTrainedModel) -> int | None:
    """The id that the model's own pooling skips at the end of a text, from its config."""
    pad = model.config.get_text_config().pad_token_id
    return pad if isinstance(pad, int) else None


class Forward:
    """Runs a model on texts padded on the right, and reads it at the positions of the unpadded ids.

    Attributes:
        readout: `positions` reads a linear head at chosen tokens of the backbone's hidden states; `logits` reads a
            causal model's next-token logits at chosen tokens; `whole` takes what the model's own forward returns.
        padded: whether texts of different lengths may share a batch, padded on the right.
        shares_prefix: whether the keys and values of a common start may be kept and reused.
    """

    def __init__(
        self, model: PreTrainedModel, head: HeadKind, *, value_head: nn.Module | None, columns: Sequence[int]
    ) -> None:
        """Find out how the model is run.

        Args:
            model: in evaluation mode.
            head: the kind of head that is read.
            value_head: takes the place of the model's own head.
            columns: outputs to return for each position; () for all of them.
        """
        self._model = model
        self._head = value_head if value_head is not None else getattr(model, "score", None)
        self._columns = list(columns)
        # padding is masked, and no position is read in it, so that any id does; encoders count positions by their own
        self._pad = max(pad_id_of(model) or 0, 0)
        parameters = inspect.signature(model.forward).parameters
        self._keeps_logits = "logits_to_keep" in parameters
        self._takes_use_cache = "use_cache" in parameters

        # code that came with a checkpoint may do anything with padding and positions: it runs as its authors ran it
        own_code = not type(model).__module__.startswith("transformers.")
        self.readout: Literal["positions", "logits", "whole"] = "whole"
        if head == "causal":
            self.readout = "logits"
        elif not own_code and (
            head == "value"
            or isinstance(model, GenericForSequenceClassification | GenericForTokenClassification)
            or type(model).__name__ in LAST_TOKEN_CLASSES
        ):
            self.readout = "positions"
        decoder = not own_code and self.readout != "whole"
        config = model.config.get_text_config(decoder=True)
        rope = getattr(config, "rope_parameters", None) or {}
        # one dict, or one for each type of layer
        rotations = [rope, *(value for value in rope.values() if isinstance(value, dict))]
        steady = not any(rotation.get("rope_type") in LENGTH_DEPENDENT_ROPE for rotation in rotations)
        self.padded = steady and (decoder or (not own_code and model.config.model_type in PADDED_ENCODERS))
        self.shares_prefix = bool(
            steady
            and decoder
            and getattr(config, "is_causal", True)
            and not getattr(config, "use_bidirectional_attention", False)
            and set(layer_types_of(config)) <= PREFIX_LAYERS
            and attention_of(config) in ("sdpa", "eager")
        )

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
        if not any(text.positions for text in texts):
            return [[] for _ in texts]
        lengths = [len(text.ids) for text in texts]
        longest = max(lengths)
        ids = torch.tensor(  # (rows, longest - skipped)
            [[*text.ids[skipped:], *[self._pad] * (longest - len(text.ids))] for text in texts],
            device=self._model.device,
        )
        mask = None  # where nothing is padded, which is faster; else (rows, longest)
        if min(lengths) < longest:
            ends = torch.tensor(lengths, device=ids.device)
            mask = (torch.arange(longest, device=ids.device) < ends[:, None]).long()
        if self.readout == "whole":  # which reads each text at one position of its own choice
            options = {"use_cache": False} if self._takes_use_cache else {}
            # a model's own code may find the end of a text by its mask
            mask = torch.ones_like(ids) if mask is None else mask
            outputs = self._model(input_ids=ids, attention_mask=mask, **options).logits
        else:
            rows = torch.tensor([row for row, text in enumerate(texts) for _ in text.positions], device=ids.device)
            columns = torch.tensor([at - skipped for text in texts for at in text.positions], device=ids.device)
            inputs = {
                "input_ids": ids,
                "attention_mask": mask,
                "past_key_values": cache,
                "use_cache": cache is not None,
            }
            if self.readout == "positions":
                assert self._head is not None
                hidden = self._model.base_model(**inputs).last_hidden_state[rows, columns]  # (positions, hidden size)
                outputs = self._head(hidden.to(next(self._head.parameters()).dtype))
            elif self._keeps_logits:
                # (positions, vocabulary) through the model's own head, with whatever scaling it applies
                kept, columns = torch.unique(columns, return_inverse=True)
                outputs = self._model(**inputs, logits_to_keep=kept).logits[rows, columns]
            else:
                outputs = self._model(**inputs).logits[rows, columns]
        numbers = outputs[:, self._columns] if self._columns else outputs
        lines = iter(numbers.float().tolist())
        return [[next(lines) for _ in text.positions] for text in texts]


SEEN_ONCE = 256
"""How many prefixes of single texts are remembered, to keep those that come again."""

# a CPU, Apple's backend and cuBLAS have no exception of their own for it
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "cublas_status_alloc_failed")


class Scorer:
    """A model with its batch limits and kept prefixes. Used by one thread at a time."""

    def __init__(
        self, checkpoint: Checkpoint, extraction: Extraction, *, batch_tokens: int | None, prefix_bytes: int
    ) -> None:
        """Prepare the model for scoring.

        Args:
            checkpoint: model and tokenizer.
            extraction: how a reward is read from the outputs.
            batch_tokens: tokens of a batch; None for the device's own.
            prefix_bytes: memory for kept prefixes.
        """
        model = checkpoint.model
        self.limits = BatchLimits.of_device(model.device.type, batch_tokens)
        self.ignored_at_end = pad_id_of(model) if extraction.head == "sequence" else None
        self._model = model
        self._extraction = extraction
        self._forward = Forward(
            model, extraction.head, value_head=checkpoint.value_head, columns=columns_of(checkpoint, extraction)
        )
        if extraction.step_token is not None and self._forward.readout == "whole":
            raise ConfigurationError(
                f"{type(model).__name__} can't be read at each step.",
                hint="Process rewards need a decoder with a token classification or language model head.",
            )
        self._prefixes = KeptPrefixes(prefix_bytes)

    def plan(self, conversations: Sequence[Sequence[EncodedText]]) -> list[Batch]:
        """Divide texts into batches.

        Args:
            conversations: texts by conversation; no text twice.
        """
        batches: list[Batch] = []
        plain: list[EncodedText] = []
        for texts in conversations:
            sharing = [text for text in texts if text.shared]
            prefix = prefix_of(sharing) if sharing and self._forward.shares_prefix else ()
            # a single text gains nothing now, but a conversation that was seen twice will be seen again
            kept = self._prefixes.find(prefix) is not None or (len(sharing) == 1 and self._prefixes.seen_before(prefix))
            total = sum(len(text.ids) for text in sharing)
            if not worthwhile(self.limits, prefix=len(prefix), texts=len(sharing), total=total, kept=kept):
                plain += texts
                continue
            plain += [text for text in texts if not text.shared]
            rows = max(self.limits.prefix_rows // max(len(text.ids) for text in sharing), 1)
            batches += [
                Batch(prefix, tuple(group[start : start + rows]))
                for group in split_by_length(sharing, self.limits, skipped=len(prefix))
                for start in range(0, len(group), rows)
            ]
        groups = split_by_length(plain, self.limits) if self._forward.padded else [[text] for text in plain]
        return batches + [Batch((), tuple(group)) for group in groups]

    def run(self, batch: Batch) -> list[float]:
        """Score a batch; when memory runs out, in halves.

        Args:
            batch: from `plan`, or with fewer texts.

        Returns:
            One float for each text; NaN where the model gives NaN.

        Raises:
            RewardError: when the model fails, or not even one text fits into memory.
        """
        try:
            with torch.inference_mode():
                if batch.prefix:
                    found = self._prefixes.find(batch.prefix)
                    if found is None:
                        found = run_prefix(self._model, batch.prefix), len(batch.prefix)
                        self._prefixes.keep(found[0])
                    prefix, length = found
                    outputs = self._forward(batch.texts, prefix.cache(length), length)
                else:
                    outputs = self._forward(batch.texts)
            return [self._extraction.reward(rows) for rows in outputs]
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            cause = str(error)
            if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not any(
                words in cause.lower() for words in OUT_OF_MEMORY
            ):
                raise RewardError(f"The reward model failed on a batch: {error}") from error
        # outside of the handler, whose traceback would keep the tensors of the failed pass
        freed = self._prefixes.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(batch.texts) > 1:
            middle = len(batch.texts) // 2
            first, second = (Batch(batch.prefix, half) for half in (batch.texts[:middle], batch.texts[middle:]))
            return self.run(first) + self.run(second)
        if batch.prefix or freed:
            return self.run(Batch((), batch.texts))
        raise RewardError(
            f"One text of {len(batch.texts[0].ids)} tokens does not fit into memory: {cause}",
            hint="Set max_length, or take a smaller model, dtype or another device.",
        )


def columns_of(checkpoint: Checkpoint, extraction: Extraction) -> list[int]:
    """Indices of the outputs that the extraction keeps."""
    if extraction.head == "causal":
        tokenizer = checkpoint.tokenizer
        place, size = "the vocabulary", len(tokenizer)
        indices = [
            column if isinstance(column, int) else single_token_id(tokenizer, column) for column in extraction.columns
        ]
    else:
        config = checkpoint.model.config
        place, size = "the model's outputs", 1 if extraction.head == "value" else config.num_labels or 1
        labels = {str(name): int(index) for name, index in (config.label2id or {}).items()}
        unknown = [column for column in extraction.columns if isinstance(column, str) and column not in labels]
        if unknown:
            raise ConfigurationError(f"The reward model has no label {unknown[0]!r}; allowed: {', '.join(labels)}.")
        indices = [column if isinstance(column, int) else labels[column] for column in extraction.columns]
    for index in indices:
        if not 0 <= index < size:
            raise ConfigurationError(f"Column {index} is outside of {place}; allowed: 0 to {size - 1}.")
    return indices


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
    """The keys and values of conversations, reused for all their responses in every step of a run.

    Those used last are kept, up to a number of bytes.
    """

    def __init__(self, max_bytes: int) -> None:
        """Keep up to `max_bytes` of keys and values. The newest is kept whatever its size: its batches are to come."""
        self._max_bytes = max_bytes
        self._kept: OrderedDict[TokenIds, Prefix] = OrderedDict()
        self._bytes = 0
        self._seen: BoundedCache[int, bool] = BoundedCache(SEEN_ONCE)

    def find(self, ids: TokenIds) -> tuple[Prefix, int] | None:
        """The kept prefix that shares most with `ids`, and how many tokens of it can be used.

        A response may merge with the last token of what precedes it, so nearly all of `ids` is enough.
        """
        best: tuple[Prefix, int] | None = None
        for kept in reversed(self._kept.values()):
            length = common_start(kept.ids, ids)
            if length >= 0.9 * len(ids) and (best is None or length > best[1]):
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
        before = self._seen.get(key) is not None
        self._seen.put(key, True)
        return before

    def clear(self) -> bool:
        """Drop everything that is kept; returns whether there was anything."""
        had_any = bool(self._kept)
        self._kept.clear()
        self._bytes = 0
        return had_any
