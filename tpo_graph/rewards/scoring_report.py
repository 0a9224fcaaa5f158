"""What a reward model tells beside its scores: what they cost, what it could not read whole, why there is none."""

from dataclasses import dataclass, field

from tpo_graph.accounting import no_usage
from tpo_graph.types import PhaseUsage

__all__ = ["ScoringReport"]


@dataclass
class ScoringReport:
    """Filled in while a reward model works, so that a call that fails has told what it spent before.

    Attributes:
        used: requests and tokens so far.
        truncated: responses that were scored without their end, or without the start of their conversation, because
            both together are longer than the reward model takes.
        reasons: why a response has no score, by its text; for those whose reason is known.
    """

    used: PhaseUsage = field(default_factory=no_usage)
    truncated: set[str] = field(default_factory=set)
    reasons: dict[str, str] = field(default_factory=dict)

    def count(self, used: PhaseUsage) -> None:
        """Add what a request or a reward model has cost."""
        self.used["requests"] += used["requests"]
        self.used["input_tokens"] += used["input_tokens"]
        self.used["output_tokens"] += used["output_tokens"]
        self.used["seconds"] += used["seconds"]

    def for_part(self) -> "ScoringReport":
        """A report for one part of a combination, with the same count of what was used."""
        return ScoringReport(used=self.used)

    def take_over(self, part: "ScoringReport", name: str) -> None:
        """Add what one part of a combination told.

        Args:
            part: from `for_part`.
            name: of the part; it stands before its reasons.
        """
        self.truncated |= part.truncated
        for text, reason in part.reasons.items():
            self.reasons.setdefault(text, f"Part {name!r}: {reason}")
