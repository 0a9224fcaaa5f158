"""Nodes that stop the graph and ask a person: to be given to `create_tpo_graph`, which then needs a checkpointer."""

from collections.abc import Sequence
from pathlib import Path

from langgraph.runtime import Runtime

from tpo_graph.accounting import no_usage
from tpo_graph.errors import RewardError
from tpo_graph.graph.bridge import AsyncNode
from tpo_graph.graph.nodes.gradient import gradient_node
from tpo_graph.graph.nodes.loss import loss_node
from tpo_graph.graph.nodes.select import final_answer, select_node
from tpo_graph.graph.request import effective_settings
from tpo_graph.graph.state import TPOState
from tpo_graph.human.questions import HumanChoice, ask_choice, ask_critique, ask_rewards, standing_pair
from tpo_graph.policies.providers import Policy
from tpo_graph.policies.sampling import Sampler, as_sampler
from tpo_graph.prompts.pack import PromptPack
from tpo_graph.selection import stop_reason
from tpo_graph.settings import TPOSettings
from tpo_graph.types import (
    Node,
    PartialState,
    PersonChoice,
    PreferencePair,
    StepRecord,
    StopReason,
    scored_candidate,
)


def human_nodes(
    critic: Policy | Sampler,
    *,
    prompts: PromptPack | str | Path | None = None,
    settings: TPOSettings | None = None,
    edit_critique: bool = False,
) -> dict[str, Node]:
    """A `select` that asks a person, and a `loss` that keeps the critique that they wrote.

    Examples:
        >>> from langgraph.checkpoint.memory import InMemorySaver
        >>> from langgraph.types import Command
        >>> from tpo_graph import create_tpo_graph
        >>> from tpo_graph.testing import ScriptedChatModel, TableReward
        >>> policy = ScriptedChatModel(["short", "much longer"])
        >>> reward = TableReward(lambda text: float(len(text)))
        >>> graph = create_tpo_graph(policy, reward, nodes=human_nodes(policy), checkpointer=InMemorySaver())
        >>> thread = {"configurable": {"thread_id": "1"}}
        >>> asked = graph.invoke({"query": "hi"}, thread, context={"n": 2})["__interrupt__"][0].value
        >>> [candidate["text"] for candidate in asked["candidates"]]
        ['much longer', 'short']
        >>> graph.invoke(Command(resume={"best": "0-0", "stop": True}), thread)["answer"]
        'short'

    Args:
        critic: the policy, or the critic that the graph is given.
        prompts: as given to the graph.
        settings: as given to the graph.
        edit_critique: show them the critic's text as well, to keep or to write anew (`human_critique_node`).

    Returns:
        The nodes by name.

    Raises:
        PromptError: there is no such pack.
    """
    settings = TPOSettings.load() if settings is None else settings
    critic = as_sampler(critic)
    nodes: dict[str, Node] = {
        "select": human_select_node(settings, takes_critique=True),
        "loss": kept_loss_node(loss_node(critic, prompts=prompts, settings=settings)),
    }
    if edit_critique:
        nodes["gradient"] = human_critique_node(gradient_node(critic, prompts=prompts, settings=settings))
    return nodes


def human_select_node(settings: TPOSettings | None = None, *, takes_critique: bool = False) -> AsyncNode:
    """A `select` that stops the graph and asks a person.

    Use it as `create_tpo_graph(..., nodes={"select": human_select_node()}, checkpointer=...)`. The interrupt shows the
    candidates with their rewards and what the rewards say; the run goes on by `Command(resume=...)` with an object
    that has one or more of `best`, `worst`, `critique` and `stop`, or with "ok". (LangGraph does not take an empty
    object for an answer.) An answer that can't be understood brings the interrupt again, with the reason. A run that
    began with a context is resumed with the same one, as any run of LangGraph.

    What a person picks counts until the end: the answer is their best, and the trajectory records it, so that its
    reward may fall. Two candidates of the same reward are a preference once a person tells them apart. Where a step
    brought no new candidate there is nothing to choose, and nobody is asked.

    Args:
        settings: the defaults that the graph was given at build; None reads the `TPO_*` variables, as the graph does.
        takes_critique: let the person write the critique as well. It becomes the state's `loss`, which the graph's
            own loss node would write over: put `kept_loss_node` in its place, or use `human_nodes`, which has both.
    """
    defaults = TPOSettings.load() if settings is None else settings
    select = select_node(settings=defaults)

    async def human_select(state: TPOState, runtime: Runtime[TPOSettings]) -> PartialState:
        update = await select(state, runtime)
        record: StepRecord = update["trajectory"][0]
        proposed = standing_pair(state)
        choice = HumanChoice(proposed["best"]["id"], proposed["worst"]["id"])
        if record["candidates"]:
            choice = ask_choice(state, proposed, ends=update["stop_reason"], takes_critique=takes_critique)
        by_id = {candidate["id"]: candidate for candidate in state["cache"]}
        pair = PreferencePair(best=by_id[choice.best], worst=by_id[choice.worst])
        record = {
            **record,
            "best_id": choice.best,
            "best_reward": pair["best"]["reward"],
            "worst_reward": pair["worst"]["reward"],
        }
        reason: StopReason | None = "person"
        if not choice.stop:
            reason = stop_reason(
                [*state["trajectory"], record],
                effective_settings(defaults, runtime),
                state["usage"],
                failures=state.get("failures", []),
                highest_reward=state.get("highest_reward"),
            )
        result: PartialState = {**pair, "trajectory": [record], "stop_reason": reason}
        if choice.picked or choice.critique:
            compared = choice.picked and choice.best != choice.worst
            worst = pair["worst"]["text"] if compared else ""
            decision = PersonChoice(
                step=state["step"], best=pair["best"]["text"], worst=worst, critique=choice.critique
            )
            result["choices"] = [decision]
        if reason is None:
            return result | {"loss": choice.critique if takes_critique else "", "gradient": ""}
        return result | final_answer(pair, record, reason) | {"warnings": update.get("warnings", [])}

    return AsyncNode(human_select)


