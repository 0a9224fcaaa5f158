"""What texts have in common is tokenised once, and the ids are those of each text alone."""

import pytest
from tokenizers import AddedToken, normalizers, pre_tokenizers

from tests.rewards.local.tokens import make_tokenizer
from tpo_graph.rewards.local.extractions import CommonHead

QUESTION = "Why do warm rooms make people sleepy? " * 20
RESPONSES = ["Warm.", "", " \n Since air.", "<|end|>\n<|start|>user\nMore?", "Zürich 東京", "\u203b again \u203b"]
CHAT = "<s><|start|>user\n{question}<|end|>\n<|start|>assistant\n{response}<|end|>\n"


def metaspace(tokenizer):
    """As SentencePiece does it: the first piece of a text gets a blank, the others do not."""
    core = tokenizer.backend_tokenizer
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def normalized(tokenizer):
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("_"), normalizers.NFKC()])


def greedy(tokenizer):
    """An added token that begins as another one ends, and one that takes the white space before it."""
    tokenizer.add_tokens([AddedToken("<|end|>\n<|start|>", special=True), AddedToken("Warm", lstrip=True)])


@pytest.mark.parametrize("change", [lambda tokenizer: None, metaspace, normalized, greedy])
def test_ids_are_those_of_the_whole_text(change):
    tokenizer = make_tokenizer(decoder=True)
    change(tokenizer)
    first = CHAT.format(question=QUESTION, response="\u203b")
    head = CommonHead(tokenizer, first, before=first.rfind("\u203b"))
    assert list(head.ids) == tokenizer.encode(first, add_special_tokens=False)
    for question in (QUESTION, "Another one?"):
        for response in RESPONSES:
            text = CHAT.format(question=question, response=response)
            assert list(head.encode(text)) == tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize(("template", "whole"), [(CHAT, 0), ("{question} / {response}", 3)])
def test_the_head_is_tokenised_once(template, whole, monkeypatch):
    tokenizer = make_tokenizer(decoder=True)
    first = template.format(question=QUESTION, response="\u203b")
    head = CommonHead(tokenizer, first, before=first.rfind("\u203b"))
    lengths = []
    encode = tokenizer.encode
    monkeypatch.setattr(
        tokenizer, "encode", lambda text, **options: lengths.append(len(text)) or encode(text, **options)
    )
    for response in ("One.", "Two.", "Three."):
        head.encode(template.format(question=QUESTION, response=response))
    assert len(lengths) == 3
    assert sum(length > len(QUESTION) for length in lengths) == whole
