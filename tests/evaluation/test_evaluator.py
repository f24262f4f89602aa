"""The evaluator against a loop over users: masking, ties, short lists, skipped users, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mmssl.data.dataset import InteractionDataset, Interactions
from mmssl.errors import InputError
from mmssl.evaluation import RELEASED, STANDARD, Evaluator
from mmssl.evaluation import evaluator as evaluator_module
from mmssl.graph import InteractionGraph


def make_dataset(num_users: int, num_items: int, train, val, test) -> InteractionDataset:
    def split(pairs) -> Interactions:
        array = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)
        return Interactions(user=array[:, 0].copy(), item=array[:, 1].copy())

    return InteractionDataset(
        name="made up",
        num_users=num_users,
        num_items=num_items,
        train=split(train),
        val=split(val),
        test=split(test),
        features={},
        user_ids=None,
        item_ids=None,
        item_titles=None,
    )


def make_graph(dataset: InteractionDataset) -> InteractionGraph:
    train = dataset.train
    return InteractionGraph.from_edges(train.user, train.item, dataset.num_users, dataset.num_items)


def loop_metrics(
    dataset: InteractionDataset, split: str, user_emb, item_emb, ks
) -> dict[str, float]:
    """Compute the metrics with a loop over users and Python sets."""
    interactions = dataset.val if split == "val" else dataset.test
    rows = []
    for user in range(dataset.num_users):
        relevant = set(interactions.item[interactions.user == user].tolist())
        if not relevant:
            continue
        train = set(dataset.train.item[dataset.train.user == user].tolist())
        score = (item_emb @ user_emb[user]).tolist()
        left = [item for item in range(dataset.num_items) if item not in train]
        ranking = sorted(left, key=lambda item: (-score[item], item))[: max(ks)]
        row = {}
        for k in ks:
            hits = [item in relevant for item in ranking[:k]]
            dcg = sum(1 / np.log2(rank + 2) for rank, h in enumerate(hits) if h)
            ideal = sum(1 / np.log2(rank + 2) for rank in range(min(k, len(relevant))))
            row[f"recall@{k}"] = sum(hits) / len(relevant)
            row[f"precision@{k}"] = sum(hits) / k
            row[f"ndcg@{k}"] = dcg / ideal
            row[f"hit@{k}"] = float(any(hits))
            row[f"precision_released@{k}"] = sum(hits) / len(hits) if hits else 0.0
        rows.append(row)
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


@st.composite
def problems(draw: st.DrawFn):
    num_users, num_items = draw(st.integers(1, 9)), draw(st.integers(2, 15))
    cell = st.sampled_from(["train", "val", "test", None, None])
    cells = draw(st.lists(cell, min_size=num_users * num_items, max_size=num_users * num_items))
    pairs: dict[str, list[tuple[int, int]]] = {"train": [], "val": [], "test": []}
    for position, name in enumerate(cells):
        if name is not None:
            pairs[name].append(divmod(position, num_items))
    # With small integers, dot products are exact and ties are frequent.
    values = st.integers(-2, 2)
    user_emb = draw(st.lists(values, min_size=num_users * 2, max_size=num_users * 2))
    item_emb = draw(st.lists(values, min_size=num_items * 2, max_size=num_items * 2))
    return (
        (num_users, num_items, pairs),
        torch.tensor(user_emb, dtype=torch.float32).view(-1, 2),
        torch.tensor(item_emb, dtype=torch.float32).view(-1, 2),
    )


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from(["val", "test"]))
def test_equals_the_loop(problem, split):
    (num_users, num_items, pairs), user_emb, item_emb = problem
    assume(pairs["train"] and pairs["val"] and pairs["test"])
    dataset = make_dataset(num_users, num_items, *pairs.values())
    ks = (1, 3, 20)
    evaluator = Evaluator(dataset, split, make_graph(dataset), ks=ks, metrics=STANDARD + RELEASED)
    got = evaluator.evaluate(user_emb, item_emb)
    assert set(got) == {f"{name}@{k}" for name in STANDARD + RELEASED for k in ks}
    for key, value in loop_metrics(dataset, split, user_emb, item_emb, ks).items():
        assert got[key] == pytest.approx(value, abs=1e-12), key


def small() -> tuple[InteractionDataset, InteractionGraph]:
    dataset = make_dataset(
        4,
        6,
        train=[(0, 0), (0, 1), (1, 2), (2, 3)],
        val=[(0, 2), (1, 0)],
        test=[(0, 3), (0, 4), (2, 5), (3, 1)],
    )
    return dataset, make_graph(dataset)


def test_users_without_relevant_items_do_not_count():
    dataset, graph = small()
    evaluator = Evaluator(dataset, "val", graph, ks=(1,))
    assert evaluator.users.tolist() == [0, 1]
    # Item 2 is first for all users: relevant for user 0, a train item of user 1 (next: item 0).
    scores = torch.tensor([[2.0], [0.0], [3.0], [0.0], [0.0], [0.0]])
    assert evaluator.evaluate(torch.ones(4, 1), scores)["recall@1"] == 1.0


def test_blocks_do_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(0)
    cells = rng.permutation(30 * 40)[:300]
    pairs = [divmod(int(cell), 40) for cell in cells]
    dataset = make_dataset(30, 40, pairs[:200], pairs[200:250], pairs[250:])
    graph = make_graph(dataset)
    generator = torch.Generator().manual_seed(0)
    user_emb = torch.randint(-3, 4, (30, 4), generator=generator).float()
    item_emb = torch.randint(-3, 4, (40, 4), generator=generator).float()
    evaluator = Evaluator(dataset, "test", graph)
    whole = evaluator.evaluate(user_emb, item_emb)
    monkeypatch.setattr(evaluator_module, "_BLOCK_USERS", 7)
    for key, value in evaluator.evaluate(user_emb, item_emb).items():
        assert value == pytest.approx(whole[key], abs=1e-14)


def test_per_user_values_average_to_the_result():
    dataset, graph = small()
    evaluator = Evaluator(dataset, "test", graph, ks=(2, 3))
    generator = torch.Generator().manual_seed(1)
    user_emb = torch.randn(4, 5, generator=generator)
    item_emb = torch.randn(6, 5, generator=generator)
    per_user = evaluator.per_user(user_emb, item_emb)
    assert per_user.shape == (3, len(evaluator.keys))
    mean = dict(zip(evaluator.keys, per_user.mean(0).tolist(), strict=True))
    assert evaluator.evaluate(user_emb, item_emb) == pytest.approx(mean, abs=1e-14)


def test_given_lists_equal_embeddings():
    dataset, graph = small()
    evaluator = Evaluator(dataset, "test", graph, ks=(2, 5))
    popularity = torch.tensor([[5.0], [4.0], [3.0], [2.0], [1.0], [0.0]])
    # Items by decreasing score, without the train items of users 0, 2 and 3.
    lists = torch.tensor([[2, 3, 4, 5, -1], [0, 1, 2, 4, 5], [0, 1, 2, 3, 4]])
    expected = evaluator.evaluate(torch.ones(4, 1), popularity)
    assert evaluator.evaluate_lists(lists) == pytest.approx(expected, abs=1e-15)


def test_no_gradients_are_recorded():
    dataset, graph = small()
    user_emb = torch.ones(4, 2, requires_grad=True)
    item_emb = torch.ones(6, 2, requires_grad=True)
    assert Evaluator(dataset, "val", graph).evaluate(user_emb, item_emb)["hit@10"] == 1.0
    assert user_emb.grad is None


def test_bad_construction():
    dataset, graph = small()
    with pytest.raises(InputError, match="split: expected 'val' or 'test', got 'train'"):
        Evaluator(dataset, "train", graph)
    other = InteractionGraph.from_edges(np.array([0]), np.array([0]), 4, 7)
    with pytest.raises(
        InputError, match=r"graph: expected \(users, items\) = \(4, 6\), got \(4, 7\)"
    ):
        Evaluator(dataset, "val", other)
    with pytest.raises(InputError, match="got 'auc'"):
        Evaluator(dataset, "val", graph, metrics=("auc",))
    with pytest.raises(InputError, match="ks: expected positive integers, got -5"):
        Evaluator(dataset, "val", graph, ks=(10, -5))


def test_bad_embeddings():
    dataset, graph = small()
    evaluator = Evaluator(dataset, "val", graph)
    good_user, good_item = torch.ones(4, 2), torch.ones(6, 2)
    with pytest.raises(InputError, match=r"user_emb: expected shape \(4, D\), got \(3, 2\)"):
        evaluator.evaluate(good_user[:3], good_item)
    with pytest.raises(InputError, match=r"item_emb: expected shape \(6, D\), got \(6,\)"):
        evaluator.evaluate(good_user, good_item[:, 0])
    with pytest.raises(InputError, match="embedding.item: expected device cpu, got meta"):
        evaluator.evaluate(good_user, torch.ones(6, 2, device="meta"))
    diverged = good_user.clone()
    diverged[2, 1] = float("nan")
    with pytest.raises(InputError, match="embedding.user: expected finite values, .* in row 2"):
        evaluator.evaluate(diverged, good_item)


def test_bad_lists():
    dataset, graph = small()
    evaluator = Evaluator(dataset, "val", graph)
    with pytest.raises(InputError, match=r"items: expected shape \(2, K\), got \(3, 5\)"):
        evaluator.evaluate_lists(torch.zeros(3, 5, dtype=torch.int64))
    with pytest.raises(InputError, match=r"ids in \[0, 6\) or -1, got 0 to 6"):
        evaluator.evaluate_lists(torch.tensor([[0, 6], [1, 2]]))
