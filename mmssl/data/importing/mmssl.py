"""The layout of MMSSL itself: it is checked and copied, and gets its ``dataset.toml``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mmssl.data.importing.options import Imported, ImportOptions
from mmssl.data.importing.table import read_bytes
from mmssl.data.manifest import Source
from mmssl.data.readers import (
    FEATURE_SUFFIX,
    MASK_SUFFIX,
    NEIGHBORS_SUFFIX,
    SPLITS,
    read_dataset,
)


def import_mmssl(path: Path, options: ImportOptions) -> Imported:
    """Import a directory of ``train.json``, ``val.json``, ``test.json``; copy its features.

    Raises:
        InputError: As :func:`~mmssl.data.readers.read_dataset`, or an option does not apply.
    """
    options.refuse("mmssl", "columns", "header", "dialect", "items", "min_rating", "keep")
    options.refuse("mmssl", "bad_rows")
    dataset = read_dataset(path)
    names = [f"{modality}{FEATURE_SUFFIX}" for modality in dataset.features]
    names += [f"{modality}{MASK_SUFFIX}" for modality in dataset.masks]
    names += [f"{modality}{NEIGHBORS_SUFFIX}" for modality in dataset.neighbors]
    names += [name for m in dataset.features if (path / (name := f"{m}_feat.toml")).exists()]
    edges = sum(edges.num_edges for _, edges in dataset.splits())
    source = Source(
        format="mmssl",
        files={f"{split}.json": read_bytes(path / f"{split}.json")[1] for split in SPLITS},
        rows_read=edges,
        rows_kept=edges,
    )
    plain = dataclasses.replace(
        dataset, name=options.name or dataset.name, features={}, masks={}, neighbors={}
    )
    return Imported(plain, source, {name: path / name for name in names})