def kept_loss_node(loss: Node) -> AsyncNode:
    """A `loss` that leaves a person's critique as it is, and lets another node write one where there is none.

    Args:
        loss: the node that writes the loss.
    """

    async def kept_loss(state: TPOState, runtime: Runtime[TPOSettings]) -> PartialState:
        # before this node the state has a loss only if select wrote a person's
        result: PartialState = {} if state.get("loss") else await loss(state, runtime)
        return result

    return AsyncNode(kept_loss)


def human_critique_node(gradient: Node) -> AsyncNode:
    """A `gradient` that first stops the graph and shows a person the critic's text.

    The run goes on by `Command(resume=...)` with "ok", a text that takes the place of the critique, or an object with
    `critique`, `gradient` or both. The advice is then made of the new critique: after a fused critique, which brings
    its own advice, that is one request more. A critique that the person wrote themselves at `select` is not shown to
    them again.

    It stands before `gradient` and not behind the critic in `loss`, because a node that waits is run again from its
    beginning, and would ask the critic again.

    Args:
        gradient: the node that follows.
    """

    async def human_critique(state: TPOState, runtime: Runtime[TPOSettings]) -> PartialState:
        step, loss = state["step"], state.get("loss")
        own = [choice["critique"] for choice in state.get("choices") or [] if choice["step"] == step]
        edited = ask_critique(state) if loss and loss not in own else {}
        if not edited:
            result: PartialState = await gradient(state, runtime)
            return result
        # advice on another critique does not fit this one
        texts = {"loss": edited.get("critique", loss), "gradient": edited.get("gradient", "")}
        written = "\n".join(text for text in edited.values() if text not in (loss, state.get("gradient", "")))
        choice = PersonChoice(step=step, best=state["best"]["text"], worst="", critique=written)
        update = {} if texts["gradient"] else await gradient({**state, **texts}, runtime)
        return {**texts, "choices": [choice], **(update or {})}

    return AsyncNode(human_critique)


class PersonReward:
    """Takes the reward model's place where `human_score_node` does the scoring; it has no reward of its own."""

    async def score(self, messages: Sequence[object], responses: Sequence[str]) -> list[float]:
        """Always fails: a person is asked by a node, which can wait for days.

        Args:
            messages: the conversation.
            responses: texts to score.

        Raises:
            RewardError: always.
        """
        del messages
        raise RewardError(
            f"A person scores {len(responses)} responses, and nobody was asked.",
            hint='Put the node in its place: nodes={"score": human_score_node()}.',
        )


def human_score_node() -> AsyncNode:
    """A `score` that stops the graph and asks a person: the reward is what they say.

    Use it as `create_tpo_graph(policy, PersonReward(), nodes={"score": human_score_node()}, checkpointer=...)`. The run
    goes on by `Command(resume=...)` with one of:

    - `{"ratings": {"0-0": 7, "0-1": 3.5}}`: a number for each new candidate, on a scale of the person's own;
    - `{"best": "0-0", "worst": "0-1"}`: a pick among the new candidates and the best so far; `worst` may be left out.
      A best candidate is then one above all before it, a worst one is one below, and the others are 0.

    An answer that can't be understood brings the interrupt again, with the reason. Texts that the cache has keep
    their reward; when there is nothing new to score, nobody is asked.
    """

    async def human_score(
        state: TPOState,
        runtime: Runtime[TPOSettings] | None = None,  # noqa: ARG001  # all nodes are called alike
    ) -> PartialState:
        cache, pending = state["cache"], state["pending"]
        rewards = {candidate["text"]: candidate["reward"] for candidate in cache}
        new = {candidate["text"]: candidate for candidate in reversed(pending) if candidate["text"] not in rewards}
        choices: list[PersonChoice] = []
        if new:
            rewards |= ask_rewards(list(new.values())[::-1], cache)
            worst, best = min(reversed(new), key=rewards.__getitem__), max(rewards, key=rewards.__getitem__)
            if rewards[best] > rewards[worst]:
                choices = [PersonChoice(step=state["step"], best=best, worst=worst, critique="")]
        scored = [scored_candidate(candidate, rewards[candidate["text"]]) for candidate in pending]
        return {"cache": scored, "pending": [], "choices": choices, "usage": {"score": no_usage()}}

    return AsyncNode(human_score)
