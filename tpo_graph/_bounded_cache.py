"""A cache that holds so many entries and no more."""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """Values by key; beyond `size` the entry that was not used for the longest time goes. Safe across threads.

    Examples:
        >>> cache: BoundedCache[str, int] = BoundedCache(2)
        >>> for place, word in enumerate(("one", "two", "three")):
        ...     cache.put(word, place)
        >>> cache.get("one"), cache.get("three")
        (None, 2)

    Args:
        size: the number of entries to keep, at least 1.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """The number of entries."""
        return len(self._values)

    def get(self, key: K) -> V | None:
        """The value of a key, which then counts as just used; None when there is none."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key]

    def put(self, key: K, value: V) -> None:
        """Set the value of a key."""
        with self._lock:
            self._set(key, value)

    def setdefault(self, key: K, value: V) -> V:
        """The value of a key; `value`, which is then kept, when there is none."""
        with self._lock:
            value = self._values.get(key, value)
            self._set(key, value)
            return value

    def replace(self, key: K, old: V | None, new: V) -> bool:
        """Set the value of a key if it still is `old`, the same object (None: there is none); whether that was done."""
        with self._lock:
            if self._values.get(key) is not old:
                return False
            self._set(key, new)
            return True

    def _set(self, key: K, value: V) -> None:
        self._values[key] = value
        self._values.move_to_end(key)
        while len(self._values) > self._size:
            self._values.popitem(last=False)
