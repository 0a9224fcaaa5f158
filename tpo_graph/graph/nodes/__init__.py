"""The six phases, one file each."""

from tpo_graph.graph.nodes.gradient import gradient_node
from tpo_graph.graph.nodes.loss import loss_node
from tpo_graph.graph.nodes.sample import sample_node
from tpo_graph.graph.nodes.score import score_node
from tpo_graph.graph.nodes.select import select_node
from tpo_graph.graph.nodes.update import update_node

__all__ = ["gradient_node", "loss_node", "sample_node", "score_node", "select_node", "update_node"]
