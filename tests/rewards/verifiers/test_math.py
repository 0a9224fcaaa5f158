import asyncio
import sys

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from tpo_graph import ConfigurationError, MissingDependencyError, RewardError
from tpo_graph.rewards.base import RunContext
from tpo_graph.rewards.verifiers import MathVerifier

pytest.importorskip("math_verify")
pytestmark = pytest.mark.subprocess


def query(reference):
    return [HumanMessage("How much?", additional_kwargs={"reference": reference})]


@pytest.mark.parametrize(
    ("reference", "response", "reward"),
    [
        ("42", "The answer is 42.", 1.0),
        ("42", r"So it is \boxed{42}", 1.0),
        ("42", r"First 42, then \boxed{43}", 0.0),
        ("42", "41", 0.0),
        ("42", "", 0.0),
        ("42", "I can't tell.", 0.0),
        ("42", "\ud800 \x00 42", 1.0),  # what no encoding or parser likes
        (42, "42.0", 1.0),
        (r"\frac{1}{2}", "It is 0.5", 1.0),
        (r"$\frac{1}{2}$", "1/2", 1.0),
        (r"\boxed{\sqrt{2}}", r"$\sqrt{2}$", 1.0),
        ("1,000", "1000", 1.0),
        (r"\{1,2\}", r"$\{2,1\}$", 1.0),
        ("x^2+2x", r"$x(x+2)$", 1.0),
        (["7", "42"], "42", 1.0),
        ("42", "[" * 5000, 0.0),
    ],
)
async def test_answers(reference, response, reward):
    assert await MathVerifier().score(query(reference), [response]) == [reward]


async def test_order_is_kept():
    responses = [str(number % 3) for number in range(30)]
    assert await MathVerifier().score(query("1"), responses) == [float(response == "1") for response in responses]


async def test_the_query_beats_the_verifier_and_an_earlier_turn_does_not_count():
    verifier = MathVerifier("7")
    assert await verifier.score(query("42"), ["42", "7"]) == [1.0, 0.0]
    assert await verifier.score([*query("42"), AIMessage("42"), HumanMessage("And 3 + 4?")], ["42", "7"]) == [0.0, 1.0]


async def test_without_a_reference():
    with pytest.raises(RewardError, match="no reference") as caught:
        await MathVerifier().score([HumanMessage("?")], ["1"])
    assert "additional_kwargs" in caught.value.hint
    verifier = MathVerifier(without_reference="not_applicable")
    scores = (await verifier.score_in_detail([HumanMessage("?")], ["1", "2"], RunContext())).scores
    assert scores == [None, None]


async def test_a_reference_without_content_is_an_error():
    with pytest.raises(RewardError, match="nothing that math-verify can read"):
        await MathVerifier().score(query(" "), ["1"])


@pytest.mark.parametrize(
    ("arguments", "message"), [({"seconds": 0}, "above 0"), ({"without_reference": "skip"}, "allowed: 'error'")]
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        MathVerifier(**arguments)


async def test_an_answer_without_end_is_wrong_and_the_loop_lives_meanwhile():
    verifier = MathVerifier(seconds=0.6)
    await verifier.score(query("42"), ["42"])
    beats = 0

    async def heart():
        nonlocal beats
        while True:
            await asyncio.sleep(0.01)
            beats += 1

    beating = asyncio.create_task(heart())
    assert await verifier.score(query("42"), [r"\boxed{99999999999!}"]) == [0.0]
    beating.cancel()
    assert beats >= 20
    assert await verifier.score(query("42"), ["42"]) == [1.0]


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(MissingDependencyError, match="math-verify") as caught:
        MathVerifier()
    assert "pip install '.[verifiers]'" in caught.value.hint
