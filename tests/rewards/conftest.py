"""The reference for the scores of local and served reward models."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from langchain_core.messages import BaseMessage


@pytest.fixture(scope="session")
def pipeline_scores() -> Callable[[Path, Sequence[BaseMessage], Sequence[str]], list[float]]:
    """The reference: one text at a time through the plain pipeline, without a doubled begin token."""
    import torch
    from langchain_core.messages import convert_to_openai_messages
    from transformers import pipeline

    from tpo_graph.rewards.local.checkpoint import quiet_loading

    known: dict[tuple[Path, str, str], float] = {}

    def score(folder: Path, messages: Sequence[BaseMessage], texts: Sequence[str]) -> list[float]:
        turns = convert_to_openai_messages(messages)
        missing = [text for text in texts if (folder, str(turns), text) not in known]
        if missing:
            with quiet_loading():
                classify = pipeline("text-classification", model=str(folder), device="cpu", dtype=torch.float32)
        for text in missing:
            rendered = classify.tokenizer.apply_chat_template(
                [*turns, {"role": "assistant", "content": text}], tokenize=False
            ).removeprefix(classify.tokenizer.bos_token or "\0")
            output = classify(rendered, function_to_apply="none")
            known[folder, str(turns), text] = float(output[0]["score"])
        return [known[folder, str(turns), text] for text in texts]

    return score
