"""BM3 against the paper's equations: embeddings, each loss, stopped gradients."""

from __future__ import annotations

import pytest
import torch

from mmssl.config import load_config
from mmssl.training.task import create_task
from tests.models.truth import double, light_convolution


def task_for(dataset, *settings):
    return create_task("bm3", dataset, load_config(settings=[*settings]))


def distance(x, y):
    """The mean over the rows of 1 - cos(x, y)."""
    rows = zip(x, y, strict=True)
    return torch.stack([1 - a @ b / (a.norm() * b.norm()) for a, b in rows]).mean()


@pytest.fixture
def case(tiny_dataset):
    """A task without dropout, h in float64, the projected features and the predictor."""
    settings = ("num_layers=2", "dropout=0.0", "modality_weight=0.7", "reg=3.0")
    task = task_for(tiny_dataset, "model.embedding_dim=8", *(f"bm3.{name}" for name in settings))
    model = task.model
    user, item = light_convolution(task.graph, *map(double, model.ego()), 2)
    item = item + double(model.item_embedding)
    features = [
        torch.from_numpy(rows).double() @ double(layer.weight).T + double(layer.bias)
        for rows, layer in zip(
            tiny_dataset.features.values(), model.projections.layers, strict=True
        )
    ]

    def predict(x):
        return x @ double(model.predictor.weight).T + double(model.predictor.bias)

    task.start_epoch(0, 0)
    return task, user, item, features, predict


def test_embeddings_and_losses_are_those_of_the_paper(case):
    task, user, item, features, predict = case
    for got, expected in zip(task.embed(), (predict(user), predict(item)), strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)
    batch = task._draw(0)
    u, i = user[batch.user], item[batch.pos_item]
    expected = {
        "graph": distance(predict(u), i) + distance(predict(i), u),
        "modalities": 0,
        "l2": 3 * (user.square().sum().sqrt() + item.square().sum().sqrt()) / 50,
    }
    for rows in features:
        f = rows[batch.pos_item]
        expected["modalities"] += 0.7 * (distance(predict(f), i) + distance(predict(f), f))
    losses = task.losses(batch)
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_targets_get_no_gradient(case):
    """Without the L2 term, only the predicted side moves: here, the projections."""
    task, *_ = case
    losses = task.losses(task._draw(0))
    losses["modalities"].backward()
    assert all(table.grad is None for table in task.model.ego())
    assert all(bool(layer.weight.grad.any()) for layer in task.model.projections.layers)


def test_features_are_trained(tiny_dataset):
    """As in the authors' code; the data set's own arrays stay as they are."""
    task = task_for(tiny_dataset, "bm3.batch_size=16")
    task.start_epoch(0, 0)
    before = {name: rows.copy() for name, rows in tiny_dataset.features.items()}
    starts = [getattr(task.model.projections, f"raw_{m}").detach().clone() for m in range(2)]
    batch = task._draw(0)
    task.train_on(batch)
    untouched = torch.ones(50, dtype=torch.bool).index_fill(0, batch.pos_item, value=False)
    assert untouched.any()
    for m, (start, rows) in enumerate(zip(starts, before.values(), strict=True)):
        trained = task.model.state_dict()[f"projections.raw_{m}"]
        assert torch.equal(start, torch.from_numpy(rows)) and not torch.equal(trained, start)
        assert torch.equal(trained[untouched], start[untouched])
    for name, rows in tiny_dataset.features.items():
        assert (rows == before[name]).all()


def test_dropout_perturbs_the_targets_only(tiny_dataset):
    task = task_for(tiny_dataset, "bm3.dropout=0.4")
    rows = torch.ones(500, 64, requires_grad=True)
    target = task._target(rows)
    assert not target.requires_grad
    assert (target == 0).double().mean() == pytest.approx(0.4, abs=0.02)  # > 6 sigma
    task.model.train()
    assert torch.equal(task.model().item, task.model().item)
