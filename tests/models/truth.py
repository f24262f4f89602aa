"""Dense float64 formulas that the tests of several models share, and a short training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.graph import InteractionGraph
from mmssl.ops import Triples
from mmssl.training.pairwise import PairwiseTask


def normalized_adjacency(graph: InteractionGraph) -> Tensor:
    """D^-1/2 [[0, A], [A^T, 0]] D^-1/2, (U + I, U + I)."""
    users, nodes = graph.num_users, graph.num_users + graph.num_items
    adjacency = torch.zeros(nodes, nodes, dtype=torch.float64)
    adjacency[graph.ui.row_of_edge(), users + graph.index.col.long()] = 1
    adjacency = adjacency + adjacency.T
    scale = adjacency.sum(1).clamp(min=1).rsqrt()
    return scale[:, None] * adjacency * scale


def light_convolution(
    graph: InteractionGraph, user: Tensor, item: Tensor, num_layers: int
) -> tuple[Tensor, Tensor]:
    """The mean over l of (D^-1/2 [[0, A], [A^T, 0]] D^-1/2)^l E."""
    adjacency = normalized_adjacency(graph)
    layers = [torch.cat((user, item)).double()]
    for _ in range(num_layers):
        layers.append(adjacency @ layers[-1])
    mean = torch.stack(layers).mean(0)
    return mean[: len(user)], mean[len(user) :]


def bpr(user: Tensor, item: Tensor, batch: Triples) -> Tensor:
    """BPR of the dot products."""
    u, i, j = batch
    return -F.logsigmoid((user[u] * item[i]).sum(1) - (user[u] * item[j]).sum(1)).mean()


def ego_penalty(user: Tensor, item: Tensor, batch: Triples) -> Tensor:
    """Half the squared norms of the rows of a batch, over its size."""
    u, i, j = batch
    rows = torch.cat((user[u], item[i], item[j]))
    return 0.5 * rows.square().sum() / len(u)


def contrast(anchor: Tensor, positive: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """InfoNCE of rows ``ids`` of two tables on cosines, against all rows of the second."""
    scores = F.normalize(anchor)[ids] @ F.normalize(positive).T / temperature
    return F.cross_entropy(scores, ids)


def double(tensor: Tensor) -> Tensor:
    """The same numbers in float64, without history."""
    return tensor.detach().double()


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of a model in float64, by name, to differentiate a formula by."""
    return {name: double(table).requires_grad_() for name, table in model.named_parameters()}


def check_step(
    task: PairwiseTask,
    losses: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    final: tuple[Tensor, Tensor],
    parameters: Mapping[str, Tensor],
    error: float,
) -> None:
    """Compare a task with a formula after its backward pass.

    Args:
        task: The task.
        losses: Its losses.
        expected: Those of the formula.
        final: The final embeddings by the formula.
        parameters: What the formula is differentiated by, from :func:`trainable`.
        error: Of the gradient of a parameter, in its norm.
    """
    for name, loss in losses.items():
        torch.testing.assert_close(loss.double(), expected[name], rtol=1e-5, atol=1e-6)
    sum(expected.values()).backward()
    for name, table in task.model.named_parameters():
        grad = parameters[name].grad
        assert (double(table.grad) - grad).norm() <= error * grad.norm(), name
    for got, truth in zip(task.embed(), final, strict=True):
        torch.testing.assert_close(got.double(), truth.detach(), rtol=1e-5, atol=1e-6)


def loss_of_epochs(task: PairwiseTask, epochs: int) -> list[float]:
    """The mean loss of each epoch of a training."""
    losses = []
    for epoch in range(epochs):
        task.start_epoch(epoch, 0)
        steps = [task.step(number).sum().item() for number in range(task.steps_per_epoch)]
        losses.append(sum(steps) / len(steps))
    return losses
