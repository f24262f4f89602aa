"""Graph filters and neighbor models against the dense equations of their papers in float64."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from mmssl.config import load_config
from mmssl.data.neighbors import Neighbors
from mmssl.errors import InputError
from mmssl.evaluation import Evaluator
from mmssl.models.gfcf import top_item_components
from mmssl.models.item_weights import MAX_DENSE_ITEMS
from mmssl.models.mmgf import WEIGHTS
from mmssl.training.task import create_task


def task_for(model, dataset, *settings):
    return create_task(model, dataset, load_config(settings=[f"{model}.{s}" for s in settings]))


def dense(dataset) -> np.ndarray:
    """The (U, I) train interactions."""
    matrix = np.zeros((dataset.num_users, dataset.num_items))
    matrix[dataset.train.user, dataset.train.item] = 1
    return matrix


def weights_of(task) -> np.ndarray:
    weight = task.embed().weight
    if not isinstance(weight, torch.Tensor):
        weight = weight.to_dense(torch.float64)
    return weight.double().numpy()


def power(values: np.ndarray, exponent: float) -> np.ndarray:
    return np.where(values > 0, np.maximum(values, 1e-300) ** exponent, 0)


@pytest.fixture(scope="module")
def dataset(tiny_dataset):
    """The small data set without the train users of item 7, without any of user 3."""
    user, item = tiny_dataset.train
    keep = (item != 7) & (user != 3)
    return dataclasses.replace(tiny_dataset, train=type(tiny_dataset.train)(user[keep], item[keep]))


@pytest.mark.parametrize("k", [5, 25])
@pytest.mark.parametrize("ideal_weight", [0.0, 0.3])
def test_gfcf(dataset, k, ideal_weight):
    x = dense(dataset)
    users, items = x.sum(1, keepdims=True), x.sum(0)
    normalized = power(users, -0.5) * x * power(items, -0.5)
    vectors = np.linalg.svd(normalized)[2][:k].T
    ideal = power(items, -0.5)[:, None] * vectors @ vectors.T * power(items, 0.5)
    expected = normalized.T @ normalized + ideal_weight * ideal
    got = weights_of(
        task_for("gfcf", dataset, f"num_components={k}", f"ideal_weight={ideal_weight}")
    )
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=2e-6)


def test_components_of_a_larger_matrix():
    """Where not all vectors are kept, the subspace is that of the largest singular values."""
    from mmssl.graph import InteractionGraph

    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 300, 4000), (rng.random(4000) ** 3 * 150).astype(np.int64)
    graph = InteractionGraph.from_edges(user, item, 300, 150, normalization="sym")
    vectors = top_item_components(graph, 10).numpy()
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(10), atol=1e-10)
    matrix = graph.ui.to_dense(torch.float64).numpy()
    _, values, rows = np.linalg.svd(matrix)
    got = np.linalg.norm(matrix @ vectors)
    assert got == pytest.approx(np.sqrt((values[:10] ** 2).sum()), rel=1e-6)
    np.testing.assert_allclose(np.abs(rows[:3] @ vectors).max(1), 1, atol=1e-6)


def refined(features: np.ndarray, alpha: float) -> np.ndarray:
    """Robust scaling, shift and asymmetric normalization, without items without content."""
    rows = features.astype(np.float64)
    known = rows.any(1)
    low, middle, high = (np.percentile(rows[known], q, axis=0) for q in (25, 50, 75))
    rows = np.where(known[:, None], (rows - middle) / (high - low), np.nan)
    rows = np.nan_to_num(rows - np.nanmin(rows))
    return power(rows.sum(1, keepdims=True), -alpha) * rows * power(rows.sum(0), alpha - 1)


def test_mmgf(dataset):
    alpha, exponent = 0.8, 0.6
    text = dataset.features["text"].copy()
    text[5] = 0
    data = dataclasses.replace(dataset, features={**dataset.features, "text": text})
    x = dense(data)
    normalized = power(x.sum(1, keepdims=True), -alpha) * x * power(x.sum(0), alpha - 1)
    parts = [power(normalized.T @ normalized, exponent)]
    for name in ("image", "text"):
        content = refined(data.features[name], alpha)
        parts.append(power(content @ content.T, exponent))
    settings = (f"alpha={alpha}", f"power={exponent}")
    fixed = task_for("mmgf", data, *settings, "modality_weights={image = 2.0, text = 30.0}")
    expected = parts[0] + 2 * parts[1] + 30 * parts[2]
    np.testing.assert_allclose(weights_of(fixed), expected, rtol=1e-4, atol=1e-6)
    assert not fixed.selected

    task = task_for("mmgf", data, *settings, "modality_weights={image = 2.0}")
    task.embed()
    evaluator = Evaluator(data, "val", task.graph)
    recalls = []
    for weight in WEIGHTS:
        given = f"modality_weights={{image = 2.0, text = {weight}}}"
        other = task_for("mmgf", data, *settings, given)
        recalls.append(evaluator.evaluate(other.embed())["recall@20"])
    chosen = WEIGHTS[recalls.index(max(recalls))]
    assert task.selected == {"mmgf.modality_weights.text": chosen}


@pytest.mark.parametrize(("k", "alpha"), [(4, 0.0), (10, 0.5), (100, 1.0)])
def test_itemknn(dataset, k, alpha):
    """Equation 4 of the paper: binary rows for j, rows of unit length for i."""
    x = dense(dataset)
    unit = x * power(x.sum(1, keepdims=True), -0.5)
    frequency = np.maximum(x.sum(0), 1)
    similarity = x.T @ unit / frequency[:, None] / frequency**alpha
    np.fill_diagonal(similarity, 0)
    expected = np.zeros_like(similarity)
    for item, row in enumerate(similarity.astype(np.float32)):  # equal ones by smaller id
        kept = np.argsort(-row, kind="stable")[:k]
        expected[item, kept] = row[kept]
    got = weights_of(task_for("itemknn", dataset, f"num_neighbors={k}", f"alpha={alpha}"))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_contentknn(dataset):
    image = dataset.features["image"].copy()
    image[5] = 0
    listed = Neighbors.from_edges([0, 0, 7], [1, 2, 0], [0.5, 3.0, 0.25])
    data = dataclasses.replace(dataset, features={"image": image}, neighbors={"text": listed})
    rows = image.astype(np.float64)
    rows = rows - rows[rows.any(1)].mean(0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosine = rows @ rows.T
    np.fill_diagonal(cosine, -np.inf)
    cosine[5] = cosine[:, 5] = -np.inf  # nothing is known about it
    expected = np.zeros((50, 50))
    for item, row in enumerate(cosine):
        for other in np.argsort(-row)[:6]:
            expected[item, other] = max(row[other], 0)
    expected[[0, 0, 7], [1, 2, 0]] += (0.5, 3.0, 0.25)
    got = weights_of(task_for("contentknn", data, "num_neighbors=6"))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_cease_is_ridge_regression_on_users_and_features(dataset):
    """One regression per item on the stacked rows of interactions and of feature columns."""
    reg, weight = 20.0, 5.0
    rows = [dense(dataset)]
    for name in ("image", "text"):
        features = dataset.features[name].astype(np.float64)
        features = features - features.mean(0)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        rows.append(np.sqrt(weight) * features.T)
    stacked = np.concatenate(rows)
    expected = np.zeros((50, 50))
    for item in range(50):
        others = [j for j in range(50) if j != item]
        rest = stacked[:, others]
        square = rest.T @ rest + reg * np.eye(49)
        expected[others, item] = np.linalg.solve(square, rest.T @ stacked[:, item])
    got = weights_of(task_for("cease", dataset, f"reg={reg}", f"weight={weight}"))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-7)


def test_settings_of_cease_are_selected_one_after_the_other(dataset):
    task = task_for("cease", dataset)
    chosen = task.embed()
    assert list(task.selected) == ["cease.reg", "cease.weight"]
    reg, weight = task.selected.values()
    half = task_for("cease", dataset, f"reg={reg}")
    assert torch.equal(half.embed().weight, chosen.weight)
    assert half.selected == {"cease.weight": weight}
    again = task_for("cease", dataset, f"reg={reg}", f"weight={weight}")
    assert torch.equal(again.embed().weight, chosen.weight) and not again.selected


@pytest.mark.parametrize("model", ["cease", "gfcf", "mmgf"])
def test_a_catalog_that_is_too_large(tiny_dataset, model):
    large = dataclasses.replace(tiny_dataset, num_items=MAX_DENSE_ITEMS + 1, features={})
    with pytest.raises(InputError, match=f"model {model}: expected at most 20000 items"):
        task_for(model, large)


def test_data_without_modalities(tiny_dataset):
    bare = dataclasses.replace(tiny_dataset, features={})
    with pytest.raises(
        InputError, match=r"model mmgf expects item features \(NAME_feat.npy\), got"
    ):
        task_for("mmgf", bare)
    with pytest.raises(InputError, match="model cease expects item features"):
        task_for("cease", bare)
    with pytest.raises(InputError, match="model contentknn expects item features .* or neighbor"):
        task_for("contentknn", bare)
    with pytest.raises(
        InputError, match="mmgf.modality_weights: expected image, text, got 'audio'"
    ):
        task_for("mmgf", tiny_dataset, "modality_weights={audio = 1.0}")
