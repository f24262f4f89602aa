"""``mmssl data split``: from an interaction log to a data set with train, validation and test.

The steps, in this order: remove interactions with low ratings; restrict to the k-core; split;
remove validation and test interactions of users without a train interaction, for whom a model
cannot be evaluated; remove users and, unless all are to stay, items without interactions and
renumber the others in order.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmssl.data.blocks import IdArray, IntArray, counts, row_numbers, without_gaps
from mmssl.data.dataset import InteractionDataset
from mmssl.data.log import InteractionLog, read_log
from mmssl.data.manifest import SplitInfo
from mmssl.data.npy import read_header, read_mask, save_array
from mmssl.data.npz import read_neighbors, write_neighbors
from mmssl.data.readers import (
    FEATURE_SUFFIX,
    MASK_SUFFIX,
    NEIGHBORS_SUFFIX,
    feature_paths,
    modality_paths,
)
from mmssl.data.splits import PROTOCOLS, TRAIN, Pairs, assign, by_label, check_ratio, k_core
from mmssl.data.staging import check_writable, staged
from mmssl.data.writers import write_files
from mmssl.errors import InputError

COLD_ITEMS = ("keep", "drop")
_DRAWS = ("random", "random-global", "leave-one-out-random", "cold-item")
_EACH = "the protocol takes them from users with three or more; --protocol random-global from all"
_FEW = "there are too few interactions, or --ratio gives it too small a share"
_WHY = dict.fromkeys(("random", "leave-one-out", "leave-one-out-random"), _EACH) | {
    "random-global": _FEW,
    "temporal": "no user with interactions in train has one in that period",
    "cold-item": "there are too few items, or --ratio gives it too small a share",
}
_RATIO = ("random", "random-global", "temporal", "cold-item")


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """Options of ``mmssl data split``, validated on construction.

    Raises:
        InputError: A value is out of range.
    """

    protocol: str = "random"
    """Split protocol, one of :data:`~mmssl.data.splits.PROTOCOLS`."""
    ratio: Sequence[float] = (8, 1, 1)
    """Proportions of train, validation and test; they are normalized to sum to 1."""
    seed: int = 2022
    """Random seed of the split."""
    user_core: int = 1
    """Minimum number of interactions per user, before the split."""
    item_core: int = 1
    """Minimum number of interactions per item, before the split."""
    min_rating: float | None = None
    """Minimum rating of an interaction; None keeps all."""
    cold_items: str = "keep"
    """"keep" or "drop" validation and test interactions of items without a train interaction."""
    all_items: bool = False
    """Whether items that are left without interactions stay, as cold items."""
    name: str | None = None
    """Name of the new data set; None keeps the name of the log."""

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
        """Proportions of train, validation and test, normalized to sum to 1."""
        total = sum(self.ratio)
        return tuple(share / total for share in self.ratio) if total > 0 else tuple(self.ratio)

    def info(self, dropped: dict[str, int], *, drawn: bool) -> SplitInfo:
        """Return the record of the split for ``dataset.toml``."""
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
        if self.all_items:
            facts["all_items"] = True
        return SplitInfo(self.protocol, self.seed if drawn else None, facts, dropped)


class Split(NamedTuple):
    """Result of :func:`split_log`."""

    dataset: InteractionDataset
    """The data set, without features."""
    users: IntArray
    """(U,) index in the log of each user, ascending."""
    items: IntArray
    """(I,) index in the log of each item, ascending."""
    seen: int
    """Number of items with interactions."""


class SplitReport(NamedTuple):
    """Result of :func:`split_data`."""

    directory: Path
    """Directory that was written."""
    dataset: InteractionDataset
    """The data set, without features."""
    features: list[str]
    """Names of the feature files that were copied."""
    unseen: int = 0
    """Number of items of the log without interactions in the data set."""

    @property
    def lines(self) -> list[str]:
        """Summary for the terminal."""
        dataset = self.dataset
        lines = [f"left out {n:,}: {reason}" for reason, n in dataset.split.dropped.items()]
        edges = ", ".join(f"{name} {edges.num_edges:,}" for name, edges in dataset.splits())
        lines.append(f"{dataset.num_users:,} users, {dataset.num_items:,} items: {edges}")
        if self.unseen:
            kept = dataset.split.parameters.get("all_items")
            what = "kept as cold items" if kept else "left out (--all-items keeps them)"
            lines.append(f"items without interactions, {what}: {self.unseen:,}")
        if self.features:
            lines.append(f"features: {', '.join(self.features)}")
        lines.append(f"split: {dataset.split.label()}")
        lines.append(f"interactions hash: {dataset.interactions_hash()}")
        lines.append(f"written to {self.directory}")
        return lines


def split_log(log: InteractionLog, options: SplitOptions) -> Split:
    """Split a log in memory.

    Raises:
        InputError: The options need ratings or times that the log lacks, or a split would be empty.
    """
    place = row_numbers(log.num_edges) - 1
    dropped: dict[str, int] = {}

    def keep(kept: IdArray, reason: str) -> None:
        nonlocal place
        if kept.size < place.size:
            dropped[reason] = int(place.size - kept.size)
        place = kept
        if not place.size:
            raise InputError(f"{log.name}: expected interactions to split, got none: {reason}")

    if options.min_rating is not None:
        if log.rating is None:
            raise InputError("min_rating: expected data with ratings, got data without")
        reason = f"rated below {options.min_rating:g}"
        keep(place[log.rating >= options.min_rating], reason)
    core = k_core(log.user[place], log.item[place], options.user_core, options.item_core)
    keep(place[core], "not in the k-core")
    del core

    edges = Pairs(log.user[place], log.item[place])
    time = None if log.time is None else log.time[place]
    label = assign(options.protocol, edges, time, options.shares, options.seed)
    del time
    trained = counts(edges.user[label == TRAIN], log.num_users) > 0
    stays = trained[edges.user]
    keep(place[stays], "user without a train interaction")
    label, edges = label[stays], Pairs(edges.user[stays], edges.item[stays])
    if options.cold_items == "drop":
        trained = counts(edges.item[label == TRAIN], log.num_items) > 0
        stays = trained[edges.item]
        keep(place[stays], "item without a train interaction")
        label, edges = label[stays], Pairs(edges.user[stays], edges.item[stays])

    users, user = without_gaps(edges.user, log.num_users)
    items, item = without_gaps(edges.item, log.num_items)
    seen = int(items.size)
    if options.all_items:
        items, item = np.arange(log.num_items), edges.item.astype(np.int32)
    edges = Pairs(user, item)
    del place, stays, user, item
    train, val, test = by_label(edges, label)
    for split, part in (("validation", val), ("test", test)):
        if not part.num_edges:
            raise InputError(
                f"{log.name}: expected interactions for {split}, got none: "
                + _WHY[options.protocol]
            )
    del edges
    drawn = options.protocol in _DRAWS
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
    return Split(dataset, users, items, seen)


def split_data(directory: str | Path, out: str | Path, options: SplitOptions) -> SplitReport:
    """Split the log in ``directory`` and write the result to the new directory ``out``.

    If ``directory`` is a data set with splits, all its interactions are split again. Features,
    masks and neighbor lists of the remaining items are copied. ``out`` is created atomically.

    Raises:
        InputError: ``directory`` is malformed, ``out`` is not empty, or :func:`split_log` fails.
    """
    folder, target = Path(directory), Path(out)
    check_writable(target)
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: expected the directory of an imported log, got no directory")
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
        for path in modality_paths(folder, NEIGHBORS_SUFFIX).values():
            neighbors = read_neighbors(path, log.num_items)
            write_neighbors(new / path.name, neighbors.of_items(split.items, log.num_items))
    names = [f"{modality}{FEATURE_SUFFIX}" for modality in features]
    return SplitReport(target, split.dataset, names, log.num_items - split.seen)


def _chosen(cells: tuple[str, ...] | None, places: IntArray) -> tuple[str, ...] | None:
    return None if cells is None else tuple(cells[place] for place in places.tolist())


def _copy_rows(path: Path, new: Path, items: IntArray, num_items: int) -> None:
    """Copy the rows of the given items without changing their dtype."""
    header = read_header(path)
    if header.shape[0] != num_items:
        raise InputError(f"{path}: expected {num_items} rows, one per item, got {header.shape[0]}")
    if items.size == num_items:
        record = path.with_suffix(".toml")  # its hash and counts only apply to the complete file
        for file in (path, record) if record.exists() else (path,):
            shutil.copyfile(file, new / file.name)
        return
    rows = np.load(path, mmap_mode="r", allow_pickle=False)
    save_array(new / path.name, rows[items])


def _copy_mask(path: Path, new: Path, items: IntArray, num_items: int) -> None:
    save_array(new / path.name, read_mask(path, num_items)[items])
