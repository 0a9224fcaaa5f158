"""Loads a reward model's checkpoint, and refuses one that would score at random or wrongly."""

import importlib.util
import json
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import torch
import transformers
from huggingface_hub import errors as hub
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_utils import load_state_dict
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from tpo_graph.errors import ConfigurationError, RewardError, TPOError
from tpo_graph.rewards.local.extractions import EXTRACTION_NAMES, Extraction, SingleScore

DType: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]

AUTO_CLASSES = {
    "sequence": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
    "causal": AutoModelForCausalLM,
    "value": AutoModelForCausalLM,
}

VALUE_WEIGHT, VALUE_BIAS = "v_head.summary.weight", "v_head.summary.bias"
"""The value head of a TRL checkpoint: two tensors beside the causal model's own weights."""

POSITION_TABLES = frozenset({"position_embeddings", "wpe", "embed_positions"})

UNLIMITED = 10**30
"""What transformers writes as the `model_max_length` of a tokenizer that states none."""


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
    value_head: nn.Module | None
    max_length: int | None


def load_checkpoint(
    name: str,
    *,
    device: str | None = None,
    dtype: DType = "auto",
    attention: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    max_length: int | None = None,
    chat_template: str | None = None,
    extraction: Extraction,
) -> Checkpoint:
    """Load model and tokenizer.

    Args:
        name: a repository on the Hugging Face hub, or a folder.
        device: torch's name of it; None takes an accelerator where there is one.
        dtype: `auto` is the checkpoint's own, or float32 on a CPU that can't multiply it.
        attention: transformers' `attn_implementation`; None for its choice.
        revision: branch, tag or commit on the hub.
        trust_remote_code: whether code that comes with the checkpoint may run.
        max_length: tokens of a text; None for what model and tokenizer state.
        chat_template: Jinja text in place of the tokenizer's own; None keeps that.
        extraction: how the reward will be read, which decides the head to load.

    Raises:
        RewardError: when the checkpoint can't be loaded, or would not give the reward that it was trained for.
        ConfigurationError: for a device, dtype or length that can't be used with it.
    """
    if dtype not in get_args(DType):
        raise ConfigurationError(f"Unknown dtype {dtype!r}; allowed: {', '.join(get_args(DType))}.")
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise RewardError(f"Reward model {name!r}: there is no such folder.", hint="Give the folder of config.json.")
    source = str(Path(name).expanduser()) if name.startswith("~") else name
    place = _device(device)
    auto_class = AUTO_CLASSES[extraction.head]
    with _loading(name, revision=revision, trust_remote_code=trust_remote_code):
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
        own_code = auto_class.__name__ in (getattr(config, "auto_map", None) or {})
        if own_code and not trust_remote_code:
            # a class that transformers has as well needs no code of the checkpoint
            unknown = [
                written_for for written_for in config.architectures or () if not hasattr(transformers, written_for)
            ]
            if unknown:
                raise RewardError(
                    f"Reward model {name!r} brings its own code ({', '.join(unknown)}), which is not run unless you "
                    "trust it.",
                    hint="Read that code, then pass trust_remote_code=True.",
                )
        if not (own_code and trust_remote_code):
            _refuse_labels(name, config, extraction)
        tokenizer = load_tokenizer(
            source, revision=revision, trust_remote_code=trust_remote_code, chat_template=chat_template
        )
        model, report = auto_class.from_pretrained(
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
        missing, unexpected = (sorted(map(str, report[kind])) for kind in ("missing_keys", "unexpected_keys"))
        if missing:
            hint = f"It was written for {_architectures(config)}."
            if any("v_head." in key for key in unexpected):
                hint += " It holds a value head: try extraction='value_head'."
            elif unexpected:
                hint += (
                    f" Its file holds {len(unexpected)} weights that this class has no place for: {_some(unexpected)}."
                )
            raise RewardError(
                f"The checkpoint {name!r} lacks {len(missing)} weights of a {extraction.head} reward model "
                f"({_some(missing)}); they would be random, and so would the scores.",
                hint=hint,
            )
        if own_code and trust_remote_code:  # that its code can't even be imported is the first thing to know
            _refuse_labels(name, config, extraction)
        model = model.to(place).eval().requires_grad_(False)
        value_head = _load_value_head(source, revision, model) if extraction.head == "value" else None
    positions, is_table = position_limit(model)
    if max_length is None:
        stated = tokenizer.model_max_length if tokenizer.model_max_length < 10**9 else None
        max_length = min((limit for limit in (positions, stated) if limit is not None), default=None)
    elif is_table and positions is not None and max_length > positions:
        raise ConfigurationError(f"max_length={max_length}: {name!r} has positions for {positions} tokens.")
    # texts are cut by the encoder; the tokenizer would write a warning to standard error for each
    tokenizer.model_max_length = UNLIMITED
    return Checkpoint(model, tokenizer, value_head, max_length)


def load_tokenizer(
    name_or_path: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    chat_template: str | None = None,
) -> PreTrainedTokenizerBase:
    """Load a reward model's tokenizer, whose chat template says how the model wants a conversation written.

    Args:
        name_or_path: a repository on the Hugging Face hub, or a folder.
        revision: branch, tag or commit on the hub.
        trust_remote_code: whether code that comes with it may run.
        chat_template: Jinja text in place of the tokenizer's own; None keeps that.

    Raises:
        RewardError: it can't be loaded, or has no chat template.
    """
    with _loading(name_or_path, revision=revision, trust_remote_code=trust_remote_code):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name_or_path, revision=revision, trust_remote_code=trust_remote_code
        )
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    if not tokenizer.chat_template:
        raise RewardError(
            f"The tokenizer {name_or_path!r} has no chat template, which says how the reward model wants a "
            "conversation written.",
            hint="Pass chat_template=..., a Jinja text as its model card describes the input.",
        )
    return tokenizer


