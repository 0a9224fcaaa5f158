"""TPO in five lines: a question, the embedded policy and reward model, and the story of the answer.

Run it with:  python examples/quickstart.py "Why does warmth make you feel tired?"
A second argument is another policy, as in local:0.5b.
"""

import sys

from tpo_graph import TPOSettings, create_tpo_graph, load_policy, load_reward

question = sys.argv[1] if len(sys.argv) > 1 else "Why does warmth make you feel tired?"
policy = sys.argv[2] if len(sys.argv) > 2 else "local"

graph = create_tpo_graph(load_policy(policy), load_reward("local"))
result = graph.invoke({"query": question}, context=TPOSettings(n=5, depth=2))

print(result["answer"])
for record in result["trajectory"]:
    print(f"step {record['step']}: best reward {record['best_reward']:+.3f} of {record['candidates']} new candidates")
print(f"stopped by {result['stop_reason']}")
