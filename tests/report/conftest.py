"""Documents of runs, as `tpo-graph run --json` writes them."""

from typing import Any

QUESTION = "Why is the sky blue?"


def candidate(id: str, text: str, reward: float | None = None, **more: Any) -> dict[str, Any]:
    scored = {} if reward is None else {"reward": reward}
    return {"id": id, "step": int(id[0]), "text": text, "truncated": False, "finish_reason": "stop", **scored, **more}


def record(step: int, best_id: str, best: float, worst: float, **more: Any) -> dict[str, Any]:
    counts = {"candidates": 2, "failures": 0, "requests": 1, "input_tokens": 10, "output_tokens": 20, "seconds": 0.5}
    texts = {"loss": "the loss", "gradient": "the gradient"} if step else {"loss": "", "gradient": ""}
    rewards = {"best_reward": best, "worst_reward": worst, "mean_reward": (best + worst) / 2}
    return {"step": step, "best_id": best_id, **rewards, **counts, **texts, **more}


def document(**changes: Any) -> dict[str, Any]:
    """A run of two steps: 0-1 was revised into 1-0 and 1-1, and 1-0, the answer, into 2-0."""
    answer = candidate("1-0", "the sky scatters blue light", 2.5)
    return {
        "answer": answer["text"],
        "stop_reason": "depth",
        "best": answer,
        "worst": candidate("0-0", "no idea", -1.0),
        "trajectory": [record(0, "0-1", 0.5, -1.0), record(1, "1-0", 2.5, -1.0), record(2, "1-0", 2.5, -1.0)],
        "cache": [
            candidate("0-0", "no idea", -1.0),
            candidate("0-1", "the sky is blue", 0.5),
            answer,
            candidate("1-1", "the sky is wet", 0.0, truncated=True),
            candidate("2-0", "the sky scatters light", 1.5),
        ],
        "unscored": [],
        "failures": [],
        "choices": [],
        "warnings": [],
        "usage": {
            "sample": {"requests": 1, "input_tokens": 1200, "output_tokens": 340, "seconds": 1.5},
            "score": {"requests": 0, "input_tokens": 0, "output_tokens": 0, "seconds": 0.25},
        },
        "seconds": 3.25,
        "messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": answer["text"]}],
        "models": {"policy": "local", "reward model": "local"},
        "variant": None,
        "prompts": "tpo",
        "settings": {"n": 2, "depth": 2, "mode": "tpo", "seed": None},
        "interrupted": False,
        "error": None,
        **changes,
    }
