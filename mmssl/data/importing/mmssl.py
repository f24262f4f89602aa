"""The layout of MMSSL itself: it is checked and copied, and gets its ``dataset.toml``."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np

from mmssl.data.dataset import FloatArray, InteractionDataset, Interactions
from mmssl.data.importing.given import from_train
from mmssl.data.importing.options import Imported, ImportOptions
from mmssl.data.importing.tensors import tensor_features
from mmssl.data.log import joined
from mmssl.data.manifest import Source
from mmssl.data.readers import (
    FEATURE_SUFFIX,
    MASK_SUFFIX,
    NEIGHBORS_SUFFIX,
    read_dataset,
)
from mmssl.data.split_files import SPLITS, read_split, split_path
from mmssl.data.summary import passed_over
from mmssl.errors import InputError
from mmssl.files import file_sha256


def import_mmssl(path: Path, options: ImportOptions) -> Imported:
    """Import a directory of ``train.json``, ``val.json``, ``test.json``; copy its features.

    Raises:
        InputError: As :func:`~mmssl.data.readers.read_dataset`, or an option does not apply.
    """
    options.refuse(
        "mmssl", "all_items", "columns", "header", "dialect", "items", "min_rating", "keep"
    )
    options.refuse("mmssl", "bad_rows", "null_ids", "decimal", "dates", "time_unit", "ordered")
    dataset, notes = _with_validation(path, options)
    names = [f"{modality}{FEATURE_SUFFIX}" for modality in dataset.features]
    names += [f"{modality}{MASK_SUFFIX}" for modality in dataset.masks]
    names += [f"{modality}{NEIGHBORS_SUFFIX}" for modality in dataset.neighbors]
    names += [name for m in dataset.features if (path / (name := f"{m}_feat.toml")).exists()]
    features: dict[str, Path | FloatArray] = {name: path / name for name in names}
    tensors, told = tensor_features(path)
    for name, rows in tensors.items():
        if not names and dataset.item_ids is None and len(rows) > dataset.num_items:
            dataset = dataclasses.replace(dataset, num_items=len(rows))
        if len(rows) != dataset.num_items:
            raise InputError(
                f"{path / name.replace('.npy', '.pt')}: expected {dataset.num_items} rows, one per "
                f"item, got {len(rows)}"
            )
        features[name] = rows
    edges = sum(edges.num_edges for _, edges in dataset.splits())
    present = [file for split in SPLITS if (file := split_path(path, split)).exists()]
    source = Source(
        format="mmssl",
        files={file.name: file_sha256(file) for file in present},
        rows_read=edges,
        rows_kept=edges,
    )
    plain = dataclasses.replace(
        dataset, name=options.name or dataset.name, features={}, masks={}, neighbors={}
    )
    data = joined(plain) if options.splits == "join" else plain
    unread = [name for name in passed_over(path) if not name.endswith(("_feat.pt", "_feat.pth"))]
    rest = (f"files that are not read: {', '.join(unread[:10])}",) if unread else ()
    return Imported(data, source, features, notes=(*notes, *told, *rest))


def _with_validation(path: Path, options: ImportOptions) -> tuple[InteractionDataset, list[str]]:
    """Read the directory; draw a validation split from train if it has none or is told to."""
    if not os.path.lexists(split_path(path, "train")):
        return read_dataset(path), []  # says what is missing
    join = options.splits == "join"
    given = None
    given_file = split_path(path, "val")
    if os.path.lexists(given_file) and (options.validation == "given" or join):
        given = read_split(path, "val", may_be_empty=True)
    if given is not None and given.num_edges and not join:
        return read_dataset(path), []
    train, test = read_split(path, "train"), read_split(path, "test")
    if join:
        parts = [part for part in (train, given, test) if part is not None]
        return read_dataset(path, splits=_disjoint(parts)), []
    chosen, info, note = from_train(train, options.seed)
    rest = np.delete(np.arange(train.num_edges), chosen)
    splits = {
        "train": Interactions(train.user[rest], train.item[rest]),
        "val": Interactions(train.user[chosen], train.item[chosen]),
        "test": test,
    }
    dataset = dataclasses.replace(read_dataset(path, splits=splits), split=info)
    notes = [note]
    if os.path.lexists(given_file):
        count = read_split(path, "val", may_be_empty=True).num_edges
        notes.append(
            f"{given_file.name} is left out: {count:,} interactions (--validation from-train)"
        )
    return dataset, notes


def _disjoint(parts: list[Interactions]) -> dict[str, Interactions]:
    """Return the distinct interactions of all parts, in three parts that are joined later."""
    user = np.concatenate([part.user for part in parts])
    item = np.concatenate([part.item for part in parts])
    user, item = np.unique(np.stack([user, item]), axis=1)
    if user.size < 3:
        raise InputError(f"expected at least three interactions, got {user.size}")
    one, other = Interactions(user[:1], item[:1]), Interactions(user[1:2], item[1:2])
    return {"train": Interactions(user[2:], item[2:]), "val": one, "test": other}
