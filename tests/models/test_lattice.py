"""LATTICE against the dense equations of the paper: graphs, forward, losses, gradients."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F

from mmssl.config import load_config
from mmssl.data.neighbors import Neighbors
from mmssl.models.edges import laplacian_values
from mmssl.models.lattice import initial_graph
from mmssl.training.task import create_task
from tests.models.truth import bpr, check_step, light_convolution, trainable


def task_for(dataset, *settings):
    return create_task("lattice", dataset, load_config(settings=[*settings]))


def normalized_neighbors(rows, k):
    """Equations 1 to 3: cosine, the k largest of each row, D^-1/2 S D^-1/2."""
    unit = rows / rows.norm(dim=1, keepdim=True)
    cosine = unit @ unit.T
    keep = torch.zeros_like(cosine)
    for i in range(len(rows)):
        keep[i, cosine[i].argsort(descending=True)[:k]] = 1
    graph = cosine * keep
    scale = graph.sum(1) ** -0.5
    return scale[:, None] * graph * scale


def test_initial_graph_is_that_of_the_paper(tiny_dataset):
    got = initial_graph(tiny_dataset, "text", 4).ui.to_dense(torch.float64)
    expected = normalized_neighbors(torch.from_numpy(tiny_dataset.features["text"]).double(), 4)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


def test_neighbor_lists_keep_their_values(tiny_dataset):
    listed = Neighbors.from_edges([0, 0, 7], [1, 2, 0], [0.5, 0.25, 0.75])
    dataset = dataclasses.replace(tiny_dataset, neighbors={"text": listed})
    got = initial_graph(dataset, "text", 4).ui.to_dense(torch.float64)
    expected = torch.eye(50, dtype=torch.float64)
    expected[0, :3] = torch.tensor([1 / 1.75, 0.5 * 1.75**-0.5, 0.25 * 1.75**-0.5])
    expected[7, 7], expected[7, 0] = 1 / 1.75, 0.75 / 1.75
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


def test_rows_without_a_positive_sum_have_no_neighbors():
    row, column = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 0, 2])
    value = torch.tensor([1.0, -1.0, 4.0, 0.25], requires_grad=True)
    got = laplacian_values(row, column, value, 3)
    assert got.tolist() == [0, 0, 0, 1]
    got.sum().backward()
    assert bool(value.grad.isfinite().all())


def test_forward_losses_and_gradients_are_those_of_the_paper(tiny_dataset):
    settings = ("num_layers=1", "num_item_layers=2", "num_neighbors=5", "initial_weight=0.6")
    settings = ["model.embedding_dim=8", "lattice.reg=0.3", *(f"lattice.{s}" for s in settings)]
    task = task_for(tiny_dataset, *settings)
    model = task.model
    with torch.no_grad():
        model.modality_weight.copy_(torch.tensor([0.4, -0.3]))
    task.start_epoch(0, 0)
    batch = task._draw(0)
    losses = task.losses(batch)
    sum(losses.values()).backward()

    parameters = trainable(model)
    items = parameters["item_embedding"]
    user, item = light_convolution(task.graph, parameters["user_embedding"], items, 1)
    shares = torch.exp(parameters["modality_weight"])
    total = 0
    for m, rows in enumerate(tiny_dataset.features.values()):
        raw = torch.from_numpy(rows).double()
        weight, bias = (parameters[f"projections.layers.{m}.{n}"] for n in ("weight", "bias"))
        learned = normalized_neighbors(raw @ weight.T + bias, 5)
        both = 0.6 * normalized_neighbors(raw, 5) + 0.4 * learned
        total = total + shares[m] / shares.sum() * both
    neighborhood = total @ total @ items
    item = item + neighborhood / neighborhood.norm(dim=1, keepdim=True)
    u, i, j = batch
    squares = sum((rows**2).sum() for rows in (user[u], item[i], item[j]))
    expected = {"bpr": bpr(user, item, batch), "l2": 0.3 * squares / (2 * len(u))}
    check_step(task, losses, expected, (user, item), parameters, 2e-5)


def test_neighbors_change_with_the_epoch_only(tiny_dataset):
    task = task_for(tiny_dataset, "lattice.lr=0.05", "lattice.batch_size=100")
    task.start_epoch(0, 0)
    first = task.model.neighbors.clone()
    for number in range(task.steps_per_epoch):
        task.step(number)
        assert torch.equal(task.model.neighbors, first)
    task.start_epoch(1, 0)
    assert not torch.equal(task.model.neighbors, first)
    unit = [F.normalize(features) for features in task.model.projections()]
    nearest = (unit[0] @ unit[0].T).topk(10).indices
    assert torch.equal(task.model.neighbors[0].sort().values, nearest.sort().values)
