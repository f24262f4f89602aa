"""Atomic writing of data sets in the directory layout of :mod:`mmssl.data.readers`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mmssl.data.blocks import whole_users
from mmssl.data.dataset import InteractionDataset, Interactions
from mmssl.data.manifest import Source, write_manifest
from mmssl.data.npy import save_array
from mmssl.data.npz import write_neighbors
from mmssl.data.readers import FEATURE_SUFFIX, MASK_SUFFIX, NEIGHBORS_SUFFIX
from mmssl.data.split_files import RECORDS_FROM, write_records
from mmssl.data.staging import staged
from mmssl.data.tables import table_text


def write_dataset(
    dataset: InteractionDataset, directory: str | Path, *, source: Source | None = None
) -> None:
    """Write a data set; :func:`~mmssl.data.readers.read_dataset` returns it bit for bit.

    Args:
        dataset: Data set to write.
        directory: Path that does not exist or is an empty directory; never overwritten. It is
            created atomically (:func:`~mmssl.data.staging.staged`).
        source: Source of the data, recorded in ``dataset.toml``.

    Raises:
        InputError: ``directory`` exists and is not empty, or can't be written.
    """
    with staged(directory) as folder:
        write_files(dataset, folder, source)
        for modality, rows in dataset.features.items():
            save_array(folder / f"{modality}{FEATURE_SUFFIX}", rows)
        for modality, mask in dataset.masks.items():
            save_array(folder / f"{modality}{MASK_SUFFIX}", mask)
        for modality, neighbors in dataset.neighbors.items():
            write_neighbors(folder / f"{modality}{NEIGHBORS_SUFFIX}", neighbors)


def write_files(dataset: InteractionDataset, folder: Path, source: Source | None) -> None:
    """Write everything except features and masks into an existing folder."""
    records = sum(edges.num_edges for _, edges in dataset.splits()) > RECORDS_FROM
    for split, edges in dataset.splits():
        if records:
            write_records(folder / f"{split}.npy", edges)
        else:
            _write_json(folder / f"{split}.json", edges)
    files = write_id_maps(
        folder, dataset.user_ids, dataset.item_ids, dataset.item_titles, dataset.item_columns
    )
    info = dataset.split
    write_manifest(
        folder,
        {
            "name": dataset.name,
            "num_users": dataset.num_users,
            "num_items": dataset.num_items,
            "files": files,
            "split": {
                **info.record(),
                "hash": dataset.interactions_hash(),
                **{name: edges.num_edges for name, edges in dataset.splits()},
                "dropped": dict(info.dropped),
            },
            "source": source.to_dict() if source else None,
        },
    )


def write_id_maps(
    folder: Path,
    user_ids: tuple[str, ...] | None,
    item_ids: tuple[str, ...] | None,
    item_titles: tuple[str, ...] | None,
    item_columns: Mapping[str, tuple[str, ...]],
) -> dict[str, str]:
    """Write ``users.tsv`` and ``items.tsv`` if they have columns.

    Returns:
        "users" and "items" -> file name, for each file that was written.
    """
    users = {} if user_ids is None else {"id": user_ids}
    titled = {"id": item_ids, "title": item_titles, **item_columns}
    items = {name: cells for name, cells in titled.items() if cells is not None}
    files = {}
    for key, columns in (("user", users), ("item", items)):
        if columns:
            file = files[f"{key}s"] = f"{key}s.tsv"
            text = table_text((key, *columns), zip(*columns.values(), strict=True))
            (folder / file).write_text(text, encoding="utf-8", newline="\n")
    return files


def _write_json(path: Path, edges: Interactions) -> None:
    """Write ``{"user": [item, ...]}``, one line per user with an edge, in order."""
    with open(path, "w", encoding="utf-8") as file:
        file.write("{\n")
        for part in whole_users(edges.user):
            users, starts = np.unique(edges.user[part], return_index=True)
            lists = np.split(edges.item[part], starts[1:])
            lines = [
                f'"{user}": {json.dumps(items.tolist())}'
                for user, items in zip(users, lists, strict=True)
            ]
            file.write((",\n" if part.start else "") + ",\n".join(lines))
        file.write("\n}\n")
