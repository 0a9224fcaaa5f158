"""What a client gets: answers whole and in pieces, from OpenAI's own client."""

import json

import openai
import pytest
from langchain_core.messages import AIMessage

from tests.tpo_script import phases_asked, scripted_policy
from tpo_graph import TPOSettings
from tpo_graph.serving import Limits


def test_an_answer_with_its_usage_and_its_reward(serve):
    policy = scripted_policy()
    answer = serve(policy).chat()
    assert (answer.object, answer.model, len(answer.choices)) == ("chat.completion", "tpo-d1-n2", 1)
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "rev 5", "stop")
    # 2 candidates, loss, gradient, 2 revisions
    assert phases_asked(policy) == ["sample", "sample", "loss", "gradient", "update", "update"]
    usage = answer.usage
    read = sum(len(message.text.split()) for messages in policy.requests for message in messages)
    assert (usage.prompt_tokens, usage.total_tokens) == (read, read + usage.completion_tokens)
    record = answer.tpo
    assert (record["reward"], record["stop_reason"], record["steps"]) == (5.0, "depth", 1)
    assert [step["best_reward"] for step in record["trajectory"]] == [1.0, 5.0]
    assert record["trajectory"][1]["loss"] == "the loss"


@pytest.mark.parametrize(("word", "reason"), [("MAX_TOKENS", "length"), ("end_turn", "stop"), ("error", "length")])
def test_the_finish_reason_is_that_of_the_answer(serve, word, reason):
    policy = scripted_policy(sample=AIMessage("cand 1", response_metadata={"finish_reason": word}))
    assert serve(policy).chat(model="bon-1").choices[0].finish_reason == reason


def test_a_refusal_by_all_is_an_error_that_quotes_it(serve):
    policy = scripted_policy(sample=AIMessage("", additional_kwargs={"refusal": "I can't help with that."}))
    with pytest.raises(openai.APIStatusError, match=r"6 refused.*I can't help with that") as caught:
        serve(policy).chat()
    assert caught.value.status_code == 502


def test_usage_is_the_sum_that_the_provider_counted(serve, chat_server, chat_openai):
    behind = chat_server()
    answer = serve(chat_openai(behind)).chat(model="tpo-d2-n5")
    read = sum(len(request.text.split()) for request in behind.requests)
    assert len(behind.requests) == 7
    assert answer.usage.prompt_tokens == read


def test_without_counts_there_is_no_usage(serve, chat_server, chat_openai):
    answer = serve(chat_openai(chat_server(tells_usage=False))).chat(model="bon-2")
    assert answer.usage is None


async def test_the_async_client(serve):
    running = serve(scripted_policy())
    async with openai.AsyncOpenAI(base_url=f"{running.root}/v1", api_key="any", max_retries=0) as client:
        messages = [{"role": "user", "content": "q"}]
        answer = await client.chat.completions.create(model="bon-3", messages=messages)
        assert (answer.choices[0].message.content, answer.tpo["stop_reason"]) == ("cand 2", "bon")
        stream = await client.chat.completions.create(model="bon-3", messages=messages, stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(pieces) == "cand 5"


def test_a_stream(serve):
    chunks = list(serve(scripted_policy()).chat(stream=True))
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["", "rev ", "5", None]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, "stop"]
    assert chunks[-1].tpo["reward"] == 5.0
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_ends_with_its_usage_when_asked(serve):
    running = serve(scripted_policy())
    chunks = list(running.chat(stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage == running.chat().usage


def test_the_events_of_a_stream(serve):
    body = {"model": "tpo-d1-n2", "messages": [{"role": "user", "content": "q"}], "stream": True}
    running = serve(scripted_policy())
    with running.http.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = [line for line in response.iter_lines() if line]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert lines[:2] == [": step 0: best reward +1", ": step 1: best reward +5"]
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line.removeprefix("data: ")) for line in lines[2:-1])


def test_a_silent_stream_gets_comments(serve, chat_server, chat_openai):
    policy = chat_openai(chat_server(seconds=0.3))
    running = serve(policy, limits=Limits(keep_alive_seconds=0.05))
    body = {"model": "bon-1", "messages": [{"role": "user", "content": "q"}], "stream": True}
    with running.http.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines.count(": working") >= 3


def test_openais_own_stream_helper_puts_it_together(serve):
    running = serve(scripted_policy())
    messages = [{"role": "user", "content": "q"}]
    with running.client.chat.completions.stream(model="tpo-d1-n2", messages=messages) as stream:
        answer = stream.get_final_completion()
    assert answer.choices[0].message.content == "rev 5"


def test_a_policy_is_chosen_by_name(serve):
    running = serve({"one": scripted_policy(), "two": scripted_policy(sample="other 9")})
    answers = [running.chat(model=name) for name in ("bon-1", "bon-1/two", "bon-1/one")]
    assert [answer.model for answer in answers] == ["bon-1", "bon-1/two", "bon-1/one"]
    assert [answer.choices[0].message.content for answer in answers] == ["cand 0", "other 9", "cand 1"]


def test_settings_of_the_server_are_the_default(serve):
    policy = scripted_policy()
    answer = serve(policy, settings=TPOSettings(n=3, depth=0)).chat(model="tpo")
    assert (len(policy.requests), answer.tpo["stop_reason"]) == (3, "depth")


def test_settings_in_the_body(serve):
    policy = scripted_policy()
    running = serve(policy)
    answer = running.chat(model="tpo", extra_body={"tpo": {"n": 2, "depth": 3, "target_reward": 4}})
    assert (answer.tpo["stop_reason"], answer.tpo["steps"], len(policy.requests)) == ("target", 1, 6)
    # tokens of an answer and the budget of the run are two things
    answer = running.chat(max_tokens=9, extra_body={"tpo": {"budget_tokens": 1}})
    assert answer.tpo["stop_reason"] == "budget"
    assert running.chat(max_tokens=9).tpo["stop_reason"] == "depth"


def test_a_variant_takes_the_place_of_nodes(serve):
    policy = scripted_policy()
    answer = serve(policy, nodes="fused-critique").chat()
    assert answer.choices[0].message.content == "rev 4"
    assert phases_asked(policy) == ["sample", "sample", "critique", "update", "update"]


def test_models(serve):
    running = serve({"one": scripted_policy(), "two": scripted_policy()})
    names = [model.id for model in running.client.models.list()]
    assert names[:3] == ["tpo", "tpo-d2-n5", "tpo-d5-n20"]
    assert {"bon-16", "bon-16/one", "revision/two"} <= set(names)
    assert running.client.models.retrieve("tpo-d7-n3/two").id == "tpo-d7-n3/two"
    with pytest.raises(openai.NotFoundError):
        running.client.models.retrieve("gpt-4o")
