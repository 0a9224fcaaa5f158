"""Policies by name."""

import asyncio
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from langchain_core.messages import HumanMessage

from tests.tpo_script import number_reward
from tpo_graph import ConfigurationError, MissingDependencyError, PolicyError, create_tpo_graph, load_policy
from tpo_graph.policies.load import policy_ids
from tpo_graph.policies.sampling import Sampler
from tpo_graph.settings import Sampling


@pytest.mark.parametrize("scheme", ["vllm", "llamacpp"])
def test_a_server_and_a_model_by_name(chat_server, scheme):
    server = chat_server()
    model = load_policy(f"{scheme}:{server.url}#some/model:7b", max_retries=0)
    assert asyncio.run(model.ainvoke("hi")).content == "cand 0"
    assert server.bodies[0]["model"] == "some/model:7b"


def test_the_only_model_of_a_server_needs_no_name(chat_server):
    server = chat_server(models=["the-one"])
    asyncio.run(load_policy(f"vllm:{server.url}").ainvoke("hi"))
    assert server.bodies[0]["model"] == "the-one"


@pytest.mark.parametrize("models", [[], ["a", "b"]])
def test_a_server_with_no_or_several_models_needs_a_name(chat_server, models):
    server = chat_server(models=models)
    with pytest.raises(ConfigurationError, match=f"has {len(models)} models") as caught:
        load_policy(f"vllm:{server.url}")
    assert "#MODEL" in caught.value.hint


def test_a_server_that_is_not_there_is_a_policy_error(unused_port=9):
    with pytest.raises(PolicyError, match=r"list its models: the connection was refused\. Is it") as caught:
        load_policy(f"vllm:http://127.0.0.1:{unused_port}/v1")
    assert "running" in caught.value.hint


@pytest.mark.parametrize("name", [5, None])
def test_a_list_of_models_that_can_not_be_read_is_a_policy_error(chat_server, name):
    with pytest.raises(PolicyError, match="does not list its models: the answer can't be read"):
        load_policy(f"vllm:{chat_server(models=[name]).url}")


@pytest.mark.parametrize("page", ["<html>", '{"object": "li', "[]", '{"data": [null]}'])
def test_what_is_no_list_of_models_is_a_policy_error(page):
    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(PolicyError, match="does not list its models: the answer can't be read"):
            load_policy(f"vllm:http://127.0.0.1:{server.server_port}/v1")
        server.shutdown()


def test_a_server_that_refuses_the_key_says_so(chat_server):
    with pytest.raises(PolicyError, match="Incorrect API key") as caught:
        load_policy(f"vllm:{chat_server(always='401').url}")
    assert "TPO_POLICY_API_KEY" in caught.value.hint


@pytest.mark.parametrize(
    ("environment", "options", "sent"), [(None, {}, "none"), ("env", {}, "env"), ("env", {"api_key": "arg"}, "arg")]
)
def test_the_key_of_a_server(chat_server, monkeypatch, environment, options, sent):
    monkeypatch.setenv("OPENAI_API_KEY", "of another provider")
    if environment:
        monkeypatch.setenv("TPO_POLICY_API_KEY", environment)
    server = chat_server()
    asyncio.run(load_policy(f"vllm:{server.url}", **options).ainvoke("hi"))  # asks for the models, too
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {sent}"}


def test_openai_by_name(chat_server, monkeypatch):
    server = chat_server()
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    asyncio.run(load_policy("openai:gpt-4o-mini", base_url=server.url, temperature=0.1).ainvoke("hi"))
    assert (server.bodies[0]["model"], server.bodies[0]["temperature"]) == ("gpt-4o-mini", 0.1)


def test_openai_without_a_key_is_one_clear_error():
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY is not set") as caught:
        load_policy("openai:gpt-4o-mini")
    assert caught.value.hint


@pytest.mark.parametrize(
    "name", ["  ", ":x", "vllm:", "vllm:127.0.0.1:8000", "vllm:ftp://x/v1#m", "openai:", "no model"]
)
def test_a_name_that_can_not_be_understood_lists_what_can(name):
    with pytest.raises(ConfigurationError) as caught:
        load_policy(name)
    assert caught.value.hint


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "langchain.chat_models", None)
    with pytest.raises(MissingDependencyError) as caught:
        load_policy("anthropic:claude-haiku-4-5")
    assert "pip install" in caught.value.hint


def test_a_missing_integration_names_the_package():
    with pytest.raises(MissingDependencyError, match=r"langchain.anthropic") as caught:
        load_policy("anthropic:claude-haiku-4-5")
    assert "package that it names" in caught.value.hint
    assert ".." not in str(caught.value)


def test_a_bad_option_is_a_configuration_error():
    with pytest.raises(ConfigurationError, match="can't be made"):
        load_policy("openai:gpt-4o-mini", api_key="k", temperature="hot")


def test_init_chat_model_names_go_to_langchain(chat_server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    server = chat_server()
    model = load_policy("gpt-4o-mini", base_url=server.url)
    for _ in range(2):
        asyncio.run(model.ainvoke("hi"))
    assert server.bodies[0]["model"] == "gpt-4o-mini"


def test_a_loaded_policy_runs_the_graph_in_one_loop_after_another(chat_server):
    server = chat_server()
    graph = create_tpo_graph(load_policy(f"vllm:{server.url}#m"), number_reward())
    assert [asyncio.run(graph.ainvoke({"query": "q"}))["stop_reason"] for _ in range(3)] == ["depth"] * 3
    assert graph.invoke({"query": "q"})["stop_reason"] == "depth"


def test_the_pack_that_suits_a_policy_is_noted_on_it(chat_server):
    server = chat_server()
    model = load_policy(f"vllm:{server.url}#m", metadata={"tpo_prompts": "no-such-pack"})
    with pytest.raises(Exception, match="no-such-pack"):
        create_tpo_graph(model, number_reward())


def test_the_ids_of_several_policies():
    names = [
        "local",
        "openai:gpt-4o-mini",
        "vllm:http://127.0.0.1:8000/v1#Qwen/Qwen3-8B",
        "mine=server:http://h/v1?a=b",
        "local:a=b.gguf",
        "server:http://h/v1?a=b",
    ]
    ids = ["local", "gpt-4o-mini", "Qwen/Qwen3-8B", "mine", "a=b.gguf", "server"]
    assert policy_ids(names) == dict(zip(ids, [name.removeprefix("mine=") for name in names], strict=True))
    with pytest.raises(ConfigurationError, match="Two policies are called 'm'"):
        policy_ids(["vllm:http://a/v1#m", "vllm:http://b/v1#m"])


@pytest.mark.parametrize(
    ("n", "server", "tokens"),
    [
        (3, {"counts_first_alone": True, "tokenizes": True}, 6),
        (3, {"counts_first_alone": True, "tokenizes": False}, 2),
        (1, {"counts_first_alone": True, "tokenizes": True}, 2),
        (3, {"tells_usage": False, "tokenizes": True}, 0),
    ],
)
async def test_every_completion_of_llama_cpp_counts_where_the_server_can_tokenize(chat_server, n, server, tokens):
    policy = load_policy(f"llamacpp:{chat_server(**server).url}#scripted")
    draw = await Sampler(policy).draw([HumanMessage("one two three")], n, Sampling())
    assert (len(draw.completions), draw.usage["output_tokens"]) == (n, tokens)
    assert draw.usage["input_tokens"] == (3 if server.get("tells_usage", True) else 0)
    assert draw.usage["requests"] == 1
