"""The scales of runs: fixed by the first candidates of a run, and the same ever after."""

import math
import statistics
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from tpo_graph.rewards.combinations.part import RAW, PartScores, Scale

__all__ = ["ScaleMemory", "measured_scales", "usable"]

Scales: TypeAlias = Mapping[str, Scale]
"""Scales by name of the part."""

_NOISE = 1e-6
"""A deviation below this share of the mean is what rounding leaves of equal scores."""


def usable(scores: PartScores, place: int) -> bool:
    """Whether all parts that apply to the response at `place` have a finite score for it."""
    return all(values[place] is None or math.isfinite(values[place] or 0.0) for values in scores.values())


def measured_scales(scores: PartScores, places: Iterable[int]) -> dict[str, Scale]:
    """Mean and deviation of each part over the responses at `places`, those left out that it does not apply to.

    Scores that are all equal have no deviation: they get 1, so that a later difference counts as it is. A part that
    applies to none of them is left as it is.
    """
    places = list(places)
    return {
        name: _measured([value for place in places if (value := values[place]) is not None])
        for name, values in scores.items()
    }


def _measured(values: Sequence[float]) -> Scale:
    if not values:
        return RAW
    mean = statistics.fmean(values)
    deviation = statistics.pstdev(values, mean)
    return Scale(mean, deviation if deviation > _NOISE * abs(mean) else 1.0)


class ScaleMemory:
    """Keeps the scales of the latest runs, for any number of event loops and threads.

    Args:
        size: runs at most; the one that was not used for the longest time goes first.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._scales: OrderedDict[bytes, Scales] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> Scales | None:
        """The scales of a run, if they are known."""
        with self._lock:
            scales = self._scales.get(key)
            if scales is not None:
                self._scales.move_to_end(key)
            return scales

    def keep(self, scales: Scales, key: bytes) -> Scales:
        """Keep the scales of a run, unless it has some already: those stay, and are returned."""
        with self._lock:
            kept = self._scales.setdefault(key, scales)
            self._scales.move_to_end(key)
            while len(self._scales) > self._size:
                self._scales.popitem(last=False)
            return kept
