"""A chat request as a test server sees it: what is wrong with it, and what could be answered to it."""

import hashlib
import json
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tpo_graph.testing.fault_kinds import ErrorAnswer, Fault

_FIELDS = """
    messages model audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens
    metadata modalities n parallel_tool_calls prediction presence_penalty prompt_cache_key reasoning_effort
    response_format safety_identifier seed service_tier stop store stream stream_options temperature tool_choice tools
    top_logprobs top_p user verbosity web_search_options
"""
ROLES = ("system", "developer", "user", "assistant", "tool")
_RANGES: Mapping[str, tuple[float, float]] = {"temperature": (0, 2), "top_p": (0, 1), "n": (1, 1024)}
_MARK = re.compile(r"\[reward ([+-]\d+\.\d+)\]")
_TAGS = re.compile(r"between (\S+) and (\S+?)\.?(?:\s|$)")
_WORDS = ("a", "clear", "answer", "gives", "one", "step", "after", "the", "other", "and", "then", "an", "example")


@dataclass
class ServedRequest:
    """A chat request as the server received it, and what became of it.

    Attributes:
        number: its place in the order of arrival, from 0.
        attempt: how often a request with the same body has come, this one included.
        raw: the body as bytes.
        body: the body read.
        headers: by their names in lower case.
        peer: the client's address and port.
        fault: what went wrong with it on purpose.
        status: of the answer; None where there was none, or none yet.
    """

    number: int
    attempt: int
    raw: bytes
    body: dict[str, Any]
    headers: dict[str, str]
    peer: tuple[str, int]
    fault: Fault | None = None
    status: int | None = None

    @property
    def n(self) -> int:
        """How many completions it asks for."""
        return self.body.get("n") or 1

    @property
    def text(self) -> str:
        """All messages as one text."""
        contents = [message.get("content") or "" for message in self.body["messages"]]
        return "\n".join(content if isinstance(content, str) else json.dumps(content) for content in contents)


def marked_text(request: ServedRequest, index: int = 0) -> str:
    """A candidate, critique or revision, by what the prompt shows; it depends on the request and the index alone.

    A candidate ends with its reward, as in `[reward +0.4312]`. A prompt that shows such marks asks for a critique, or
    where it says between which tags the text goes, for a revision; that is a little better than the best one shown.
    """
    prompt = request.text
    key = f"{prompt}|{request.body.get('seed')}|{request.attempt}|{index}"
    chance = random.Random(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest())
    text = " ".join(chance.choices(_WORDS, k=chance.randint(12, 20)))
    shown = [float(mark) for mark in _MARK.findall(prompt)]
    tags = _TAGS.findall(prompt)
    if shown and not tags:
        return text
    text = f"{text} [reward {max(shown, default=0.0) + chance.gauss(0.1 if shown else 0.0, 0.5):+.4f}]"
    return f"{tags[-1][0]}{text}{tags[-1][1]}" if shown else text


def marked_reward(response: str) -> float:
    """The last mark of a text of `marked_text`; `TableReward(marked_reward)` is its reward model.

    Raises:
        ValueError: it has none.
    """
    marks = _MARK.findall(response)
    if not marks:
        raise ValueError(f"There is no mark such as [reward +0.5000] in {response!r}.")
    return float(marks[-1])


def objection(body: Mapping[str, Any]) -> ErrorAnswer | None:
    """What OpenAI's API would object to in a request."""
    messages = body.get("messages")
    if unknown := sorted(body.keys() - set(_FIELDS.split())):
        return ErrorAnswer(400, f"Unrecognized request argument supplied: {unknown[0]}", param=unknown[0])
    if not messages:
        return ErrorAnswer(400, "'messages' must not be empty", param="messages")
    for place, message in enumerate(messages):
        where = f"messages[{place}]"
        if message.get("role") not in ROLES:
            words = f"Invalid value: {message.get('role')!r}. Supported values are: {', '.join(map(repr, ROLES))}."
            return ErrorAnswer(400, words, param=f"{where}.role")
        if not message.get("content") and message.get("role") != "tool" and not message.get("tool_calls"):
            return ErrorAnswer(400, f"{where}: content must not be empty", param=f"{where}.content")
    for name, (low, high) in _RANGES.items():
        value = body.get(name)
        if value is not None and not (isinstance(value, int | float) and low <= value <= high):
            return ErrorAnswer(400, f"Invalid '{name}': {value!r} is not a number from {low} to {high}.", param=name)
    return None


def tokens_of(text: str) -> list[str]:
    """The words of a text, each with the white space before it."""
    return re.findall(r"\s*\S+", text)
