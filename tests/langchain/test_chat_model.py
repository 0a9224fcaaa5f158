"""ChatTPO as a chat model: every way to call it, what it returns, and what a call can change."""

import asyncio
import re
import threading

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.runnables import ConfigurableField, RunnableLambda

from tests.tpo_script import GRADIENT, FailsAtACost, number_reward, phases_asked, scripted_policy, server_reply
from tpo_graph import ConfigurationError, PolicyError, RewardError, TPOSettings
from tpo_graph.langchain.chat_model import ChatTPO
from tpo_graph.rewards import WatchedReward
from tpo_graph.rewards.load import SCHEMES
from tpo_graph.testing import ScriptedChatModel, TableReward


def chat(policy=None, **options):
    return ChatTPO(**{"policy": policy or scripted_policy(), "reward": number_reward(), **options})


def test_every_way_to_call_it_gives_the_same_answer():
    async def by_async():
        chunks = [chunk async for chunk in chat().astream("q")]
        return [(await chat().ainvoke("q")).text, (await chat().abatch(["q"]))[0].text, "".join(c.text for c in chunks)]

    answers = [
        chat().invoke("q").text,
        chat().batch(["q"])[0].text,
        "".join(chunk.text for chunk in chat().stream("q")),
        *asyncio.run(by_async()),
    ]
    # 5 candidates, then twice loss, gradient and 5 revisions: the last completion has the number 18
    assert answers == ["rev 18"] * 6


def test_in_a_chain_between_prompt_and_parser():
    policy = scripted_policy()
    chain = (
        ChatPromptTemplate.from_messages([("system", "Be kind."), ("human", "{what}?")])
        | chat(policy)
        | StrOutputParser()
    )
    assert chain.invoke({"what": "Why"}) == "rev 18"
    assert [message.text for message in policy.requests[0]] == ["Be kind.", "Why?"]


async def test_inside_a_running_event_loop_without_await():
    assert chat().invoke("q").text == "rev 18"


def test_usage_is_the_sum_of_all_requests():
    policy = scripted_policy()
    usage = chat(policy).invoke("q").usage_metadata
    # the scripted model counts words
    asked = sum(len(message.text.split()) for messages in policy.requests for message in messages)
    written = 5 * 2 + 2 * (2 + 3 + 5 * 2)
    assert usage == {"input_tokens": asked, "output_tokens": written, "total_tokens": asked + written}


def test_a_provider_that_does_not_count_leaves_no_usage():
    def silent(messages, number):
        return AIMessage(f"cand {number}", usage_metadata={"input_tokens": 0, "output_tokens": 0, "total_tokens": 0})

    assert chat(ScriptedChatModel(silent), mode="bon").invoke("q").usage_metadata is None


def test_the_metadata_tells_the_run():
    answer = chat(depth=1, n=2).invoke("q")
    tpo = answer.response_metadata["tpo"]
    assert (tpo["reward"], tpo["steps"], tpo["stop_reason"]) == (5.0, 1, "depth")
    assert [record["best_reward"] for record in tpo["trajectory"]] == [1.0, 5.0]
    assert tpo["trajectory"][1]["loss"] == "the loss"
    assert answer.response_metadata["model_name"] == "tpo/ScriptedChatModel"


def test_a_second_reward_model_watches_and_the_metadata_has_the_warning():
    second = TableReward(lambda text: -float(text.split()[-1]))
    tpo = chat(depth=1, reward=WatchedReward(number_reward(), second)).invoke("q").response_metadata["tpo"]
    assert [warning["kind"] for warning in tpo["warnings"]] == ["second_scorer_falls"]
    assert chat(depth=1).invoke("q").response_metadata["tpo"]["warnings"] == []


def test_a_second_reward_model_by_name(monkeypatch, tmp_path):
    monkeypatch.setitem(SCHEMES, "number", lambda name: number_reward())
    monkeypatch.setitem(SCHEMES, "table", lambda name: TableReward({}))
    recipe = tmp_path / "watched.toml"
    recipe.write_text('combine = "watched"\nparts.first.reward = "number"\nwatch.second.reward = "table"')
    tpo = chat(mode="bon", reward=str(recipe)).invoke("q").response_metadata["tpo"]
    assert [warning["kind"] for warning in tpo["warnings"]] == ["second_scorer_failed"]


