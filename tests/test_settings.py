"""The knobs: defaults of the paper, where values come from, and what a wrong one says."""

import math
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

import tpo_graph
from tpo_graph import ConfigurationError, TPOSettings
from tpo_graph.settings import OTHER_VARIABLES, Sampling

NAMES = {
    *("n", "depth", "mode", "preference", "seed", "tolerance", "patience", "target_reward"),
    *("budget_requests", "budget_tokens", "budget_seconds", "open_tag", "close_tag", "max_shown_tokens"),
}
PHASES = ("sample", "loss", "gradient", "update")


def test_the_defaults_are_the_papers():
    settings = TPOSettings()
    assert (settings.n, settings.depth, settings.mode, settings.seed) == (5, 2, "tpo", None)
    assert settings.max_shown_tokens == 2048
    for phase, top_p in zip(PHASES, (0.95, 0.99, 0.99, 0.95), strict=True):
        assert settings.sampling(phase) == Sampling(temperature=0.7, top_p=top_p, max_new_tokens=2048)


def test_every_setting_of_the_design_has_its_name():
    knobs = {f"{phase}_{knob}" for phase in PHASES for knob in ("temperature", "top_p", "max_new_tokens", "stop")}
    assert TPOSettings.model_fields.keys() >= NAMES | knobs


def test_every_setting_says_what_it_is():
    assert all(field.description for field in TPOSettings.model_fields.values())


def test_explicit_beats_environment_beats_file_beats_default(tmp_path, monkeypatch):
    file = tmp_path / "tpo.toml"
    file.write_text('n = 11\ndepth = 12\nmode = "revision"\nsample_stop = ["A"]\n', encoding="utf-8")
    monkeypatch.setenv("TPO_DEPTH", "22")
    monkeypatch.setenv("TPO_MODE", "bon")
    settings = TPOSettings.load(file, mode="tpo")
    assert (settings.n, settings.depth, settings.mode, settings.sample_stop) == (11, 22, "tpo", ("A",))
    assert settings.patience == 1


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("TPO_N", "7", 7),
        ("tpo_n", "7", 7),
        ("TPO_SEED", "none", None),
        ("TPO_SAMPLE_TEMPERATURE", "None", None),
        ("TPO_TARGET_REWARD", "-1.5", -1.5),
        ("TPO_PREFERENCE", "be kind", "be kind"),
        ("TPO_SAMPLE_STOP", '["a", "b"]', ("a", "b")),
        ("TPO_KEEP_TRUNCATED", "true", True),
        ("TPO_OPEN_TAG", "", None),
    ],
)
def test_values_of_the_environment(monkeypatch, name, text, value):
    monkeypatch.setenv(name, text)
    assert getattr(TPOSettings.load(), name.lower().removeprefix("tpo_")) == value


@pytest.mark.parametrize(
    ("name", "said"), [("TPO_DEPHT", " Is TPO_DEPTH meant?"), ("TPO_POLCY", " Is TPO_POLICY meant?"), ("TPO_XYZZY", "")]
)
def test_a_variable_that_is_no_setting_is_warned_of_once(monkeypatch, caplog, name, said):
    monkeypatch.setenv(name, "3")
    monkeypatch.setenv("TPO_SECOND_REWARD", "local")
    for _ in range(2):
        assert TPOSettings.load() == TPOSettings()
    assert caplog.messages == [f"The variable {name} is no setting and is ignored.{said}"]


def test_every_variable_that_the_package_reads_is_known():
    sources = [path.read_text(encoding="utf-8") for path in Path(tpo_graph.__file__).parent.rglob("*.py")]
    read = {name for source in sources for name in re.findall(r"""["'](TPO_[A-Z_]*[A-Z])["']""", source)}
    settings = {f"TPO_{name.upper()}" for name in TPOSettings.model_fields}
    assert read - settings == OTHER_VARIABLES


def test_building_an_object_reads_no_environment(monkeypatch):
    monkeypatch.setenv("TPO_N", "7")
    assert TPOSettings().n == 5


def test_none_may_be_set_explicitly(monkeypatch):
    monkeypatch.setenv("TPO_SEED", "7")
    assert TPOSettings.load(seed=None).seed is None


