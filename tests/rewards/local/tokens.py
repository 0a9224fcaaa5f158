"""A tokenizer small enough to be trained by a test: bytes, a few merges, control tokens with ids 0 to 7."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "The sky is blue because air scatters short waves of light more than long ones.",
    "Warm rooms make people sleepy, since the body spends less on keeping its heat.",
    "Zürich, naïve, 東京, and 3 + 4 = 7; some more text with punctuation!",
    "user assistant system question answer",
]

DECODER_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|end|>\n{% endfor %}"
)
ENCODER_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% if not loop.last %}[SEP]{% endif %}{% endfor %}"
)


def make_tokenizer(*, decoder: bool, adds_bos: bool = True, pad: str | None = "<pad>") -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template."""
    specials = ["<s>", "</s>", "<pad>", "<|start|>", "<|end|>", "[CLS]", "[SEP]", "[UNK]"]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    if not decoder:
        core.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[(name, specials.index(name)) for name in ("[CLS]", "[SEP]")]
        )
    elif adds_bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    names = {"bos_token": "<s>", "eos_token": "<|end|>"} if decoder else {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **names, **({"pad_token": pad} if pad else {}))
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|start|>", "<|end|>", "[SEP]", "[CLS]"]})
    tokenizer.chat_template = DECODER_TEMPLATE if decoder else ENCODER_TEMPLATE
    return tokenizer
