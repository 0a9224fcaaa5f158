"""Scores encoded texts with a loaded model: plans the batches, reuses prefixes, copes with too little memory."""

import gc
from collections.abc import Sequence

import torch

from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.rewards.local.checkpoint import Checkpoint
from tpo_graph.rewards.local.encoding import EncodedText, TokenIds, single_token_id
from tpo_graph.rewards.local.extractions import Extraction
from tpo_graph.rewards.local.forward import (
    Batch,
    BatchLimits,
    Forward,
    KeptPrefixes,
    Prefix,
    describe,
    pad_id_of,
    prefix_of,
    run_prefix,
    split_by_length,
    worthwhile,
)
from tpo_graph.rewards.local.worker import ScoreCounts


def limits_for(device: torch.device, batch_tokens: int | None) -> BatchLimits:
    """Batch limits by device.

    A CPU is busy with some two hundred tokens: measured, larger batches only add padding, and attention masks that
    make it slower than one text at a time. Texts on a shared prefix need the mask anyway. An accelerator idles until
    there are thousands.
    """
    if device.type == "cpu":
        tokens = batch_tokens or 192
        return BatchLimits(tokens, continued_tokens=batch_tokens or 384, pass_tokens=20, prefix_rows=18_000)
    tokens = batch_tokens or 16384
    return BatchLimits(tokens, continued_tokens=tokens, pass_tokens=512, prefix_rows=8 * tokens)


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
        self.limits = limits_for(checkpoint.model.device, batch_tokens)
        self.ignored_at_end = pad_id_of(checkpoint.model) if extraction.head == "sequence" else None
        self._model = checkpoint.model
        self._extraction = extraction
        self._architecture = describe(checkpoint.model, extraction.head)
        if extraction.step_token is not None and self._architecture.readout == "whole":
            raise ConfigurationError(
                f"{type(checkpoint.model).__name__} can't be read at each step.",
                hint="Process rewards need a decoder with a token classification or language model head.",
            )
        self._forward = Forward(
            checkpoint.model,
            self._architecture,
            value_head=checkpoint.value_head,
            columns=_columns(checkpoint, extraction),
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
            prefix = self._worthwhile_prefix(sharing)
            if not prefix:
                plain += texts
                continue
            plain += [text for text in texts if not text.shared]
            rows = max(self.limits.prefix_rows // max(len(text.ids) for text in sharing), 1)
            batches += [
                Batch(prefix, tuple(part[start : start + rows]))
                for part in split_by_length(sharing, self.limits, skipped=len(prefix))
                for start in range(0, len(part), rows)
            ]
        parts = split_by_length(plain, self.limits) if self._architecture.padded else [[text] for text in plain]
        return batches + [Batch((), tuple(part)) for part in parts]

    def run(self, batch: Batch, counts: ScoreCounts) -> list[float]:
        """Score a batch; when memory runs out, in halves.

        Raises:
            RewardError: when not even one text fits.
        """
        try:
            with torch.inference_mode():
                outputs = self._outputs(batch, counts)
            counts["batches"] += 1
            return [self._extraction.reward(rows) for rows in outputs]
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise RewardError(f"The reward model failed on a batch: {error}") from error
            cause = str(error)
        # outside of the handler, whose traceback would keep the tensors of the failed pass
        counts["out_of_memory"] += 1
        kept = len(self._prefixes)
        self._prefixes.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(batch.texts) > 1:
            middle = len(batch.texts) // 2
            first, second = (Batch(batch.prefix, half) for half in (batch.texts[:middle], batch.texts[middle:]))
            return self.run(first, counts) + self.run(second, counts)
        if batch.prefix or kept:
            return self.run(Batch((), batch.texts), counts)
        raise RewardError(
            f"One text of {len(batch.texts[0].ids)} tokens does not fit into memory: {cause}",
            hint="Set max_length, or take a smaller model, dtype or another device.",
        )

    def _outputs(self, batch: Batch, counts: ScoreCounts) -> list[list[list[float]]]:
        if not batch.prefix:
            return self._forward(batch.texts)
        prefix, length = self._prefix(batch.prefix, counts)
        return self._forward(batch.texts, prefix.cache(length), length)

    def _prefix(self, ids: TokenIds, counts: ScoreCounts) -> tuple[Prefix, int]:
        found = self._prefixes.find(ids)
        if found is not None:
            counts["prefix_hits"] += 1
            return found
        prefix = run_prefix(self._model, ids)
        counts["prefix_builds"] += 1
        self._prefixes.keep(prefix)
        return prefix, len(ids)

    def _worthwhile_prefix(self, texts: Sequence[EncodedText]) -> TokenIds:
        """The prefix of a conversation's texts if reusing it saves enough; else ()."""
        if not texts or not self._architecture.shared_prefix:
            return ()
        prefix = prefix_of(texts)
        kept = self._prefixes.find(prefix) is not None
        # a single text gains nothing now, but a conversation that comes again will come once more
        coming = kept or (len(texts) == 1 and self._prefixes.seen_before(prefix))
        total = sum(len(text.ids) for text in texts)
        if worthwhile(self.limits, prefix=len(prefix), texts=len(texts), total=total, kept=coming):
            return prefix
        return ()


def _columns(checkpoint: Checkpoint, extraction: Extraction) -> list[int]:
    """Indices of the outputs that the extraction keeps."""
    if extraction.head == "causal":
        vocabulary = len(checkpoint.tokenizer)
        tokens = checkpoint.tokenizer
        ids = [one if isinstance(one, int) else single_token_id(tokens, one) for one in extraction.columns]
        return _inside(ids, vocabulary, "the vocabulary")
    names = {str(name): int(index) for name, index in (checkpoint.model.config.label2id or {}).items()}
    unknown = [one for one in extraction.columns if isinstance(one, str) and one not in names]
    if unknown:
        raise ConfigurationError(f"The reward model has no label {unknown[0]!r}; allowed: {', '.join(names)}.")
    indices = [one if isinstance(one, int) else names[one] for one in extraction.columns]
    outputs = 1 if extraction.head == "value" else checkpoint.model.config.num_labels or 1
    return _inside(indices, outputs, "the model's outputs")


def _inside(indices: list[int], size: int, what: str) -> list[int]:
    for index in indices:
        if not 0 <= index < size:
            raise ConfigurationError(f"Column {index} is outside of {what}; allowed: 0 to {size - 1}.")
    return indices


_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "cublas_status_alloc_failed")


def _out_of_memory(error: BaseException) -> bool:
    # a CPU, Apple's backend and cuBLAS have no exception of their own for it
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in said for words in _OUT_OF_MEMORY)
