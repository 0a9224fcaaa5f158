"""Scores encoded texts with a loaded model: plans the batches, reuses prefixes, copes with too little memory."""

import gc
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from tpo_graph._bounded_cache import BoundedCache
from tpo_graph._private_api import keys_and_values, prefix_cache
from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.rewards.local.batches import Batch, BatchLimits, prefix_of, split_by_length, worthwhile
from tpo_graph.rewards.local.checkpoint import Checkpoint
from tpo_graph.rewards.local.encoding import EncodedText, TokenIds, common_start, single_token_id
from tpo_graph.rewards.local.extractions import Extraction
from tpo_graph.rewards.local.forward import Forward, pad_id_of

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
