"""The fused critique: loss and gradient from one request, also where the critic does not keep to the form."""

import pytest

from tests.tpo_script import GRADIENT, LOSS, number_reward, phases_asked, scripted_policy, server_reply
from tpo_graph import PromptError, PromptPack, TPOSettings, create_tpo_graph
from tpo_graph.variants import fused_critique


def fused_graph(policy, **options):
    nodes = {**fused_critique(policy), **options.pop("nodes", {})}
    return create_tpo_graph(policy, number_reward(), nodes=nodes, **options)


def fan_in(phases):
    """Phases without the repeats of a policy that is asked N times."""
    return [phase for i, phase in enumerate(phases) if i == 0 or phase != phases[i - 1]]


@pytest.mark.parametrize("mode", ["tpo", "revision"])
def test_it_saves_a_request_in_each_step(chat_server, chat_openai, mode):
    server = chat_server()
    result = fused_graph(chat_openai(server)).invoke({"query": "q"}, context={"mode": mode})
    assert len(server.bodies) == 5
    assert [record["requests"] for record in result["trajectory"]] == [1, 2, 2]
    assert all(record["loss"] == LOSS and record["gradient"] == GRADIENT for record in result["trajectory"][1:])
    assert result["usage"]["loss"]["requests"] == 2
    assert "gradient" not in result["usage"]
    assert result["stop_reason"] == "depth"


def test_both_parts_reach_the_update():
    policy = scripted_policy()
    fused_graph(policy).invoke({"query": "q"}, context={"depth": 1})
    assert fan_in(phases_asked(policy)) == ["sample", "critique", "update"]
    update = policy.requests[-1][-1].text
    assert update.count(LOSS) == update.count(GRADIENT) == 1
    assert "=== INSTRUCTIONS ===" not in update


@pytest.mark.parametrize(
    "written", ["no divider here", "=== INSTRUCTIONS ===\n1. only these", "why\n=== INSTRUCTIONS ==="]
)
def test_what_is_not_in_two_parts_is_all_loss_and_the_gradient_is_asked_for(written):
    policy = scripted_policy(critique=written)
    result = fused_graph(policy).invoke({"query": "q"})
    assert [(record["loss"], record["gradient"]) for record in result["trajectory"][1:]] == [(written, GRADIENT)] * 2
    assert fan_in(phases_asked(policy)) == ["sample", *["critique", "gradient", "update"] * 2]


@pytest.mark.parametrize(
    ("written", "loss"),
    [
        (f"{LOSS}\n\n**=== INSTRUCTIONS ===**\n\n{GRADIENT}", LOSS),
        (f"{LOSS}\n## === INSTRUCTIONS ===:\n{GRADIENT}", LOSS),
        (f"{LOSS}\n`=== Instructions ===`\n{GRADIENT}", LOSS),
        (f"{LOSS} === INSTRUCTIONS === {GRADIENT}", LOSS),
        (f'"=== INSTRUCTIONS ===" is odd.\n=== INSTRUCTIONS ===\n{GRADIENT}', '"=== INSTRUCTIONS ===" is odd.'),
        (f"{LOSS}\n=== INSTRUCTIONS ===\n{GRADIENT}", LOSS),
    ],
)
def test_the_divider_is_found_as_critics_write_it(written, loss):
    graph = fused_graph(scripted_policy(critique=written))
    step = graph.invoke({"query": "q"}, context={"depth": 1})["trajectory"][1]
    assert (step["loss"], step["gradient"]) == (loss, GRADIENT)


def test_a_loss_node_of_ones_own_may_write_the_loss_alone():
    policy = scripted_policy()
    graph = create_tpo_graph(policy, number_reward(), nodes={"loss": lambda _: {"loss": "mine"}})
    result = graph.invoke({"query": "q"})
    assert fan_in(phases_asked(policy)) == ["sample", *["gradient", "update"] * 2]
    assert [record["loss"] for record in result["trajectory"][1:]] == ["mine"] * 2


def test_a_loss_node_of_ones_own_may_write_both():
    policy = scripted_policy()

    def both(state):
        return {"loss": "mine", "gradient": f"advice for step {state['step'] + 1}"}

    result = create_tpo_graph(policy, number_reward(), nodes={"loss": both}).invoke({"query": "q"})
    assert fan_in(phases_asked(policy)) == ["sample", "update"]
    assert [record["gradient"] for record in result["trajectory"][1:]] == ["advice for step 1", "advice for step 2"]


@pytest.mark.parametrize(("limit", "steps"), [(3, 0), (4, 1), (5, 2)])
def test_the_budget_learns_from_the_first_step_that_a_step_takes_two_requests(chat_server, chat_openai, limit, steps):
    graph = fused_graph(chat_openai(chat_server()))
    result = graph.invoke({"query": "q"}, context={"depth": 2, "budget_requests": limit})
    assert len(result["trajectory"]) == steps + 1


@pytest.mark.parametrize(("limit", "gradient"), [(5, "no divider"), (6, GRADIENT)])
def test_the_budget_is_kept_where_the_critique_is_not_in_two_parts(chat_server, chat_openai, limit, gradient):
    def reply(request, number):
        text = server_reply(request, number)
        return "no divider" if "=== INSTRUCTIONS ===" in text and len(server.bodies) > 2 else text

    server = chat_server(answer=reply)
    result = fused_graph(chat_openai(server)).invoke({"query": "q"}, context={"depth": 2, "budget_requests": limit})
    assert len(server.bodies) == limit
    assert (result["trajectory"][2]["loss"], result["trajectory"][2]["gradient"]) == ("no divider", gradient)


def test_the_phase_gradient_is_seen_although_it_asks_nothing():
    graph = fused_graph(scripted_policy())
    updates = graph.stream({"query": "q"}, context={"depth": 1}, stream_mode="updates")
    assert [update["gradient"] for update in updates if "gradient" in update] == [{"gradient": GRADIENT}]


def test_a_pack_without_the_prompt_is_refused_before_anything_is_paid_for(tmp_path):
    (tmp_path / "pack.toml").write_text("open_tag = '<r>'\nclose_tag = '</r>'\n", encoding="utf-8")
    for name, user in {
        "loss": "$query $best $worst",
        "gradient": "$loss",
        "update": "$gradient $open_tag $close_tag",
    }.items():
        (tmp_path / f"{name}.toml").write_text(f"user = '{user}'\n", encoding="utf-8")
    with pytest.raises(PromptError, match=r"has no critique\.toml"):
        fused_critique(scripted_policy(), prompts=tmp_path)


def test_the_critique_must_show_the_preference_before_anything_is_paid_for(tmp_path):
    (tmp_path / "pack.toml").write_text('extends = "tpo"\n', encoding="utf-8")
    (tmp_path / "critique.toml").write_text("user = '$query $best $worst $critique_divider'\n", encoding="utf-8")
    with pytest.raises(PromptError, match="does not use 'preference' in 'critique'"):
        fused_critique(scripted_policy(), prompts=tmp_path, settings=TPOSettings(preference="kind"))


@pytest.mark.parametrize("name", ["tpo", "base"])
def test_our_packs_can_do_it(name):
    pack = PromptPack.load(name)
    for mode in ("tpo", "revision"):
        pack.check(TPOSettings(mode=mode, preference="kind"), critique="critique")
