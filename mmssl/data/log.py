"""An interaction log: what an importer makes of raw rows, before it is split.

A directory holds::

    interactions.npy      one record per user and item: user, item[, rating][, time]
    users.tsv items.tsv   as beside a data set with splits
    <modality>_feat.npy   optional, as there
    dataset.toml          with [log] instead of [split]

``np.load("interactions.npy")["user"]`` reads it anywhere.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmssl.data.dataset import FloatArray, IntArray, Interactions
from mmssl.data.manifest import Manifest, Source, read_manifest, write_manifest
from mmssl.data.npy import read_records
from mmssl.data.readers import read_dataset, read_id_maps
from mmssl.data.writers import write_id_maps
from mmssl.errors import InputError

FILE = "interactions.npy"
_KINDS = {"user": ("<i4",), "item": ("<i4",), "rating": ("<f8",), "time": ("<i8", "<f8")}


@dataclass(frozen=True, kw_only=True, eq=False)
class InteractionLog:
    """E interactions, sorted by (user, item), each once.

    Raises:
        InputError: Ids out of range, out of order or twice; columns of different lengths.
    """

    name: str
    num_users: int
    num_items: int
    user: IntArray  # (E,)
    item: IntArray  # (E,)
    rating: npt.NDArray[np.float64] | None = None  # (E,)
    time: npt.NDArray[np.generic] | None = None  # (E,) int64 or float64
    user_ids: tuple[str, ...] | None = None
    item_ids: tuple[str, ...] | None = None
    item_titles: tuple[str, ...] | None = None
    item_columns: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, ids, count in (
            ("user", self.user, self.num_users),
            ("item", self.item, self.num_items),
        ):
            if not ids.size or ids.min() < 0 or ids.max() >= count:
                raise InputError(f"{what} ids must be at least one and in 0 .. {count - 1}")
        if (np.diff(self.user * self.num_items + self.item) <= 0).any():
            raise InputError("interactions must be sorted by (user, item), each once")
        for what, values in (("item", self.item), ("rating", self.rating), ("time", self.time)):
            if values is not None and values.shape != self.user.shape:
                raise InputError(f"{what} must have shape {self.user.shape}, got {values.shape}")

    @property
    def num_edges(self) -> int:
        """Number of interactions E."""
        return int(self.user.size)

    def records(self) -> npt.NDArray[np.void]:
        """(E,) structured array, what ``interactions.npy`` holds."""
        columns = {"user": self.user, "item": self.item, "rating": self.rating, "time": self.time}
        present = {name: values for name, values in columns.items() if values is not None}
        kinds = [(name, _kind(name, values)) for name, values in present.items()]
        records: npt.NDArray[np.void] = np.empty(self.num_edges, dtype=kinds)
        for name, values in present.items():
            records[name] = values
        return records


def write_log(log: InteractionLog, folder: Path, source: Source | None) -> None:
    """Writes everything of a log except features into a folder that is there."""
    records = log.records()
    np.save(folder / FILE, records, allow_pickle=False)
    write_manifest(
        folder,
        {
            "name": log.name,
            "num_users": log.num_users,
            "num_items": log.num_items,
            "files": write_id_maps(
                folder, log.user_ids, log.item_ids, log.item_titles, log.item_columns
            ),
            "log": {"rows": log.num_edges, "hash": _hash(records)},
            "source": source.to_dict() if source else None,
        },
    )


def is_log(directory: Path) -> bool:
    """Whether a directory holds a log that is not split yet."""
    return os.path.isfile(directory / FILE)


def read_log(directory: Path) -> tuple[InteractionLog, Manifest]:
    """Reads a log, or takes a data set with splits as one that has neither ratings nor times.

    Raises:
        InputError: One line that names the file, what was expected and what was got.
    """
    info = read_manifest(directory)
    if not is_log(directory) and info.log_hash is None:
        return _union(directory), info
    path = directory / FILE
    records = read_records(path, _KINDS, required=("user", "item"))
    if info.log_hash not in (None, _hash(records)):
        raise InputError(
            f"{info.path}: expected interactions with the hash {info.log_hash:.12}, got "
            f"{_hash(records):.12}: {FILE} is not the one it was written with"
        )
    names = records.dtype.names or ()
    user, item = records["user"].astype(np.int64), records["item"].astype(np.int64)
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
            rating=np.ascontiguousarray(records["rating"]) if "rating" in names else None,
            time=np.ascontiguousarray(records["time"]) if "time" in names else None,
            **maps._asdict(),
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return log, info


def _union(directory: Path) -> InteractionLog:
    dataset = read_dataset(directory, modalities=())
    parts = [edges for _, edges in dataset.splits()]
    edges = Interactions.from_edges(
        np.concatenate([part.user for part in parts]), np.concatenate([part.item for part in parts])
    )
    return InteractionLog(
        name=dataset.name,
        num_users=dataset.num_users,
        num_items=dataset.num_items,
        user=edges.user,
        item=edges.item,
        user_ids=dataset.user_ids,
        item_ids=dataset.item_ids,
        item_titles=dataset.item_titles,
        item_columns=dataset.item_columns,
    )


def _kind(name: str, values: IntArray | FloatArray | npt.NDArray[np.generic]) -> str:
    kinds = _KINDS[name]
    return kinds[-1] if values.dtype.kind == "f" else kinds[0]


def _hash(records: npt.NDArray[np.void]) -> str:
    """SHA-256 (hex) over columns and records; little-endian on every machine."""
    digest = hashlib.sha256(f"mmssl-log-1 {records.dtype.descr} {records.size}\n".encode())
    digest.update(records.view(np.uint8).data)
    return digest.hexdigest()


def summarise_log(log: InteractionLog) -> dict[str, object]:
    """What ``mmssl data inspect`` shows of a log, as plain JSON values."""
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
    """The same, to be read by people."""
    facts = summarise_log(log)
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