def test_history_and_system_message_reach_the_policy():
    policy = scripted_policy()
    history = [SystemMessage("s"), HumanMessage("a"), AIMessage("b"), HumanMessage("c")]
    chat(policy, mode="bon").invoke(history)
    assert [message.text for message in policy.requests[0]] == ["s", "a", "b", "c"]


def test_settings_by_name_beat_settings_and_these_the_environment(monkeypatch):
    monkeypatch.setenv("TPO_N", "2")
    assert chat().settings.n == 2
    model = chat(settings=TPOSettings(n=3, depth=4), depth=1)
    assert (model.settings.n, model.settings.depth) == (3, 1)


def test_a_call_overrides_settings_for_itself():
    policy = scripted_policy()
    model = chat(policy)
    model.invoke("q", n=2, mode="bon")
    assert len(policy.requests) == 2
    assert model.bind(depth=0, n=1).invoke("q").response_metadata["tpo"]["steps"] == 0
    assert model.settings.n == 5


def test_langchains_arguments_hold_for_the_phases_that_write_answers():
    policy = scripted_policy()
    chat(policy, n=2, depth=1, temperature=0.1).invoke("q", top_p=0.5, max_tokens=9, temperature=0.2)
    knobs = dict(zip(phases_asked(policy), policy.knobs, strict=True))
    for phase in ("sample", "update"):
        assert (knobs[phase]["temperature"], knobs[phase]["top_p"], knobs[phase]["max_tokens"]) == (0.2, 0.5, 9)
    assert (knobs["loss"]["temperature"], knobs["loss"]["top_p"], knobs["loss"]["max_tokens"]) == (0.7, 0.99, 2048)


def test_the_name_of_a_phase_beats_langchains_argument():
    model = chat(temperature=0.1, update_temperature=0.9)
    assert (model.settings.sample_temperature, model.settings.update_temperature) == (0.1, 0.9)


def test_revisions_end_at_a_stop_text_and_keep_their_tags():
    policy = scripted_policy(update=lambda number: f"<revised_response>rev {number} END more</revised_response>")
    answer = chat(policy, n=2, depth=1, stop=["END"]).invoke("q")
    assert answer.text == "rev 5"


def test_a_text_that_begins_with_a_stop_text_is_recorded():
    policy = scripted_policy(
        sample=lambda number: "END" if number == 0 else f"cand {number}",
        update=lambda number: f"<revised_response>{'END' if number == 5 else number}</revised_response>",
    )
    trajectory = chat(policy, n=3, depth=1).invoke("q", stop=["END"]).response_metadata["tpo"]["trajectory"]
    assert [(record["candidates"], record["failures"]) for record in trajectory] == [(2, 1), (2, 1)]
    with pytest.raises(PolicyError, match="begins with one of the stop texts"):
        chat(scripted_policy(sample="END of it")).invoke("q", stop=["END"])


def test_a_stop_text_of_the_call_reaches_the_first_sampling():
    policy = scripted_policy()
    chat(policy, n=2, depth=1).invoke("q", stop=["END"])
    asked = dict(zip(phases_asked(policy), policy.knobs, strict=True))
    assert asked["sample"]["stop"] == ["END"]
    assert asked["update"]["stop"] is None


def test_other_arguments_go_to_the_policy():
    policy = scripted_policy()
    answer = chat(policy, n=2, depth=1).invoke("q", model="other", user="me")
    assert all((knobs["model"], knobs["user"]) == ("other", "me") for knobs in policy.knobs)
    assert answer.response_metadata["model_name"] == "tpo/other"


def test_a_draft_is_a_candidate_and_the_rest_of_n_is_drawn():
    policy = scripted_policy()
    draft = AIMessage("mine 99", usage_metadata={"input_tokens": 5, "output_tokens": 2, "total_tokens": 7})
    answer = chat(policy, n=3, mode="bon").invoke("q", draft=draft)
    assert (answer.text, phases_asked(policy)) == ("mine 99", ["sample", "sample"])
    assert answer.usage_metadata == {"input_tokens": 5 + 2, "output_tokens": 2 + 4, "total_tokens": 13}


