"""What a second reward model says about a run: it watches, and selects nothing."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tpo_graph.errors import RewardError
from tpo_graph.graph.state import TPOState
from tpo_graph.rewards.base import RewardModel, RunContext, run_scores
from tpo_graph.rewards.warnings import (
    OveroptimizationWarning,
    with_failed_second_scorer,
    with_truncated_inputs,
)
from tpo_graph.selection import preference_pair
from tpo_graph.types import ScoredCandidate


async def second_opinion(
    model: RewardModel,
    state: TPOState,
    scored: Sequence[ScoredCandidate],
    run: RunContext,
    *,
    known: Mapping[str, float],
    warnings: list[OveroptimizationWarning],
) -> tuple[dict[str, float], list[OveroptimizationWarning]]:
    """Score what it takes to see the second reward fall: each step's best, and all candidates of step 0.

    Those tell how far its rewards are apart, which is the measure for a fall.

    Args:
        model: the second reward model.
        state: before the step's candidates are in the cache.
        scored: the step's candidates with the first reward, at least one.
        run: what the first reward model was told.
        known: rewards of the second one so far, by candidate id.
        warnings: those of the run so far.

    Returns:
        `known` with what is new, and the warnings, with one more when the second reward model failed or cut something.
    """
    best = preference_pair([*state["cache"], *scored])["best"]
    wanted = [candidate for candidate in scored if candidate["step"] == 0] or [best]
    new = {candidate["id"]: candidate["text"] for candidate in wanted if candidate["id"] not in known}
    texts = list(dict.fromkeys(new.values()))
    if not texts:
        return dict(known), warnings
    report = run.report.for_part()
    try:
        rewards = await run_scores(model, list(state["messages"]), texts, replace(run, extremes=None, report=report))
    except RewardError as error:
        return dict(known), with_failed_second_scorer(warnings, str(error))
    if cut := sum(text in report.truncated for text in new.values()):
        warnings = with_truncated_inputs(warnings, cut, "truncated_second_input")
    by_text = {text: reward for text, reward in zip(texts, rewards, strict=True) if math.isfinite(reward)}
    if not by_text:
        why = report.reasons.get(texts[0], f"it gave {rewards[0]}")
        warnings = with_failed_second_scorer(warnings, why)
    return {**known, **{name: by_text[text] for name, text in new.items() if text in by_text}}, warnings
