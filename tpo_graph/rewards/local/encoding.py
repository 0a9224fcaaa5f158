"""From a conversation and its responses to token ids, as the model's authors tokenise them.

The ids are those of the chat template's text through the tokenizer, with two differences: begin and end tokens that
both the template and the tokenizer would add appear once, and control tokens inside a message are plain text, so that a
response can't end its own turn. A template that takes such tokens out itself, as those do that strip a block of
reasoning, sees the message as it is.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from langchain_core.messages import BaseMessage, convert_to_openai_messages

from tpo_graph.errors import RewardError
from tpo_graph.policies.limits import fold_system
from tpo_graph.prompts.template import role_of
from tpo_graph.types import JSON, JSONObject, Options

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TokenIds: TypeAlias = tuple[int, ...]

ChatTurn: TypeAlias = JSONObject
"""One message as a chat template sees it: `role`, `content`, perhaps `tool_calls`."""

Truncation: TypeAlias = Literal["error", "truncate_prompt", "truncate_response"]
"""What a text that is too long loses: nothing (it is not scored), the oldest tokens of the conversation, or the last
tokens of the response."""

TRUNCATIONS: tuple[Truncation, ...] = get_args(Truncation)

IGNORED_BLOCKS = frozenset(
    {"text", "reasoning", "thinking", "redacted_thinking", "tool_use", "tool_call", "function_call"}
)
"""Content blocks of which nothing but text is scored: reasoning is not part of the answer, and tool calls have a key of
their own."""

PROBE = "\u203b"
"""A response that no policy writes: the response begins where a text's ids differ from those of the probe's text."""


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
        """Look up the tokenizer's own begin, end and control tokens.

        Args:
            tokenizer: with a chat template.
            truncation: what a text longer than `max_length` loses.
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
        # white space and what the vocabulary lacks are parts of a text, although some tokenizers have tokens for them
        self._control_ids = frozenset(
            token_id
            for token_id, token in tokenizer.added_tokens_decoder.items()
            if not token.content.isspace() and token_id != tokenizer.unk_token_id
        )
        self._step_separator = step_separator
        self._step_id = None if step_token is None else single_token_id(tokenizer, step_token)

    def encode(self, messages: Sequence[BaseMessage], responses: Sequence[str]) -> list[EncodedText | RewardError]:
        """Encode each response as the next assistant turn of the conversation.

        Args:
            messages: the conversation.
            responses: the texts that may follow it.

        Returns:
            For each response its text, or the error that says why it does not fit into the model.

        Raises:
            RewardError: when the chat template refuses the conversation.
        """
        turns = turns_for_template(self._tokenizer, messages)
        rendered = apply_template(self._tokenizer, turns, PROBE, tokenize=False)
        start = CommonStart(self._tokenizer, rendered, before=rendered.rfind(PROBE))
        probe = self._with_added_ids(start.ids)
        clean_probe = self._sanitized(turns, PROBE) if self._sanitize else probe
        controls = self._controls(clean_probe)
        if self._controls(probe) != controls:
            probe = clean_probe  # the conversation holds control tokens of its own
        encoded: list[EncodedText | RewardError] = []
        for response in responses:
            ids = self._with_added_ids(start.encode(apply_template(self._tokenizer, turns, response, tokenize=False)))
            clean = self._sanitize and self._controls(ids) != controls
            if clean:
                ids = self._sanitized(turns, response)
            try:
                text = self._truncated(ids, response, clean_probe if clean else probe)
            except RewardError as error:  # it is too long; others may not be
                encoded.append(error)
                continue
            if clean:  # what precedes the other responses may have been tokenised differently
                text = replace(text, shared=min(text.shared, common_start(probe, clean_probe)))
            encoded.append(text)
        return encoded

    def _controls(self, ids: TokenIds) -> TokenIds:
        """The control tokens of a text, in order: the same for all responses that have none of their own."""
        return tuple(token_id for token_id in ids if token_id in self._control_ids)

    def _with_added_ids(self, ids: TokenIds) -> TokenIds:
        """The ids with the tokenizer's begin and end tokens, once."""
        begin = () if ids[: len(self._begin)] == self._begin else self._begin
        end = () if self._end and ids[-len(self._end) :] == self._end else self._end
        return begin + ids + end

    def _sanitized(self, turns: Sequence[ChatTurn], response: str) -> TokenIds:
        """The ids of the conversation with the response, control tokens inside of messages as plain text."""
        ids = apply_template(self._tokenizer, turns, response, sanitize_control_tokens=True, return_dict=False)
        return self._with_added_ids(tuple(ids))

    def _truncated(self, ids: TokenIds, response: str, probe: TokenIds) -> EncodedText:
        """Find the response in the ids, and shorten them where they are too long."""
        prompt = common_start(ids, probe)
        tail = common_start(ids[prompt:][::-1], probe[prompt:][::-1])
        marks: list[int] = []  # places of the step tokens; the same token inside a step is not one
        if self._step_id is not None:
            # such models are trained on steps that are tokenised one by one
            steps: list[int] = []
            for step in filter(None, map(str.strip, response.split(self._step_separator))):
                steps += self._tokenizer.encode(step, add_special_tokens=False, split_special_tokens=self._sanitize)
                marks.append(prompt + len(steps))
                steps.append(self._step_id)
            ids = ids[:prompt] + tuple(steps) + ids[len(ids) - tail :]
        leading = max(common_start(ids, self._begin), int(ids[:1] == (self._tokenizer.bos_token_id,)))
        lost_prompt, lost_response = plan_cut(
            length=len(ids),
            limit=self._max_length,
            leading=leading,
            prompt=prompt,
            tail=tail,
            truncation=self._truncation,
        )
        end = len(ids) - tail - lost_response
        ids = ids[:end] + ids[len(ids) - tail :]
        ids = ids[:leading] + ids[leading + lost_prompt :]
        if self._step_id is None:
            positions: tuple[int, ...] = (pooled_position(ids, self._ignored_at_end),)
        else:
            positions = tuple(mark - lost_prompt for mark in marks if mark < end)
        # how much a conversation lost depends on the response, so that none of it is shared
        return EncodedText(ids, 0 if lost_prompt else prompt, positions, lost_prompt, lost_response)


