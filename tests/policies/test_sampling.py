"""N completions from any chat model: the pieces a provider takes, the knobs it takes, and what failed."""

import asyncio

import pytest
from langchain_core.language_models import BaseChatModel, FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_openai import ChatOpenAI
from pydantic import Field, create_model

from tpo_graph.errors import ConfigurationError, PolicyError, TPOError
from tpo_graph.policies.providers import knob_fields, limit_names
from tpo_graph.policies.sampling import Sampler
from tpo_graph.settings import Sampling
from tpo_graph.testing import ErrorAnswer, FaultServer, ScriptedChatModel

ASK = [HumanMessage("hello there")]
PAPER = Sampling(temperature=0.7, top_p=0.95, max_new_tokens=2048)


@pytest.fixture
def start(chat_server):
    """Starts a server whose completions are `text 0`, `text 1` and so on."""
    return lambda **options: chat_server(**{"answer": lambda request, number: f"text {number}", **options})


def texts(draw):
    return [completion.text for completion in draw.completions]


async def test_n_completions_are_one_request(start, chat_openai):
    server = start()
    draw = await Sampler(chat_openai(server)).draw(ASK, 5, PAPER)
    assert texts(draw) == [f"text {number}" for number in range(5)]
    assert server.asked_n == [5]
    assert (draw.usage["requests"], draw.usage["input_tokens"], draw.usage["output_tokens"]) == (1, 2, 10)
    assert draw.usage["seconds"] > 0
    assert draw.errors == []


@pytest.mark.parametrize(
    ("most_n", "beyond", "n"),
    [
        (1, "refuse", 5),
        (8, "llama.cpp", 20),
        (3, "fewer", 8),
        (4, "refuse", 4),
    ],
)
async def test_a_cap_on_n_is_found_out_once(start, chat_openai, most_n, beyond, n):
    server = start(most_n=most_n, beyond_most_n=beyond)
    sampler = Sampler(chat_openai(server))
    first = await sampler.draw(ASK, n, PAPER)
    assert texts(first) == [f"text {number}" for number in range(n)]
    assert first.usage["requests"] == len(server.requests)
    assert first.usage["output_tokens"] == 2 * n
    assert first.errors == []
    if beyond == "fewer":  # once may be chance
        await sampler.draw(ASK, n, PAPER)
    before, refusals = len(server.requests), server.statuses.count(400)
    second = await sampler.draw(ASK, n, PAPER)
    assert len(texts(second)) == n
    assert server.statuses.count(400) == refusals
    assert all(size <= most_n for size in server.asked_n[before:])
    assert sum(server.asked_n[before:]) == n


async def test_a_cap_is_used_as_far_as_the_server_allows(start, chat_openai):
    server = start(most_n=8, beyond_most_n="llama.cpp")
    await Sampler(chat_openai(server)).draw(ASK, 16, PAPER)
    assert server.asked_n == [16, 8, 8]


async def test_a_cap_found_while_another_draw_is_under_way_is_not_forgotten(start, chat_openai):
    server = start(most_n=2)
    sampler = Sampler(chat_openai(server))
    server.first_token = 0.3
    single = asyncio.create_task(sampler.draw(ASK, 1, PAPER))
    await asyncio.to_thread(server.asked.wait, 10)
    server.first_token = 0.0
    await sampler.draw(ASK, 4, PAPER)
    await single
    refusals = server.statuses.count(400)
    await sampler.draw(ASK, 4, PAPER)
    assert server.statuses.count(400) == refusals


async def test_concurrent_draws_all_get_n(start, chat_openai):
    server = start(most_n=2, seconds=0.01)
    sampler = Sampler(chat_openai(server))
    draws = await asyncio.gather(*(sampler.draw(ASK, 5, PAPER) for _ in range(20)))
    assert [len(draw.completions) for draw in draws] == [5] * 20
    assert len({text for draw in draws for text in texts(draw)}) == 100


