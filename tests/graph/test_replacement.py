"""Nodes, prompts, models and edges that a user puts in place of ours."""

import functools

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableLambda
from langgraph.graph import END
from langgraph.runtime import Runtime
from langgraph.types import Command

from tests.tpo_script import GRADIENT, LOSS, number_reward, phases_asked, scripted_policy
from tpo_graph import ConfigurationError, TPOError, TPOSettings, build_tpo_graph, create_tpo_graph
from tpo_graph.graph.bridge import as_runnable
from tpo_graph.graph.build import make_nodes
from tpo_graph.graph.returns import check_result
from tpo_graph.graph.state import TPOState

MINE = {"loss": "my loss", "gradient": ""}


async def only_state(state):
    return MINE


async def state_and_runtime(state, runtime: Runtime[TPOSettings]):
    assert runtime.context is None or isinstance(runtime.context, TPOSettings)
    return MINE


async def state_and_config(state, config):
    assert config["configurable"]["mark"] == 7
    return MINE


async def state_and_writer(state, writer):
    writer({"mine": True})
    return MINE


def plain_function(state):
    return MINE


def plain_function_with_runtime(state, runtime: Runtime[TPOSettings]):
    assert runtime is not None
    return MINE


class AsyncObject:
    async def __call__(self, state, runtime: Runtime[TPOSettings]):
        assert runtime is not None
        return MINE


class PlainObject:
    def __call__(self, state):
        return MINE


REPLACEMENTS = [
    AsyncObject(),
    PlainObject(),
    functools.partial(state_and_runtime),
    only_state,
    state_and_runtime,
    state_and_config,
    state_and_writer,
    plain_function,
    plain_function_with_runtime,
    RunnableLambda(plain_function),
    RunnableLambda(plain_function, afunc=only_state),
]


@pytest.mark.parametrize("node", REPLACEMENTS, ids=lambda node: getattr(node, "__name__", "Runnable"))
@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_a_node_of_any_kind_takes_the_place_of_ours(node, way):
    policy = scripted_policy()
    graph = create_tpo_graph(policy, number_reward(), nodes={"loss": node})
    config = {"configurable": {"mark": 7}}
    call = graph.invoke({"query": "q"}, config) if way == "invoke" else await graph.ainvoke({"query": "q"}, config)
    assert "loss" not in phases_asked(policy)
    assert [record["loss"] for record in call["trajectory"]] == ["", "my loss", "my loss"]
    assert "my loss" in policy.requests[5][-1].text


@pytest.mark.parametrize("name", ["sample", "score", "select", "loss", "gradient", "update"])
def test_every_node_can_be_replaced(name):
    async def mine(state):
        raise KeyError(f"mine: {name}")

    with pytest.raises(KeyError, match=f"mine: {name}"):
        create_tpo_graph(scripted_policy(), number_reward(), nodes={name: mine}).invoke({"query": "q"})


def test_a_score_node_of_ones_own():
    async def score(state):
        return {
            "cache": [{**candidate, "reward": -float(candidate["text"].split()[-1])} for candidate in state["pending"]],
            "pending": [],
        }

    result = create_tpo_graph(scripted_policy(), number_reward(), nodes={"score": score}).invoke({"query": "q"})
    assert result["answer"] == "cand 0"


REVISION = {"id": "x", "step": 1, "text": "rev 7", "truncated": False}