class CommonStart:
    """Tokenises once what several texts have in common, up to an added token.

    A tokenizer of the `tokenizers` library splits a text at its added tokens before it does anything else, and
    tokenises the pieces one by one. So the ids of a text are those of what precedes an added token and those of the
    rest, which begins with that token. Where there is no such place, texts are tokenised whole.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", text: str, *, before: int) -> None:
        """Find the place, and tokenise what precedes it.

        Args:
            tokenizer: gives the ids; begin and end tokens of its own are left out.
            text: the first of the texts.
            before: the common start ends before this place of it.
        """
        self._tokenizer = tokenizer
        self.ids = self._encoded(text)
        """Token ids of the first text."""
        # a token that takes the white space before it, or that is searched for in normalised text, is not a clean cut
        splitting = [
            token.content
            for token in (tokenizer.added_tokens_decoder.values() if tokenizer.is_fast else ())
            if not (token.lstrip or token.normalized or token.single_word)
        ]
        end, token = max(((text.rfind(token, 0, before), token) for token in splitting), default=(-1, ""))
        self._start, self._length = text[: end + len(token)], max(end, 0)
        self._start_ids = self._encoded(text[: self._length])
        if self._length and self._start_ids + self._encoded(text[self._length :]) != self.ids:
            self._length = 0

    def encode(self, text: str) -> TokenIds:
        """The token ids of a text, which need not begin like the first one."""
        if not self._length or not text.startswith(self._start):
            return self._encoded(text)
        return self._start_ids + self._encoded(text[self._length :])

    def _encoded(self, text: str) -> TokenIds:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))


def plan_cut(
    *, length: int, limit: int | None, leading: int, prompt: int, tail: int, truncation: Truncation
) -> tuple[int, int]:
    """Decide what a text loses.

    What the conversation or the response can't give comes from the other: a response that fills the model alone keeps
    its start.

    Args:
        length: tokens of the text.
        limit: tokens that the model takes; None for no limit.
        leading: tokens at the start that always stay (begin of text, [CLS]).
        prompt: tokens before the response, `leading` included.
        tail: tokens after the response, which always stay (they close the turn, and a decoder is read there).
        truncation: which of the two loses tokens first.

    Returns:
        How many tokens to drop from the start of the conversation, after `leading`, and how many from the end of the
        response, before `tail`.

    Raises:
        RewardError: for a text over the limit when `truncation` is `error`, or when nothing of it would be left.
    """
    if limit is None or length <= limit:
        return 0, 0
    excess = length - limit
    if truncation == "error":
        raise RewardError(
            f"A text of {length} tokens is longer than the {limit} tokens that the reward model takes.",
            hint="Allow truncation='truncate_prompt' or 'truncate_response', or ask the policy for shorter responses.",
        )
    in_prompt, in_response = max(prompt - leading, 0), max(length - prompt - tail, 0)
    if excess > in_prompt + in_response:
        raise RewardError(
            f"The reward model takes {limit} tokens, and {length - in_prompt - in_response} of a text's tokens "
            "are the chat template's own: nothing of the text would be left.",
            hint="Raise max_length.",
        )
    lost_prompt = min(excess, in_prompt) if truncation == "truncate_prompt" else excess - min(excess, in_response)
    return lost_prompt, excess - lost_prompt


def chat_turns(messages: Sequence[BaseMessage]) -> list[ChatTurn]:
    """Return a conversation in the form that chat templates take.

    Args:
        messages: the conversation.

    Raises:
        RewardError: a message holds an image or something else that a text reward model can't read, or arguments of a
            tool call that are nested too deep.
    """
    turns: list[ChatTurn] = []
    for message in messages:
        blocks = [] if isinstance(message.content, str) else message.content
        unreadable = {block.get("type", "?") for block in blocks if isinstance(block, dict)} - IGNORED_BLOCKS
        if unreadable:
            raise RewardError(
                f"A {message.type} message holds {', '.join(sorted(unreadable))}; "
                "a local reward model reads text alone.",
                hint="Leave images and files out of the conversation that is scored.",
            )
        try:
            turn = convert_to_openai_messages(message.model_copy(update={"content": str(message.text)}))
            for call in turn.get("tool_calls") or ():
                # templates print the arguments themselves; as a JSON text they would be quoted twice
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        except RecursionError as error:
            raise RewardError("The arguments of a tool call are nested too deep to be read.") from error
        turn["role"] = role_of(message)
        turns.append(turn)
    return turns


def turns_for_template(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[BaseMessage]) -> list[ChatTurn]:
    """The conversation in a form of which the tokenizer's chat template writes everything.

    Many templates leave out what they don't know, and the scores would be those of another conversation. Tool calls
    that are left out become text of their message. Where a template takes no system message, its text leads the user's.

    Args:
        tokenizer: with a chat template.
        messages: the conversation.

    Raises:
        RewardError: the template leaves a message out, or refuses the conversation; or a message holds what a text
            reward model can't read.
    """
    turns = chat_turns(messages)
    if all(turn["role"] in ("user", "assistant") and not turn.get("tool_calls") for turn in turns):
        return turns
    try:
        return _with_nothing_left_out(tokenizer, turns)
    except RewardError:
        if not any(turn["role"] == "system" for turn in turns):
            raise
        try:
            return _with_nothing_left_out(tokenizer, chat_turns(fold_system(messages)))
        except RewardError:
            pass  # the first error says more
        raise


def _with_nothing_left_out(tokenizer: "PreTrainedTokenizerBase", turns: Sequence[ChatTurn]) -> list[ChatTurn]:
    # every part with a mark of its own, to see which ones are written
    marked: list[ChatTurn] = []
    for place, turn in enumerate(turns):
        marked.append({**turn, "content": f"{turn['content']}{PROBE}{place}{PROBE}"})
        if turn.get("tool_calls"):
            marked[-1]["tool_calls"] = [
                {**call, "function": {"name": mark, "arguments": {**call["function"]["arguments"], mark: mark}}}
                for mark, call in zip(_call_marks(place, turn), turn["tool_calls"], strict=True)
            ]
    rendered = apply_template(tokenizer, marked, PROBE, tokenize=False)
    written: list[ChatTurn] = []
    for place, turn in enumerate(turns):
        has_content = not turn["content"] or f"{PROBE}{place}{PROBE}" in rendered
        calls = turn.get("tool_calls") or ()
        if turn["role"] != "assistant" and not has_content:
            raise RewardError(
                f"The chat template of {tokenizer.name_or_path!r} leaves the {turn['role']} message out, so that the "
                "scores would be those of another conversation.",
                hint="Take a reward model whose template knows that role, or give it a template: chat_template=...",
            )
        if calls and not (has_content and all(mark in rendered for mark in _call_marks(place, turn))):
            lines = [
                f"{call['function']['name']}({json.dumps(call['function']['arguments'], ensure_ascii=False)})"
                for call in calls
            ]
            written.append({"role": turn["role"], "content": "\n".join(filter(None, [turn["content"], *lines]))})
        else:
            written.append(turn)
    return written


def _call_marks(place: int, turn: ChatTurn) -> list[str]:
    return [f"{PROBE}{place}.{index}{PROBE}" for index in range(len(turn["tool_calls"]))]


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
            hint="Many templates want user and assistant to alternate, and know no tools.",
        ) from error


def pooled_position(ids: TokenIds, ignored_at_end: int | None) -> int:
    """Where a sequence classifier reads a text that is scored alone: the last id that is not its config's pad id.

    The pad id may be the end-of-turn token, which then is skipped: what the model was trained with.
    """
    return next((at for at in range(len(ids) - 1, -1, -1) if ids[at] != ignored_at_end), 0)


def common_start(one: TokenIds, other: TokenIds) -> int:
    """Length of the longest common start."""
    length = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        length += 1
    return length


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
