"""Makes the trained network small: narrower embeddings and feed-forward layers, filled with what mattered most."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from demo_reward_batches import Batch
from demo_reward_model import padded
from transformers import ElectraForSequenceClassification

Rows = Sequence[Sequence[int]]


def neuron_importance(
    model: ElectraForSequenceClassification,
    loss_of: Callable[[Batch], torch.Tensor],
    draw: Callable[[], Batch],
    rounds: int,
) -> list[torch.Tensor]:
    """Estimates how much the loss would change without each feed-forward neuron.

    First-order: the sum of |activation x gradient| over tokens, as in Taylor pruning.

    Args:
        model: The network.
        loss_of: Runs it on a batch.
        draw: Draws a batch.
        rounds: How many batches.

    Returns:
        For each layer, one number a neuron.
    """
    layers = model.electra.encoder.layer
    sums = [torch.zeros(model.config.intermediate_size) for _ in layers]

    def watch(layer: int) -> Callable[[torch.nn.Module, object, torch.Tensor], None]:
        def after(_module: torch.nn.Module, _args: object, output: torch.Tensor) -> None:
            values = output.detach()

            def on_gradient(grad: torch.Tensor) -> None:
                sums[layer].add_((values * grad).float().abs().sum(dim=(0, 1)))

            output.register_hook(on_gradient)  # type: ignore[no-untyped-call]  # the library has no types there

        return after

    handles = []
    for number, layer in enumerate(layers):
        assert isinstance(layer.intermediate, torch.nn.Module)
        handles.append(layer.intermediate.register_forward_hook(watch(number)))
    for _ in range(rounds):
        loss_of(draw()).backward()  # type: ignore[no-untyped-call]  # the library has no types there
    model.zero_grad()
    for handle in handles:
        handle.remove()
    return sums


def narrow(
    wide: ElectraForSequenceClassification,
    importance: Sequence[torch.Tensor],
    *,
    layers: Sequence[int],
    inner: int,
    width: int,
) -> ElectraForSequenceClassification:
    """Copies a network with fewer layers, fewer feed-forward neurons and narrower, still untrained, embeddings.

    Args:
        wide: The network to copy.
        importance: What `neuron_importance` returned.
        layers: Which layers to keep, in order.
        inner: How many neurons of each feed-forward layer to keep.
        width: The new size of the embeddings.
    """
    config = copy.deepcopy(wide.config)
    config.num_hidden_layers, config.intermediate_size, config.embedding_size = len(layers), inner, width
    small = ElectraForSequenceClassification(config)
    small.classifier.load_state_dict(wide.classifier.state_dict())
    for layer, old in zip(small.electra.encoder.layer, layers, strict=True):
        weights = wide.electra.encoder.layer[old].state_dict()
        kept = importance[old].topk(inner).indices.sort().values
        weights["intermediate.dense.weight"] = weights["intermediate.dense.weight"][kept]
        weights["intermediate.dense.bias"] = weights["intermediate.dense.bias"][kept]
        weights["output.dense.weight"] = weights["output.dense.weight"][:, kept]
        layer.load_state_dict(weights)
    return small


def fit_embeddings(
    wide: ElectraForSequenceClassification, small: ElectraForSequenceClassification, rows: Rows, steps: int
) -> float:
    """Trains the narrow embeddings and their projection to give what the wide embeddings give.

    It starts from the principal components of the wide embeddings, weighted by how often each token and place occurs.

    Returns:
        The share of the wide embeddings' variance that is missing at the end.
    """
    source, target = wide.electra.embeddings.eval(), small.electra.embeddings.eval()
    project, width = small.electra.embeddings_project, small.config.embedding_size
    with torch.no_grad():
        words, places = source.word_embeddings.weight, source.position_embeddings.weight
        lengths = torch.tensor([len(row) for row in rows])
        how_often = torch.bincount(torch.tensor([i for row in rows for i in row]), minlength=len(words)).float()
        how_filled = (lengths[:, None] > torch.arange(len(places))).sum(0).float()
        # The axes of the sum of both: axes of the words alone would lose the places, and with them the word order.
        covariance, centre = torch.zeros(words.shape[1], words.shape[1]), torch.zeros(words.shape[1])
        for table, weight in ((words, how_often / how_often.sum()), (places, how_filled / how_filled.sum())):
            mean = (weight[:, None] * table).sum(0)
            covariance += (weight[:, None] * (table - mean)).T @ (table - mean)
            centre += mean
        axes = torch.linalg.eigh(covariance).eigenvectors[:, -width:]  # (384, width)
        scale = (covariance.trace() / width).rsqrt()
        target.word_embeddings.weight.copy_((words - centre) @ axes * scale)
        target.position_embeddings.weight.copy_(places @ axes * scale)
        target.token_type_embeddings.weight.zero_()
        project.weight.copy_(axes)
        project.bias.zero_()
    optimizer = torch.optim.Adam([*target.parameters(), *project.parameters()], lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    batches = list(padded(rows, 32))
    generator = torch.Generator().manual_seed(0)
    missing = 1.0
    for _ in range(steps):
        _, ids, mask = batches[int(torch.randint(len(batches), (1,), generator=generator))]
        with torch.no_grad():
            wanted = source(input_ids=ids)[mask.bool()]  # (tokens, 384)
        got = project(target(input_ids=ids)[mask.bool()])
        loss = (got - wanted).square().mean() / wanted.var()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        missing = 0.98 * missing + 0.02 * loss.item()
    return missing
