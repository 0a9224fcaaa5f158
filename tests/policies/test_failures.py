"""What providers' errors mean."""

import asyncio
import email.utils
import enum
import http
import json
import time
from contextlib import asynccontextmanager

import httpx
import pytest
from langchain_core.exceptions import ModelRateLimitError
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

from tpo_graph.errors import PolicyError
from tpo_graph.policies.failures import NoCompletionError, ProviderFailure, policy_failed
from tpo_graph.policies.sampling import Sampler
from tpo_graph.settings import Sampling


class ProviderError(Exception):
    """An error as OpenAI's client makes it of a response."""

    def __init__(self, status, message, param=None):
        super().__init__(f"Error code: {status} - {{'error': {{'message': {message!r}}}}}")
        self.status_code, self.param, self.body = status, param, {"message": message}


LLAMA_CPP = "Value must be between 1 <= value <= 8, but got 20"


@pytest.mark.parametrize(
    ("error", "named", "smaller"),
    [
        (ProviderError(400, "Only n = 1 is supported"), True, 1),
        (ProviderError(400, LLAMA_CPP), True, 8),
        (ProviderError(422, "Unknown field", param="n"), True, 10),
        (ProviderError(500, "n > 1 is not supported"), True, 1),
        (ProviderError(500, "Only one completion choice is allowed"), True, 1),
        (ProviderError(400, "The content was flagged"), False, 10),
        (ProviderError(400, "In 'first line\\n second line'"), False, 10),
        (TypeError("got an unexpected keyword argument 'n'"), True, 10),
        (ValueError("n must be 1 when streaming."), True, 1),
        (NotImplementedError("several"), False, 10),
        (ProviderError(400, "Multiple candidates is not enabled for this model"), True, 1),
        (ProviderError(400, "The value must be at most 8"), False, 8),
        (ProviderError(400, "candidateCount must be at most 8, but was 20"), True, 8),
        (ProviderError(400, "The text of 7 words was flagged"), False, 10),
    ],
)
def test_what_a_refusal_of_20_completions_says(error, named, smaller):
    failure = ProviderFailure.of(error)
    assert failure.may_refuse_n
    assert (failure.names_n(20), failure.smaller_n(20)) == (named, smaller)


@pytest.mark.parametrize(
    "error",
    [
        ProviderError(500, "The server had an error"),
        ProviderError(502, '{"n": 5, "messages": [{"content": "Only the maximum'),
        ProviderError(500, "Only some of 'n': 5, 'messages' was read"),
        ProviderError(500, "n"),
        ProviderError(429, "n too large for the rate"),
        ProviderError(400, "Invalid", param="messages"),
        ProviderError(400, "top_p is not supported"),
        ConnectionError("n"),
        json.JSONDecodeError("Expecting value", "{", 4),
        ValueError("no"),
        TypeError("Received response with null value for 'choices'."),
    ],
)
def test_what_is_no_refusal_of_n(error):
    assert not ProviderFailure.of(error).may_refuse_n


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (ProviderError(400, "Unsupported parameter: 'temperature' is not supported"), "sample_temperature=none"),
        (ProviderError(400, "Not here", param="top_p"), "sample_top_p=none"),
        (ProviderError(422, "max_completion_tokens: too large"), "sample_max_new_tokens=none"),
        (ProviderError(400, "Unsupported parameter: 'seed' is not supported with this model."), "set seed to none"),
        (ProviderError(400, "This model's maximum context length is 4096 tokens, and max_tokens is 2048"), "max_shown"),
        (ProviderError(400, "request (402 tokens) exceeds the available context size (256 tokens)"), "context_tokens="),
        (ProviderError(500, "Context size has been exceeded."), "context_tokens="),
        (ProviderError(400, "`temperature` and `top_p` cannot both be specified"), "sample_top_p=none"),
        (ProviderError(400, "Invalid value for maxOutputTokens"), "sample_max_new_tokens=none"),
        (ProviderError(400, "Input is too long for requested model."), "max_shown"),
        (ProviderError(400, "Bad", param="logit_bias"), "does not take 'logit_bias'"),
    ],
)
def test_a_hint_says_what_to_change(error, hint):
    assert hint in policy_failed(error).hint


@pytest.mark.parametrize(
    "error", [ProviderError(400, "The content was flagged"), ProviderError(500, "oops"), ValueError("context length")]
)
def test_no_hint_is_better_than_a_wrong_one(error):
    assert policy_failed(error).hint == ""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ProviderError(400, "no"), "refused"),
        (PolicyError("The policy failed."), "other"),
        (ProviderError(409, "busy"), "transient"),
        (ProviderError(500, "System role not supported"), "refused"),
        (NoCompletionError("The provider returned no completion."), "transient"),
        (ValueError("Unexpected response type. Got str: '<p>n must be 1</p>'"), "transient"),
        (KeyError("choices"), "transient"),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), "other"),
        (NotImplementedError("several"), "unsupported"),
        (ProviderError(403, "no"), "key"),
        (ProviderError(404, "no"), "not_found"),
        (ProviderError(529, "overloaded"), "transient"),
        (TimeoutError(), "timeout"),
        (ConnectionResetError("gone"), "disconnected"),
        (httpx.ConnectTimeout("no route"), "unreachable"),
        (httpx.ReadError("gone"), "disconnected"),
        (httpx.ReadTimeout("slow"), "timeout"),
        (ZeroDivisionError("1 / 0"), "other"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{type(value).__name__}",
)
def test_what_kind_of_failure_an_error_is(error, kind):
    assert ProviderFailure.of(error).kind == kind


