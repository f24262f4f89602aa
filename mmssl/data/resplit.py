"""``mmssl data split``: from a log to a data set that can be trained on.

Interactions rated too low go first, then those outside the k-core, then the rest is split, then
validation and test interactions of users that have none in train are left out, as nothing could be
recommended to them; users and items that are left without any are left out and the others numbered
anew in their old order.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmssl.data.dataset import IntArray, InteractionDataset, Interactions
from mmssl.data.log import InteractionLog, read_log
from mmssl.data.manifest import SplitInfo
from mmssl.data.npy import read_header, read_mask
from mmssl.data.readers import FEATURE_SUFFIX, MASK_SUFFIX, feature_paths
from mmssl.data.splits import PROTOCOLS, TRAIN, assign, by_label, check_ratio, k_core
from mmssl.data.staging import check_writable, staged
from mmssl.data.writers import write_files
from mmssl.errors import InputError

COLD_ITEMS = ("keep", "drop")
_DRAWS = ("random", "random-global", "cold-item")
_RATIO = ("random", "random-global", "temporal", "cold-item")


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """What the command line offers."""

    protocol: str = "random"
    """One of :data:`~mmssl.data.splits.PROTOCOLS`."""
    ratio: Sequence[float] = (8, 1, 1)
    """Shares of train, validation and test; they needn't sum to 1."""
    seed: int = 2022
    user_core: int = 1
    """Fewest interactions of a user, before the split."""
    item_core: int = 1
    """Fewest interactions of an item, before the split."""
    min_rating: float | None = None
    cold_items: str = "keep"
    """Whether validation and test keep items that have no interaction in train."""
    name: str | None = None

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise InputError(
                f"protocol must be one of {', '.join(PROTOCOLS)}, got {self.protocol!r}"
            )
        if self.cold_items not in COLD_ITEMS:
            raise InputError(f"cold-items must be keep or drop, got {self.cold_items!r}")
        if self.protocol == "cold-item" and self.cold_items == "drop":
            raise InputError("cold-items must be keep for the protocol cold-item, got drop")
        check_ratio(self.shares)
        for what in ("user_core", "item_core"):
            if getattr(self, what) < 1:
                raise InputError(f"{what} must be at least 1, got {getattr(self, what)}")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed must be in 0 .. 2^63 - 1, got {self.seed}")

    @property
    def shares(self) -> tuple[float, ...]:
        """The ratio, summing to 1."""
        total = sum(self.ratio)
        return tuple(share / total for share in self.ratio) if total > 0 else tuple(self.ratio)

    def info(self, dropped: dict[str, int], *, drawn: bool) -> SplitInfo:
        """What is recorded of the split."""
        facts: dict[str, Any] = {}
        if self.protocol in _RATIO:
            facts["ratio"] = ":".join(f"{share:g}" for share in self.ratio)
        facts |= {
            name: getattr(self, name)
            for name in ("user_core", "item_core")
            if getattr(self, name) > 1
        }
        if self.min_rating is not None:
            facts["min_rating"] = float(self.min_rating)
        facts["cold_items"] = self.cold_items
        return SplitInfo(self.protocol, self.seed if drawn else None, facts, dropped)


class Split(NamedTuple):
    """A data set and which users and items of the log are in it."""

    dataset: InteractionDataset
    users: IntArray  # (U,) ascending
    items: IntArray  # (I,) ascending


class SplitReport(NamedTuple):
    """What :func:`split_data` did."""

    directory: Path
    dataset: InteractionDataset
    features: list[str]

    @property
    def lines(self) -> list[str]:
        """To print."""
        dataset = self.dataset
        lines = [f"left out {n:,}: {reason}" for reason, n in dataset.split.dropped.items()]
        edges = ", ".join(f"{name} {edges.num_edges:,}" for name, edges in dataset.splits())
        lines.append(f"{dataset.num_users:,} users, {dataset.num_items:,} items: {edges}")
        if self.features:
            lines.append(f"features: {', '.join(self.features)}")
        lines.append(f"split: {dataset.split.label()}")
        lines.append(f"interactions hash: {dataset.interactions_hash()}")
        lines.append(f"written to {self.directory}")
        return lines


