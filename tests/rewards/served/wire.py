"""Servers of reward models on loopback, each with the wire format that the real one documents, over one real model.

Every handler refuses what the real server refuses (a missing field, an unknown model) and reads what the real one
reads. `bodies` keeps the requests, so that a test can say which fields were sent. Text in place of token ids is refused
where our clients send ids.
"""

import asyncio
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

TransportFault = Literal["500", "429", "401", "404", "hang", "drop", "malformed", "html"]
AnswerFault = Literal["another form", "fewer", "more", "null", "all null", "text", "two outputs"]
VLLM = Literal["new", "both fields", "old", "oldest"]
"""Which of the fields `use_activation` and `activation` a vLLM knows: the first, both, the second, none."""

_STATUS = {"500": 500, "429": 429, "401": 401, "404": 404}


class WireError(Exception):
    def __init__(self, status: int, body: Any) -> None:
        super().__init__(status)
        self.response = JSONResponse(body, status)


@dataclass
class RewardServer:
    """What one server does; `tests.servers.Host` gives it an address.

    Attributes:
        score_ids: the model's raw score of token ids.
        encode: text to token ids, special tokens added or not, as the server's own tokenizer does.
        encode_chat: messages to token ids, for a server that renders them itself.
        eos: the end token that OpenRLHF's server puts at the end of each text.
        model: the served name.
        vllm: which vLLM this is.
        default_activation: what that vLLM does unless a request says otherwise.
        api_key: the token that a request must bear.
        longest: the most tokens of a text; more are refused, with the whole request.
        tells_limit: whether TEI's `/info` can be reached.
        max_batch: TEI's limit of texts in a request.
        every_token: whether vLLM's `/pooling` gives a score at every token.
        reversed_rows: whether vLLM's rows come in another order than the texts.
        faults: what goes wrong with the next requests, in order.
        always: what goes wrong with every request.
        attributes: names that the NIM gives its scores.
        content_scores: whether the NIM's scores are in the content of the answer, and not beside it alone.
        retry_after: the header of answers with a fault.
        seconds: how long an answer takes.
        bodies: of all requests, in order.
        paths: of all requests, in order.
    """

    score_ids: Callable[[list[int]], float]
    encode: Callable[[str, bool], list[int]] = lambda text, special: []
    encode_chat: Callable[[list[dict[str, str]]], list[int]] = lambda messages: []
    eos: str = ""
    model: str = "rm"
    vllm: VLLM = "new"
    default_activation: Literal["sigmoid", "none", "softmax"] = "sigmoid"
    api_key: str | None = None
    longest: int = 10_000
    tells_limit: bool = True
    max_batch: int = 32
    every_token: bool = False
    reversed_rows: bool = False
    attributes: tuple[str, ...] = ("reward",)
    content_scores: bool = True
    faults: list[TransportFault | AnswerFault | None] = field(default_factory=list)
    always: TransportFault | AnswerFault | None = None
    retry_after: str | None = None
    seconds: float = 0.0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    url: str = ""

    async def handle(self, path: str, http: Request) -> Response:
        """Answer one request."""
        handlers = {
            "/classify": self._classify,
            "/pooling": self._pooling,
            "/sglang/classify": self._sglang,
            "/predict": self._predict,
            "/get_reward": self._get_reward,
            "/v1/chat/completions": self._chat,
        }
        if http.method == "GET" and path == "/info" and self.tells_limit:
            return JSONResponse({"model_id": self.model, "max_input_length": self.longest})
        if path not in handlers or http.method == "GET":
            return JSONResponse({"detail": "Not Found"}, 404)
        body = json.loads(await http.body())
        self.bodies.append(body)
        self.paths.append(path)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._answer(http, body, handlers[path])
        except WireError as error:
            return error.response
        finally:
            self.in_flight -= 1

    async def _answer(self, http: Request, body: dict[str, Any], handler: Callable[[dict[str, Any]], Any]) -> Response:
        if self.api_key is not None and http.headers.get("authorization") != f"Bearer {self.api_key}":
            return JSONResponse({"error": "Unauthorized"}, 401)
        fault = self.always or (self.faults.pop(0) if self.faults else None)
        if fault in _STATUS:
            headers = {} if self.retry_after is None else {"retry-after": self.retry_after}
            return JSONResponse({"error": {"message": f"fault {fault}"}}, _STATUS[fault], headers=headers)
        if fault == "hang":
            for _ in range(500):
                if await http.is_disconnected():
                    break
                await asyncio.sleep(0.01)
        if fault == "drop":
            return _Dropped()
        if fault == "malformed":
            return Response(b'{"data": [', media_type="application/json")
        if fault == "html":
            return Response(b"<html>hello</html>", media_type="text/html")
        if fault == "another form":
            return JSONResponse({"object": "other"})
        if self.seconds:
            await asyncio.sleep(self.seconds)
        return JSONResponse(_spoiled(handler(body), fault))

    # vLLM: vllm/entrypoints/pooling/{base,classify,pooling}/protocol.py

    def _vllm_scores(self, body: dict[str, Any]) -> list[list[float]]:
        """Scores at every position that is asked for, (texts, positions)."""
        if "input" not in body:
            raise _vllm_error(400, "input: Field required")
        if body.get("model") not in (None, self.model):
            raise _vllm_error(404, f"The model `{body['model']}` does not exist.")
        rows = body["input"]
        for row in rows:
            if len(row) > self.longest:
                raise _vllm_error(400, f"This model's maximum context length is {self.longest} tokens.")
        # what a decoder gives before the last token is of no interest here
        before = [[7.0] * (len(row) - 1) if self.every_token else [] for row in rows]
        raw = [[*scores, self.score_ids(row)] for row, scores in zip(rows, before, strict=True)]
        return raw if self._is_raw(body) else [[self._activated(score) for score in row] for row in raw]

    def _is_raw(self, body: dict[str, Any]) -> bool:
        new, old = body.get("use_activation"), body.get("activation")
        field = {"new": new, "both fields": new if old is None else True, "old": old, "oldest": None}[self.vllm]
        return self.default_activation == "none" if field is None else not field

    def _activated(self, score: float) -> float:
        if self.default_activation == "none":
            return score
        return 1.0 if self.default_activation == "softmax" else 1 / (1 + math.exp(-score))

    def _classify(self, body: dict[str, Any]) -> Any:
        data = [
            {"index": place, "label": "LABEL_0", "probs": row, "num_classes": 1}
            for place, row in enumerate(self._vllm_scores(body))
        ]
        data = data[::-1] if self.reversed_rows else data
        usage = {"prompt_tokens": 1, "total_tokens": 1, "completion_tokens": 0}
        return {"id": "classify-1", "object": "list", "created": 0, "model": self.model, "data": data, "usage": usage}

    def _pooling(self, body: dict[str, Any]) -> Any:
        if body.get("encoding_format", "float") != "float":
            raise WireError(400, {"error": {"message": "this test speaks float"}})
        scores = self._vllm_scores(body)
        data = [
            {"index": place, "object": "pooling", "data": [[score] for score in row] if self.every_token else row}
            for place, row in enumerate(scores)
        ]
        return {"id": "pool-1", "object": "list", "created": 0, "model": self.model, "data": data, "usage": {}}

    # SGLang: python/sglang/srt/entrypoints/http_server.py, managers/io_struct.py (EmbeddingReqInput)

    def _sglang(self, body: dict[str, Any]) -> Any:
        if body.get("input_ids") is None:
            raise WireError(400, {"error": {"message": "Either text or input_ids should be provided."}})
        meta = {"id": "x", "finish_reason": {"type": "length"}}
        return [{"embedding": [self.score_ids(row)], "meta_info": meta} for row in body["input_ids"]]

    # TEI: router/src/http/types.rs (PredictInput), server.rs (predict)

    def _predict(self, body: dict[str, Any]) -> Any:
        unknown = set(body) - {"inputs", "truncate", "truncation_direction", "raw_scores"}
        if "inputs" not in body or unknown:
            raise WireError(422, {"error": "missing field `inputs`", "error_type": "validation"})
        inputs = body["inputs"]
        if isinstance(inputs, str):
            return self._predictions(inputs, None, body)
        if isinstance(inputs[0], str):
            return self._predictions(inputs[0], inputs[1] if len(inputs) > 1 else None, body)
        if len(inputs) > self.max_batch:
            message = f"batch size {len(inputs)} > maximum allowed batch size {self.max_batch}"
            raise WireError(413, {"error": message, "error_type": "validation"})
        return [self._predictions(one[0], one[1] if len(one) > 1 else None, body) for one in inputs]

    def _predictions(self, text: str, pair: str | None, body: dict[str, Any]) -> list[dict[str, Any]]:
        ids = self.encode(text, True) + ([] if pair is None else self.encode(pair, True)[1:])
        if len(ids) > self.longest and not body.get("truncate"):
            message = f"`inputs` must have less than {self.longest} tokens. Given: {len(ids)}"
            raise WireError(413, {"error": message, "error_type": "validation"})
        score = self.score_ids(ids[: self.longest])
        if math.isnan(score):
            raise WireError(424, {"error": "score is NaN", "error_type": "backend"})
        return [{"score": score if body.get("raw_scores") else 1 / (1 + math.exp(-score)), "label": "LABEL_0"}]

    # OpenRLHF: openrlhf/cli/serve_rm.py

    def _get_reward(self, body: dict[str, Any]) -> Any:
        rewards = []
        for query in body["query"]:
            text = query.removesuffix(self.eos) + self.eos
            rewards.append(self.score_ids(self.encode(text, False)))
        return {"rewards": rewards}

    # NIM: docs.nvidia.com/nim/large-language-models, "Use Reward Models"

    def _chat(self, body: dict[str, Any]) -> Any:
        if body.get("model") != self.model:
            message = f"The model `{body.get('model')}` does not exist."
            raise WireError(404, {"error": {"message": message}})
        if body["messages"][-1]["role"] != "assistant":
            raise WireError(400, {"error": {"message": "The last message must be the assistant's."}})
        score = self.score_ids(self.encode_chat(body["messages"]))
        scores = {name: score - place for place, name in enumerate(self.attributes)}
        content = ",".join(f"{name}:{value}" for name, value in scores.items()) if self.content_scores else ""
        tokens = [
            {"token": name, "bytes": None, "logprob": value, "top_logprobs": []} for name, value in scores.items()
        ]
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": content},
            "logprobs": {"content": tokens},
            "finish_reason": "length",
        }
        return {"id": "chat-1", "object": "chat.completion", "created": 0, "model": self.model, "choices": [choice]}


