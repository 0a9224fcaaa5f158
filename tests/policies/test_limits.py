"""What is found out about a provider, and conversations without a system role."""

import pytest
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, SystemMessage

from tests.tpo_script import number_reward
from tpo_graph import create_tpo_graph
from tpo_graph.policies.failures import ProviderFailure
from tpo_graph.policies.limits import ProviderLimits, Refusal, fold_system, refused_part

IMAGE = {"type": "image", "url": "http://x/y.png"}
SYSTEM, USER, AI = SystemMessage("s"), HumanMessage("u"), AIMessage("a")


@pytest.mark.parametrize(
    ("messages", "folded"),
    [
        ([SYSTEM, USER], [HumanMessage("s\n\nu")]),
        ([ChatMessage(role="developer", content="d"), USER, AI], [HumanMessage("d\n\nu"), AI]),
        ([SYSTEM, SYSTEM, USER], [HumanMessage("s\n\ns\n\nu")]),
        ([USER, AI, SYSTEM, USER], [USER, AI, HumanMessage("s\n\nu")]),
        ([USER, AI, SYSTEM], [USER, AI, HumanMessage("s")]),
        ([SYSTEM, HumanMessage([IMAGE])], [HumanMessage([{"type": "text", "text": "s"}, IMAGE])]),
        ([SystemMessage(""), USER], [USER]),
        ([USER, AI, USER], [USER, AI, USER]),
        ([], []),
    ],
)
def test_the_system_text_leads_the_next_message_of_the_user(messages, folded):
    assert [(message.type, message.content) for message in fold_system(messages)] == [
        (message.type, message.content) for message in folded
    ]


@pytest.mark.parametrize(
    ("message", "status"),
    [
        ("System role not supported", 400),
        ("System role not supported", 500),
        ("Conversation roles must alternate user/assistant/user/assistant/...", 400),
        ("Only user and assistant roles are supported!", 500),
        ("After the optional system message, conversation roles must alternate user/assistant", 400),
        ("Developer instruction is not enabled for models/gemma-3-27b-it", 400),
        ("This model does not support system messages.", 400),
        ("Unsupported value: 'messages[0].role' does not support 'system' with this model.", 400),
        ("'system' is not a valid role", 400),
        ("Invalid role: system", 422),
        ("The role 'system' is not supported", 400),
    ],
)
def test_what_says_that_there_is_no_system_role(message, status):
    failure = ProviderFailure.of_response(status, message)
    learn = {"knobs": frozenset(), "limit_names": ()}
    assert refused_part(failure, frozenset(), **learn, messages=[SYSTEM, USER]) == "system role"
    assert refused_part(failure, {"system role"}, **learn, messages=[SYSTEM, USER]) is None
    assert refused_part(failure, frozenset(), **learn, messages=[USER, AI, USER]) is None


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ("Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead.", "max_tokens"),
        ('{"detail":[{"loc":["body","max_tokens"],"msg":"Extra inputs are not permitted"}]}', "max_tokens"),
        ("max_tokens is too large: 20000", "max_new_tokens"),
        ("Unsupported value: 'temperature'", None),
    ],
)
def test_the_token_limit_has_another_name_before_it_is_dropped(body, part):
    failure = ProviderFailure.of_response(400, body)
    names = ("max_tokens", "max_completion_tokens")
    assert refused_part(failure, frozenset(), knobs={"max_new_tokens"}, limit_names=names, messages=[USER]) == part


def test_a_limit_that_is_refused_again_is_doubted_ever_less():
    limits, asked = ProviderLimits(takes_n=True), []
    for _ in range(800):
        n = limits.most_to_ask_for(5) or 5
        asked.append(n)
        limits.learn(1, 1, Refusal(5, 1, is_sure=True) if n == 5 else None)
    assert [place for place, n in enumerate(asked) if n == 5] == [0, 100, 300, 700]


def test_a_client_that_can_not_ask_for_several_is_not_tried_again():
    limits = ProviderLimits(takes_n=False)
    for _ in range(300):
        assert limits.most_to_ask_for(5) == 1
        limits.learn(1, 1, None)


def test_a_whole_run_on_a_template_without_a_system_role(chat_server, chat_openai):
    server = chat_server(refused_roles=["system"], alternating=True)
    graph = create_tpo_graph(chat_openai(server), number_reward())
    result = graph.invoke({"messages": [("system", "Be kind."), ("user", "q")]})
    assert result["stop_reason"] == "depth"
    assert server.bodies[1]["messages"] == [{"role": "user", "content": "Be kind.\n\nq"}]
    assert (server.statuses.count(400), len(server.requests)) == (1, 8)
