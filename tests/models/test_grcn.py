"""GRCN against the paper's equations, with dense attention matrices."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mmssl.config import load_config
from mmssl.graph import InteractionGraph
from mmssl.models.edges import edge_products
from mmssl.training.task import create_task
from tests.models.truth import bpr, check_step, trainable


def unit(x):
    return x / x.norm(dim=1, keepdim=True)


def attention(rows, columns, adjacency):
    """The softmax over the neighbors of each row; 0 for a row without neighbors."""
    weight = torch.exp(rows @ columns.T) * adjacency
    return weight / weight.sum(1, keepdim=True).clamp(min=1e-300)


def dense_grcn(parameters, features, adjacency, num_layers, num_routings):
    """Refining layers, edge weights and graph convolution, (U, I) matrices throughout."""
    contents, to_user, to_item = [], [], []
    for m, raw in enumerate(features):
        weight, bias = (parameters[f"projections.layers.{m}.{n}"] for n in ("weight", "bias"))
        f = raw @ weight.T + bias
        f = unit(torch.where(f > 0, f, 0.01 * f))
        p = unit(parameters[f"preferences.{m}"])
        for _ in range(num_routings):
            p = unit(p + attention(p, f, adjacency) @ f)
        ui, iu = attention(p, f, adjacency), attention(f, p, adjacency.T)
        contents.append((p + ui @ f, f + iu @ p))
        to_user.append(ui * parameters["item_confidence"][:, m])
        to_item.append(iu * parameters["user_confidence"][:, m])
    ui = torch.stack(to_user).max(0).values.clamp(min=0)
    iu = torch.stack(to_item).max(0).values.clamp(min=0)
    user, item = unit(parameters["user_embedding"]), unit(parameters["item_embedding"])
    total = [user, item]
    for _ in range(num_layers):
        user, item = ui @ item, iu @ user
        total = [total[0] + user, total[1] + item]
    return [torch.cat((ids, *(c[n] for c in contents)), 1) for n, ids in enumerate(total)]


def test_embeddings_losses_and_gradients_are_those_of_the_paper(tiny_dataset):
    settings = ["model.embedding_dim=8", "grcn.reg=0.3", "grcn.num_routings=2"]
    task = create_task("grcn", tiny_dataset, load_config(settings=settings))
    model = task.model
    task.start_epoch(0, 0)
    batch = task._draw(0)
    losses = task.losses(batch)
    sum(losses.values()).backward()

    parameters = trainable(model)
    adjacency = torch.zeros(80, 50, dtype=torch.float64)
    adjacency[tiny_dataset.train.user, tiny_dataset.train.item] = 1
    features = [torch.from_numpy(rows).double() for rows in tiny_dataset.features.values()]
    user, item = dense_grcn(parameters, features, adjacency, 2, 2)
    assert user.shape == (80, 24)
    u, i, j = batch
    squares = [parameters["user_embedding"][u], parameters["item_embedding"][torch.cat((i, j))]]
    squares += [parameters[f"preferences.{m}"][u] for m in range(2)]
    l2 = 0.3 * sum((rows**2).mean() for rows in squares)
    expected = {"bpr": bpr(user, item, batch), "l2": l2}
    check_step(task, losses, expected, (user, item), parameters, 1e-4)


def test_products_of_the_ends_of_edges():
    generator = torch.Generator().manual_seed(0)
    user, item = (
        torch.randn(n, 3, dtype=torch.float64, generator=generator, requires_grad=True)
        for n in (4, 5)
    )
    ids = torch.tensor([0, 0, 1, 3]), torch.tensor([4, 1, 1, 2])
    graph = InteractionGraph.from_edges(*ids, 4, 5, normalization="none")
    row, column = graph.ui.row_of_edge(), graph.index.col.long()
    expected = (user[row] * item[column]).sum(1)
    got = edge_products(graph, user, item)
    torch.testing.assert_close(got, expected)
    weight = F.normalize(torch.arange(4.0, dtype=torch.float64), dim=0)
    for a, b in zip(
        torch.autograd.grad((got.sin() * weight).sum(), (user, item)),
        torch.autograd.grad((expected.sin() * weight).sum(), (user, item)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        assert not edge_products(graph, user, item).requires_grad
