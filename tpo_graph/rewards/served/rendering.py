"""The conversation as a reward model's own chat template writes it: token ids, or text where a server takes no ids."""

import asyncio
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Generic, TypeVar

from langchain_core.messages import BaseMessage

from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.rewards.local.encoding import (
    PROBE,
    TRUNCATIONS,
    ChatTurn,
    ConversationEncoder,
    Truncation,
    added_ids,
    apply_template,
    turns_for_template,
)
from tpo_graph.types import JSON, Options

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Input = TypeVar("Input")


@dataclass(frozen=True, slots=True)
class Rendered(Generic[Input]):
    """The conversation with one response, as a server is sent it.

    Attributes:
        input: token ids, text or messages.
        truncated: some of it is cut, here or by the server.
    """

    input: Input
    truncated: bool = False


class Renderer:
    """Renders conversations with a tokenizer that is loaded when it is first needed.

    All work is done in a thread: tokenizers block, and loading one reads files or the network.

    Args:
        tokenizer: a name on the Hugging Face hub or a folder.
        revision: of the tokenizer on the hub.
        chat_template: a Jinja text in place of the tokenizer's own.
        trust_remote_code: run the tokenizer's own code.
        sanitize: control tokens that a message brings into the text become plain text, so that a response can't end
            its own turn.
        max_length: the most tokens of a text; None leaves the limit to the server. For token ids alone.
        truncation: what happens to longer ones; under `error` they have no score.

    Raises:
        ConfigurationError: `max_length` is below 1, or `truncation` is unknown.
    """

    def __init__(
        self,
        tokenizer: str,
        *,
        revision: str | None = None,
        chat_template: str | None = None,
        trust_remote_code: bool = False,
        sanitize: bool = True,
        max_length: int | None = None,
        truncation: Truncation = "error",
    ) -> None:
        if max_length is not None and max_length < 1:
            raise ConfigurationError(f"max_length={max_length}: it must be at least 1, or None.")
        if truncation not in TRUNCATIONS:
            raise ConfigurationError(f"Unknown truncation {truncation!r}; allowed: {', '.join(TRUNCATIONS)}.")
        self._tokenizer_options: dict[str, Options] = {
            "name_or_path": tokenizer,
            "revision": revision,
            "trust_remote_code": trust_remote_code,
            "chat_template": chat_template,
        }
        self._sanitize = sanitize
        self._max_length = max_length
        self._truncation: Truncation = truncation
        self._lock = threading.Lock()  # tokenizers are not thread-safe, and several loops may share this

    async def ids(
        self, messages: Sequence[BaseMessage], responses: Sequence[str]
    ) -> list[Rendered[list[int]] | RewardError]:
        """Token ids of the conversation with each response, begin and end tokens included once.

        Args:
            messages: the conversation.
            responses: its possible next turns.

        Returns:
            For each response its ids, or the error that says why it is too long.

        Raises:
            RewardError: the tokenizer can't be loaded, or its template refuses the conversation.
        """

        def encode() -> list[Rendered[list[int]] | RewardError]:
            with self._lock:
                _, encoder = self._loaded
                return [
                    text
                    if isinstance(text, RewardError)
                    else Rendered(list(text.ids), truncated=bool(text.dropped_prompt or text.dropped_response))
                    for text in encoder.encode(messages, responses)
                ]

        return await asyncio.to_thread(encode)

    async def texts(
        self,
        messages: Sequence[BaseMessage],
        responses: Sequence[str],
        *,
        server_adds_special_tokens: bool,
        server_cuts_at: int | None = None,
    ) -> list[Rendered[str]]:
        """The text of the conversation with each response.

        Args:
            messages: the conversation.
            responses: its possible next turns.
            server_adds_special_tokens: leave out the begin and end tokens that the tokenizer adds of its own accord,
                because the server's tokenizer will.
            server_cuts_at: how many tokens of a text the server keeps; None where it does not cut or does not say.

        Raises:
            RewardError: the tokenizer can't be loaded, or its template refuses the conversation.
        """

        def write() -> list[Rendered[str]]:
            with self._lock:
                tokenizer, _ = self._loaded
                turns = turns_for_template(tokenizer, messages)
                texts = _texts(tokenizer, turns, responses, sanitize=self._sanitize)
                if server_adds_special_tokens:
                    begin, end = (str(tokenizer.decode(list(ids))) for ids in added_ids(tokenizer))
                    texts = [text.removeprefix(begin).removesuffix(end) for text in texts]
                if server_cuts_at is None:
                    return [Rendered(text) for text in texts]
                return [Rendered(text, truncated=len(tokenizer.encode(text)) > server_cuts_at) for text in texts]

        return await asyncio.to_thread(write)

    @cached_property
    def _loaded(self) -> "tuple[PreTrainedTokenizerBase, ConversationEncoder]":
        from tpo_graph.rewards.local.checkpoint import load_tokenizer

        tokenizer = load_tokenizer(**self._tokenizer_options)
        # what is too long is cut here or refused by the server; the tokenizer would write to standard error
        tokenizer.model_max_length = 10**30
        encoder = ConversationEncoder(
            tokenizer,
            truncation=self._truncation,
            max_length=self._max_length,
            sanitize=self._sanitize,
            ignored_at_end=None,
        )
        return tokenizer, encoder


def _texts(
    tokenizer: "PreTrainedTokenizerBase", turns: list[ChatTurn], responses: Sequence[str], *, sanitize: bool
) -> list[str]:
    """The conversation with each response as the template writes it, the messages' own control tokens broken up."""
    if not sanitize:
        return [apply_template(tokenizer, turns, response, tokenize=False) for response in responses]
    template = str(tokenizer.chat_template)
    # those that mean something to the model or the template, longest first
    tokens = sorted(
        (
            token.content
            for token in tokenizer.added_tokens_decoder.values()
            if len(token.content) > 1 and (token.special or (token.content in template and not token.content.isspace()))
        ),
        key=len,
        reverse=True,
    )
    pattern = re.compile("|".join(map(re.escape, tokens)) or r"(?!)")
    plain_turns = _broken_up(turns, tokens)
    # what the template writes of its own accord; a message may bring no more than that into the text
    allowed = pattern.findall(apply_template(tokenizer, plain_turns, PROBE, tokenize=False))
    texts = []
    for response in responses:
        text = apply_template(tokenizer, turns, response, tokenize=False)
        # a template that takes tokens out of a message itself has to see them
        if pattern.findall(text) != allowed:
            text = apply_template(tokenizer, plain_turns, _broken_up(response, tokens), tokenize=False)
        texts.append(text)
    return texts


def _broken_up(value: JSON, tokens: Sequence[str]) -> JSON:
    """A text with a space inside each control token: a server that takes text can't be told to read it as plain.

    The same for the texts in lists and objects, which tool calls are.
    """
    if isinstance(value, dict):
        return {key: _broken_up(item, tokens) for key, item in value.items()}
    if isinstance(value, list):
        return [_broken_up(item, tokens) for item in value]
    if not isinstance(value, str):
        return value
    for token in tokens:
        value = value.replace(token, f"{token[0]} {token[1:]}")
    return value
