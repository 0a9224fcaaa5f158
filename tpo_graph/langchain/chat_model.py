"""`ChatTPO`: the TPO loop as a chat model."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any
from uuid import uuid4

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableLambda, RunnableMap, RunnablePassthrough
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field, PrivateAttr

from tpo_graph._private_api import cache_key
from tpo_graph.errors import ConfigurationError
from tpo_graph.langchain.async_base import AsyncChatModel
from tpo_graph.langchain.call import STANDARD_KNOBS, CallOptions, pop_settings
from tpo_graph.langchain.run import TPORunner
from tpo_graph.langchain.schema import AnswerSchema, StructuredMethod
from tpo_graph.policies.providers import Policy, models_inside
from tpo_graph.prompts.pack import PromptPack
from tpo_graph.rewards.base import RewardModel
from tpo_graph.rewards.functions import RewardFunction
from tpo_graph.run_parts import RunParts, policy_name
from tpo_graph.settings import TPOSettings
from tpo_graph.types import Node, Options

_PARTS = ("policy", "reward", "critic", "prompts", "nodes", "settings")


class ChatTPO(AsyncChatModel):
    """A chat model whose every answer is the best of a TPO run.

    It goes wherever a chat model goes: into chains, agents and graphs, with streaming, tools, structured output,
    caching, retries and fallbacks. `usage_metadata` of an answer is the sum of all requests behind it, and
    `response_metadata["tpo"]` has its reward, the number of steps, the stop reason, the trajectory and the warnings.
    In traces the inner requests have the tokens, each once; the answer as callbacks, `astream_events` and streams of
    messages see it has their sum in `response_metadata["run_usage"]` alone.

    Examples:
        >>> from tpo_graph.testing import ScriptedChatModel, TableReward
        >>> policy = ScriptedChatModel(["four", "4"])
        >>> model = ChatTPO(policy=policy, reward=TableReward({"4": 1.0, "four": 0.0}), n=2, mode="bon")
        >>> answer = model.invoke("2 + 2?")
        >>> answer.text, answer.response_metadata["tpo"]["reward"]
        ('4', 1.0)

    During a run each step is reported as a custom event `tpo_step` in `astream_events`. Inside a graph,
    `stream_mode="custom"` shows steps and candidates (`tpo_graph.types.StreamEvent`). Then the answer is streamed; in
    streams of messages candidates never are.

    With tools bound, the policy is asked once at first. When it calls a tool, its message is returned unchanged; when
    it writes a text, that text is a candidate of step 0.

    A call takes the names of settings too, as in `model.invoke(..., depth=1)` and `model.bind(n=10)`. LangChain's
    `temperature`, `top_p`, `max_tokens` and `stop` hold for the phases that write answers, sample and update. A
    `draft` (an AIMessage) is an answer that exists already; the policy draws only the rest of N, and the budget has
    one request less. Any other argument goes to the policy.

    Images and other content besides text reach the policy when it draws the first candidates, unless the prompt pack
    has a prompt for that. Loss, gradient and update are shown only the text of the conversation.

    Nodes of your own must respect `stop` and the schema of structured output like the package's own: their candidates
    are cut, and dropped where they are not valid. A `sample` of your own draws without the tools and the response
    format of the call; only the first reply has them. A node that interrupts the run to ask a person is an error: use
    the graph of `create_tpo_graph` as a node of your graph for that.

    Args:
        policy: a chat model, or a name that `load_policy` takes, loaded when it is first used.
        reward: a reward model, a function of responses, or a name that `load_reward` takes.
        critic: writes loss and gradient: a chat model or a name; the policy when None.
        prompts: a prompt pack, its name or its folder; None takes the one that suits the policy.
        nodes: replacements by name, as in `{"loss": my_node}`, or the name of a variant, as in `"fused-critique"`.
        settings: defaults for every call; None reads the `TPO_*` variables.
        stop: texts at which every answer ends.
        **options: settings by name, which beat `settings`; LangChain's standard arguments as in a call; and the
            fields of every chat model, as in `cache=True`.

    Raises:
        ConfigurationError: a name is unknown, or a value can't be used.
    """

    # pydantic can't validate the types of these; the constructor has them
    policy: Any = Field(repr=False)
    reward: Any = Field(repr=False)
    critic: Any = Field(None, repr=False)
    prompts: Any = None
    nodes: Any = Field(None, repr=False)
    settings: TPOSettings
    stop: list[str] | None = None
    streaming: bool = False
    """Whether `invoke` goes through `stream` as well, as other chat models have it."""

    _runner: TPORunner | None = PrivateAttr(None)
    _token: str = PrivateAttr(default_factory=lambda: uuid4().hex)

    def __init__(
        self,
        *,
        policy: Policy | str,
        reward: RewardModel | RewardFunction | str,
        critic: Policy | str | None = None,
        prompts: PromptPack | str | Path | None = None,
        nodes: Mapping[str, Node] | str | None = None,
        settings: TPOSettings | None = None,
        stop: Sequence[str] | None = None,
        **options: Options,
    ) -> None:
        named = pop_settings(options)
        fields = type(self).model_fields
        if unknown := [name for name in options if name not in fields]:
            allowed = sorted({*fields, *TPOSettings.model_fields, *STANDARD_KNOBS})
            raise ConfigurationError(
                f"ChatTPO does not take {', '.join(map(repr, unknown))}.", hint=f"Allowed: {', '.join(allowed)}."
            )
        own: dict[str, Options] = {
            "policy": policy,
            "reward": reward,
            "critic": critic,
            "prompts": prompts,
            "nodes": nodes,
            "settings": TPOSettings.load(**named) if settings is None else settings.overridden_by(named),
            "stop": list(stop) if stop else None,
        }
        super().__init__(**own, **options)
        self._current_runner()  # checks the parts

    def _current_runner(self) -> TPORunner:
        """The runner; a new one when a field is not what it was, as in a copy with changes."""
        given = {name: getattr(self, name) for name in _PARTS}
        runner = self._runner
        if runner is None or any(getattr(runner.parts, name) is not value for name, value in given.items()):
            runner = self._runner = TPORunner(RunParts(**given))
        return runner

    async def _answer(
        self, messages: list[BaseMessage], stop: list[str] | None, arguments: Mapping[str, Options]
    ) -> AIMessage:
        return await self._current_runner().answer(messages, CallOptions.of_call(arguments, stop or self.stop))

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: Any = None,
        **kwargs: Options,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Give the policy tools. Its tool calls are returned unchanged; a final text is optimised.

        Args:
            tools: in any format that LangChain takes; dicts reach the policy as they are.
            tool_choice: as the policy takes it.
            **kwargs: further arguments of every call.
        """
        choice = {} if tool_choice is None else {"tool_choice": tool_choice}
        formatted = [tool if isinstance(tool, dict) else convert_to_openai_tool(tool) for tool in tools]
        return self.bind(tools=formatted, **choice, **kwargs)

    def with_structured_output(
        self,
        schema: Any,
        *,
        include_raw: bool = False,
        method: StructuredMethod | None = None,
        strict: bool | None = None,
        **kwargs: Options,
    ) -> Runnable[LanguageModelInput, Any]:
        """Answers as values of a schema. An answer that is not valid is not a candidate.

        The schema is added to the conversation, from where it reaches every phase.

        Args:
            schema: a pydantic class, a TypedDict, a JSON schema, or a tool in any format that LangChain takes.
            include_raw: return a dict with `raw` (the message), `parsed` and `parsing_error`.
            method: `json_schema` and `json_mode` also send a response format with the first sampling;
                `function_calling` sends none, because candidates are texts; None sends a JSON schema where the policy
                is OpenAI-compatible.
            strict: whether the provider is to enforce the schema to the letter; None leaves it to the provider.
            **kwargs: further arguments of every call.

        Returns:
            A runnable that takes what a chat model takes. When no answer at all was valid it raises
            OutputParserException, or returns it as `parsing_error`.

        Raises:
            ConfigurationError: `schema` is not a schema, or the method is unknown.
        """
        answer_schema = AnswerSchema.of(schema, method=method, strict=strict)
        traced = {"kwargs": {"method": method or "json_schema"}, "schema": schema}
        model = self.bind(answer_schema=answer_schema, ls_structured_output_format=traced, **kwargs)
        parse: Runnable[Any, Any] = RunnableLambda(
            lambda message: answer_schema.parse(message.text), name="parse_answer"
        )
        if not include_raw:
            return model | parse
        parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parse, parsing_error=lambda _: None)
        failed = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error")

    @property
    def _llm_type(self) -> str:
        return "tpo"

    @property
    def _identifying_params(self) -> Mapping[str, Options]:
        # the stop texts too: LangChain puts those of the call over a parameter of that name
        described = [self._describe(getattr(self, name)) for name in _PARTS if name != "settings"]
        described += [self.settings.model_dump_json(), repr(self.stop)]
        return {
            "policy": policy_name(self.policy),
            "reward": self.reward if isinstance(self.reward, str) else type(self.reward).__name__,
            "settings": self.settings.model_dump(),
            "fingerprint": hashlib.sha256("\n".join(described).encode()).hexdigest()[:32],
        }

    def _describe(self, part: object) -> str:
        """A text that differs for parts that differ, so that LangChain's cache never takes one for another."""
        if part is None or isinstance(part, (str, int, float, Path)):
            return repr(part)
        if isinstance(part, RunnableBindingBase):
            return f"{self._describe(part.bound)} {part.kwargs!r} {part.config!r}"
        if isinstance(part, BaseChatModel) and (part.is_lc_serializable() or part._identifying_params):
            return cache_key(part)
        if isinstance(part, dict):
            return repr({name: self._describe(value) for name, value in part.items()})
        # with the token, a cache on disk can't take an object of this process for one of another
        return f"{type(part).__module__}.{type(part).__qualname__} {id(part)} {self._token}"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Options) -> LangSmithParams:
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
