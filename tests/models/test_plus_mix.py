"""The closed-form part of `plus`: vectors of CEASE, their weight, what a run stores and tests."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mmssl.config import load_config
from mmssl.errors import InputError
from mmssl.evaluation.evaluator import Evaluator
from mmssl.models.embeddings import Embeddings
from mmssl.models.plus import task as plus_task
from mmssl.models.plus.mix import SHARES, history_vectors, mixed, spread
from mmssl.models.plus.task import PlusTask


def task_for(dataset, *settings: str) -> PlusTask:
    fixed = ("model.embedding_dim=8", "plus.batch_size=32", "plus.mix_rank=50")
    return PlusTask(dataset, load_config("plus", settings=(*fixed, *settings)), "cpu")


def history_of(task: PlusTask) -> Embeddings:
    return history_vectors(task.dataset, task.graph, task.settings, 5)


def cease_scores(dataset, reg: float, content: float) -> torch.Tensor:
    """Solve the ridge regression of each item on all others, column by column, in float64."""
    train = torch.zeros(dataset.num_users, dataset.num_items, dtype=torch.float64)
    user, item = (torch.from_numpy(ids).long() for ids in dataset.train)
    train[user, item] = 1
    rows = [train]
    for _, features in sorted(dataset.features.items()):
        part = torch.from_numpy(features).double()
        known = part.abs().sum(1) > 0
        part = part - part[known].mean(0)
        part = torch.where(known[:, None], part / part.norm(dim=1, keepdim=True), 0 * part)
        rows.append(content**0.5 * part.T)
    data = torch.cat(rows)
    weight = torch.zeros(dataset.num_items, dataset.num_items, dtype=torch.float64)
    for item in range(dataset.num_items):
        others = [j for j in range(dataset.num_items) if j != item]
        x, y = data[:, others], data[:, item]
        identity = torch.eye(len(others), dtype=torch.float64)
        weight[others, item] = torch.linalg.solve(x.T @ x + reg * identity, x.T @ y)
    return train @ weight


@pytest.mark.parametrize("content", [0.0, 20.0])
def test_vectors_of_full_rank_have_the_scores_of_cease(tiny_dataset, content):
    task = task_for(tiny_dataset, "plus.mix_reg=30.0", f"plus.mix_content={content}")
    user, item = history_of(task)
    expected = cease_scores(tiny_dataset, 30.0, content)
    torch.testing.assert_close((user @ item.T).double(), expected, rtol=1e-4, atol=1e-5)


def test_without_features_they_are_those_of_ease(tiny_dataset):
    dataset = dataclasses.replace(tiny_dataset, features={})
    user, item = history_of(task_for(dataset))
    expected = cease_scores(dataset, 100.0, 0.0)
    torch.testing.assert_close((user @ item.T).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 8, 30])
def test_a_lower_rank_has_nearly_the_least_error(tiny_dataset, rank):
    user, item = history_of(task_for(tiny_dataset, f"plus.mix_rank={rank}"))
    assert item.shape == (50, rank)
    expected = cease_scores(tiny_dataset, 100.0, 100.0)
    error = ((user @ item.T).double() - expected).square().sum()
    least = torch.linalg.svdvals(expected)[rank:].square().sum()
    assert least <= error * (1 + 1e-3) and error < 1.3 * least


def test_the_share_is_relative_to_the_spread_of_the_scores():
    generator = torch.Generator().manual_seed(0)
    learned, history = (
        Embeddings(*(torch.rand(rows, width, generator=generator) for rows in (7, 5)))
        for width in (3, 4)
    )
    scores, more = learned.user @ learned.item.T, history.user @ history.item.T
    assert spread(learned).item() == pytest.approx(scores.std(correction=0).item(), rel=1e-5)
    user, item = mixed(learned, history, 0.3)
    assert user.shape == (7, 7) and item.shape == (5, 7)
    expected = scores + 0.3 * scores.std(correction=0) / more.std(correction=0) * more
    torch.testing.assert_close(user @ item.T, expected)
    assert mixed(learned, history, 0.0) is learned
    nothing = Embeddings(torch.zeros(7, 2), torch.zeros(5, 2))
    user, item = mixed(learned, nothing, 0.3)
    torch.testing.assert_close(user @ item.T, scores)


def test_validation_chooses_the_share(tiny_dataset):
    task = task_for(tiny_dataset)
    best = task.embed()
    evaluator = Evaluator(tiny_dataset, "val", task.graph)
    recalls, tables = [], []
    for share in SHARES:
        tables.append(task_for(tiny_dataset, f"plus.mix={share}").finish(best))
        recalls.append(evaluator.evaluate(tables[-1])["recall@20"])
    assert len(set(recalls)) > 1
    chosen = recalls.index(max(recalls))
    assert torch.equal(task.finish(best).user, tables[chosen].user)
    assert task.selected["plus.mix"] == SHARES[chosen]
    assert tables[0] is best


def test_a_catalog_that_is_too_large_gets_no_mix_unless_one_is_given(tiny_dataset, monkeypatch):
    monkeypatch.setattr(plus_task, "MAX_DENSE_ITEMS", 49)
    monkeypatch.setattr("mmssl.models.item_weights.MAX_DENSE_ITEMS", 49)
    task = task_for(tiny_dataset)
    best = task.embed()
    assert task.finish(best) is best
    assert task.selected["plus.mix"] == 0
    with pytest.raises(InputError, match="mix > 0: expected at most 49 items, since"):
        task_for(tiny_dataset, "plus.mix=0.2").finish(best)
