"""From a conversation and its responses to token ids, as the model's authors tokenise them.

The ids are those of the chat template's text through the tokenizer, with two differences: begin and end tokens that
both the template and the tokenizer would add come once, and control tokens that a message brings into the text are
plain text, so that a response can't end its own turn. A template that takes such tokens out itself, as those do that
strip a block of reasoning, sees the message as it is.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from langchain_core.messages import BaseMessage, convert_to_openai_messages

from tpo_graph.errors import RewardError
from tpo_graph.rewards.local.extractions import CommonHead
from tpo_graph.types import JSON, JSONObject, Options

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# From LangChain messages to the role and content dicts that chat templates take.

ChatTurn: TypeAlias = JSONObject
"""One message as a chat template sees it: `role`, `content`, perhaps `tool_calls`."""

UNSPOKEN = frozenset({"text", "reasoning", "thinking", "redacted_thinking", "tool_use", "tool_call", "function_call"})
"""Content blocks whose text alone is scored: reasoning is no part of the answer, tool calls have a key of their own."""


def chat_turns(messages: Sequence[BaseMessage]) -> list[ChatTurn]:
    """Return the conversation as a chat template takes it.

    Raises:
        RewardError: when a message holds an image or another thing that a text reward model can't see.
    """
    turns: list[ChatTurn] = []
    for message in messages:
        if not isinstance(message.content, str):
            kinds = {block.get("type", "?") for block in message.content if isinstance(block, dict)}
            if kinds - UNSPOKEN:
                raise RewardError(
                    f"A {message.type} message holds {', '.join(sorted(kinds - UNSPOKEN))}; "
                    "a local reward model reads text alone.",
                    hint="Leave images and files out of the conversation that is scored.",
                )
        turn = convert_to_openai_messages(message.model_copy(update={"content": str(message.text)}))
        for call in turn.get("tool_calls") or ():
            # templates print the arguments themselves; as a JSON text they would be quoted twice
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        turns.append(turn)
    return turns


# The truncation policy: which tokens a text that is too long for the model loses.

Truncation: TypeAlias = Literal["error", "truncate_prompt", "truncate_response"]

TRUNCATIONS: tuple[Truncation, ...] = ("error", "truncate_prompt", "truncate_response")


class TooLongError(RewardError):
    """One text does not fit into the model; others of the same conversation may."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Tokens to drop from a text.

    Attributes:
        prompt: from the start of the conversation, after the tokenizer's own first tokens.
        response: from the end of the response, before what closes its turn.
    """

    prompt: int = 0
    response: int = 0


def plan_cut(*, length: int, limit: int | None, leading: int, prompt: int, tail: int, truncation: Truncation) -> Cut:
    """Decide what a text loses.

    `truncate_prompt` drops the oldest tokens of the conversation, `truncate_response` the last tokens of the response.
    What one of them can't give comes from the other: a response that fills the model alone keeps its start.

    Args:
        length: tokens of the text.
        limit: tokens that the model takes; None for no limit.
        leading: tokens at the start that always stay (begin of text, [CLS]).
        prompt: tokens before the response, `leading` included.
        tail: tokens after the response, which always stay (they close the turn, and a decoder is read there).
        truncation: the policy.

    Raises:
        TooLongError: for a text over the limit when the policy is `error`, or when nothing of it would be left.
    """
    if limit is None or length <= limit:
        return Cut()
    excess = length - limit
    if truncation == "error":
        raise TooLongError(
            f"A text of {length} tokens is longer than the {limit} tokens that the reward model takes.",
            hint="Allow truncation='truncate_prompt' or 'truncate_response', or ask the policy for shorter responses.",
        )
    from_prompt = max(prompt - leading, 0)
    from_response = max(length - prompt - tail, 0)
    if excess > from_prompt + from_response:
        raise TooLongError(
            f"The reward model takes {limit} tokens, and {length - from_prompt - from_response} of a text's tokens "
            "are the chat template's own: nothing of the text would be left.",
            hint="Raise max_length.",
        )
    if truncation == "truncate_prompt":
        cut = min(excess, from_prompt)
        return Cut(prompt=cut, response=excess - cut)
    cut = min(excess, from_response)
    return Cut(prompt=excess - cut, response=cut)


TokenIds: TypeAlias = tuple[int, ...]

PROBE = "\u203b"
"""A response that no policy writes: where its ids part from a response's is where the response begins."""


