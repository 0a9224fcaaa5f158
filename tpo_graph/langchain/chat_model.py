"""`ChatTPO`: the TPO loop as a chat model."""

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any
from uuid import uuid4

from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableLambda, RunnableMap, RunnablePassthrough
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field, PrivateAttr

from tpo_graph.errors import ConfigurationError
from tpo_graph.langchain.answer import fingerprint
from tpo_graph.langchain.async_base import OneBodyChatModel
from tpo_graph.langchain.options import STANDARD_KNOBS, CallOptions, settings_named
from tpo_graph.langchain.run import InnerCallbacks, InnerRuns, run_under
from tpo_graph.langchain.schema import AnswerSchema, StructuredMethod
from tpo_graph.policies.providers import Policy, models_inside
from tpo_graph.prompts.pack import PromptPack
from tpo_graph.rewards.base import RewardModel
from tpo_graph.run_parts import RunParts, policy_name
from tpo_graph.settings import TPOSettings

_PARTS = ("policy", "reward", "critic", "prompts", "nodes", "settings", "second_reward")


class ChatTPO(OneBodyChatModel):
    """A chat model whose every answer is the best of a TPO run.

    It goes wherever a chat model goes: into chains, agents and graphs, with streaming, tools, structured output,
    caching, retries and fallbacks. `usage_metadata` of an answer is the sum of all requests behind it, and
    `response_metadata["tpo"]` tells its reward, the steps, the stop reason, the trajectory and the warnings.

    Example:
        >>> from tpo_graph.testing import ScriptedChatModel, TableReward
        >>> policy = ScriptedChatModel(["four", "4"])
        >>> model = ChatTPO(policy=policy, reward=TableReward({"4": 1.0, "four": 0.0}), n=2, mode="bon")
        >>> answer = model.invoke("2 + 2?")
        >>> answer.text, answer.response_metadata["tpo"]["reward"]
        ('4', 1.0)

    While a run works, each step is told as a custom event `tpo_step`, in `astream_events` and, inside a graph, in
    `stream_mode="custom"`. Then the answer is streamed; candidates never are.

    With tools bound the policy is asked once. When it calls a tool, its message is returned as it is; when it
    writes a text, that is a candidate of step 0.

    A call takes the names of settings too, as in `model.invoke(..., depth=1)` and `model.bind(n=10)`. LangChain's
    `temperature`, `top_p`, `max_tokens` and `stop` hold for the phases that write answers, sample and update. A
    `draft` (an AIMessage) is an answer that is there already; the policy draws only the rest of N, and the budget has
    one request less. Any other argument goes to the policy.

    Images and other content that is no text reach the policy when it draws the first candidates, where the prompt pack
    has no prompt for that. Loss, gradient and update are shown the text of the conversation alone.

    Nodes of your own are held to `stop` and to the schema of structured output as the package's are: their candidates
    are cut, and dropped where they are not valid. A `sample` of your own draws without the tools and the response
    format of the call; the first reply has them. A node that interrupts the run, to ask a person, is refused: then
    use the graph of `create_tpo_graph` as a node of your graph.

    Args:
        policy: a chat model, or a name that `load_policy` takes, loaded when it is first used.
        reward: a reward model, or a name that `load_reward` takes.
        critic: writes loss and gradient: a chat model or a name; the policy when None.
        prompts: see `build_tpo_graph`.
        nodes: see `build_tpo_graph`, and above.
        settings: defaults for every call; None reads the `TPO_*` variables.
        second_reward: watches for a warning, see `build_tpo_graph`: a reward model or a name.
        stop: texts at which every answer ends.
        **options: settings by name, which beat `settings`; LangChain's standard arguments as in a call; and the
            fields of every chat model, as in `cache=True`.

    Raises:
        ConfigurationError: a name is unknown, or a value can't be used.
    """

    policy: Any = Field(repr=False)  # Any: `Policy | str`, which pydantic can't validate
    reward: Any = Field(repr=False)  # Any: `RewardModel | str`, the same
    critic: Any = Field(None, repr=False)  # Any: as for `policy`
    prompts: Any = None  # Any: `PromptPack | str | Path | None`, the same
    nodes: Any = Field(None, repr=False)  # Any: as for `build_tpo_graph`
    settings: TPOSettings
    second_reward: Any = Field(None, repr=False)  # Any: as for `reward`
    stop: list[str] | None = None
    streaming: bool = False
    """Whether `invoke` goes through `stream` as well, as other chat models have it."""

    _lazy: RunParts | None = PrivateAttr(None)
    _runs: InnerRuns | None = PrivateAttr(None)
    _token: str = PrivateAttr(default_factory=lambda: uuid4().hex)

    def __init__(
        self,
        *,
        policy: Policy | str,
        reward: RewardModel | str,
        critic: Policy | str | None = None,
        prompts: PromptPack | str | Path | None = None,
        nodes: Mapping[str, Any] | None = None,  # Any: whatever LangGraph takes as a node
        settings: TPOSettings | None = None,
        second_reward: RewardModel | str | None = None,
        stop: Sequence[str] | None = None,
        **options: Any,  # Any: values of any setting
    ) -> None:
        named = settings_named(options)
        _refuse_unknown(options)
        settings = TPOSettings.load(**named) if settings is None else settings.overridden_by(named)
        given: dict[str, Any] = {  # Any: the fields of this class
            "policy": policy,
            "reward": reward,
            "critic": critic,
            "prompts": prompts,
            "nodes": nodes,
            "settings": settings,
            "second_reward": second_reward,
            "stop": list(stop) if stop else None,
        }
        super().__init__(**given, **options)
        self._parts()

    def _parts(self) -> RunParts:
        """The parts; new ones when a field is another than before, as in a copy with changes."""
        given = {name: getattr(self, name) for name in _PARTS}
        parts = self._lazy
        if parts is None or any(getattr(parts, name) is not value for name, value in given.items()):
            parts = self._lazy = RunParts(**given)
        return parts

    async def _answer(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        callbacks: InnerCallbacks,
        arguments: Mapping[str, Any],  # Any: as the call has them
    ) -> AIMessage:
        options = CallOptions.of_call(arguments, stop or self.stop)
        parts = await self._parts().aload()
        runs = self._runs
        if runs is None or runs.parts is not parts:
            runs = self._runs = InnerRuns(parts)
        return await run_under(callbacks, runs.answer(messages, options, callbacks))

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],  # Any: LangChain's own
        *,
        tool_choice: Any = None,  # Any: each provider has its own
        **kwargs: Any,  # Any: LangChain's own
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Give the policy tools. Its tool calls come back untouched; a final text is optimised.

        Args:
            tools: in any format that LangChain takes; dicts reach the policy as they are.
            tool_choice: as the policy takes it.
            **kwargs: further arguments of every call.
        """
        chosen = {} if tool_choice is None else {"tool_choice": tool_choice}
        told = [tool if isinstance(tool, dict) else convert_to_openai_tool(tool) for tool in tools]
        return self.bind(tools=told, **chosen, **kwargs)

    def with_structured_output(
        self,
        schema: Any,  # Any: whatever LangChain takes as a schema
        *,
        include_raw: bool = False,
        method: StructuredMethod | None = None,
        strict: bool | None = None,
        **kwargs: Any,  # Any: LangChain's own
    ) -> Runnable[LanguageModelInput, Any]:
        """Answers as values of a schema. An answer that is not valid makes no candidate.

        The policy is told the schema in the conversation, from where it reaches every phase.

        Args:
            schema: a pydantic class, a TypedDict, a JSON schema, or a tool in any format that LangChain takes.
            include_raw: return a dict with `raw` (the message), `parsed` and `parsing_error`.
            method: `json_schema` and `json_mode` send a response format with the first sampling as well;
                `function_calling` sends none, for candidates are texts; None sends a JSON schema where the policy is
                an OpenAI-compatible one.
            strict: whether the provider is to enforce the schema to the letter.
            **kwargs: further arguments of every call.

        Returns:
            A runnable that takes what a chat model takes. When no answer at all was valid it raises
            OutputParserException, or returns it as `parsing_error`.

        Raises:
            ConfigurationError: `schema` is none, or the method is unknown.
        """
        wanted = AnswerSchema.of(schema, method=method, strict=strict)
        told = {"kwargs": {"method": method or "json_schema"}, "schema": schema}
        model = self.bind(answer_schema=wanted, ls_structured_output_format=told, **kwargs)
        parse: Runnable[Any, Any] = RunnableLambda(lambda message: wanted.parse(message.text), name="parse_answer")
        if not include_raw:
            return model | parse
        parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parse, parsing_error=lambda _: None)
        failed = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error")

    @property
    def _llm_type(self) -> str:
        return "tpo"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:  # Any: LangChain's own
        # the stop texts too: LangChain puts those of the call over a parameter of that name
        texts = (self.settings.model_dump_json(), repr(self.stop))
        parts = (self.policy, self.reward, self.critic, self.prompts, self.nodes, self.second_reward, *texts)
        return {
            "policy": policy_name(self.policy),
            "reward": self.reward if isinstance(self.reward, str) else type(self.reward).__name__,
            "settings": self.settings.model_dump(),
            "fingerprint": fingerprint(parts, token=self._token),
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:  # Any: LangChain's own
        params = super()._get_ls_params(stop=stop or self.stop, **kwargs)
        params["ls_model_name"] = str(kwargs.get("model") or policy_name(self.policy))
        sampling = self.settings.sampling("sample")
        if sampling.temperature is not None:
            params.setdefault("ls_temperature", sampling.temperature)
        if sampling.max_new_tokens is not None:
            params.setdefault("ls_max_tokens", sampling.max_new_tokens)
        return params

    def _resolve_model_profile(self) -> ModelProfile | None:
        # what the policy takes, this model takes
        return next((model.profile for model in models_inside(self.policy)), None)


def _refuse_unknown(options: Mapping[str, Any]) -> None:  # Any: as in the constructor
    allowed = [*ChatTPO.model_fields, *TPOSettings.model_fields, *STANDARD_KNOBS]
    unknown = [name for name in options if name not in ChatTPO.model_fields]
    if unknown:
        raise ConfigurationError(
            f"ChatTPO does not take {', '.join(map(repr, unknown))}.", hint=f"Allowed: {', '.join(sorted(allowed))}."
        )
