"""How the models inside wrappers are found."""

from tpo_graph.policies.providers import change_models, models_inside, unbind
from tpo_graph.testing import ScriptedChatModel


def test_the_models_inside_wrappers_are_found_and_changed():
    first, second = ScriptedChatModel(["a"]), ScriptedChatModel(["b"])
    policy = first.bind(user="me").with_retry().with_fallbacks([second.with_config(tags=["t"])])
    assert models_inside(policy) == [first, second]
    changed = change_models(policy, lambda model: model.model_copy(update={"temperature": 0.5}))
    assert [model.temperature for model in models_inside(changed)] == [0.5, 0.5]
    assert models_inside(policy | str) == models_inside(None) == []


def test_outer_bindings_win():
    model = ScriptedChatModel(["a"])
    policy = model.bind(stop=["a"], user="me").with_config(tags=["inner"]).bind(stop=["b"])
    inner, arguments, config = unbind(policy)
    assert (inner, arguments, config["tags"]) == (model, {"stop": ["b"], "user": "me"}, ["inner"])