def _vllm_error(status: int, message: str) -> WireError:
    kind = {400: "BadRequestError", 404: "NotFoundError"}[status]
    return WireError(status, {"error": {"message": message, "type": kind, "code": status}})


def _spoiled(answer: Any, fault: AnswerFault | None) -> Any:
    """The answer with a fault in it."""
    rows = answer
    if isinstance(answer, dict):
        rows = answer[next(key for key in ("data", "rewards", "choices") if key in answer)]
    if fault == "fewer":
        rows.pop()
    if fault == "more":
        rows.append(rows[0])
    for place in range(len(rows) if fault == "all null" else fault in ("null", "text", "two outputs")):
        value = "high" if fault == "text" else None
        row = rows[place]
        if isinstance(row, list):
            row[0] = {**row[0], "score": value}
            row += [row[0]] if fault == "two outputs" else []
        elif isinstance(row, dict):
            key = next(key for key in ("probs", "data", "embedding") if key in row)
            row[key] = [0.1, 0.2] if fault == "two outputs" else [value]
        else:
            rows[place] = [0.1, 0.2] if fault == "two outputs" else value
    return answer


class _Dropped(Response):
    """A response that ends in the middle: the server closes the connection."""

    async def __call__(self, scope, receive, send):
        headers = [(b"content-type", b"application/json"), (b"content-length", b"1000")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"data"', "more_body": True})
