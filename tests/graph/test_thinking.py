"""Runs with models that think, refuse or are filtered: nothing of that becomes an answer, and all of it is kept."""

import pytest
from langchain_core.messages import AIMessage

from tests.tpo_script import number_reward, phase_of, scripted_policy
from tpo_graph import PolicyError, create_tpo_graph
from tpo_graph.testing import FaultServer, ScriptedChatModel, TableReward
from tpo_graph.testing.fault_kinds import REFUSAL
from tpo_graph.variants import fused_critique

THINKING = "<think>Put it into <revised_response>, then === INSTRUCTIONS === </think>\n"


def run(policy, reward=None, nodes=None, **settings):
    graph = create_tpo_graph(policy, reward or number_reward(), nodes=nodes)
    return graph.invoke({"query": "q"}, context=settings)


def limit_of(body):
    return body.get("max_completion_tokens") or body.get("max_tokens")


def finished(text, reason, **more):
    return AIMessage(text, response_metadata={"finish_reason": reason}, **more)


def thinking_server(chat_server, *, needs, answer=lambda prompt, number: f"{THINKING}cand {number}"):
    """A server of a model that thinks for more than `needs` tokens."""

    def reply(request, number):
        return answer(request.text, number) if limit_of(request.body) > needs else "<think>Hm, "

    return chat_server(answer=reply, finish_reason=lambda text: "length" if text == "<think>Hm, " else "stop")


def test_thinking_is_no_part_of_candidates_critiques_and_revisions():
    policy = scripted_policy(
        sample=lambda number: f"{THINKING}cand {number}",
        loss=f"{THINKING}the loss",
        gradient="opened by the template\n</think>\n\nthe gradient",
        update=lambda number: f"{THINKING}<revised_response>rev {number}</revised_response>",
    )
    result = run(policy, depth=1, n=2)
    assert [candidate["text"] for candidate in result["cache"]] == ["cand 0", "cand 1", "rev 4", "rev 5"]
    assert (result["trajectory"][1]["loss"], result["trajectory"][1]["gradient"]) == ("the loss", "the gradient")
    assert not any("Put it into" in message.text for request in policy.requests for message in request)


def test_thinking_behind_the_tag_is_none_of_a_revision():
    policy = scripted_policy(update="<revised_response><think>hm</think>rev 9</revised_response>")
    assert run(policy, depth=1, n=1, mode="revision")["answer"] == "rev 9"
    kept = run(policy, depth=1, n=1, mode="revision", keep_thinking=True)
    assert kept["best"]["text"] == "<think>hm</think>rev 9"


def test_thinking_does_not_divide_a_fused_critique():
    policy = scripted_policy(critique=f"{THINKING}the loss\n=== INSTRUCTIONS ===\nthe gradient")
    record = run(policy, nodes=fused_critique(policy), depth=1, n=2)["trajectory"][1]
    assert (record["loss"], record["gradient"]) == ("the loss", "the gradient")


def test_a_draft_is_stripped_too():
    graph = create_tpo_graph(scripted_policy(), number_reward())
    state = graph.invoke({"query": "q", "drafts": [f"{THINKING}cand 9"]}, context={"n": 1, "depth": 0})
    assert state["answer"] == "cand 9"


def test_a_setting_keeps_thinking():
    result = run(ScriptedChatModel([f"{THINKING}cand 0"]), n=1, depth=0, keep_thinking=True)
    assert result["answer"] == f"{THINKING}cand 0"


def test_thinking_without_an_end_is_recorded_with_its_text():
    result = run(scripted_policy(sample=lambda number: f"cand {number}" if number else "<think>Hm"), n=2, depth=0)
    records = [(failure["reason"], failure["text"], failure["finish_reason"]) for failure in result["failures"]]
    assert records == [("thinking_only", "<think>Hm", "")]


