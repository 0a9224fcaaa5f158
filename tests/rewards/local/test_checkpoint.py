"""What is refused when it loads, and that loading and scoring write nothing."""

import json
import shutil

import pytest
import torch
from langchain_core.messages import HumanMessage
from transformers import AutoModelForCausalLM

from tests.rewards.local.checkpoints import make_tokenizer
from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.rewards.base import RunContext
from tpo_graph.rewards.local import ClassifierReward

pytestmark = pytest.mark.torch

QUESTION = [HumanMessage("Why do warm rooms make people sleepy?")]


@pytest.fixture
def changed(checkpoint, tmp_path):
    """A function that copies the llama checkpoint with changes to its config and, where given, code of its own."""

    def copy(code="", **config):
        folder = tmp_path / "changed"
        shutil.copytree(checkpoint("llama"), folder)
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
        if code:
            (folder / "own.py").write_text(code)
        return folder

    return copy


OWN_CLASSES = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnReward"}
OWN = {"architectures": ["OwnReward"], "auto_map": OWN_CLASSES, "model_type": "own"}
# as ArmoRM: a Llama config with 19 labels, and a class of its own
ARMO = {
    "architectures": ["OwnReward"],
    "auto_map": {"AutoModelForSequenceClassification": "own.OwnReward"},
    "id2label": {str(label): f"LABEL_{label}" for label in range(19)},
    "label2id": {f"LABEL_{label}": label for label in range(19)},
}

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


async def test_trusted_code_gets_the_mask_that_its_authors_gave_it(changed, reward, conversation):
    own = reward(changed(OWN_CODE, **OWN), trust_remote_code=True)
    texts = ["Warm.", "Since air scatters light."]
    expected = await reward("llama").score(conversation, texts)
    assert await own.score(conversation, texts) == pytest.approx(expected, abs=1e-4)


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
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    folder = checkpoint("llama", tokenizer=tokenizer)
    with pytest.raises(RewardError, match="no chat template"):
        ClassifierReward.from_pretrained(str(folder))
    reward(folder, chat_template="{% for m in messages %}{{ m['content'] }}\n{% endfor %}")


@pytest.mark.parametrize("config", [OWN, ARMO], ids=["own", "armo"])
def test_own_code_is_not_run_unless_trusted(changed, config):
    folder = changed("raise RuntimeError('this must not run')", **config)
    with pytest.raises(RewardError, match=r"brings its own code.*, which is not run unless you trust it") as caught:
        ClassifierReward.from_pretrained(str(folder))
    assert "trust_remote_code=True" in caught.value.hint


@pytest.mark.parametrize(
    ("code", "reason", "hint"),
    [
        (
            "from transformers.models.llama.modeling_llama import GONE",
            "cannot import name 'GONE'",
            "openrlhf:URL#MODEL",
        ),
        ("import no_such_package", "not found in your environment: no_such_package", "a model without own code"),
    ],
)
@pytest.mark.parametrize("config", [OWN, ARMO], ids=["own", "armo"])
def test_own_code_that_can_not_be_imported_is_reported_before_its_outputs(
    changed, tmp_path, monkeypatch, config, code, reason, hint
):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(RewardError, match=f"fails to import here: .*{reason}") as caught:
        ClassifierReward.from_pretrained(str(changed(code, **config)), trust_remote_code=True)
    assert hint in caught.value.hint


def test_own_code_that_transformers_has_by_now_is_not_needed(changed, reward):
    folder = changed(auto_map={"AutoModelForSequenceClassification": "own.LlamaForSequenceClassification"})
    assert reward(folder).max_length == 2048


def test_a_missing_folder_an_empty_one_and_a_broken_file_are_told_apart(changed, tmp_path):
    with pytest.raises(RewardError, match="no such folder"):
        ClassifierReward.from_pretrained(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(RewardError, match=r"could not be loaded|lacks a file"):
        ClassifierReward.from_pretrained(str(tmp_path / "empty"))
    broken = changed()
    (broken / "model.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(RewardError, match=r"weights that can't be read") as caught:
        ClassifierReward.from_pretrained(str(broken))
    assert "download it again" in caught.value.hint


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"truncation": "left"}, "truncation 'left'; allowed: error, truncate_prompt, truncate_response"),
        ({"dtype": "int4"}, "dtype 'int4'; allowed: auto, float32"),
        ({"max_length": 0}, "max_length=0"),
        ({"batch_tokens": -1}, "batch_tokens=-1"),
        ({"prefix_bytes": -1}, "prefix_bytes=-1"),
        ({"extraction": "best"}, "extraction 'best'; allowed: label:NAME_OR_INDEX"),
    ],
)
def test_arguments_are_checked_before_anything_is_loaded(options, problem):
    with pytest.raises(ConfigurationError, match=problem):
        ClassifierReward.from_pretrained("/nowhere", **options)


@pytest.mark.parametrize("device", ["gpu", "cuda:0"])
def test_a_device_that_is_not_here_is_refused(device, checkpoint):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigurationError, match=device):
        ClassifierReward.from_pretrained(str(checkpoint("llama")), device=device)


async def test_more_tokens_than_positions_are_refused_and_a_lower_limit_holds(checkpoint, reward):
    with pytest.raises(ConfigurationError, match="positions for 512 tokens"):
        ClassifierReward.from_pretrained(str(checkpoint("bert")), max_length=513)
    assert reward("bert").max_length == 512
    assert reward("roberta").max_length == 511  # a table of 514 rows, counted from the one after its pad id, 2


async def test_a_text_over_the_table_of_positions_loses_the_start_of_its_conversation(reward):
    texts = ["Since air.", "air " * 700]
    scoring = await reward("bert").score_in_detail([HumanMessage("light " * 600)], texts, RunContext())
    assert len(scoring.scores) == 2
    assert scoring.truncated == set(texts)


async def test_half_precision_loads_where_it_is_asked_for(reward):
    model = reward("llama", dtype="bfloat16")
    (score,) = await model.score(QUESTION, ["Since air."])
    (exact,) = await reward("llama").score(QUESTION, ["Since air."])
    assert score == pytest.approx(exact, abs=0.2)


async def test_nothing_is_written(reward, checkpoint, capfd):
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 200  # a tokenizer that knows a limit warns of longer texts
    for kind in ("llama", "gemma3_text", "gpt2", "bert", "deberta-v2", "modernbert"):
        await reward(kind).score([HumanMessage("light " * 2000)], ["Since air.", "Warm."])
    model = reward(checkpoint("llama", tokenizer=tokenizer))
    assert model.max_length == 200
    await model.score([HumanMessage("light " * 2000)], ["Since air.", "Warm.<|end|>"])
    written = capfd.readouterr()
    assert (written.out, written.err) == ("", "")
