"""The servers of reward models: what each is sent, and where the scores are in its answer."""

import math
import os
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, TypeVar, get_args

from langchain_core.messages import BaseMessage

from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.prompts.template import last_query
from tpo_graph.rewards.local.encoding import ChatTurn, chat_turns
from tpo_graph.rewards.served.rendering import Rendered, Renderer
from tpo_graph.rewards.served.reward import Endpoint, ServedReward, UnexpectedAnswerError
from tpo_graph.types import JSON, JSONObject, Options

ActivationField: TypeAlias = Literal["use_activation", "activation"]

_NOISE = 0.01  # half precision gives one text slightly different scores from one batch to the next


class _TokenIdsReward(ServedReward[list[int]]):
    """A server that takes token ids. In text it would add begin tokens and read control tokens of a response."""

    def __init__(
        self, endpoint: Endpoint, renderer: Renderer, *, model: str | None = None, batch_size: int = 32
    ) -> None:
        super().__init__(endpoint, batch_size=batch_size)
        self._renderer = renderer
        self._fixed: JSONObject = {} if model is None else {"model": model}

    async def _render(
        self, messages: Sequence[BaseMessage], responses: Sequence[str]
    ) -> list[Rendered[list[int]] | RewardError]:
        return await self._renderer.ids(messages, responses)


class VLLMReward(_TokenIdsReward):
    """A sequence classifier with one output behind vLLM's `/classify`.

    vLLM applies a sigmoid or softmax to classifier outputs unless a request says otherwise. The request's field was
    `activation` first and is `use_activation` since; a server takes no notice of a field that it does not know. To
    send both does not do: versions that know both read `activation: false` as true. So the field that works is found
    out, once.

    Args:
        endpoint: the server.
        renderer: makes token ids.
        model: the name that the server gives the model; None for the one that it serves.
        batch_size: responses in one request.
        activation_field: the request's field that switches the activation off; None finds it out.

    Raises:
        ConfigurationError: there is no such field, and a server would take no notice of it.
    """

    server = "vLLM"
    path = "/classify"
    answer_form = "a list 'data' of rows with 'probs'"

    def __init__(
        self,
        endpoint: Endpoint,
        renderer: Renderer,
        *,
        model: str | None = None,
        batch_size: int = 32,
        activation_field: ActivationField | None = None,
    ) -> None:
        super().__init__(endpoint, renderer, model=model, batch_size=batch_size)
        if activation_field is not None and activation_field not in get_args(ActivationField):
            allowed = ", ".join(get_args(ActivationField))
            raise ConfigurationError(f"Unknown activation_field {activation_field!r}; allowed: {allowed}.")
        self._activation_field = activation_field

    async def _score_batch(self, batch: Sequence[list[int]]) -> list[float]:
        if self._activation_field is not None:
            return await self._ask(batch, **{self._activation_field: False})
        scores = await self._ask(batch, use_activation=False)
        finite = [score for score in scores if math.isfinite(score)]
        if not finite:
            return scores
        # a score outside of [0, 1] proves that there is no activation, so that nearly every model costs one request
        if any(not 0 <= score <= 1 for score in finite):
            self._activation_field = "use_activation"
            return scores
        default = await self._ask(batch)
        if _is_heeded(scores, default):
            self._activation_field = "use_activation"
            return scores
        scores = await self._ask(batch, activation=False)
        if _is_heeded(scores, default):
            self._activation_field = "activation"
            return scores
        raise RewardError(
            f"The vLLM server returns {finite[0]:.4g}, with and without an activation: either it can't leave a sigmoid "
            "or softmax out, or it uses none and all rewards lie between 0 and 1.",
            hint="If the server uses none (started so with --pooler-config) and the model's rewards are in that range, "
            "pass activation_field='use_activation'. Else take a newer vLLM.",
        )

    def _body(self, batch: Sequence[list[int]]) -> JSONObject:
        return {**self._fixed, "input": list(batch)}

    def _values(self, answer: JSON) -> list[JSON]:
        return [self._value(row) for row in sorted(answer["data"], key=lambda row: row.get("index", 0))]

    def _value(self, row: JSONObject) -> JSON:
        return row["probs"]


