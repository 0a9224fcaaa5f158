"""bind_tools: tool calls come back untouched, a final text is optimised."""

import asyncio

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool

from tests.langchain.tool_policy import calling, tool_policy
from tests.tpo_script import number_reward, phases_asked
from tpo_graph import BudgetError, ConfigurationError, PolicyError, TPOSettings
from tpo_graph.langchain.chat_model import ChatTPO
from tpo_graph.testing import ErrorAnswer, ScriptedChatModel


@tool
def look_up(word: str) -> str:
    """Look a word up."""
    return f"meaning of {word}"


def with_tools(policy, *, tool_choice=None, **options):
    return ChatTPO(policy=policy, reward=number_reward(), **options).bind_tools([look_up], tool_choice=tool_choice)


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream"])
def test_a_tool_call_comes_back_untouched(way):
    policy = tool_policy(calling(word="tree"))
    model = with_tools(policy)
    if way == "stream":
        chunks = list(model.stream("q"))
        answer = sum(chunks[1:], chunks[0])
    else:
        answer = model.invoke("q") if way == "invoke" else asyncio.run(model.ainvoke("q"))
    assert answer.tool_calls == [{"name": "look_up", "args": {"word": "tree"}, "id": "call-1", "type": "tool_call"}]
    assert (answer.content, answer.id) == ("", "provider-id")
    assert answer.usage_metadata == {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}
    assert answer.response_metadata["finish_reason"] == "tool_calls"
    assert "tpo" not in answer.response_metadata
    assert len(policy.requests) == 1


def test_the_policy_gets_the_tools_as_they_are_bound():
    policy = tool_policy(calling())
    with_tools(policy, tool_choice="any").invoke("q")
    (knobs,) = policy.knobs
    assert knobs["tools"][0]["function"]["name"] == "look_up"
    assert knobs["tool_choice"] == "any"


def test_a_text_is_a_candidate_and_the_rest_of_n_is_drawn_with_the_tools():
    policy = tool_policy("draft 3")
    answer = with_tools(policy, n=4, mode="bon").invoke("q")
    assert (answer.text, len(policy.requests)) == ("draft 3", 4)
    assert [bool(knobs.get("tools")) for knobs in policy.knobs] == [True] * 4
    asked = sum(len(message.text.split()) for messages in policy.requests for message in messages)
    assert answer.usage_metadata["input_tokens"] == asked
    assert answer.usage_metadata["output_tokens"] == 2 * 4


def test_no_other_phase_gets_the_tools():
    policy = tool_policy("draft 3")
    with_tools(policy, n=2, depth=1).invoke("q")
    assert phases_asked(policy) == ["sample", "sample", "loss", "gradient", "update", "update"]
    assert [bool(knobs.get("tools")) for knobs in policy.knobs] == [True, True, False, False, False, False]


def test_candidates_that_call_tools_after_a_text_are_recorded():
    policy = tool_policy("draft 3", calling(), "cand 1")
    answer = with_tools(policy, n=3, mode="bon").invoke("q")
    (record,) = answer.response_metadata["tpo"]["trajectory"]
    assert (answer.text, record["candidates"], record["failures"]) == ("draft 3", 2, 1)


def test_a_whole_turn_with_a_tool():
    policy = tool_policy(calling(word="tree"), "draft 1")
    model = with_tools(policy, n=2, depth=1)
    asked = [HumanMessage("What is a tree?")]
    called = model.invoke(asked)
    answer = model.invoke([*asked, called, ToolMessage(look_up.invoke({"word": "tree"}), tool_call_id="call-1")])
    assert answer.text == "rev 6"
    assert [message.type for message in policy.requests[1]] == ["human", "ai", "tool"]


def test_explicit_knobs_hold_for_the_first_reply_too():
    policy = tool_policy(calling())
    with_tools(policy, temperature=0.3).invoke("q", stop=["END"])
    assert (policy.knobs[0]["temperature"], policy.knobs[0]["stop"]) == (0.3, ["END"])


