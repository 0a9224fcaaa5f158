"""TPO in an agent: tool calls pass untouched, the final answer is optimised, the trajectory is in the state.

Run it with:  python examples/agent_with_tools.py [a name of load_policy; the model has to know tool calling]
"""

from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from offline_models import chosen_models

from tpo_graph.langchain.middleware import TPOMiddleware


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny and warm in {city}"


policy, reward = chosen_models()
optimise = TPOMiddleware(
    reward=reward,
    n=3,
    depth=1,
    when=lambda message, _: len(message.text) > 10,  # short answers are not worth it
)
agent = create_agent(policy, tools=[weather], middleware=[optimise], system_prompt="Be helpful, and be brief.")

state = agent.invoke({"messages": [HumanMessage("How is the weather in Lisbon?")]})
for message in state["messages"]:
    called = [f"{call['name']}({call['args']})" for call in getattr(message, "tool_calls", [])]
    print(f"{message.type}: {message.text or ', '.join(called)}")
for record in (state.get("tpo") or {}).get("trajectory", []):
    print(f"step {record['step']}: best reward {record['best_reward']:+.3f}")
