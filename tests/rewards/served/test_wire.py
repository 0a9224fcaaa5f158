"""What is sent and how it is read: the fields of each wire, vLLM's activation, texts that are too long, options."""

import ast
import copy
import math

import pytest

from tests.fresh_process import run_script
from tests.rewards.served.conftest import CONVERSATION
from tpo_graph import ConfigurationError, RewardError, load_reward
from tpo_graph.rewards.base import RunContext, Scoring, score_responses

pytestmark = pytest.mark.torch

A, B = "yes", "no, not at all"
LONG = "Zürich! " * 80


async def score(reward, responses) -> Scoring:
    return await score_responses(reward, CONVERSATION, responses, RunContext())


@pytest.mark.parametrize(
    ("scheme", "path", "fixed"),
    [
        ("vllm", "/classify", {"model": "rm", "use_activation": False}),
        ("vllm-pooling", "/pooling", {"model": "rm", "encoding_format": "float", "use_activation": False}),
        ("sglang", "/sglang/classify", {"model": "rm"}),
        ("tei", "/predict", {"raw_scores": True, "truncate": False}),
        ("openrlhf", "/get_reward", {"prompts": ["And at sunset?"]}),
        ("nim", "/v1/chat/completions", {"model": "rm", "stream": False}),
    ],
)
async def test_fields_of_each_wire(scheme, path, fixed, connect, llama):
    server, reward = connect(scheme, score_ids=lambda ids: 3.0)
    assert await reward.score(CONVERSATION, [A]) == [3.0]
    ((sent, content),) = [(name, value) for name, value in server.bodies[0].items() if name not in fixed]
    assert (server.paths, server.bodies) == ([path], [{**fixed, sent: content}])
    text = content[-1] if scheme in ("tei", "openrlhf") else content
    if scheme == "nim":
        assert sent == "messages" and [turn["role"] for turn in content[:2]] == ["system", "user"]
        assert content[-1] == {"role": "assistant", "content": A}
    elif scheme == "tei":
        # the server's tokenizer adds the begin token
        assert sent == "inputs" and text[0].startswith("<|start|>system") and text[0].endswith(f"{A}<|end|>")
    elif scheme == "openrlhf":
        assert sent == "query" and text.startswith("<s><|start|>system")
    else:
        assert sent == ("input_ids" if scheme == "sglang" else "input")
        assert llama.tokenizer.decode(content[0]).startswith("<s><|start|>system")


async def test_an_address_may_end_with_the_path_of_the_scores(serve, llama):
    server = serve(score_ids=lambda ids: 3.0)
    for name in (f"openrlhf:{server.url}/get_reward", f"nim:{server.url}/v1#rm"):
        options = {} if name.startswith("nim") else {"tokenizer": str(llama.folder)}
        assert await load_reward(name, **options).score(CONVERSATION, [A]) == [3.0]
    assert server.paths == ["/get_reward", "/v1/chat/completions"]


@pytest.mark.parametrize("scheme", ["vllm", "vllm-pooling"])
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
async def test_activation_is_switched_off_or_the_server_refused(scheme, vllm, default, field, requests, connect):
    """Rewards between 0 and 1, which could be those of a sigmoid."""
    server, reward = connect(
        scheme, score_ids=lambda ids: 0.2 if len(ids) % 2 else 0.9, vllm=vllm, default_activation=default
    )
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
async def test_a_score_outside_of_0_to_1_needs_no_second_request(vllm, connect):
    server, reward = connect("vllm", score_ids=lambda ids: -4.0, vllm=vllm)
    assert await reward.score(CONVERSATION, [A, B]) == [-4.0, -4.0]
    assert len(server.bodies) == 1


async def test_activation_field_can_be_set(connect):
    options = {"activation_field": "use_activation"}
    server, reward = connect("vllm", score_ids=lambda ids: 0.5, default_activation="none", options=options)
    assert await reward.score(CONVERSATION, [A]) == [0.5]
    assert len(server.bodies) == 1


async def test_vllm_rows_are_sorted_by_their_index(connect):
    _, reward = connect("vllm", score_ids=lambda ids: float(len(ids)), reversed_rows=True)
    short, long = await reward.score(CONVERSATION, [A, B])
    assert short < long


async def test_tei_gets_batches_of_32_and_never_a_pair(connect):
    """Two texts in a flat list would be one pair."""
    server, reward = connect("tei", score_ids=lambda ids: float(len(ids)))
    scores = await reward.score(CONVERSATION, [f"text {'x ' * number}" for number in range(40)])
    assert scores == sorted(set(scores))
    assert sorted(len(body["inputs"]) for body in server.bodies) == [8, 32]


@pytest.mark.parametrize("content_scores", [True, False])
async def test_nim_attributes(content_scores, connect):
    server_options = {
        "score_ids": lambda ids: 2.5,
        "attributes": ("helpfulness", "correctness", "coherence"),
        "content_scores": content_scores,
    }
    _, reward = connect("nim", options={"attribute": "correctness"}, **server_options)
    assert await reward.score(CONVERSATION, [A]) == [1.5]
    for options, message in (
        ({}, "helpfulness, correctness, coherence, and no attribute was chosen"),
        ({"attribute": "verbosity"}, "'verbosity' is not one"),
    ):
        _, reward = connect("nim", options=options, **server_options)
        with pytest.raises(RewardError, match=message):
            await reward.score(CONVERSATION, [A])


async def test_nim_key_from_the_environment(connect, monkeypatch):
    monkeypatch.setenv("NVIDIA_API_KEY", "nv-1")
    _, reward = connect("nim", score_ids=lambda ids: -12.25, api_key="nv-1")
    assert await reward.score(CONVERSATION, [A]) == [-12.25]


