"""Workloads: public data sets, or seeded graphs and features of their shapes.

Without the data, a power-law graph with the same numbers of users, items and edges replaces it,
named ``NAME-like``. With ``MMSSL_DATA=folder`` the real interactions are read from there, and the
real features and held-out lists if the set has them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmssl.data.dataset import InteractionDataset, Interactions
from mmssl.graph import InteractionGraph


class Workload(NamedTuple):
    """A graph and its name."""

    name: str
    graph: InteractionGraph


# users, items, train edges
SHAPES = {
    "tiktok": (9_308, 6_710, 59_541),
    "baby": (19_445, 7_050, 118_551),
    "baby-mmrec": (19_445, 7_050, 118_551),
    "sports": (35_598, 18_357, 218_409),
    "ml1m": (6_036, 2_928, 438_275),
    "gowalla": (29_858, 40_981, 810_128),
    "microlens": (50_000, 19_220, 259_708),
    "power-law-2m": (200_000, 100_000, 2_000_000),
    "power-law-10m": (1_000_000, 500_000, 10_000_000),
    "power-law-100m": (10_000_000, 5_000_000, 100_000_000),
    "smoke": (300, 150, 2_000),
}

# Width of each modality's raw features. TikTok and ML-1M as published; Baby's public surrogates;
# of Sports, whose features are not public, only the widths.
WIDTHS = {
    "tiktok": {"image": 128, "audio": 128},
    "baby": {"image": 128, "text": 128},
    "baby-mmrec": {"image": 128, "text": 128},
    "sports": {"image": 4096, "text": 1024},
    "microlens": {"image": 128, "text": 128},
    "smoke": {"image": 12, "text": 7},
}

# Test interactions a stand-in holds out.
HELD_OUT = {"tiktok": 6_130, "baby": 20_559, "ml1m": 51_487, "gowalla": 217_242, "smoke": 400}


class HeldOut(NamedTuple):
    """The part of a data set that an evaluator needs."""

    num_users: int
    num_items: int
    test: Interactions


def element_type(dtype: str, device: str) -> torch.dtype:
    """The torch dtype of "float32", "TF32" or "bfloat16".

    On a GPU it also sets how float32 products are formed from here on, for the package and its
    peers alike: "TF32" is torch's "high", "float32" its "highest".
    """
    if device == "cuda":
        torch.set_float32_matmul_precision("high" if dtype == "TF32" else "highest")
    return torch.float32 if dtype == "TF32" else getattr(torch, dtype)


def _folder(name: str, file: str) -> Path | None:
    """Return the folder of the set under ``MMSSL_DATA`` if it holds the file."""
    root = os.environ.get("MMSSL_DATA")
    folder = Path(root or "") / name
    return folder if root and (folder / file).exists() else None


def load(name: str) -> Workload:
    """Return the real set if ``MMSSL_DATA`` has it, else its stand-in."""
    users, items, edges = SHAPES[name]
    if folder := _folder(name, "train.npz"):
        import scipy.sparse

        return Workload(
            name, InteractionGraph.from_scipy(scipy.sparse.load_npz(folder / "train.npz"))
        )
    if folder := _folder(name, "train.json"):
        from mmssl.data import read_dataset

        data = read_dataset(folder)
        return Workload(
            name, InteractionGraph.from_edges(*data.train, data.num_users, data.num_items)
        )
    if folder := _folder(name, "pairs.tsv"):
        return Workload(name, InteractionGraph.from_edges(*_leave_one_out(folder / "pairs.tsv")))
    return Workload(label(name), power_law(users, items, edges))


def label(name: str) -> str:
    """Return the name of a set as :func:`load` does, without loading it."""
    real = any(_folder(name, file) for file in ("train.npz", "train.json", "pairs.tsv"))
    return name if real or name.startswith("power-law") else f"{name}-like"


def dataset(name: str, *, with_features: bool = False) -> InteractionDataset:
    """Return a set for training: the real one, or random held-out edges around a loaded graph.

    Args:
        name: Name of the set.
        with_features: Whether to add features; random ones if the set has none.
    """
    if _folder(name, "train.json"):
        from mmssl.data import read_dataset

        found = read_dataset(_folder(name, "train.json"))
        if found.features or not with_features:
            return found
        splits = dict(found.splits())
    else:
        graph = load(name).graph
        train = Interactions(graph.ui.row_of_edge().numpy(), graph.index.col.long().numpy())
        rng = np.random.default_rng(1)
        users = np.unique(rng.choice(graph.trainable_users.numpy(), 200))
        draw = torch.from_numpy(rng.random(len(users)))
        items = graph.missing_item(torch.from_numpy(users), draw).numpy()
        held = [Interactions(users[n::2], items[n::2]) for n in (0, 1)]
        splits = {"train": train, "val": held[0], "test": held[1]}
        found = InteractionDataset(
            name=name, num_users=graph.num_users, num_items=graph.num_items, **splits
        )
    if not with_features:
        return found
    drawn = features(name, found.num_items)
    return InteractionDataset(
        name=name, num_users=found.num_users, num_items=found.num_items, **splits,
        features={modality: rows.numpy() for modality, rows in drawn.items()},
    )  # fmt: skip


def _leave_one_out(path: Path) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Read MicroLens' pairs.tsv: users, items by time; the last two of a user are held out."""
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    lists = [[int(item) for item in items.split()] for _, items in lines]
    num_items = 1 + max(max(items) for items in lists)
    pairs = {(user, item) for user, items in enumerate(lists) for item in items[:-2]}
    edges = np.array(sorted(pairs))
    return edges[:, 0], edges[:, 1], len(lists), num_items


