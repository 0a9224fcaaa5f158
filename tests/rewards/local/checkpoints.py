"""Tiny checkpoints: random weights, a byte-level tokenizer small enough to be trained by a test, a chat template."""

import math
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from tpo_graph.rewards.local.checkpoint import Checkpoint, quiet_loading

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
ROPE = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 2048}
SLIDING = {**ROPE, "sliding_window": 16}
BERT = {**SIZES, "max_position_embeddings": 512}
ROBERTA = {**SIZES, "max_position_embeddings": 514, "type_vocab_size": 1}
DEBERTA = {**BERT, "relative_attention": True, "position_biased_input": False}

DECODERS: dict[str, dict[str, object]] = {
    "llama": ROPE,
    "qwen2": ROPE,
    "qwen3": ROPE,
    "mistral": SLIDING,
    "gemma2": {**SLIDING, "query_pre_attn_scalar": 8},
    "gemma3_text": {
        **SLIDING,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "phi3": ROPE,
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 1024},
    "gpt_neox": {**SIZES, "max_position_embeddings": 1024},
    "opt": {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 1024},
}
ENCODERS: dict[str, dict[str, object]] = {
    "bert": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 3, "n_heads": 4, "max_position_embeddings": 512},
    "electra": {**BERT, "embedding_size": 32},
    "albert": {**BERT, "embedding_size": 16},
    "mpnet": {**SIZES, "max_position_embeddings": 514},
    "deberta": {**DEBERTA, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {
        **DEBERTA,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 16,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "conv_kernel_size": 3,
    },
    "modernbert": {
        **SIZES,
        "max_position_embeddings": 1024,
        "local_attention": 16,
        "classifier_pooling": "mean",
        "cls_token_id": 5,
        "sep_token_id": 6,
    },
}
ONE_BY_ONE: dict[str, dict[str, object]] = {
    # mixes all positions of a row, padding included
    "fnet": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 512},
    # reads the last position of a row
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
}

CORPUS = [
    "The sky is blue because air scatters short waves of light more than long ones.",
    "Warm rooms make people sleepy, since the body spends less on keeping its heat.",
    "Zürich, naïve, 東京, and 3 + 4 = 7; some more text with punctuation!",
    "user assistant system question answer",
]
SPECIALS = ["<s>", "</s>", "<pad>", "<|start|>", "<|end|>", "[CLS]", "[SEP]", "[UNK]"]
"""The control tokens, with ids 0 to 7."""

DECODER_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|end|>\n{% endfor %}"
)
ENCODER_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% if not loop.last %}[SEP]{% endif %}{% endfor %}"
)


def make_tokenizer(*, decoder: bool = True, adds_bos: bool = True) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with a chat template."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    if not decoder:
        core.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[(name, SPECIALS.index(name)) for name in ("[CLS]", "[SEP]")]
        )
    elif adds_bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    names = {"bos_token": "<s>", "eos_token": "<|end|>"} if decoder else {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", **names)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|start|>", "<|end|>", "[SEP]", "[CLS]"]})
    tokenizer.chat_template = DECODER_TEMPLATE if decoder else ENCODER_TEMPLATE
    return tokenizer


def make_checkpoint(
    folder: Path,
    kind: str,
    *,
    tokenizer: PreTrainedTokenizerFast | None = None,
    auto_class: type = AutoModelForSequenceClassification,
    **changes: object,
) -> Path:
    """Write a random model of an architecture, whose scores spread widely enough for a comparison to mean something."""
    tokenizer = tokenizer or make_tokenizer(decoder=kind in DECODERS)
    options = {
        "vocab_size": len(tokenizer),
        "num_labels": 1,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **{**DECODERS, **ENCODERS, **ONE_BY_ONE}[kind],
        **changes,
    }
    torch.manual_seed(7)
    with quiet_loading():
        model = auto_class.from_config(AutoConfig.for_model(kind, **options)).eval()
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                wide = 1.0 if "emb" in name or "wte" in name else 2.0 / math.sqrt(weight.shape[1])
                torch.nn.init.normal_(weight, std=wide)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


class Pass(NamedTuple):
    """One forward pass of a model's backbone."""

    rows: int
    length: int
    reused: int | None
    """Tokens of a kept prefix; 0 where the pass fills the cache of one, None where there is no cache."""

    @property
    def builds(self) -> bool:
        """Whether it runs a prefix, to be reused."""
        return self.reused == 0


def record_passes(checkpoint: Checkpoint) -> list[Pass]:
    """Return a list to which every pass of a model is added before it runs."""
    passes: list[Pass] = []

    def record(_module: object, args: tuple, kwargs: dict) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]  # as the model's own forward hands them on
        cache = kwargs.get("past_key_values")
        passes.append(Pass(*ids.shape, None if cache is None else cache.get_seq_length()))

    checkpoint.model.base_model.register_forward_pre_hook(record, with_kwargs=True)
    return passes
