"""What is sent and how it is read: the fields of each wire, and vLLM's activation."""

import ast
import copy
import math
import subprocess
import sys

import pytest

from tests.rewards.served.conftest import CONVERSATION
from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.rewards.base import RunContext, part_scores
from tpo_graph.rewards.served import (
    load_nim,
    load_openrlhf,
    load_sglang,
    load_tei,
    load_vllm,
    load_vllm_pooling,
)

A, B = "yes", "no, not at all"


@pytest.fixture
def tiny(llama):
    """Options that every client here needs."""
    return {"tokenizer": str(llama.folder)}


async def test_fields_of_each_wire(llama, serve, tiny):
    server = serve(llama, score_ids=lambda ids: 3.0)
    url = server.url
    for reward in (
        load_vllm(f"{url}#rm", **tiny),
        load_vllm_pooling(f"{url}#rm", **tiny),
        load_sglang(f"{url}/sglang#rm", **tiny),
        load_tei(f"{url}#rm", **tiny),
        load_openrlhf(f"{url}/get_reward#rm", **tiny),
        load_nim(f"{url}#rm"),
    ):
        assert await reward.score(CONVERSATION, [A]) == [3.0]
    vllm, pooling, sglang, tei, openrlhf, nim = server.bodies
    ids = vllm["input"][0]
    assert vllm == {"model": "rm", "input": [ids], "use_activation": False}
    assert pooling == {"model": "rm", "input": [ids], "encoding_format": "float", "use_activation": False}
    assert sglang == {"model": "rm", "input_ids": [ids]}
    assert set(tei) == {"inputs", "raw_scores", "truncate"}
    assert (tei["raw_scores"], tei["truncate"]) == (True, False)
    assert len(tei["inputs"]) == 1
    assert not tei["inputs"][0][0].startswith("<s>")  # the server's tokenizer adds it
    assert openrlhf["query"][0].startswith("<s><|start|>system")
    assert openrlhf["prompts"] == ["And at sunset?"]
    assert nim["messages"][-1] == {"role": "assistant", "content": A}
    assert [message["role"] for message in nim["messages"][:2]] == ["system", "user"]
    assert server.paths[2] == "/sglang/classify"


@pytest.mark.parametrize("load", [load_vllm, load_vllm_pooling])
@pytest.mark.parametrize(
    ("vllm", "default", "field", "requests"),
    [
        ("new", "sigmoid", "use_activation", 2),
        ("new", "none", None, 3),
        ("both fields", "sigmoid", "use_activation", 2),
        ("old", "sigmoid", "activation", 3),
        ("oldest", "sigmoid", None, 3),
        ("oldest", "softmax", None, 3),
    ],
)
async def test_activation_is_switched_off_or_the_server_refused(
    load, vllm, default, field, requests, llama, serve, tiny
):
    """Rewards between 0 and 1, which could be those of a sigmoid."""
    server = serve(llama, score_ids=lambda ids: 0.2 if len(ids) % 2 else 0.9, vllm=vllm, default_activation=default)
    reward = load(f"{server.url}#rm", **tiny)
    if field is None:
        with pytest.raises(RewardError, match="sigmoid or softmax"):
            await reward.score(CONVERSATION, [A, B])
        assert len(server.bodies) == requests
        return
    assert set(await reward.score(CONVERSATION, [A, B])) <= {0.2, 0.9}
    assert len(server.bodies) == requests
    await reward.score(CONVERSATION, [A, B])
    assert len(server.bodies) == requests + 1  # found out once
    assert server.bodies[-1][field] is False


@pytest.mark.parametrize("vllm", ["new", "both fields"])
async def test_a_score_outside_of_0_to_1_needs_no_second_request(vllm, llama, serve, tiny):
    server = serve(llama, score_ids=lambda ids: -4.0, vllm=vllm)
    assert await load_vllm(f"{server.url}#rm", **tiny).score(CONVERSATION, [A, B]) == [-4.0, -4.0]
    assert len(server.bodies) == 1


async def test_activation_field_can_be_set(llama, serve, tiny):
    server = serve(llama, score_ids=lambda ids: 0.5, default_activation="none")
    reward = load_vllm(f"{server.url}#rm", activation_field="use_activation", **tiny)
    assert await reward.score(CONVERSATION, [A]) == [0.5]
    assert len(server.bodies) == 1


