"""A data set whose arrays stay on disk, for processes that need a part of it.

Legend: U users, I items, E edges, d_m width of modality m.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from mmssl.columns import id_column
from mmssl.data.blocks import IdArray
from mmssl.data.dataset import BoolArray, FeatureArray, Interactions
from mmssl.data.manifest import read_manifest
from mmssl.data.npy import map_features
from mmssl.data.readers import dataset_name, feature_paths
from mmssl.data.split_files import SPLITS, ListedSplit, RecordSplit, open_split, split_path
from mmssl.errors import InputError


class DatasetReader:
    """Opens a data set and reads what is asked for.

    Nothing is held but sizes and names. Splits in records (``train.npy``) are read by range of
    users without looking at the rest; splits in JSON are parsed as a whole on every call, and only
    the result is kept. What is returned is checked; the hash in ``dataset.toml``, which covers all
    interactions, is not, and neither are overlaps between splits: ``mmssl data inspect`` does both.

    Example:
        >>> data = DatasetReader("films")
        >>> train = data.interactions("train", users=range(0, data.num_users // 4))
        >>> rows = data.features("image")[:100]  # (100, d_m)

    Args:
        directory: Directory of a data set with splits.

    Attributes:
        name: Name of the data set.
        num_users: Number of users U.
        num_items: Number of items I.
        modalities: Names of the modalities that have features, sorted.

    Raises:
        InputError: A file is missing or malformed, or the sizes are in none of them.
    """

    def __init__(self, directory: str | Path) -> None:
        self._folder = Path(directory)
        if not os.path.isdir(self._folder):
            raise InputError(f"{directory}: expected the directory of a data set, got no directory")
        info = read_manifest(self._folder)
        if info.num_users is None or info.num_items is None:
            raise InputError(
                f"{info.path}: expected num_users and num_items, got none: mmssl data import "
                f"{self._folder} --out NEW writes them"
            )
        self.name = dataset_name(info)
        self.num_users, self.num_items = info.num_users, info.num_items
        self._features = feature_paths(self._folder)
        self.modalities = tuple(self._features)

    def num_edges(self, split: str) -> int:
        """Return the number of interactions of a split."""
        return self._open(split).num_edges

    def interactions(
        self,
        split: str,
        *,
        users: range | IdArray | None = None,
        items: range | IdArray | None = None,
    ) -> Interactions:
        """Read the interactions of some users with some items.

        Args:
            split: ``train``, ``val`` or ``test``.
            users: A range of step 1, which is found by bisection; or ids (n,) in any order, for
                which all blocks of the file are read and the rest is left out. None for all.
            items: A range or ids, for which all blocks are read. None for all.

        Returns:
            (E,) interactions with the ids of the data set, sorted by user, then item.

        Raises:
            InputError: The file is malformed, or an id is out of range.
        """
        of_users = users if isinstance(users, range) else None
        masks = [
            None if ids is None else _mask(what, ids, count)
            for what, ids, count in (
                ("users", users, self.num_users),
                ("items", items, self.num_items),
            )
        ]
        found = self._open(split)
        parts = []
        for edges in found.blocks(of_users):
            for what, ids, count in zip(
                ("user", "item"), edges, (self.num_users, self.num_items), strict=True
            ):
                if ids.size and ids.max() >= count:
                    raise InputError(
                        f"{split_path(self._folder, split)}: expected {what} ids in 0 .. "
                        f"{count - 1}, got {ids.max()}"
                    )
            kept = np.ones(edges.num_edges, dtype=np.bool_)
            for mask, ids in zip(masks, edges, strict=True):
                if mask is not None:
                    kept &= mask[ids]
            parts.append((edges.user[kept], edges.item[kept]))
        if not parts:
            parts.append((np.empty(0, np.int64), np.empty(0, np.int64)))
        return Interactions(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def features(self, modality: str) -> FeatureArray:
        """Map the features of a modality into memory; values are not checked.

        Returns:
            (I, d_m) float16 or float32, of which only the pages that are read take memory.

        Raises:
            InputError: There is no such modality, or its file is malformed or of another dtype.
        """
        if modality not in self._features:
            have = ", ".join(self.modalities) or "none"
            raise InputError(f"{self._folder}: expected a modality among {have}, got {modality!r}")
        path = self._features[modality]
        rows = map_features(path)
        if rows is None:
            raise InputError(f"{path}: expected rows of float16 or float32 in C order, got others")
        if rows.shape[0] != self.num_items:
            raise InputError(
                f"{path}: expected {self.num_items} rows, one per item, got {rows.shape[0]}"
            )
        return rows

    def _open(self, split: str) -> RecordSplit | ListedSplit:
        if split not in SPLITS:
            raise InputError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        return open_split(self._folder, split)


def _mask(what: str, ids: range | IdArray, count: int) -> BoolArray:
    """Return (count,) True for the wanted ids."""
    mask = np.zeros(count, dtype=np.bool_)
    wanted: slice | IdArray
    if isinstance(ids, range):
        if ids.step != 1:
            raise InputError(f"{what} must be a range of step 1, got step {ids.step}")
        low, high, wanted = ids.start, ids.stop - 1, slice(ids.start, max(ids.stop, ids.start))
        empty = not len(ids)
    else:
        wanted = id_column(what, ids).astype(np.int64)
        empty = not wanted.size
        low, high = (0, 0) if empty else (int(wanted.min()), int(wanted.max()))
    if not empty and (low < 0 or high >= count):
        raise InputError(f"{what} must be in 0 .. {count - 1}, got {low if low < 0 else high}")
    if not empty:
        mask[wanted] = True
    return mask
