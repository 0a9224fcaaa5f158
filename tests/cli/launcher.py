"""The real command with a reward model for tests beside its own: run this file as `tpo-graph`.

`number` reads the last number of a response, `slow` never finishes loading, `broken` fails when it scores,
`stuck` never finishes scoring, `patchy` can't score revisions.
"""

import time
from typing import Any

from tests.tpo_script import number_reward
from tpo_graph.rewards.load import SCHEMES
from tpo_graph.testing import TableReward


def _number(name: str, **options: Any):
    return number_reward()


def _broken(name: str, **options: Any):
    return TableReward({})


def _slow(name: str, **options: Any):
    time.sleep(600)


def _stuck(name: str, **options: Any):
    return TableReward(lambda text: time.sleep(600) or 0.0)


def _patchy(name: str, **options: Any):
    return TableReward({f"cand {number}": float(number) for number in range(100)})


REWARDS = {"number": _number, "broken": _broken, "slow": _slow, "stuck": _stuck, "patchy": _patchy}

if __name__ == "__main__":
    from tpo_graph.cli import main

    SCHEMES.update(REWARDS)
    main()
