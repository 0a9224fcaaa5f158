"""Served reward models by name: what follows the scheme is `URL#MODEL`."""

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypedDict, TypeVar

from langchain_core.messages import BaseMessage

from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.prompts.template import last_query
from tpo_graph.rewards.base import ScoringReport
from tpo_graph.rewards.served.rendering import Renderer
from tpo_graph.rewards.served.reward import ActivationField, Endpoint, RawScores, ServedReward, score_of, unexpected

# NVIDIA NIM: a reward model that answers a chat completion with its scores.
#
# The conversation with the response as its last turn goes to `/v1/chat/completions`; the content of the answer is
# pairs of attribute and score, as in "helpfulness:1.6,correctness:1.6" or "reward:-12.3", and the same numbers stand
# where a language model's log probabilities would.


class NIMReward(ServedReward[list[dict[str, Any]]]):  # Any: a message in OpenAI's JSON
    """A reward model behind `/v1/chat/completions`, which renders the conversation itself. One request a response.

    Args:
        endpoint: the server.
        model: the name that the server gives the model.
        attribute: which of several scores is the reward, as in "helpfulness"; None where there is one.
    """

    server: ClassVar[str] = "NIM"

    def __init__(self, endpoint: Endpoint, *, model: str, attribute: str | None = None) -> None:
        super().__init__(endpoint, batch_size=1)
        self._model = model
        self._attribute = attribute

    async def _encode(
        self,
        messages: Sequence[BaseMessage],
        responses: Sequence[str],
        report: ScoringReport,  # noqa: ARG002  # the server renders, and cuts if it does
    ) -> list[list[dict[str, Any]]]:  # Any: as above
        from tpo_graph.rewards.local.encoding import chat_turns

        turns = chat_turns(messages)
        return [[*turns, {"role": "assistant", "content": response}] for response in responses]

    async def _score_batch(self, batch: Sequence[list[dict[str, Any]]]) -> list[float]:  # Any: as above
        body = {"model": self._model, "messages": batch[0], "stream": False}
        answer = await self._endpoint.post("/v1/chat/completions", body)
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise unexpected(self.server, "has no 'choices'", answer)
        scores = _from_content(choices[0]) or _from_logprobs(choices[0])
        if not scores:
            raise unexpected(self.server, "has no pair of attribute and score", answer)
        return [score_of(self.server, self._pick(scores, answer), answer)]

    def _pick(self, scores: Mapping[str, float | None], answer: object) -> float | None:
        wanted = self._attribute
        if wanted is None and len(scores) == 1:
            wanted = next(iter(scores))
        if wanted is not None and wanted in scores:
            return scores[wanted]
        asked = "no attribute was chosen" if wanted is None else f"{wanted!r} is not one of them"
        raise unexpected(self.server, f"has scores for {', '.join(scores)}, and {asked} (attribute=)", answer)


def _from_content(choice: Mapping[str, Any]) -> dict[str, float | None]:  # Any: JSON
    """Scores by attribute from the text "a:1.0,b:2.0"; nothing when any part of it is something else."""
    message = choice.get("message")
    # some servers put a list of one message there
    message = message[0] if isinstance(message, list) and message else message
    content = message.get("content") if isinstance(message, dict) else None
    scores: dict[str, float | None] = {}
    for pair in str(content or "").split(","):
        name, colon, number = pair.partition(":")
        try:
            scores[name.strip()] = float(number)
        except ValueError:
            return {}
        if not colon or not name.strip():
            return {}
    return scores


def _from_logprobs(choice: Mapping[str, Any]) -> dict[str, float | None]:  # Any: JSON
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list):
        return {}
    return {one["token"]: one.get("logprob") for one in content if isinstance(one, dict) and "token" in one}


# OpenRLHF: the `/get_reward` of its remote reward models.


