"""LangChain's own tests for chat models, run on ChatTPO with a policy that does what each test asks for."""

import json
import re

import pytest
from langchain_core.messages import AIMessage

from tests.tpo_script import phase_of
from tpo_graph.langchain.chat_model import ChatTPO
from tpo_graph.testing import ScriptedChatModel, TableReward

standard = pytest.importorskip("langchain_tests")
from langchain_tests.integration_tests import ChatModelIntegrationTests  # noqa: E402  # optional, see above
from langchain_tests.unit_tests import ChatModelUnitTests  # noqa: E402

BETA = "ignore::langchain_core._api.beta_decorator.LangChainBetaWarning"


def value_for(schema, text):
    """A value of a JSON schema, with what the text has for it."""
    if schema.get("type") == "integer":
        return int(next(iter(re.findall(r"\d+", text)), "1"))
    if schema.get("type") == "object" or "properties" in schema:
        return {name: value_for(part, text) for name, part in schema.get("properties", {}).items()}
    return text


def reply(messages, number, knobs):
    """Calls a tool where the request wants one, answers in JSON where it asks for it, else says a few words."""
    asked = next(message.text for message in reversed(messages) if message.type == "human")
    tools, choice = knobs.get("tools") or [], knobs.get("tool_choice")
    if tools and messages[-1].type == "human":
        functions = [tool["function"] for tool in tools if choice in (None, "any", tool["function"]["name"])]
        args = value_for({"type": "object", **functions[0]["parameters"]}, asked)
        return AIMessage("", tool_calls=[{"name": functions[0]["name"], "args": args, "id": f"call-{number}"}])
    text = f"heard you, {number}"
    if "valid for this schema" in asked:
        schema = json.loads(asked.split("valid for this schema:\n")[1].splitlines()[0])
        text = json.dumps(value_for(schema, text))
    return f"<revised_response>{text}</revised_response>" if phase_of(messages[-1].text) == "update" else text


class StandardPolicy(ScriptedChatModel):
    model: str = "standard"

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        played = ScriptedChatModel(lambda messages, number: reply(messages, len(self.requests), kwargs))
        self.requests.append(messages)
        return played._generate(messages, stop, run_manager)


class Params:
    """What both kinds of tests need to know."""

    @property
    def chat_model_class(self):
        return ChatTPO

    @property
    def chat_model_params(self):
        reward = TableReward(lambda text: float(len(text)) + sum(map(ord, text)) / 1e6)
        return {"policy": StandardPolicy(script=None), "reward": reward, "n": 2, "depth": 1}

    @property
    def standard_chat_model_params(self):
        # timeout, max_retries and api_key belong to the policy's connection
        return {"temperature": 0, "max_tokens": 100, "stop": []}


@pytest.mark.filterwarnings(BETA)
class TestUnit(Params, ChatModelUnitTests):
    pass


@pytest.mark.filterwarnings(BETA)
class TestIntegration(Params, ChatModelIntegrationTests):
    @property
    def supports_json_mode(self):
        return True

    @property
    def model_override_value(self):
        return "another-model"

    # both count the chat models that the test's callback sees, and this one asks others inside, under its own run;
    # test_structured_output.py has the rest of them

    @pytest.mark.xfail(reason="It wants one chat model call in the trace, and the policy's calls are in it as well.")
    @pytest.mark.parametrize("schema_type", ["pydantic", "typeddict", "json_schema"])
    def test_structured_output(self, model, schema_type):
        super().test_structured_output(model, schema_type)

    @pytest.mark.xfail(reason="It wants one chat model call in the trace, and the policy's calls are in it as well.")
    @pytest.mark.parametrize("schema_type", ["pydantic", "typeddict", "json_schema"])
    async def test_structured_output_async(self, model, schema_type):
        await super().test_structured_output_async(model, schema_type)
