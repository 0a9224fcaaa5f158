"""A real `langgraph dev`, over its SDK: what Studio shows and does."""

import asyncio

import pytest

from tests.tpo_script import GRADIENT, LOSS, number_reward, phase_of, scripted_policy
from tpo_graph import create_tpo_graph
from tpo_graph.studio import StudioSettings

pytestmark = pytest.mark.subprocess

NODES = ["sample", "score", "select", "loss", "gradient", "update"]
STEPS = ["sample", "score", "select", "loss", "gradient", "update", "score", "select"]


async def run(client, context, thread=None, **options):
    """The parts of a run's stream, on a thread of its own when none is given."""
    thread = thread or (await client.threads.create())["thread_id"]
    asked = {"input": {"query": "q"}, "stream_mode": "values", "context": context, **options}
    return [part async for part in client.runs.stream(thread, "tpo", **asked)]


async def last_state(client, context, thread=None, **options):
    parts = await run(client, context, thread, **options)
    assert [part.data for part in parts if part.event == "error"] == []
    return parts[-1].data


def shown(server, phase):
    """The prompts that the policy was shown in a phase."""
    return [request.text for request in server.requests if phase_of(request.text) == phase]


async def test_the_context_schema_has_every_knob_with_its_node(client, assistant):
    schema = (await client.assistants.get_schemas(assistant))["context_schema"]
    fields = schema["properties"]
    assert fields.keys() == StudioSettings.model_fields.keys()
    assert list(fields)[:6] == ["policy", "reward", "n", "depth", "preference", "ask"]
    assert all(field["description"] and set(field["langgraph_nodes"]) <= set(NODES) for field in fields.values())
    assert (fields["n"]["minimum"], fields["n"]["maximum"], fields["depth"]["default"]) == (1, 1024, 2)
    assert (fields["policy"]["default"], fields["reward"]["default"]) == ("local", "local")
    prompts = {name for name, field in fields.items() if field.get("langgraph_type") == "prompt"}
    asked = ("sample", "loss", "gradient", "critique", "update")
    assert prompts == {f"{phase}_{part}" for phase in asked for part in ("prompt", "system")}


async def test_input_and_state_have_schemas_that_can_be_read(client, assistant):
    schemas = await client.assistants.get_schemas(assistant)
    fields = schemas["input_schema"]["properties"]
    assert fields.keys() == {"messages", "query", "drafts"} and all(field["description"] for field in fields.values())
    assert schemas["state_schema"]["properties"].keys() >= {"cache", "trajectory", "loss", "gradient", "answer"}


async def test_the_drawing_is_that_of_the_graph(client, assistant):
    drawn = await client.assistants.get_graph(assistant)
    assert [node["id"] for node in drawn["nodes"]] == ["__start__", *NODES, "__end__"]
    ours = create_tpo_graph(scripted_policy(), number_reward()).get_graph()
    edges = {(edge["source"], edge["target"], edge.get("conditional", False)) for edge in drawn["edges"]}
    assert edges == {(edge.source, edge.target, edge.conditional) for edge in ours.edges}


async def test_a_run_tells_what_a_person_wants_to_read(client, context):
    state = await last_state(client, context)
    assert state["answer"].startswith("rev ") and state["stop_reason"] == "depth"
    assert [candidate["id"] for candidate in state["cache"]] == ["0-0", "0-1", "1-0", "1-1"]
    order = ["id", "step", "reward", "truncated", "finish_reason", "text"]  # the long text hides nothing
    assert all(list(candidate) == order for candidate in [*state["cache"], state["best"]])
    assert [record["loss"] for record in state["trajectory"]] == ["", "the loss"]
    assert [[place["id"] for place in record["ranking"]] for record in state["trajectory"]] == [
        ["0-1", "0-0"],
        ["1-1", "1-0"],
    ]
    assert [message["type"] for message in state["messages"]] == ["human", "ai"]