DETAIL = (
    '{"detail":[{"type":"less_than_equal","loc":["body","temperature"],"msg":"Input is too big","input":2,"ctx":{}}]}'
)


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ('{"error": {"message": "too long", "code": 1, "param": "messages"}}', "messages: too long", "messages"),
        ('{"error": "too\\nlong"}', "too long", None),
        (
            f'{{"object":"error","message":{DETAIL},"type":"invalid_request_error"}}',
            "temperature: Input is too big",
            "temperature",
        ),
        (DETAIL, "temperature: Input is too big", "temperature"),
        ('{"detail": [{"loc": ["body"]}]}', '{"loc": ["body"]}', None),
        ('{"detail": "Not here"}', "Not here", None),
        ('[{"error": {"code": 400, "message": "no candidates", "status": "INVALID_ARGUMENT"}}]', "no candidates", None),
        (
            json.dumps({"error": {"message": "Of a router", "metadata": {"raw": '{"error": {"message": "no seed"}}'}}}),
            "Of a router; no seed",
            None,
        ),
        ('{"Message": "of AWS"}', "of AWS", None),
        ("plain\n text", "plain text", None),
        ("<html>\nBad gateway</html>", "Bad gateway", None),
        ("<!DOCTYPE html><head><title>\n504 Gateway &amp; Co</title></head><body>x</body>", "504 Gateway & Co x", None),
        ("[" * 5000, "[" * 4000, None),
        ('{"odd": 1}', '{"odd": 1}', None),
        ("null", "", None),
    ],
)
def test_what_an_answer_says_in_any_shape(body, message, param):
    failure = ProviderFailure.of_response(422, body)
    assert (failure.kind, failure.status, failure.message, failure.param) == ("refused", 422, message, param)
    assert message[:300] in failure.summary
    assert len(failure.summary) < 350


def test_a_refused_connection_is_found_behind_what_it_caused():
    timeout = TimeoutError("Request timed out.")
    timeout.__cause__ = ConnectionRefusedError(111, "refused")
    failure = ProviderFailure.of(timeout)
    assert (failure.kind, failure.summary) == ("unreachable", "the connection was refused")
    assert failure.hint("http://h/v1") == "Is the server at http://h/v1 running?"


# errors shaped as those of client libraries that need not be installed


class GoogleError(Exception):
    """google.api_core's, and that of google.genai."""

    code = http.HTTPStatus.BAD_REQUEST


class StatusCode(enum.Enum):
    RESOURCE_EXHAUSTED = (8, "resource exhausted")


class RpcError(Exception):
    """gRPC's."""

    def code(self):
        return StatusCode.RESOURCE_EXHAUSTED

    def details(self):
        return "Quota exceeded"


class ClientError(Exception):
    """botocore's."""

    def __init__(self, status, code, message):
        super().__init__(f"An error occurred ({code}) when calling the Converse operation: {message}")
        headers = {"retry-after": "3"}
        metadata = {"HTTPStatusCode": status, "HTTPHeaders": headers}
        self.response = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": metadata}


def wrapped(error):
    """An error as an integration raises it."""
    outer = ValueError("Error calling model")
    outer.__cause__ = error
    return outer


def test_googles_refusal_of_candidates_is_one_of_n():
    failure = ProviderFailure.of(wrapped(GoogleError("400 Multiple candidates is not enabled for this model")))
    assert (failure.kind, failure.status) == ("refused", 400)
    assert failure.may_refuse_n
    assert (failure.names_n(5), failure.smaller_n(5)) == (True, 1)
    assert "Multiple candidates is not enabled" in failure.summary


def test_a_grpc_status_is_read():
    failure = ProviderFailure.of(wrapped(RpcError()))
    assert (failure.kind, failure.status, failure.message) == ("transient", 429, "Quota exceeded")


@pytest.mark.parametrize("wrap", [wrapped, lambda error: error])
def test_awss_refusal_of_a_knob_is_learned_from(wrap):
    words = "`temperature` and `top_p` cannot both be specified for this model."
    failure = ProviderFailure.of(wrap(ClientError(400, "ValidationException", words)))
    assert (failure.kind, failure.status, failure.message, failure.retry_after) == ("refused", 400, words, 3.0)
    assert failure.refused_knob({"temperature", "top_p"}) == "top_p"


