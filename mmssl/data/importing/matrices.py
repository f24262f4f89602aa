"""Sparse matrices: one file, or a directory of train, perhaps validation, and test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmssl.data.dataset import FloatArray
from mmssl.data.importing.assemble import IdMap, joined, number_rows
from mmssl.data.importing.given import checked_splits, with_splits
from mmssl.data.importing.options import Imported, ImportOptions, with_item_table
from mmssl.data.importing.sparse import Matrix
from mmssl.data.importing.tensors import features_of
from mmssl.data.manifest import Source
from mmssl.errors import InputError


def import_matrices(
    paths: Sequence[tuple[Path, int | None]],
    options: ImportOptions,
    *,
    name: str,
    folder: Path | None = None,
    notes: Sequence[str] = (),
) -> Imported:
    """Import matrices of one shape.

    Args:
        paths: File and its split: 0 train, 1 validation, 2 test, None for a log.
        options: Options of the import.
        name: Name of the data set unless the options have one.
        folder: Directory whose features belong to the items.
        notes: What to tell about the source.

    Raises:
        InputError: A file can't be read, or shapes differ.
    """
    options.refuse(
        "npz", "all_items", "columns", "header", "dialect", "ordered", "null_ids", "decimal"
    )
    matrices = [Matrix(path) for path, _ in paths]
    for matrix in matrices[1:]:
        if matrix.shape != matrices[0].shape:
            raise InputError(
                f"{matrix.path}: expected the shape {matrices[0].shape} of "
                f"{matrices[0].path.name}, got {matrix.shape}"
            )
    parts = []
    for matrix, (_, label) in zip(matrices, paths, strict=True):
        labels = None if label is None else np.full(matrix.rows.user.size, label, np.int64)
        parts.append(matrix.rows._replace(label=labels))
    if len({part.rating is None for part in parts}) > 1:  # one file happens to have equal values
        parts = [part._replace(rating=None) for part in parts]
    rows = joined(parts) if len(parts) > 1 else parts[0]
    names = [next((path.name for path, label in paths if label == n), "") for n in range(3)]
    rows = checked_splits(rows, names, options)
    users, items = matrices[0].shape
    numbered = number_rows(
        options.name or name,
        rows,
        keep=options.keep,
        min_rating=options.min_rating,
        users=IdMap(users, None),
        items=IdMap(items, None),
    )
    log, table, hashes = with_item_table(options, numbered.log, "")
    data, more = with_splits(log, numbered.label, options)
    features, told = features_of(folder, items) if folder is not None else ({}, [])
    source = Source(
        format="npz",
        files={**{matrix.path.name: matrix.sha256 for matrix in matrices}, **hashes},
        columns={"user": "row", "item": "column"},
        rows_read=rows.rows_read,
        rows_kept=log.num_edges,
        dropped=numbered.dropped,
    )
    table_notes = table.notes if table is not None else ()
    kept: dict[str, Path | FloatArray] = dict(features)
    return Imported(data, source, kept, table, (*notes, *told, *table_notes, *more))
