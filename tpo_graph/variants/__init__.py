"""Sets of replacement nodes that are not the paper's loop: `create_tpo_graph(..., nodes=fused_critique(critic))`."""

from tpo_graph.variants.fused_critique import fused_critique

__all__ = ["fused_critique"]
