"""Four changes to the loop, each with LangGraph's own means: nodes can be replaced, wrapped, and be graphs themselves.

Run it with:  python examples/custom_nodes.py [a name of load_policy]
"""

import asyncio
from typing import Annotated, Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AnyMessage, HumanMessage
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from offline_models import chosen_models, scripted_policy
from typing_extensions import TypedDict

from tpo_graph import RewardModel, TPOState, create_tpo_graph
from tpo_graph.accounting import add_usage
from tpo_graph.graph.nodes import loss_node, select_node
from tpo_graph.types import FailureRecord, ScoredCandidate, Usage

FACTS = {
    "warmth": "Warmth widens the vessels of the skin; blood pressure falls.",
    "tired": "Sleep comes with a fall of the core temperature, which warm skin brings about.",
}


# 1. A retrieval node before loss: in its place stands a graph of two nodes. What it looks up is in the conversation
# that the critic sees, and nowhere else: the graph returns the critique alone.


class Critique(TypedDict):
    """What the critique graph returns; the reducers add it to the run's own."""

    loss: str
    gradient: str
    usage: Annotated[Usage, add_usage]
    failures: list[FailureRecord]


class CritiqueInput(TypedDict):
    """What it takes from the run."""

    messages: Annotated[list[AnyMessage], add_messages]
    best: ScoredCandidate
    worst: ScoredCandidate
    step: int


class CritiqueState(CritiqueInput, Critique):
    """Both."""


def retrieve(state: CritiqueState) -> dict[str, Any]:
    """Look up what the question is about."""
    question = state["messages"][-1].text.lower()
    found = [fact for word, fact in FACTS.items() if word in question]
    return {"messages": [HumanMessage("What is known:\n" + "\n".join(found))]}


def with_retrieval(policy: BaseChatModel, reward: RewardModel) -> Any:
    """The loop with a critic who looks things up."""
    critique = StateGraph(CritiqueState, input_schema=CritiqueInput, output_schema=Critique)
    critique.add_node("retrieve", retrieve)
    critique.add_node("write", loss_node(policy))
    critique.add_edge(START, "retrieve")
    critique.add_edge("retrieve", "write")
    return create_tpo_graph(policy, reward, nodes={"loss": critique.compile()})


# 2. Two critics, asked at the same time, whose losses are merged.


def with_two_critics(policy: BaseChatModel, reward: RewardModel, critics: list[BaseChatModel]) -> Any:
    """The loop with the losses of all critics in one text."""
    losses = [loss_node(critic) for critic in critics]

    async def loss(state: TPOState) -> dict[str, Any]:
        found = await asyncio.gather(*(each.ainvoke(state) for each in losses))
        usage: Usage = {}
        for each in found:
            usage = add_usage(usage, each["usage"])
        texts = [f"Critic {place}: {each['loss']}" for place, each in enumerate(found, 1)]
        failures = [failure for each in found for failure in each["failures"]]
        return {"loss": "\n\n".join(texts), "gradient": "", "usage": usage, "failures": failures}

    return create_tpo_graph(policy, reward, nodes={"loss": loss})


# 3. A cheaper critic needs no node at all: loss and gradient are its requests, sampling and revising the policy's.


def with_cheaper_critic(policy: BaseChatModel, reward: RewardModel, critic: BaseChatModel) -> Any:
    """The loop with another model for what is not shown to anyone."""
    return create_tpo_graph(policy, reward, critic=critic)


# 4. Another select: the second best against the worst. Who wins in the end stays the package's decision.


def with_second_best(policy: BaseChatModel, reward: RewardModel) -> Any:
    """The loop that revises the second best candidate."""
    select = select_node()

    async def second_best(state: TPOState) -> dict[str, Any]:
        update = dict(await select.ainvoke(state))
        ranked = sorted(state["cache"], key=lambda candidate: candidate["reward"], reverse=True)
        if update["stop_reason"] is None:
            update["best"] = ranked[1]
        return update

    return create_tpo_graph(policy, reward, nodes={"select": second_best})


def main() -> None:
    policy, reward = chosen_models()
    critics: list[BaseChatModel] = [scripted_policy("It lacks a cause."), scripted_policy("It is too short.")]
    graphs = {
        "retrieval before loss": with_retrieval(policy, reward),
        "two critics": with_two_critics(policy, reward, critics),
        "a cheaper critic": with_cheaper_critic(policy, reward, critics[0]),
        "second best against worst": with_second_best(policy, reward),
    }
    for name, graph in graphs.items():
        asked = {"query": "Why does warmth make you tired?"}
        result = graph.invoke(asked, context={"n": 3, "depth": 1})
        step = result["trajectory"][-1]
        print(f"{name}: reward {step['best_reward']:+.3f}, loss {step['loss']!r}")


if __name__ == "__main__":
    main()