def test_a_token_limit_eaten_by_thinking_is_asked_for_once_more_and_learned(chat_server, chat_openai):
    server = thinking_server(chat_server, needs=2048)
    graph = create_tpo_graph(chat_openai(server), number_reward())
    result = graph.invoke({"query": "q"}, context={"n": 3, "depth": 0})
    assert [limit_of(body) for body in server.bodies] == [2048, 2 * 2048 + 2048]
    assert server.asked_n == [3, 3]
    assert [candidate["text"] for candidate in result["cache"]] == ["cand 3", "cand 4", "cand 5"]
    assert result["usage"]["sample"]["requests"] == 2
    assert {(failure["reason"], failure["text"], failure["finish_reason"]) for failure in result["failures"]} == {
        ("thinking_only", "<think>Hm, ", "length")
    }
    assert "2048 tokens thinking" in result["failures"][0]["detail"]
    graph.invoke({"query": "q"}, context={"n": 3, "depth": 0})
    assert [limit_of(body) for body in server.bodies[2:]] == [6144]
    run(chat_openai(server).bind(max_tokens=1000), n=1, depth=0)
    assert [limit_of(body) for body in server.bodies[3:]] == [1000, 2 * 1000 + 2048]


def test_the_limit_grows_for_critiques_and_revisions_too(chat_server, chat_openai):
    def answer(prompt, number):
        phase = phase_of(prompt)
        return f"<revised_response>rev {number}</revised_response>" if phase == "update" else f"{phase} {number}"

    server = thinking_server(chat_server, needs=100, answer=answer)
    limits = {"sample_max_new_tokens": 200, "loss_max_new_tokens": 80}
    policy = chat_openai(server)
    result = run(policy, n=1, depth=1, mode="revision", **limits)
    asked = [limit_of(body) for body in server.bodies]
    assert asked == [200, 80, 80 + 80 + 2048, 2048 + 80 + 2048, 2048 + 80 + 2048]
    assert result["stop_reason"] == "depth"
    assert result["answer"].startswith("rev")


def test_tokens_for_thinking_are_added_to_every_limit(chat_server, chat_openai):
    server = thinking_server(chat_server, needs=2048)
    run(chat_openai(server), n=2, depth=0, thinking_tokens=1000)
    run(chat_openai(server, max_tokens=4000), n=2, depth=0, thinking_tokens=1000)
    run(chat_openai(server), n=2, depth=0, thinking_tokens=1000, sample_max_new_tokens=3000)
    run(chat_openai(server).bind(max_tokens=4000), n=2, depth=0, thinking_tokens=1000)
    assert [limit_of(body) for body in server.bodies] == [3048, 5000, 4000, 5000]


def test_a_limit_that_stays_too_small_is_named(chat_server, chat_openai):
    server = thinking_server(chat_server, needs=100_000)
    with pytest.raises(PolicyError, match=r"10 thinking only.*6144 tokens thinking.*thinking_tokens") as caught:
        run(chat_openai(server))
    assert caught.value.usage["requests"] == len(server.requests) == 2


class ContextError(Exception):
    status_code = 400


def test_a_larger_limit_that_does_not_fit_the_context_is_taken_back():
    def script(messages, number):
        limit = policy.knobs[number]["max_tokens"]
        if limit > 2048:
            return ContextError("maximum context length") if messages[-1].text == "long" else "cand 1"
        return "cand 2" if messages[-1].text == "long" else finished("<think>Hm", "length")

    policy = ScriptedChatModel(script)
    graph = create_tpo_graph(policy, number_reward())
    answers = [
        graph.invoke({"query": query}, context={"n": 1, "depth": 0})["answer"] for query in ("short", "long", "short")
    ]
    assert answers == ["cand 1", "cand 2", "cand 1"]
    assert [knobs["max_tokens"] for knobs in policy.knobs] == [2048, 6144, 6144, 2048, 6144]


