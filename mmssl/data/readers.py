"""Reading of data sets in the directory layout of MMSSL.

A directory contains::

    train.json  val.json  test.json    {"user": [item, ...], ...}; or .npy, see split_files.py
    <modality>_feat.npy                optional, any number: one feature row per item id
    <modality>_knn.npz                 optional: similar items, next to or in place of features
    <modality>_mask.npy                optional: True for items with content; other rows are zero
    users.tsv   items.tsv              optional, with a header: ``user  id`` and ``item  id  title``
    dataset.toml                       optional: name, counts, split and source (see manifest.py)

:func:`mmssl.data.writers.write_dataset` adds the last three. The released data sets also include
the train matrix as a pickle, ``train_mat``, which is never opened: it repeats ``train.json``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmssl.data.dataset import (
    MODALITY_NAME,
    BoolArray,
    InteractionDataset,
    Interactions,
    hash_of_splits,
    overlap,
)
from mmssl.data.manifest import Manifest, read_manifest
from mmssl.data.npy import read_features, read_header, read_mask
from mmssl.data.npz import read_neighbors
from mmssl.data.split_files import SPLITS, read_split, split_path
from mmssl.data.tables import Table, read_table
from mmssl.errors import InputError
from mmssl.files import quoted

FEATURE_SUFFIX = "_feat.npy"
MASK_SUFFIX = "_mask.npy"
NEIGHBORS_SUFFIX = "_knn.npz"


def read_dataset(
    directory: str | Path,
    modalities: Sequence[str] | None = None,
    *,
    splits: Mapping[str, Interactions] | None = None,
) -> InteractionDataset:
    """Read and validate a data set.

    Unless ``dataset.toml`` specifies them, the number of users is one more than the highest user
    id, and the number of items is the number of feature rows or, without features, one more than
    the highest item id.

    Args:
        directory: Directory to read; its name is the default name of the data set.
        modalities: Names of the features and neighbor lists to load, in this order; None loads
            all, sorted by name. The number of items does not depend on it.
        splits: train, val and test to use in place of the files.

    Raises:
        InputError: A file is missing, malformed or inconsistent with the others.
    """
    info = open_directory(directory)
    folder = info.path.parent
    edges = {split: read_split(folder, split) for split in SPLITS} if splits is None else {**splits}

    highest = [max(int(ids[column].max()) for ids in edges.values()) for column in (0, 1)]
    num_users = count_ids(info, "user", highest[0])
    paths = feature_paths(folder)
    num_rows = common_rows(info, paths)
    num_items = count_ids(info, "item", highest[1]) if num_rows is None else num_rows
    for split, of_split in edges.items():
        check_items(split_path(folder, split), of_split, num_items)
    check_disjoint(folder, edges, num_items)
    if splits is None:
        check_hash(info, hash_of_splits(edges.items()))

    graphs = modality_paths(folder, NEIGHBORS_SUFFIX)
    known = sorted({*paths, *graphs})
    wanted = known if modalities is None else list(modalities)
    for position, modality in enumerate(wanted):
        if modality not in known:
            have = ", ".join(known) or "none"
            raise InputError(
                f"{folder}: expected modalities among {have}, got {modality!r}"
                f" (mmssl data inspect {quoted(folder)} lists the files that are not read)"
            )
        if modality in wanted[:position]:
            raise InputError(f"modalities must be distinct, got {modality!r} twice")

    return InteractionDataset(
        name=dataset_name(info),
        num_users=num_users,
        num_items=num_items,
        train=edges["train"],
        val=edges["val"],
        test=edges["test"],
        features={m: read_features(paths[m]) for m in wanted if m in paths},
        masks=read_masks(folder, [m for m in wanted if m in paths], num_items),
        neighbors={m: read_neighbors(graphs[m], num_items) for m in wanted if m in graphs},
        split=info.split,
        **read_id_maps(folder, num_users, num_items)._asdict(),
    )


class IdMaps(NamedTuple):
    """Content of ``users.tsv`` and ``items.tsv``; missing columns are None or empty."""

    user_ids: tuple[str, ...] | None
    """External id of each user."""
    item_ids: tuple[str, ...] | None
    """External id of each item."""
    item_titles: tuple[str, ...] | None
    """Display title of each item."""
    item_columns: dict[str, tuple[str, ...]]
    """Additional text columns: column name -> one cell per item."""


def read_id_maps(folder: Path, num_users: int, num_items: int) -> IdMaps:
    """Read and validate ``users.tsv`` and ``items.tsv``, both optional.

    Raises:
        InputError: A table has the wrong header or number of rows, or repeated or empty ids.
    """
    users = read_table(folder / "users.tsv", "user", num_users)
    items = read_table(folder / "items.tsv", "item", num_items)
    return IdMaps(
        _ids(folder / "users.tsv", users),
        _ids(folder / "items.tsv", items),
        None if items is None else items.column("title"),
        _further_columns(items),
    )


def open_directory(directory: str | Path) -> Manifest:
    """Read ``dataset.toml`` of the directory of a data set with splits, if it has one.

    Raises:
        InputError: Not such a directory, or :func:`~mmssl.data.manifest.read_manifest` fails.
    """
    folder = Path(directory)
    if not os.path.isdir(folder):  # Path.is_dir() raises for a name that is too long
        raise InputError(f"{folder}: expected the directory of a data set, got no directory")
    info = read_manifest(folder)
    if info.log_hash is not None:
        raise InputError(
            f"{folder}: expected a data set with splits, got a log that is not split yet; run "
            f"mmssl data split {quoted(folder)} --out DIR"
        )
    return info


def dataset_name(info: Manifest) -> str:
    """Return the name of a data set: that in ``dataset.toml``, else that of its directory."""
    return info.name or info.path.parent.resolve().name or "dataset"


def count_ids(info: Manifest, what: str, highest: int) -> int:
    """Return the number of users or items: from ``dataset.toml``, else the highest id plus one.

    Args:
        info: The manifest.
        what: "user" or "item".
        highest: Highest id in the splits.

    Raises:
        InputError: The number in the manifest is too small.
    """
    count = info.num_users if what == "user" else info.num_items
    if count is None:
        return highest + 1
    if count <= highest:
        raise InputError(
            f"{info.path}: expected num_{what}s above the highest id {highest}, got {count}"
        )
    return count


def check_hash(info: Manifest, found: str) -> None:
    """Compare the hash of the interactions with the recorded one, if there is one.

    So results of different splits are not compared.

    Raises:
        InputError: They differ.
    """
    if info.split_hash not in (None, found):
        raise InputError(
            f"{info.path}: expected interactions with the hash {info.split_hash:.12}, got "
            f"{found:.12}: the split files were changed after it was written"
        )


def check_items(path: Path, edges: Interactions, num_items: int) -> None:
    """Check that all items of a split, or of a part of it, have a row of features.

    Raises:
        InputError: One has not.
    """
    beyond = np.flatnonzero(edges.item >= num_items)
    if beyond.size:
        user, item = int(edges.user[beyond[0]]), int(edges.item[beyond[0]])
        raise InputError(
            f"{path}: expected items in 0 .. {num_items - 1} (the features have {num_items} rows), "
            f"got item {item} for user {user}"
        )


def check_disjoint(folder: Path, edges: Mapping[str, Interactions], num_items: int) -> None:
    """Check that splits do not overlap; unlike the data set, this can name the files.

    Raises:
        InputError: They do.
    """
    keys = {split: of_split.user * num_items + of_split.item for split, of_split in edges.items()}
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        both = overlap(keys[first], keys[second])
        if both.size:
            user, item = divmod(int(both[0]), num_items)
            way = "--validation from-train draws val.json from train.json"
            if "val" not in (first, second):
                way = "--splits join makes a log, to be split by mmssl data split"
            raise InputError(
                f"{split_path(folder, second)}: expected no edge of "
                f"{split_path(folder, first).name}, got overlap: "
                f"user {user}, item {item} ({both.size} such edges); "
                f"mmssl data import {quoted(folder)} --out NEW {way}"
            )


def feature_paths(folder: Path) -> dict[str, Path]:
    """Find the feature files of a folder: modality -> path, sorted by name.

    Raises:
        InputError: The folder can't be read, or a file name contains an invalid modality name.
    """
    return modality_paths(folder, FEATURE_SUFFIX)


def modality_paths(folder: Path, suffix: str) -> dict[str, Path]:
    """Find the files whose names end in ``suffix``: modality -> path, sorted by name.

    Raises:
        InputError: As :func:`feature_paths`.
    """
    paths: dict[str, Path] = {}
    try:
        names = sorted(os.listdir(folder))  # glob() silently ignores unreadable directories
    except OSError as error:
        raise InputError(f"{folder}: can't be read: {error.strerror or error}") from None
    for name in names:
        if not name.endswith(suffix):
            continue
        path, modality = folder / name, name.removesuffix(suffix)
        if not MODALITY_NAME.fullmatch(modality):
            raise InputError(
                f"{path}: expected a modality of letters, digits, '_' and '-', got {modality!r}"
            )
        paths[modality] = path
    return paths


def common_rows(info: Manifest, paths: Mapping[str, Path]) -> int | None:
    """Return the number of rows that all feature files share, None without features.

    Raises:
        InputError: A header is malformed, or they have other numbers of rows than each other or
            than ``num_items`` of the manifest.
    """
    rows = {path: read_header(path).shape[0] for path in paths.values()}
    if not rows:
        return None
    first, expected = next(iter(rows.items()))
    known = info.num_items
    for path, got in rows.items():
        if known not in (None, got):
            raise InputError(
                f"{path}: expected {known} rows, num_items of {info.path.name}, got {got}"
            )
        if got != expected:
            raise InputError(
                f"{path}: expected {expected} rows, the same number as {first.name}, got {got}"
            )
    return expected


def read_masks(folder: Path, modalities: Iterable[str], num_items: int) -> dict[str, BoolArray]:
    """Read the masks of the modalities that have a mask file.

    Raises:
        InputError: A file is malformed.
    """
    paths = {modality: folder / f"{modality}{MASK_SUFFIX}" for modality in modalities}
    return {m: read_mask(path, num_items) for m, path in paths.items() if os.path.lexists(path)}


def _id_column(table: Table) -> str | None:
    """Return ``id``, or the first name that ends in "id" (``movieId`` in MovieLens-1M)."""
    names = [name for name in table.names[1:] if name.lower().endswith("id")]
    return "id" if "id" in names else names[0] if names else None


def _ids(path: Path, table: Table | None) -> tuple[str, ...] | None:
    name = None if table is None else _id_column(table)
    if table is None or name is None:
        return None
    ids = table.column(name)
    assert ids is not None
    twice = len(ids) - len(set(ids))
    if twice or "" in ids:
        fault = f"{twice} repeated" if twice else "an empty id"
        raise InputError(f"{path}: expected unique, non-empty ids, got {fault}")
    return ids


def _further_columns(items: Table | None) -> dict[str, tuple[str, ...]]:
    """Return the columns that are neither ids nor titles."""
    if items is None:
        return {}
    known = {"title", _id_column(items)}
    places = [(place, name) for place, name in enumerate(items.names) if place and name]
    return {
        name: tuple(row[place] for row in items.rows)
        for place, name in places
        if name not in known and name != "item"
    }