@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_a_draft_survives_a_failing_run(kind):
    policy = ScriptedChatModel(lambda *_: ValueError("no")) if kind == "policy" else scripted_policy()
    reward = number_reward() if kind == "policy" else TableReward({})
    model = ChatTPO(policy=policy, reward=reward)
    answer = model.invoke("q", draft=AIMessage("mine 1"))
    assert (answer.text, answer.response_metadata["tpo"]["stop_reason"]) == ("mine 1", f"{kind}_failed")
    with pytest.raises(PolicyError if kind == "policy" else RewardError):
        model.invoke("q", draft=AIMessage("mine 1"), on_failure="raise")


def test_a_draft_is_revised_when_nothing_can_be_drawn_beside_it():
    policy = scripted_policy(sample=ValueError("busy"))
    model = ChatTPO(policy=policy, reward=number_reward(), n=2, depth=1, max_retries=0)
    answer = model.invoke("q", draft=AIMessage("mine 1"))
    assert (answer.text, answer.response_metadata["tpo"]["stop_reason"]) == ("rev 4", "depth")


def test_what_a_failed_scoring_cost_is_in_the_usage_of_a_draft_that_survives():
    draft = AIMessage("mine 1", usage_metadata={"input_tokens": 5, "output_tokens": 2, "total_tokens": 7})
    answer = ChatTPO(policy=scripted_policy(), reward=FailsAtACost(), n=2).invoke("q", draft=draft)
    assert answer.usage_metadata == {"input_tokens": 5 + 1 + 300, "output_tokens": 2 + 2 + 2, "total_tokens": 312}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deph": 3}, "does not take 'deph'"),
        ({"n": 0}, "n=0"),
        ({"policy": 7}, "policy must be a LangChain chat model"),
        ({"critic": 7}, "critic must be a LangChain chat model"),
        ({"reward": 7}, "is a function; 'int' is neither"),
        ({"nodes": "fused"}, "Unknown variant 'fused'; allowed: fused-critique"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(options, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        chat(**options)
    if "deph" in options:
        assert {"depth", "budget_requests", "temperature", "rate_limiter"} <= set(re.findall(r"\w+", caught.value.hint))


def test_a_name_is_loaded_when_it_is_first_used(chat_server, monkeypatch):
    server = chat_server()
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    model = ChatTPO(policy=f"server:{server.url}", reward=number_reward(), mode="bon")
    assert not server.requests
    assert model.invoke("q").text == "cand 4"
    assert asyncio.run(model.ainvoke("q")).text == "cand 9"
    assert model.invoke("q").response_metadata["model_name"] == "tpo/scripted"
    assert model._identifying_params["policy"] == f"server:{server.url}"


async def test_loading_by_name_leaves_the_event_loop_free(monkeypatch):
    threads = []

    def load(name):
        threads.append(threading.current_thread())
        return number_reward()

    monkeypatch.setitem(SCHEMES, "slow", load)
    model = ChatTPO(policy=scripted_policy(), reward="slow:", mode="bon")
    answers = await asyncio.gather(*(model.ainvoke("q") for _ in range(4)))
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()
    assert len(answers) == 4


def test_an_unknown_name_is_an_error_when_it_is_used():
    model = ChatTPO(policy=scripted_policy(), reward="nonsense:x")
    with pytest.raises(ConfigurationError, match="nonsense"):
        model.invoke("q")


def test_a_critic_writes_loss_and_gradient():
    policy, critic = scripted_policy(), scripted_policy()
    chat(policy, critic=critic, depth=1).invoke("q")
    assert phases_asked(critic) == ["loss", "gradient"]
    assert set(phases_asked(policy)) == {"sample", "update"}


def test_nodes_can_be_replaced_by_the_name_of_a_variant():
    policy = scripted_policy()
    answer = chat(policy, nodes="fused-critique", n=2, depth=1).invoke("q")
    assert phases_asked(policy) == ["sample", "sample", "critique", "update", "update"]
    assert answer.response_metadata["tpo"]["trajectory"][1]["gradient"] == GRADIENT


@pytest.mark.parametrize("call", ["invoke", "ainvoke"])
def test_the_recursion_limit_is_its_own_inside_a_chain(call):
    chain = RunnableLambda(lambda text: text) | chat(depth=8, n=2) | StrOutputParser()
    config = {"recursion_limit": 5}
    answer = chain.invoke("q", config) if call == "invoke" else asyncio.run(chain.ainvoke("q", config))
    assert answer == "rev 33"


def test_a_copy_with_other_settings_is_another_model():
    policy = scripted_policy()
    model = chat(policy, mode="bon")
    model.invoke("q")
    copy = model.model_copy(update={"settings": TPOSettings(mode="bon", n=2)})
    before = len(policy.requests)
    copy.invoke("q")
    assert len(policy.requests) - before == 2


def test_a_failure_is_raised_and_fallbacks_take_over():
    broken = chat(scripted_policy(sample=ValueError("no")))
    with pytest.raises(PolicyError, match="no"):
        broken.invoke("q")
    other = GenericFakeChatModel(messages=iter([AIMessage("plan b")]))
    assert broken.with_fallbacks([other]).invoke("q").text == "plan b"


def test_retries_repeat_the_run():
    policy = scripted_policy(sample=lambda number: ValueError("no") if number < 5 else f"cand {number}")
    model = chat(policy, mode="bon").with_retry(stop_after_attempt=2, wait_exponential_jitter=False)
    assert model.invoke("q").text == "cand 9"


async def test_a_policy_with_retries_and_fallbacks_around_it():
    policy = scripted_policy().with_retry().with_fallbacks([scripted_policy()])
    assert (await chat(policy).ainvoke("q")).response_metadata["tpo"]["stop_reason"] == "depth"


def test_a_rate_limiter_counts_answers():
    class Counts(BaseRateLimiter):
        taken = 0

        def acquire(self, *, blocking=True):
            self.taken += 1
            return True

        async def aacquire(self, *, blocking=True):
            return self.acquire()

    limiter = Counts()
    model = chat(rate_limiter=limiter, mode="bon")
    model.invoke("q")
    asyncio.run(model.ainvoke("q"))
    list(model.stream("q"))
    assert limiter.taken == 3


def test_it_tells_tracers_what_it_is():
    params = chat()._get_ls_params(stop=["x"])
    assert (params["ls_provider"], params["ls_model_name"], params["ls_stop"]) == ("tpo", "ScriptedChatModel", ["x"])
    assert (params["ls_temperature"], params["ls_max_tokens"]) == (0.7, 2048)


async def test_cancelling_a_call_ends_its_request(chat_server, chat_openai):
    server = chat_server(always="hang")
    running = asyncio.create_task(chat(chat_openai(server)).ainvoke("q"))
    for _ in range(500):
        if server.requests:
            break
        await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    for _ in range(200):
        if server.disconnected:
            break
        await asyncio.sleep(0.01)
    assert server.disconnected == 1


def test_one_event_loop_after_another_with_one_server(chat_server, chat_openai):
    server = chat_server()
    model = chat(chat_openai(server))
    for _ in range(2):
        assert asyncio.run(model.ainvoke("q")).response_metadata["tpo"]["stop_reason"] == "depth"
        assert model.invoke("q").response_metadata["tpo"]["stop_reason"] == "depth"
    # N completions are one request: sample, and twice loss, gradient and update
    assert len(server.requests) == 4 * 7


def test_fields_can_be_chosen_in_the_config():
    policy = scripted_policy()
    model = chat(policy).configurable_fields(settings=ConfigurableField("settings"))
    model.invoke("q", {"configurable": {"settings": TPOSettings(mode="bon", n=2)}})
    assert len(policy.requests) == 2


@pytest.mark.parametrize(("budget", "steps"), [(1, 0), (100_000, 2)])
def test_a_call_may_name_the_budget_of_tokens(budget, steps):
    policy = scripted_policy()
    answer = chat(policy, n=2).invoke("q", max_tokens=50, budget_tokens=budget)
    assert (answer.response_metadata["tpo"]["steps"], policy.knobs[0]["max_tokens"]) == (steps, 50)


@pytest.mark.parametrize("takes_less", [{"most_n": 2}, {"refused_knobs": ["top_p"]}], ids=["completions", "knobs"])
def test_what_the_policy_was_found_to_take_is_known_to_every_call(chat_server, chat_openai, takes_less):
    server = chat_server(answer=server_reply, **takes_less)
    model = chat(chat_openai(server), n=4, mode="bon")
    model.invoke("q")
    assert 400 in server.statuses
    before = len(server.requests)
    model.invoke("q", stop=["END"])
    model.invoke("q", user="me")
    assert 400 not in server.statuses[before:]
    # another model of the same provider may take more
    model.invoke("q", model="other")
    assert server.statuses[-1] == 200
    assert 400 in server.statuses[before:]
