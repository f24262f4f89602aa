"""Feature files that are not ``.npy``: plain tensors of torch are converted, others are named."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mmssl.data.dataset import MODALITY_NAME, FloatArray
from mmssl.data.npy import read_header
from mmssl.data.readers import FEATURE_SUFFIX, feature_paths
from mmssl.errors import InputError

_TENSORS = ("_feat.pt", "_feat.pth")


def features_of(folder: Path, num_items: int) -> tuple[dict[str, Path | FloatArray], list[str]]:
    """Find the features of a directory whose items are numbered.

    ``NAME_feat.npy`` is copied. ``NAME_feat.pt`` is loaded by ``torch.load(weights_only=True)``,
    which runs no code of the file, and becomes ``NAME_feat.npy`` if it is a plain tensor.

    Args:
        folder: Directory of the source.
        num_items: Number of items.

    Returns:
        File name in the new directory -> file or rows, and what to tell.

    Raises:
        InputError: Features have another number of rows.
    """
    found: dict[str, Path | FloatArray] = {}
    for path in feature_paths(folder).values():
        _check_rows(path, read_header(path).shape[0], num_items)
        found[path.name] = path
    rows, notes = tensor_features(folder)
    for name, values in rows.items():
        if name not in found:
            _check_rows(folder / name, values.shape[0], num_items)
            found[name] = values
    return found, notes


def tensor_features(folder: Path) -> tuple[dict[str, FloatArray], list[str]]:
    """Load the ``*_feat.pt`` of a directory: name of the ``.npy`` -> rows, and what to tell."""
    rows: dict[str, FloatArray] = {}
    notes: list[str] = []
    for name in sorted(os.listdir(folder)):
        suffix = next((suffix for suffix in _TENSORS if name.endswith(suffix)), None)
        if suffix is None:
            continue
        target = f"{name.removesuffix(suffix)}{FEATURE_SUFFIX}"
        if (folder / target).exists():
            notes.append(f"{name} is left out: {target} is used")
            continue
        values, why = _load(folder / name)
        if not MODALITY_NAME.fullmatch(name.removesuffix(suffix)):
            values, why = None, "expected a modality of letters, digits, '_' and '-'"
        if values is None:
            notes.append(f"{name} is left out: {why}")
        else:
            rows[target] = values
            notes.append(f"{name} was converted to {target}")
    return rows, notes


def _load(path: Path) -> tuple[FloatArray | None, str]:
    """Return the rows of a tensor, or None and why it can't be used."""
    import torch

    try:
        with warnings.catch_warnings():  # what torch warns of, it refuses next
            warnings.simplefilter("ignore")
            value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for content that it does not accept
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        return None, f"expected a plain tensor that loads under weights_only=True, got: {reason}"
    if not isinstance(value, torch.Tensor):
        return None, f"expected a plain tensor, got {type(value).__name__}"
    if value.dim() != 2 or value.is_sparse or not value.shape[1] or not value.is_floating_point():
        return None, f"expected floats of shape (items, d), got {value.dtype}, {tuple(value.shape)}"
    if value.dtype not in (torch.float16, torch.float32):
        value = value.float()
    return np.ascontiguousarray(value.detach().numpy()), ""


def _check_rows(path: Path, rows: int, num_items: int) -> None:
    if rows != num_items:
        raise InputError(f"{path}: expected {num_items} rows, one per item, got {rows}")


def left_out(folder: Path, read: Mapping[str, object] | set[str]) -> list[str]:
    """Return the files of a directory that an import does not read, without hidden ones."""
    return [
        name
        for name in sorted(os.listdir(folder))
        if name not in read and not name.startswith((".", "_"))
    ]
