"""The HTTP client of OpenAI-compatible servers: one pool a running loop, closed with it."""

import asyncio
import gc
import threading
import warnings

import httpx2
import openai
import pytest
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

from tpo_graph import TPOSettings
from tpo_graph.policies.http import PlainResponse, loop_safe, shared_http_client
from tpo_graph.policies.retries import limited
from tpo_graph.policies.sampling import Sampler
from tpo_graph.settings import Sampling
from tpo_graph.testing import FaultServer, ScriptedChatModel

ASK = [HumanMessage("hi")]


@pytest.fixture(autouse=True)
def leaks_are_errors():
    """Connections that are left open are seen here, not in a later test."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
        gc.collect()


def test_a_model_of_openai_sends_over_aiohttp(chat_server, chat_openai):
    model = loop_safe(chat_openai(chat_server()))
    assert isinstance(shared_http_client(), openai.DefaultAioHttpClient)
    assert model.http_async_client is shared_http_client()


def test_one_model_serves_one_event_loop_after_another(chat_server, chat_openai):
    server = chat_server()
    model = loop_safe(chat_openai(server))
    for _ in range(3):
        assert asyncio.run(model.ainvoke(ASK)).content.startswith("cand")
    assert len(server.requests) == 3


def test_one_model_serves_the_loops_of_several_threads(chat_server, chat_openai):
    server = chat_server(seconds=0.01)
    model = loop_safe(chat_openai(server))
    answers = []

    def ask():
        async def several():
            return await asyncio.gather(*(model.ainvoke(ASK) for _ in range(5)))

        for _ in range(3):
            answers.extend(asyncio.run(several()))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == len(server.requests) == 60


async def test_connections_are_used_again_in_one_loop(chat_server, chat_openai):
    server = chat_server()
    model = loop_safe(chat_openai(server))
    for _ in range(4):
        await model.ainvoke(ASK)
    ports = {request.peer for request in server.requests}
    assert len(ports) == 1


async def test_closing_the_client_leaves_it_usable(chat_server, chat_openai):
    model = loop_safe(chat_openai(chat_server()))
    await model.ainvoke(ASK)
    await shared_http_client().aclose()
    await shared_http_client().aclose()
    assert (await model.ainvoke(ASK)).content


async def test_streaming_goes_over_the_same_client(chat_server, chat_openai):
    model = loop_safe(chat_openai(chat_server(), streaming=True))
    assert "".join([chunk.text async for chunk in model.astream(ASK)]) == "cand 0"


async def test_a_timeout_of_the_model_is_kept(chat_server, chat_openai):
    model = loop_safe(chat_openai(chat_server(always="hang"), timeout=0.2))
    with pytest.raises(openai.APITimeoutError):
        await model.ainvoke(ASK)


async def test_keys_and_headers_of_the_model_are_kept(chat_server, chat_openai):
    server = chat_server()
    model = loop_safe(chat_openai(server, api_key="secret", default_headers={"X-Team": "a"}, organization="org"))
    await model.ainvoke(ASK)
    headers = server.requests[0].headers
    assert (headers["authorization"], headers["x-team"], headers["openai-organization"]) == (
        "Bearer secret",
        "a",
        "org",
    )


def test_the_callers_model_is_not_changed(chat_server, chat_openai):
    model = chat_openai(chat_server())
    client = model.async_client
    assert loop_safe(model) is not model
    assert model.async_client is client
    assert model.http_async_client is None


async def test_a_client_that_a_person_has_set_is_left_alone(chat_server, chat_openai):
    import httpx2

    async with httpx2.AsyncClient() as mine:
        model = loop_safe(chat_openai(chat_server(), http_async_client=mine))
        assert model.http_async_client is mine
        assert (await model.ainvoke(ASK)).content == "cand 0"


async def test_connections_that_the_server_closes_when_idle_cost_no_request_its_answer():
    with FaultServer(lambda request, number: "fine", keep_alive=0.05) as server:
        sampler = Sampler(ChatOpenAI(model="any", base_url=server.url, api_key="any"))
        for pause in range(15):
            with limited(TPOSettings(max_retries=0)):
                draws = await asyncio.gather(*(sampler.draw(ASK, 1, Sampling()) for _ in range(8)))
            assert [draw.completions[0].text for draw in draws] == ["fine"] * 8
            await asyncio.sleep(0.048 + pause % 5 * 0.001)


def test_other_chat_models_are_left_alone():
    model = ScriptedChatModel([])
    assert loop_safe(model) is model


async def test_sync_calls_of_the_model_work_as_before(chat_server, chat_openai):
    assert loop_safe(chat_openai(chat_server())).invoke(ASK).content == "cand 0"


async def test_a_request_has_the_same_body_and_is_read_alike_as_by_openais_resource(chat_server, chat_openai):
    server = chat_server(answer=lambda request, number: "it is so", finish_reason="length", strict=False)
    options = {"temperature": 0.3, "n": 2, "seed": 7, "max_tokens": 9, "stop": ["END"], "extra_body": {"top_k": 3}}
    own = chat_openai(server, **options)
    plain = loop_safe(own)
    results = [await model.agenerate([ASK]) for model in (own, plain)]
    first, second = server.bodies
    assert first == second
    assert second["top_k"] == 3
    read, expected = ([generation.model_dump() for generation in result.generations[0]] for result in results)
    for generation in (*read, *expected):
        generation["message"]["id"] = ""
        generation["message"]["additional_kwargs"].pop("refusal", None)  # None, where OpenAI's object adds it
    assert read == expected


async def test_headers_and_a_timeout_of_one_call_are_the_clients(chat_server, chat_openai):
    server = chat_server()
    await loop_safe(chat_openai(server)).ainvoke(ASK, extra_headers={"X-Team": "b"}, timeout=5)
    assert server.requests[0].headers["x-team"] == "b"
    assert not {"extra_headers", "timeout"} & server.bodies[0].keys()


async def test_a_class_that_reads_openais_objects_gets_them(chat_server, chat_openai):
    class ReadsObjects(ChatOpenAI):
        def _create_chat_result(self, response, generation_info=None):
            assert isinstance(response, openai.BaseModel)
            return super()._create_chat_result(response, generation_info)

    model = loop_safe(ReadsObjects(model="m", base_url=chat_server().url, api_key="none"))
    assert (await model.ainvoke(ASK)).content == "cand 0"
    assert model.http_async_client is shared_http_client()


def test_an_answer_nested_too_deep_is_one_that_is_not_json():
    with pytest.raises(ValueError, match="nested too deep"):
        PlainResponse(httpx2.Response(200, content=100_000 * "[")).parse()
