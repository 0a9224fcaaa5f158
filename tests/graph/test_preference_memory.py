"""A preference that lasts: kept by user, in every prompt of their runs, and learned only with their consent."""

import asyncio

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.store.memory import InMemoryStore
from langgraph.types import Command

from tests.tpo_script import number_reward, phase_of, scripted_policy
from tpo_graph import ConfigurationError, PromptError, TPOSettings, build_tpo_graph, create_tpo_graph
from tpo_graph.graph.preference_learning import create_memory_graph
from tpo_graph.graph.preference_memory import (
    UserSettings,
    read_preference,
    remembering_nodes,
    save_preference,
    user_of,
)
from tpo_graph.human.nodes import PersonReward, human_nodes, human_score_node

SETTINGS = TPOSettings(n=2, depth=1)
KEPT, SENTENCE = "Short answers, please.", "Give the cause first."


def config(user="ada", thread="1"):
    return {"configurable": {"thread_id": thread, "user_id": user}}


def kept(store, user="ada"):
    return asyncio.run(read_preference(store, user))


@pytest.fixture
def store():
    store = InMemoryStore()
    asyncio.run(save_preference(store, "ada", KEPT))
    return store


class Judge:
    """A reward model that asks a language model and so is told the preference."""

    def __init__(self):
        self.told = []

    async def score_with_usage(self, messages, responses, *, preference=""):
        self.told.append(preference)
        return await number_reward().score(messages, responses), {
            "requests": 0,
            "input_tokens": 0,
            "output_tokens": 0,
            "seconds": 0.0,
        }

    async def score(self, messages, responses):
        return await number_reward().score(messages, responses)


def remembering(policy, reward, store, settings=SETTINGS):
    nodes = remembering_nodes(build_tpo_graph(policy, reward, settings=settings), settings=settings)
    return create_tpo_graph(policy, reward, nodes=nodes, settings=settings, store=store)


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_it_reaches_the_prompts_and_the_judge(way):
    store = InMemoryStore()
    await save_preference(store, "ada", KEPT)
    policy, judge = scripted_policy(), Judge()
    graph = remembering(policy, judge, store)
    call = graph.invoke if way == "invoke" else graph.ainvoke
    result = call({"query": "q"}, config())
    await result if way == "ainvoke" else None
    told = {phase_of(messages[-1].text): KEPT in messages[-1].text for messages in policy.requests}
    assert told == {"sample": False, "loss": True, "gradient": True, "update": True}
    assert judge.told == [KEPT, KEPT]


def test_the_preference_of_the_call_follows_what_is_kept(store):
    judge = Judge()
    graph = remembering(scripted_policy(), judge, store, TPOSettings(n=2, depth=0, preference="In French."))
    graph.invoke({"query": "q"}, config())
    graph.invoke({"query": "q"}, config(), context={"preference": "In German."})
    graph.invoke({"query": "q"}, config("bob"))
    assert judge.told == [f"{KEPT}\nIn French.", f"{KEPT}\nIn German.", "In French."]


@pytest.mark.parametrize("call", [{}, {"config": {"configurable": {}}}], ids=["no config", "no user"])
def test_without_a_user_it_is_the_plain_loop(store, call):
    judge = Judge()
    remembering(scripted_policy(), judge, store).invoke({"query": "q"}, **call)
    assert judge.told == ["", ""]


def test_without_a_store_it_is_the_plain_loop():
    judge = Judge()
    remembering(scripted_policy(), judge, None).invoke({"query": "q"}, config())
    assert judge.told == ["", ""]


@pytest.mark.parametrize("user", [7, ["ada"]])
def test_a_user_id_that_can_not_be_kept_is_refused(store, user):
    with pytest.raises(ConfigurationError, match=r"user_id=.* must be a text"):
        remembering(scripted_policy(), number_reward(), store).invoke({"query": "q"}, config(user))


def test_nodes_of_ones_own_stay_as_they_are():
    async def mine(state):
        return {"loss": "mine"}

    def plain(state):
        return {"gradient": "mine"}

    builder = build_tpo_graph(scripted_policy(), number_reward(), nodes={"loss": mine, "gradient": plain})
    nodes = remembering_nodes(builder)
    result = create_tpo_graph(scripted_policy(), number_reward(), nodes=nodes, settings=SETTINGS).invoke({"query": "q"})
    assert (result["trajectory"][1]["loss"], result["trajectory"][1]["gradient"]) == ("mine", "mine")


