"""The Studio graph in this process: how it loads what a run names."""

import asyncio
from pathlib import Path

import pytest

from tests.fresh_process import run_script
from tests.studio import number_reward
from tests.studio.conftest import REWARD
from tests.tpo_script import phase_of
from tpo_graph import ConfigurationError, RewardError, TPOSettings
from tpo_graph.prompts.pack import PromptPack
from tpo_graph.studio import StudioSettings, create_studio_graph

COUNTED = f"python:{number_reward.__name__}:Counted"


@pytest.fixture
def names(chat_server):
    server = chat_server()
    return server, {"policy": f"server:{server.url}#scripted", "reward": REWARD, "n": 2, "depth": 1}


async def test_models_are_loaded_once_and_what_fails_is_tried_again(names, monkeypatch):
    monkeypatch.setattr(number_reward.Counted, "made", 0)
    graph, context = create_studio_graph(), {**names[1], "reward": COUNTED, "mode": "bon"}
    with pytest.raises(ConfigurationError, match="the disk was busy"):
        await graph.ainvoke({"query": "q"}, context=context)
    results = await asyncio.gather(*(graph.ainvoke({"query": "q"}, context=context) for _ in range(3)))
    other = await graph.ainvoke({"query": "q"}, context={**context, "loss_prompt": "$query $best $worst"})
    assert [result["best"]["reward"] for result in [*results, other]] == [2.0] * 4


def test_it_runs_without_an_event_loop_too(names):
    assert create_studio_graph().invoke({"query": "q"}, context=names[1])["stop_reason"] == "depth"


async def test_settings_given_at_build_are_the_defaults(names):
    graph = create_studio_graph(TPOSettings(mode="bon"))
    assert (await graph.ainvoke({"query": "q"}, context=names[1]))["stop_reason"] == "bon"
    assert (await graph.ainvoke({"query": "q"}, context={**names[1], "mode": "tpo"}))["stop_reason"] == "depth"


async def test_the_critic_writes_loss_and_gradient(names, chat_server):
    critic = chat_server()
    await create_studio_graph().ainvoke({"query": "q"}, context={**names[1], "critic": f"server:{critic.url}#scripted"})
    assert [phase_of(request.text) for request in critic.requests] == ["loss", "gradient"]
    assert [phase_of(request.text) for request in names[0].requests] == ["sample", "update"]


async def test_in_mode_revision_the_prompt_of_that_mode_is_edited(names):
    words = "Do not write a new response: what does $best as an answer to $query lack?"
    await create_studio_graph().ainvoke({"query": "q"}, context={**names[1], "mode": "revision", "loss_prompt": words})
    assert next(request.text for request in names[0].requests if phase_of(request.text) == "loss").endswith("lack?")


@pytest.mark.subprocess
def test_of_several_policies_in_the_environment_the_first_is_the_default():
    script = """
        import os
        os.environ["TPO_POLICY"] = " a=server:http://h/v1#m  b=openai:gpt "
        from tpo_graph.studio import StudioSettings
        print(StudioSettings().policy)
    """
    assert run_script(script).stdout == "server:http://h/v1#m\n"


def test_without_edits_the_pack_stays_as_it_is():
    pack = PromptPack.load("tpo")
    assert StudioSettings().edit(pack) is pack
    assert StudioSettings(loss_system="You are brief.").edit(pack).prompts["update"] is pack.prompts["update"]


def test_a_failing_reward_is_one_of_ours(names):
    context = {**names[1], "reward": f"python:{Path(__file__).parent / 'number_reward.py'}:number", "n": 1}
    names[0].answer = lambda request, number: "no number"
    with pytest.raises(RewardError, match="could not convert"):
        create_studio_graph().invoke({"query": "q"}, context=context)
