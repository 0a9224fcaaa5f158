"""The raw requests of a run over a real server: their number, order and exact bodies."""

import json

import pytest

from tests.tpo_script import GRADIENT, LOSS, number_reward, phase_of, scripted_policy
from tpo_graph import PromptPack, TPOSettings, create_tpo_graph
from tpo_graph.graph.request import PromptedModel


def test_d2_n5_is_seven_requests_with_the_papers_settings(chat_server, chat_openai):
    server = chat_server()
    create_tpo_graph(chat_openai(server), number_reward()).invoke({"query": "q"})
    shared = {"model": "scripted", "temperature": 0.7, "max_tokens": 2048, "stream": False}
    top_p = {"sample": 0.95, "loss": 0.99, "gradient": 0.99, "update": 0.95}
    phases = []
    for body in server.bodies:
        messages = body.pop("messages")
        phase = phase_of(messages[-1]["content"])
        phases.append(phase)
        several = {"n": 5} if phase in ("sample", "update") else {}
        assert {"stream": False, **body} == {**shared, "top_p": top_p[phase], **several}
    assert phases == ["sample", "loss", "gradient", "update", "loss", "gradient", "update"]


def test_the_first_request_is_the_conversation_alone(chat_server, chat_openai):
    server = chat_server()
    messages = [("system", "s"), ("user", "a"), ("ai", "b"), ("user", "ü {x} $y\n")]
    create_tpo_graph(chat_openai(server), number_reward()).invoke({"messages": messages}, context={"mode": "bon"})
    assert server.bodies[0]["messages"] == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "ü {x} $y\n"},
    ]


@pytest.mark.parametrize("most_n", [None, 1, 2])
def test_with_a_seed_the_same_run_sends_the_same_bytes(chat_server, chat_openai, most_n):
    def sent():
        server = chat_server(most_n=most_n, answer=by_seed)
        create_tpo_graph(chat_openai(server), number_reward()).invoke({"query": "q"}, context={"seed": 11})
        return sorted(request.raw for request in server.requests)

    def by_seed(request, number):
        phase = phase_of(request.body["messages"][-1]["content"])
        # within one request the choices differ by their place, which is what `number` tells modulo N
        reward = request.body["seed"] % 1000 + (number % 5 if most_n is None else 0)
        return {"loss": LOSS, "gradient": GRADIENT, "sample": f"cand {reward}"}.get(
            phase, f"<revised_response>rev {reward}</revised_response>"
        )

    first, second = sent(), sent()
    assert first == second
    assert all("seed" in json.loads(raw) for raw in first)


def test_no_two_requests_of_a_fanned_out_run_share_a_seed(chat_server, chat_openai):
    server = chat_server(most_n=1)
    graph = create_tpo_graph(chat_openai(server), number_reward())
    graph.invoke({"query": "warm up"})
    before = len(server.requests)
    graph.invoke({"query": "q"}, context={"seed": 11})
    seeds = [body["seed"] for body in server.bodies[before:]]
    assert len(seeds) == len(set(seeds)) == 19


@pytest.mark.parametrize("n", [5, 1024])
def test_no_two_phases_or_attempts_share_a_seed(n):
    model, seeds = PromptedModel.of(scripted_policy(), "tpo", TPOSettings(n=n, seed=7)), []
    for step in range(3):
        phases = ("loss", "gradient", "update") if step else ("sample",)
        for phase in phases:
            request = model.request(phase, {"step": step - 1}, None)
            for attempt in (0, 1):
                seeds += [request.seed(attempt) + place for place in range(1 if phase in ("loss", "gradient") else n)]
    assert len(set(seeds)) == len(seeds)


def test_a_step_that_is_asked_for_twice_uses_other_seeds(chat_server, chat_openai):
    server = chat_server(answer=lambda request, number: f"cand {number}")
    create_tpo_graph(chat_openai(server), number_reward()).invoke({"query": "q"}, context={"seed": 11})
    seeds = [body["seed"] for body in server.bodies]
    assert len(seeds) == len(set(seeds)) == 1 + 2 * 4


def test_usage_counts_a_prompt_once_and_every_completion_once(chat_server, chat_openai):
    server = chat_server()
    result = create_tpo_graph(chat_openai(server), number_reward()).invoke({"query": "one two three"})
    usage = result["usage"]
    assert (usage["sample"]["requests"], usage["sample"]["input_tokens"], usage["sample"]["output_tokens"]) == (
        1,
        3,
        10,
    )
    assert [usage[phase]["requests"] for phase in ("loss", "gradient", "update")] == [2, 2, 2]
    asked = sum(len(request.text.split()) for request in server.requests)
    assert sum(used["input_tokens"] for used in usage.values()) == asked
    assert usage["update"]["output_tokens"] == 20
    assert usage["loss"]["output_tokens"] == 4


def test_usage_is_counted_the_same_when_asked_one_by_one(chat_server, chat_openai):
    result = create_tpo_graph(chat_openai(chat_server(most_n=1)), number_reward()).invoke({"query": "one two three"})
    assert (result["usage"]["sample"]["input_tokens"], result["usage"]["sample"]["output_tokens"]) == (15, 10)


def test_a_server_that_counts_no_tokens_is_no_problem(chat_server, chat_openai):
    result = create_tpo_graph(chat_openai(chat_server(tells_usage=False)), number_reward()).invoke({"query": "q"})
    assert result["stop_reason"] == "depth"
    assert {used["input_tokens"] for used in result["usage"].values()} == {0}


