"""select: the best and the worst of the whole cache, the step's record, and whether the run is over."""

from langchain_core.messages import AIMessage
from langgraph.runtime import Runtime

from tpo_graph.accounting import total
from tpo_graph.errors import RewardError
from tpo_graph.graph.bridge import AsyncNode
from tpo_graph.graph.request import effective_settings
from tpo_graph.graph.state import TPOState
from tpo_graph.rewards.warnings import overoptimization_warnings
from tpo_graph.selection import preference_pair, stop_reason
from tpo_graph.settings import TPOSettings
from tpo_graph.types import PartialState, PreferencePair, RankedCandidate, ScoredCandidate, StepRecord, StopReason


def select_node(*, settings: TPOSettings | None = None) -> AsyncNode:
    """The node that picks chosen and rejected from the whole cache (TPO paper, section 3) and ends the run.

    It appends the step's record, which keeps the step's loss and gradient, to the trajectory, and empties these two for
    the next step. When the run is over it writes `stop_reason`, `answer` and the answer's message.

    Args:
        settings: defaults for every run; None reads the `TPO_*` variables.
    """
    defaults = TPOSettings.load() if settings is None else settings

    async def select(state: TPOState, runtime: Runtime[TPOSettings] | None = None) -> PartialState:
        chosen = effective_settings(defaults, runtime)
        if not state["cache"]:
            raise RewardError("No candidate was scored.", hint="A node that scores returns them in 'cache'.")
        pair = preference_pair(state["cache"])
        record = _record(state, pair)
        reason = stop_reason(
            [*state["trajectory"], record],
            chosen,
            state["usage"],
            failures=state.get("failures", []),
            highest_reward=state.get("highest_reward"),
        )
        update = {"best": pair["best"], "worst": pair["worst"], "trajectory": [record], "stop_reason": reason}
        if reason is None:
            return update | {"loss": "", "gradient": ""}
        # best of N, too, takes what the reward model overrates
        warnings = overoptimization_warnings(
            state["cache"], [*state["trajectory"], record], second_rewards=state.get("second_rewards")
        )
        return update | final_answer(pair, record, reason) | {"warnings": [*state.get("warnings", []), *warnings]}

    return AsyncNode(select)


def final_answer(pair: PreferencePair, record: StepRecord, reason: StopReason) -> PartialState:
    """The answer of a run that is over, as a text and as a message."""
    best = pair["best"]
    message = answer_message(best["text"], best, steps=record["step"], stop_reason=reason)
    return {"answer": best["text"], "messages": [message]}


def answer_message(text: str, best: ScoredCandidate | None, *, steps: int, stop_reason: StopReason) -> AIMessage:
    """The message of an answer.

    Args:
        text: the answer.
        best: the candidate whose text it is; None where no candidate was scored.
        steps: how many steps were done.
        stop_reason: why the run ended.
    """
    reward = best["reward"] if best else None
    metadata = {"tpo": {"reward": reward, "steps": steps, "stop_reason": stop_reason}}
    return AIMessage(text, response_metadata=metadata)


def _record(state: TPOState, pair: PreferencePair) -> StepRecord:
    step, before = state["step"], state["trajectory"]
    new = [candidate for candidate in state["cache"] if candidate["step"] == step]
    ranked = sorted(new, key=lambda candidate: candidate["reward"], reverse=True)  # keeps the order of equals
    used = total(state["usage"])
    return StepRecord(
        step=step,
        best_id=pair["best"]["id"],
        best_reward=pair["best"]["reward"],
        worst_reward=pair["worst"]["reward"],
        mean_reward=sum(candidate["reward"] for candidate in new) / len(new) if new else None,
        ranking=[RankedCandidate(id=candidate["id"], reward=candidate["reward"]) for candidate in ranked],
        candidates=len(new),
        failures=sum(failure["step"] == step for failure in state.get("failures", [])),
        requests=used["requests"] - sum(record["requests"] for record in before),
        input_tokens=used["input_tokens"] - sum(record["input_tokens"] for record in before),
        output_tokens=used["output_tokens"] - sum(record["output_tokens"] for record in before),
        seconds=max(0.0, used["seconds"] - sum(record["seconds"] for record in before)),
        loss=state.get("loss", ""),
        gradient=state.get("gradient", ""),
    )