def features(name: str, num_items: int) -> dict[str, Tensor]:
    """Modality -> (I, d) raw features: the real ones if available, else seeded normal draws."""
    if folder := _folder(name, "train.json"):
        from mmssl.data import read_dataset

        real = read_dataset(folder).features
        if real:
            return {modality: torch.from_numpy(rows) for modality, rows in real.items()}
    return random_features(num_items, WIDTHS[name])


def random_features(num_items: int, widths: dict[str, int]) -> dict[str, Tensor]:
    """Seeded (I, d) normal draws per modality."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(num_items, width, generator=generator) for name, width in widths.items()
    }


def held_out(name: str, graph: InteractionGraph) -> HeldOut:
    """Return test lists of a loaded set: the real ones, or random items that the users lack."""
    if folder := _folder(name, "test.npz"):
        import scipy.sparse

        test = Interactions.from_edges(*scipy.sparse.load_npz(folder / "test.npz").nonzero())
    elif folder := _folder(name, "train.json"):
        from mmssl.data import read_dataset

        test = read_dataset(folder).test
    else:
        rng = np.random.default_rng(1)
        user = torch.from_numpy(rng.choice(graph.trainable_users.numpy(), HELD_OUT[name]))
        item = graph.missing_item(user, torch.from_numpy(rng.random(HELD_OUT[name])))
        key = np.unique((user * graph.num_items + item).numpy())
        test = Interactions.from_edges(key // graph.num_items, key % graph.num_items)
    return HeldOut(graph.num_users, graph.num_items, test)


def power_law(users: int, items: int, edges: int, seed: int = 0) -> InteractionGraph:
    """Return a graph with Zipf-like popularity (exponent about 0.8), repeated edges merged.

    Slightly more than ``edges`` are drawn, since repetitions are merged.
    """
    rng = np.random.default_rng(seed)

    def ids(count: int) -> np.ndarray:
        # The inverse of the cumulative density x^-0.8 on [0, 1].
        position = (rng.random(int(edges * 1.15)) ** 5 * count).astype(np.int64)
        return rng.permutation(count)[np.minimum(position, count - 1)]

    return InteractionGraph.from_edges(ids(users), ids(items), users, items)