class OpenRLHFReward(ServedReward[tuple[str, str]]):
    """A reward model behind OpenRLHF's `serve_rm`, or behind a server of one's own with the same interface.

    The server ends each text with one end token, whatever it ended with before: how OpenRLHF trains reward models.

    Args:
        endpoint: the server.
        renderer: makes text.
        batch_size: responses in one request.
    """

    server: ClassVar[str] = "OpenRLHF"

    def __init__(self, endpoint: Endpoint, renderer: Renderer, *, batch_size: int = 32) -> None:
        super().__init__(endpoint, batch_size=batch_size)
        self._renderer = renderer

    async def _encode(
        self,
        messages: Sequence[BaseMessage],
        responses: Sequence[str],
        report: ScoringReport,  # noqa: ARG002  # the server cuts at its own --max_len, which it does not tell
    ) -> list[tuple[str, str]]:
        # its tokenizer is told to add no begin token, so the template's own stays in the text
        texts = await self._renderer.texts(messages, responses, server_adds_special_tokens=False)
        return [(text, last_query(messages)) for text in texts]

    async def _score_batch(self, batch: Sequence[tuple[str, str]]) -> list[float]:
        body = {
            "query": [text for text, _ in batch],
            # `serve_rm` reads the first alone; servers that check answers read these
            "prompts": [prompt for _, prompt in batch],
        }
        answer = await self._endpoint.post("/get_reward", body)
        rewards = answer.get("rewards") if isinstance(answer, dict) else None
        if not isinstance(rewards, list):
            raise unexpected(self.server, "has no list of 'rewards'", answer)
        return [score_of(self.server, self._only(one), answer) for one in rewards]

    @staticmethod
    def _only(value: object) -> object:
        """The number in a list of one: a head that keeps its last dimension returns those."""
        return value[0] if isinstance(value, list) and len(value) == 1 else value


# SGLang: its native `/classify`, which returns the number that the model gives.
#
# Not `/v1/classify`: that one puts a softmax over the labels, and of a single label a softmax makes 1.0.


class SGLangReward(ServedReward[list[int]]):
    """A reward model behind SGLang, which was started with `--is-embedding`.

    Args:
        endpoint: the server.
        renderer: makes token ids.
        model: sent along for routers that choose by it; a server with one model does not read it.
        batch_size: responses in one request.
    """

    server: ClassVar[str] = "SGLang"

    def __init__(
        self, endpoint: Endpoint, renderer: Renderer, *, model: str | None = None, batch_size: int = 32
    ) -> None:
        super().__init__(endpoint, batch_size=batch_size)
        self._renderer = renderer
        self._fixed = {} if model is None else {"model": model}

    async def _encode(
        self, messages: Sequence[BaseMessage], responses: Sequence[str], report: ScoringReport
    ) -> list[list[int] | RewardError]:
        return await self._renderer.ids(messages, responses, report)

    async def _score_batch(self, batch: Sequence[list[int]]) -> list[float]:
        answer = await self._endpoint.post("/classify", {**self._fixed, "input_ids": list(batch)})
        if not isinstance(answer, list) or not all(isinstance(one, dict) and "embedding" in one for one in answer):
            raise unexpected(self.server, "is not a list with an 'embedding' for each text", answer)
        return [self._read(one["embedding"], answer) for one in answer]

    def _read(self, values: object, answer: object) -> float:
        if values is None:
            return score_of(self.server, None, answer)
        if not isinstance(values, list) or len(values) != 1:
            found = len(values) if isinstance(values, list) else "no"
            raise unexpected(self.server, f"has {found} outputs for a text; a reward is one number", answer)
        return score_of(self.server, values[0], answer)


# Text Embeddings Inference: `/predict` with raw scores.


class TEIReward(ServedReward[str]):
    """A sequence classifier with one label behind TEI.

    Args:
        endpoint: the server.
        renderer: makes text; TEI takes no token ids here.
        batch_size: responses in one request; the server's own limit is 32 unless it was started with another
            (`--max-client-batch-size`).
        truncate: let the server cut texts that are too long for the model, at their end; else it refuses them. What
            it cuts is known where it tells its limit (`/info`).
    """

    server: ClassVar[str] = "TEI"

    def __init__(self, endpoint: Endpoint, renderer: Renderer, *, batch_size: int = 32, truncate: bool = False) -> None:
        super().__init__(endpoint, batch_size=batch_size)
        self._renderer = renderer
        self._truncate = truncate
        self._info: Mapping[str, Any] | None = None  # Any: JSON

    async def _encode(
        self, messages: Sequence[BaseMessage], responses: Sequence[str], report: ScoringReport
    ) -> list[str]:
        texts = await self._renderer.texts(messages, responses, server_adds_special_tokens=True)
        if self._truncate and (longest := await self._longest()) is not None:
            lengths = await self._renderer.lengths(texts)
            report.truncated |= {
                response for response, length in zip(responses, lengths, strict=True) if length > longest
            }
        return texts

    async def _longest(self) -> int | None:
        """Tokens that the server takes, if it tells; asked once."""
        if self._info is None:
            try:
                info = await self._endpoint.get("/info")
            except RewardError:  # a proxy may let the path of scores through alone
                info = {}
            self._info = info if isinstance(info, dict) else {}
        longest = self._info.get("max_input_length")
        return longest if isinstance(longest, int) else None

    async def _score_batch(self, batch: Sequence[str]) -> list[float]:
        body = {
            # one list a text: a flat list of two would be read as text and text pair
            "inputs": [[text] for text in batch],
            # without it a single label comes through a sigmoid
            "raw_scores": True,
            "truncate": self._truncate,
        }
        answer = await self._endpoint.post("/predict", body)
        if not isinstance(answer, list) or not all(isinstance(one, list) for one in answer):
            raise unexpected(self.server, "is not a list of predictions for each text", answer)
        return [self._read(one, answer) for one in answer]

    def _read(self, predictions: list[object], answer: object) -> float:
        only = predictions[0] if len(predictions) == 1 else None
        if not isinstance(only, dict) or "score" not in only:
            found = len(predictions)
            raise unexpected(self.server, f"has {found} labels for a text; a reward is one number", answer)
        return score_of(self.server, only["score"], answer)


