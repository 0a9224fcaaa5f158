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
from typing import Literal, TypeAlias

import torch
import transformers
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
from transformers.utils.hub import cached_file

from tpo_graph.errors import ConfigurationError, RewardError, TPOError
from tpo_graph.rewards.local.extractions import EXTRACTION_NAMES, Extraction, HeadKind, SingleScore
from tpo_graph.rewards.local.forward import position_limit

# Keeps transformers and huggingface_hub from writing to the terminal while a checkpoint loads.

# the switches are the libraries' own and belong to the process: two loads at once would restore each other's state
_LOADING = threading.RLock()


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bars, log lines or warnings inside; everything is as before afterwards.

    What the log lines would tell (missing weights, code that is not trusted) is checked by the loader and raised.
    """
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    with _LOADING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bars = transformers_logging.is_progress_bar_enabled()
        levels = transformers_logging.get_verbosity(), hub_logging.get_verbosity()
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # untyped in the library
        transformers_logging.set_verbosity(logging.CRITICAL)
        hub_logging.set_verbosity(logging.CRITICAL)
        try:
            yield
        finally:
            transformers_logging.set_verbosity(levels[0])
            hub_logging.set_verbosity(levels[1])
            if bars:
                transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # untyped in the library


# The one place where what transformers and huggingface_hub raise while loading becomes a RewardError.


@contextmanager
def loading_errors(name: str, *, revision: str | None, trust_remote_code: bool) -> Iterator[None]:
    """Map exceptions of a load.

    Args:
        name: the checkpoint, as the user gave it.
        revision: the revision asked for, or None.
        trust_remote_code: whether the checkpoint's own code may run.
    """
    from huggingface_hub import errors as hub
    from safetensors import SafetensorError

    try:
        yield
    except TPOError:
        raise
    except MemoryError as error:
        raise RewardError(f"Loading reward model {name!r} ran out of memory.", hint="Try dtype='bfloat16'.") from error
    # a checkpoint's own code may raise anything, and torch raises RuntimeError for sizes and memory alike
    except Exception as error:
        causes = list(_chain(error))

        def caused_by(*kinds: type[BaseException]) -> bool:
            return any(isinstance(cause, kinds) for cause in causes)

        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        message, hint = f"Reward model {name!r} could not be loaded: {said}", ""
        if caused_by(hub.GatedRepoError):
            message = f"Reward model {name!r} is gated: its owner must grant you access first."
            hint = "Accept its terms on its page at huggingface.co, then log in with `hf auth login`."
        elif caused_by(hub.RevisionNotFoundError):
            message = f"Reward model {name!r} has no revision {revision!r}."
            hint = "Leave revision out for the newest one."
        elif caused_by(hub.RepositoryNotFoundError, hub.HFValidationError):
            message = f"Reward model {name!r} is neither a folder here nor a public repository on the Hugging Face hub."
            hint = "Check the spelling (hf:owner/name, or hf:./folder); a private repository needs `hf auth login`."
        elif caused_by(hub.OfflineModeIsEnabled, hub.LocalEntryNotFoundError, ConnectionError) or "connect to" in said:
            message = f"Reward model {name!r} is not in the local cache, and the Hugging Face hub can't be reached."
            hint = "Check the network and HF_HUB_OFFLINE, or download it elsewhere and give the folder: hf:./folder."
        elif caused_by(hub.EntryNotFoundError) or "does not appear to have" in said:
            message = f"Reward model {name!r} lacks a file that is needed: {said}"
            hint = "A checkpoint holds config.json, the tokenizer's files and model.safetensors."
        elif isinstance(error, ImportError) and trust_remote_code:
            message = f"Reward model {name!r} brings its own code, which fails to import here: {said}"
            hint = (
                "It was written for another transformers version, which its config.json may name (ArmoRM is one such "
                "model). Serve it from an environment with that version, behind OpenRLHF's interface "
                "(openrlhf:URL#MODEL), or take a model without own code."
            )
            if "pip install" in said:  # it says itself what to do
                hint = "Or take a model without own code."
        elif "trust_remote_code" in str(error):
            message = f"Reward model {name!r} brings its own code, which is not run unless you trust it."
            hint = "Read that code, then pass trust_remote_code=True."
        elif caused_by(SafetensorError):
            message = f"The weights of reward model {name!r} can't be read: {said}"
            hint = "The file may be cut short; download it again."
        raise RewardError(message, hint=hint) from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


# The value head of a TRL checkpoint: two tensors beside the causal model's own weights.

WEIGHT, BIAS = "v_head.summary.weight", "v_head.summary.bias"


def load_value_head(source: str, revision: str | None, model: PreTrainedModel) -> nn.Module:
    """Load `v_head.summary`, a linear map from hidden states (rows, hidden) to values (rows, 1).

    Raises:
        RewardError: when the checkpoint has no such head.
    """
    tensors = _read(source, revision)
    if WEIGHT not in tensors:
        raise RewardError(
            f"{source!r} holds no value head ({WEIGHT}).", hint="extraction='value_head' is for TRL's PPO value models."
        )
    weight = tensors[WEIGHT]
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=BIAS in tensors, dtype=weight.dtype)
    head.load_state_dict({key.rsplit(".", 1)[-1]: tensor for key, tensor in tensors.items()})
    return head.to(model.device).eval().requires_grad_(False)


def _read(source: str, revision: str | None) -> dict[str, torch.Tensor]:
    """The head's tensors, from the weight files of the checkpoint that hold them."""
    for whole in ("model.safetensors", "pytorch_model.bin"):
        index = _file(source, revision, f"{whole}.index.json")
        if index is not None:
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            # the two may lie in different ones
            names = {shards[key] for key in (WEIGHT, BIAS) if key in shards}
        else:
            names = {whole}
        files = [file for name in sorted(names) if (file := _file(source, revision, name)) is not None]
        if files:
            return {key: tensor for file in files for key, tensor in _tensors(file).items()}
    return {}


def _file(source: str, revision: str | None, name: str) -> Path | None:
    path = cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if path is None else Path(path)


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    if file.suffix == ".bin":
        # weights_only: a pickle may run code otherwise
        stored = torch.load(file, map_location="cpu", weights_only=True)
        return {key: stored[key] for key in (WEIGHT, BIAS) if key in stored}
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        return {key: tensors.get_tensor(key) for key in (WEIGHT, BIAS) if key in tensors.keys()}  # noqa: SIM118


# A reward model's tokenizer, with the chat template that says how it wants a conversation.


def load_tokenizer(
    name_or_path: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    chat_template: str | None = None,
) -> PreTrainedTokenizerBase:
    """Load a tokenizer from the hub or a folder.

    Args:
        name_or_path: a repository on the Hugging Face hub, or a folder.
        revision: branch, tag or commit on the hub.
        trust_remote_code: whether code that comes with it may run.
        chat_template: Jinja text in place of the tokenizer's own; None keeps that.

    Raises:
        RewardError: it can't be loaded, or no chat template is known.
    """
    with loading_errors(name_or_path, revision=revision, trust_remote_code=trust_remote_code), quiet_loading():
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name_or_path, revision=revision, trust_remote_code=trust_remote_code
        )
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    if not tokenizer.chat_template:
        raise RewardError(
            f"The tokenizer {name_or_path!r} has no chat template, so how the reward model wants a conversation "
            "written is not known.",
            hint="Pass chat_template=..., a Jinja text as its model card describes the input.",
        )
    return tokenizer


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
