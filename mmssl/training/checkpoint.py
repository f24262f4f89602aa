"""Checkpoints in one safetensors file: tensors, a JSON state, a hash over both. No pickle.

Files are written by :func:`mmssl.files.atomic_write`, so a reader sees the old or the new one,
whole, whenever the writer is killed. Older checkpoints stay next to the newest:
``last.safetensors``, ``last.1.safetensors`` (one save older), and so on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from mmssl.errors import InputError
from mmssl.files import atomic_write, open_regular

METADATA = "mmssl"

logger = logging.getLogger(__name__)


class Checkpoint(NamedTuple):
    """Tensors by name, and a state of plain values that JSON can hold."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(
    path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any], *, keep: int = 1
) -> None:
    """Write ``path`` atomically.

    Args:
        path: Path of the newest checkpoint.
        tensors: Any device and dtype.
        state: Plain values that JSON can hold.
        keep: Maximum number of checkpoints, this one and older ones.

    Raises:
        InputError: The directory can't be written or the disk is full; ``path`` is unchanged.
    """
    plain = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(tensors.items())
    }
    text = json.dumps(state)
    # One entry: safetensors writes several in random order, and equal content must be equal bytes.
    entry = json.dumps({"state": text, "sha256": _digest(plain, text)})
    atomic_write(path, save(plain, metadata={METADATA: entry}), lambda: rotate(path, keep))


def older_path(path: Path, age: int) -> Path:
    """Return the path of the checkpoint that is ``age`` saves older than ``path``."""
    return path.with_name(f"{path.stem}.{age}{path.suffix}") if age else path


def checkpoint_paths(path: Path) -> list[Path]:
    """Return the existing checkpoints, the newest first."""
    ages = {
        int(age) for p in path.parent.glob(f"{path.stem}.*{path.suffix}")
        if (age := p.name[len(path.stem) + 1 : -len(path.suffix)]).isdecimal()
    }  # fmt: skip
    return [p for age in sorted(ages | {0}) if (p := older_path(path, age)).exists()]


def rotate(path: Path, keep: int) -> None:
    """Make every checkpoint one save older; ``path`` itself stays until it is replaced."""
    for old in checkpoint_paths(path):
        if old != path and old not in [older_path(path, age) for age in range(1, keep)]:
            old.unlink()
    for age in range(keep - 1, 0, -1):
        source = older_path(path, age - 1)
        if not source.exists():
            continue
        if age > 1:
            os.replace(source, older_path(path, age))
            continue
        # A second name, so that the newest checkpoint is never missing.
        link = path.with_name(f".{path.name}.link")
        link.unlink(missing_ok=True)
        try:
            os.link(path, link)
        except OSError:  # a file system without links
            os.replace(path, older_path(path, 1))
        else:
            os.replace(link, older_path(path, 1))
            link.unlink(missing_ok=True)  # the rename does nothing if both were the same file


def recover_newest(
    path: Path, load: Callable[[Path], Checkpoint] | None = None
) -> tuple[Path, Checkpoint] | None:
    """Return the newest checkpoint that is whole; None without any file.

    Newer ones that are damaged are renamed to ``NAME.damaged``, with a warning in the log.

    Args:
        path: Path of the newest checkpoint.
        load: Reads one, and raises InputError if it is damaged; by default :func:`load_checkpoint`.

    Raises:
        InputError: All files are damaged; they stay as they are.
    """
    damaged: dict[Path, InputError] = {}
    for candidate in checkpoint_paths(path):
        try:
            checkpoint = (load or load_checkpoint)(candidate)
        except InputError as error:
            damaged[candidate] = error
            continue
        for file, reason in damaged.items():
            logger.warning("warning: %s; continuing from %s before it", reason, candidate.name)
            os.replace(file, file.with_name(f"{file.name}.damaged"))
        return candidate, checkpoint
    if not damaged:
        return None
    raise InputError(f"no checkpoint is whole: {'; '.join(map(str, damaged.values()))}")


def load_checkpoint(path: Path) -> Checkpoint:
    """Read what :func:`save_checkpoint` wrote.

    Raises:
        InputError: No such file, not a checkpoint, or its content does not match its hash.
    """
    open_regular(path).close()  # the library would wait for a pipe
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            entry = (file.metadata() or {}).get(METADATA)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except OSError as error:
        raise InputError(f"{path}: can't read the checkpoint: {error}") from error
    except MemoryError as error:
        raise InputError(f"{path}: expected a file that fits memory, got a larger one") from error
    except (safetensors.SafetensorError, ValueError, RuntimeError, AttributeError) as error:
        # The last three: a dtype that this version of torch lacks, or an invalid shape.
        raise InputError(f"{path}: not a safetensors file: {_first_line(error)}") from error
    if entry is None:
        raise InputError(f"{path}: not a file of this package (no {METADATA!r} in its metadata)")
    try:
        content = json.loads(entry)
        text, digest = content["state"], content["sha256"]
        matches = isinstance(text, str) and digest == _digest(tensors, text)
    except (ValueError, KeyError, TypeError, RecursionError):
        matches = False
    if not matches:
        raise InputError(f"{path}: the content does not match its hash; the file is damaged")
    try:
        state = json.loads(text)
    except (ValueError, RecursionError):
        state = None
    if not isinstance(state, dict):  # a valid hash says nothing about the author
        raise InputError(f"{path}: expected a state of this package, got something else")
    return Checkpoint(tensors, state)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():  # an empty tensor may have strides that no view accepts
            digest.update(tensor.reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
