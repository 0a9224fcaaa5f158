"""The conversation as a reward model's own chat template writes it: token ids, or text where a server takes no ids."""

import asyncio
import re
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from langchain_core.messages import BaseMessage

from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.rewards.base import ScoringReport
from tpo_graph.rewards.local.encoding import TRUNCATIONS, Truncation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tpo_graph.rewards.local.encoding import ChatTurn, ConversationEncoder, EncodedText


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
        max_length: tokens of a text at most; None leaves the limit to the server. For ids alone.
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
        self._name = tokenizer
        self._revision = revision
        self._chat_template = chat_template
        self._trust_remote_code = trust_remote_code
        self._sanitize = sanitize
        self._max_length = max_length
        self._truncation: Truncation = truncation
        self._lock = threading.Lock()  # tokenizers are not thread-safe, and several loops may share this
        self._loaded: tuple[PreTrainedTokenizerBase, ConversationEncoder] | None = None

    async def ids(
        self, messages: Sequence[BaseMessage], responses: Sequence[str], report: ScoringReport
    ) -> list[list[int] | RewardError]:
        """Token ids of the conversation with each response, begin and end tokens included once.

        Args:
            messages: the conversation.
            responses: its possible next turns.
            report: told which of them were cut.

        Returns:
            For each response its ids, or the error that says why it is too long.

        Raises:
            RewardError: the tokenizer can't be loaded, or its template refuses the conversation.
        """
        encoded = await asyncio.to_thread(self._encoded, messages, responses)
        ids: list[list[int] | RewardError] = []
        for response, one in zip(responses, encoded, strict=True):
            if isinstance(one, RewardError):
                ids.append(one)
                continue
            if one.dropped_prompt or one.dropped_response:
                report.truncated.add(response)
            ids.append(list(one.ids))
        return ids

    async def texts(
        self, messages: Sequence[BaseMessage], responses: Sequence[str], *, server_adds_special_tokens: bool
    ) -> list[str]:
        """The text of the conversation with each response.

        Args:
            messages: the conversation.
            responses: its possible next turns.
            server_adds_special_tokens: leave out the begin and end tokens that the tokenizer adds of its own accord,
                because the server's tokenizer will.

        Raises:
            RewardError: as in `ids`.
        """
        return await asyncio.to_thread(self._texts, messages, responses, server_adds_special_tokens)

    async def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, with those that a tokenizer adds of its own accord."""
        return await asyncio.to_thread(self._lengths, texts)

    def _lengths(self, texts: Sequence[str]) -> list[int]:
        with self._lock:
            tokenizer, _ = self._load()
            return [len(tokenizer.encode(text)) for text in texts]

    def _encoded(self, messages: Sequence[BaseMessage], responses: Sequence[str]) -> "list[EncodedText | RewardError]":
        with self._lock:
            _, encoder = self._load()
            return encoder.encode(messages, responses)

    def _texts(self, messages: Sequence[BaseMessage], responses: Sequence[str], stripped: bool) -> list[str]:
        from tpo_graph.rewards.local.encoding import PROBE, chat_turns
        from tpo_graph.rewards.local.encoding import _added_ids as added_ids

        turns = chat_turns(messages)
        with self._lock:
            tokenizer, _ = self._load()
            tokens = _control_tokens(tokenizer) if self._sanitize else []
            begin, end = (str(tokenizer.decode(list(ids))) if stripped else "" for ids in added_ids(tokenizer))
            # what the template writes of its own accord; a message may bring no more than that into the text
            wanted = _found(tokens, self._text(tokenizer, turns, PROBE, tokens))
            texts = []
            for response in responses:
                text = self._text(tokenizer, turns, response, [])
                if _found(tokens, text) != wanted:
                    text = self._text(tokenizer, turns, response, tokens)
                texts.append(text.removeprefix(begin).removesuffix(end))
            return texts

    def _text(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        turns: "Sequence[ChatTurn]",
        response: str,
        broken: Sequence[str],
    ) -> str:
        """The conversation with the response as the template writes it, some tokens in the messages broken up."""
        import jinja2

        whole: list[ChatTurn] = [*turns, {"role": "assistant", "content": response}]
        if broken:
            whole = [{key: _broken_up(value, broken) for key, value in turn.items()} for turn in whole]
        try:
            text = tokenizer.apply_chat_template(
                whole,  # type: ignore[arg-type]  # typed as dict[str, str], documented to take tool calls too
                tokenize=False,
            )
        except (jinja2.TemplateError, ValueError, TypeError) as error:
            roles = ", ".join(str(turn["role"]) for turn in whole)
            raise RewardError(
                f"The chat template of {self._name!r} refuses the conversation (roles: {roles}): {error}",
                hint="Some templates take no system message, or want user and assistant to alternate.",
            ) from error
        return str(text)

    def _load(self) -> "tuple[PreTrainedTokenizerBase, ConversationEncoder]":
        if self._loaded is None:
            from tpo_graph.rewards.local.checkpoint import load_tokenizer
            from tpo_graph.rewards.local.encoding import ConversationEncoder

            tokenizer = load_tokenizer(
                self._name,
                revision=self._revision,
                trust_remote_code=self._trust_remote_code,
                chat_template=self._chat_template,
            )
            # what is too long is cut here or refused by the server; the tokenizer would write to standard error
            tokenizer.model_max_length = 10**30
            encoder = ConversationEncoder(
                tokenizer,
                truncation=self._truncation,
                max_length=self._max_length,
                sanitize=self._sanitize,
                ignored_at_end=None,
            )
            self._loaded = tokenizer, encoder
        return self._loaded


def _control_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Tokens that mean something to the template: special ones, and added ones that it writes. Longest first."""
    template = str(tokenizer.chat_template)
    tokens = [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special or (token.content in template and not token.content.isspace())
    ]
    return sorted((token for token in tokens if len(token) > 1), key=len, reverse=True)


def _found(tokens: Sequence[str], text: str) -> list[str]:
    """The control tokens in a text, in order."""
    return re.findall("|".join(map(re.escape, tokens)), text) if tokens else []


def _broken_up(value: object, tokens: Sequence[str]) -> object:
    """A text with a space inside each control token: a server that takes text can't be told to read it as plain.

    The same for the texts in lists and dicts, which tool calls are.
    """
    if isinstance(value, dict):
        return {key: _broken_up(one, tokens) for key, one in value.items()}
    if isinstance(value, list):
        return [_broken_up(one, tokens) for one in value]
    if not isinstance(value, str):
        return value
    for token in tokens:
        value = value.replace(token, f"{token[0]} {token[1:]}")
    return value
