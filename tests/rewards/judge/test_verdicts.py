"""Verdicts in what judges write: the forms of models, thinking, and what is no verdict."""

import math

import pytest
from langchain_core.messages import AIMessage

from tpo_graph.errors import ConfigurationError
from tpo_graph.rewards.judge.verdicts import NoVerdictError, VerdictReader

GRADES = VerdictReader("123456789")
PAIRS = VerdictReader("AB")


def verdict(reader, text):
    shares = reader.certain(text)
    return max(shares, key=shares.__getitem__)


@pytest.mark.parametrize(
    "text",
    [
        *("7", " 7.\n", '"7"', "\uff17", "[[7]]", "**7**", "7/10", "7 out of 9", "(7)", r"$\boxed{7}$", "[RESULT] 7"),
        *(
            "Score: 7",
            "Score: 7.0",
            "**Grade:** 7",
            "The score is 7.",
            "Overall rating = 7",
            "<score>7</score>",
            "Score: 7, as a whole.",
        ),
        *('{"verdict": "7"}', '```json\n{"reason": "Not 3.", "score": 7}\n```', "## Verdict\n7", "It is good.\n\n7"),
        *("7\n\nIt is good.", "Accuracy: 8\nScore: 7", "The correct answer is 4. Grade: 7", "I'd give it a 7.", "'7'"),
        *("<think>\nIs it 3? Score: 3\n</think>\n7", "Score: 3? No.\n</think>\n\n**7**"),
    ],
)
def test_grades(text):
    assert verdict(GRADES, text) == "7"


@pytest.mark.parametrize(
    "text",
    [
        *(
            "I count 3 mistakes.",
            "It names 3 causes, of which 2 are right.",
            "The score is 3 points lower.",
            "3 mistakes",
        ),
        *("10", "12", "-7", "7.5", "Score: 10", "Score: 7.5", "Score: 7/100", "6-7", "7%", "", "hm"),
        *("Score: 3 for clarity", "Accuracy: 8", "The correct answer is 4.", "The answer is 4.", "1\n2"),
        *("<think>7", "<think>\nScore: 7\n"),
    ],
)
def test_what_is_no_grade(text):
    with pytest.raises(NoVerdictError):
        GRADES.certain(text)


@pytest.mark.parametrize(
    "text",
    [
        *("A", "**A**.", "[[A]]", "(A)", "\uff21", "Response A", "Answer: A", '{"verdict": "A"}', "A\n\nIt is short."),
        *("The better response is A.", "Response A is better, since B is long.", "Winner: Assistant A"),
    ],
)
def test_pairs(text):
    assert verdict(PAIRS, text) == "A"


@pytest.mark.parametrize("text", ["Answer: A good one", "A response that is short", "a", "Both", "B or A", "A\nB"])
def test_what_is_no_preference(text):
    with pytest.raises(NoVerdictError):
        PAIRS.certain(text)


def test_a_reader_of_ones_own():
    prometheus = VerdictReader("12345", r"\[RESULT\]\s*(\d)")
    assert verdict(prometheus, "Feedback: like [RESULT] 2, but whole. [RESULT] 4") == "4"
    with pytest.raises(NoVerdictError):
        prometheus.certain("Score: 4")
    with pytest.raises(NoVerdictError):
        prometheus.certain("[RESULT] 7")
    assert VerdictReader((), lambda answer: float(answer.split()[-1]) / 2).certain("<think>1</think> so 9") == {
        "4.5": 1.0
    }
    assert VerdictReader((), r"reward=(\S+)").certain("reward=-0.25") == {"-0.25": 1.0}
    with pytest.raises(NoVerdictError):
        VerdictReader((), lambda answer: None).certain("7")
    with pytest.raises(ConfigurationError, match="not a regular expression"):
        VerdictReader((), "(")


def message(*tokens):
    """A message with log probabilities: each token with its alternatives."""
    content = [
        {"token": token, "top_logprobs": [{"token": t, "logprob": math.log(share)} for t, share in tops.items()]}
        for token, tops in tokens
    ]
    return AIMessage("".join(token for token, _ in tokens), response_metadata={"logprobs": {"content": content}})


@pytest.mark.parametrize(
    "before",
    [
        [],
        ["\n"],
        ["**"],
        ["Score", ":", " "],
        ["<think>", "Maybe", " 3", ".", "</think>", "\n"],
        ["Maybe", " 3", ".", "</think>", "\n", "**"],
        ['{"', "verdict", '":', ' "'],
    ],
)
def test_the_token_of_the_verdict_has_its_probabilities(before):
    tops = {"7": 0.6, " 8": 0.2, "The": 0.2}
    shares = GRADES.probabilities(message(*((token, {token: 1.0}) for token in before), ("7", tops)))
    assert {label: share for label, share in shares.items() if share} == pytest.approx({"7": 0.75, "8": 0.25})


def test_tokens_that_hold_more_than_the_text():
    """A server that puts the thinking elsewhere may leave its tokens, and characters in several of them."""
    tops = {"7": 0.5, "8": 0.5}
    whole = message(
        ("Score: 3", {"Score: 3": 1.0}), ("\ufffd", {}), ("\n\n", {"\n\n": 1.0}), ("7", tops), ("<end>", {})
    )
    shares = GRADES.probabilities(whole.model_copy(update={"content": "7"}))
    assert (shares["7"], shares["8"]) == pytest.approx((0.5, 0.5))
    shares = GRADES.probabilities(whole.model_copy(update={"content": "<think>é</think>Score: 7"}))
    assert shares["7"] == 1.0  # it is not among the tokens


def test_probabilities_without_a_verdict_in_the_text():
    """Digits may have the most together, while another token has more than each of them."""
    shares = GRADES.probabilities(message(("The", {"The": 0.4, "7": 0.3, "8": 0.3})))
    assert (shares["7"], shares["8"]) == pytest.approx((0.5, 0.5))
    with pytest.raises(NoVerdictError):
        GRADES.probabilities(message(("The", {"The": 0.6, "7": 0.4})))
    assert GRADES.probabilities(AIMessage("7")) is None


@pytest.mark.parametrize(
    "text", ["score" + "]" * 100_000, "*" * 100_000, "score: " * 30_000, "7 " * 50_000, "1\n2\n" * 20_000]
)
def test_no_text_takes_for_ever(text):
    with pytest.raises(NoVerdictError):
        GRADES.certain(text)