def seeded(server):
    """A server that draws completion i of a request with the seed of the request and i, as llama.cpp and vLLM do."""

    def write(request, number):
        if request is not server.last:
            server.last, server.first = request, number
        return f"drawn with {request.body['seed'] + number - server.first}"

    server.last, server.answer = None, write
    return server


@pytest.mark.parametrize(("most_n", "beyond"), [(None, "refuse"), (1, "refuse"), (8, "llama.cpp"), (3, "fewer")])
async def test_with_a_seed_n_completions_differ_and_come_again(start, chat_openai, most_n, beyond):
    server = seeded(start(most_n=most_n, beyond_most_n=beyond))
    sampler = Sampler(chat_openai(server))
    for _ in range(2):
        draw = await sampler.draw(ASK, 20, PAPER, seed=11)
        assert texts(draw) == [f"drawn with {11 + place}" for place in range(20)]


@pytest.mark.parametrize("most_n", [1, 8])
async def test_once_a_cap_is_known_a_seed_sends_the_requests_that_gave_the_first_completions(
    start, chat_openai, most_n
):
    server = start(most_n=most_n, beyond_most_n="llama.cpp")
    sampler = Sampler(chat_openai(server))
    await sampler.draw(ASK, 10, PAPER, seed=11)
    first = sorted((body.get("n", 1), body["seed"]) for body in server.bodies if body.get("n", 1) <= most_n)
    del server.requests[:]
    await sampler.draw(ASK, 10, PAPER, seed=11)
    assert sorted((body.get("n", 1), body["seed"]) for body in server.bodies) == first


async def test_a_refusal_that_is_not_about_n_does_not_stay(start, chat_openai):
    server = start(faults=["400"])
    sampler = Sampler(chat_openai(server))
    assert len((await sampler.draw(ASK, 5, PAPER)).completions) == 5
    del server.requests[:]
    assert len((await sampler.draw(ASK, 5, PAPER)).completions) == 5
    assert server.asked_n == [5]


async def test_fewer_completions_once_are_no_cap(start, chat_openai):
    server = start(faults=["fewer"])
    sampler = Sampler(chat_openai(server))
    for _ in range(3):
        assert len((await sampler.draw(ASK, 4, PAPER)).completions) == 4
    assert server.asked_n == [4, 2, 4, 4]


async def test_a_refusal_without_a_reason_that_comes_again_is_a_cap(start, chat_openai):
    server = start(faults=["400", None, None, None, "400"])
    sampler = Sampler(chat_openai(server))
    for _ in range(2):
        assert len((await sampler.draw(ASK, 5, PAPER)).completions) == 5
    assert server.asked_n == [5, 2, 2, 1] * 2
    await sampler.draw(ASK, 5, PAPER)
    assert sorted(server.asked_n[8:]) == [1, 2, 2]