async def test_vllm_rows_are_sorted_by_their_index(llama, serve, tiny):
    server = serve(llama, score_ids=lambda ids: float(len(ids)))
    plain = server._classify

    def reversed_rows(body):
        answer = plain(body)
        return {**answer, "data": answer["data"][::-1]}

    server._classify = reversed_rows
    short, long = await load_vllm(f"{server.url}#rm", **tiny).score(CONVERSATION, [A, B])
    assert short < long


async def test_tei_batches_of_32(llama, serve, tiny):
    server = serve(llama, score_ids=lambda ids: 1.0)
    reward = load_tei(f"{server.url}#rm", **tiny)
    assert await reward.score(CONVERSATION, [f"text {n}" for n in range(40)]) == [1.0] * 40
    assert sorted(len(body["inputs"]) for body in server.bodies) == [8, 32]


async def test_tei_pairs_are_never_made(llama, serve, tiny):
    """Two texts in a flat list would be one pair."""
    server = serve(llama, score_ids=lambda ids: float(len(ids)))
    scores = await load_tei(f"{server.url}#rm", **tiny).score(CONVERSATION, [A, B])
    assert scores[1] - scores[0] == len(B) - len(A)


@pytest.mark.parametrize("content_scores", [True, False])
async def test_nim_attributes(content_scores, llama, serve):
    names = ("helpfulness", "correctness", "coherence")
    server = serve(llama, score_ids=lambda ids: 2.5, attributes=names, content_scores=content_scores)
    assert await load_nim(f"{server.url}#rm", attribute="correctness").score(CONVERSATION, [A]) == [1.5]
    with pytest.raises(RewardError, match="helpfulness, correctness, coherence"):
        await load_nim(f"{server.url}#rm").score(CONVERSATION, [A])
    with pytest.raises(RewardError, match="'verbosity' is not one"):
        await load_nim(f"{server.url}#rm", attribute="verbosity").score(CONVERSATION, [A])


async def test_nim_key_from_the_environment(llama, serve, monkeypatch):
    server = serve(llama, score_ids=lambda ids: -12.25, api_key="nv-1")
    monkeypatch.setenv("NVIDIA_API_KEY", "nv-1")
    assert await load_nim(f"{server.url}#rm").score(CONVERSATION, [A]) == [-12.25]


async def test_openrlhf_lists_of_one(llama, serve, tiny):
    server = serve(llama, score_ids=lambda ids: [1.5])
    assert await load_openrlhf(f"{server.url}#rm", **tiny).score(CONVERSATION, [A]) == [1.5]


async def test_too_long_texts_are_nan_and_cost_no_other_its_score(llama, serve, tiny):
    server = serve(llama, score_ids=lambda ids: 2.0, longest=220)
    for load in (load_vllm, load_tei):
        reward = load(f"{server.url}#rm", **tiny)
        scores = await reward.score(CONVERSATION, [A, "long " * 40, B])
        assert scores[::2] == [2.0, 2.0]
        assert math.isnan(scores[1])
        with pytest.raises(RewardError, match="refused the texts"):
            await reward.score(CONVERSATION, ["long " * 40, "longer " * 40])


async def test_max_length_is_the_local_setting(llama, serve, tiny):
    server = serve(llama, score_ids=lambda ids: 2.0)
    with pytest.raises(RewardError, match="longer than the 30 tokens"):
        await load_sglang(f"{server.url}/sglang#rm", max_length=30, **tiny).score(CONVERSATION, [A])
    reward = load_sglang(f"{server.url}/sglang#rm", max_length=30, truncation="truncate_prompt", **tiny)
    await reward.score(CONVERSATION, [A])
    assert len(server.bodies[-1]["input_ids"][0]) == 30


async def told(reward, responses):
    """Scores and the report of one call."""
    run = RunContext()
    return await part_scores(reward, CONVERSATION, responses, run), run.report


async def test_what_is_cut_here_is_reported(llama, serve, tmp_path, tiny, capfd):
    server = serve(llama, score_ids=lambda ids: 2.0)
    short = copy.deepcopy(llama.tokenizer)
    short.model_max_length = 50
    short.save_pretrained(tmp_path)
    # the tokenizer's own limit is none of the server's, and it writes no line to standard error
    scores, report = await told(load_vllm(f"{server.url}#rm", tokenizer=str(tmp_path)), [A])
    assert (scores, report.truncated) == ([2.0], set())
    reward = load_vllm(f"{server.url}#rm", max_length=220, truncation="truncate_response", **tiny)
    scores, report = await told(reward, [A, "long " * 40])
    assert (scores, report.truncated) == ([2.0, 2.0], {"long " * 40})
    assert capfd.readouterr().err == ""