@pytest.mark.parametrize(
    ("name", "returned", "message", "hint"),
    [
        ("loss", {"critique": "x"}, "returned 'critique' and not 'loss'; the state has no 'critique'", "'loss'"),
        ("loss", {"Loss": "x"}, "returned 'Loss' and not 'loss'; the state has no 'Loss'", "Is 'loss' meant?"),
        ("loss", {"loss": "x", "gradeint": "y"}, "the state has no 'gradeint'", "Is 'gradient' meant?"),
        ("loss", None, "returned nothing and not 'loss'", "'loss'"),
        ("gradient", {}, "returned nothing and not 'gradient'", "'gradient'"),
        ("update", {"pending": [REVISION]}, "returned 'pending' and not 'step'", "'pending', 'step'"),
        ("sample", {"candidates": []}, "returned 'candidates' and not 'pending', 'step'", "'pending', 'step'"),
        ("score", {"rewards": [1.0]}, "returned 'rewards' and not 'cache'", "'cache'"),
        ("select", {"best": {}, "worst": {}}, "returned 'best', 'worst' and not 'stop_reason'", "'stop_reason'"),
        ("select", {"best": {}, "worst": {}, "stop_reason": "depth"}, "and not 'answer'", "'answer'"),
    ],
)
@pytest.mark.parametrize("kind", ["function", "async function", "command", "Runnable"])
async def test_a_node_that_returns_other_keys_than_it_owes_is_named_with_them(name, returned, message, hint, kind):
    def plain(state):
        return Command(update=returned) if kind == "command" else returned

    async def asynchronous(state):
        return returned

    node = {"async function": asynchronous, "Runnable": RunnableLambda(plain)}.get(kind, plain)
    graph = create_tpo_graph(scripted_policy(), number_reward(), nodes={name: node})
    with pytest.raises(ConfigurationError, match=f"node '{name}' .*{message}") as caught:
        await graph.ainvoke({"query": "q"})
    assert hint in caught.value.hint
    with pytest.raises(ConfigurationError, match=message):
        graph.invoke({"query": "q"})


@pytest.mark.parametrize(
    ("name", "returned", "message"),
    [
        ("loss", {"loss": None}, "loss=None, which is not a text"),
        ("score", {"cache": [REVISION]}, "a candidate in 'cache' without a fitting 'reward'"),
        ("score", {"cache": [{**REVISION, "reward": "3"}]}, "without a fitting 'reward'"),
        ("score", {"cache": []}, "No candidate was scored"),
        ("sample", {"pending": [{"text": "a"}], "step": 0}, "'pending' without a fitting 'id', 'step', 'truncated'"),
        ("sample", {"pending": ["a"], "step": 0}, "'pending' without a fitting 'id', 'step', 'text', 'truncated': 'a'"),
        ("sample", {"pending": [], "step": 0}, "No candidate was scored"),
    ],
)
def test_a_node_that_returns_something_else_than_the_others_read_is_named(name, returned, message):
    graph = create_tpo_graph(scripted_policy(), number_reward(), nodes={name: lambda state: returned})
    with pytest.raises(TPOError, match=message):
        graph.invoke({"query": "q"})


def test_a_node_may_write_keys_that_another_node_of_the_graph_brings():
    class WithNotes(TPOState):
        notes: str

    def report(state: WithNotes):
        seen.append(state["notes"])

    def loss(state):
        return {"loss": "my loss", "notes": "mine", "warnings": []}

    seen = []
    builder = build_tpo_graph(scripted_policy(), number_reward(), nodes={"loss": loss})
    builder.add_node("report", report)
    builder.add_edge("loss", "report")
    builder.compile().invoke({"query": "q"}, context={"depth": 1})
    assert seen == ["mine"]


def test_a_node_that_goes_elsewhere_owes_nothing():
    check_result("loss", Command(update={"failures": []}, goto="select"), {}, known=TPOState.__annotations__)


def test_an_update_that_does_not_count_the_step_is_an_error_that_says_what_to_return():
    def update(state):
        return {"pending": [REVISION], "step": state["step"]}

    policy = scripted_policy()
    with pytest.raises(ConfigurationError, match="in place of `update` does not count `step`") as caught:
        create_tpo_graph(policy, number_reward(), nodes={"update": update}).invoke({"query": "q"}, context={"depth": 9})
    assert '"step": state["step"] + 1' in caught.value.hint
    assert len(policy.requests) == 5 + 2 * 2


def test_an_unknown_node_name_is_an_error_that_lists_the_nodes():
    with pytest.raises(ConfigurationError, match="'critic'; allowed: sample, score, select, loss, gradient, update"):
        build_tpo_graph(scripted_policy(), number_reward(), nodes={"critic": plain_function})


def test_a_node_can_be_put_beside_ours():
    builder = build_tpo_graph(scripted_policy(), number_reward())
    seen = []
    builder.add_node("report", lambda state: seen.append(len(state["pending"])))
    builder.add_edge("sample", "report")
    builder.add_edge("report", END)
    assert builder.compile().invoke({"query": "q"}, context={"mode": "bon"})["answer"] == "cand 4"
    assert seen == [5]