# vLLM: `/classify` for sequence classifiers, `/pooling` for those and for models with a score at every token.


class _VLLM(ServedReward[list[int]]):
    """What both have in common.

    Args:
        endpoint: the server.
        renderer: makes token ids; a server given text would add begin tokens and read control tokens in a response.
        model: the name that the server gives the model; None for the one that it serves.
        batch_size: responses in one request.
        activation_field: the request's field that switches the activation off; None finds it out.
    """

    server: ClassVar[str] = "vLLM"
    path: ClassVar[str]

    def __init__(
        self,
        endpoint: Endpoint,
        renderer: Renderer,
        *,
        model: str | None = None,
        batch_size: int = 32,
        activation_field: ActivationField | None = None,
    ) -> None:
        super().__init__(endpoint, batch_size=batch_size)
        self._renderer = renderer
        self._fixed: dict[str, Any] = {} if model is None else {"model": model}  # Any: JSON
        self._raw = RawScores(activation_field)

    async def _encode(
        self, messages: Sequence[BaseMessage], responses: Sequence[str], report: ScoringReport
    ) -> list[list[int] | RewardError]:
        return await self._renderer.ids(messages, responses, report)

    async def _score_batch(self, batch: Sequence[list[int]]) -> list[float]:
        return await self._raw(self._ask, {**self._fixed, "input": list(batch)})

    async def _ask(self, body: Mapping[str, Any]) -> list[float]:  # Any: JSON
        answer = await self._endpoint.post(self.path, body)
        data = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(data, list) or not all(isinstance(one, dict) for one in data):
            raise unexpected(self.server, "has no 'data'", answer)
        size = len(body["input"])
        if len(data) != size:
            raise unexpected(self.server, f"has {len(data)} scores for {size} texts", answer)
        data = sorted(data, key=lambda one: one.get("index", 0))
        return [self._read(one, answer) for one in data]

    @abstractmethod
    def _read(self, one: Mapping[str, Any], answer: object) -> float:  # Any: JSON
        """The score in one row of the answer."""


class VLLMReward(_VLLM):
    """A sequence classifier with one output behind vLLM's `/classify`."""

    path = "/classify"

    def _read(self, one: Mapping[str, Any], answer: object) -> float:  # Any: JSON
        values = one.get("probs")
        if values is None and "probs" in one:
            return score_of(self.server, None, answer)
        if not isinstance(values, list) or len(values) != 1:
            found = len(values) if isinstance(values, list) else "no"
            raise unexpected(self.server, f"has {found} outputs for a text; a reward is one number", answer)
        return score_of(self.server, values[0], answer)


class VLLMPoolingReward(_VLLM):
    """A reward model behind vLLM's `/pooling`. Of a score at every token, the last one is taken.

    Args:
        endpoint: as in `VLLMReward`, like all further arguments but `task`.
        renderer: see there.
        task: `classify` or `token_classify`, where the server's own choice is not the right one; None sends none.
        **options: see there.
    """

    path = "/pooling"

    def __init__(
        self,
        endpoint: Endpoint,
        renderer: Renderer,
        *,
        task: str | None = None,
        **options: Any,  # Any: those of `VLLMReward`, checked there
    ) -> None:
        super().__init__(endpoint, renderer, **options)
        self._fixed |= {"encoding_format": "float"} | ({} if task is None else {"task": task})

    def _read(self, one: Mapping[str, Any], answer: object) -> float:  # Any: JSON
        values = one.get("data")
        if values is None and "data" in one:
            return score_of(self.server, None, answer)
        # (tokens, 1) for a score at every token, (1,) for one a text
        row = values[-1] if isinstance(values, list) and values and isinstance(values[-1], list) else values
        if not isinstance(row, list) or len(row) != 1:
            found = len(row) if isinstance(row, list) else "no"
            raise unexpected(self.server, f"has {found} outputs at a position; a reward is one number", answer)
        return score_of(self.server, row[0], answer)


