"""An OpenAI-compatible chat server on loopback that judges, and has as much of the API as a test lets it have."""

import asyncio
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

Judge = Callable[[list[str]], Mapping[str, float]]
"""From the responses shown to probabilities of the first token of the answer."""

_RESPONSE = re.compile(
    r"\[response (?:[AB] )?(?P<mark>\w+) begins\]\n(.*?)\n\[response (?:[AB] )?(?P=mark) ends\]", re.S
)


@dataclass
class JudgeServer:
    """What one server does.

    Attributes:
        judge: how it judges.
        logprobs: `yes`, `refuse` with status `refusal`, or `silent`: taken and not heeded.
        before: tokens that stand before the verdict; of all tokens, no more come than the request asks for.
        refusal: the status of a refusal.
        most_top: `top_logprobs` at most.
        schema: structured output: `yes`, `refuse`, `ignore` (answers in plain text) or `wrong` (another verdict).
        refuses: request fields that it does not take, or "system" for messages of that role.
        status: answer every request with this one.
        garbled: bodies of the first answers, with status 200.
        failing: texts of responses that are answered with status 500.
    """

    judge: Judge
    logprobs: Literal["yes", "refuse", "silent"] = "yes"
    most_top: int = 20
    schema: Literal["yes", "refuse", "ignore", "wrong"] = "yes"
    before: tuple[str, ...] = ()
    refusal: int = 400
    garbled: list[bytes] = field(default_factory=list)
    refuses: tuple[str, ...] = ()
    status: int | None = None
    failing: tuple[str, ...] = ()
    seconds: float = 0.0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    url: str = ""

    @property
    def prompts(self) -> list[str]:
        return [_prompt(body) for body in self.bodies]

    @property
    def shown(self) -> list[list[str]]:
        """The responses shown in each request."""
        return [responses_in(prompt) for prompt in self.prompts]

    async def handle(self, path: str, http: Request) -> Response:
        assert path == "/v1/chat/completions"
        body = json.loads(await http.body())
        self.bodies.append(body)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        if self.seconds:
            await asyncio.sleep(self.seconds)
        try:
            return Response(self.garbled.pop(0)) if self.garbled else self._answer(body)
        finally:
            self.in_flight -= 1

    def _answer(self, body: dict[str, Any]) -> Response:
        if self.status is not None:
            return _error(self.status, "no, thank you")
        responses = responses_in(_prompt(body))
        if any(response in self.failing for response in responses):
            return _error(500, "the server had an error")
        if "system" in self.refuses and body["messages"][0]["role"] == "system":
            return _error(500, "System role not supported")
        for name in self.refuses:
            if body.get(name) is not None:
                return _error(400, f"Unsupported value: '{name}' is not supported with this model.")
        top = body.get("top_logprobs")
        if top is not None and not body.get("logprobs"):
            return _error(400, "top_logprobs needs logprobs")
        if body.get("logprobs") and self.logprobs == "refuse":
            return _error(self.refusal, "logprobs are not supported with reasoning models")
        if (top or 0) > self.most_top:
            return _error(400, f"Invalid value for 'top_logprobs': must be less than or equal to {self.most_top}")
        wanted = body.get("response_format")
        if wanted and self.schema == "refuse":
            return _error(self.refusal, "response_format is not supported")
        shares = sorted(self.judge(responses).items(), key=lambda item: -item[1])
        limit = body.get("max_tokens") or body.get("max_completion_tokens") or 10**6
        tokens = [*self.before, shares[0][0]][:limit]
        content = "".join(tokens).strip()
        if wanted and self.schema != "ignore":
            labels = wanted["json_schema"]["schema"]["properties"]["verdict"]["enum"]
            chosen = next(token.strip() for token, _ in shares if token.strip() in labels)
            content = json.dumps({"verdict": "42" if self.schema == "wrong" else chosen})
        logprobs = None
        if body.get("logprobs") and self.logprobs == "yes":
            tops = [{"token": token, "logprob": math.log(share), "bytes": None} for token, share in shares[:top]]
            sure = [{"token": token, "logprob": 0.0, "bytes": None} for token in tokens]
            content_logprobs = [{**token, "top_logprobs": [token]} for token in sure]
            if len(tokens) > len(self.before):
                content_logprobs[-1] = {**tops[0], "top_logprobs": tops}
            logprobs = {"content": content_logprobs, "refusal": None}
        finish = "length" if len(tokens) == limit else "stop"
        message = {"role": "assistant", "content": content, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": logprobs}
        usage = {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101}
        answer = {"id": "chat-1", "object": "chat.completion", "created": 0, "model": body["model"]}
        return JSONResponse({**answer, "choices": [choice], "usage": usage})


def _prompt(body: dict[str, Any]) -> str:
    return "\n".join(message["content"] for message in body["messages"])


def responses_in(prompt: str) -> list[str]:
    """The responses that a prompt shows, by their marks."""
    return [match.group(2) for match in _RESPONSE.finditer(prompt)]


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error", "code": None}}, status)