async def test_what_is_kept_can_be_replaced_and_forgotten():
    store = InMemoryStore()
    await save_preference(store, "ada", "one")
    await save_preference(store, "ada", " two ")
    assert (await read_preference(store, "ada"), await read_preference(store, "bob")) == ("two", "")
    await save_preference(store, "ada", " ")
    assert await read_preference(store, "ada") == ""
    with pytest.raises(ConfigurationError, match="has 2000 characters at most; this one has 2001"):
        await save_preference(store, "ada", "a" * 2001)


def test_no_user_is_the_empty_one():
    assert user_of(None) == user_of({}) == user_of({"configurable": {"user_id": None}}) == user_of(config(" ")) == ""


def test_who_is_authenticated_can_not_name_somebody_else():
    authenticated = {"configurable": {"user_id": "bob", "langgraph_auth_user_id": "ada"}}
    assert user_of(authenticated, UserSettings(user_id="bob")) == "ada"
    # what a server without authentication says
    nobody = {"configurable": {"langgraph_auth_user_id": ""}}
    assert (user_of(nobody, UserSettings(user_id="bob")), user_of(nobody, {"user_id": "bob"})) == ("bob", "bob")
    assert user_of(config("ada"), UserSettings(user_id="bob")) == "bob"


async def test_users_are_told_apart_whatever_their_ids_are():
    store, users = InMemoryStore(), ["ada@x.org", "ada@x%2Eorg", "ada@x%252Eorg", "ada@x", "."]
    for user in users:
        await save_preference(store, user, f"of {user}")
    assert [await read_preference(store, user) for user in users] == [f"of {user}" for user in users]
    policy = scripted_policy()
    await remembering(policy, number_reward(), store).ainvoke({"query": "q"}, config("ada@x.org"))
    assert any("of ada@x.org" in messages[-1].text for messages in policy.requests)


# learning


def learning_policy(sentence=SENTENCE):
    """The script, and a sentence for who is asked about a person's taste."""
    usual = scripted_policy().script

    def script(messages, number):
        return sentence if KNOWN in messages[-1].text else usual(messages, number)

    return scripted_policy().model_copy(update={"script": script})


def learning(policy, store, reward=None, **options):
    parts = {"settings": SETTINGS, "checkpointer": InMemorySaver(), "store": store, "name": "mine", **options}
    return create_memory_graph(policy, reward or number_reward(), **parts)


def wording(policy):
    """What the policy was asked for the sentence."""
    return [messages[-1].text for messages in policy.requests if KNOWN in messages[-1].text]


PICK = {"best": "0-0", "worst": "0-1", "critique": "shorter, please"}
KNOWN = "What is known of their taste"


def until_kept(graph, answers=(PICK, "ok"), **where):
    state = graph.invoke({"query": "q"}, config(**where))
    for answer in answers:
        state = graph.invoke(Command(resume=answer), config(**where))
    return state


def question(state):
    (asked,) = state["__interrupt__"]
    return asked.value


def test_the_sentence_is_shown_before_it_is_kept(store):
    policy = learning_policy()
    graph = learning(policy, store)
    state = until_kept(graph)
    assert (question(state)["preference"], question(state)["known"]) == (SENTENCE, KEPT)
    assert kept(store) == KEPT
    state = graph.invoke(Command(resume="ok"), config())
    assert (kept(store), state["preference"], state["answer"]) == (SENTENCE, SENTENCE, state["best"]["text"])
    (asked,) = wording(policy)
    assert KEPT in asked and "<chosen>\ncand 0\n</chosen>" in asked and "<rejected>\ncand 1\n</rejected>" in asked
    # the reward model's best was accepted and not chosen
    assert "<what_they_wrote>\nshorter, please" in asked and state["best"]["text"] not in asked
    assert state["usage"]["preference"]["requests"] == 1 and state["usage"]["sample"]["requests"] == 2
    assert [message.type for message in state["messages"]] == ["human", "ai"]


def test_what_was_kept_reaches_the_next_run(store):
    policy = learning_policy()
    graph = learning(policy, store)
    until_kept(graph, answers=(PICK, "ok", "ok"))
    before = len(policy.requests)
    graph.invoke({"query": "and then?"}, config(thread="2"))
    graph.invoke(Command(resume="ok"), config(thread="2"))
    (loss,) = [messages[-1].text for messages in policy.requests[before:] if phase_of(messages[-1].text) == "loss"]
    assert SENTENCE in loss and KEPT not in loss


