"""Rewards of models that have not exactly one output, each against the model run by hand."""

import json
import math
import shutil

import pytest
import torch
from langchain_core.messages import convert_to_openai_messages
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from tests.rewards.local.checkpoints import record_passes
from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.rewards.local import LabelLogit, ProcessReward, ValueHead
from tpo_graph.rewards.local.checkpoint import quiet_loading

pytestmark = pytest.mark.torch

TEXTS = ["The body rests.\n\nLess heat, more sleep.\n\nSo people sleep.", "Warm.", "The sky is blue.\n\nAir. " * 3]


def by_hand(folder, auto_class):
    """Model and tokenizer as a person would load them."""
    with quiet_loading():
        model = auto_class.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
        return model, AutoTokenizer.from_pretrained(folder)


def rendered_ids(tokenizer, conversation, text):
    turns = [*convert_to_openai_messages(conversation), {"role": "assistant", "content": text}]
    return tokenizer.apply_chat_template(turns, return_dict=False)


async def test_one_label_of_several(checkpoint, reward, conversation):
    names = {"id2label": {0: "helpful", 1: "honest", 2: "brief"}, "label2id": {"helpful": 0, "honest": 1, "brief": 2}}
    folder = checkpoint("llama", num_labels=3, **names)
    model, tokenizer = by_hand(folder, AutoModelForSequenceClassification)
    expected = [
        float(model(torch.tensor([rendered_ids(tokenizer, conversation, text)])).logits[0, 1]) for text in TEXTS
    ]

    for extraction in ("label:honest", LabelLogit(1)):
        scores = await reward(folder, extraction=extraction).score(conversation, TEXTS)
        assert scores == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ConfigurationError, match="no label 'kind'; allowed: brief, helpful, honest"):
        reward(folder, extraction="label:kind")
    with pytest.raises(ConfigurationError, match="allowed: 0 to 2"):
        reward(folder, extraction="label:3")


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
async def test_a_logit_at_the_last_position(kind, checkpoint, reward, conversation):
    """gemma2 caps its logits after the head: the model's own forward is what counts."""
    folder = checkpoint(kind, auto_class=AutoModelForCausalLM)
    model, tokenizer = by_hand(folder, AutoModelForCausalLM)
    expected = [
        float(model(torch.tensor([rendered_ids(tokenizer, conversation, text)])).logits[0, -1, 0]) for text in TEXTS
    ]

    assert await reward(folder, extraction="nemotron").score(conversation, TEXTS) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ConfigurationError, match="Column 99999 is outside of the vocabulary"):
        reward(folder, extraction="last_token_logit:99999")


@pytest.mark.parametrize("aggregate", ["min", "product", "last"])
async def test_a_process_reward_reads_each_step(aggregate, checkpoint, loaded, reward, conversation):
    folder = checkpoint("qwen3", auto_class=AutoModelForTokenClassification, num_labels=2)
    model, tokenizer = by_hand(folder, AutoModelForTokenClassification)
    mark = tokenizer.encode("\n", add_special_tokens=False)[0]
    expected = []
    for text in TEXTS:
        whole = rendered_ids(tokenizer, conversation, "\u203b")
        head = whole[: len(rendered_ids(tokenizer, conversation, "")) - 2]  # up to the response
        ids, steps = list(head), []
        for step in text.split("\n\n"):
            ids += [*tokenizer.encode(step.strip(), add_special_tokens=False), mark]
            steps.append(len(ids) - 1)
        logits = model(torch.tensor([ids])).logits[0, steps].softmax(-1)[:, 1]
        expected.append(float({"min": logits.min(), "product": logits.prod(), "last": logits[-1]}[aggregate]))

    extraction = ProcessReward(aggregate)
    weights = loaded(folder, extraction=extraction)
    passes = record_passes(weights)
    scores = await reward(weights, extraction=extraction).score(conversation, TEXTS)
    assert scores == pytest.approx(expected, abs=1e-4)
    assert sum(one.builds for one in passes) == 1


async def test_a_process_reward_of_two_tokens(checkpoint, reward, conversation):
    folder = checkpoint("llama", auto_class=AutoModelForCausalLM)
    good_or_bad = ProcessReward("last", step_token="<pad>", positive="+", negative="-")
    scores = await reward(folder, extraction=good_or_bad).score(conversation, [*TEXTS, ""])
    assert all(0 < score < 1 for score in scores[:3])
    assert math.isnan(scores[3]), "a response without a step can't be scored"

    with pytest.raises(RewardError, match=r"'\+\+\+' is 3 tokens"):
        reward(folder, extraction=ProcessReward(step_token="+++", positive="+", negative="-"))


async def test_an_encoder_has_no_steps(checkpoint, reward):
    folder = checkpoint("bert", auto_class=AutoModelForTokenClassification, num_labels=2)
    with pytest.raises(ConfigurationError, match="can't be read at each step"):
        reward(folder, extraction="process:min")


def write_value_model(folder, weights, head, kind):
    """Weights and value head in one file, or the head's two tensors in files of their own."""
    name = "pytorch_model.bin" if kind.endswith("bin") else "model.safetensors"
    (folder / "model.safetensors").unlink()
    contents = {name: {**weights, **head}}
    if kind.startswith("sharded"):
        stem, _, suffix = name.rpartition(".")
        parts = [weights, *({key: tensor} for key, tensor in head.items())]
        contents = {f"{stem}-{number}.{suffix}": tensors for number, tensors in enumerate(parts)}
        places = {key: file for file, tensors in contents.items() for key in tensors}
        index = {"metadata": {"total_size": 0}, "weight_map": places}
        (folder / f"{name}.index.json").write_text(json.dumps(index))
    for file, tensors in contents.items():
        if kind.endswith("bin"):
            torch.save(tensors, folder / file)
        else:
            save_file(tensors, folder / file, metadata={"format": "pt"})


@pytest.mark.parametrize("kind", ["safetensors", "bin", "sharded safetensors", "sharded bin"])
async def test_a_value_head(kind, checkpoint, reward, conversation, tmp_path):
    source = checkpoint("llama", auto_class=AutoModelForCausalLM)
    folder = tmp_path / "value"
    shutil.copytree(source, folder)
    head = {"v_head.summary.weight": torch.randn(1, 32), "v_head.summary.bias": torch.tensor([0.5])}
    write_value_model(folder, load_file(folder / "model.safetensors"), head, kind)
    model, tokenizer = by_hand(source, AutoModelForCausalLM)
    expected = []
    for text in TEXTS:
        hidden = model.model(torch.tensor([rendered_ids(tokenizer, conversation, text)])).last_hidden_state[0, -1]
        expected.append(float(head["v_head.summary.weight"][0] @ hidden + 0.5))

    assert await reward(folder, extraction="value_head").score(conversation, TEXTS) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(RewardError, match="holds no value head"):
        reward(source, extraction=ValueHead())
    with pytest.raises(RewardError) as caught:
        reward(folder)
    assert "extraction='value_head'" in caught.value.hint
