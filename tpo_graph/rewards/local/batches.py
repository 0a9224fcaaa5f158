"""Which texts run in one forward pass, and on which shared prefix: pure functions over lengths and token ids."""

from collections.abc import Sequence
from dataclasses import dataclass

from tpo_graph.rewards.local.encoding import EncodedText, TokenIds

MAX_ROWS = 128
"""Rows of a batch; more gain nothing on any device, and would make the search for the best division slow."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts for one forward pass.

    Attributes:
        prefix: token ids that all texts begin with, whose keys and values are reused; () for none.
        texts: the texts to score.
    """

    prefix: TokenIds
    texts: tuple[EncodedText, ...]


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What a forward pass may hold and what it costs on a device.

    Attributes:
        tokens: tokens of a batch, padding included. A text that is longer runs alone.
        continued_tokens: the same for texts that go on from a shared prefix, which is not counted.
        pass_tokens: the fixed cost of a pass, in tokens that could run in the same time: padding up to this is worth
            a pass saved.
        prefix_rows: tokens of a batch on a shared prefix, each row counted with the whole prefix (memory of attention).
    """

    tokens: int
    continued_tokens: int
    pass_tokens: int
    prefix_rows: int

    @classmethod
    def of_device(cls, kind: str, batch_tokens: int | None) -> "BatchLimits":
        """Return the limits of a device.

        A CPU is busy with some two hundred tokens: measured, larger batches only add padding, and attention masks that
        make it slower than one text at a time. Texts on a shared prefix need the mask anyway. An accelerator idles
        until there are thousands.

        Args:
            kind: torch's name for it, such as `cpu` or `cuda`.
            batch_tokens: tokens of a batch; None for the device's own.
        """
        if kind == "cpu":
            continued_tokens = batch_tokens or 384
            return cls(batch_tokens or 192, continued_tokens, pass_tokens=20, prefix_rows=18_000)
        tokens = batch_tokens or 16_384
        return cls(tokens, continued_tokens=tokens, pass_tokens=512, prefix_rows=8 * tokens)


def split_by_length(texts: Sequence[EncodedText], limits: BatchLimits, *, skipped: int = 0) -> list[list[EncodedText]]:
    """Divide texts into the batches that cost least: a pass costs its rows times its longest row, and a fixed part.

    Args:
        texts: in any order.
        limits: of a pass.
        skipped: ids at the start of each text that are not run again.

    Returns:
        Batches of similar length, the longest first, so that too little memory shows at once.
    """
    tokens = limits.continued_tokens if skipped else limits.tokens
    ordered = sorted(texts, key=lambda text: len(text.ids), reverse=True)
    # cheapest[i]: the cost of the texts from i on, and where the batch that starts at i ends
    cheapest: list[tuple[int, int]] = [(0, 0)] * (len(ordered) + 1)
    for start in range(len(ordered) - 1, -1, -1):
        longest = len(ordered[start].ids) - skipped
        last = min(start + max(min(tokens // longest, MAX_ROWS), 1), len(ordered))
        cheapest[start] = min(
            (limits.pass_tokens + (end - start) * longest + cheapest[end][0], end) for end in range(start + 1, last + 1)
        )
    batches = []
    start = 0
    while start < len(ordered):
        end = cheapest[start][1]
        batches.append(ordered[start:end])
        start = end
    return batches


def prefix_of(texts: Sequence[EncodedText]) -> TokenIds:
    """The longest start that texts of one conversation can share; () when they share none.

    Every text keeps at least one token after it, and all its positions.
    """
    length = min(min(text.shared, len(text.ids) - 1, *text.positions) for text in texts)
    return texts[0].ids[: max(length, 0)]


def worthwhile(limits: BatchLimits, *, prefix: int, texts: int, total: int, kept: bool) -> bool:
    """Whether a prefix is worth a pass of its own.

    Splitting a text costs a pass, and masked attention over the prefix is slower than plain causal attention, so that
    a small saving is none.

    Args:
        limits: of a pass.
        prefix: its tokens.
        texts: how many texts share it.
        total: tokens of all these texts.
        kept: whether it was run before.
    """
    saved = prefix * (texts if kept else texts - 1)
    return saved >= 4 * limits.pass_tokens and saved >= 0.2 * total
