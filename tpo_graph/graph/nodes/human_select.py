"""select with a person: after scoring they pick best and worst, may write the critique, or stop."""

from typing import Any

from langchain_core.messages import AIMessage
from langgraph.runtime import Runtime
from langgraph.types import interrupt

from tpo_graph.errors import ConfigurationError
from tpo_graph.graph.bridge import NodeBody
from tpo_graph.graph.human_choice import HumanChoice, choice_question, parse_choice, standing_pair
from tpo_graph.graph.nodes.select import select_node
from tpo_graph.graph.phase import effective_settings
from tpo_graph.graph.state import TPOState
from tpo_graph.selection import stop_reason
from tpo_graph.settings import TPOSettings
from tpo_graph.types import PersonChoice, PreferencePair, StepRecord, StopReason

__all__ = ["human_select_node", "kept_loss_node"]


def human_select_node(settings: TPOSettings | None = None, *, takes_critique: bool = False) -> NodeBody:
    """A `select` that stops the graph and asks a person; needs a checkpointer.

    Use it as `create_tpo_graph(..., nodes={"select": human_select_node()}, checkpointer=...)`. The interrupt shows the
    candidates with their rewards and what the rewards say; the run goes on by `Command(resume=...)` with an object
    that has one or more of `best`, `worst`, `critique` and `stop`, or with "ok". (An empty object is no answer to
    LangGraph.) An answer that can't be understood is not an error: the interrupt comes again and says what was wrong.
    A run that began with a context is resumed with the same one, as any run of LangGraph.

    What a person picks counts until the end: the answer is their best, and the trajectory records it, so that its
    reward may fall. Two candidates of the same reward are a preference once a person tells them apart. Where a step
    brought no new candidate there is nothing to choose, and nobody is asked.

    Args:
        settings: the defaults that the graph was given at build; None reads the `TPO_*` variables, as the graph does.
        takes_critique: let the person write the critique as well. It becomes the state's `loss`, which the graph's
            own loss node would write over: put `kept_loss_node` in its place, or use `human_nodes`, which has both.
    """
    defaults = TPOSettings.load() if settings is None else settings
    select = select_node(defaults)

    async def human_select(state: TPOState, runtime: Runtime[TPOSettings]) -> dict[str, Any]:  # Any: a partial state
        chosen = effective_settings(defaults, runtime)
        update = await select(state, runtime)
        assert update is not None  # it always has one
        record: StepRecord = update["trajectory"][0]
        proposed = standing_pair(state)
        choice = HumanChoice(proposed["best"]["id"], proposed["worst"]["id"])
        if record["candidates"]:
            choice = _ask(state, proposed, ends=update["stop_reason"], takes_critique=takes_critique)
        by_id = {candidate["id"]: candidate for candidate in state["cache"]}
        pair = PreferencePair(best=by_id[choice.best], worst=by_id[choice.worst])
        record = {
            **record,
            "best_id": choice.best,
            "best_reward": pair["best"]["reward"],
            "worst_reward": pair["worst"]["reward"],
        }
        reason = "person" if choice.stop else _reason(state, record, chosen, told_apart=choice.best != choice.worst)
        done: dict[str, Any] = {**pair, "trajectory": [record], "stop_reason": reason}  # Any: a partial state
        if choice.picked or choice.critique:
            done["choices"] = [_decided(state["step"], pair, choice)]
        if reason is None:
            return done | {"loss": choice.critique if takes_critique else "", "gradient": ""}
        best = pair["best"]
        told = {"tpo": {"reward": best["reward"], "steps": record["step"], "stop_reason": reason}}
        return done | {
            "answer": best["text"],
            "warnings": update.get("warnings", []),
            "messages": [AIMessage(best["text"], response_metadata=told)],
        }

    return human_select


def kept_loss_node(loss: NodeBody) -> NodeBody:
    """A `loss` that leaves a person's critique as it is, and lets `loss` write one where there is none."""

    async def kept_loss(state: TPOState, runtime: Runtime[TPOSettings]) -> Any:  # Any: a partial state
        # before this node the state has a loss only if select wrote a person's
        return {} if state.get("loss") else await loss(state, runtime)

    return kept_loss


def _ask(state: TPOState, proposed: PreferencePair, *, ends: StopReason | None, takes_critique: bool) -> HumanChoice:
    problem = ""
    while True:
        question = choice_question(state, proposed, ends=ends, takes_critique=takes_critique, problem=problem)
        answer = interrupt(question)
        try:
            return parse_choice(answer, proposed, state["cache"], takes_critique=takes_critique)
        except ConfigurationError as error:
            problem = str(error)


def _decided(step: int, pair: PreferencePair, choice: HumanChoice) -> PersonChoice:
    worst = pair["worst"]["text"] if choice.picked and choice.best != choice.worst else ""
    return PersonChoice(step=step, best=pair["best"]["text"], worst=worst, critique=choice.critique)


def _reason(state: TPOState, record: StepRecord, chosen: TPOSettings, *, told_apart: bool) -> StopReason | None:
    """Why the run ends, or None; a pair that a person told apart is a preference whatever its rewards are."""
    if told_apart and chosen.mode == "tpo":
        # the one mode in which equal rewards do not end the run
        chosen = chosen.overridden_by({"mode": "revision"})
    return stop_reason([*state["trajectory"], record], chosen, state["usage"], failures=state.get("failures", []))