async def test_a_run_streams_in_every_mode(client, context):
    modes = ["values", "updates", "messages-tuple", "custom", "tasks", "checkpoints", "debug"]
    parts = await run(client, context, stream_mode=modes)
    events = {part.event for part in parts}
    assert events == {"metadata", "values", "updates", "messages", "custom", "tasks", "checkpoints", "debug"}
    assert [next(iter(part.data)) for part in parts if part.event == "updates"] == STEPS
    assert [part.data["name"] for part in parts if part.event == "tasks" and "input" in part.data] == STEPS
    steps = [part.data["tpo_step"]["step"] for part in parts if part.event == "custom" and "tpo_step" in part.data]
    assert steps == [0, 1]
    texts = [part.data[0]["content"] for part in parts if part.event == "messages"]
    assert len(texts) == 1 and texts[0].startswith("rev ")  # the answer, and no draft


async def test_a_run_streams_messages_as_they_grow(client, context):
    parts = await run(client, context, stream_mode="messages")
    assert {part.event for part in parts} == {"metadata", "messages/metadata", "messages/complete"}
    (message,) = [message for part in parts if part.event == "messages/complete" for message in part.data]
    assert message["type"] == "ai" and message["content"].startswith("rev ")


async def test_a_run_streams_its_events(client, context):
    parts = await run(client, context, stream_mode="events")
    names = [part.data["name"] for part in parts if part.event == "events" and part.data["event"] == "on_chain_start"]
    assert [name for name in names if name in NODES] == STEPS


async def test_an_edited_state_is_replayed_from_its_checkpoint(client, context, studio_chat_server):
    thread = (await client.threads.create())["thread_id"]
    first = await last_state(client, context, thread)
    history = await client.threads.get_history(thread, limit=20)
    before_loss = next(state for state in history if state["next"] == ["loss"])
    assert [candidate["id"] for candidate in before_loss["values"]["cache"]] == ["0-0", "0-1"]
    edit = {"best": {**before_loss["values"]["best"], "text": "what a person wrote"}}
    forked = await client.threads.update_state(thread, edit, checkpoint=before_loss["checkpoint"], as_node="select")
    studio_chat_server.requests.clear()
    second = await last_state(client, context, thread, input=None, checkpoint=forked["checkpoint"])
    assert all(
        "what a person wrote" in prompt for phase in ("loss", "update") for prompt in shown(studio_chat_server, phase)
    )
    assert shown(studio_chat_server, "sample") == []
    assert [candidate["id"] for candidate in second["cache"]] == [candidate["id"] for candidate in first["cache"]]
    assert second["cache"][:2] == first["cache"][:2] and second["cache"][2:] != first["cache"][2:]


async def test_two_threads_run_at_once(client, context):
    short, long = await asyncio.gather(
        last_state(client, {**context, "mode": "bon", "n": 3}), last_state(client, {**context, "depth": 2})
    )
    assert (len(short["cache"]), short["stop_reason"]) == (3, "bon")
    assert (len(long["cache"]), long["stop_reason"]) == (6, "depth")


async def test_a_thread_that_is_used_again_starts_a_new_run(client, context):
    thread = (await client.threads.create())["thread_id"]
    await last_state(client, context, thread)
    state = await last_state(client, {**context, "mode": "bon"}, thread, input={"query": "and then?"})
    assert [candidate["id"] for candidate in state["cache"]] == ["0-0", "0-1"]
    assert [message["type"] for message in state["messages"]] == ["human", "ai"] * 2