def _load_value_head(source: str, revision: str | None, model: PreTrainedModel) -> nn.Module:
    """Load a linear map from hidden states (rows, hidden) to values (rows, 1)."""

    def found(file: str) -> str | None:
        try:
            return cached_file(source, file, revision=revision)
        except OSError:  # there is no such file; the model has just been loaded from the same place
            return None

    tensors: dict[str, torch.Tensor] = {}
    for whole in ("model.safetensors", "pytorch_model.bin"):
        index = found(f"{whole}.index.json")
        shards = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"] if index else {}
        # weight and bias may lie in different shards
        for file in {shards.get(key, whole) for key in (VALUE_WEIGHT, VALUE_BIAS)}:
            if (path := found(file)) is not None:
                stored = load_state_dict(path)  # mapped into memory, so that the other tensors are not read
                tensors |= {key: stored[key] for key in (VALUE_WEIGHT, VALUE_BIAS) if key in stored}
        if VALUE_WEIGHT in tensors:
            break
    else:
        raise RewardError(
            f"{source!r} holds no value head ({VALUE_WEIGHT}).",
            hint="extraction='value_head' is for TRL's PPO value models.",
        )
    weight = tensors[VALUE_WEIGHT]
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=VALUE_BIAS in tensors, dtype=weight.dtype)
    head.load_state_dict({key.rsplit(".", 1)[-1]: tensor for key, tensor in tensors.items()})
    return head.to(model.device).eval().requires_grad_(False)


def _refuse_labels(name: str, config: PreTrainedConfig, extraction: Extraction) -> None:
    if not isinstance(extraction, SingleScore) or config.num_labels == 1:
        return
    if any("CausalLM" in architecture for architecture in config.architectures or ()):
        raise RewardError(
            f"{name!r} is a language model ({_architectures(config)}) without a reward head.",
            hint="Its head would be fresh and score at random. Give a model trained as a reward model, or name an "
            f"extraction if it is one that answers in tokens: {EXTRACTION_NAMES}.",
        )
    raise RewardError(
        f"{name!r} ({_architectures(config)}) has {config.num_labels} outputs; a reward is one number.",
        hint=f"Say how to read it with extraction=..., one of {EXTRACTION_NAMES}.",
    )


def _architectures(config: PreTrainedConfig) -> str:
    return ", ".join(config.architectures or ["an unknown class"])


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")


