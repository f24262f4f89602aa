"""Recorded metrics of the released MMSSL code against ours, including the `*_released` ones."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from mmssl.data.dataset import InteractionDataset, Interactions
from mmssl.evaluation import Evaluator
from mmssl.graph import InteractionGraph

ORACLE = Path(
    os.environ.get("MMSSL_ORACLE", Path(__file__).resolve().parents[3] / "shared" / "oracle")
)
KS = (10, 20, 50)
NAMES = {
    "recall": "recall",
    "precision": "precision_released",
    "ndcg": "ndcg_released",
    "hit_ratio": "hit",
}


@pytest.fixture(scope="module")
def recording():
    if not ORACLE.is_dir():
        pytest.skip(f"no recording of the released code at {ORACLE} (set MMSSL_ORACLE)")
    with np.load(ORACLE / "oracle.npz", allow_pickle=False) as arrays:
        wanted = ("eval/", "data/train_pairs", "data/val_pairs", "data/test_pairs")
        return {name: arrays[name] for name in arrays.files if name.startswith(wanted)}


def interactions(pairs: np.ndarray) -> Interactions:
    ordered = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))].astype(np.int64)
    return Interactions(user=ordered[:, 0].copy(), item=ordered[:, 1].copy())


@pytest.mark.parametrize(
    ("group", "pairs", "split"),
    [
        ("eval/tiny", "data", "val"),
        ("eval/tiny", "data", "test"),
        ("eval/big", "eval/big", "val"),
        ("eval/big", "eval/big", "test"),
        ("eval/ties", "eval/big", "test"),
    ],
)
def test_parity(recording, group, pairs, split):
    user_emb, item_emb = (torch.from_numpy(recording[f"{group}/{side}"]) for side in ("ua", "ia"))
    num_users, num_items = len(user_emb), len(item_emb)
    splits = {s: interactions(recording[f"{pairs}/{s}_pairs"]) for s in ("train", "val", "test")}
    dataset = InteractionDataset(
        name=group,
        num_users=num_users,
        num_items=num_items,
        features={},
        user_ids=None,
        item_ids=None,
        item_titles=None,
        **splits,
    )
    train = splits["train"]
    graph = InteractionGraph.from_edges(train.user, train.item, num_users, num_items)
    evaluator = Evaluator(dataset, split, graph, ks=KS, metrics=tuple(NAMES.values()))
    got = evaluator.evaluate(user_emb, item_emb)
    for recorded, ours in NAMES.items():
        expected = recording[f"{group}/{split}/{recorded}"]
        np.testing.assert_allclose(
            [got[f"{ours}@{k}"] for k in KS], expected, rtol=0, atol=1e-12, err_msg=recorded
        )
