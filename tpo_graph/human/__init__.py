"""People in the loop: nodes that ask a person."""

from tpo_graph.human.nodes import PersonReward, human_critique_node, human_nodes, human_score_node, human_select_node

__all__ = ["PersonReward", "human_critique_node", "human_nodes", "human_score_node", "human_select_node"]