def test_tools_go_to_the_model_inside_a_wrapped_policy():
    policy = tool_policy(calling())
    with_tools(policy.bind(user="me").with_retry()).invoke("q")
    assert (policy.knobs[0]["user"], bool(policy.knobs[0]["tools"])) == ("me", True)
    answer = with_tools(tool_policy(calling(word="a")).with_fallbacks([tool_policy(calling(word="b"))])).invoke("q")
    assert answer.tool_calls[0]["args"] == {"word": "a"}


class NoTools(ScriptedChatModel):
    bind_tools = BaseChatModel.bind_tools


def test_a_policy_that_takes_no_tools_is_named():
    with pytest.raises(ConfigurationError, match="'NoTools' can't be given tools"):
        with_tools(NoTools(["text"])).invoke("q")


def test_a_failing_first_reply_is_the_policys_failure():
    with pytest.raises(PolicyError, match="busy"):
        with_tools(tool_policy(RuntimeError("busy"))).invoke("q")


def test_an_empty_first_reply_is_no_candidate():
    answer = with_tools(tool_policy(AIMessage("")), n=2, mode="bon").invoke("q")
    assert answer.text == "cand 2"


@pytest.mark.parametrize(
    "first",
    [
        AIMessage("draft 9", response_metadata={"finish_reason": "content_filter"}),
        AIMessage("draft 9", response_metadata={"stop_reason": "refusal"}),
        AIMessage("<think>draft 9", response_metadata={"finish_reason": "length"}),
    ],
)
def test_a_first_reply_that_can_not_be_used_is_no_candidate(first):
    answer = with_tools(tool_policy(first), n=2, mode="bon").invoke("q")
    assert (answer.text, answer.response_metadata["finish_reason"]) == ("cand 2", "stop")


def test_a_first_reply_is_read_without_its_thinking_and_says_how_it_ended():
    first = AIMessage("<think>hm</think>draft 9", response_metadata={"finish_reason": "MAX_TOKENS"})
    answer = with_tools(tool_policy(first), n=2, mode="bon").invoke("q")
    assert (answer.text, answer.response_metadata["finish_reason"]) == ("draft 9", "length")
    alone = with_tools(tool_policy(first, RuntimeError("busy")), n=2).invoke("q")
    assert (alone.text, alone.response_metadata["finish_reason"]) == ("draft 9", "length")


def test_the_first_reply_has_the_tokens_for_thinking_too():
    policy = tool_policy("draft 3")
    with_tools(policy, n=1, mode="bon", max_tokens=100, thinking_tokens=1000).invoke("q")
    assert policy.knobs[0]["max_tokens"] == 1100


def test_a_first_reply_that_its_thinking_cut_off_is_asked_for_with_a_larger_limit():
    cut = AIMessage(
        "<think>hm",
        response_metadata={"finish_reason": "length"},
        usage_metadata={"input_tokens": 7, "output_tokens": 100, "total_tokens": 107},
    )
    policy = tool_policy(cut, calling(word="tree"))
    answer = with_tools(policy, max_tokens=100).invoke("q")
    assert answer.tool_calls[0]["args"] == {"word": "tree"}
    assert [knobs["max_tokens"] for knobs in policy.knobs] == [100, 2248]
    assert answer.usage_metadata == {"input_tokens": 14, "output_tokens": 103, "total_tokens": 117}
    alone = with_tools(tool_policy(cut, RuntimeError("too long")), n=2, mode="bon", max_tokens=100).invoke("q")
    assert alone.text == "cand 3"


def test_what_is_bound_beside_tools_is_not_sent_without_them():
    policy = tool_policy("draft 9")
    model = ChatTPO(policy=policy, reward=number_reward(), n=2, depth=1)
    model.bind_tools([look_up], parallel_tool_calls=False, user="me").invoke("q")
    sent = [("parallel_tool_calls" in knobs, knobs["user"]) for knobs in policy.knobs]
    assert sent == [(True, "me")] * 2 + [(False, "me")] * 4


def test_the_seed_of_the_run_is_that_of_the_first_reply():
    policy = tool_policy("draft 3")
    with_tools(policy, n=3, mode="bon", seed=7).invoke("q")
    assert [knobs["seed"] for knobs in policy.knobs] == [7, 8, 9]


class WithoutTemperature(BaseChatModel):
    @property
    def _llm_type(self):
        return "plain"

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        raise AssertionError

    def bind_tools(self, tools, **kwargs):
        return self.bind(tools=tools, **kwargs)