async def test_a_server_error_that_names_n_is_a_refusal(start, chat_openai):
    server = start(most_n=1, refuses_with=500)
    sampler = Sampler(chat_openai(server))
    for _ in range(2):
        assert len((await sampler.draw(ASK, 3, PAPER)).completions) == 3
    assert server.asked_n == [3, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(("limit", "completions", "requests"), [(1, 1, 2), (4, 3, 4), (6, 5, 6), (None, 5, 6)])
async def test_no_more_requests_are_sent_than_may_be(start, chat_openai, limit, completions, requests):
    server = start(most_n=1)
    draw = await Sampler(chat_openai(server)).draw(ASK, 5, PAPER, most_requests=limit)
    assert (len(draw.completions), draw.usage["requests"], len(server.requests)) == (completions, requests, requests)
    assert draw.errors == []


async def test_requests_that_fail_count_among_those_that_may_be_sent():
    model = ScriptedChatModel(lambda messages, number: ConnectionError("gone") if number < 2 else f"text {number}")
    with pytest.raises(PolicyError, match="gone"):
        await Sampler(model).draw(ASK, 5, PAPER, most_requests=2)
    assert len(model.requests) == 2


async def test_one_completion_sends_no_n(start, chat_openai):
    server = start()
    await Sampler(chat_openai(server, n=4)).draw(ASK, 1, PAPER)
    assert "n" not in server.bodies[0]


async def test_models_without_n_are_asked_concurrently():
    model = ScriptedChatModel([f"text {number}" for number in range(4)])
    draw = await Sampler(model).draw(ASK, 4, PAPER, seed=7)
    assert sorted(texts(draw)) == [f"text {number}" for number in range(4)]
    assert draw.usage["requests"] == 4
    assert sorted(knobs["seed"] for knobs in model.knobs) == [7, 8, 9, 10]


async def test_models_without_any_of_the_knobs_can_be_used():
    draw = await Sampler(FakeListChatModel(responses=["a", "b", "c"])).draw(ASK, 3, PAPER, seed=7)
    assert sorted(texts(draw)) == ["a", "b", "c"]


@pytest.mark.parametrize("knob", ["temperature", "top_p", "max_new_tokens"])
async def test_a_knob_that_a_person_set_is_never_dropped(knob):
    sampling = Sampling(**{knob: 1}, explicit=frozenset({knob}))
    with pytest.raises(ConfigurationError, match=f"FakeListChatModel has no way to take {knob}=1") as caught:
        await Sampler(FakeListChatModel(responses=["a"])).draw(ASK, 2, sampling)
    assert caught.value.hint


@pytest.mark.parametrize("field", ["max_tokens", "max_output_tokens", "num_predict", "max_new_tokens"])
async def test_the_token_limit_goes_to_the_field_that_a_model_has(field):
    model = limited_model(field)()
    await Sampler(model).draw(ASK, 1, PAPER)
    assert model.seen == [2048]
    model = limited_model(field)(**{field: 100})
    await Sampler(model).draw(ASK, 1, PAPER)
    assert model.seen == [100]
    await Sampler(model).draw(ASK, 1, Sampling(max_new_tokens=50, explicit=frozenset({"max_new_tokens"})))
    assert model.seen == [100, 50]


def limited_model(field):
    """A chat model class whose token limit has this name."""

    class Limited(BaseChatModel):
        seen: list[int | None] = Field(default_factory=list)

        def _generate(self, messages, stop=None, run_manager=None, **kwargs):
            self.seen.append(getattr(self, field))
            return ChatResult(generations=[ChatGeneration(message=AIMessage("x"))])

        @property
        def _llm_type(self):
            return "limited"

    return create_model("Named", __base__=Limited, **{field: (int | None, None)})


@pytest.mark.parametrize(
    ("refused", "left"),
    [
        (["top_p"], {"temperature", "max_tokens"}),
        (["temperature", "top_p"], {"max_tokens"}),
        (["max_tokens"], {"temperature", "top_p", "max_completion_tokens"}),
        (["max_tokens", "max_completion_tokens"], {"temperature", "top_p"}),
    ],
)
async def test_a_default_knob_that_the_provider_refuses_is_left_out_from_then_on(start, chat_openai, refused, left):
    server = start(refused_knobs=refused)
    sampler = Sampler(chat_openai(server))
    draw = await sampler.draw(ASK, 3, PAPER)
    assert len(draw.completions) == 3
    assert draw.usage["requests"] == len(server.requests) == 1 + len(refused)
    await sampler.draw(ASK, 3, PAPER)
    assert len(server.requests) == 2 + len(refused)
    assert {"temperature", "top_p", "max_tokens", "max_completion_tokens"} & server.bodies[-1].keys() == left
    assert server.asked_n[-1] == 3


async def test_a_token_limit_that_a_person_set_has_another_name_and_is_not_dropped(start, chat_openai):
    sampling = Sampling(max_new_tokens=50, explicit=frozenset({"max_new_tokens"}))
    server = start(refused_knobs=["max_tokens"])
    await Sampler(chat_openai(server)).draw(ASK, 1, sampling)
    assert [body.get("max_completion_tokens") for body in server.bodies] == [None, 50]
    with pytest.raises(PolicyError, match="max_completion_tokens"):
        await Sampler(chat_openai(start(refused_knobs=["max_tokens", "max_completion_tokens"]))).draw(ASK, 1, sampling)


@pytest.mark.parametrize(
    "policy",
    [
        lambda model: model,
        lambda model: model.model_copy(update={"extra_body": {"ttl": 5}}),
        lambda model: model.bind(extra_body={"ttl": 5}),
        lambda model: model.with_retry(),
        lambda model: model.bind(extra_body={"ttl": 5}).with_retry(),
    ],
)
async def test_a_server_given_by_its_address_gets_the_name_that_every_server_knows(start, chat_openai, policy):
    server = start(strict=False)
    await Sampler(policy(chat_openai(server))).draw(ASK, 1, PAPER)
    body = server.bodies[0]
    assert (body["max_tokens"], body.get("ttl") in (None, 5), "max_completion_tokens" in body) == (2048, True, False)


@pytest.mark.parametrize("own", [{"max_tokens": 99}, {"extra_body": {"max_tokens": 99}}])
async def test_the_models_own_token_limit_reaches_the_server_too(start, chat_openai, own):
    server = start()
    await Sampler(chat_openai(server, **own)).draw(ASK, 1, Sampling())
    assert (server.bodies[0]["max_tokens"], "max_completion_tokens" in server.bodies[0]) == (99, False)


def test_openai_itself_gets_the_name_that_its_newer_models_know():
    model = ChatOpenAI(model="o3", api_key="k")
    assert knob_fields(model, {"max_new_tokens": 5}, frozenset()) == {"max_tokens": 5}
    assert limit_names(model) == ("max_completion_tokens", "max_tokens")
    renamed = knob_fields(model, {"max_new_tokens": 5}, frozenset(), {"max_completion_tokens"})
    assert renamed == {"max_tokens": None, "extra_body": {"max_tokens": 5}}


@pytest.mark.parametrize("status", [400, 500])
async def test_a_template_without_a_system_role_gets_the_text_in_the_first_message(start, chat_openai, status):
    server = start(refused_roles=["system"], refuses_with=status)
    sampler = Sampler(chat_openai(server))
    for _ in range(2):
        draw = await sampler.draw([SystemMessage("Be kind."), *ASK], 3, PAPER)
        assert len(draw.completions) == 3
    assert server.bodies[-1]["messages"] == [{"role": "user", "content": "Be kind.\n\nhello there"}]
    assert server.asked_n == [3, 3, 3]


async def test_a_larger_number_is_tried_again_later(start, chat_openai):
    server = start(most_n=1)
    sampler = Sampler(chat_openai(server))
    await sampler.draw(ASK, 5, PAPER)
    server.most_n = None
    for _ in range(22):
        assert len((await sampler.draw(ASK, 5, PAPER)).completions) == 5
    assert server.asked_n == [5] + [1] * 100 + [5] * 3


@pytest.mark.parametrize("fault", ["malformed", "null choices", "no choices", "500", "429", "drop"])
async def test_nothing_is_learned_from_what_passes(start, chat_openai, fault):
    server = start(faults=[fault] * 3)
    sampler = Sampler(chat_openai(server))
    for _ in range(3):
        with pytest.raises(PolicyError):
            await sampler.draw(ASK, 5, PAPER)
    await sampler.draw(ASK, 5, PAPER)
    assert server.asked_n == [5] * 4


async def test_a_refused_knob_that_a_person_set_is_an_error_with_a_hint(start, chat_openai):
    sampling = Sampling(temperature=0.1, explicit=frozenset({"temperature"}))
    with pytest.raises(PolicyError, match="temperature") as caught:
        await Sampler(chat_openai(start(refused_knobs=["temperature"]))).draw(ASK, 2, sampling)
    assert "none" in caught.value.hint


async def test_the_callers_model_is_not_changed(start, chat_openai):
    model = chat_openai(start(), temperature=0.3, n=2)
    before = model.model_dump(mode="python", exclude={"client", "async_client", "root_client", "root_async_client"})
    await Sampler(model).draw(ASK, 5, PAPER, seed=1)
    after = model.model_dump(mode="python", exclude={"client", "async_client", "root_client", "root_async_client"})
    assert before == after


async def test_bound_arguments_are_sent(start, chat_openai):
    server = start()
    model = chat_openai(server).bind(user="me", stop=["END"]).bind(logit_bias={"1": 2})
    draw = await Sampler(model).draw(ASK, 3, PAPER)
    assert len(draw.completions) == 3
    assert (server.bodies[0]["user"], server.bodies[0]["stop"]) == ("me", ["END"])
    assert server.bodies[0]["logit_bias"] == {"1": 2}


async def test_a_bound_n_does_not_change_how_many_come(start, chat_openai):
    server = start()
    draw = await Sampler(chat_openai(server).bind(n=2)).draw(ASK, 5, PAPER)
    assert (len(draw.completions), server.asked_n) == (5, [5])


async def test_bound_streaming_does_not_merge_texts(start, chat_openai):
    server = start()
    draw = await Sampler(chat_openai(server, streaming=True).bind(stream=True)).draw(ASK, 3, PAPER)
    assert texts(draw) == ["text 0", "text 1", "text 2"]


@pytest.mark.parametrize("bind", [lambda model: model, lambda model: model.with_retry()])
async def test_a_bound_token_limit_is_the_one_that_is_sent(start, chat_openai, bind):
    server = start()
    await Sampler(bind(chat_openai(server).bind(max_tokens=64, user="me"))).draw(ASK, 1, PAPER)
    body = server.bodies[0]
    assert (body["max_tokens"], body.get("max_completion_tokens"), body["user"]) == (64, None, "me")


async def test_a_token_limit_that_one_prompt_has_no_room_for_is_sent_again(chat_openai):
    no_room = ErrorAnswer(400, "This model's maximum context length is 4096 tokens, and max_tokens is too large")
    with FaultServer(script=[no_room]) as server:
        sampler = Sampler(chat_openai(server))
        for _ in range(2):
            await sampler.draw(ASK, 1, PAPER)
    assert [body.get("max_tokens") for body in server.bodies] == [2048, None, 2048]


@pytest.mark.parametrize("shape", ["openai", "mistral", "detail", "string", "list", "text", "html"])
async def test_a_refusal_in_any_shape_is_learned_from(chat_openai, shape):
    words = "temperature is not supported by this model"
    with FaultServer(refused_fields={"temperature": ErrorAnswer(422, words, shape, "temperature")}) as server:
        sampler = Sampler(chat_openai(server))
        for _ in range(2):
            assert len((await sampler.draw(ASK, 2, PAPER)).completions) == 2
        with pytest.raises(PolicyError, match=words):
            await sampler.draw(ASK, 2, Sampling(temperature=0.1, explicit=frozenset({"temperature"})))
    assert ["temperature" in body for body in server.bodies] == [True, False, False, True]


async def test_a_server_that_does_not_heed_the_newer_name_keeps_the_token_limit(chat_openai):
    with FaultServer(lambda *_: "one two three four", ignored_fields=["max_completion_tokens"]) as server:
        draw = await Sampler(chat_openai(server)).draw(ASK, 1, Sampling(max_new_tokens=2))
    assert [(len(completion.text.split()), completion.truncated) for completion in draw.completions] == [(2, True)]


@pytest.mark.parametrize(
    ("wrap", "temperature"),
    [
        (lambda m: m.with_retry(), 0.7),
        (lambda m: m.with_fallbacks([m]), 0.7),
        (lambda m: m | (lambda x: x), None),
    ],
    ids=["retry", "fallbacks", "chain"],
)
async def test_wrapped_models_are_asked_n_times_with_the_settings_of_the_phase(wrap, temperature):
    model = ScriptedChatModel([f"text {number}" for number in range(4)])
    draw = await Sampler(wrap(model)).draw(ASK, 4, PAPER)
    assert sorted(texts(draw)) == [f"text {number}" for number in range(4)]
    assert (draw.usage["requests"], draw.usage["input_tokens"], draw.usage["output_tokens"]) == (4, 8, 8)
    assert model.knobs[0]["temperature"] == temperature


async def test_fallbacks_are_used_when_the_first_model_fails():
    first, second = ScriptedChatModel(lambda *_: ConnectionError("gone")), ScriptedChatModel(lambda *_: "second")
    draw = await Sampler(first.with_fallbacks([second])).draw(ASK, 2, Sampling())
    assert texts(draw) == ["second", "second"]


@pytest.mark.parametrize("policy", ["gpt-4o", None, object(), lambda messages: "x"])
def test_what_is_no_chat_model_is_refused(policy):
    with pytest.raises(ConfigurationError, match="must be a LangChain chat model"):
        Sampler(policy)


async def test_a_policy_that_returns_no_message_is_an_error():
    policy = ScriptedChatModel(["a"]) | (lambda message: {"a": 1})
    with pytest.raises(ConfigurationError, match="'dict', not a message"):
        await Sampler(policy).draw(ASK, 1, Sampling())


async def test_half_a_character_is_none_that_a_later_request_could_not_hold():
    replies = ["warm \ud83d", "warm \ud83d\ude00", "\N{GRINNING FACE} 日本語 \x00"]
    draw = await Sampler(ScriptedChatModel(replies)).draw(ASK, 3, PAPER)
    assert texts(draw) == ["warm \ufffd", "warm \N{GRINNING FACE}", "\N{GRINNING FACE} 日本語 \ufffd"]


async def test_null_contents_are_empty_texts(start, chat_openai):
    draw = await Sampler(chat_openai(start(answer=lambda request, number: None if number else "a"))).draw(ASK, 3, PAPER)
    assert texts(draw) == ["a", "", ""]


async def test_completions_that_reached_the_token_limit_are_truncated(start, chat_openai):
    reasons = {"text 0": "stop", "text 1": "length", "text 2": "content_filter"}
    draw = await Sampler(chat_openai(start(finish_reason=reasons.get))).draw(ASK, 3, PAPER)
    assert [completion.truncated for completion in draw.completions] == [False, True, False]


async def test_with_a_response_format_one_that_was_cut_leaves_the_others(start, chat_openai):
    server = start(finish_reason=lambda text: "length" if text == "text 1" else "stop")
    draw = await Sampler(chat_openai(server).bind(response_format={"type": "json_object"})).draw(ASK, 3, PAPER)
    assert [(completion.text, completion.truncated) for completion in draw.completions] == [
        ("text 0", False),
        ("text 1", True),
        ("text 2", False),
    ]
    assert (draw.usage["requests"], draw.usage["input_tokens"], draw.usage["output_tokens"]) == (1, 2, 6)
    assert (draw.errors, server.asked_n) == ([], [3])


@pytest.mark.parametrize(
    ("metadata", "truncated"),
    [
        ({"finish_reason": "MAX_TOKENS"}, True),
        ({"stop_reason": "max_tokens"}, True),
        ({"stop_reason": "end_turn"}, False),
        ({"done_reason": "length"}, True),
        ({}, False),
    ],
)
async def test_every_providers_word_for_the_token_limit_is_understood(metadata, truncated):
    draw = await Sampler(ScriptedChatModel([AIMessage("a", response_metadata=metadata)])).draw(ASK, 1, PAPER)
    assert draw.completions[0].truncated is truncated


async def test_a_passing_failure_of_the_provider_is_retried_by_the_model(start, chat_openai):
    draw = await Sampler(chat_openai(start(faults=["429"]), max_retries=2)).draw(ASK, 3, PAPER)
    assert len(draw.completions) == 3


async def test_some_of_n_failing_is_no_failure(start, chat_openai):
    server = start(most_n=1)
    sampler = Sampler(chat_openai(server))
    await sampler.draw(ASK, 2, PAPER)
    server.script = ["500", None, "429"]
    draw = await sampler.draw(ASK, 5, PAPER)
    assert (len(draw.completions), len(draw.errors), draw.usage["requests"]) == (3, 2, 5)


@pytest.mark.parametrize(
    ("fault", "message", "hint"),
    [
        ("401", "AuthenticationError: .*Incorrect API key", "API key"),
        ("404", "NotFoundError: .*does not exist", "model name"),
        ("429", "RateLimitError: .*Rate limit", "wait"),
        ("500", "500", ""),
        ("drop", ".", "server"),
        ("malformed", ".", ""),
        ("null choices", "choices", ""),
        ("no choices", "no completion", ""),
    ],
)
async def test_a_providers_failure_is_a_policy_error_with_a_hint(start, chat_openai, fault, message, hint):
    with pytest.raises(PolicyError, match=message) as caught:
        await Sampler(chat_openai(start(always=fault))).draw(ASK, 2, PAPER)
    assert hint in caught.value.hint
    assert "\n" not in str(caught.value)
    assert fault == "no choices" or caught.value.__cause__ is not None


@pytest.mark.parametrize("fault", ["401", "404", "500", "drop"])
async def test_a_failure_that_is_not_about_n_is_not_asked_again_in_pieces(start, chat_openai, fault):
    server = start(always=fault)
    with pytest.raises(PolicyError):
        await Sampler(chat_openai(server)).draw(ASK, 8, PAPER)
    assert len(server.requests) == 1


async def test_no_server_is_a_policy_error_with_a_hint(start, chat_openai):
    model = chat_openai(start(), base_url="http://127.0.0.1:9/v1")
    with pytest.raises(PolicyError) as caught:
        await Sampler(model).draw(ASK, 2, PAPER)
    assert "Is the server at" in caught.value.hint


async def test_a_server_that_hangs_is_a_policy_error_with_a_hint(start, chat_openai):
    with pytest.raises(PolicyError, match="Timeout") as caught:
        await Sampler(chat_openai(start(always="hang"), timeout=0.2)).draw(ASK, 2, PAPER)
    assert "did not answer in time" in caught.value.hint


async def test_text_that_no_request_can_carry_is_an_error_of_this_package(start, chat_openai):
    with pytest.raises(TPOError):
        await Sampler(chat_openai(start())).draw([HumanMessage("lone \ud800 surrogate")], 2, PAPER)


async def test_a_programming_error_in_the_model_names_itself():
    with pytest.raises(PolicyError, match="ZeroDivisionError: division by zero") as caught:
        await Sampler(ScriptedChatModel(lambda *_: 1 / 0)).draw(ASK, 2, PAPER)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


async def test_cancellation_is_not_an_error_of_the_provider(start, chat_openai):
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(Sampler(chat_openai(start(always="hang"))).draw(ASK, 2, PAPER), 0.2)


async def test_the_usage_of_models_that_repeat_it_on_every_generation_counts_once():
    class Repeats(ScriptedChatModel):
        n: int = 1

        def _generate(self, messages, stop=None, run_manager=None, **kwargs):
            usage = {"input_tokens": 10, "output_tokens": 6, "total_tokens": 16}
            made = [ChatGeneration(message=AIMessage(f"t{place}", usage_metadata=usage)) for place in range(self.n)]
            return ChatResult(generations=made)

    draw = await Sampler(Repeats([])).draw(ASK, 3, PAPER)
    assert (len(draw.completions), draw.usage["input_tokens"], draw.usage["output_tokens"]) == (3, 10, 6)
