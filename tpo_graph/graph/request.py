"""What the nodes that ask a model have in common: the prompt of their phase, one text or N, and records of failures."""

from collections.abc import Mapping
from dataclasses import dataclass

from langchain_core.messages import BaseMessage
from langgraph.runtime import Runtime

from tpo_graph.accounting import add_usage, no_usage, plus, total
from tpo_graph.errors import PolicyError
from tpo_graph.graph.state import TPOState
from tpo_graph.policies.sampling import Draw, Sampler
from tpo_graph.prompts.pack import PhasePrompt, PromptPack
from tpo_graph.prompts.template import cut_to_tokens, last_query
from tpo_graph.selection import fits_budget
from tpo_graph.settings import PolicyPhase, TPOSettings
from tpo_graph.types import FailureReason, FailureRecord, Phase, PhaseUsage, Usage

_SEEDS_PER_ATTEMPT = 2_000  # N is 1024 at most, and each phase asks twice at most
_FIRST_SEED: Mapping[PolicyPhase, int] = {"sample": 0, "loss": 4_000, "gradient": 8_000, "update": 12_000}
_SEEDS_PER_STEP = 16_000


def effective_settings(defaults: TPOSettings, runtime: Runtime[TPOSettings] | None) -> TPOSettings:
    """The settings of this call: those given at build, with what its context names in their place.

    As a node of another graph, this one sees that graph's context: of a mapping the names that are settings
    count, anything else is not ours to read.
    """
    context: object = runtime.context if runtime is not None else None
    if isinstance(context, TPOSettings):
        return defaults.overridden_by(context)
    if isinstance(context, Mapping):
        return defaults.overridden_by({name: context[name] for name in TPOSettings.model_fields if name in context})
    return defaults


@dataclass(frozen=True)
class PhaseRequest:
    """What one phase of one step is about to ask.

    Attributes:
        phase: which phase.
        state: the state before it.
        settings: the settings of this call.
        prompts: the prompt pack.
    """

    phase: PolicyPhase
    state: TPOState
    settings: TPOSettings
    prompts: PromptPack

    @property
    def step(self) -> int:
        """The step that this request belongs to."""
        return 0 if self.phase == "sample" else self.state["step"] + 1

    def tags(self) -> tuple[str, str]:
        """The opening and the closing tag of revised responses."""
        return self.settings.open_tag or self.prompts.open_tag, self.settings.close_tag or self.prompts.close_tag

    @property
    def is_fused(self) -> bool:
        """Whether this request asks for loss and gradient at once."""
        return self.phase == "loss" and self.settings.fuse_critique

    @property
    def prompt(self) -> PhasePrompt | None:
        """The prompt of the request; None where the pack has none for the phase."""
        return self.prompts.prompt("critique" if self.is_fused else self.phase, self.settings.mode)

    def messages(self, sampler: Sampler, conversation: list[BaseMessage]) -> list[BaseMessage]:
        """The messages of the request; the conversation itself where the pack has no prompt for the phase."""
        prompt = self.prompt
        if prompt is None:
            return conversation
        return self.prompts.render(prompt, self._values(sampler, conversation, prompt.variables))

    def usage(self, used: PhaseUsage | None = None) -> Usage:
        """What the run has used so far, with what this phase has used; the phase `sample` begins a new run."""
        before = {} if self.phase == "sample" else self.state.get("usage", {})
        return add_usage(before, {self.phase: used} if used else {})

    async def draw(
        self,
        sampler: Sampler,
        messages: list[BaseMessage],
        n: int,
        *,
        attempt: int = 0,
        used: PhaseUsage | None = None,
    ) -> Draw:
        """Send it, in as many requests as `budget_requests` leaves; what came by then is all.

        Args:
            sampler: the policy, or the critic.
            messages: what it is shown.
            n: how many completions.
            attempt: 1 when the phase asks once more.
            used: what the phase has used before.
        """
        prompt, limit = self.prompt, self.settings.budget_requests
        sampling = self.settings.sampling(self.phase, prompt.sampling if prompt else None)
        left = None if limit is None else limit - total(self.usage(used))["requests"]
        draw = await sampler.draw(messages, n, sampling, seed=self.seed(attempt), most_requests=left)
        if self.settings.budget_tokens is not None and not draw.usage["input_tokens"] + draw.usage["output_tokens"]:
            sampler.warn_once(
                f"budget_tokens={self.settings.budget_tokens} will not end the run: the provider does not count tokens."
            )
        return draw

    def seed(self, attempt: int) -> int | None:
        """The seed of the first completion; every completion of a run has its own, so that no two are drawn alike."""
        if self.settings.seed is None:
            return None
        place = _FIRST_SEED[self.phase] + attempt * _SEEDS_PER_ATTEMPT + self.step * _SEEDS_PER_STEP
        return (self.settings.seed + place) % (2**31 - 1)

    def _values(self, sampler: Sampler, conversation: list[BaseMessage], used: frozenset[str]) -> dict[str, str]:
        settings, state = self.settings, self.state
        values = self.prompts.values(conversation, query=last_query(conversation), preference=settings.preference)
        values["open_tag"], values["close_tag"] = self.tags()
        values["critique_divider"] = self.prompts.critique_divider
        if self.phase == "sample":
            return values
        shown = settings.max_shown_tokens
        values["best"] = cut_to_tokens(state["best"]["text"], shown, sampler.tokenize)
        if settings.mode != "revision":
            values["worst"] = cut_to_tokens(state["worst"]["text"], shown, sampler.tokenize)
        values["loss"], values["gradient"] = state.get("loss", ""), state.get("gradient", "")
        if "loss_prompt" in used and (loss := self.prompts.prompt("loss", settings.mode)) is not None:
            values["loss_prompt"] = loss.user.render(values)
        return values


