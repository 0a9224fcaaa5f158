"""Imports point one way, the package is light to import, and its public names are what it says."""

import ast
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import tpo_graph
from tests.fresh_process import run_script

PACKAGE = Path(tpo_graph.__file__).parent
# a folder or module imports from itself and from those in the lines above it, and not from those in its own line
ORDER = """
    errors types
    _bounded_cache _json_schema _private_api _storable
    settings
    accounting
    selection
    prompts
    policies
    rewards
    graph
    variants human
    run_parts
    langchain studio
    evaluation report serving
    cli
    notebook
    __main__
"""
PLACE = {name: place for place, line in enumerate(ORDER.split("\n")) for name in line.split()}
OUTSIDE_OF_LAYERS = {"testing"}
HEAVY = {"torch", "transformers"}


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path, *, typing_too: bool = True) -> set[str]:
    """Full names of the modules that a file imports anywhere, also inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[int] = set()
    if not typing_too:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
                skipped |= {id(child) for child in ast.walk(node)}
    names = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def test_imports_point_one_way():
    for path in modules():
        layer = layer_of(path)
        assert layer in PLACE.keys() | OUTSIDE_OF_LAYERS, f"{layer} has no place in the order"
        own = {name.split(".")[1] for name in imported(path, typing_too=False) if name.startswith("tpo_graph.")}
        assert "testing" not in own or layer in ("testing", "cli")  # the picture of the graph needs no real model
        if layer in PLACE:
            later = {name for name in own - {layer} if name in PLACE and PLACE[name] >= PLACE[layer]}
            assert not later, f"{path} imports {later}"


def test_types_and_errors_do_not_import_each_other():
    for name in ("errors", "types"):
        assert not any(module.startswith("tpo_graph") for module in imported(PACKAGE / f"{name}.py", typing_too=False))


def test_torch_and_transformers_are_imported_in_one_place():
    for path in modules():
        heavy = HEAVY & {name.split(".")[0] for name in imported(path, typing_too=False)}
        at_home = path.is_relative_to(PACKAGE / "rewards" / "local") or path == PACKAGE / "_private_api.py"
        assert not heavy or at_home, path


def test_the_private_api_module_imports_nothing_before_it_is_used():
    top_level = ast.parse((PACKAGE / "_private_api.py").read_text(encoding="utf-8")).body
    modules = {node.module for node in top_level if isinstance(node, ast.ImportFrom)}
    assert modules == {"abc", "functools", "typing"}
    assert not any(isinstance(node, ast.Import) for node in top_level)


@pytest.mark.subprocess
def test_importing_the_package_is_light_and_leaves_nothing_behind(tmp_path):
    script = f"""
        import os, sys, time
        os.chdir({str(tmp_path)!r})
        began = time.process_time()
        import tpo_graph
        spent = time.process_time() - began
        heavy = {{"torch", "transformers", "langgraph", "langchain_core", "openai", "pydantic"}} & sys.modules.keys()
        assert not heavy, heavy
        assert spent < 1, spent
        assert os.listdir() == [], os.listdir()
        assert [name for name in dir(tpo_graph)] == sorted(tpo_graph.__all__)
    """
    ended = run_script(script)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("", "", 0)


@pytest.mark.subprocess
def test_building_a_graph_imports_no_torch():
    script = """
        import sys
        from tpo_graph import TPOSettings, create_tpo_graph
        from tpo_graph.testing import ScriptedChatModel, TableReward
        create_tpo_graph(ScriptedChatModel(["a"]), TableReward({"a": 1.0})).invoke({"query": "q"}, context={"n": 1})
        assert not {"torch", "transformers"} & sys.modules.keys()
    """
    assert run_script(script).returncode == 0


def test_every_public_name_resolves():
    for name in tpo_graph.__all__:
        assert getattr(tpo_graph, name) is not None, name


def test_all_is_sorted_and_is_what_dir_lists():
    assert tpo_graph.__all__ == sorted(tpo_graph.__all__) == dir(tpo_graph)


def test_the_names_that_most_people_need_are_public():
    names = {"build_tpo_graph", "create_tpo_graph", "load_policy", "load_reward", "TPOSettings", "TPOState"}
    names |= {"Candidate", "RewardModel", "PromptPack", "TPOError"}
    assert names <= set(tpo_graph.__all__)


def test_everything_that_the_package_exports_is_in_all():
    exported = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module.startswith("tpo_graph")
        for alias in node.names
    }
    assert exported == set(tpo_graph.__all__)


def test_every_kind_of_error_is_exported():
    kinds = {name for name, kind in vars(tpo_graph.errors).items() if str(kind).startswith("<class 'tpo_graph")}
    assert kinds <= set(tpo_graph.__all__)


def test_the_version_is_the_installed_one():
    assert tpo_graph.__version__ == version("tpo-graph")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tpo_graph.nothing


def test_library_code_never_prints():
    for path in modules():
        if layer_of(path) == "cli":
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        assert not any(getattr(call.func, "id", "") == "print" for call in calls), path


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()
    assert sys.version_info >= (3, 11)
