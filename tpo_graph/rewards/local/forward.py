"""One forward pass: texts in, the model's numbers at their positions out.

How texts may share a pass is decided from the model's class and config, never by trying and catching: an architecture
that is not known to give a padded text the score of the same text alone is run one text at a time.
"""

import inspect
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_layers import GenericForSequenceClassification, GenericForTokenClassification

from tpo_graph._private_api import attention_of, layer_types_of
from tpo_graph.rewards.local.encoding import EncodedText
from tpo_graph.rewards.local.extractions import HeadKind

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
