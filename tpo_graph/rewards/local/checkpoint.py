"""Loads a reward model's checkpoint, and refuses one that would score at random or wrongly."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.rewards.local.architecture import position_limit
from tpo_graph.rewards.local.extractions import EXTRACTION_NAMES, Extraction, HeadKind, SingleScore
from tpo_graph.rewards.local.loading_errors import loading_errors
from tpo_graph.rewards.local.quiet import quiet_loading
from tpo_graph.rewards.local.tokenizer import load_tokenizer
from tpo_graph.rewards.local.value_head import load_value_head

__all__ = ["Checkpoint", "DType", "load_checkpoint"]

DType: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]

AUTO_CLASSES = {
    "sequence": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
    "causal": AutoModelForCausalLM,
    "value": AutoModelForCausalLM,
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model that is ready to score.

    Attributes:
        model: in evaluation mode, on its device.
        tokenizer: with a chat template.
        value_head: maps hidden states (rows, hidden) to values (rows, 1); None unless the extraction has one.
        max_length: tokens that the model takes; None for no limit.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    value_head: torch.nn.Module | None
    max_length: int | None


def load_checkpoint(
    name: str,
    *,
    device: str | None,
    dtype: DType,
    attention: str | None,
    revision: str | None,
    trust_remote_code: bool,
    max_length: int | None,
    chat_template: str | None,
    extraction: Extraction,
) -> Checkpoint:
    """Load model and tokenizer.

    Raises:
        RewardError: when the checkpoint can't be loaded, or would not give the reward that it was trained for.
        ConfigurationError: for a device, dtype or length that can't be used with it.
    """
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise RewardError(f"Reward model {name!r}: there is no such folder.", hint="Give the folder of config.json.")
    source = str(Path(name).expanduser()) if name.startswith("~") else name
    place = _device(device)
    with loading_errors(name, revision=revision, trust_remote_code=trust_remote_code), quiet_loading():
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
        own_code = AUTO_CLASSES[extraction.head].__name__ in (getattr(config, "auto_map", None) or {})
        if own_code and not trust_remote_code:
            _refuse_own_code(name, config)
        trusted = own_code and trust_remote_code
        if not trusted:
            _refuse_labels(name, config, extraction)
        tokenizer = load_tokenizer(
            source, revision=revision, trust_remote_code=trust_remote_code, chat_template=chat_template
        )
        model, report = AUTO_CLASSES[extraction.head].from_pretrained(
            source,
            config=config,
            revision=revision,
            trust_remote_code=trust_remote_code,
            dtype=_dtype(dtype, config, place),
            output_loading_info=True,
            **({"attn_implementation": attention} if attention else {}),
            # straight to the accelerator, where the package that can do it is installed
            **({"device_map": {"": place}} if place.type != "cpu" and importlib.util.find_spec("accelerate") else {}),
        )
        _refuse_fresh_weights(name, config, report, extraction.head)
        if trusted:  # that its code does not even import is the first thing to know
            _refuse_labels(name, config, extraction)
        model = model.to(place).eval().requires_grad_(False)
        value_head = load_value_head(source, revision, model) if extraction.head == "value" else None
        limit = _limit(name, model, tokenizer, max_length)
        # texts are cut here and counted; the tokenizer would write a warning to standard error for each
        tokenizer.model_max_length = 10**30
    return Checkpoint(model, tokenizer, value_head, limit)


def _refuse_own_code(name: str, config: PreTrainedConfig) -> None:
    """A class that transformers does not have; one that it has too needs no code of the checkpoint."""
    unknown = [written_for for written_for in config.architectures or () if not hasattr(transformers, written_for)]
    if unknown:
        raise RewardError(
            f"Reward model {name!r} brings its own code ({', '.join(unknown)}), which is not run unless you trust it.",
            hint="Read that code, then pass trust_remote_code=True.",
        )


def _refuse_labels(name: str, config: PreTrainedConfig, extraction: Extraction) -> None:
    written_for = ", ".join(config.architectures or ["an unknown class"])
    if not isinstance(extraction, SingleScore) or config.num_labels == 1:
        return
    if any("CausalLM" in architecture for architecture in config.architectures or ()):
        raise RewardError(
            f"{name!r} is a language model ({written_for}) without a reward head.",
            hint="Its head would be fresh and score at random. Give a model trained as a reward model, or name an "
            f"extraction if it is one that answers in tokens: {', '.join(EXTRACTION_NAMES)}.",
        )
    raise RewardError(
        f"{name!r} ({written_for}) has {config.num_labels} outputs; a reward is one number.",
        hint=f"Say how to read it with extraction=..., one of {', '.join(EXTRACTION_NAMES)}.",
    )


def _refuse_fresh_weights(name: str, config: PreTrainedConfig, report: dict[str, set[str]], head: HeadKind) -> None:
    missing = sorted(str(key) for key in report["missing_keys"])
    if not missing:
        return
    unexpected = sorted(str(key) for key in report["unexpected_keys"])
    hint = f"It was written for {', '.join(config.architectures or ['an unknown class'])}."
    if any("v_head." in key for key in unexpected):
        hint += " It holds a value head: try extraction='value_head'."
    elif unexpected:
        hint += f" Its file holds {len(unexpected)} weights that this class has no place for: {_some(unexpected)}."
    raise RewardError(
        f"The checkpoint {name!r} lacks {len(missing)} weights of a {head} reward model ({_some(missing)}); "
        "they would be random, and so would the scores.",
        hint=hint,
    )


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")


def _device(device: str | None) -> torch.device:
    if device is not None:
        try:
            place = torch.device(device)
        except RuntimeError as error:
            raise ConfigurationError(f"Unknown device {device!r}; allowed: cpu, cuda, cuda:N, mps, xpu.") from error
        usable = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not usable.get(place.type, True):
            raise ConfigurationError(f"Device {device!r} is not usable here.", hint="device=None picks one that is.")
        return place
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _dtype(dtype: DType, config: PreTrainedConfig, place: torch.device) -> torch.dtype:
    if dtype != "auto":
        chosen: torch.dtype = getattr(torch, dtype)
        return chosen
    stored = config.get_text_config().dtype
    if not isinstance(stored, torch.dtype):
        stored = torch.float32
    if place.type == "cpu":
        # half precision without instructions for it is emulated: several times slower than float32
        return stored if stored == torch.bfloat16 and _cpu_multiplies_bfloat16() else torch.float32
    if (
        stored == torch.bfloat16
        and place.type == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        return torch.float32
    return stored


def _cpu_multiplies_bfloat16() -> bool:
    # older versions of torch can't tell; float32 is right everywhere
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "sve_bf16", "bf16"))


def _limit(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> int | None:
    positions, is_table = position_limit(model)
    if max_length is not None:
        if is_table and positions is not None and max_length > positions:
            raise ConfigurationError(f"max_length={max_length}: {name!r} has positions for {positions} tokens.")
        return max_length
    # a tokenizer that states no length says so with a number of thirty digits
    stated = tokenizer.model_max_length if tokenizer.model_max_length < 10**9 else None
    return min((limit for limit in (positions, stated) if limit is not None), default=None)
