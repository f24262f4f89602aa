"""Item weights: scores and lists against dense formulas, both forms, what a file may hold."""

from __future__ import annotations

import pytest
import torch

from mmssl.errors import InputError
from mmssl.evaluation import Evaluator
from mmssl.graph import InteractionGraph
from mmssl.models.item_weights import ItemWeights, sparse_weights, stored_weights


def weights_of(sparse: bool) -> tuple[ItemWeights, torch.Tensor]:
    """Item weights of 6 users and 9 items, and their dense scores; user 4 has no history."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.rand(6, 9, generator=generator) < 0.4
    rows[4] = False
    history = InteractionGraph.from_edges(*rows.nonzero().T, 6, 9)  # its scales have no effect
    weight = torch.rand(9, 9, generator=generator) * (torch.rand(9, 9, generator=generator) < 0.3)
    truth = rows.double() @ weight.double()
    if not sparse:
        return ItemWeights(history, weight), truth
    row, column = weight.nonzero().T
    return ItemWeights(history, sparse_weights(row, column, weight[row, column], 9)), truth


@pytest.mark.parametrize("sparse", [False, True])
def test_scores_and_lists(sparse):
    scorer, truth = weights_of(sparse)
    users = torch.tensor([5, 0, 4, 0])
    torch.testing.assert_close(scorer.scores(users).double(), truth[users], rtol=1e-6, atol=1e-7)
    scores, items = scorer.best(users, 12, scorer.history.ui)
    for position, user in enumerate(users.tolist()):
        first, last = scorer.history.index.rowptr[user : user + 2].tolist()
        seen = set(scorer.history.index.col[first:last].tolist())
        found = [i for i in range(9) if truth[user, i] != 0 and i not in seen]
        expected = sorted(found, key=lambda i: (-truth[user, i].item(), i))
        assert items[position].tolist() == expected + [-1] * (12 - len(expected))
        assert scores[position, len(expected) :].isneginf().all()
    assert items[2].eq(-1).all()  # nothing is known about user 4
    wanted = torch.tensor([8, 2])
    torch.testing.assert_close(
        scorer.score(0, wanted).double(), truth[0, wanted], rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("sparse", [False, True])
def test_other_users_and_devices(sparse):
    scorer, truth = weights_of(sparse)
    pointer, item = scorer.history.index.rowptr, scorer.history.index.col
    lists = [item[pointer[u] : pointer[u + 1]].tolist() for u in (3, 4, 1)]
    others = scorer.for_histories(lists)
    torch.testing.assert_close(
        others.scores(torch.arange(3)).double(), truth[[3, 4, 1]], rtol=1e-6, atol=1e-7
    )
    moved = scorer.to("cpu")
    assert torch.equal(moved.scores(torch.arange(6)), scorer.scores(torch.arange(6)))
    with pytest.raises(InputError, match=r"item: expected ids in \[0, 9\), got 9"):
        scorer.for_histories([[9]])


@pytest.mark.parametrize("sparse", [False, True])
def test_stored_and_restored(sparse):
    scorer, _ = weights_of(sparse)
    again = stored_weights(scorer.tensors(), "file", scorer.history)
    assert torch.equal(again.scores(torch.arange(6)), scorer.scores(torch.arange(6)))
    assert stored_weights({"embedding.user": torch.ones(2, 2)}, "file", scorer.history) is None


@pytest.mark.parametrize(
    ("sparse", "change", "words"),
    [
        (False, {"weights.dense": torch.ones(9, 8)}, r"file: expected weights.dense of shape"),
        (False, {"weights.dense": torch.ones(9, 9).double()}, r"got \(9, 9\) torch.float64"),
        (True, {"weights.rowptr": torch.arange(9)}, "expected weights.rowptr of 9 rows"),
        (True, {"weights.rowptr": torch.arange(10)}, "expected weights.rowptr of 9 rows"),
        (True, {"weights.value": None}, "expected vectors weights.rowptr, weights.col"),
        (True, {"weights.col": "shift"}, r"file: weights.col, weights.value: item: expected ids"),
        (True, {"weights.value": "inf"}, r"file: weights.col, weights.value: .*finite"),
    ],
)
def test_malformed_files(sparse, change, words):
    scorer, _ = weights_of(sparse)
    tensors = scorer.tensors()
    for name, value in change.items():
        if value is None:
            del tensors[name]
        elif isinstance(value, str):
            tensors[name] = tensors[name] + (9 if value == "shift" else float("inf"))
        else:
            tensors[name] = value
    with pytest.raises(InputError, match=words):
        stored_weights(tensors, "file", scorer.history)


def test_evaluation_checks_them(tiny_dataset):
    graph = InteractionGraph.from_edges(*tiny_dataset.train, 80, 50)
    evaluator = Evaluator(tiny_dataset, "val", graph)
    with pytest.raises(InputError, match=r"weights: expected shape \(50, 50\), got \(9, 9\)"):
        evaluator.evaluate(weights_of(False)[0])
    with pytest.raises(InputError, match=r"history: expected shape \(80, 50\), got \(79, 50\)"):
        other = InteractionGraph.from_edges([0], [0], 79, 50)
        evaluator.evaluate(ItemWeights(other, torch.ones(50, 50)))
    bad = torch.ones(50, 50)
    bad[7, 3] = torch.nan
    with pytest.raises(InputError, match="weights.dense: expected finite values, .* in row 7"):
        evaluator.evaluate(ItemWeights(graph, bad))
    with pytest.raises(InputError, match="item_emb: expected a tensor, got NoneType"):
        evaluator.evaluate(torch.ones(80, 2))
