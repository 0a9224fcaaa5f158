"""The local reward model: a transformers checkpoint that scores responses in this process."""

import asyncio
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from langchain_core.messages import BaseMessage

from tpo_graph.errors import ConfigurationError, MissingDependencyError
from tpo_graph.rewards.base import DetailedReward, RunContext, Scoring
from tpo_graph.rewards.local.encoding import TRUNCATIONS, ConversationEncoder, Truncation
from tpo_graph.rewards.local.extractions import Extraction, SingleScore, extraction_by_name
from tpo_graph.rewards.local.worker import ScoringWorker

if TYPE_CHECKING:
    from tpo_graph.rewards.local.checkpoint import Checkpoint, DType

GATHER_SECONDS = 0.002
"""Long enough for the tasks of one event loop to hand in their requests, too short to be felt."""


class ClassifierReward(DetailedReward):
    """Scores responses with a reward model on this machine.

    The score of a response is the one that the model gives when that response is scored alone; batches, kept prefixes
    and the order of requests change it by rounding only. All methods may be used from several event loops and threads.

    Examples:
        ```python
        reward = ClassifierReward.from_pretrained("Skywork/Skywork-Reward-V2-Qwen3-0.6B")
        scores = await reward.score([HumanMessage("Why is the sky blue?")], ["Rayleigh scattering.", "It is not."])
        ```
    """

    def __init__(
        self,
        checkpoint: "Checkpoint",
        *,
        extraction: Extraction | None = None,
        truncation: Truncation = "truncate_prompt",
        sanitize: bool = True,
        batch_tokens: int | None = None,
        prefix_bytes: int = 2**30,
    ) -> None:
        """Serve a checkpoint that is loaded already; `from_pretrained` is the usual way.

        Args:
            checkpoint: model and tokenizer.
            extraction: how the reward is read; None for a model with one output.
            truncation: what a text that is too long loses: tokens from the start of the conversation
                (`truncate_prompt`), from the end of the response (`truncate_response`), or its score (`error`).
            sanitize: whether control tokens inside a message are plain text.
            batch_tokens: tokens of one forward pass; None for the device's own.
            prefix_bytes: memory for keys and values of conversations that may come again.
        """
        from tpo_graph.rewards.local.scoring import Scorer

        extraction = extraction or SingleScore()
        scorer = Scorer(checkpoint, extraction, batch_tokens=batch_tokens, prefix_bytes=prefix_bytes)
        encoder = ConversationEncoder(
            checkpoint.tokenizer,
            truncation=truncation,
            max_length=checkpoint.max_length,
            sanitize=sanitize,
            ignored_at_end=scorer.ignored_at_end,
            step_token=extraction.step_token,
            step_separator=extraction.step_separator,
        )
        self.max_length = checkpoint.max_length
        self._worker = ScoringWorker(
            encoder, scorer, gather_seconds=GATHER_SECONDS, quantum=scorer.limits.continued_tokens
        )
        self._finalizer = weakref.finalize(self, self._worker.stop)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        device: str | None = None,
        dtype: "DType" = "auto",
        attention: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        truncation: Truncation = "truncate_prompt",
        sanitize: bool = True,
        max_length: int | None = None,
        batch_tokens: int | None = None,
        prefix_bytes: int = 2**30,
        chat_template: str | None = None,
        extraction: str | Extraction | None = None,
    ) -> "ClassifierReward":
        """Load a reward model.

        This blocks, for minutes when weights must be downloaded: use `asyncio.to_thread` in async code.

        Args:
            name_or_path: a repository on the Hugging Face hub, or a folder.
            device: `cpu`, `cuda`, `cuda:1`, `mps`; None takes an accelerator where there is one.
            dtype: `auto` is the checkpoint's own, or float32 on a CPU that can't multiply it.
            attention: transformers' `attn_implementation`; None for its choice.
            revision: branch, tag or commit on the hub.
            trust_remote_code: whether code that comes with the checkpoint may run.
            truncation: what a text that is too long loses: tokens from the start of the conversation
                (`truncate_prompt`), from the end of the response (`truncate_response`), or its score (`error`). A run
                warns of each of these.
            sanitize: whether control tokens inside a message are plain text, so that a response can't end its turn.
            max_length: tokens of conversation and response together; None for what model and tokenizer state.
            batch_tokens: tokens of one forward pass; None for the device's own.
            prefix_bytes: memory for keys and values of conversations that may come again.
            chat_template: Jinja text, for a tokenizer without one or in place of its own.
            extraction: how the reward is read from a model that has not exactly one output: a name
                (`label:helpful`, `process:min`, `nemotron`, `value_head`) or an object.

        Raises:
            ConfigurationError: for an argument that can't be used.
            RewardError: when the checkpoint can't be loaded, or would score at random.
        """
        if truncation not in TRUNCATIONS:
            raise ConfigurationError(f"Unknown truncation {truncation!r}; allowed: {', '.join(TRUNCATIONS)}.")
        for option, number in (("max_length", max_length), ("batch_tokens", batch_tokens)):
            if number is not None and number < 1:
                raise ConfigurationError(f"{option}={number}: it must be at least 1, or None.")
        if prefix_bytes < 0:
            raise ConfigurationError(f"prefix_bytes={prefix_bytes}: it must be at least 0.")
        if not name_or_path.strip():
            raise ConfigurationError("The reward model's name is empty.", hint="Give owner/name, or a folder.")
        if isinstance(extraction, str):
            extraction = extraction_by_name(extraction)
        try:
            from tpo_graph.rewards.local.checkpoint import load_checkpoint
        except ImportError as error:
            raise MissingDependencyError(
                f"A local reward model needs torch and transformers, which can't be imported: {error}",
                hint="Install them with `pip install torch transformers`.",
            ) from error
        checkpoint = load_checkpoint(
            name_or_path,
            device=device,
            dtype=dtype,
            attention=attention,
            revision=revision,
            trust_remote_code=trust_remote_code,
            max_length=max_length,
            chat_template=chat_template,
            extraction=extraction or SingleScore(),
        )
        return cls(
            checkpoint,
            extraction=extraction,
            truncation=truncation,
            sanitize=sanitize,
            batch_tokens=batch_tokens,
            prefix_bytes=prefix_bytes,
        )

    async def score_in_detail(
        self,
        messages: Sequence[BaseMessage],
        responses: Sequence[str],
        run: RunContext,  # noqa: ARG002  # each response is scored by itself
    ) -> Scoring:
        """Score every response as the next assistant turn of the conversation.

        Cancelling the task takes its texts out of the batches that have not run yet.

        Args:
            messages: the conversation, the system message and earlier turns included.
            responses: texts to score; may be empty.
            run: the run that they are scored for.

        Returns:
            The scores, NaN where the model gives NaN and for a response that is too long under `truncation="error"`;
            which responses were truncated; and why one has no score.

        Raises:
            RewardError: when the conversation or none of the texts can be scored.
        """
        return await asyncio.wrap_future(self._worker.submit(messages, responses))

    def close(self) -> None:
        """Stop the thread after the batch that runs, and let the model go; does not block.

        Calls that wait fail. A second `close` does nothing. A reward model that is no longer referenced closes itself.
        """
        self._finalizer()