@dataclass(frozen=True, slots=True)
class EncodedText:
    """One conversation with one response, ready for the model.

    Attributes:
        ids: token ids, not padded.
        shared: how many ids at the start are the conversation's alone, the same for each of its responses.
        positions: where the output is read; ascending, may be empty.
        dropped_prompt: tokens lost from the start of the conversation.
        dropped_response: tokens lost from the end of the response.
    """

    ids: TokenIds
    shared: int
    positions: tuple[int, ...]
    dropped_prompt: int = 0
    dropped_response: int = 0


class ConversationEncoder:
    """Encodes a conversation with each of its responses. Not thread-safe (tokenizers are not)."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        truncation: Truncation,
        max_length: int | None,
        sanitize: bool,
        ignored_at_end: int | None,
        step_token: str | None = None,
        step_separator: str = "",
    ) -> None:
        """Prepare the tokenizer's parts.

        Args:
            tokenizer: with a chat template.
            truncation: what to do with a text longer than `max_length`.
            max_length: tokens that the model takes; None for no limit.
            sanitize: whether control tokens inside a message become plain text.
            ignored_at_end: the id that the model's own pooling skips at the end of a text, its config's pad id.
            step_token: read at each of these after a step of the response, instead of once at the end.
            step_separator: what divides a response into steps.
        """
        self._tokenizer = tokenizer
        self._truncation = truncation
        self._max_length = max_length
        self._sanitize = sanitize
        self._ignored_at_end = ignored_at_end
        self._begin, self._end = added_ids(tokenizer)
        added = tokenizer.added_tokens_decoder.items()
        # white space and what the vocabulary does not know are part of a text; some tokenizers have tokens of them
        self._control_ids = frozenset(
            number for number, token in added if not token.content.isspace() and number != tokenizer.unk_token_id
        )
        self._step_separator = step_separator
        self._step_id = None if step_token is None else single_token_id(tokenizer, step_token)

    def encode(self, messages: Sequence[BaseMessage], responses: Sequence[str]) -> list[EncodedText | RewardError]:
        """Encode each response as the next assistant turn of the conversation.

        Returns:
            For each response its text, or why it can't be one: it is too long under `error`.

        Raises:
            RewardError: when the chat template refuses the conversation.
        """
        turns = chat_turns(messages)
        rendered = self._rendered(turns, PROBE)
        head = CommonHead(self._tokenizer, rendered, before=rendered.rfind(PROBE))
        probe = self._completed(head.ids)
        clean_probe = self._sanitized(turns, PROBE) if self._sanitize else probe
        controls = self._controls(clean_probe)
        if self._controls(probe) != controls:
            probe = clean_probe  # the conversation brings control tokens of its own
        encoded: list[EncodedText | RewardError] = []
        for response in responses:
            ids = self._completed(head.encode(self._rendered(turns, response)))
            clean = self._sanitize and self._controls(ids) != controls
            if clean:
                ids = self._sanitized(turns, response)
            try:
                text = self._cut(ids, response, clean_probe if clean else probe)
            except TooLongError as error:
                encoded.append(error)
                continue
            # for the others, what comes before the response may be written otherwise
            shared = min(text.shared, common_start(probe, clean_probe)) if clean else text.shared
            encoded.append(replace(text, shared=shared))
        return encoded

    def _controls(self, ids: TokenIds) -> TokenIds:
        """The control tokens of a text, in order: the same for each response, unless one brings its own."""
        return tuple(one for one in ids if one in self._control_ids)

    def _cut(self, ids: TokenIds, response: str, probe: TokenIds) -> EncodedText:
        """Find the response in the ids, and cut them where they are too long."""
        prompt = common_start(ids, probe)
        tail = common_end(ids[prompt:], probe[prompt:])
        marks: list[int] = []
        if self._step_id is not None:
            steps = self._steps(response, self._step_id, marks, start=prompt)
            ids = ids[:prompt] + steps + ids[len(ids) - tail :]
        leading = max(common_start(ids, self._begin), int(ids[:1] == (self._tokenizer.bos_token_id,)))
        cut = plan_cut(
            length=len(ids),
            limit=self._max_length,
            leading=leading,
            prompt=prompt,
            tail=tail,
            truncation=self._truncation,
        )
        end = len(ids) - tail - cut.response
        if cut.response:
            ids = ids[:end] + ids[len(ids) - tail :]
        if cut.prompt:
            ids = ids[:leading] + ids[leading + cut.prompt :]
        if self._step_id is None:
            positions: tuple[int, ...] = (pooled_position(ids, self._ignored_at_end),)
        else:
            positions = tuple(mark - cut.prompt for mark in marks if mark < end)
        # how much a cut conversation lost depends on the response, so that nothing of it is shared
        return EncodedText(ids, 0 if cut.prompt else prompt, positions, cut.prompt, cut.response)

    def _completed(self, ids: TokenIds) -> TokenIds:
        """The ids with begin and end tokens, once."""
        begin = () if ids[: len(self._begin)] == self._begin else self._begin
        end = () if self._end and ids[-len(self._end) :] == self._end else self._end
        return begin + ids + end

    def _rendered(self, turns: Sequence[ChatTurn], response: str) -> str:
        """The text of the conversation with the response, as the template writes it."""
        return str(apply_template(self._tokenizer, turns, response, tokenize=False))

    def _sanitized(self, turns: Sequence[ChatTurn], response: str) -> TokenIds:
        """The ids of the same, with control tokens that a message brings as plain text."""
        ids = apply_template(self._tokenizer, turns, response, sanitize_control_tokens=True, return_dict=False)
        return self._completed(tuple(ids))

    def _steps(self, response: str, step_id: int, marks: list[int], *, start: int) -> TokenIds:
        """The response's steps, tokenised one by one as such models are trained, each followed by the step token.

        Adds the places of the step tokens to `marks`, counted so that the response begins at `start`. The same token
        inside a step or after the response is not one of them.
        """
        ids: list[int] = []
        for step in filter(None, (part.strip() for part in response.split(self._step_separator))):
            ids += self._tokenizer.encode(step, add_special_tokens=False, split_special_tokens=self._sanitize)
            ids.append(step_id)
            marks.append(start + len(ids) - 1)
        return tuple(ids)


def apply_template(
    tokenizer: "PreTrainedTokenizerBase", turns: Sequence[ChatTurn], response: str, **options: Options
) -> JSON:
    """Write a conversation and the response to it as the tokenizer's chat template does.

    Args:
        tokenizer: with a chat template.
        turns: the conversation, as `chat_turns` returns it.
        response: the next assistant turn.
        **options: of the tokenizer's `apply_chat_template`.

    Returns:
        Token ids, or with `tokenize=False` the text.

    Raises:
        RewardError: when the template refuses the conversation.
    """
    turns = [*turns, {"role": "assistant", "content": response}]
    try:
        return tokenizer.apply_chat_template(turns, **options)
    except Exception as error:  # a template is code of the checkpoint and may raise anything
        raise RewardError(
            f"The chat template of {tokenizer.name_or_path!r} refuses the conversation "
            f"(roles: {', '.join(turn['role'] for turn in turns)}): {error}",
            hint="Some templates take no system message, or want user and assistant to alternate.",
        ) from error


def pooled_position(ids: TokenIds, ignored_at_end: int | None) -> int:
    """Where a sequence classifier reads a text given alone: the last id that is not its config's pad id.

    The pad id may be the end-of-turn token, which then is skipped: what the model was trained with.
    """
    if ignored_at_end is None:
        return len(ids) - 1
    return next((at for at in range(len(ids) - 1, -1, -1) if ids[at] != ignored_at_end), 0)


def common_start(one: TokenIds, other: TokenIds) -> int:
    """Length of the longest common start."""
    length = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        length += 1
    return length


def common_end(one: TokenIds, other: TokenIds) -> int:
    """Length of the longest common end."""
    return common_start(one[::-1], other[::-1])


def single_token_id(tokenizer: "PreTrainedTokenizerBase", token: str) -> int:
    """The id of a text that is one token.

    Raises:
        RewardError: when the tokenizer makes another number of tokens of it.
    """
    vocabulary = tokenizer.get_vocab()
    if token in vocabulary:
        return int(vocabulary[token])
    ids = tokenizer.encode(token, add_special_tokens=False)
    if len(ids) != 1:
        raise RewardError(
            f"{token!r} is {len(ids)} tokens for this reward model; the extraction needs one.",
            hint="Give the token that the model's card names.",
        )
    return int(ids[0])


def added_ids(tokenizer: "PreTrainedTokenizerBase") -> tuple[TokenIds, TokenIds]:
    """Ids that the tokenizer puts before and after a text of its own accord."""
    bare = tuple(tokenizer.encode("a", add_special_tokens=False))
    full = tuple(tokenizer.encode("a", add_special_tokens=True))
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    return (), ()
