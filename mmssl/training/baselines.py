"""Training of the LightGCN baseline: BPR over the train edges, early stopping on validation.

Legend: U users, I items, E train edges, B edges of a batch, D embedding dim.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mmssl import ops
from mmssl.errors import Diverged, InputError
from mmssl.evaluation import Evaluator
from mmssl.graph import InteractionGraph
from mmssl.models.lightgcn import IdEmbeddings, LightGCN
from mmssl.training.checkpoint import Checkpoint
from mmssl.training.guards import Interrupted, check_finite, deterministic
from mmssl.training.state import optimizer_state, prefixed, restore_optimizer, section

if TYPE_CHECKING:
    from mmssl.data.dataset import InteractionDataset

SELECTION_METRIC = "recall@20"


class BaselineEpoch(NamedTuple):
    """One epoch of a baseline's training."""

    epoch: int  # from 1
    loss: float  # mean over the batches
    val: dict[str, float]  # metrics on the validation split
    seconds: float  # training and validation


@dataclass(frozen=True, kw_only=True)
class BaselineResult:
    """A trained baseline, as it was at its best epoch on validation."""

    embeddings: IdEmbeddings
    """Final (propagated) embeddings, user (U, D) and item (I, D)."""
    best_epoch: int
    val: dict[str, float]
    """Metrics on validation at the best epoch."""
    test: dict[str, float] | None
    """Metrics on test, read once, after training; None when it was not to be read."""
    epochs: list[BaselineEpoch]
    seconds: float
    """Wall clock of the whole training."""


