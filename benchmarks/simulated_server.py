"""An OpenAI-compatible server whose answers cost time but no work, to measure a client against.

A request takes the time to its first token and the time of its longest completion, however many there are and whatever
else is in flight, as a batching server far from saturation. Every candidate carries a mark such as `[reward +0.4312]`;
a revision is a little better than the best one in its prompt, on average. Texts depend on the request alone.

`GET /seen` counts what was asked since the last `POST /forget`, and `GET /bodies` has all of it.
"""

import asyncio
import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

MARK = re.compile(r"\[reward ([+-]\d+\.\d+)\]")
CHARACTERS_A_TOKEN = 4
OPEN_TAG, CLOSE_TAG = "<revised_response>", "</revised_response>"
WORDS = ("a", "clear", "answer", "gives", "one", "step", "after", "the", "other", "and", "then", "an", "example")


class SimulatedPolicy:
    """The application and what it has seen.

    Args:
        first_token: seconds to the first token.
        per_token: seconds a token.
        tokens: tokens of a completion at most.
    """

    def __init__(self, *, first_token: float, per_token: float, tokens: int) -> None:
        self.first_token, self.per_token, self.tokens = first_token, per_token, tokens
        self.forgotten()

    def forgotten(self) -> None:
        """Start counting anew."""
        self.requests = self.in_flight = self.most_in_flight = 0
        self.bodies: dict[str, list[dict[str, Any]]] = {}

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.complete, methods=["POST"]),
                Route("/seen", self.seen),
                Route("/bodies", self.received),
                Route("/forget", self.forget, methods=["POST"]),
            ]
        )

    async def complete(self, request: Request) -> JSONResponse:
        """One chat completion request."""
        body = await request.json()
        prompt = _prompt(body)
        self.requests += 1
        # the first line that names the query tells whose run the request belongs to
        query = re.search(r"query \d+", prompt)
        self.bodies.setdefault(query.group() if query else "", []).append(body)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        texts = [self.completion(prompt, str(body.get("seed")), index) for index in range(body.get("n") or 1)]
        counts = [len(text) // CHARACTERS_A_TOKEN for text in texts]
        await asyncio.sleep(self.first_token + self.per_token * max(counts))
        self.in_flight -= 1
        usage = {"prompt_tokens": len(prompt) // CHARACTERS_A_TOKEN, "completion_tokens": sum(counts)}
        choices = [
            {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            for index, text in enumerate(texts)
        ]
        statistics: dict[str, Any] = {
            "id": f"simulated-{self.requests}",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": choices,
            "usage": usage | {"total_tokens": sum(usage.values())},
        }
        return JSONResponse(statistics)

    def completion(self, prompt: str, seed: str, index: int) -> str:
        """A critique, a candidate, or a revision in its tags, by what the prompt shows."""
        chance = random.Random(hashlib.sha256(f"{prompt}|{seed}|{index}".encode()).digest())
        length = CHARACTERS_A_TOKEN * round(self.tokens * chance.uniform(0.6, 1.0))
        text = " ".join(chance.choices(WORDS, k=length // 3))[: length - 60]
        shown = [float(mark) for mark in MARK.findall(prompt)]
        if shown and OPEN_TAG not in prompt:
            return text
        text = f"{text} [reward {max(shown, default=0.0) + chance.gauss(0.1 if shown else 0.0, 0.5):+.4f}]"
        return f"{OPEN_TAG}{text}{CLOSE_TAG}" if shown else text

    async def seen(self, _: Request) -> JSONResponse:
        """What was asked: requests, tokens of their prompts, and those behind the longest prefix seen before."""
        prompts = [[_prompt(body) for body in bodies] for bodies in self.bodies.values()]
        return JSONResponse(
            {
                "requests": self.requests,
                "most_in_flight": self.most_in_flight,
                "prompt_tokens": sum(len(prompt) for own in prompts for prompt in own) // CHARACTERS_A_TOKEN,
                "new_prompt_tokens": sum(map(_new_characters, prompts)) // CHARACTERS_A_TOKEN,
            }
        )

    async def received(self, _: Request) -> JSONResponse:
        """The bodies of all requests, a list for each query, in the order in which they came."""
        return JSONResponse(list(self.bodies.values()))

    async def forget(self, _: Request) -> JSONResponse:
        """Start counting anew."""
        self.forgotten()
        return JSONResponse({})


def _prompt(body: Mapping[str, Any]) -> str:
    """All messages of a request as one text."""
    return "\n".join(message["content"] for message in body["messages"])


def _new_characters(prompts: Sequence[str]) -> int:
    """Characters that no earlier prompt of the same run had at the same place, as a prefix cache counts."""
    return sum(
        len(prompt) - max((_shared(prompt, earlier) for earlier in prompts[:place]), default=0)
        for place, prompt in enumerate(prompts)
    )


def _shared(text: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    return next(
        (place for place, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other))
    )


def serve(port: int, first_token: float, per_token: float, tokens: int) -> None:
    """Run it on loopback until the process ends."""
    policy = SimulatedPolicy(first_token=first_token, per_token=per_token, tokens=tokens)
    uvicorn.run(policy.app(), host="127.0.0.1", port=port, log_level="error")
