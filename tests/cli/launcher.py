"""The real command with reward models for tests beside its own: run this file as `tpo-graph`."""

import ctypes
import time

from tests.tpo_script import number_reward
from tpo_graph.rewards.load import SCHEMES
from tpo_graph.testing import TableReward

REWARDS = {
    "number": lambda name, **_: number_reward(),  # the last number of a response
    "broken": lambda name, **_: TableReward({}),  # fails when it scores
    "slow": lambda name, **_: time.sleep(600),  # never finishes loading
    # holds Python's lock while it loads, as the libraries of models do
    "holding": lambda name, **_: (ctypes.PyDLL(None).usleep(2_500_000), number_reward())[1],
    "stuck": lambda name, **_: TableReward(lambda text: time.sleep(600) or 0.0),  # never finishes scoring
    # can't score revisions
    "patchy": lambda name, **_: TableReward({f"cand {number}": float(number) for number in range(100)}),
}

if __name__ == "__main__":
    from tpo_graph.cli.app import main

    SCHEMES.update(REWARDS)
    main()
