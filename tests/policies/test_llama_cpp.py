"""llama.cpp's server counts the tokens of one completion alone; the chat model for it counts them all."""

import pytest
from langchain_core.messages import HumanMessage

from tests.servers import ChatServer
from tpo_graph import load_policy
from tpo_graph.policies.sampling import Sampler
from tpo_graph.settings import Sampling


@pytest.mark.parametrize(
    ("n", "server", "tokens"),
    [
        (3, {"counts_first_alone": True, "tokenizes": True}, 6),
        (3, {"counts_first_alone": True, "tokenizes": False}, 2),
        (3, {"tokenizes": True}, 6),
        (1, {"counts_first_alone": True, "tokenizes": True}, 2),
        (3, {"tells_usage": False, "tokenizes": True}, 0),
    ],
)
async def test_every_completion_counts_where_the_server_can_tell(n, server, tokens):
    with ChatServer(**server) as started:
        policy = load_policy(f"llamacpp:{started.url}#scripted")
        draw = await Sampler(policy).draw([HumanMessage("one two three")], n, Sampling())
    assert (len(draw.completions), draw.usage["output_tokens"]) == (n, tokens)
    assert draw.usage["input_tokens"] == (3 if server.get("tells_usage", True) else 0)
    assert draw.usage["requests"] == 1
