"""Interaction logs: imported interactions that have not been split yet.

The directory of a log contains::

    interactions.npy      one record per interaction: user, item[, rating][, time]
    users.tsv items.tsv   id maps, as in a data set with splits
    <modality>_feat.npy   optional features, as in a data set with splits
    dataset.toml          with a section [log] instead of [split]

Plain NumPy reads the interactions: ``np.load("interactions.npy")["user"]``.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmssl.data.blocks import IdArray, ascending
from mmssl.data.dataset import InteractionDataset, Interactions
from mmssl.data.manifest import Manifest, Source, read_manifest, write_manifest
from mmssl.data.npy import open_records, save_records
from mmssl.data.readers import IdMaps, read_dataset, read_id_maps
from mmssl.data.writers import write_id_maps
from mmssl.errors import InputError

FILE = "interactions.npy"
_KINDS = {"user": ("<i4",), "item": ("<i4",), "rating": ("<f8",), "time": ("<i8", "<f8")}


@dataclass(frozen=True, kw_only=True, eq=False)
class InteractionLog:
    """E unique interactions, sorted by (user, item).

    Raises:
        InputError: Ids are out of range, unsorted or repeated, or columns differ in length.
    """

    name: str
    """Name of the data set in reports."""
    num_users: int
    """Number of users U; user ids are 0 .. U-1."""
    num_items: int
    """Number of items I; item ids are 0 .. I-1."""
    user: IdArray
    """(E,) int32 or int64 user ids."""
    item: IdArray
    """(E,) int32 or int64 item ids."""
    rating: npt.NDArray[np.float64] | None = None
    """(E,) ratings, None if the source has none."""
    time: npt.NDArray[np.generic] | None = None
    """(E,) int64 or float64 times in the unit of the source, None if the source has none."""
    user_ids: tuple[str, ...] | None = None
    """External id of each user."""
    item_ids: tuple[str, ...] | None = None
    """External id of each item."""
    item_titles: tuple[str, ...] | None = None
    """Display title of each item."""
    item_columns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Additional text columns: column name -> one cell per item."""

    def __post_init__(self) -> None:
        for what, ids, count in (
            ("user", self.user, self.num_users),
            ("item", self.item, self.num_items),
        ):
            if not ids.size or ids.min() < 0 or ids.max() >= count:
                raise InputError(f"{what} ids must be in 0 .. {count - 1}, with at least one id")
        for what, values in (("item", self.item), ("rating", self.rating), ("time", self.time)):
            if values is not None and values.shape != self.user.shape:
                raise InputError(f"{what} must have shape {self.user.shape}, got {values.shape}")
        if not ascending(self.user, self.item):
            raise InputError("interactions must be unique and sorted by (user, item)")

    @property
    def num_edges(self) -> int:
        """Number of interactions E."""
        return int(self.user.size)

    def columns(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the columns of ``interactions.npy`` that are present, (E,) each."""
        columns = {"user": self.user, "item": self.item, "rating": self.rating, "time": self.time}
        return {name: values for name, values in columns.items() if values is not None}


def write_log(log: InteractionLog, folder: Path, source: Source | None) -> None:
    """Write everything except features into an existing folder."""
    columns = log.columns()
    kinds = [(name, _kind(name, values)) for name, values in columns.items()]
    digest = _digest(np.dtype(kinds), log.num_edges)
    save_records(folder / FILE, columns, kinds, digest.update)
    write_manifest(
        folder,
        {
            "name": log.name,
            "num_users": log.num_users,
            "num_items": log.num_items,
            "files": write_id_maps(
                folder, log.user_ids, log.item_ids, log.item_titles, log.item_columns
            ),
            "log": {"rows": log.num_edges, "hash": digest.hexdigest()},
            "source": source.to_dict() if source else None,
        },
    )


def is_log(directory: Path) -> bool:
    """Return whether a directory contains a log that is not split yet."""
    return os.path.isfile(directory / FILE)


def read_log(directory: Path) -> tuple[InteractionLog, Manifest]:
    """Read a log; a data set with splits is read as a log without ratings and times.

    Returns:
        The log and its ``dataset.toml``.

    Raises:
        InputError: A file is missing, malformed or inconsistent with the others.
    """
    info = read_manifest(directory)
    if not is_log(directory) and info.log_hash is None:
        return joined(read_dataset(directory, modalities=())), info
    path = directory / FILE
    columns, found = _read_columns(path)
    if info.log_hash not in (None, found):
        raise InputError(
            f"{info.path}: expected interactions with the hash {info.log_hash:.12}, got "
            f"{found:.12}: {FILE} was changed after it was written"
        )
    user, item = columns["user"], columns["item"]
    if not user.size:
        raise InputError(f"{path}: expected at least one interaction, got none")
    num_users = info.num_users or int(user.max()) + 1
    num_items = info.num_items or int(item.max()) + 1
    maps = read_id_maps(directory, num_users, num_items)
    try:
        log = InteractionLog(
            name=info.name or directory.resolve().name or "dataset",
            num_users=num_users,
            num_items=num_items,
            user=user,
            item=item,
            rating=columns.get("rating"),
            time=columns.get("time"),
            **maps._asdict(),
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return log, info


def joined(dataset: InteractionDataset) -> InteractionLog:
    """Join the splits of a data set into one log, without times or ratings."""
    parts = [edges for _, edges in dataset.splits()]
    edges = Interactions.from_edges(
        np.concatenate([part.user for part in parts]), np.concatenate([part.item for part in parts])
    )
    return InteractionLog(
        name=dataset.name,
        num_users=dataset.num_users,
        num_items=dataset.num_items,
        **edges._asdict(),
        **{name: getattr(dataset, name) for name in IdMaps._fields},
    )


def _kind(name: str, values: npt.NDArray[np.generic]) -> str:
    kinds = _KINDS[name]
    return kinds[-1] if values.dtype.kind == "f" else kinds[0]


def _read_columns(path: Path) -> tuple[dict[str, Any], str]:
    """Return the columns of ``interactions.npy``, contiguous, and the hash of the log."""
    file = open_records(path, _KINDS, required=("user", "item"))
    digest = _digest(file.dtype, file.size)
    columns = {name: np.empty(file.size, file.dtype[name]) for name in file.dtype.names or ()}
    for part, records in file.blocks():
        digest.update(records.view(np.uint8).data)
        for name, values in columns.items():
            values[part] = records[name]
    return columns, digest.hexdigest()


def _digest(dtype: np.dtype[Any], size: int) -> Any:
    """Start the SHA-256 of columns and records, which are little-endian everywhere."""
    return hashlib.sha256(f"mmssl-log-1 {dtype.descr} {size}\n".encode())


def summarize_log(log: InteractionLog) -> dict[str, object]:
    """Compute the statistics that ``mmssl data inspect`` shows of a log, as plain JSON values."""
    ranges = {name: _range(values) for name, values in (("rating", log.rating), ("time", log.time))}
    return {
        "name": log.name,
        "users": log.num_users,
        "items": log.num_items,
        "interactions": log.num_edges,
        "density": log.num_edges / (log.num_users * log.num_items),
        **ranges,
        "titles": log.item_titles is not None,
        "split": None,
    }


def log_lines(log: InteractionLog, info: Manifest) -> list[str]:
    """Format the statistics of :func:`summarize_log` for the terminal."""
    facts = summarize_log(log)
    lines = [
        f"{log.name}: {log.num_users:,} users, {log.num_items:,} items, "
        f"density {facts['density']:.4%}",
        f"interactions: {log.num_edges:,}, not split yet",
    ]
    for name, values in (("rating", log.rating), ("time", log.time)):
        found = _range(values)
        lines.append(f"{name}: " + ("none" if found is None else f"{found[0]} .. {found[1]}"))
    if info.source is not None:
        lines.append(f"source: {info.source.format}, {', '.join(info.source.files)}")
    return lines


def _range(values: npt.NDArray[np.generic] | None) -> tuple[float, float] | None:
    return None if values is None else (values.min().item(), values.max().item())
