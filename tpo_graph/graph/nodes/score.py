"""score: the reward model's number for every pending candidate."""

import asyncio
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage
from langgraph.runtime import Runtime

from tpo_graph.accounting import Stopwatch, no_usage
from tpo_graph.errors import RewardError
from tpo_graph.graph.bridge import NodeBody
from tpo_graph.graph.phase import effective_settings, failure
from tpo_graph.graph.state import TPOState
from tpo_graph.rewards.base import RewardModel
from tpo_graph.settings import TPOSettings
from tpo_graph.types import Candidate, FailureRecord, ScoredCandidate

__all__ = ["score_node"]


def score_node(reward_model: RewardModel, settings: TPOSettings) -> NodeBody:
    """The node that scores what is pending and puts it into the cache, R(x, v_i) (TPO paper, section 3).

    Equal texts are scored once in a run. A reward that is not a finite number makes no candidate; it is recorded.
    """

    async def score(state: TPOState, runtime: Runtime[TPOSettings]) -> dict[str, Any]:  # Any: a partial state
        pending, step = state["pending"], state["step"]
        if not pending:
            return {}
        with Stopwatch() as watch:
            try:
                rewards = await _rewards(reward_model, state, pending)
                scored, failures = _split(pending, rewards)
                if not scored and step == 0:
                    raise RewardError(f"No candidate has a finite reward: {list(rewards.values())}.", unscored=pending)
            except RewardError as error:
                if step == 0 or effective_settings(settings, runtime).on_failure == "raise":
                    error.unscored = error.unscored or list(pending)
                    raise
                scored = []
                failures = [failure("score", step, "scoring_failed", str(error), each["text"]) for each in pending]
        used = no_usage() | {"seconds": watch.seconds}
        return {"cache": scored, "failures": failures, "pending": [], "usage": {"score": used}}

    return score


async def _rewards(model: RewardModel, state: TPOState, pending: Sequence[Candidate]) -> Mapping[str, float]:
    """Rewards by text; only texts that the cache does not have are scored."""
    known = {candidate["text"]: candidate["reward"] for candidate in state["cache"]}
    texts = list(dict.fromkeys(each["text"] for each in pending if each["text"] not in known))
    if not texts:
        return known
    rewards = await _ask(model, list(state["messages"]), texts)
    if len(rewards) != len(texts):
        raise RewardError(f"The reward model returned {len(rewards)} rewards for {len(texts)} responses.")
    return known | dict(zip(texts, rewards, strict=True))


async def _ask(model: RewardModel, messages: Sequence[BaseMessage], texts: Sequence[str]) -> list[float]:
    """Call the reward model, with errors of other libraries mapped to ours."""
    try:
        if inspect.iscoroutinefunction(model.score):
            rewards = await model.score(messages, texts)
        else:
            # a plain function must not stop the event loop
            rewards = await asyncio.to_thread(model.score, messages, texts)  # type: ignore[arg-type]  # see above
            rewards = await rewards if inspect.isawaitable(rewards) else rewards
        return [float(reward) for reward in rewards]
    except RewardError:
        raise
    except Exception as error:  # whatever a reward model may raise
        raise RewardError(f"The reward model failed: {type(error).__name__}: {error}".rstrip(": ")) from error


def _split(
    pending: Sequence[Candidate], rewards: Mapping[str, float]
) -> tuple[list[ScoredCandidate], list[FailureRecord]]:
    scored: list[ScoredCandidate] = []
    failures: list[FailureRecord] = []
    for candidate in pending:
        reward = rewards[candidate["text"]]
        if math.isfinite(reward):
            scored.append(ScoredCandidate(**candidate, reward=reward))
        else:
            failures.append(failure("score", candidate["step"], "not_finite", str(reward), candidate["text"]))
    return scored, failures
