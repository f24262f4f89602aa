"""The graphs that benchmarks run on: public data sets, or seeded graphs of their shapes.

Without data at hand a power-law graph of the same users, items and edges stands in, named
``NAME-like``; with ``MMSSL_DATA=folder`` the real interactions are read from there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmssl.graph import InteractionGraph


class Workload(NamedTuple):
    """A graph and what to call it."""

    name: str
    graph: InteractionGraph


# users, items, train edges
SHAPES = {
    "tiktok": (9_308, 6_710, 59_541),
    "baby": (19_445, 7_050, 118_551),
    "sports": (35_598, 18_357, 218_409),
    "gowalla": (29_858, 40_981, 810_128),
    "power-law-10m": (1_000_000, 500_000, 10_000_000),
}


def load(name: str) -> Workload:
    """The real set where ``MMSSL_DATA`` has it, else its stand-in."""
    users, items, edges = SHAPES[name]
    folder = Path(os.environ.get("MMSSL_DATA", "")) / name
    if os.environ.get("MMSSL_DATA") and (folder / "train.npz").exists():
        import scipy.sparse

        return Workload(
            name, InteractionGraph.from_scipy(scipy.sparse.load_npz(folder / "train.npz"))
        )
    if os.environ.get("MMSSL_DATA") and (folder / "train.json").exists():
        from mmssl.data import read_dataset

        data = read_dataset(folder)
        return Workload(
            name, InteractionGraph.from_edges(*data.train, data.num_users, data.num_items)
        )
    label = name if name.startswith("power-law") else f"{name}-like"
    return Workload(label, power_law(users, items, edges))


def power_law(users: int, items: int, edges: int, seed: int = 0) -> InteractionGraph:
    """Ids with Zipf-like popularity (exponent about 0.8), in random order, repeated edges merged.

    A little more than ``edges`` are drawn, since repetitions vanish.
    """
    rng = np.random.default_rng(seed)

    def ids(count: int) -> np.ndarray:
        # The inverse of the cumulated density x^-0.8 on [0, 1].
        position = (rng.random(int(edges * 1.15)) ** 5 * count).astype(np.int64)
        return rng.permutation(count)[np.minimum(position, count - 1)]

    return InteractionGraph.from_edges(ids(users), ids(items), users, items)
