"""Extractions by name, and how a process reward is made of its steps."""

import math

import pytest

from tpo_graph.errors import ConfigurationError
from tpo_graph.rewards.local import LabelLogit, LastTokenLogit, ProcessReward, ValueHead
from tpo_graph.rewards.local.extractions import extraction_by_name


@pytest.mark.parametrize(
    ("outputs", "aggregate", "expected"),
    [
        ([[0.0, 0.0], [0.0, 100.0]], "min", 0.5),
        ([[0.0, 0.0], [0.0, 100.0]], "product", 0.5),
        ([[0.0, 0.0], [0.0, 100.0]], "last", 1.0),
        ([[0.0, 100.0], [math.nan, 0.0]], "min", math.nan),
        ([[0.0, math.nan], [0.0, 100.0]], "product", math.nan),
        ([], "product", math.nan),
    ],
)
def test_aggregates(outputs, aggregate, expected):
    assert ProcessReward(aggregate).reward(outputs) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    "options", [{"aggregate": "mean"}, {"step_token": ""}, {"positive": "+"}, {"negative": "-"}, {"step_separator": ""}]
)
def test_a_process_reward_that_is_not_complete_is_refused(options):
    with pytest.raises(ConfigurationError):
        ProcessReward(**options)


@pytest.mark.parametrize(
    ("name", "extraction"),
    [
        ("label:1", LabelLogit(1)),
        ("label:helpful", LabelLogit("helpful")),
        ("process:min", ProcessReward("min")),
        ("last_token_logit:5", LastTokenLogit(5)),
        ("nemotron", LastTokenLogit(0)),
        ("value_head", ValueHead()),
    ],
)
def test_names(name, extraction):
    assert extraction_by_name(name) == extraction