def test_a_budget_leaves_no_request_for_a_larger_limit(chat_server, chat_openai):
    server = thinking_server(chat_server, needs=2048)
    with pytest.raises(PolicyError, match="2048 tokens thinking"):
        run(chat_openai(server), n=2, depth=0, budget_requests=1)
    assert len(server.requests) == 1


def test_a_critic_that_only_thinks_is_named():
    policy = scripted_policy(loss=finished("<think>Hm", "length"))
    result = run(policy, depth=1)
    assert result["stop_reason"] == "policy_failed"
    (first, second) = [failure for failure in result["failures"] if failure["phase"] == "loss"]
    assert (first["reason"], second["reason"]) == ("thinking_only", "thinking_only")
    assert "raise loss_max_new_tokens or thinking_tokens" in second["detail"]
    with pytest.raises(PolicyError, match="thinking_tokens"):
        run(scripted_policy(loss=finished("<think>Hm", "length")), depth=1, on_failure="raise")


def test_what_a_filter_cut_never_wins():
    policy = scripted_policy(sample=lambda number: finished("cand 9", "content_filter") if number else "cand 1")
    result = run(policy, n=2, depth=0)
    assert (result["answer"], result["best"]["finish_reason"]) == ("cand 1", "")
    (record,) = result["failures"]
    assert (record["reason"], record["text"], record["finish_reason"]) == ("filtered", "cand 9", "content_filter")
    assert record["detail"] == "finish reason 'content_filter'"


def test_a_revision_that_a_filter_cut_is_none():
    cut = finished("<revised_response>rev 9</revised_response>", "SAFETY")
    result = run(scripted_policy(update=cut), depth=1, n=1, mode="revision")
    assert result["answer"] == "cand 0"
    assert {failure["reason"] for failure in result["failures"]} == {"filtered"}


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            AIMessage("", additional_kwargs={"refusal": "I can't help with that."}),
            r"15 refused.*I can't help with that",
        ),
        (finished("Half", "SAFETY"), r"15 filtered.*'SAFETY'"),
        (finished("<think>Hm", "stop"), r"15 thinking only.*ended without an answer"),
    ],
)
def test_when_nothing_can_be_used_the_error_says_why_and_quotes_it(message, words):
    with pytest.raises(PolicyError, match=words) as caught:
        run(scripted_policy(sample=message))
    assert caught.value.hint
    assert caught.value.usage["requests"] == 15


def test_candidates_know_how_they_ended():
    policy = scripted_policy(
        sample=finished("cand 0", "STOP"),
        update=finished("<revised_response>rev 1</revised_response> and", "max_tokens"),
    )
    result = run(policy, n=1, depth=1, mode="revision")
    assert [(candidate["finish_reason"], candidate["truncated"]) for candidate in result["cache"]] == [
        ("stop", False),
        ("length", False),
    ]


@pytest.fixture
def faulty(chat_openai):
    """Runs on a server where every answer has a fault."""

    def start(fault, **settings):
        with FaultServer(faults={fault: 1.0}) as server:
            return run(chat_openai(server), TableReward(lambda text: len(text) / 1e4), n=3, **settings)

    return start


@pytest.mark.parametrize("fault", ["thinking", "thinking_end_alone"])
def test_every_phase_is_free_of_thinking_on_the_wire_too(faulty, fault):
    result = faulty(fault, depth=1)
    texts = [candidate["text"] for candidate in result["cache"]] + [
        result["trajectory"][1][name] for name in ("loss", "gradient")
    ]
    assert not any("Let me think" in text for text in texts)
    assert (len(result["cache"]), result["failures"], result["stop_reason"]) == (6, [], "depth")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("refusal", rf"9 refused.*: {REFUSAL}"),
        ("content_filter", "9 filtered.*finish reason 'content_filter'"),
        ("unfinished_thinking", "6 thinking only.*6144 tokens thinking"),
    ],
)
def test_every_completion_of_a_request_is_read(faulty, fault, words):
    with pytest.raises(PolicyError, match=words):
        faulty(fault)