def position_limit(model: PreTrainedModel) -> tuple[int | None, bool]:
    """Tokens that the model takes, and whether more would fail (a table of positions) and not merely be untrained."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rsplit(".", 1)[-1] in POSITION_TABLES:
            # RoBERTa counts positions from its pad id, OPT from an offset of 2
            skipped = getattr(module, "offset", 0) if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - skipped, True
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return (limit if isinstance(limit, int) and limit > 0 else None), False


def _device(device: str | None) -> torch.device:
    if device is None:
        accelerator = "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device("cuda" if torch.cuda.is_available() else accelerator)
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ConfigurationError(f"Unknown device {device!r}; allowed: cpu, cuda, cuda:N, mps, xpu.") from error
    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not usable.get(place.type, True):
        raise ConfigurationError(f"Device {device!r} is not usable here.", hint="device=None picks one that is.")
    return place


def _dtype(dtype: DType, config: PreTrainedConfig, place: torch.device) -> torch.dtype:
    if dtype != "auto":
        chosen: torch.dtype = getattr(torch, dtype)
        return chosen
    stored = config.get_text_config().dtype
    if not isinstance(stored, torch.dtype):
        return torch.float32
    if place.type == "cpu":
        # half precision without instructions for it is emulated: several times slower than float32. Older versions of
        # torch can't list them; float32 is right everywhere
        instructions: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        multiplies = any(instructions.get(name) for name in ("avx512_bf16", "amx_bf16", "sve_bf16", "bf16"))
        return stored if stored == torch.bfloat16 and multiplies else torch.float32
    if place.type == "cuda" and stored == torch.bfloat16:
        return stored if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return stored


# the switches are the libraries' own and belong to the process: two loads at once would restore each other's state
_LOADING = threading.RLock()


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep transformers and huggingface_hub from writing to the terminal; everything is as before afterwards.

    What their log lines would report (missing weights, code that is not trusted) is checked by the loader and raised.
    """
    loggers = [logging.getLogger(library) for library in ("transformers", "huggingface_hub")]
    with _LOADING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        levels = [logger.level for logger in loggers]
        bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # untyped in the library
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            if bars:
                transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # untyped in the library


@contextmanager
def _loading(name: str, *, revision: str | None, trust_remote_code: bool) -> Iterator[None]:
    """Load quietly, and raise whatever transformers and huggingface_hub raise as a RewardError."""
    try:
        with quiet_loading():
            yield
    except TPOError:
        raise
    except MemoryError as error:
        raise RewardError(f"Loading reward model {name!r} ran out of memory.", hint="Try dtype='bfloat16'.") from error
    # a checkpoint's own code may raise anything, and torch raises RuntimeError for sizes and memory alike
    except Exception as error:
        text = str(error).strip()
        reason = text.splitlines()[0] if text else type(error).__name__
        problem, hint = f"could not be loaded: {reason}", ""
        if _caused_by(error, hub.GatedRepoError):
            problem = "is gated: its owner must grant you access first."
            hint = "Accept its terms on its page at huggingface.co, then log in with `hf auth login`."
        elif _caused_by(error, hub.RevisionNotFoundError):
            problem, hint = f"has no revision {revision!r}.", "Leave revision out for the newest one."
        elif _caused_by(error, hub.RepositoryNotFoundError, hub.HFValidationError):
            problem = "is neither a folder here nor a public repository on the Hugging Face hub."
            hint = "Check the spelling (hf:owner/name, or hf:./folder); a private repository needs `hf auth login`."
        elif "connect to" in reason or _caused_by(
            error, hub.OfflineModeIsEnabled, hub.LocalEntryNotFoundError, ConnectionError
        ):
            problem = "is not in the local cache, and the Hugging Face hub can't be reached."
            hint = "Check the network and HF_HUB_OFFLINE, or download it elsewhere and give the folder: hf:./folder."
        elif _caused_by(error, hub.EntryNotFoundError) or "does not appear to have" in reason:
            problem = f"lacks a file that is needed: {reason}"
            hint = "A checkpoint holds config.json, the tokenizer's files and model.safetensors."
        elif isinstance(error, ImportError) and trust_remote_code:
            problem = f"brings its own code, which fails to import here: {reason}"
            hint = (
                "It was written for another transformers version, which its config.json may name (ArmoRM is one such "
                "model). Serve it from an environment with that version, behind OpenRLHF's interface "
                "(openrlhf:URL#MODEL), or take a model without own code."
            )
            if "pip install" in reason:  # which says what to do
                hint = "Or take a model without own code."
        elif "trust_remote_code" in text:
            problem = "brings its own code, which is not run unless you trust it."
            hint = "Read that code, then pass trust_remote_code=True."
        elif "deserializing" in reason:  # safetensors
            problem = f"has weights that can't be read: {reason}"
            hint = "The file may be cut short; download it again."
        raise RewardError(f"Reward model {name!r} {problem}", hint=hint) from error


def _caused_by(error: BaseException | None, *kinds: type[Exception]) -> bool:
    while error is not None and not isinstance(error, kinds):
        error = error.__cause__ or error.__context__
    return error is not None
