"""Statistics of a data set, as ``mmssl data inspect`` shows them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmssl.data.blocks import IntArray
from mmssl.data.dataset import BoolArray, FeatureArray, InteractionDataset, has_content
from mmssl.data.readers import FEATURE_SUFFIX, MASK_SUFFIX, NEIGHBORS_SUFFIX
from mmssl.data.split_files import SPLITS, split_path

QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}


def summarize(dataset: InteractionDataset) -> dict[str, object]:
    """Compute counts and shares (in 0 .. 1) as plain JSON values.

    ``density`` counts the edges of all splits. A test item is cold if it has no train edge, and so
    are its test edges. In a modality, ``repeated_rows`` counts rows that equal an earlier row and
    ``without_content`` counts items whose mask is False.
    """
    user_degree = np.bincount(dataset.train.user, minlength=dataset.num_users)  # (U,)
    item_degree = np.bincount(dataset.train.item, minlength=dataset.num_items)  # (I,)
    edges = {split: of_split.num_edges for split, of_split in dataset.splits()}
    cold_edges = item_degree[dataset.test.item] == 0
    test_items = np.unique(dataset.test.item)
    return {
        "name": dataset.name,
        "users": dataset.num_users,
        "items": dataset.num_items,
        "edges": edges,
        "density": sum(edges.values()) / (dataset.num_users * dataset.num_items),
        "users_without_train_edge": int((user_degree == 0).sum()),
        "items_without_train_edge": int((item_degree == 0).sum()),
        "cold_test_edges": float(cold_edges.mean()),
        "cold_test_items": float((item_degree[test_items] == 0).mean()),
        "user_degree": _quantiles(user_degree),
        "item_degree": _quantiles(item_degree),
        "modalities": {
            name: _describe(rows, dataset.masks.get(name))
            for name, rows in dataset.features.items()
        },
        "neighbors": {
            name: {
                "edges": int(graph.row.size),
                "items_without_neighbors": dataset.num_items - int(np.unique(graph.row).size),
                "weighted": graph.value is not None,
            }
            for name, graph in dataset.neighbors.items()
        },
        "titles": dataset.item_titles is not None,
        "split": {**dataset.split.record(), "hash": dataset.interactions_hash()},
        "content_hash": dataset.content_hash(),
    }


def summary_lines(dataset: InteractionDataset, unread: Sequence[str] = ()) -> list[str]:
    """Format the statistics of :func:`summarize` for the terminal.

    Args:
        dataset: The data set.
        unread: Files of its directory that were not read.
    """
    facts = summarize(dataset)
    edges = {split: of_split.num_edges for split, of_split in dataset.splits()}
    lines = [
        f"{dataset.name}: {dataset.num_users:,} users, {dataset.num_items:,} items, "
        f"density {facts['density']:.4%}",
        "interactions: " + ", ".join(f"{split} {count:,}" for split, count in edges.items()),
        f"without a train edge: {facts['users_without_train_edge']:,} users, "
        f"{facts['items_without_train_edge']:,} items",
        f"cold in test: {facts['cold_test_items']:.1%} of the items, "
        f"{facts['cold_test_edges']:.1%} of the interactions",
    ]
    for side in ("user", "item"):
        quantiles = facts[f"{side}_degree"]
        assert isinstance(quantiles, dict)
        shown = ", ".join(f"{name} {value:g}" for name, value in quantiles.items())
        lines.append(f"train degree of {side}s: {shown}")
    if not dataset.features and not dataset.neighbors:
        lines.append("modalities: none")
    for name, rows in dataset.features.items():
        described = _describe(rows, dataset.masks.get(name))
        lines.append(
            f"modality {name}: {rows.shape[1]} dimensions, {described['zero_rows']:,} zero rows, "
            f"{described['repeated_rows']:,} rows that repeat another, "
            f"{described['without_content']:,} items without content"
        )
    for name, graph in dataset.neighbors.items():
        lonely = dataset.num_items - np.unique(graph.row).size
        values = "" if graph.value is None else " with values"
        lines.append(
            f"neighbors {name}: {graph.row.size:,} edges{values}, "
            f"{lonely:,} items without neighbors"
        )
    if unread:
        features = any("_feat." in name for name in unread)
        hint = " (mmssl data import converts plain tensors)" if features else ""
        lines.append(f"files that are not read: {', '.join(unread)}{hint}")
    lines.append(f"split: {dataset.split.label()}")
    lines.append(f"interactions hash: {dataset.interactions_hash()}")
    lines.append(f"content hash: {facts['content_hash']}")
    return lines


def passed_over(folder: Path) -> list[str]:
    """Return the files of a directory that ``read_dataset`` does not read, without hidden ones."""
    read = {
        *(split_path(folder, split).name for split in SPLITS),
        "users.tsv",
        "items.tsv",
        "dataset.toml",
    }
    suffixes = (FEATURE_SUFFIX, MASK_SUFFIX, "_feat.toml", NEIGHBORS_SUFFIX)
    return [
        name
        for name in sorted(os.listdir(folder))
        if name not in read and not name.startswith(".") and not name.endswith(suffixes)
    ]


def _quantiles(degree: IntArray) -> dict[str, float]:
    values = np.quantile(degree, list(QUANTILES.values()))
    return {name: float(value) for name, value in zip(QUANTILES, values, strict=True)}


def _describe(rows: FeatureArray, mask: BoolArray | None) -> dict[str, int]:
    """Count zero, repeated and masked rows of (I, d_m) features; rows are compared bytewise."""
    digest = np.empty(len(rows), dtype="V16")
    for at, row in enumerate(rows):
        digest[at] = np.void(hashlib.blake2b(row.tobytes(), digest_size=16).digest())
    return {
        "dim": rows.shape[1],
        "zero_rows": int((~has_content(rows)).sum()),
        "repeated_rows": rows.shape[0] - np.unique(digest).size,
        "without_content": 0 if mask is None else int((~mask).sum()),
    }
