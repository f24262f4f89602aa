"""Writes a data set in the layout :mod:`mmssl.data.readers` reads, all of it or nothing."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from mmssl.data.dataset import InteractionDataset, Interactions
from mmssl.data.readers import FEATURE_SUFFIX, MASK_SUFFIX
from mmssl.data.tables import table_text
from mmssl.errors import InputError


def write_dataset(
    dataset: InteractionDataset, directory: str | Path, *, source: str | None = None
) -> None:
    """Writes ``dataset``; reading it again gives the same data set, bit for bit.

    The files are written to a temporary folder beside ``directory`` that is then renamed, so an
    error or an interrupt leaves nothing behind.

    Args:
        dataset: What to write.
        directory: A folder that doesn't exist, or an empty one. Never overwritten.
        source: Where the data comes from, recorded in ``dataset.json``.

    Raises:
        InputError: ``directory`` exists and is not empty, or can't be written.
    """
    target = Path(directory)
    check_writable(target)
    try:
        final = target.resolve()
        final.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
        try:
            _write_files(dataset, staging, source)
            umask = os.umask(0)
            os.umask(umask)
            staging.chmod(0o777 & ~umask)  # mkdtemp's are private
            staging.rename(final)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    except OSError as error:
        raise InputError(f"{target}: can't be written: {error.strerror or error}") from None


def check_writable(directory: Path) -> None:
    """Raises InputError when there is something at ``directory`` that writing would replace."""
    if os.path.isdir(directory):
        try:
            empty = not os.listdir(directory)
        except OSError as error:
            raise InputError(f"{directory}: can't be read: {error.strerror or error}") from None
        if not empty:
            raise InputError(f"{directory}: expected no or an empty directory, got files in it")
    elif os.path.lexists(directory):
        raise InputError(f"{directory}: expected no or an empty directory, got something else")


def _write_files(dataset: InteractionDataset, folder: Path, source: str | None) -> None:
    for split, edges in dataset.splits():
        (folder / f"{split}.json").write_text(_split_text(edges), encoding="utf-8")
    for modality, rows in dataset.features.items():
        np.save(folder / f"{modality}{FEATURE_SUFFIX}", rows, allow_pickle=False)
    for modality, mask in dataset.masks.items():
        np.save(folder / f"{modality}{MASK_SUFFIX}", mask, allow_pickle=False)
    if dataset.user_ids is not None:
        text = table_text(("user", "id"), ((name,) for name in dataset.user_ids))
        (folder / "users.tsv").write_text(text, encoding="utf-8", newline="\n")
    columns = {
        name: cells
        for name, cells in (("id", dataset.item_ids), ("title", dataset.item_titles))
        if cells is not None
    }
    if columns:
        text = table_text(("item", *columns), zip(*columns.values(), strict=True))
        (folder / "items.tsv").write_text(text, encoding="utf-8", newline="\n")
    info: dict[str, object] = {
        "name": dataset.name,
        "num_users": dataset.num_users,
        "num_items": dataset.num_items,
        "content_hash": dataset.content_hash(),
    }
    if source is not None:
        info["source"] = source
    (folder / "dataset.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")


def _split_text(edges: Interactions) -> str:
    """``{"user": [item, ...]}``, one user per line: users with an edge, in order."""
    users, starts = np.unique(edges.user, return_index=True)
    lists = np.split(edges.item, starts[1:])
    lines = [
        f'"{user}": {json.dumps(items.tolist())}' for user, items in zip(users, lists, strict=True)
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"