def test_a_knob_that_the_policy_can_not_take_is_named_before_it_is_asked():
    with pytest.raises(ConfigurationError, match="no way to take temperature"):
        with_tools(WithoutTemperature(), temperature=0.3).invoke("q")


@pytest.mark.parametrize(("most", "least"), [(4, 2), (6, 6), (9, 6), (10, 10), (13, 10)])
def test_the_first_reply_counts_for_the_budget_of_requests(most, least):
    """One reply, one more candidate, and four requests a step."""
    policy = tool_policy("draft 3")
    answer = with_tools(policy, n=2, depth=9, budget_requests=most).invoke("q")
    assert least <= len(policy.requests) <= most
    assert answer.response_metadata["tpo"]["stop_reason"] == "budget"


def test_the_first_reply_counts_for_the_budget_of_tokens():
    usage = {"input_tokens": 100, "output_tokens": 1, "total_tokens": 101}
    policy = tool_policy(AIMessage("draft 3", usage_metadata=usage))
    answer = with_tools(policy, n=2, depth=3, settings=TPOSettings(budget_tokens=102)).invoke("q")
    assert (len(policy.requests), answer.response_metadata["tpo"]["stop_reason"]) == (2, "budget")


@pytest.mark.parametrize("most", [1, 2])
def test_a_budget_that_the_first_reply_uses_up(most):
    with pytest.raises(BudgetError, match=f"budget_requests is {most}"):
        with_tools(tool_policy("draft 3"), n=3, budget_requests=most).invoke("q")
    answer = with_tools(tool_policy("draft 3"), n=1, budget_requests=most, mode="revision").invoke("q")
    assert (answer.text, answer.response_metadata["tpo"]["stop_reason"]) == ("draft 3", "budget")


def test_the_details_of_the_first_reply_are_not_told_as_those_of_all():
    details = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10, "input_token_details": {"cache_read": 5}}
    policy = tool_policy(AIMessage("draft 3", usage_metadata=details))
    usage = with_tools(policy, n=2, mode="bon").invoke("q").usage_metadata
    assert usage == {"input_tokens": 8, "output_tokens": 5, "total_tokens": 13}
    alone = with_tools(tool_policy(AIMessage("draft 3", usage_metadata=details)), n=1, mode="bon")
    assert alone.invoke("q").usage_metadata == details


def test_a_first_reply_that_hangs_ends(chat_server, chat_openai):
    server = chat_server(always="hang")
    with pytest.raises(PolicyError, match=r"no answer within 0\.2 s"):
        with_tools(chat_openai(server), timeout=0.2, max_retries=1).invoke("q")
    assert len(server.requests) == 2
    with pytest.raises(BudgetError, match="budget_seconds"):
        with_tools(chat_openai(server), budget_seconds=0.2).invoke("q")


def test_what_the_first_reply_finds_out_about_the_provider_holds_for_all_requests(chat_server, chat_openai):
    server = chat_server(refused_roles=["system"], refused_knobs=["max_tokens"])
    model = with_tools(chat_openai(server), n=2, mode="bon", max_tokens=50)
    model.invoke([SystemMessage("Be brief."), HumanMessage("q")])
    assert server.statuses == [400, 400, 200, 200]
    first, other = server.bodies[2:]
    assert first["messages"] == other["messages"] == [{"role": "user", "content": "Be brief.\n\nq"}]
    assert (first["max_completion_tokens"], other["max_completion_tokens"]) == (50, 50)


@pytest.mark.parametrize(("most", "statuses"), [(3, [503, 503]), (4, [503, 503, 200, 200])])
def test_each_time_that_the_first_reply_is_asked_for_counts_for_the_budget(chat_server, chat_openai, most, statuses):
    server = chat_server(faults=[ErrorAnswer(503, retry_after=0)] * 2)
    model = with_tools(chat_openai(server), n=2, depth=3, budget_requests=most, max_retries=2)
    if 200 in statuses:
        assert model.invoke("q").response_metadata["tpo"]["stop_reason"] == "budget"
    else:
        with pytest.raises(PolicyError, match="503"):
            model.invoke("q")
    assert server.statuses == statuses
