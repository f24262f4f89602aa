"""SLMRec against the paper's equations: views, fusion, both contrasts, weight decay."""

from __future__ import annotations

import dataclasses

import torch

from mmssl.config import load_config
from mmssl.training.task import create_task
from tests.models.truth import double, light_convolution


def task_for(dataset, *settings):
    return create_task("slmrec", dataset, load_config(settings=[*settings]))


def apply(layer, x):
    return x @ double(layer.weight).T + double(layer.bias)


def info_nce(anchor, positive, temperature):
    """-log of the positive's share among all positives of the batch, by cosine."""
    anchor, positive = (x / x.norm(dim=1, keepdim=True) for x in (anchor, positive))
    likelihood = torch.exp(anchor @ positive.T / temperature)
    return -torch.log(likelihood.diagonal() / likelihood.sum(1)).mean()


def test_embeddings_and_losses_are_those_of_the_paper(tiny_dataset):
    settings = (
        "num_layers=2",
        "temperature=0.3",
        "contrast_weight=0.6",
        "contrast_temperature=0.7",
    )
    task = task_for(tiny_dataset, "model.embedding_dim=8", *(f"slmrec.{s}" for s in settings))
    model = task.model
    users, items = map(double, model.ego())
    projected = []
    for rows, layer in zip(tiny_dataset.features.values(), model.projections.layers, strict=True):
        raw = torch.from_numpy(rows).double()
        projected.append(apply(layer, raw / raw.norm(dim=1, keepdim=True)))
    views = [light_convolution(task.graph, users, x, 2) for x in (items, *projected)]
    user = apply(model.fuse_user, torch.cat([view[0] for view in views], 1))
    item = apply(model.fuse_item, torch.cat([view[1] for view in views], 1))
    for got, expected in zip(task.embed(), (user, item), strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)

    task.start_epoch(0, 0)
    batch = task._draw(0)
    losses = task.losses(batch)
    ids, image, text = (view[1][batch.pos_item] for view in views)
    # Image against the IDs first, then text against what both have in common.
    first = apply(model.coarse[0], ids)
    second = apply(model.coarse[1], first)
    assert second.shape[1] == 4
    contrast = info_nce(first, apply(model.fine[0], image), 0.7)
    contrast = contrast + info_nce(second, apply(model.fine[1], text), 0.7)
    expected = {
        "ranking": info_nce(user[batch.user], item[batch.pos_item], 0.3),
        "contrast": 0.6 * contrast,
    }
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss.double(), expected[name], rtol=1e-5, atol=1e-6)
    sum(losses.values()).backward()
    assert all(bool(parameter.grad.any()) for parameter in model.parameters())


def test_images_come_first(tiny_dataset):
    features = {name: tiny_dataset.features["text"] for name in ("audio", "text")}
    features["image"] = tiny_dataset.features["image"][:, :5].copy()
    task = task_for(dataclasses.replace(tiny_dataset, features=features))
    assert [layer.in_features for layer in task.model.projections.layers] == [5, 12, 12]


def test_weight_decay_moves_parameters_without_a_gradient(tiny_dataset):
    for weight in (0.0, 0.5):
        task = task_for(tiny_dataset, f"slmrec.weight_decay={weight}")
        table = task.model.user_embedding
        table.grad = torch.zeros_like(table)
        before = table.detach().clone()
        task.optimizer.step()
        assert torch.equal(table, before) == (weight == 0)
        assert bool(table.norm() <= before.norm())
