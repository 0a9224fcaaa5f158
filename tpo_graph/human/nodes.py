"""All that a graph needs to take a person's choices: nodes to give to `create_tpo_graph`."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage
from langgraph.runtime import Runtime
from langgraph.types import interrupt

from tpo_graph.accounting import no_usage
from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.graph.bridge import NodeBody
from tpo_graph.graph.build import pack_for
from tpo_graph.graph.nodes.gradient import gradient_node
from tpo_graph.graph.nodes.loss import loss_node
from tpo_graph.graph.nodes.select import select_node
from tpo_graph.graph.request import effective_settings
from tpo_graph.graph.state import TPOState
from tpo_graph.human.questions import GO_ON, HumanChoice, choice_question, parse_choice, standing_pair
from tpo_graph.policies.providers import Policy
from tpo_graph.policies.sampling import Sampler
from tpo_graph.prompts.pack import PromptPack
from tpo_graph.selection import stop_reason
from tpo_graph.settings import TPOSettings
from tpo_graph.types import Candidate, PersonChoice, PreferencePair, ScoredCandidate, StepRecord, StopReason

# score with a person: the reward is what they say.


class PersonReward:
    """Takes the reward model's place where `human_score_node` does the scoring; it has no reward of its own."""

    async def score(self, messages: Sequence[object], responses: Sequence[str]) -> list[float]:
        """Never gives one: a person is asked by a node, which can wait for days.

        Raises:
            RewardError: always.
        """
        del messages
        raise RewardError(
            f"A person scores {len(responses)} responses, and nobody was asked.",
            hint='Put the node in its place: nodes={"score": human_score_node()}.',
        )


def human_score_node() -> NodeBody:
    """A `score` that stops the graph and asks a person; needs a checkpointer.

    Use it as `create_tpo_graph(policy, PersonReward(), nodes={"score": human_score_node()}, checkpointer=...)`. The run
    goes on by `Command(resume=...)` with one of:

    - `{"ratings": {"0-0": 7, "0-1": 3.5}}`: a number for each new candidate, on a scale of the person's own;
    - `{"best": "0-0", "worst": "0-1"}`: a pick among the new candidates and the best so far; `worst` may be left out.
      A best candidate is then one above all before it, a worst one is one below, and the others are 0.

    An answer that can't be understood brings the interrupt again, with what was wrong. Texts that the cache has keep
    their reward; when there is nothing new to score, nobody is asked.
    """

    async def human_score(
        state: TPOState,
        runtime: Runtime[TPOSettings],  # noqa: ARG001  # all nodes are called alike
    ) -> dict[str, Any]:  # Any: a partial state
        cache, pending = state["cache"], state["pending"]
        known = {candidate["text"]: candidate["reward"] for candidate in cache}
        new = list({each["text"]: each for each in reversed(pending) if each["text"] not in known}.values())[::-1]
        rewards = {**known, **(_ask(new, cache) if new else {})}
        scored = [ScoredCandidate(**candidate, reward=rewards[candidate["text"]]) for candidate in pending]
        choices = _decided(state["step"], new, cache, rewards)
        return {"cache": scored, "pending": [], "choices": choices, "usage": {"score": no_usage()}}

    return human_score


def _decided(
    step: int, new: Sequence[Candidate], cache: Sequence[ScoredCandidate], rewards: Mapping[str, float]
) -> list[PersonChoice]:
    """What the rewards say of the new candidates and the best so far: the highest was chosen over the lowest."""
    texts = [each["text"] for each in new]
    if not texts:
        return []
    worst = min(texts, key=lambda text: rewards[text])
    best = max([*(each["text"] for each in cache), *texts], key=lambda text: rewards[text])
    told_apart = rewards[best] > rewards[worst]
    return [PersonChoice(step=step, best=best, worst=worst, critique="")] if told_apart else []


def _ask(new: Sequence[Candidate], cache: Sequence[ScoredCandidate]) -> Mapping[str, float]:
    """Rewards by text."""
    best = max(cache, key=lambda candidate: candidate["reward"], default=None)
    problem = ""
    while True:
        answer = interrupt(
            {
                "kind": "tpo_rating",
                "question": "How good is each candidate? Rate all of them, or pick the best (and the worst).",
                "problem": problem,
                "candidates": [{name: each[name] for name in ("id", "step", "text")} for each in new],
                "best_so_far": best and {name: best[name] for name in ("id", "step", "reward", "text")},
                "answer": {"ratings": {each["id"]: "a number" for each in new}, "best": "an id", "worst": "an id"},
            }
        )
        try:
            return _rewards(answer, new, cache, best)
        except ConfigurationError as error:
            problem = str(error)


