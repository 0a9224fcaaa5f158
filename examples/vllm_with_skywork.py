"""A policy on one vLLM server, Skywork-Reward-V2 on another: the setting for work that matters.

Start the servers (a GPU each; smaller sizes are in docs/rewards.md):

    vllm serve Qwen/Qwen3-8B --port 8000
    vllm serve Skywork/Skywork-Reward-V2-Llama-3.1-8B --runner pooling --max-model-len 16384 --port 8001

Run it with:  python examples/vllm_with_skywork.py ["your question"]

POLICY_URL and REWARD_URL say where the servers are, REWARD_MODEL which reward model is served, and REWARD_TOKENIZER
where its tokenizer is, when not on the Hugging Face hub by the same name.
"""

import asyncio
import os
import sys

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage

from tpo_graph import RewardModel, TPOError, TPOSettings, create_tpo_graph, load_policy, load_reward

POLICY_URL = os.environ.get("POLICY_URL", "http://127.0.0.1:8000/v1")
REWARD_URL = os.environ.get("REWARD_URL", "http://127.0.0.1:8001")
REWARD_MODEL = os.environ.get("REWARD_MODEL", "Skywork/Skywork-Reward-V2-Llama-3.1-8B")
REWARD_TOKENIZER = os.environ.get("REWARD_TOKENIZER", REWARD_MODEL)


def load() -> tuple[BaseChatModel, RewardModel]:
    """Policy and reward model; without a #MODEL the policy is the one that the server has."""
    policy = load_policy(f"vllm:{POLICY_URL}")
    return policy, load_reward(f"vllm:{REWARD_URL}#{REWARD_MODEL}", tokenizer=REWARD_TOKENIZER)


async def answer(question: str, policy: BaseChatModel, reward: RewardModel) -> None:
    # a reward server is first asked when there is something to score: better to know before the drafts are paid for
    await reward.score([HumanMessage("Are you there?")], ["Yes."])

    graph = create_tpo_graph(policy, reward)
    result = await graph.ainvoke({"query": question}, context=TPOSettings(n=5, depth=2))
    for step in result["trajectory"]:
        print(f"step {step['step']}: best reward {step['best_reward']:+.3f}, worst {step['worst_reward']:+.3f}")
    print(f"\n{result['answer']}")


if __name__ == "__main__":
    asked = sys.argv[1] if len(sys.argv) > 1 else "Why does warmth make you feel tired?"
    try:
        asyncio.run(answer(asked, *load()))
    except TPOError as error:  # it says which server does not answer, and what to do
        sys.exit(f"error: {error}")