PACK = {
    "pack.toml": """
description = "All in other words."
open_tag = "[[["
close_tag = "]]]"
preference = " PREF<$preference>"
[conversation]
single = "Q: $content"
turn = "<|$role|>$content<|end|>"
separator = "\\n"
[conversation.roles]
system = "SYS"
user = "USR"
assistant = "BOT"
""",
    "loss.toml": "system = 'loss of $query'\nuser = 'L1 $conversation | $best | {{worst}} |$preference'",
    "gradient.toml": "system = 'grad'\nuser = '''G1 ${loss} ~ $loss_prompt ~$preference $$5 {not_a_mark}'''",
    "update.toml": """
user = 'U1 $query $best $worst $loss $gradient$preference $open_tag$close_tag'
system = '  upd  '
[sampling]
temperature = 0.2
""",
}


@pytest.fixture
def own_pack(tmp_path):
    for name, text in PACK.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def own_reply(request, number):
    prompt = request.body["messages"][-1]["content"]
    return {"L1": "THE LOSS", "G1": "THE GRADIENT", "U1": f"sure: [[[rev {number}]]]"}.get(prompt[:2], f"cand {number}")


def test_a_pack_of_ones_own_is_reproduced_byte_for_byte(chat_server, chat_openai, own_pack):
    server = chat_server(answer=own_reply)
    graph = create_tpo_graph(chat_openai(server), number_reward(), prompts=own_pack)
    result = graph.invoke({"query": "why?"}, context={"n": 2, "depth": 1, "preference": "kind"})
    assert [body["messages"] for body in server.bodies] == [
        [{"role": "user", "content": "why?"}],
        [
            {"role": "system", "content": "loss of why?"},
            {"role": "user", "content": "L1 Q: why? | cand 1 | cand 0 | PREF<kind>"},
        ],
        [
            {"role": "system", "content": "grad"},
            {
                "role": "user",
                "content": "G1 THE LOSS ~ L1 Q: why? | cand 1 | cand 0 | PREF<kind> ~ PREF<kind> $5 {not_a_mark}",
            },
        ],
        [
            {"role": "system", "content": "  upd  "},
            {"role": "user", "content": "U1 why? cand 1 cand 0 THE LOSS THE GRADIENT PREF<kind> [[[]]]"},
        ],
    ]
    assert server.bodies[-1]["temperature"] == 0.2
    assert result["answer"] == "rev 5"


def test_a_conversation_in_a_format_of_ones_own(chat_server, chat_openai, own_pack):
    server = chat_server(answer=own_reply)
    graph = create_tpo_graph(chat_openai(server), number_reward(), prompts=PromptPack.load(own_pack))
    messages = [("system", "s"), ("user", "a"), ("ai", "b"), ("user", "c")]
    graph.invoke({"messages": messages}, context={"n": 2, "depth": 1})
    conversation = "<|SYS|>s<|end|>\n<|USR|>a<|end|>\n<|BOT|>b<|end|>\n<|USR|>c<|end|>"
    assert server.bodies[1]["messages"][1]["content"] == f"L1 {conversation} | cand 1 | cand 0 |"
    assert server.bodies[1]["messages"][0]["content"] == "loss of c"


def test_settings_beat_what_the_pack_recommends(chat_server, chat_openai, own_pack):
    server = chat_server(answer=own_reply)
    graph = create_tpo_graph(chat_openai(server), number_reward(), prompts=own_pack)
    graph.invoke({"query": "why?"}, context={"n": 2, "depth": 1, "update_temperature": 0.9})
    assert server.bodies[-1]["temperature"] == 0.9


def test_a_pack_may_word_the_first_question_too(chat_server, chat_openai, own_pack):
    (own_pack / "sample.toml").write_text("user = 'Answer: $query'\nsystem = 'S'", encoding="utf-8")
    server = chat_server(answer=own_reply)
    create_tpo_graph(chat_openai(server), number_reward(), prompts=own_pack).invoke(
        {"query": "why?"}, context={"mode": "bon"}
    )
    assert server.bodies[0]["messages"] == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Answer: why?"},
    ]


def test_stop_texts_of_the_settings_are_sent(chat_server, chat_openai):
    server = chat_server()
    create_tpo_graph(chat_openai(server), number_reward()).invoke(
        {"query": "q"},
        context={"depth": 1, "sample_stop": ["END", "\n\n\n"], "loss_max_new_tokens": 99, "gradient_temperature": None},
    )
    sample, loss, gradient, _ = server.bodies
    assert sample["stop"] == ["END", "\n\n\n"]
    assert "stop" not in loss
    assert loss["max_tokens"] == 99
    assert "temperature" not in gradient


def test_what_requests_share_comes_first(chat_server, chat_openai):
    server = chat_server()
    create_tpo_graph(chat_openai(server), number_reward()).invoke(
        {"query": "a long question " * 20}, context={"depth": 1}
    )
    loss, gradient, update = ("".join(message["content"] for message in body["messages"]) for body in server.bodies[1:])
    shared = loss[: next(place for place, (a, b) in enumerate(zip(loss, gradient, strict=False)) if a != b)]
    assert "</best_response>" in shared
    shared = gradient[: next(place for place, (a, b) in enumerate(zip(gradient, update, strict=False)) if a != b)]
    assert "</assessment>" in shared
