"""`tpo-graph graph`: the graph as Mermaid text."""

__all__ = ["graph"]


def graph() -> None:
    """Print the graph as Mermaid text; needs no model."""
    from tpo_graph.graph.build import create_tpo_graph
    from tpo_graph.settings import TPOSettings
    from tpo_graph.testing import ScriptedChatModel, TableReward

    # the picture is the same for all models and settings
    compiled = create_tpo_graph(ScriptedChatModel([]), TableReward({}), prompts="tpo", settings=TPOSettings())
    print(compiled.get_graph().draw_mermaid().rstrip())