def train_lightgcn(
    dataset: InteractionDataset,
    graph: InteractionGraph,
    *,
    epochs: int,
    lr: float = 1e-3,
    reg: float = 1e-4,
    batch_size: int = 2048,
    seed: int = 2022,
    patience: int = 50,
    embedding_dim: int = 64,
    num_layers: int = 3,
    progress: Callable[[BaselineEpoch], None] | None = None,
    test: bool = True,
    resume: Checkpoint | None = None,
    save: Callable[[Checkpoint], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> BaselineResult:
    """Trains LightGCN and keeps the epoch with the best validation Recall@20.

    Every epoch goes once through all train edges in random order, each with one negative drawn
    uniformly from the items its user has no train edge to. Loss: BPR plus
    ``reg * (|u|^2 + |pos|^2 + |neg|^2) / (2 B)`` of the batch's ego embeddings; Adam.

    Args:
        dataset: Validation picks the epoch; test is read once at the end.
        graph: The train graph, any normalisation (its edges are used with "sym"), on the device to
            train on.
        epochs: At most this many.
        lr: Learning rate.
        reg: Weight of the L2 term.
        batch_size: B.
        seed: Seeds initial values, order of edges and negatives; the global generator is left
            as it was found.
        patience: Stop after this many epochs without a better validation Recall@20. Keep it
            generous: BPR first learns popularity, and validation stands still there for a dozen
            epochs (MovieLens-100K, lr 1e-3: epochs 3 to 16) before it rises by half again. A short
            patience stops on that plateau and leaves a baseline too weak to compare with.
        embedding_dim: D.
        num_layers: Propagation layers.
        progress: Called after each epoch; whatever it raises ends the training.
        test: False leaves the test split unread.
        resume: What ``save`` was given, to go on from there, bit for bit.
        save: Takes the state after each epoch.
        should_stop: Polled between steps.

    Raises:
        InputError: an argument out of range, a graph that doesn't fit the data set, no edge to
            learn from, or a state of another model.
        Diverged: the loss or a parameter is no longer finite; ``save`` has not seen it.
        Interrupted: on request; the state is that of the last ``save``.
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("patience", patience)):
        if value < 1:
            raise InputError(f"{name}: expected at least 1, got {value}")
    if not lr > 0:
        raise InputError(f"lr: expected a positive number, got {lr}")
    if not reg >= 0:
        raise InputError(f"reg: expected a number of at least 0, got {reg}")
    graph = replace(graph, normalization="sym")
    val_evaluator = Evaluator(dataset, "val", graph)
    model = _seeded_model(graph, embedding_dim, num_layers, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    generator = torch.Generator(device=graph.device).manual_seed(seed)
    edge_user, edge_item = _trainable_edges(graph)

    history: list[BaselineEpoch] = []
    best: tuple[BaselineEpoch, IdEmbeddings] | None = None
    if resume is not None:
        history, best = _restore(resume, model, optimizer, generator)
    while len(history) < epochs and (best is None or len(history) - best[0].epoch < patience):
        epoch_started = time.perf_counter()
        total = torch.zeros((), dtype=torch.float64, device=graph.device)
        num_batches = 0
        for index in _batches(edge_user.numel(), batch_size, generator):
            if should_stop():
                raise Interrupted
            user, pos_item = edge_user[index], edge_item[index]
            draw = torch.rand(
                user.numel(), generator=generator, device=user.device, dtype=torch.float64
            )
            neg_item = graph.missing_item(user, draw)
            loss = _loss(model, user, pos_item, neg_item, reg)
            optimizer.zero_grad(set_to_none=True)
            with deterministic(graph.device, True):
                loss.backward()
            optimizer.step()
            total += loss.detach()
            num_batches += 1
        epoch, mean = len(history) + 1, float(total / num_batches)
        if not math.isfinite(mean):
            raise Diverged(f"training diverged: loss term bpr is {mean} in epoch {epoch}")
        check_finite(model.state_dict(), f"after epoch {epoch}: training diverged")
        with torch.no_grad():
            embeddings = model()
        val = val_evaluator.evaluate(*embeddings)
        record = BaselineEpoch(epoch, mean, val, time.perf_counter() - epoch_started)
        history.append(record)
        if best is None or record.val[SELECTION_METRIC] > best[0].val[SELECTION_METRIC]:
            best = record, embeddings
        if progress is not None:
            progress(record)
        if save is not None:
            save(_state(model, optimizer, generator, history, best))
    assert best is not None  # epochs >= 1
    return BaselineResult(
        embeddings=best[1],
        best_epoch=best[0].epoch,
        val=best[0].val,
        test=Evaluator(dataset, "test", graph).evaluate(*best[1]) if test else None,
        epochs=history,
        seconds=sum(epoch.seconds for epoch in history),
    )


def _state(
    model: LightGCN,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    history: list[BaselineEpoch],
    best: tuple[BaselineEpoch, IdEmbeddings],
) -> Checkpoint:
    tensors = prefixed("model", model.state_dict())
    tensors.update(optimizer_state("optimizer", optimizer))
    tensors.update(prefixed("best", best[1]._asdict()))
    tensors["rng.generator"] = generator.get_state()
    state = {"best_epoch": best[0].epoch, "history": [epoch._asdict() for epoch in history]}
    return Checkpoint(tensors, state)


def _restore(
    checkpoint: Checkpoint,
    model: LightGCN,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> tuple[list[BaselineEpoch], tuple[BaselineEpoch, IdEmbeddings]]:
    tensors, state = checkpoint
    try:
        model.load_state_dict(section(tensors, "model"))
        restore_optimizer("optimizer", optimizer, tensors)
        generator.set_state(tensors["rng.generator"])
        device = model.user_embedding.device
        embeddings = {name: t.to(device) for name, t in section(tensors, "best").items()}
        history = [BaselineEpoch(**epoch) for epoch in state["history"]]
        return history, (history[state["best_epoch"] - 1], IdEmbeddings(**embeddings))
    except (KeyError, IndexError, TypeError, RuntimeError) as error:
        line = str(error).splitlines()[0]
        raise InputError(f"not a checkpoint of this configuration: {line}") from error


def _seeded_model(
    graph: InteractionGraph, embedding_dim: int, num_layers: int, seed: int
) -> LightGCN:
    # Drawn on the CPU, so that a seed means the same start on every device.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LightGCN(
            graph,
            graph.num_users,
            graph.num_items,
            embedding_dim=embedding_dim,
            num_layers=num_layers,
        )
    return model.to(graph.device)


def _trainable_edges(graph: InteractionGraph) -> tuple[Tensor, Tensor]:
    """Users and items (n,) int64 of the edges whose user lacks at least one item."""
    user, item = graph.ui.row_of_edge(), graph.index.col.long()
    keep = graph.index.rowptr.diff()[user] < graph.num_items
    if not bool(keep.any()):
        raise InputError("train split: expected an edge of a user who lacks an item, got none")
    return user[keep], item[keep]


def _batches(count: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    order = torch.randperm(count, generator=generator, device=generator.device)
    yield from order.split(batch_size)


def _loss(model: LightGCN, user: Tensor, pos_item: Tensor, neg_item: Tensor, reg: float) -> Tensor:
    user_emb, item_emb = model()
    ego = model.ego()
    rows = (ego.user[user], ego.item[pos_item], ego.item[neg_item])  # (B, D) each
    squares = torch.stack([row.square().sum() for row in rows]).sum()
    bpr = ops.bpr_loss(user_emb, item_emb, user, pos_item, neg_item)
    return bpr + reg * 0.5 * squares / user.numel()
