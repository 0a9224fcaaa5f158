"""What a loaded model is, and so how its texts may share a forward pass.

Decided from the model's class and config, never by trying and catching: an architecture that is not known to give a
padded text the score of the same text alone is run one text at a time.
"""

from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs
from transformers.modeling_layers import GenericForSequenceClassification, GenericForTokenClassification

from tpo_graph.rewards.local.extractions import HeadKind

__all__ = ["Architecture", "describe", "pad_id_of", "position_limit"]

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
    layer_types, _ = get_layer_types_and_kwargs(config)
    return bool(
        set(layer_types) <= PREFIX_LAYERS
        and getattr(config, "is_causal", True)
        and not getattr(config, "use_bidirectional_attention", False)
        and config._attn_implementation in ("sdpa", "eager")
    )