async def test_each_node_can_be_used_alone():
    policy = scripted_policy()
    nodes = make_nodes(policy, number_reward(), settings=TPOSettings(n=2, depth=1))
    state = {"messages": [HumanMessage("q")], "trajectory": [], "usage": {}}
    drawn = await nodes["sample"](state)
    state |= {"pending": drawn["pending"], "step": 0, "cache": []}
    assert [candidate["text"] for candidate in state["pending"]] == ["cand 0", "cand 1"]
    state["cache"] = (await nodes["score"](state))["cache"]
    state |= await nodes["select"](state)
    assert (state["best"]["text"], state["stop_reason"]) == ("cand 1", None)
    state["loss"] = (await nodes["loss"](state))["loss"]
    state["gradient"] = (await nodes["gradient"](state))["gradient"]
    assert (state["loss"], state["gradient"]) == (LOSS, GRADIENT)
    assert [candidate["text"] for candidate in (await nodes["update"](state))["pending"]] == ["rev 4", "rev 5"]


@pytest.mark.parametrize("node", REPLACEMENTS[:3] + REPLACEMENTS[7:], ids=range(7))
async def test_a_node_of_any_kind_can_be_called_by_another(node):
    runnable = as_runnable(node, "loss")

    async def loss(state, config):
        return await runnable.ainvoke(state, config)

    graph = create_tpo_graph(scripted_policy(), number_reward(), nodes={"loss": loss})
    assert (await graph.ainvoke({"query": "q"}))["trajectory"][1]["loss"] == "my loss"


def test_a_graph_can_be_built_and_compiled_more_than_once():
    builder = build_tpo_graph(scripted_policy(), number_reward())
    assert builder.compile().invoke({"query": "q"})["answer"] == "rev 18"
    assert builder.compile(name="other").name == "other"


def test_compile_options_reach_langgraph():
    graph = create_tpo_graph(scripted_policy(), number_reward(), interrupt_before=["loss"], name="mine")
    assert graph.name == "mine"
    assert "stop_reason" not in graph.invoke({"query": "q"}) or graph.invoke({"query": "q"})["stop_reason"] is None


def test_the_graph_is_the_papers_figure():
    drawn = create_tpo_graph(scripted_policy(), number_reward()).get_graph().draw_mermaid()
    lines = {line.strip().rstrip(";") for line in drawn.splitlines()}
    edges = {line for line in lines if "->" in line}
    assert edges == {
        "__start__ --> sample",
        "sample --> score",
        "score --> select",
        "select -.-> loss",
        "select -.-> __end__",
        "loss --> gradient",
        "gradient --> update",
        "update --> score",
    }
    assert [
        line
        for line in drawn.splitlines()
        if line.strip().endswith(")") and "(" in line and "start" not in line and "end" not in line
    ] == [f"\t{name}({name})" for name in ("sample", "score", "select", "loss", "gradient", "update")]


def test_the_context_schema_tells_studio_which_node_a_knob_belongs_to():
    schema = create_tpo_graph(scripted_policy(), number_reward()).get_context_jsonschema()
    nodes = {name: field["langgraph_nodes"] for name, field in schema["properties"].items()}
    assert nodes.keys() == TPOSettings.model_fields.keys()
    assert set().union(*nodes.values()) <= {"sample", "score", "select", "loss", "gradient", "update"}
    assert nodes["seed"] == ["sample", "loss", "gradient", "update"]
    assert nodes["mode"] == ["select", "loss", "gradient", "update"]
    assert nodes["preference"] == ["score", "loss", "gradient", "update"]


def test_the_schemas_of_input_and_output_can_be_read():
    graph = create_tpo_graph(scripted_policy(), number_reward())
    assert graph.get_input_jsonschema()["properties"].keys() == {"messages", "query", "drafts"}
    assert graph.get_output_jsonschema()["properties"].keys() >= {
        "answer",
        "cache",
        "trajectory",
        "usage",
        "stop_reason",
    }
