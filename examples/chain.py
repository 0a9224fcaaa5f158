"""TPO in a LangChain chain: a prompt, the model, a parser; the steps as they happen; an answer of a given shape.

Run it with:  python examples/chain.py [a name of load_policy]
"""

import asyncio
from typing import Any

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from offline_models import chosen_models

from tpo_graph.langchain.chat_model import ChatTPO

QUESTION = {"question": "Why does warmth make you feel tired?"}

policy, reward = chosen_models()
model = ChatTPO(policy=policy, reward=reward, n=3, depth=1)
prompt = ChatPromptTemplate.from_messages([("system", "Answer in one sentence."), ("human", "{question}")])
chain = prompt | model | StrOutputParser()


async def watch() -> None:
    """The same chain with its progress: a custom event after each step, then the answer in pieces."""
    async for event in chain.astream_events(QUESTION, version="v2"):
        if event["event"] == "on_custom_event":
            step: dict[str, Any] = dict(event["data"])
            print(f"step {step['step']}: best reward {step['best_reward']:+.3f} of {step['candidates']} new candidates")
        if event["event"] == "on_parser_stream":
            print(event["data"]["chunk"], end="", flush=True)
    print()


print(chain.invoke(QUESTION))
asyncio.run(watch())

# a call can change any setting for itself, and the message tells what the answer cost
message = (prompt | model.bind(mode="bon")).invoke(QUESTION)
tokens = message.usage_metadata["output_tokens"] if message.usage_metadata else "an unknown number of"
print(f"best of {model.settings.n}: {tokens} tokens written")