async def test_openrlhf_lists_of_one(connect):
    _, reward = connect("openrlhf", score_ids=lambda ids: [1.5])
    assert await reward.score(CONVERSATION, [A]) == [1.5]


@pytest.mark.parametrize("scheme", ["vllm", "tei"])
async def test_a_text_that_the_server_refuses_costs_no_other_its_score(scheme, connect):
    _, reward = connect(scheme, score_ids=lambda ids: 2.0, longest=220)
    scoring = await score(reward, [A, LONG, B])
    assert (scoring.scores[0], math.isnan(scoring.scores[1]), scoring.scores[2]) == (2.0, True, 2.0)
    assert "refused the texts" in scoring.reasons[LONG] and "220" in scoring.reasons[LONG]
    with pytest.raises(RewardError, match="refused the texts"):
        await reward.score(CONVERSATION, [LONG, LONG + LONG])


async def test_a_text_that_is_refused_here_costs_no_other_its_score(connect):
    server, reward = connect("sglang", score_ids=lambda ids: 2.0, options={"max_length": 220})
    scoring = await score(reward, [LONG, A])
    assert (math.isnan(scoring.scores[0]), scoring.scores[1]) == (True, 2.0)
    assert "longer than the 220 tokens" in scoring.reasons[LONG]
    assert len(server.bodies[0]["input_ids"]) == 1
    with pytest.raises(RewardError, match="longer than the 220 tokens"):
        await reward.score(CONVERSATION, [LONG])


async def test_what_is_cut_here_is_reported(connect, llama, tmp_path, capfd):
    options = {"max_length": 220, "truncation": "truncate_response"}
    server, reward = connect("vllm", score_ids=lambda ids: 2.0, options=options)
    scoring = await score(reward, [A, LONG])
    assert (scoring.scores, scoring.truncated, scoring.reasons) == ([2.0, 2.0], {LONG}, {})
    assert len(server.bodies[0]["input"][1]) == 220
    # the tokenizer's own limit is none of the server's, and it writes no line to standard error
    short = copy.deepcopy(llama.tokenizer)
    short.model_max_length = 50
    short.save_pretrained(tmp_path)
    _, reward = connect("vllm", score_ids=lambda ids: 2.0, options={"tokenizer": str(tmp_path)})
    assert (await score(reward, [A])).truncated == set()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("tells_limit", [True, False])
async def test_what_tei_cuts_is_reported_where_it_states_its_limit(tells_limit, connect):
    options = {"truncate": True}
    _, reward = connect(
        "tei", score_ids=lambda ids: float(len(ids)), longest=220, tells_limit=tells_limit, options=options
    )
    for _ in range(2):
        scoring = await score(reward, [A, LONG])
        assert scoring.scores[1] == 220.0
        assert scoring.truncated == ({LONG} if tells_limit else set())


async def test_equal_responses_are_sent_once_and_none_not_at_all(connect):
    server, reward = connect("vllm")
    assert await reward.score(CONVERSATION, []) == []
    assert server.bodies == []
    scores = await reward.score(CONVERSATION, ["a", "b", "a"])
    assert scores[0] == scores[2] != scores[1]
    assert len(server.bodies[0]["input"]) == 2


@pytest.mark.parametrize("scheme", ["vllm", "vllm-pooling", "sglang", "tei", "openrlhf", "nim"])
def test_a_name_without_model_or_address_is_refused(scheme):
    with pytest.raises(ConfigurationError, match="names no model"):
        load_reward(f"{scheme}:http://127.0.0.1:8000")
    for address in ("127.0.0.1:8000", "ftp://127.0.0.1", "http://", "http://127.0.0.1:port"):
        with pytest.raises(ConfigurationError, match="is not an address"):
            load_reward(f"{scheme}:{address}#rm")


@pytest.mark.parametrize(
    "option",
    [
        {"batch_size": 0},
        {"timeout": 0},
        {"attempts": 0},
        {"retry_wait": -1},
        {"max_concurrency": 0},
        {"max_length": 0},
        {"truncation": "left"},
        {"activation_field": "activations"},
    ],
)
def test_options_are_checked_before_anything_is_loaded(option):
    with pytest.raises(ConfigurationError, match=next(iter(option))):
        load_reward("vllm:http://127.0.0.1:1#rm", **option)


def test_a_server_that_takes_text_takes_no_length():
    with pytest.raises(ConfigurationError, match=r"does not take these options: .*max_length"):
        load_reward("tei:http://127.0.0.1:1#rm", max_length=10)


async def test_tokenizers_that_can_not_be_used(llama, tmp_path, connect):
    llama.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    refusing = "{{ raise_exception('no system message, please') }}"
    for scheme in ("vllm", "tei"):
        for options, message in (
            ({"tokenizer": str(tmp_path)}, "no chat template"),
            ({"tokenizer": str(tmp_path / "nothing")}, "nothing"),
            ({"chat_template": refusing}, "no system message, please"),
        ):
            _, reward = connect(scheme, options=options)
            with pytest.raises(RewardError, match=message):
                await reward.score(CONVERSATION, [A])
    options = {"tokenizer": str(tmp_path), "chat_template": "{{ messages[-1]['content'] }}"}
    server, reward = connect("tei", options=options)
    await reward.score(CONVERSATION[1:], [A])
    assert server.bodies[-1]["inputs"] == [[A]]
    with pytest.raises(RewardError, match="leaves the system message out"):
        await reward.score(CONVERSATION, [A])


@pytest.mark.subprocess
def test_importing_the_clients_imports_neither_torch_nor_transformers():
    ended = run_script("import sys, tpo_graph.rewards.served.servers; print([*sys.modules])")
    assert not {"torch", "transformers", "openai"} & set(ast.literal_eval(ended.stdout))
