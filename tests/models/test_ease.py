"""EASE against ridge regressions of single items, its memory limit, its selected setting."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mmssl.config import load_config
from mmssl.errors import InputError
from mmssl.evaluation import Evaluator
from mmssl.models.closed_form import gram
from mmssl.models.ease import REGULARIZATIONS
from mmssl.models.item_weights import MAX_DENSE_ITEMS
from mmssl.training.task import create_task


def task_for(dataset, *settings):
    return create_task("ease", dataset, load_config(settings=settings))


def dense(dataset) -> torch.Tensor:
    """The (U, I) train interactions in float64."""
    matrix = torch.zeros(dataset.num_users, dataset.num_items, dtype=torch.float64)
    matrix[dataset.train.user, dataset.train.item] = 1
    return matrix


@pytest.mark.parametrize("reg", [0.5, 50.0])
def test_weights_are_ridge_regressions_on_the_other_items(tiny_dataset, reg):
    """The objective of the paper falls apart into one regression per item."""
    x = dense(tiny_dataset)
    scorer = task_for(tiny_dataset, f"ease.reg={reg}").embed()
    expected = torch.zeros(50, 50, dtype=torch.float64)
    for item in range(50):
        others = [j for j in range(50) if j != item]
        rest = x[:, others]
        square = rest.T @ rest + reg * torch.eye(49, dtype=torch.float64)
        expected[others, item] = torch.linalg.solve(square, rest.T @ x[:, item])
    torch.testing.assert_close(scorer.weight.double(), expected, rtol=1e-5, atol=1e-7)
    users = torch.arange(80)
    torch.testing.assert_close(scorer.scores(users).double(), x @ expected, rtol=1e-5, atol=1e-6)


def test_gram_counts_common_users(tiny_dataset):
    x = dense(tiny_dataset)
    assert torch.equal(gram(task_for(tiny_dataset).graph), x.T @ x)


def test_the_setting_is_selected_on_validation(tiny_dataset):
    task = task_for(tiny_dataset)
    chosen = task.embed()
    evaluator = Evaluator(tiny_dataset, "val", task.graph)
    recalls = {
        reg: evaluator.evaluate(task_for(tiny_dataset, f"ease.reg={reg}").embed())["recall@20"]
        for reg in REGULARIZATIONS
    }
    assert task.selected == {"ease.reg": max(recalls, key=recalls.get)}
    assert evaluator.evaluate(chosen)["recall@20"] == max(recalls.values())


def test_a_catalog_that_is_too_large(tiny_dataset):
    large = dataclasses.replace(tiny_dataset, num_items=MAX_DENSE_ITEMS + 1, features={})
    with pytest.raises(
        InputError, match=r"model ease: expected at most 20000 items, .*, got 20001"
    ):
        task_for(large)


def test_bad_settings():
    for value in ("0", "-1.0", '"test"'):
        with pytest.raises(InputError, match="ease.reg: expected"):
            load_config(settings=[f"ease.reg={value}"])
