"""A small data set, in memory and as files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from mmssl.data import InteractionDataset, Interactions

SPLITS = {
    "train": {"0": [2, 0], "1": [1], "3": [3, 4]},
    "val": {"0": [1], "2": [2]},
    "test": {"1": [4], "3": [0], "4": []},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write the files of a data set with 4 users, 5 items and two modalities."""
    path = tmp_path / "toy"
    path.mkdir()
    for split, lists in SPLITS.items():
        (path / f"{split}.json").write_text(json.dumps(lists))
    rng = np.random.default_rng(0)
    np.save(path / "image_feat.npy", rng.normal(size=(5, 3)).astype(np.float16))
    np.save(path / "text_feat.npy", rng.normal(size=(5, 2)).astype(np.float64))
    return path


@pytest.fixture
def toy() -> dict[str, object]:
    """Return the arguments of a valid data set, for tests to modify."""
    return {
        "name": "toy",
        "num_users": 4,
        "num_items": 5,
        "train": Interactions.from_edges([0, 0, 1, 3, 3], [0, 2, 1, 3, 4]),
        "val": Interactions.from_edges([0, 2], [1, 2]),
        "test": Interactions.from_edges([1, 3], [4, 0]),
        "features": {"image": np.arange(15, dtype=np.float32).reshape(5, 3)},
        "user_ids": ("ann", "bob", "cid", "dee"),
        "item_ids": ("i1", "i2", "i3", "i4", "i5"),
        "item_titles": ("Heat (1995)", "Alien", "Alien", "", "Amélie \u2028"),
    }


@pytest.fixture
def toy_dataset(toy: dict[str, object]) -> InteractionDataset:
    return InteractionDataset(**toy)  # type: ignore[arg-type]


def _data_root() -> Path:
    told = os.environ.get("MMSSL_DATA")
    return Path(told) if told else Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def real_data() -> Path:
    """Return the folder of the real data sets, or skip the test."""
    root = _data_root()
    if not (root / "tiktok" / "train.json").is_file():
        pytest.skip("no real data sets found (set MMSSL_DATA to their folder)")
    return root