@pytest.mark.parametrize(
    ("answer", "saved"),
    [
        (True, SENTENCE),
        ("yes", SENTENCE),
        ("no", KEPT),
        (False, KEPT),
        ("My own words.", "My own words."),
        ({"preference": "My own words."}, "My own words."),
    ],
)
def test_what_the_person_says_is_what_is_kept(store, answer, saved):
    graph = learning(learning_policy(), store)
    until_kept(graph, answers=(PICK, "ok", answer))
    assert kept(store) == saved


@pytest.mark.parametrize("answer", [7, " ", {"preference": 7}, {"text": "x"}, ["ok"], "long " * 500])
def test_what_is_no_clear_answer_is_asked_again_and_nothing_is_kept(store, answer):
    graph = learning(learning_policy(), store)
    state = until_kept(graph, answers=(PICK, "ok", answer))
    assert question(state)["problem"] and kept(store) == KEPT
    assert graph.invoke(Command(resume="no"), config())["preference"] == ""


def test_without_a_user_nothing_is_asked_of_the_policy_or_the_person(store):
    policy = learning_policy()
    graph = learning(policy, store)
    graph.invoke({"query": "q"}, {"configurable": {"thread_id": "1"}})
    state = graph.invoke(Command(resume="stop"), {"configurable": {"thread_id": "1"}})
    assert "__interrupt__" not in state and state["stop_reason"] == "person"
    assert wording(policy) == []


@pytest.mark.parametrize("answers", [("ok", "ok"), ("stop",)])
def test_who_decided_nothing_is_asked_nothing(store, answers):
    policy = learning_policy()
    state = until_kept(learning(policy, store), answers)
    assert "__interrupt__" not in state and (state["choices"], wording(policy), kept(store)) == ([], [], KEPT)


def test_a_critique_alone_is_a_decision_too(store):
    policy = learning_policy()
    state = until_kept(learning(policy, store), ({"critique": "too long"}, "ok"))
    assert question(state)["preference"] == SENTENCE
    assert "<response>\ncand 1\n</response>\n\n<what_they_wrote>\ntoo long" in wording(policy)[0]
    assert "<chosen>" not in wording(policy)[0]


def test_the_ratings_of_a_person_are_put_into_words(store):
    policy = learning_policy()
    graph = learning(policy, store, PersonReward(), nodes={"score": human_score_node()})
    state = until_kept(graph, ({"ratings": {"0-0": 5, "0-1": 3}}, "1-1", "ok"))
    assert kept(store) == SENTENCE
    assert [(each["step"], each["best"], each["worst"]) for each in state["choices"]] == [
        (0, "cand 0", "cand 1"),
        (1, "rev 5", "rev 4"),
    ]
    assert all(f"<chosen>\n{text}" in wording(policy)[0] for text in ("cand 0", "rev 5"))


def test_an_edited_critique_is_put_into_words(store):
    policy = learning_policy()
    graph = learning(policy, store, nodes=human_nodes(policy, settings=SETTINGS, edit_critique=True))
    until_kept(graph, ("ok", "Too stiff.", "ok", "ok"))
    assert kept(store) == SENTENCE and "<what_they_wrote>\nToo stiff.\n</what_they_wrote>" in wording(policy)[0]


def test_the_context_may_name_the_user(store):
    graph, thread = learning(learning_policy(), store), {"configurable": {"thread_id": "1"}}
    context = {"user_id": "bob", "depth": 0}
    graph.invoke({"query": "q"}, thread, context=context)
    graph.invoke(Command(resume=PICK), thread, context=context)
    graph.invoke(Command(resume="ok"), thread, context=context)
    assert (kept(store, "bob"), kept(store)) == (SENTENCE, KEPT)


def test_a_policy_that_fails_to_word_it_does_not_cost_the_answer(store):
    state = until_kept(learning(learning_policy(RuntimeError("down")), store))
    assert "__interrupt__" not in state and state["answer"] == state["best"]["text"]
    assert (state["preference"], kept(store)) == ("", KEPT)


def test_a_thread_that_is_used_again_starts_a_new_run(store):
    graph = learning(learning_policy(), store)
    first = until_kept(graph, answers=(PICK, "ok", "no"))
    second = until_kept(graph, answers=({"best": "0-0", "stop": True}, "no"))
    assert len(second["choices"]) == 1
    assert (len(second["trajectory"]), second["usage"]["sample"]) != (2, first["usage"]["sample"])
    assert second["usage"]["sample"]["requests"] == 2 and len(second["messages"]) == 4


def test_a_preference_prompt_is_checked_when_the_graph_is_made():
    with pytest.raises(PromptError, match="answer"):
        create_memory_graph(scripted_policy(), number_reward(), preference_prompt="$answer")