def _rewards(
    answer: object, new: Sequence[Candidate], cache: Sequence[ScoredCandidate], best: ScoredCandidate | None
) -> Mapping[str, float]:
    if isinstance(answer, str):
        text = answer.strip()
        try:
            answer = json.loads(text) if text.startswith("{") else {"best": text}
        except json.JSONDecodeError as error:
            raise ConfigurationError(f"This is not valid JSON: {error}.") from error
    if not isinstance(answer, Mapping) or not answer.keys() <= {"ratings", "best", "worst"} or not answer:
        raise ConfigurationError(f"The answer is {answer!r}; give either ratings, or best and maybe worst.")
    if "ratings" in answer:
        if len(answer) > 1:
            raise ConfigurationError("Give either ratings or a pick, not both.")
        return _ratings(answer["ratings"], new)
    return _picked(answer.get("best"), answer.get("worst"), new, cache, best)


def _ratings(ratings: object, new: Sequence[Candidate]) -> Mapping[str, float]:
    ids = [each["id"] for each in new]
    if not isinstance(ratings, Mapping) or set(ratings) != set(ids):
        raise ConfigurationError(f"ratings={ratings!r}: a number is needed for each of {', '.join(ids)}.")
    for name, value in ratings.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigurationError(f"The rating of {name!r} is {value!r}, which is no finite number.")
    return {each["text"]: float(ratings[each["id"]]) for each in new}


def _picked(
    chosen: object,
    rejected: object,
    new: Sequence[Candidate],
    cache: Sequence[ScoredCandidate],
    best: ScoredCandidate | None,
) -> Mapping[str, float]:
    ids = [each["id"] for each in new]
    choices = [*ids, *([best["id"]] if best else [])]
    if chosen not in choices:
        raise ConfigurationError(f"best={chosen!r} is no candidate; candidates are {', '.join(choices)}.")
    if rejected is not None and rejected not in ids:
        raise ConfigurationError(f"worst={rejected!r} is no new candidate; new are {', '.join(ids)}.")
    if chosen == rejected:
        raise ConfigurationError(f"{chosen!r} can't be both best and worst.")
    rewards = [candidate["reward"] for candidate in cache]
    values = {chosen: max([0.0, *rewards]) + 1, rejected: min([0.0, *rewards]) - 1}
    return {each["text"]: values.get(each["id"], 0.0) for each in new}


# gradient with a person before it: they see what the critic wrote, and keep it or write it anew.

_FORM = {
    "critique": "another text in place of the critic's; leave out to keep it",
    "gradient": "your own advice on how to improve the best one; leave out to let the critic write it",
}


def human_critique_node(gradient: NodeBody) -> NodeBody:
    """A `gradient` that stops the graph before it works and shows the critic's text; needs a checkpointer.

    The run goes on by `Command(resume=...)` with "ok", a text that takes the place of the critique, or an object with
    `critique`, `gradient` or both. The advice is then made of the new critique: with `fuse_critique`, where the critic
    has given it already, that is one request more. A critique that the person wrote themselves at `select` is not
    shown to them again.

    It stands before `gradient` and not behind the critic in `loss`, because a node that waits is run again from its
    beginning, and would ask the critic again.

    Args:
        gradient: the node that follows.
    """

    async def human_critique(state: TPOState, runtime: Runtime[TPOSettings]) -> Any:  # Any: a partial state
        edited = {} if not state.get("loss") or _is_their_own(state) else _ask_human_critique(state)
        if not edited:
            return await gradient(state, runtime)
        # advice on another critique is none on this one
        texts = {"loss": edited.get("critique", state["loss"]), "gradient": edited.get("gradient", "")}
        written = "\n".join(text for name, text in edited.items() if text != _shown(state)[name])
        choice = PersonChoice(step=state["step"], best=state["best"]["text"], worst="", critique=written)
        rest = {} if texts["gradient"] else await gradient({**state, **texts}, runtime)
        return {**texts, "choices": [choice], **(rest or {})}

    return human_critique


