"""Reward models by name: `local`, `hf:owner/name`, and what else is registered in `SCHEMES`."""

import difflib
from collections.abc import Callable, Mapping
from importlib import import_module, resources
from typing import Any

from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.rewards.base import RewardModel


def _load_hub(name: str, **options: Any) -> RewardModel:  # options are those of the class, checked by its signature
    from tpo_graph.rewards.local import ClassifierReward

    if not name:
        raise ConfigurationError(
            "'hf:' names no reward model.", hint="For example hf:Skywork/Skywork-Reward-V2-Qwen3-0.6B, or hf:./folder."
        )
    return ClassifierReward.from_pretrained(name, **options)


def _load_demo(name: str, **options: Any) -> RewardModel:  # options as above
    if name:
        raise ConfigurationError(f"'local' takes no name, but {name!r} was given.", hint="For a folder: hf:./folder.")
    folder = resources.files("tpo_graph.rewards") / "demo"
    if not (folder / "config.json").is_file():
        raise RewardError(
            "The demonstration reward model is not installed (tpo_graph/rewards/demo has no config.json).",
            hint="Install tpo_graph again, or name a reward model: hf:owner/name.",
        )
    with resources.as_file(folder) as path:
        return _load_hub(str(path), **options)


def _lazy(path: str) -> Callable[..., RewardModel]:
    """A loader that imports the function at `module:name` when it is called."""
    module, _, name = path.partition(":")

    def load(rest: str, **options: Any) -> RewardModel:  # options as above
        reward_model: RewardModel = getattr(import_module(module), name)(rest, **options)
        return reward_model

    return load


SCHEMES: dict[str, Callable[..., RewardModel]] = {
    "local": _load_demo,
    "hf": _load_hub,
    "vllm": _lazy("tpo_graph.rewards.served.servers:load_vllm"),
    "vllm-pooling": _lazy("tpo_graph.rewards.served.servers:load_vllm_pooling"),
    "sglang": _lazy("tpo_graph.rewards.served.servers:load_sglang"),
    "tei": _lazy("tpo_graph.rewards.served.servers:load_tei"),
    "openrlhf": _lazy("tpo_graph.rewards.served.servers:load_openrlhf"),
    "nim": _lazy("tpo_graph.rewards.served.servers:load_nim"),
    "judge": _lazy("tpo_graph.rewards.judge:load_judge"),
    "pairwise-judge": _lazy("tpo_graph.rewards.judge:load_pairwise_judge"),
    "math": _lazy("tpo_graph.rewards.verifiers.math:load_math"),
    "regex": _lazy("tpo_graph.rewards.verifiers.rules:load_regex"),
    "length": _lazy("tpo_graph.rewards.verifiers.rules:load_length"),
    "json_schema": _lazy("tpo_graph.rewards.verifiers.rules:load_json_schema"),
    "python": _lazy("tpo_graph.rewards.functions:load_function"),
}
"""Loaders by scheme, the part of a name before its first colon.

A loader takes the rest of the name, "" for none, and the options as keywords; it imports what it needs when called.
"""

EXAMPLES: Mapping[str, str] = {
    "hf": "hf:OWNER/NAME or hf:./FOLDER",
    "vllm": "vllm:URL#MODEL",
    "vllm-pooling": "vllm-pooling:URL#MODEL",
    "sglang": "sglang:URL#MODEL",
    "tei": "tei:URL#MODEL",
    "openrlhf": "openrlhf:URL#MODEL",
    "nim": "nim:URL#MODEL",
    "judge": "judge:openai:gpt-4o-mini",
    "pairwise-judge": "pairwise-judge:POLICY",
    "regex": "regex:PATTERN",
    "length": "length:100-200 words",
    "json_schema": "json_schema:FILE",
    "python": "python:MODULE:FUNCTION",
}


def load_reward(name: str, **options: Any) -> RewardModel:  # options depend on the scheme, whose loader checks them
    """Load a reward model by its name.

    This loads at once, so that a wrong name or checkpoint shows here and not in the middle of a run. It blocks: call it
    before the event loop starts, or in a thread (`await asyncio.to_thread(load_reward, name)`).

    Args:
        name: `local` for the small demonstration model that comes with the package; `hf:owner/name` for a model on the
            Hugging Face hub; `hf:./folder` for a checkpoint here; `vllm:`, `sglang:`, `tei:`, `openrlhf:` and `nim:`
            with `URL#MODEL` for a server; `judge:POLICY` for a chat model; `math`, `regex:`, `length:`, `json_schema:`
            and `python:MODULE:FUNCTION` for checks and functions; the path of a `.toml` file for a combination.
        **options: keyword arguments of the loader; for `local` and `hf:` those of `ClassifierReward.from_pretrained`.

    Returns:
        The reward model.

    Raises:
        ConfigurationError: for an unknown name or option.
        RewardError: when the model can't be loaded.
    """
    if name.endswith(".toml"):
        from tpo_graph.rewards.recipes import load_recipe

        if options:
            raise ConfigurationError(f"A recipe takes no options, but {', '.join(options)} was given.")
        return load_recipe(name, load=load_reward)
    scheme, _, rest = name.partition(":")
    loader = SCHEMES.get(scheme)
    if loader is None:
        allowed = ", ".join([*(EXAMPLES.get(known, known) for known in SCHEMES), "RECIPE.toml"])
        raise ConfigurationError(f"Unknown reward model {name!r}; allowed: {allowed}.", hint=_suggestion(name, scheme))
    try:
        return loader(rest, **options)
    except (TypeError, AttributeError) as error:  # a text has methods that a number lacks
        if not options:
            raise
        if "unexpected keyword argument" in str(error):
            raise ConfigurationError(f"Reward model {name!r} does not take these options: {error}") from error
        given = ", ".join(f"{option}={_shown(option, value)}" for option, value in options.items())
        raise ConfigurationError(
            f"An option of reward model {name!r} has a value of the wrong type ({given}): {error}"
        ) from error


def _shown(option: str, value: object) -> str:
    return "..." if option.endswith("key") else repr(value)


def _suggestion(name: str, scheme: str) -> str:
    if ":" not in name and "/" in name:
        return f"Did you mean 'hf:{name}'?"
    close = difflib.get_close_matches(scheme, SCHEMES, n=1, cutoff=0.5)
    return f"Did you mean {EXAMPLES.get(close[0], close[0])!r}?" if close else ""
