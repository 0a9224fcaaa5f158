"""What is refused when it loads, and that loading and scoring write nothing."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from langchain_core.messages import HumanMessage
from transformers import AutoModelForCausalLM

from tests.rewards.local.tokens import make_tokenizer
from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.rewards.base import RewardModel
from tpo_graph.rewards.local import ClassifierReward

QUESTION = [HumanMessage("Why do warm rooms make people sleepy?")]


def rewrite(folder, **changes):
    """Change a checkpoint's config."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


OWN_CODE = """
from torch import nn
from transformers import LlamaConfig, LlamaModel, LlamaPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutputWithPast


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnReward(LlamaPreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.score = nn.Linear(config.hidden_size, 1, bias=False)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, **options):
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, **options).last_hidden_state
        ends = attention_mask.cumsum(dim=1).argmax(dim=1)
        return SequenceClassifierOutputWithPast(logits=self.score(hidden)[range(len(ends)), ends])
"""


async def test_trusted_code_gets_the_mask_that_its_authors_gave_it(checkpoint, reward, conversation, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(checkpoint("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnReward"}
    config |= {"architectures": ["OwnReward"], "auto_map": classes, "model_type": "own"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(OWN_CODE)
    own = reward(folder, trust_remote_code=True)
    texts = ["Warm.", "Since air scatters light."]
    assert await own.score(conversation, texts) == pytest.approx(
        await reward("llama").score(conversation, texts), abs=1e-4
    )


def test_it_is_a_reward_model(reward):
    assert isinstance(reward("llama"), RewardModel)


def test_a_language_model_is_refused(checkpoint):
    folder = checkpoint("llama", auto_class=AutoModelForCausalLM, num_labels=2)
    with pytest.raises(RewardError, match=r"is a language model .* without a reward head"):
        ClassifierReward.from_pretrained(str(folder))


def test_a_fresh_head_is_refused_even_with_one_label(checkpoint):
    folder = checkpoint("llama", auto_class=AutoModelForCausalLM)
    with pytest.raises(RewardError, match=r"lacks 1 weights .*score.weight.* random") as caught:
        ClassifierReward.from_pretrained(str(folder))
    assert "LlamaForCausalLM" in caught.value.hint


def test_several_outputs_need_an_extraction(checkpoint):
    folder = checkpoint("llama", num_labels=3)
    with pytest.raises(RewardError, match="has 3 outputs") as caught:
        ClassifierReward.from_pretrained(str(folder))
    assert "label:NAME_OR_INDEX" in caught.value.hint


def test_no_chat_template_is_refused_unless_one_is_given(checkpoint, reward):
    tokenizer = make_tokenizer(decoder=True)
    tokenizer.chat_template = None
    folder = checkpoint("llama", tokenizer=tokenizer)
    with pytest.raises(RewardError, match="no chat template"):
        ClassifierReward.from_pretrained(str(folder))
    reward(folder, chat_template="{% for m in messages %}{{ m['content'] }}\n{% endfor %}")


def test_own_code_is_not_run_unless_trusted(checkpoint, tmp_path):
    folder = own_code(checkpoint, tmp_path, "raise RuntimeError('this must not run')")
    with pytest.raises(RewardError, match="brings its own code, which is not run") as caught:
        ClassifierReward.from_pretrained(str(folder))
    assert "trust_remote_code=True" in caught.value.hint


def test_own_code_that_can_not_be_imported_says_so(checkpoint, tmp_path, monkeypatch):
    """As ArmoRM's, which imports a name that transformers no longer has."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = own_code(
        checkpoint, tmp_path, "from transformers.models.llama.modeling_llama import LLAMA_INPUTS_DOCSTRING"
    )
    with pytest.raises(RewardError, match="fails to import here: cannot import name 'LLAMA_INPUTS_DOCSTRING'"):
        ClassifierReward.from_pretrained(str(folder), trust_remote_code=True)


@pytest.mark.parametrize("labels", [1, 19])
def test_own_code_for_a_known_architecture_is_named_before_its_outputs(checkpoint, tmp_path, labels):
    """As ArmoRM: a Llama config with 19 labels, and a class of its own."""
    folder = gated(checkpoint, tmp_path, "raise RuntimeError('this must not run')", labels=labels)
    with pytest.raises(RewardError, match=r"own code \(OwnReward\), which is not run unless you trust it") as caught:
        ClassifierReward.from_pretrained(str(folder))
    assert "trust_remote_code=True" in caught.value.hint


@pytest.mark.parametrize(
    ("code", "said", "hint"),
    [
        (
            "from transformers.models.llama.modeling_llama import GONE",
            "cannot import name 'GONE'",
            "openrlhf:URL#MODEL",
        ),
        ("import no_such_package", "not found in your environment: no_such_package", "a model without own code"),
    ],
)
@pytest.mark.parametrize("labels", [1, 19])
def test_that_own_code_does_not_import_is_said_before_its_outputs(
    checkpoint, tmp_path, monkeypatch, labels, code, said, hint
):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = gated(checkpoint, tmp_path, code, labels=labels)
    with pytest.raises(RewardError, match=f"fails to import here: .*{said}") as caught:
        ClassifierReward.from_pretrained(str(folder), trust_remote_code=True)
    assert hint in caught.value.hint


def test_own_code_that_transformers_has_by_now_is_not_needed(checkpoint, reward, tmp_path):
    folder = tmp_path / "own_code"
    shutil.copytree(checkpoint("llama"), folder)
    rewrite(folder, auto_map={"AutoModelForSequenceClassification": "own.LlamaForSequenceClassification"})
    assert reward(folder).max_length == 2048


def gated(checkpoint, tmp_path, code, *, labels):
    folder = own_code(checkpoint, tmp_path, code)
    names = {f"LABEL_{number}": number for number in range(labels)}
    rewrite(
        folder,
        model_type="llama",
        auto_map={"AutoModelForSequenceClassification": "own.OwnReward"},
        label2id=names,
        id2label={str(number): name for name, number in names.items()},
    )
    return folder


def own_code(checkpoint, tmp_path, code):
    import shutil

    folder = tmp_path / "own_code"
    shutil.copytree(checkpoint("llama"), folder)
    rewrite(
        folder,
        model_type="own",
        architectures=["OwnReward"],
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnReward"},
    )
    (folder / "own.py").write_text(f"{code}\nclass OwnConfig: ...\nclass OwnReward: ...\n")
    return folder


def test_a_missing_folder_an_empty_one_and_a_broken_file_are_told_apart(checkpoint, tmp_path):
    import shutil

    with pytest.raises(RewardError, match="no such folder"):
        ClassifierReward.from_pretrained(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(RewardError, match=r"could not be loaded|lacks a file"):
        ClassifierReward.from_pretrained(str(tmp_path / "empty"))
    shutil.copytree(checkpoint("llama"), tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(RewardError, match=r"weights .* can't be read"):
        ClassifierReward.from_pretrained(str(tmp_path / "broken"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"truncation": "left"}, "truncation 'left'; allowed: error, truncate_prompt, truncate_response"),
        ({"dtype": "int4"}, "dtype 'int4'; allowed: auto, float32"),
        ({"max_length": 0}, "max_length=0"),
        ({"batch_tokens": -1}, "batch_tokens=-1"),
        ({"prefix_bytes": -1}, "prefix_bytes=-1"),
        ({"extraction": "best"}, "extraction 'best'; allowed: label:NAME_OR_INDEX"),
    ],
)
def test_arguments_are_checked_before_anything_is_loaded(options, said):
    with pytest.raises(ConfigurationError, match=said):
        ClassifierReward.from_pretrained("/nowhere", **options)


@pytest.mark.parametrize("device", ["gpu", "cuda:0"])
def test_a_device_that_is_not_here_is_refused(device, checkpoint):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigurationError, match=device):
        ClassifierReward.from_pretrained(str(checkpoint("llama")), device=device)


async def test_more_tokens_than_positions_are_refused_and_a_lower_limit_holds(checkpoint, reward):
    with pytest.raises(ConfigurationError, match="positions for 512 tokens"):
        ClassifierReward.from_pretrained(str(checkpoint("bert")), max_length=513)
    assert reward("bert").max_length == 512
    assert reward("roberta").max_length == 511  # a table of 514 rows, counted from the one after its pad id, 2
    model = reward("bert", max_length=100)
    _, counts = await model.score_with_counts([HumanMessage("air " * 200)], ["Since air.", "No."])
    assert (counts["truncated_prompts"], counts["truncated_responses"]) == (2, 0)
    assert counts["dropped_tokens"] > 200


async def test_a_text_over_the_table_of_positions_loses_the_start_of_its_conversation(reward):
    model = reward("bert")
    scores, counts = await model.score_with_counts([HumanMessage("light " * 600)], ["Since air.", "air " * 700])
    assert len(scores) == 2
    assert (counts["truncated_prompts"], counts["truncated_responses"]) == (2, 1)


async def test_half_precision_loads_where_it_is_asked_for(reward):
    model = reward("llama", dtype="bfloat16")
    (score,) = await model.score(QUESTION, ["Since air."])
    (exact,) = await reward("llama").score(QUESTION, ["Since air."])
    assert score == pytest.approx(exact, abs=0.2)


async def test_nothing_is_written(reward, checkpoint, capfd):
    tokenizer = make_tokenizer(decoder=True)
    tokenizer.model_max_length = 200  # a tokenizer that knows a limit warns of longer texts
    for kind in ("llama", "gemma3_text", "gpt2", "bert", "deberta-v2", "modernbert"):
        await reward(kind).score([HumanMessage("light " * 2000)], ["Since air.", "Warm."])
    model = reward(checkpoint("llama", tokenizer=tokenizer))
    assert model.max_length == 200
    await model.score([HumanMessage("light " * 2000)], ["Since air.", "Warm.<|end|>"])
    written = capfd.readouterr()
    assert (written.out, written.err) == ("", "")


def test_importing_the_package_imports_no_torch():
    code = (
        "import sys, tpo_graph.rewards.load, tpo_graph.rewards.local as local; local.ClassifierReward; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