def split_log(log: InteractionLog, options: SplitOptions) -> Split:
    """Splits a log in memory.

    Raises:
        InputError: Ratings or times are needed and not there, or a split would be empty.
    """
    place = np.arange(log.num_edges)
    dropped: dict[str, int] = {}

    def keep(kept: IntArray, reason: str) -> None:
        nonlocal place
        if kept.size < place.size:
            dropped[reason] = int(place.size - kept.size)
        place = kept
        if not place.size:
            raise InputError(f"{log.name}: expected interactions to split, all are {reason}")

    if options.min_rating is not None:
        if log.rating is None:
            raise InputError("a minimum rating needs ratings, the data has none")
        reason = f"rated below {options.min_rating:g}"
        keep(np.flatnonzero(log.rating >= options.min_rating), reason)
    core = k_core(log.user[place], log.item[place], options.user_core, options.item_core)
    keep(place[core], "not in the k-core")

    edges = Interactions(log.user[place], log.item[place])
    time = None if log.time is None else log.time[place]
    label = assign(options.protocol, edges, time, options.shares, options.seed)
    trained = np.bincount(edges.user[label == TRAIN], minlength=log.num_users) > 0
    stays = trained[edges.user]
    keep(place[stays], "of users without an interaction in train")
    label, edges = label[stays], Interactions(edges.user[stays], edges.item[stays])
    if options.cold_items == "drop":
        trained = np.bincount(edges.item[label == TRAIN], minlength=log.num_items) > 0
        stays = trained[edges.item]
        keep(place[stays], "of items without an interaction in train")
        label, edges = label[stays], Interactions(edges.user[stays], edges.item[stays])

    users, user = np.unique(edges.user, return_inverse=True)
    items, item = np.unique(edges.item, return_inverse=True)
    train, val, test = by_label(Interactions(user.astype(np.int64), item.astype(np.int64)), label)
    drawn = options.protocol in _DRAWS or (options.protocol == "leave-one-out" and time is None)
    dataset = InteractionDataset(
        name=options.name or log.name,
        num_users=int(users.size),
        num_items=int(items.size),
        train=train,
        val=val,
        test=test,
        user_ids=_chosen(log.user_ids, users),
        item_ids=_chosen(log.item_ids, items),
        item_titles=_chosen(log.item_titles, items),
        item_columns={
            name: _chosen(cells, items) or () for name, cells in log.item_columns.items()
        },
        split=options.info(dropped, drawn=drawn),
    )
    return Split(dataset, users, items)


def split_data(directory: str | Path, out: str | Path, options: SplitOptions) -> SplitReport:
    """Splits the log in ``directory`` into the new directory ``out``, all of it or nothing.

    A data set that has splits is split anew, from all its interactions. Features and masks go with
    the items.

    Raises:
        InputError: One line: what was expected, what was got.
    """
    folder, target = Path(directory), Path(out)
    check_writable(target)
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: expected the directory of an imported log, got none there")
    log, info = read_log(folder)
    split = split_log(log, options)
    features = feature_paths(folder)
    with staged(target) as new:
        write_files(split.dataset, new, info.source)
        for modality, path in features.items():
            _copy_rows(path, new, split.items, log.num_items)
            mask = folder / f"{modality}{MASK_SUFFIX}"
            if mask.exists():
                _copy_mask(mask, new, split.items, log.num_items)
    return SplitReport(target, split.dataset, [f"{m}{FEATURE_SUFFIX}" for m in features])


def _chosen(cells: tuple[str, ...] | None, places: IntArray) -> tuple[str, ...] | None:
    return None if cells is None else tuple(cells[place] for place in places.tolist())


def _copy_rows(path: Path, new: Path, items: IntArray, num_items: int) -> None:
    """The items' rows as they are, dtype and all."""
    header = read_header(path)
    if header.shape[0] != num_items:
        raise InputError(f"{path}: expected {num_items} rows, one per item, got {header.shape[0]}")
    if items.size == num_items:
        record = path.with_suffix(".toml")  # how they were made; of other rows it would not be true
        for file in (path, record) if record.exists() else (path,):
            shutil.copyfile(file, new / file.name)
        return
    rows = np.load(path, mmap_mode="r", allow_pickle=False)
    np.save(new / path.name, rows[items], allow_pickle=False)


def _copy_mask(path: Path, new: Path, items: IntArray, num_items: int) -> None:
    np.save(new / path.name, read_mask(path, num_items)[items], allow_pickle=False)