def test_awss_throttling_is_retried():
    failure = ProviderFailure.of(ClientError(429, "ThrottlingException", "Too many requests"))
    assert (failure.kind, failure.is_retryable) == ("transient", True)


def test_langchains_own_kinds_have_a_status():
    assert ProviderFailure.of(ModelRateLimitError("slow down")).status == 429


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "7", "Retry-After-Ms": "1500"}, 1.5),
        ({"Retry-After": email.utils.formatdate(0, usegmt=True)}, 0.0),
    ],
)
def test_how_long_to_wait(headers, seconds):
    assert ProviderFailure.of_response(429, "", httpx.Headers(headers)).retry_after == seconds


def test_how_long_to_wait_may_be_a_date():
    headers = httpx.Headers({"Retry-After": email.utils.formatdate(time.time() + 60, usegmt=True)})
    assert 50 < ProviderFailure.of_response(503, "", headers).retry_after <= 60


@pytest.mark.parametrize(
    ("status", "headers", "retryable"),
    [(503, {}, True), (429, {}, True), (503, {"x-should-retry": "false"}, False), (400, {}, False), (401, {}, False)],
)
def test_what_may_go_through_later(status, headers, retryable):
    assert ProviderFailure.of_response(status, "", headers).is_retryable is retryable


# what a real client raises for what a real server sends


def answer(body, *, status="200 OK", content="application/json", length=None):
    body = body if isinstance(body, bytes) else body.encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content}\r\nContent-Length: {length or len(body)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body


CHAT = '{"id":"x","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}'
UNREADABLE = {
    "half a JSON": answer('{"id": "x", "choi'),
    "empty": answer(""),
    "HTML": answer("<html><title>Welcome</title></html>", content="text/html"),
    "HTML called JSON": answer("<html><title>Welcome</title></html>"),
    "SSE": answer(f"data: {CHAT}\n\ndata: [DONE]\n\n", content="text/event-stream"),
    "an error without a code": answer('{"error": "overloaded"}'),
    "no choices": answer('{"id": "x", "choices": []}'),
    "null choices": answer('{"id": "x", "choices": null}'),
    "a null choice": answer('{"id": "x", "choices": [null]}'),
    "a null message": answer('{"id": "x", "choices": [{"index": 0, "message": null}]}'),
    "a list": answer("[]"),
    "invalid UTF-8": answer(CHAT.encode().replace(b"hi", b"h\xff")),
    "a number as content": answer(CHAT.replace('"hi"', "5")),
    "broken gzip": answer(CHAT).replace(b"Connection", b"Content-Encoding: gzip\r\nConnection"),
    "no HTTP": b"\0\1 is no HTTP\r\n\r\n",
}
DISCONNECTED = {
    "before the first byte": b"",
    "in the head": b"HTTP/1.1 200 OK\r\nConte",
    "in the body": answer(CHAT[:20], length=1000),
}


@asynccontextmanager
async def serving(data, requests=None):
    """The address of a server that answers every request with these bytes, and closes the connection."""

    async def respond(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        body = json.loads(await reader.readexactly(length))
        if requests is not None:
            requests.append(body.get("n", 1))
        writer.write(data)
        writer.close()

    server = await asyncio.start_server(respond, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


async def drawn(data, n=1, requests=None):
    """What the failure of a draw means, and its message."""
    async with serving(data, requests) as url:
        model = ChatOpenAI(model="m", base_url=url, api_key="k", max_retries=0, timeout=10)
        with pytest.raises(PolicyError) as caught:
            await Sampler(model).draw([HumanMessage("hello")], n, Sampling())
    return ProviderFailure.of(caught.value.__cause__), caught.value.message


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE)
async def test_an_answer_that_can_not_be_read_may_come_whole_later(data):
    requests = []
    failure, _ = await drawn(data, 5, requests)
    assert (failure.kind, failure.is_retryable, failure.is_unreadable) == ("transient", True, True)
    assert set(requests) == {5}


@pytest.mark.parametrize("data", DISCONNECTED.values(), ids=DISCONNECTED)
async def test_a_disconnect_is_called_one(data):
    failure, message = await drawn(data)
    assert (failure.kind, failure.is_retryable) == ("disconnected", True)
    assert "closed the connection" in message
    assert "timed out" not in message


@pytest.mark.parametrize(
    ("code", "kind", "retryable"), [(429, "transient", True), (502, "transient", True), (400, "refused", False)]
)
async def test_an_error_inside_a_200_is_what_its_code_says(code, kind, retryable):
    failure, message = await drawn(answer(json.dumps({"error": {"message": "not now", "code": code}})))
    assert (failure.kind, failure.status, failure.is_retryable) == (kind, code, retryable)
    assert "not now" in message


async def test_the_body_of_an_error_is_shown():
    failure, message = await drawn(answer(f'{{"object":"error","message":{DETAIL}}}', status="422 Unprocessable"))
    assert "temperature: Input is too big" in message
    assert failure.refused_knob({"temperature"}) == "temperature"
