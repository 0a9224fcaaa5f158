"""From a conversation and its responses to token ids, as the model's authors tokenise them.

The ids are those of the chat template's text through the tokenizer, with two differences: begin and end tokens that
both the template and the tokenizer would add come once, and control tokens that a message brings into the text are
plain text, so that a response can't end its own turn. A template that takes such tokens out itself, as those do that
strip a block of reasoning, sees the message as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from langchain_core.messages import BaseMessage

from tpo_graph.errors import RewardError
from tpo_graph.rewards.local.common_head import CommonHead
from tpo_graph.rewards.local.conversation import ChatTurn, chat_turns
from tpo_graph.rewards.local.truncation import TooLongError, Truncation, plan_cut

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ConversationEncoder", "EncodedText", "TokenIds"]

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
        self._begin, self._end = _added_ids(tokenizer)
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
        return str(self._templated(turns, response, tokenize=False))

    def _sanitized(self, turns: Sequence[ChatTurn], response: str) -> TokenIds:
        """The ids of the same, with control tokens that a message brings as plain text."""
        return self._completed(tuple(self._templated(turns, response, sanitize_control_tokens=True, return_dict=False)))

    # Any: options of the library; a text, or ids
    def _templated(self, turns: Sequence[ChatTurn], response: str, **options: Any) -> Any:
        import jinja2  # comes with chat templates; not needed before a model is loaded

        whole: list[ChatTurn] = [*turns, {"role": "assistant", "content": response}]
        try:
            return self._tokenizer.apply_chat_template(
                whole,  # type: ignore[arg-type]  # typed as dict[str, str], documented to take tool calls too
                **options,
            )
        except (jinja2.TemplateError, ValueError, TypeError) as error:
            roles = ", ".join(str(turn["role"]) for turn in whole)
            raise RewardError(
                f"The reward model's chat template refuses the conversation (roles: {roles}): {error}",
                hint="Some templates take no system message, or want user and assistant to alternate.",
            ) from error

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


def _added_ids(tokenizer: "PreTrainedTokenizerBase") -> tuple[TokenIds, TokenIds]:
    """Ids that the tokenizer puts before and after a text of its own accord."""
    bare = tuple(tokenizer.encode("a", add_special_tokens=False))
    full = tuple(tokenizer.encode("a", add_special_tokens=True))
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    return (), ()