@pytest.mark.parametrize(
    "values",
    [
        {"n": 0},
        {"n": 1025},
        {"n": "five"},
        {"n": None},
        {"depth": -1},
        {"mode": "best"},
        {"seed": -1},
        {"tolerance": -0.1},
        {"tolerance": math.inf},
        {"patience": 0},
        {"target_reward": math.nan},
        {"budget_requests": 0},
        {"budget_tokens": 0},
        {"budget_seconds": 0},
        {"open_tag": " "},
        {"close_tag": ""},
        {"max_shown_tokens": 0},
        {"on_failure": "ignore"},
        {"sample_temperature": -0.1},
        {"loss_temperature": 2.1},
        {"gradient_top_p": 0},
        {"update_top_p": 1.1},
        {"update_max_new_tokens": 0},
        {"sample_stop": [""]},
    ],
    ids=str,
)
def test_a_value_out_of_range_is_named(values):
    ((name, value),) = values.items()
    with pytest.raises(ConfigurationError, match=f"{name}=") as caught:
        TPOSettings(**values)
    assert repr(value) in str(caught.value)
    assert isinstance(caught.value.__cause__, ValidationError)


def test_an_unknown_name_lists_the_settings():
    with pytest.raises(ConfigurationError, match="Unknown setting 'temprature'") as caught:
        TPOSettings.load(temprature=1)
    assert "sample_temperature" in caught.value.hint
    assert "budget_requests" in caught.value.hint


def test_every_wrong_value_is_named_at_once():
    with pytest.raises(ConfigurationError) as caught:
        TPOSettings(n=0, depth=-1, colour="red")
    assert all(name in str(caught.value) for name in ("n=0", "depth=-1", "'colour'"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("TPO_DEPTH", "abc"),
        ("TPO_N", "0"),
        ("TPO_MODE", "best"),
        ("TPO_BUDGET_SECONDS", "-1"),
        ("TPO_KEEP_TRUNCATED", "perhaps"),
        ("TPO_SAMPLE_STOP", '["a", 7]'),
        ("TPO_SAMPLE_STOP", '["a"'),
    ],
)
def test_a_wrong_variable_is_named_as_a_person_set_it(monkeypatch, name, text):
    monkeypatch.setenv(name, text)
    with pytest.raises(ConfigurationError, match=name):
        TPOSettings.load()


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"n = ", "not valid TOML"), (b"\xff\xfe", "not UTF-8"), (b"m = 1", "Unknown setting 'm'")],
)
def test_a_file_that_can_not_be_used_is_an_error(tmp_path, content, said):
    file = tmp_path / "tpo.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=said):
        TPOSettings.load(file)


def test_a_file_that_is_not_there_is_an_error_with_its_path(tmp_path):
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml.*No such file"):
        TPOSettings.load(tmp_path / "nowhere.toml")


def test_settings_do_not_change():
    with pytest.raises(ValidationError):
        TPOSettings().n = 3


@pytest.mark.parametrize(
    ("base", "context", "expected"),
    [
        ({"n": 3}, None, {"n": 3, "depth": 2}),
        ({"n": 3}, {}, {"n": 3}),
        ({"n": 3}, {"depth": 7}, {"n": 3, "depth": 7}),
        ({"n": 3}, TPOSettings(depth=7), {"n": 3, "depth": 7}),
        ({"n": 3}, TPOSettings(n=5), {"n": 5}),
        ({"seed": 3}, {"seed": None}, {"seed": None}),
        ({"seed": 3}, {"seed": "none"}, {"seed": None}),
    ],
)
def test_a_context_overrides_only_what_it_names(base, context, expected):
    settings = TPOSettings(**base).overridden_by(context)
    assert {name: getattr(settings, name) for name in expected} == expected


def test_a_wrong_context_is_an_error_of_this_package():
    with pytest.raises(ConfigurationError, match="n=0"):
        TPOSettings().overridden_by({"n": 0})


def test_set_values_beat_the_packs_which_beat_the_defaults():
    recommended = {"temperature": 0.2, "top_p": 0.5, "stop": ("END",)}
    sampling = TPOSettings(update_top_p=0.9, update_max_new_tokens=None).sampling("update", recommended)
    assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens, sampling.stop) == (0.2, 0.9, None, ("END",))
    assert sampling.explicit == {"top_p", "max_new_tokens"}


def test_a_context_keeps_what_was_set_at_build_set():
    settings = TPOSettings(update_top_p=0.9).overridden_by({"n": 2})
    assert settings.sampling("update", {"top_p": 0.5}).top_p == 0.9


def test_a_preference_has_no_white_space_around_it():
    assert TPOSettings(preference=" \n ").preference == ""


def test_settings_survive_json():
    settings = TPOSettings(n=3, sample_stop=("a",), preference="ü")
    assert TPOSettings.model_validate_json(settings.model_dump_json()) == settings
