"""FREEDOM against the dense equations of the paper, its frozen graph, its losses, its training."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from mmssl.config import load_config
from mmssl.data.neighbors import Neighbors
from mmssl.models.item_graph import frozen_item_graph, modality_weights
from mmssl.training.task import create_task
from tests.models.truth import bpr, double, light_convolution


def task_for(dataset, *settings):
    return create_task("freedom", dataset, load_config(settings=[*settings]))


def dense_frozen_graph(features: dict[str, np.ndarray], weights: dict[str, float], k: int):
    """Equations 1 to 4: cosine, the k largest of each row, D^-1/2 N D^-1/2, weighted sum."""
    total = 0
    for name, rows in features.items():
        unit = rows.astype(np.float64)
        unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
        cosine = unit @ unit.T
        neighbor = np.zeros_like(cosine)
        for i, row in enumerate(cosine):
            neighbor[i, np.argsort(-row)[:k]] = 1  # the first is the item itself
        scale = np.diag(neighbor.sum(1) ** -0.5)
        total = total + weights[name] * scale @ neighbor @ scale
    return torch.from_numpy(total)


def test_frozen_graph_is_that_of_the_paper(tiny_dataset):
    weights = {"image": 0.1, "text": 0.9}
    got = frozen_item_graph(tiny_dataset, weights, 4).ui.to_dense(torch.float64)
    expected = dense_frozen_graph(tiny_dataset.features, weights, 4)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


def test_neighbor_lists_and_items_without_content(tiny_dataset):
    text = tiny_dataset.features["text"].copy()
    text[3] = 0
    listed = Neighbors.from_edges([0, 0, 7], [1, 2, 0], [1.0, 3.0, 0.5])  # values have no effect
    dataset = dataclasses.replace(
        tiny_dataset, features={"text": text}, neighbors={"image": listed}
    )
    got = frozen_item_graph(dataset, {"image": 1.0}, 10).ui.to_dense(torch.float64)
    expected = torch.eye(50, dtype=torch.float64)
    expected[0, :3] = torch.tensor([1 / 3, 3**-0.5, 3**-0.5])
    expected[7, 7], expected[7, 0] = 1 / 2, (2 * 3) ** -0.5
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)
    row = frozen_item_graph(dataset, {"text": 1.0}, 10).ui.to_dense()[3]
    assert row.nonzero().tolist() == [[3]] and row[3] == 1


def test_weights_of_modalities():
    assert modality_weights(["audio", "image", "text"], 0.2) == {
        "audio": 0.4,
        "image": 0.2,
        "text": 0.4,
    }
    assert modality_weights(["image"], 0.2) == {"image": 1.0}
    assert modality_weights(["audio", "text"], 0.2) == {"audio": 0.5, "text": 0.5}


def test_forward_and_losses_are_those_of_the_paper(tiny_dataset):
    settings = ("num_layers=2", "num_item_layers=2", "num_neighbors=4", "reg=0.3", "prune=0.5")
    task = task_for(
        tiny_dataset, "model.embedding_dim=8", *(f"freedom.{name}" for name in settings)
    )
    task.start_epoch(0, 0)
    assert task.pruned.nnz == task.graph.nnz - task.graph.nnz // 2
    batch = task._draw(0)
    losses = task.losses(batch)

    model = task.model
    users, items = map(double, model.ego())
    item_graph = dense_frozen_graph(tiny_dataset.features, {"image": 0.1, "text": 0.9}, 4)

    def embed(graph):
        user, item = light_convolution(graph, users, items, 2)
        return user, item + item_graph @ item_graph @ items

    user, item = embed(task.pruned)
    projected = [
        torch.from_numpy(rows).double() @ double(layer.weight).T + double(layer.bias)
        for rows, layer in zip(
            tiny_dataset.features.values(), model.projections.layers, strict=True
        )
    ]
    torch.testing.assert_close(losses["bpr"].double(), bpr(user, item, batch), rtol=1e-5, atol=1e-6)
    expected = 0.3 * sum(bpr(user, features, batch) for features in projected)
    torch.testing.assert_close(losses["features"].double(), expected, rtol=1e-5, atol=1e-6)
    # What ranks items is propagated over all train edges.
    for got, truth in zip(task.embed(), embed(task.graph), strict=True):
        torch.testing.assert_close(got.double(), truth, rtol=1e-5, atol=1e-6)
    sum(losses.values()).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert all(bool(model.get_parameter(name).grad.any()) for name in trained)
    # A bias is the same for both items of a triple.
    constant = {f"projections.layers.{number}.bias" for number in range(len(projected))}
    assert trained == {name for name, _ in model.named_parameters()} - constant


def test_without_pruning_and_projections(tiny_dataset):
    task = task_for(tiny_dataset, "freedom.prune=0.0")
    task.start_epoch(0, 0)
    assert task.pruned is task.graph
    assert len(list(task.model.parameters())) == 2
    assert task.step(0)[task.terms.index("features")] == 0
