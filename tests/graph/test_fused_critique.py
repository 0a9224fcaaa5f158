"""`fuse_critique`: loss and gradient from one request, and what happens when the critic does not keep to the form."""

import pytest

from tests.tpo_script import GRADIENT, LOSS, number_reward, phases_asked, scripted_policy, server_reply
from tpo_graph import PromptError, PromptPack, TPOSettings, create_tpo_graph

FUSED = {"fuse_critique": True}
SEPARATE = ["sample", "loss", "gradient", "update", "loss", "gradient", "update"]


def fan_in(phases):
    """Phases without the repeats of a policy that is asked N times."""
    return [phase for i, phase in enumerate(phases) if i == 0 or phase != phases[i - 1]]


@pytest.mark.parametrize("mode", ["tpo", "revision"])
def test_it_saves_a_request_in_each_step(chat_server, chat_openai, mode):
    server = chat_server()
    result = create_tpo_graph(chat_openai(server), number_reward()).invoke(
        {"query": "q"}, context={"mode": mode, **FUSED}
    )
    assert len(server.bodies) == 5
    assert [record["requests"] for record in result["trajectory"]] == [1, 2, 2]
    assert all(record["loss"] == LOSS and record["gradient"] == GRADIENT for record in result["trajectory"][1:])
    assert result["usage"]["loss"]["requests"] == 2
    assert "gradient" not in result["usage"]
    assert result["stop_reason"] == "depth"


def test_both_parts_reach_the_update():
    policy = scripted_policy()
    create_tpo_graph(policy, number_reward()).invoke({"query": "q"}, context={**FUSED, "depth": 1})
    assert fan_in(phases_asked(policy)) == ["sample", "critique", "update"]
    update = policy.requests[-1][-1].text
    assert update.count(LOSS) == update.count(GRADIENT) == 1
    assert "=== INSTRUCTIONS ===" not in update


@pytest.mark.parametrize(
    "written", ["no divider here", "=== INSTRUCTIONS ===\n1. only these", "why\n=== INSTRUCTIONS ==="]
)
def test_what_is_not_in_two_parts_is_all_loss_and_the_gradient_is_asked_for(written):
    policy = scripted_policy(critique=written)
    result = create_tpo_graph(policy, number_reward()).invoke({"query": "q"}, context=FUSED)
    assert [(record["loss"], record["gradient"]) for record in result["trajectory"][1:]] == [(written, GRADIENT)] * 2
    assert fan_in(phases_asked(policy)) == ["sample", *["critique", "gradient", "update"] * 2]


@pytest.mark.parametrize(
    ("written", "loss"),
    [
        (f"{LOSS}\n\n**=== INSTRUCTIONS ===**\n\n{GRADIENT}", LOSS),
        (f"{LOSS}\n## === INSTRUCTIONS ===:\n{GRADIENT}", LOSS),
        (f"{LOSS} === INSTRUCTIONS === {GRADIENT}", LOSS),
        (f'"=== INSTRUCTIONS ===" is odd.\n=== INSTRUCTIONS ===\n{GRADIENT}', '"=== INSTRUCTIONS ===" is odd.'),
        (f"{LOSS}\n=== INSTRUCTIONS ===\n{GRADIENT}", LOSS),
    ],
)
def test_the_divider_is_found_as_critics_write_it(written, loss):
    graph = create_tpo_graph(scripted_policy(critique=written), number_reward())
    step = graph.invoke({"query": "q"}, context={**FUSED, "depth": 1})["trajectory"][1]
    assert (step["loss"], step["gradient"]) == (loss, GRADIENT)


def test_a_loss_node_of_ones_own_may_write_the_loss_alone():
    policy = scripted_policy()
    graph = create_tpo_graph(policy, number_reward(), nodes={"loss": lambda _: {"loss": "mine"}})
    result = graph.invoke({"query": "q"}, context=FUSED)
    assert fan_in(phases_asked(policy)) == ["sample", *["gradient", "update"] * 2]
    assert [record["loss"] for record in result["trajectory"][1:]] == ["mine"] * 2


def test_a_loss_node_of_ones_own_may_write_both():
    policy = scripted_policy()

    def both(state):
        return {"loss": "mine", "gradient": f"advice for step {state['step'] + 1}"}

    result = create_tpo_graph(policy, number_reward(), nodes={"loss": both}).invoke({"query": "q"})
    assert fan_in(phases_asked(policy)) == ["sample", "update"]
    assert [record["gradient"] for record in result["trajectory"][1:]] == ["advice for step 1", "advice for step 2"]


@pytest.mark.parametrize(("limit", "steps"), [(2, 0), (3, 1), (4, 1), (5, 2)])
def test_the_budget_counts_the_fused_request_once(chat_server, chat_openai, limit, steps):
    graph = create_tpo_graph(chat_openai(chat_server()), number_reward())
    result = graph.invoke({"query": "q"}, context={**FUSED, "depth": 2, "budget_requests": limit})
    assert len(result["trajectory"]) == steps + 1


@pytest.mark.parametrize(("limit", "asked"), [(3, 3), (4, 4), (6, 6), (7, 7)])
def test_the_budget_is_kept_where_the_critique_is_not_in_two_parts(chat_server, chat_openai, limit, asked):
    server = chat_server(answer=lambda request, number: _undivided(server_reply(request, number)))
    graph = create_tpo_graph(chat_openai(server), number_reward())
    result = graph.invoke({"query": "q"}, context={**FUSED, "depth": 2, "budget_requests": limit})
    assert len(server.bodies) == asked
    if limit == 3:
        assert (result["trajectory"][1]["loss"], result["trajectory"][1]["gradient"]) == ("no divider", "no divider")


def _undivided(text: str) -> str:
    return "no divider" if "=== INSTRUCTIONS ===" in text else text


def test_the_phase_gradient_is_seen_although_it_asks_nothing():
    graph = create_tpo_graph(scripted_policy(), number_reward())
    updates = graph.stream({"query": "q"}, context={**FUSED, "depth": 1}, stream_mode="updates")
    assert [each["gradient"] for each in updates if "gradient" in each] == [{"gradient": GRADIENT}]


def test_a_pack_without_the_prompt_is_refused_before_anything_is_paid_for(tmp_path):
    (tmp_path / "pack.toml").write_text("open_tag = '<r>'\nclose_tag = '</r>'\n", encoding="utf-8")
    for name, user in {
        "loss": "$query $best $worst",
        "gradient": "$loss",
        "update": "$gradient $open_tag $close_tag",
    }.items():
        (tmp_path / f"{name}.toml").write_text(f"user = '{user}'\n", encoding="utf-8")
    policy = scripted_policy()
    with pytest.raises(PromptError, match=r"has no critique\.toml"):
        create_tpo_graph(policy, number_reward(), prompts=tmp_path, settings=TPOSettings(fuse_critique=True))
    graph = create_tpo_graph(policy, number_reward(), prompts=tmp_path)
    with pytest.raises(PromptError, match=r"has no critique\.toml"):
        graph.invoke({"query": "q"}, context=FUSED)
    assert policy.requests == []
    assert graph.invoke({"query": "q"}, context={**FUSED, "mode": "bon"})["stop_reason"] == "bon"


@pytest.mark.parametrize("name", ["tpo", "base"])
def test_our_packs_can_do_it(name):
    pack = PromptPack.load(name)
    for mode in ("tpo", "revision"):
        pack.check(TPOSettings(mode=mode, fuse_critique=True, preference="kind"))
