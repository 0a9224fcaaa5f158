"""The training, in three rounds.

1. `topic`: the whole of MiniLM learns, on short snippets, to say whether an answer belongs to its question. Its
   pretraining makes that easy; a network with its lower layers alone does not find it by itself.
2. `whole`: it learns to tell an intact answer from a spoilt one, in all the ways of `demo_reward_corruptions`, and how
   far apart two responses of a preference pair are, on whole conversations.
3. `small`: fewer layers, fewer neurons, narrower embeddings; the small network imitates the whole one, layer by layer,
   on the same batches. What is pruned before it knows its task learns it far more slowly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from demo_reward_batches import Batch, Batches, Link
from demo_reward_model import from_minilm, in_order, padded, save, score_batch
from demo_reward_shrink import fit_embeddings, narrow, neuron_importance
from rich.console import Console
from transformers import ElectraForSequenceClassification

WHOLE_STEPS = 280
SMALL_STEPS = 280
KEPT_LAYERS = (0, 1, 2, 3, 5)
INNER = 896
EMBEDDING = 160
REWARD_DECAY = 1e-3  # keeps rewards near zero, so that none runs away on odd text

Loss = Callable[[Batch], torch.Tensor]


def comparison_loss(scores: torch.Tensor, links: Sequence[Link]) -> torch.Tensor:
    """The Bradley-Terry loss, or the distance to a known margin, with a pull of all rewards towards zero."""
    margins = scores[[link.better for link in links]] - scores[[link.worse for link in links]]
    wanted = torch.tensor([math.nan if link.margin is None else link.margin for link in links])
    known = ~wanted.isnan()
    surprise = torch.nn.functional.softplus(-margins[~known]).sum()
    surprise += torch.nn.functional.smooth_l1_loss(margins[known], wanted[known], reduction="sum")
    return surprise / len(links) + REWARD_DECAY * scores.square().mean()


def learn_from_pairs(model: ElectraForSequenceClassification) -> Loss:
    """The loss of a network that learns from the comparisons alone."""
    return lambda batch: comparison_loss(score_batch(model, batch.rows), batch.links)


def learn_from_teacher(student: ElectraForSequenceClassification, teacher: ElectraForSequenceClassification) -> Loss:
    """The loss of a network that also imitates a larger one: its scores and its hidden states."""
    states = [0, *(layer + 1 for layer in KEPT_LAYERS)]

    def loss_of(batch: Batch) -> torch.Tensor:
        scores, taught, places, apart = [], [], [], []
        for where, ids, mask in padded(batch.rows):
            with torch.no_grad():
                target = teacher(input_ids=ids, attention_mask=mask, output_hidden_states=True)
            own = student(input_ids=ids, attention_mask=mask, output_hidden_states=True)
            real = mask.bool()
            for mine, state in zip(own.hidden_states, states, strict=True):
                wanted = target.hidden_states[state][real].float()  # (tokens, 384)
                apart.append((mine[real].float() - wanted).square().mean() / wanted.var())
            scores.append(own.logits[:, 0].float())
            taught.append(target.logits[:, 0].float())
            places += where
        ordered = in_order(scores, places)
        imitation = 0.3 * torch.nn.functional.mse_loss(ordered, in_order(taught, places)) + torch.stack(apart).mean()
        return comparison_loss(ordered, batch.links) + imitation

    return loss_of


def fit(
    model: ElectraForSequenceClassification,
    loss_of: Loss,
    draw: Callable[[], Batch],
    *,
    steps: int,
    rate: float,
    console: Console,
) -> None:
    """Trains a network in place: AdamW, warm-up, linear decay, bfloat16 where it is safe.

    Args:
        model: The network.
        loss_of: Runs it on a batch.
        draw: Draws a batch.
        steps: How many batches.
        rate: The highest learning rate; the head has three times as much.
        console: Where progress goes.
    """
    for name, module in model.electra.encoder.named_modules():
        if name.endswith("attention.self.dropout") and isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # twice as fast on a CPU; the hidden dropout stays
    groups = [
        {"params": list(model.electra.parameters()), "lr": rate},
        {"params": list(model.classifier.parameters()), "lr": 3 * rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / 20, (steps - s) / steps))
    model.train()
    mean = 0.0
    for step in range(1, steps + 1):
        batch = draw()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(batch)
        loss.backward()  # type: ignore[no-untyped-call]  # the library has no types there
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        mean += (loss.item() - mean) / min(step, 40)
        if step % 20 == 0:
            console.print(f"step {step}/{steps}  loss {mean:.3f}")
    model.eval()  # type: ignore[no-untyped-call]  # the library has no types there


def shrink(
    wide: ElectraForSequenceClassification, batches: Batches, console: Console
) -> ElectraForSequenceClassification:
    """Makes the small network from the wide one; what is left out is what the comparisons miss least."""
    importance = neuron_importance(wide, learn_from_pairs(wide), batches.mixed, rounds=12)
    small = narrow(wide, importance, layers=KEPT_LAYERS, inner=INNER, width=EMBEDDING)
    rows = [row for _ in range(50) for row in batches.mixed().rows]
    missing = fit_embeddings(wide, small, rows, steps=600)
    console.print(f"the narrow embeddings miss {missing:.1%} of the variance of the wide ones")
    return small


def train_reward(data: Path, start: Path, out: Path, *, seed: int, work: Path | None, console: Console) -> None:
    """Trains the shipped reward and writes its checkpoint.

    Args:
        data: Folder with the pair files; only the training side of the split is read.
        start: Folder with all-MiniLM-L6-v2.
        out: Where the checkpoint goes.
        seed: Decides the draws and the untrained weights, in each round anew.
        work: Where the networks between the rounds are kept; a round whose network is there is not run again.
        console: Where progress goes.
    """
    batches = Batches(data, start)

    def done(name: str, make: Callable[[], ElectraForSequenceClassification]) -> ElectraForSequenceClassification:
        """Makes the network of a round, or takes it from `work`."""
        torch.manual_seed(seed)
        batches.seed(f"{seed} {name}")
        if work is not None and (work / name).exists():
            return ElectraForSequenceClassification.from_pretrained(work / name, dtype=torch.float32)
        console.print(f"round: {name}")
        model = make()
        if work is not None:
            save(model, batches.tokenizer, work / name)
        return model

    def topic() -> ElectraForSequenceClassification:
        model = from_minilm(start, batches.origin)
        fit(model, learn_from_pairs(model), batches.topics, steps=200, rate=2e-4, console=console)
        return model

    def whole() -> ElectraForSequenceClassification:
        fit(wide, learn_from_pairs(wide), batches.mixed, steps=WHOLE_STEPS, rate=2e-4, console=console)
        return wide

    def small() -> ElectraForSequenceClassification:
        model = shrink(wide, batches, console)
        fit(model, learn_from_teacher(model, wide), batches.mixed, steps=SMALL_STEPS, rate=5e-4, console=console)
        return model

    wide = done("topic", topic)
    wide = done("whole", whole)
    save(done("small", small), batches.tokenizer, out)
