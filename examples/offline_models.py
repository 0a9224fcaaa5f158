"""The models that the examples use: by name when one is given, else scripted ones that need nothing at all.

python examples/chain.py                     scripted, to see how things fit together
python examples/chain.py local               the embedded policy and reward model
python examples/chain.py openai:gpt-4o-mini  any name of load_policy, with the embedded reward model
"""

import sys
from collections.abc import Sequence

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage

from tpo_graph import RewardModel, load_policy, load_reward
from tpo_graph.testing import ScriptedChatModel, TableReward

DRAFTS = ["Warm rooms make you sleepy.", "It is the heat.", "In the warmth the body works less, so you feel sleepy."]
BETTER_WEATHER = "In Lisbon it is sunny and warm, as in all of the south: leave the coat at home, and take a hat."
BETTER = (
    "In the warmth your vessels widen and your blood pressure falls, so less reaches the brain and you feel sleepy."
)


def chosen_models() -> tuple[BaseChatModel, RewardModel]:
    """The policy and the reward model that the command line asks for."""
    if len(sys.argv) > 1:
        return load_policy(sys.argv[1]), load_reward("local")
    return scripted_policy(), TableReward(lambda text: len(text) / 100)


def scripted_policy(remark: str = "The best one says why.") -> "ScriptedModelWithTools":
    """Plays all four phases; `remark` is what it says of the best answer."""

    def script(messages: Sequence[BaseMessage], number: int) -> str | AIMessage:
        asked = messages[-1].text
        if "</revised_response>" in asked:
            return f"<revised_response>{BETTER_WEATHER if 'Lisbon' in asked else BETTER}</revised_response>"
        if "<best_response>" in asked:
            return remark
        if messages[-1].type == "tool":
            return ["It is sunny.", f"Today it is {asked}."][number % 2]
        if "weather" in asked:
            return AIMessage("", tool_calls=[{"name": "weather", "args": {"city": "Lisbon"}, "id": "1"}])
        return DRAFTS[number % len(DRAFTS)]

    return ScriptedModelWithTools(script=script)


class ScriptedModelWithTools(ScriptedChatModel):
    """A scripted model that an agent can give tools to."""

    def bind_tools(self, *_: object, **__: object) -> BaseChatModel:
        """The model itself: its script knows when to call which tool."""
        return self
