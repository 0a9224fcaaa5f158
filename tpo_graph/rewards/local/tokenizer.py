"""A reward model's tokenizer, with the chat template that says how it wants a conversation."""

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tpo_graph.errors import RewardError
from tpo_graph.rewards.local.loading_errors import loading_errors
from tpo_graph.rewards.local.quiet import quiet_loading

__all__ = ["load_tokenizer"]


def load_tokenizer(
    name_or_path: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    chat_template: str | None = None,
) -> PreTrainedTokenizerBase:
    """Load a tokenizer from the hub or a folder.

    Args:
        name_or_path: a repository on the Hugging Face hub, or a folder.
        revision: branch, tag or commit on the hub.
        trust_remote_code: whether code that comes with it may run.
        chat_template: Jinja text in place of the tokenizer's own; None keeps that.

    Raises:
        RewardError: it can't be loaded, or no chat template is known.
    """
    with loading_errors(name_or_path, revision=revision, trust_remote_code=trust_remote_code), quiet_loading():
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name_or_path, revision=revision, trust_remote_code=trust_remote_code
        )
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    if not tokenizer.chat_template:
        raise RewardError(
            f"The tokenizer {name_or_path!r} has no chat template, so how the reward model wants a conversation "
            "written is not known.",
            hint="Pass chat_template=..., a Jinja text as its model card describes the input.",
        )
    return tokenizer