def _is_heeded(scores: Sequence[float], default: Sequence[float]) -> bool:
    """Whether `scores`, asked for without an activation, differ from what the server returns by default."""
    pairs = [(s, d) for s, d in zip(scores, default, strict=True) if math.isfinite(s) and math.isfinite(d)]
    if any(not 0 <= score <= 1 for score, _ in pairs):
        return True
    return sum(abs(score - usual) for score, usual in pairs) > _NOISE * len(pairs)


class VLLMPoolingReward(VLLMReward):
    """A reward model behind vLLM's `/pooling`. Of a score at every token, the last one is taken.

    Args:
        endpoint: the server.
        renderer: makes token ids.
        model: the name that the server gives the model; None for the one that it serves.
        batch_size: responses in one request.
        activation_field: the request's field that switches the activation off; None finds it out.
        task: `classify` or `token_classify`, where the server's own choice is not the right one; None sends none.
    """

    path = "/pooling"
    answer_form = "a list 'data' of rows with 'data'"

    def __init__(
        self,
        endpoint: Endpoint,
        renderer: Renderer,
        *,
        model: str | None = None,
        batch_size: int = 32,
        activation_field: ActivationField | None = None,
        task: str | None = None,
    ) -> None:
        super().__init__(endpoint, renderer, model=model, batch_size=batch_size, activation_field=activation_field)
        self._fixed |= {"encoding_format": "float"} | ({} if task is None else {"task": task})

    def _value(self, row: JSONObject) -> JSON:
        values = row["data"]
        # (tokens, 1) for a score at every token, (1,) for one per text
        return values[-1] if values and isinstance(values[-1], list) else values


class SGLangReward(_TokenIdsReward):
    """A reward model behind SGLang, which was started with `--is-embedding`.

    It is asked at its native `/classify`, which returns the number that the model gives. `/v1/classify` puts a softmax
    over the labels, and of a single label a softmax makes 1.0.

    Args:
        endpoint: the server.
        renderer: makes token ids.
        model: sent along for routers that choose by it; a server with one model does not read it.
        batch_size: responses in one request.
    """

    server = "SGLang"
    path = "/classify"
    answer_form = "a list with an 'embedding' for each text"

    def _body(self, batch: Sequence[list[int]]) -> JSONObject:
        return {**self._fixed, "input_ids": list(batch)}

    def _values(self, answer: JSON) -> list[JSON]:
        return [row["embedding"] for row in answer]


class TEIReward(ServedReward[str]):
    """A sequence classifier with one label behind Text Embeddings Inference, which takes no token ids here.

    Args:
        endpoint: the server.
        renderer: makes text.
        batch_size: responses in one request; the server's own limit is 32 unless it was started with another
            (`--max-client-batch-size`).
        truncate: let the server cut texts that are too long for the model, at their end; else it refuses them. What
            it cuts is known where it states its limit (`/info`).
    """

    server = "TEI"
    path = "/predict"
    answer_form = "a list of predictions for each text"

    def __init__(self, endpoint: Endpoint, renderer: Renderer, *, batch_size: int = 32, truncate: bool = False) -> None:
        super().__init__(endpoint, batch_size=batch_size)
        self._renderer = renderer
        self._truncate = truncate
        self._info: JSON = None

    async def _render(self, messages: Sequence[BaseMessage], responses: Sequence[str]) -> list[Rendered[str]]:
        if self._truncate and self._info is None:
            try:
                self._info = await self._endpoint.request("GET", "/info")
            except RewardError:  # a proxy may let the path of scores through alone
                self._info = {}
        longest = self._info.get("max_input_length") if isinstance(self._info, dict) else None
        return await self._renderer.texts(
            messages,
            responses,
            server_adds_special_tokens=True,
            server_cuts_at=longest if isinstance(longest, int) else None,
        )

    def _body(self, batch: Sequence[str]) -> JSONObject:
        return {
            # one list per text: a flat list of two would be read as one text and its pair
            "inputs": [[text] for text in batch],
            # without it a single label comes through a sigmoid
            "raw_scores": True,
            "truncate": self._truncate,
        }

    def _values(self, answer: JSON) -> list[JSON]:
        return [[label["score"] for label in labels] for labels in answer]