async def critique(sampler: Sampler, request: PhaseRequest) -> tuple[str, PhaseUsage, list[FailureRecord]]:
    """One text from the critic, for loss and gradient. An empty one is asked for once more if the budget allows it.

    Returns:
        The text, "" when there is none; what it cost; what could not be used.

    Raises:
        PolicyError: the critic failed and the settings say `on_failure="raise"`.
    """
    conversation: list[BaseMessage] = list(request.state["messages"])
    messages = request.messages(sampler, conversation)
    used = no_usage()
    failures: list[FailureRecord] = []
    # what the step still takes besides asking once more: an update, and a gradient of its own
    rest = 2 if request.phase == "loss" and not request.is_fused else 1
    for attempt in (0, 1):
        if attempt and not fits_budget(request.settings, request.usage(used), 1 + rest):
            break
        try:
            draw = await request.draw(sampler, messages, 1, attempt=attempt, used=used)
        except PolicyError as error:
            if request.settings.on_failure == "raise":
                raise
            used = plus(used, error.usage or no_usage())
            return "", used, [*failures, failure(request.phase, request.step, "request_failed", str(error))]
        used = plus(used, draw.usage)
        text = draw.completions[0].text.strip()
        if text:
            return text, used, []
        failures.append(failure(request.phase, request.step, "empty"))
    if request.settings.on_failure == "raise":
        times = "twice" if len(failures) == 2 else "and the budget does not allow to ask again"
        raise PolicyError(f"The critic wrote nothing in phase {request.phase!r} of step {request.step}, {times}.")
    return "", used, failures


def failure(phase: Phase, step: int, reason: FailureReason, detail: str = "", text: str = "") -> FailureRecord:
    """A record of something that could not be used."""
    return FailureRecord(phase=phase, step=step, reason=reason, detail=detail, text=text)


def request_failures(phase: Phase, step: int, draw: Draw) -> list[FailureRecord]:
    """Records of the requests of a draw that failed."""
    return [
        failure(phase, step, "request_failed", f"{type(error).__name__}: {error}".strip(": ")) for error in draw.errors
    ]