async def test_a_prompt_that_is_edited_is_what_the_policy_reads(client, context, studio_chat_server):
    words = "Do not write a new response, but say this of $query: $best is better than $worst."
    await last_state(client, {**context, "loss_prompt": words, "loss_system": "You are brief."})
    (asked,) = shown(studio_chat_server, "loss")
    assert asked.startswith("You are brief.") and "say this of q: cand " in asked


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ({"n": 0}, "ConfigurationError", "Setting n=0: Input should be greater than or equal to 1."),
        ({"mode": "best"}, "ConfigurationError", "Setting mode='best': Input should be 'tpo', 'revision' or 'bon'."),
        ({"reward": "lenght:9"}, "ConfigurationError", "Unknown reward model 'lenght:9'; allowed: local, hf:OWNER"),
        ({"policy": "server:here"}, "ConfigurationError", "The policy 'server:here' has no address that begins with"),
        (
            {"policy": "server:http://127.0.0.1:9/v1"},
            "PolicyError",
            "The server at http://127.0.0.1:9/v1 does not list",
        ),
        ({"reward": "hf:./nowhere"}, "RewardError", "Reward model './nowhere': there is no such folder"),
        ({"prompts": "none such"}, "PromptError", "No prompt pack 'none such': neither one of"),
        ({"loss_prompt": "$answer"}, "PromptError", "Unknown variable '$answer' in loss (user); allowed"),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else "",
)
async def test_a_bad_context_is_refused_and_nothing_is_asked(client, context, studio_chat_server, wrong, kind, message):
    parts = await run(client, {**context, **wrong})
    (error,) = [part.data for part in parts if part.event == "error"]
    assert error["error"] == kind and error["message"].startswith(message)
    assert studio_chat_server.requests == []


async def test_a_person_is_asked_and_answers_over_the_sdk(client, context, studio_chat_server):
    thread = (await client.threads.create())["thread_id"]
    context = {**context, "ask": True}
    state = await last_state(client, context, thread)
    (question,) = state["__interrupt__"]
    assert [candidate["id"] for candidate in question["value"]["candidates"]] == ["0-1", "0-0"]
    assert (await client.threads.get(thread))["status"] == "interrupted"
    state = await last_state(client, context, thread, input=None, command={"resume": {"best": "9-9"}})
    assert state["__interrupt__"][0]["value"]["problem"].startswith("best='9-9' is not a candidate")
    words = {"best": "0-0", "worst": "0-1", "critique": "my own words"}
    state = await last_state(client, context, thread, input=None, command={"resume": words})
    assert (state["best"]["id"], state["loss"]) == ("0-0", "my own words")
    assert shown(studio_chat_server, "loss") == []
    state = await last_state(client, context, thread, input=None, command={"resume": "stop"})
    assert (state["stop_reason"], state["trajectory"][1]["loss"]) == ("person", "my own words")


async def test_a_person_edits_the_critique_over_the_sdk(client, context, studio_chat_server):
    thread = (await client.threads.create())["thread_id"]
    context = {**context, "edit_critique": True, "variant": "fused-critique"}
    asked = (await last_state(client, context, thread))["__interrupt__"][0]["value"]
    assert (asked["kind"], asked["critique"], asked["gradient"]) == ("tpo_critique", LOSS, GRADIENT)
    state = await last_state(client, context, thread, input=None, command={"resume": "It is stiff."})
    assert (state["trajectory"][1]["loss"], state["trajectory"][1]["gradient"]) == ("It is stiff.", GRADIENT)
    assert all("It is stiff." in prompt for prompt in shown(studio_chat_server, "update"))
    assert len(shown(studio_chat_server, "critique")) == 1


async def test_a_person_is_the_reward_over_the_sdk(client, context):
    thread = (await client.threads.create())["thread_id"]
    context = {**context, "reward": "person", "mode": "bon"}
    asked = (await last_state(client, context, thread))["__interrupt__"][0]["value"]
    assert [candidate["id"] for candidate in asked["candidates"]] == ["0-0", "0-1"]
    state = await last_state(client, context, thread, input=None, command={"resume": {"ratings": {"0-0": 2, "0-1": 1}}})
    assert state["best"]["id"] == "0-0" and state["stop_reason"] == "bon"


@pytest.mark.embedded
async def test_the_embedded_models_answer(client, embedded_model):
    state = await last_state(client, {"policy": embedded_model, "mode": "bon", "n": 2, "sample_max_new_tokens": 12})
    assert state["answer"] and {candidate["step"] for candidate in state["cache"]} == {0}


def test_nothing_blocked_the_event_loop(development_server):
    assert "BlockingError" not in development_server.log.read_text()