class OpenRLHFReward(ServedReward[tuple[str, str]]):
    """A reward model behind OpenRLHF's `serve_rm`, or behind a server of one's own with the same interface.

    The server ends each text with one end token, whatever it ended with before: how OpenRLHF trains reward models.

    Args:
        endpoint: the server.
        renderer: makes text.
        batch_size: responses in one request.
    """

    server = "OpenRLHF"
    path = "/get_reward"
    answer_form = "an object with a list of 'rewards'"

    def __init__(self, endpoint: Endpoint, renderer: Renderer, *, batch_size: int = 32) -> None:
        super().__init__(endpoint, batch_size=batch_size)
        self._renderer = renderer

    async def _render(
        self, messages: Sequence[BaseMessage], responses: Sequence[str]
    ) -> list[Rendered[tuple[str, str]]]:
        # the server adds no begin token, so the template's own stays in the text; it cuts at its --max_len, which it
        # does not state
        rendered = await self._renderer.texts(messages, responses, server_adds_special_tokens=False)
        return [Rendered((item.input, last_query(messages))) for item in rendered]

    def _body(self, batch: Sequence[tuple[str, str]]) -> JSONObject:
        return {
            "query": [text for text, _ in batch],
            # `serve_rm` reads the first alone; servers that check answers read these
            "prompts": [prompt for _, prompt in batch],
        }

    def _values(self, answer: JSON) -> list[JSON]:
        return list(answer["rewards"])


class NIMReward(ServedReward[list[ChatTurn]]):
    """A reward model behind NVIDIA NIM, which renders the conversation itself. One request a response.

    The conversation with the response as its last turn goes to `/v1/chat/completions`. The content of the answer is
    pairs of attribute and score, as in "helpfulness:1.6,correctness:1.6" or "reward:-12.3", and the same numbers stand
    where a language model's log probabilities would.

    Args:
        endpoint: the server.
        model: the name that the server gives the model.
        attribute: which of several scores is the reward, as in "helpfulness"; None where there is one.
    """

    server = "NIM"
    path = "/v1/chat/completions"
    answer_form = "a chat completion with pairs of attribute and score"

    def __init__(self, endpoint: Endpoint, *, model: str, attribute: str | None = None) -> None:
        super().__init__(endpoint, batch_size=1)
        self._model = model
        self._attribute = attribute

    async def _render(
        self, messages: Sequence[BaseMessage], responses: Sequence[str]
    ) -> list[Rendered[list[ChatTurn]]]:
        turns = chat_turns(messages)
        return [Rendered([*turns, {"role": "assistant", "content": response}]) for response in responses]

    def _body(self, batch: Sequence[list[ChatTurn]]) -> JSONObject:
        return {"model": self._model, "messages": batch[0], "stream": False}

    def _values(self, answer: JSON) -> list[JSON]:
        choice = answer["choices"][0]
        scores = _scores_in_content(choice) or {
            token["token"]: token.get("logprob") for token in choice["logprobs"]["content"]
        }
        if not scores:
            raise KeyError("pairs")
        attribute = next(iter(scores)) if self._attribute is None and len(scores) == 1 else self._attribute
        if attribute in scores:
            return [scores[attribute]]
        why = "no attribute was chosen" if attribute is None else f"{attribute!r} is not one of them"
        what = f"has scores for {', '.join(scores)}, and {why} (attribute=)"
        raise UnexpectedAnswerError(what, answer, self.server, may_pass=False)


def _scores_in_content(choice: JSONObject) -> dict[str, float]:
    """Scores by attribute from the text "a:1.0,b:2.0"; none when any part of it is something else."""
    message = choice.get("message") or {}
    # some servers put a list of one message there
    content = (message[0] if isinstance(message, list) else message).get("content")
    try:
        pairs = [pair.split(":") for pair in str(content or "").split(",")]
        scores = {name.strip(): float(number) for name, number in pairs}
    except ValueError:
        return {}
    return {} if "" in scores else scores


_ENDPOINT_OPTIONS = ("api_key", "timeout", "attempts", "retry_wait", "max_concurrency")
_RENDERER_OPTIONS = ("revision", "chat_template", "trust_remote_code", "sanitize")
_LENGTH_OPTIONS = ("max_length", "truncation")  # where token ids are sent

