"""What a local reward model did to the texts it scored: a record, never a log line."""

from typing import TypedDict

__all__ = ["ScoreCounts", "add_counts", "no_counts"]


class ScoreCounts(TypedDict):
    """Counts of one call of `score`, or summed over all calls of a model.

    Attributes:
        requests: calls of `score`.
        texts: responses that were asked for.
        duplicates: responses that shared the score of an equal one.
        truncated_prompts: texts whose conversation lost tokens at its start.
        truncated_responses: texts whose response lost tokens at its end.
        dropped_tokens: tokens lost by both, in all texts.
        batches: forward passes that held at least one of the texts.
        prefix_builds: forward passes over a shared prefix, whose keys and values were then reused.
        prefix_hits: batches that ran on a prefix kept from an earlier batch or call.
        out_of_memory: batches that were halved because they did not fit into memory.
    """

    requests: int
    texts: int
    duplicates: int
    truncated_prompts: int
    truncated_responses: int
    dropped_tokens: int
    batches: int
    prefix_builds: int
    prefix_hits: int
    out_of_memory: int


def no_counts() -> ScoreCounts:
    """Counts that are all zero."""
    return ScoreCounts(
        requests=0,
        texts=0,
        duplicates=0,
        truncated_prompts=0,
        truncated_responses=0,
        dropped_tokens=0,
        batches=0,
        prefix_builds=0,
        prefix_hits=0,
        out_of_memory=0,
    )


def add_counts(total: ScoreCounts, more: ScoreCounts) -> ScoreCounts:
    """Return the sum of two records; neither is changed."""
    return ScoreCounts(
        requests=total["requests"] + more["requests"],
        texts=total["texts"] + more["texts"],
        duplicates=total["duplicates"] + more["duplicates"],
        truncated_prompts=total["truncated_prompts"] + more["truncated_prompts"],
        truncated_responses=total["truncated_responses"] + more["truncated_responses"],
        dropped_tokens=total["dropped_tokens"] + more["dropped_tokens"],
        batches=total["batches"] + more["batches"],
        prefix_builds=total["prefix_builds"] + more["prefix_builds"],
        prefix_hits=total["prefix_hits"] + more["prefix_hits"],
        out_of_memory=total["out_of_memory"] + more["out_of_memory"],
    )
