"""The bounded cache: what it forgets, and what two callers at the same time see."""

from tpo_graph._bounded_cache import BoundedCache


def filled(size, *keys):
    cache = BoundedCache(size)
    for key in keys:
        cache.put(key, key.upper())
    return cache


def test_the_entry_that_was_unused_for_longest_goes_first():
    cache = filled(2, "a", "b")
    assert cache.get("a") == "A"
    cache.put("c", "C")
    assert (cache.get("a"), cache.get("b"), cache.get("c"), len(cache)) == ("A", None, "C", 2)


def test_setdefault_keeps_the_first_value():
    cache = filled(2, "a", "b")
    assert cache.setdefault("a", "other") == "A"
    assert cache.setdefault("c", "C") == "C"
    assert cache.get("b") is None


def test_replace_only_what_is_still_there():
    cache = filled(2, "a")
    old = cache.get("a")
    assert cache.replace("a", old, "new")
    assert not cache.replace("a", old, "newer")
    assert not cache.replace("b", "B", "b")
    assert cache.replace("b", None, "B")
    assert (cache.get("a"), cache.get("b")) == ("new", "B")
