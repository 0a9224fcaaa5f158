"""Reward models by name: `local`, `hf:owner/name`, and what else is registered in `SCHEMES`."""

import difflib
from collections.abc import Callable, Mapping
from importlib import import_module, resources

from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.rewards.base import RewardModel
from tpo_graph.types import Options


def _lazy(path: str) -> Callable[..., RewardModel]:
    """A loader that imports the function at `module:name` when it is called."""
    module, _, name = path.partition(":")

    def load(rest: str, **options: Options) -> RewardModel:
        reward_model: RewardModel = getattr(import_module(module), name)(rest, **options)
        return reward_model

    return load


def _load_hub(name: str, **options: Options) -> RewardModel:
    if not name:
        raise ConfigurationError(
            "'hf:' names no reward model.", hint="For example hf:Skywork/Skywork-Reward-V2-Qwen3-0.6B, or hf:./folder."
        )
    reward_model: RewardModel = import_module("tpo_graph.rewards.local").ClassifierReward.from_pretrained(
        name, **options
    )
    return reward_model


def _load_demo(name: str, **options: Options) -> RewardModel:
    if name:
        raise ConfigurationError(f"'local' takes no name, and here is {name!r}.", hint="For a folder: hf:./folder.")
    folder = resources.files("tpo_graph.rewards") / "demo"
    if not (folder / "config.json").is_file():
        raise RewardError(
            "The demonstration reward model is not installed (tpo_graph/rewards/demo has no config.json).",
            hint="Install tpo_graph again, or name a reward model: hf:owner/name.",
        )
    with resources.as_file(folder) as path:
        return _load_hub(str(path), **options)


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


def load_reward(name: str, **options: Options) -> RewardModel:
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
            raise ConfigurationError(f"A recipe takes no options, and here are: {', '.join(options)}.")
        return load_recipe(name, load=load_reward)
    scheme, _, rest = name.partition(":")
    loader = SCHEMES.get(scheme)
    if loader is None:
        suggestion = ""
        if ":" not in name and "/" in name:
            suggestion = f"hf:{name}"
        elif close := difflib.get_close_matches(scheme, SCHEMES, n=1, cutoff=0.5):
            suggestion = EXAMPLES.get(close[0], close[0])
        allowed = ", ".join([*(EXAMPLES.get(allowed, allowed) for allowed in SCHEMES), "RECIPE.toml"])
        raise ConfigurationError(
            f"Unknown reward model {name!r}; allowed: {allowed}.",
            hint=f"Did you mean {suggestion!r}?" if suggestion else "",
        )
    try:
        return loader(rest, **options)
    except (TypeError, AttributeError) as error:  # a text has methods that a number lacks
        if not options:
            raise
        if "unexpected keyword argument" in str(error):
            raise ConfigurationError(f"Reward model {name!r} does not take these options: {error}") from error
        values = {option: "..." if option.endswith("key") else repr(value) for option, value in options.items()}
        shown = ", ".join(f"{option}={value}" for option, value in values.items())
        raise ConfigurationError(
            f"An option of reward model {name!r} has a value of the wrong type ({shown}): {error}"
        ) from error