RewardT = TypeVar("RewardT", VLLMReward, VLLMPoolingReward, SGLangReward, TEIReward, OpenRLHFReward)


def load_vllm(name: str, **options: Options) -> VLLMReward:
    """Load a reward model behind vLLM's `/classify`.

    Args:
        name: `URL#MODEL`, as in "http://127.0.0.1:8000#Skywork/Skywork-Reward-V2-Llama-3.1-8B".
        **options: `tokenizer` (a hub name or folder; MODEL when left out), `revision`, `chat_template`,
            `trust_remote_code`, `sanitize`, `max_length`, `truncation`; `api_key`, `timeout` (seconds), `attempts`,
            `retry_wait` (seconds), `max_concurrency`, `batch_size`; `activation_field`.

    Raises:
        ConfigurationError: an address, a name or an option that can't be used.
    """
    return _load(VLLMReward, "vllm", name, options)


def load_vllm_pooling(name: str, **options: Options) -> VLLMPoolingReward:
    """Load `URL#MODEL`, a reward model behind vLLM's `/pooling`; `load_vllm`'s options and `task`."""
    return _load(VLLMPoolingReward, "vllm-pooling", name, options)


def load_sglang(name: str, **options: Options) -> SGLangReward:
    """Load `URL#MODEL`, a reward model behind SGLang; `load_vllm`'s options without `activation_field`."""
    return _load(SGLangReward, "sglang", name, options)


def load_tei(name: str, **options: Options) -> TEIReward:
    """Load `URL#MODEL` behind TEI; `load_sglang`'s options without `max_length` and `truncation`, and `truncate`."""
    return _load(TEIReward, "tei", name, options)


def load_openrlhf(name: str, **options: Options) -> OpenRLHFReward:
    """Load `URL#MODEL`, a reward model behind OpenRLHF's `/get_reward`; `load_tei`'s options without `truncate`."""
    return _load(OpenRLHFReward, "openrlhf", name, options)


def _load(kind: type[RewardT], scheme: str, name: str, options: dict[str, Options]) -> RewardT:
    model = name.partition("#")[2]
    tokenizer = options.pop("tokenizer", None) or model
    if not tokenizer:
        raise ConfigurationError(
            f"'{scheme}:{name}' names no model, so that its chat template is not known.",
            hint=f"Write it as {scheme}:URL#MODEL, or pass tokenizer=..., a name on the Hugging Face hub or a folder.",
        )
    endpoint = _endpoint(kind, name, options)
    if not issubclass(kind, _TokenIdsReward):
        return kind(endpoint, Renderer(tokenizer, **_take(options, *_RENDERER_OPTIONS)), **options)
    renderer = Renderer(tokenizer, **_take(options, *_RENDERER_OPTIONS, *_LENGTH_OPTIONS))
    return kind(endpoint, renderer, model=model or None, **options)


def load_nim(name: str, **options: Options) -> NIMReward:
    """Load a reward model that answers chat completions, as NVIDIA NIM serves them.

    Args:
        name: `URL#MODEL`; the model is needed.
        **options: `attribute`; `api_key` (the variable NVIDIA_API_KEY when left out), `timeout`, `attempts`,
            `retry_wait`, `max_concurrency`.

    Raises:
        ConfigurationError: an address, a name or an option that can't be used.
    """
    model = name.partition("#")[2]
    if not model:
        raise ConfigurationError(f"'nim:{name}' names no model.", hint="Write it as nim:URL#MODEL.")
    options.setdefault("api_key", os.environ.get("NVIDIA_API_KEY"))
    return NIMReward(_endpoint(NIMReward, name, options), model=model, **options)


def _endpoint(kind: type[ServedReward[Any]], name: str, options: dict[str, Options]) -> Endpoint:
    # OpenRLHF's own option for the address, --remote_rm_url, takes the whole path
    url = name.partition("#")[0].removesuffix(kind.path)
    return Endpoint(url, server=kind.server, **_take(options, *_ENDPOINT_OPTIONS))


def _take(options: dict[str, Options], *names: str) -> dict[str, Options]:
    """Remove options of these names and return them."""
    return {name: options.pop(name) for name in names if name in options}
