"""The value head of a TRL checkpoint: two tensors beside the causal model's own weights."""

import json
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from tpo_graph.errors import RewardError

__all__ = ["load_value_head"]

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