def _is_their_own(state: TPOState) -> bool:
    mine = [each["critique"] for each in state.get("choices") or [] if each["step"] == state["step"]]
    return state["loss"] in mine


def _shown(state: TPOState) -> Mapping[str, str]:
    return {"critique": state["loss"], "gradient": state.get("gradient", "")}


def _ask_human_critique(state: TPOState) -> Mapping[str, str]:
    """What the person wrote in place of the critic's texts, by name."""
    problem = ""
    while True:
        question: dict[str, Any] = {  # Any: JSON
            "kind": "tpo_critique",
            "question": "This is what the critic wrote of the best candidate. Keep it, or write it anew.",
            "problem": problem,
            "step": state["step"],
            "best": {name: state["best"][name] for name in ("id", "step", "reward", "text")},
            **_shown(state),
            "answer": _FORM,
        }
        try:
            return _edited(interrupt(question), state)
        except ConfigurationError as error:
            problem = str(error)


def _edited(answer: object, state: TPOState) -> Mapping[str, str]:
    if isinstance(answer, str):
        text = answer.strip()
        if text.lower() == "stop":
            raise ConfigurationError("The run can be stopped at the next choice; answer ok, or a text to go on with.")
        try:
            answer = json.loads(text) if text.startswith("{") else {} if text.lower() in GO_ON else {"critique": text}
        except json.JSONDecodeError as error:
            raise ConfigurationError(f"This is not valid JSON: {error}.") from error
    if answer is None or answer is True:
        answer = {}
    if not isinstance(answer, Mapping) or not answer.keys() <= _FORM.keys():
        raise ConfigurationError(f"The answer is {answer!r}; answer ok, a text, or an object with {', '.join(_FORM)}.")
    for name, value in answer.items():
        if value is not None and not isinstance(value, str):
            raise ConfigurationError(f"{name}={value!r} is not a text.")
    told = {name: (answer.get(name) or "").strip() for name in _FORM}
    changed = {name: text for name, text in told.items() if text and text != _shown(state)[name]}
    # who sends both texts back and changed the critique alone means the advice to stay
    return {**changed, "gradient": told["gradient"]} if changed and told["gradient"] else changed


# select with a person: after scoring they pick best and worst, may write the critique, or stop.


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
            choice = _ask_human_select(state, proposed, ends=update["stop_reason"], takes_critique=takes_critique)
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
            done["choices"] = [_decided_human_select(state["step"], pair, choice)]
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


def _ask_human_select(
    state: TPOState, proposed: PreferencePair, *, ends: StopReason | None, takes_critique: bool
) -> HumanChoice:
    problem = ""
    while True:
        question = choice_question(state, proposed, ends=ends, takes_critique=takes_critique, problem=problem)
        answer = interrupt(question)
        try:
            return parse_choice(answer, proposed, state["cache"], takes_critique=takes_critique)
        except ConfigurationError as error:
            problem = str(error)


def _decided_human_select(step: int, pair: PreferencePair, choice: HumanChoice) -> PersonChoice:
    worst = pair["worst"]["text"] if choice.picked and choice.best != choice.worst else ""
    return PersonChoice(step=step, best=pair["best"]["text"], worst=worst, critique=choice.critique)


def _reason(state: TPOState, record: StepRecord, chosen: TPOSettings, *, told_apart: bool) -> StopReason | None:
    """Why the run ends, or None; a pair that a person told apart is a preference whatever its rewards are."""
    if told_apart and chosen.mode == "tpo":
        # the one mode in which equal rewards do not end the run
        chosen = chosen.overridden_by({"mode": "revision"})
    return stop_reason([*state["trajectory"], record], chosen, state["usage"], failures=state.get("failures", []))


def human_nodes(
    critic: Policy,
    *,
    prompts: PromptPack | str | Path | None = None,
    settings: TPOSettings | None = None,
    edit_critique: bool = False,
) -> Mapping[str, Any]:  # Any: nodes
    """A `select` that asks a person, and a `loss` that keeps the critique that they wrote.

    Example:
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

    Raises:
        PromptError: there is no such pack.
    """
    settings = TPOSettings.load() if settings is None else settings
    parts = Sampler(critic), pack_for(prompts, critic), settings
    nodes = {"select": human_select_node(settings, takes_critique=True), "loss": kept_loss_node(loss_node(*parts))}
    return nodes | {"gradient": human_critique_node(gradient_node(*parts))} if edit_critique else nodes
