"""One forward pass: texts in, the model's numbers at their positions out."""

import inspect
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from tpo_graph.rewards.local.architecture import Architecture
from tpo_graph.rewards.local.encoding import EncodedText

__all__ = ["Forward"]


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
