"""The ways in which small language models spoil an answer, done to answers of people and of better models.

Four kinds are measured: `MEASURED`. Training sees more kinds, so that a policy that is tuned against the reward finds
fewer gaps in it.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from demo_reward_data import WORD, Reply, ends_sentence, sentences

# Answers that say nothing. Written for this file; they are negatives in training only.
VACUOUS = (
    "", ".", "...", "Ok.", "Yes.", "No.", "Sure!", "Hello!", "Thanks.", "I don't know.", "I do not know.",
    "I'm not sure.", "I have no idea.", "Good question!", "Maybe.", "It depends.", "I can help with that.",
    "Sorry, I can't help.", "I don't know what to say.", "What do you mean?", "That is interesting.",
    "Here is the answer.", "Because it does.", "Sure, here you go:", "The answer is simple.", "Let me think about it.",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What a corruption works on.

    Attributes:
        reply: The intact reply.
        others: Replies to other questions (and maybe to the same).
        rng: Where chance comes from.
    """

    reply: Reply
    others: Sequence[Reply]
    rng: random.Random


Corruption = Callable[[Case], str]


def off_topic(case: Case) -> str:
    """An answer that belongs to another question."""
    while True:
        other = case.rng.choice(case.others)
        if other.key != case.reply.key:
            return other.text


def shuffled(case: Case) -> str:
    """The same words in random order."""
    words = case.reply.text.split()
    case.rng.shuffle(words)
    return " ".join(words)


def looped(case: Case) -> str:
    """One sentence or one phrase of the answer, repeated 4 to 12 times."""
    text, rng = case.reply.text, case.rng
    if rng.random() < 0.5:
        unit = rng.choice(sentences(text))
    else:
        words = text.split()
        length = rng.randint(3, 8)
        start = rng.randrange(max(1, len(words) - length))
        unit = " ".join(words[start : start + length])
    most = max(4, 200 // max(1, len(unit.split())))
    return " ".join([unit] * rng.randint(4, min(12, most)))


def cut(case: Case) -> str:
    """The answer up to a word inside one of its sentences: 20% to 95% of it."""
    text = case.reply.text
    words = list(WORD.finditer(text))
    inside = [
        word.end()
        for i, word in enumerate(words[:-1], start=1)
        if 0.2 <= i / len(words) <= 0.95 and not ends_sentence(word.group())
    ]
    end = case.rng.choice(inside) if inside else words[len(words) // 2].end()
    return text[:end].rstrip(",;- ")


def vacuous(case: Case) -> str:
    """A reply that says nothing."""
    return case.rng.choice(VACUOUS)


def echo(case: Case) -> str:
    """The user's own words, once or more often."""
    return " ".join([case.reply.prompt[-1]["content"]] * case.rng.choice((1, 1, 1, 2, 3)))


def keywords(case: Case) -> str:
    """The content words of question or answer, as a list."""
    question, answer = case.reply.prompt[-1]["content"], case.reply.text
    source = case.rng.choice((answer, question, f"{question} {answer}"))
    words = [word.strip(".,!?;:\"'()").lower() for word in source.split()]
    words = list(dict.fromkeys(word for word in words if len(word) > 3))
    case.rng.shuffle(words)
    return case.rng.choice((", ", " ", "\n")).join(words[: case.rng.randint(4, 30)] or ["words"])


def gibberish(case: Case) -> str:
    """Letters or symbols without sense, or words drawn from anywhere."""
    rng = case.rng
    count = rng.randint(3, 60)
    if rng.random() < 1 / 3:
        return " ".join(rng.choice(rng.choice(case.others).text.split()) for _ in range(count))
    signs = rng.choice((string.ascii_lowercase, string.digits + string.punctuation))
    return " ".join("".join(rng.choices(signs, k=rng.randint(1, 9))) for _ in range(count))


def changes_topic(case: Case) -> str:
    """Some sentences of the answer, or all of them, then an answer to another question."""
    parts = sentences(case.reply.text)
    kept = parts[: case.rng.randint(1, len(parts))]
    return " ".join(kept) + case.rng.choice((" ", "\n\n")) + off_topic(case)


def plays_on(case: Case) -> str:
    """The answer, then more turns of a conversation that nobody asked for."""
    names = (("User", "Assistant"), ("Human", "Assistant"), ("Question", "Answer"), ("Q", "A"))
    user, assistant = case.rng.choice(names)
    other = case.rng.choice(case.others)
    question = case.rng.choice((other, case.reply)).prompt[-1]["content"]
    return f"{case.reply.text}\n\n{user}: {question}\n\n{assistant}: {other.text}"


def stuck(case: Case) -> str:
    """The answer or its beginning, and then one sentence again and again; or the whole answer more than once."""
    parts = sentences(case.reply.text)
    if case.rng.random() < 0.35:
        return " ".join([case.reply.text] * case.rng.randint(2, 6))
    kept = parts[: case.rng.randint(1, len(parts))]
    return " ".join(kept + [case.rng.choice(kept)] * case.rng.randint(2, 8))


def partly_shuffled(case: Case) -> str:
    """Words change places only with near ones, or only in one half of the answer."""
    words, rng = case.reply.text.split(), case.rng
    if rng.random() < 0.5:
        middle = len(words) // 2
        halves = [words[:middle], words[middle:]]
        rng.shuffle(halves[rng.randrange(2)])
        return " ".join(halves[0] + halves[1])
    reach = rng.randint(2, 6)
    return " ".join(words[i] for i in sorted(range(len(words)), key=lambda i: i + rng.uniform(0, reach)))


MEASURED: dict[str, Corruption] = {"off-topic": off_topic, "shuffled": shuffled, "looped": looped, "cut": cut}

# How often training draws each kind, off-topic answers apart, which it draws for every reply.
SHARES: dict[Corruption, float] = {
    shuffled: 0.12,
    partly_shuffled: 0.1,
    looped: 0.18,
    stuck: 0.12,
    cut: 0.2,
    changes_topic: 0.06,
    plays_on: 0.04,
    vacuous: 0.04,
    echo: 0.05,
    keywords: 0.05,
    gibberish: 0.04,
}


def corrupt(case: Case) -> str:
    """Draws one corruption of a reply, in the proportions of `SHARES`."""
    return case.rng.choices(list(SHARES), list(SHARES.values()))[0](case)