_ENDPOINT = ("api_key", "timeout", "attempts", "retry_wait", "max_concurrency")
_RENDERER = ("revision", "chat_template", "trust_remote_code", "sanitize")
_LENGTH = ("max_length", "truncation")  # where token ids are sent

Made = TypeVar("Made", bound="ServedReward[Any]")  # Any: what a server is sent is the class's own affair


class _Parts(TypedDict):
    endpoint: Endpoint
    renderer: Renderer


def load_vllm(name: str, **options: Any) -> VLLMReward:  # Any: each option is checked by what takes it
    """A reward model behind vLLM's `/classify`.

    Args:
        name: `URL#MODEL`, as in "http://127.0.0.1:8000#Skywork/Skywork-Reward-V2-Llama-3.1-8B".
        **options: `tokenizer` (a hub name or folder; MODEL when left out), `revision`, `chat_template`,
            `trust_remote_code`, `sanitize`, `max_length`, `truncation`; `api_key`, `timeout` (seconds), `attempts`,
            `retry_wait` (seconds), `max_concurrency`, `batch_size`; `activation_field`.

    Raises:
        ConfigurationError: an address, a name or an option that can't be used.
    """
    parts, model = _parts("vllm", VLLMReward.server, name, options, *_LENGTH)
    return VLLMReward(**parts, model=model, **options)


def load_vllm_pooling(name: str, **options: Any) -> VLLMPoolingReward:  # Any: as above
    """A reward model behind vLLM's `/pooling`: `load_vllm`'s arguments, and `task`."""
    parts, model = _parts("vllm-pooling", VLLMPoolingReward.server, name, options, *_LENGTH)
    return VLLMPoolingReward(**parts, model=model, **options)


def load_sglang(name: str, **options: Any) -> SGLangReward:  # Any: as above
    """A reward model behind SGLang's `/classify`: `load_vllm`'s arguments without `activation_field`."""
    parts, model = _parts("sglang", SGLangReward.server, name, options, *_LENGTH)
    return SGLangReward(**parts, model=model, **options)


def load_tei(name: str, **options: Any) -> TEIReward:  # Any: as above
    """A reward model behind TEI: `load_sglang`'s arguments without `max_length` and `truncation`, and `truncate`."""
    parts, _ = _parts("tei", TEIReward.server, name, options)
    return TEIReward(**parts, **options)


def load_openrlhf(name: str, **options: Any) -> OpenRLHFReward:  # Any: as above
    """A reward model behind OpenRLHF's `/get_reward`: `load_tei`'s arguments without `truncate`."""
    url, mark, model = name.partition("#")
    # OpenRLHF's own option for it, --remote_rm_url, takes the whole path
    parts, _ = _parts("openrlhf", OpenRLHFReward.server, url.removesuffix("/get_reward") + mark + model, options)
    return OpenRLHFReward(**parts, **options)


def load_nim(name: str, **options: Any) -> NIMReward:  # Any: as above
    """A reward model that answers chat completions, as NVIDIA NIM serves them.

    Args:
        name: `URL#MODEL`; the model is needed.
        **options: `attribute`; `api_key` (the variable NVIDIA_API_KEY when left out), `timeout`, `attempts`,
            `retry_wait`, `max_concurrency`.

    Raises:
        ConfigurationError: an address, a name or an option that can't be used.
    """
    url, _, model = name.partition("#")
    if not model:
        raise ConfigurationError(f"'nim:{name}' names no model.", hint="Write it as nim:URL#MODEL.")
    options.setdefault("api_key", os.environ.get("NVIDIA_API_KEY"))
    endpoint = Endpoint(url, server=NIMReward.server, **_take(options, *_ENDPOINT))
    return NIMReward(endpoint, model=model, **options)


def _parts(
    scheme: str,
    server: str,
    name: str,
    options: dict[str, Any],  # Any: as above
    *more: str,
) -> tuple[_Parts, str | None]:
    """The server and the renderer that a name and its options describe; the options that they take are taken out."""
    url, _, model = name.partition("#")
    tokenizer = options.pop("tokenizer", None) or model
    if not tokenizer:
        raise ConfigurationError(
            f"'{scheme}:{name}' names no model, so that its chat template is not known.",
            hint=f"Write it as {scheme}:URL#MODEL, or pass tokenizer=..., a name on the Hugging Face hub or a folder.",
        )
    endpoint = Endpoint(url, server=server, **_take(options, *_ENDPOINT))
    renderer = Renderer(tokenizer, **_take(options, *_RENDERER, *more))
    return {"endpoint": endpoint, "renderer": renderer}, model or None


def _take(options: dict[str, Any], *names: str) -> dict[str, Any]:  # Any: as above
    return {name: options.pop(name) for name in names if name in options}