async def test_what_is_too_long_costs_no_other_its_score(llama, serve, tiny):
    server = serve(llama, score_ids=lambda ids: 2.0)
    scores, report = await told(load_sglang(f"{server.url}/sglang#rm", max_length=220, **tiny), ["long " * 40, A])
    assert math.isnan(scores[0])
    assert scores[1] == 2.0
    assert "longer than the 220 tokens" in report.reasons["long " * 40]


async def test_why_the_server_gave_no_score_is_reported(llama, serve, tiny):
    server = serve(llama, score_ids=lambda ids: 2.0, longest=220)
    _, report = await told(load_vllm(f"{server.url}#rm", **tiny), [A, "long " * 40])
    assert "maximum context length is 220" in report.reasons["long " * 40]
    server = serve(llama, score_ids=lambda ids: 2.0, faults=["null"])
    _, report = await told(load_vllm(f"{server.url}#rm", **tiny), [A, B])
    assert report.reasons == {A: "The vLLM server gave no finite number for it."}


@pytest.mark.parametrize("tells_limit", [True, False])
async def test_what_tei_cuts_is_reported_where_it_tells_its_limit(tells_limit, llama, serve, tiny):
    server = serve(llama, score_ids=lambda ids: float(len(ids)), longest=220, tells_limit=tells_limit)
    reward = load_tei(f"{server.url}#rm", truncate=True, **tiny)
    for _ in range(2):
        scores, report = await told(reward, [A, "long " * 40])
        assert scores[1] == 220.0
        assert report.truncated == ({"long " * 40} if tells_limit else set())


@pytest.mark.parametrize("load", [load_vllm, load_vllm_pooling, load_sglang, load_tei, load_openrlhf])
def test_a_name_without_model_or_address_is_refused(load):
    with pytest.raises(ConfigurationError, match="names no model"):
        load("http://127.0.0.1:8000")
    with pytest.raises(ConfigurationError, match="is not an address"):
        load("127.0.0.1:8000#rm")


@pytest.mark.parametrize(
    "option", [{"batch_size": 0}, {"timeout": 0}, {"attempts": 0}, {"retry_wait": -1}, {"max_concurrency": 0}]
)
def test_numbers_are_checked_before_anything_is_loaded(option):
    with pytest.raises(ConfigurationError, match=next(iter(option))):
        load_tei("http://127.0.0.1:1#rm", **option)
    with pytest.raises(ConfigurationError, match="names no model"):
        load_nim("http://127.0.0.1:1")


@pytest.mark.parametrize("option", [{"max_length": 0}, {"truncation": "left"}, {"activation_field": "activations"}])
def test_what_would_be_ignored_or_cut_otherwise_is_refused(option):
    with pytest.raises(ConfigurationError, match=next(iter(option))):
        load_vllm("http://127.0.0.1:1#rm", **option)


async def test_a_tokenizer_without_chat_template_is_refused(llama, tmp_path, serve):
    llama.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    server = serve(llama)
    with pytest.raises(RewardError, match="no chat template"):
        await load_vllm(f"{server.url}#rm", tokenizer=str(tmp_path)).score(CONVERSATION, [A])
    reward = load_tei(f"{server.url}#rm", tokenizer=str(tmp_path), chat_template="{{ messages[-1]['content'] }}")
    await reward.score(CONVERSATION, [A])
    assert server.bodies[-1]["inputs"] == [[A]]


async def test_a_template_that_refuses_the_conversation(llama, serve):
    server = serve(llama)
    template = "{{ raise_exception('no system message, please') }}"
    for load in (load_vllm, load_tei):
        reward = load(f"{server.url}#rm", tokenizer=str(llama.folder), chat_template=template)
        with pytest.raises(RewardError, match="no system message, please"):
            await reward.score(CONVERSATION, [A])


async def test_a_tokenizer_that_is_nowhere(serve, llama, tmp_path):
    reward = load_vllm(f"{serve(llama).url}#rm", tokenizer=str(tmp_path / "nothing"))
    with pytest.raises(RewardError, match="nothing"):
        await reward.score(CONVERSATION, [A])


def test_importing_the_clients_imports_neither_torch_nor_transformers():
    code = (
        "import sys, tpo_graph.rewards.served, tpo_graph.rewards.judge\n"
        "print([name for name in ('torch', 'transformers', 'openai', 'httpx2', 'tenacity') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers"} & set(ast.literal_eval(done.stdout))
