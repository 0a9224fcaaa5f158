"""What the nodes that ask a model have in common: the prompt of their phase, one text or N, and records of failures."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from langchain_core.messages import BaseMessage
from langgraph.config import get_config
from langgraph.runtime import Runtime

from tpo_graph._storable import storable_text
from tpo_graph.accounting import add_usage, no_usage, plus, total
from tpo_graph.errors import BudgetError, PolicyError
from tpo_graph.graph.state import TPOState
from tpo_graph.policies.providers import Policy, models_inside
from tpo_graph.policies.reading import Completion
from tpo_graph.policies.retries import limited
from tpo_graph.policies.sampling import Draw, Sampler, as_sampler
from tpo_graph.prompts.pack import PhasePrompt, PromptPack
from tpo_graph.prompts.template import cut_to_tokens, last_query
from tpo_graph.selection import fits_budget, is_tie
from tpo_graph.settings import ContextOnly, PolicyPhase, TPOSettings
from tpo_graph.types import FailureReason, FailureRecord, Phase, PhaseUsage, PreferencePair, Usage

_SEEDS_PER_ATTEMPT = 1_300  # N is 1024 at most, and a phase asks three times at most
_FIRST_SEED: Mapping[PolicyPhase, int] = {"sample": 0, "loss": 4_000, "gradient": 8_000, "update": 12_000}
_SEEDS_PER_STEP = 16_000


@dataclass(frozen=True)
class PromptedModel:
    """The policy or the critic of a node, the prompts that it is shown and the defaults of every run.

    Attributes:
        sampler: draws from the model.
        prompts: the prompt pack.
        settings: defaults, which the context of a call overrides.
    """

    sampler: Sampler
    prompts: PromptPack
    settings: TPOSettings

    @classmethod
    def of(
        cls,
        model: Policy | Sampler,
        prompts: PromptPack | str | Path | None = None,
        settings: TPOSettings | None = None,
    ) -> "PromptedModel":
        """From what a node factory takes; None stands for the suitable pack and for the `TPO_*` variables.

        Raises:
            ConfigurationError: the model is not a chat model.
            PromptError: there is no such pack, or it is incomplete.
        """
        sampler = as_sampler(model)
        return cls(sampler, pack_for(prompts, sampler.policy), TPOSettings.load() if settings is None else settings)

    def request(
        self, phase: PolicyPhase, state: TPOState, runtime: Runtime[TPOSettings] | None, *, prompt: str = ""
    ) -> "PhaseRequest":
        """The request of a phase of the next step.

        Args:
            phase: the phase that asks.
            state: the state before it.
            runtime: LangGraph's, for the context of the call; None outside a graph.
            prompt: name of the prompt in the pack, where it is not the phase's own.
        """
        return PhaseRequest(
            phase, state, effective_settings(self.settings, runtime), self.prompts, self.sampler, prompt or phase
        )


@dataclass(frozen=True)
class PhaseRequest:
    """What one phase of one step is about to ask.

    Attributes:
        phase: the phase that asks.
        state: the state before it.
        settings: the settings of this call.
        prompts: the prompt pack.
        sampler: draws from the policy, or from the critic.
        prompt_name: name of the prompt in the pack; the phase, as a rule.
    """

    phase: PolicyPhase
    state: TPOState
    settings: TPOSettings
    prompts: PromptPack
    sampler: Sampler
    prompt_name: str

    @property
    def step(self) -> int:
        """The step that this request belongs to."""
        return 0 if self.phase == "sample" else self.state["step"] + 1

    @property
    def prompt(self) -> PhasePrompt | None:
        """The prompt of the request; None where the pack has none for the phase."""
        return self._named(self.prompt_name)

    def tags(self) -> tuple[str, str]:
        """The opening and the closing tag of revised responses."""
        return self.settings.open_tag or self.prompts.open_tag, self.settings.close_tag or self.prompts.close_tag

    def messages(self, conversation: list[BaseMessage] | None = None) -> list[BaseMessage]:
        """The messages of the request; the conversation itself where the pack has no prompt for the phase.

        Args:
            conversation: what is asked about; None for the state's.
        """
        if conversation is None:
            conversation = list(self.state["messages"])
        prompt = self.prompt
        if prompt is None:
            return conversation
        return self.prompts.render(prompt, self._values(conversation, prompt.variables))

    def usage(self, used: PhaseUsage | None = None) -> Usage:
        """What the run has used so far, with what this phase has used; the phase `sample` begins a new run."""
        before = {} if self.phase == "sample" else self.state.get("usage", {})
        return add_usage(before, {self.phase: used} if used else {})

    async def draw(
        self, messages: list[BaseMessage], n: int, *, attempt: int = 0, used: PhaseUsage | None = None
    ) -> Draw:
        """Send the request, in as many requests to the provider as `budget_requests` leaves.

        Args:
            messages: what the model is shown.
            n: how many completions.
            attempt: how often the phase has asked before, 2 at most.
            used: what the phase has used before.

        Raises:
            PolicyError: there is no completion at all.
            BudgetError: `budget_seconds` were over before there was one.
        """
        prompt, limit = self.prompt, self.settings.budget_requests
        sampling = self.settings.sampling(self.phase, prompt.sampling if prompt else None)
        spent = self.usage(used)
        left = None if limit is None else limit - total(spent)["requests"]
        with limited(self.settings, seconds_left(self.settings, spent)):
            draw = await self.sampler.draw(messages, n, sampling, seed=self.seed(attempt), most_requests=left)
        if self.settings.budget_tokens is not None and not draw.usage["input_tokens"] + draw.usage["output_tokens"]:
            self.sampler.warn_once(
                f"budget_tokens={self.settings.budget_tokens} will not end the run: the provider does not count tokens."
            )
        return draw

    def seed(self, attempt: int) -> int | None:
        """The seed of the first completion; every completion of a run has its own, so that no two are drawn alike."""
        if self.settings.seed is None:
            return None
        place = _FIRST_SEED[self.phase] + attempt * _SEEDS_PER_ATTEMPT + self.step * _SEEDS_PER_STEP
        return (self.settings.seed + place) % (2**31 - 1)

    def _named(self, name: str) -> PhasePrompt | None:
        mode, state = self.settings.mode, self.state
        compares = mode == "tpo" and self.phase != "sample"
        tie = compares and is_tie(PreferencePair(best=state["best"], worst=state["worst"]))
        return self.prompts.prompt(name, mode, tie=tie)

    def _values(self, conversation: list[BaseMessage], used: frozenset[str]) -> dict[str, str]:
        settings, state = self.settings, self.state
        values = self.prompts.values(conversation, query=last_query(conversation), preference=settings.preference)
        values["open_tag"], values["close_tag"] = self.tags()
        values["critique_divider"] = self.prompts.critique_divider
        if self.phase == "sample":
            return values
        limit, tokenize = settings.max_shown_tokens, self.sampler.tokenize
        guard = self.prompts.sections.guard
        values["best"] = guard(cut_to_tokens(state["best"]["text"], limit, tokenize))
        if settings.mode != "revision":
            values["worst"] = guard(cut_to_tokens(state["worst"]["text"], limit, tokenize))
        values["loss"], values["gradient"] = guard(state.get("loss", "")), guard(state.get("gradient", ""))
        if "loss_prompt" in used and (loss := self._named("loss")) is not None:
            values["loss_prompt"] = loss.user.render(values)
        return values


async def critique(request: PhaseRequest, *, following: int) -> tuple[str, PhaseUsage, list[FailureRecord]]:
    """One text from the critic, for loss and gradient, asked for once more if it is none and the budget allows it.

    Args:
        request: the request of the phase.
        following: requests that the step needs at the least after this one.

    Returns:
        The text, "" when there is none; its cost; records of what could not be used.

    Raises:
        PolicyError: the critic failed and the settings say `on_failure="raise"`.
    """
    messages = request.messages()
    used = no_usage()
    failures: list[FailureRecord] = []
    for attempt in (0, 1):
        if attempt and not fits_budget(request.settings, request.usage(used), 1 + following):
            break
        try:
            draw = await request.draw(messages, 1, attempt=attempt, used=used)
        except (PolicyError, BudgetError) as error:
            return "", plus(used, error.usage or no_usage()), [*failures, failed_draw(request, error)]
        used = plus(used, draw.usage)
        completion = draw.completions[0]
        if completion.problem is None:
            return completion.text.strip(), used, []
        failures += draw_failures(request.phase, request.step, draw)
        if draw.replaced and completion.lost_to_thinking:
            break  # it was asked for once more, with a larger limit
    if request.settings.on_failure == "raise":
        times = "twice" if attempt or draw.replaced else "and the budget does not allow to ask again"
        last = failures[-1]
        wrote = "nothing" if last["reason"] == "empty" else f"nothing that can be used ({last['reason']})"
        raise PolicyError(
            f"The critic wrote {wrote} in phase {request.phase!r} of step {request.step}, {times}. "
            f"{last['detail']}".rstrip(),
            usage=used,
        )
    return "", used, failures


def failed_draw(request: PhaseRequest, error: PolicyError | BudgetError) -> FailureRecord:
    """The record of a draw without a completion, after the first candidates were scored.

    Raises:
        PolicyError: it is `error`, and the settings say `on_failure="raise"`. A budget is no failure.
    """
    if isinstance(error, PolicyError) and request.settings.on_failure == "raise":
        raise error
    reason: FailureReason = "out_of_time" if isinstance(error, BudgetError) else "request_failed"
    return failure(request.phase, request.step, reason, str(error))


def effective_settings(defaults: TPOSettings, runtime: Runtime[TPOSettings] | None) -> TPOSettings:
    """The settings of this call: those given at build, with what its config and its context name in their place.

    The context comes before the `configurable` of the config, where LangChain also puts keys that a config does not
    have: `{"configurable": {"n": 4}}` and `{"n": 4}` both mean n=4.

    As a node of another graph, this one sees that graph's context: of a mapping only the names that are settings
    count, and a context of any other type is ignored.
    """
    context: object = runtime.context if runtime is not None else None
    if runtime is not None and not isinstance(context, ContextOnly):
        try:
            configurable = get_config().get("configurable", {})
        except RuntimeError:  # the node is used alone
            configurable = {}
        defaults = defaults.overridden_by(
            {name: configurable[name] for name in TPOSettings.model_fields if name in configurable}
        )
    if isinstance(context, TPOSettings):
        return defaults.overridden_by(context)
    if isinstance(context, Mapping):
        return defaults.overridden_by({name: context[name] for name in TPOSettings.model_fields if name in context})
    return defaults


def seconds_left(settings: TPOSettings, usage: Usage) -> float | None:
    """What a run has left of its `budget_seconds`; None where it has no such budget."""
    return None if settings.budget_seconds is None else settings.budget_seconds - total(usage)["seconds"]


def pack_for(prompts: PromptPack | str | Path | None, policy: Policy) -> PromptPack:
    """The given prompt pack, by itself, its name or its folder; for None the one that suits the policy.

    Raises:
        PromptError: there is no such pack, or it is incomplete.
    """
    if isinstance(prompts, PromptPack):
        return prompts
    # `load_policy` notes the suitable pack on the model
    noted = ((model.metadata or {}).get("tpo_prompts") for model in models_inside(policy))
    return PromptPack.load(prompts if prompts is not None else str(next(noted, None) or "tpo"))


def failure(phase: Phase, step: int, reason: FailureReason, detail: str = "", text: str = "") -> FailureRecord:
    """A record of something that could not be used."""
    return FailureRecord(
        phase=phase,
        step=step,
        reason=reason,
        detail=storable_text(detail),
        text=storable_text(text),
        finish_reason="",
    )


def draw_failures(phase: Phase, step: int, draw: Draw) -> list[FailureRecord]:
    """Records of the requests of a draw that failed, and of its completions that can't be used for anything."""
    failed = [
        failure(phase, step, "out_of_time", str(error))
        if isinstance(error, BudgetError)
        else failure(phase, step, "request_failed", f"{type(error).__name__}: {error}".strip(": "))
        for error in draw.errors
    ]
    unusable = draw.replaced + [completion for completion in draw.completions if completion.problem is not None]
    return failed + [completion_failure(phase, step, completion) for completion in unusable]


def completion_failure(
    phase: Phase, step: int, completion: Completion, reason: FailureReason | None = None
) -> FailureRecord:
    """A record of a completion that can't be used.

    Args:
        phase: where it was drawn.
        step: in which step.
        completion: the completion; its reasoning is kept too, because it was paid for.
        reason: why; None for the completion's own problem.
    """
    reason = reason or completion.problem or "empty"
    detail = completion.notice
    if reason == "thinking_only":
        spent = f"{completion.limit} tokens" if completion.limit else "token limit"
        detail = (
            f"The model spent its {spent} thinking: raise {phase}_max_new_tokens or thinking_tokens."
            if completion.lost_to_thinking
            else "The model thought, and ended without an answer."
        )
    text = completion.whole or completion.text
    return {**failure(phase, step, reason, detail, text), "finish_reason": completion.finish_reason}
