"""Keys and values of a conversation, run once and reused for all its responses, in every step of a run."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from tpo_graph.rewards.local.encoding import TokenIds, common_start

__all__ = ["KeptPrefixes", "Prefix", "run_prefix"]

SEEN_ONCE = 256
"""How many prefixes of single texts are remembered, to keep those that come again."""


class PrefixLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # the library leaves its class hook untyped
    """One layer's keys and values of a prefix, the same for every row of a batch.

    `update` returns prefix and new states together and stores neither: scoring makes one pass, so a copy per row lives
    only while its layer runs. Sliding-window layers hold the whole prefix too (the window is in the mask), so that a
    prefix can be cut at any token; the library's own sliding layer can't be.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Take keys and values of shape (1, heads, tokens, head size)."""
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in the library
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values (rows, heads, prefix + new tokens, head size) for new states of the rows."""
        assert self.keys is not None and self.values is not None
        rows = key_states.shape[0]
        return (
            torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], dim=-2),
            torch.cat([self.values.expand(rows, -1, -1, -1), value_states], dim=-2),
        )


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
        return Cache(layers=[PrefixLayer(k[:, :, :length], v[:, :, :length]) for k, v in self.layers])


def run_prefix(model: PreTrainedModel, ids: TokenIds) -> Prefix:
    """Run the backbone over a prefix and keep its keys and values."""
    # without a config every layer keeps all tokens, the sliding ones too
    cache = DynamicCache()
    model.base_model(input_ids=torch.tensor([ids], device=model.device), past_key_values=cache, use_cache=True)
    layers = []
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
        layers.append((layer.keys, layer.values))
    return Prefix(ids, tuple(layers))


class KeptPrefixes:
    """The prefixes used last, up to a number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        """Keep up to `max_bytes` of keys and values. The newest is kept whatever its size: its batches are to come."""
        self._max_bytes = max_bytes
        self._kept: OrderedDict[TokenIds, Prefix] = OrderedDict()
        self._bytes = 0
        self._seen: OrderedDict[int, None] = OrderedDict()

    @property
    def bytes(self) -> int:
        """Memory of what is kept."""
        return self._bytes

    def __len__(self) -> int:
        """How many prefixes are kept."""
        return len(self._kept)

    def find(self, ids: Sequence[int]) -> tuple[Prefix, int] | None:
        """The kept prefix that shares most with `ids`, and how many tokens of it can be used.

        A response may merge with the last token of what precedes it, so nearly all of `ids` is enough.
        """
        wanted = tuple(ids)
        best: tuple[Prefix, int] | None = None
        for kept in reversed(self._kept.values()):
            length = common_start(kept.ids, wanted)
            if length >= 0.9 * len(wanted) and (best is None or length > best[1]):
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
        known = key in self._seen
        self._seen[key] = None
        self._seen.move_to_end(key)
        while len(self._seen) > SEEN_ONCE:
            self._seen.popitem(last=False)
        return known

    def clear(self) -> None:
        """Drop everything that is kept."""
        self._kept.clear()
        self._bytes = 0
