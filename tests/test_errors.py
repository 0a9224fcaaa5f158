"""One tree of errors, each with what to do next."""

import pickle

import pytest

from tpo_graph import errors
from tpo_graph.errors import (
    BudgetError,
    ConfigurationError,
    MissingDependencyError,
    PolicyError,
    PromptError,
    RewardError,
    TPOError,
)

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_a_tpo_error_with_a_message_and_a_hint(kind):
    error = kind("It broke.", hint="Fix it.")
    assert isinstance(error, TPOError)
    assert (error.message, error.hint, str(error)) == ("It broke.", "Fix it.", "It broke. Fix it.")
    assert (kind("It broke.").hint, str(kind("It broke."))) == ("", "It broke.")


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (ConfigurationError, ValueError),
        (PromptError, ValueError),
        (BudgetError, ValueError),
        (MissingDependencyError, ImportError),
        (PolicyError, RuntimeError),
        (RewardError, RuntimeError),
    ],
)
def test_errors_are_also_the_builtin_that_fits(kind, builtin):
    assert issubclass(kind, builtin)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_survive_a_process_border(kind):
    error = pickle.loads(pickle.dumps(kind("It broke.", hint="Fix it.")))
    assert (type(error), error.message, error.hint) == (kind, "It broke.", "Fix it.")


def test_a_reward_error_keeps_the_candidates_that_were_paid_for():
    candidate = {"id": "0-0", "step": 0, "text": "t", "truncated": False}
    assert RewardError("x", unscored=(candidate,)).unscored == [candidate]
    assert RewardError("x").unscored == []


def test_every_kind_stands_in_the_tree_of_the_docstring():
    assert all(f"── {kind.__name__}" in errors.__doc__ or kind is TPOError for kind in KINDS)
