"""Checkpoints in one safetensors file: tensors, a JSON state, a hash over both. No pickle.

A file is written beside its place, flushed to disk and renamed, so a reader sees the old or the
new one, whole, whenever the writer is killed. The checkpoints before the newest are kept beside it:
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
from mmssl.files import open_regular

_METADATA = "mmssl"

logger = logging.getLogger(__name__)


class Checkpoint(NamedTuple):
    """Tensors by name and whatever else JSON can hold."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(
    path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any], *, keep: int = 1
) -> None:
    """Writes ``path`` atomically.

    Args:
        path: of the newest checkpoint.
        tensors: any device and dtype.
        state: what JSON can hold.
        keep: how many checkpoints there may be, this one and older ones.

    Raises:
        InputError: the directory can't be written or the disk is full; ``path`` is as it was.
    """
    plain = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(tensors.items())
    }
    text = json.dumps(state)
    # One entry: safetensors writes several in random order, and equal content shall be equal bytes.
    entry = json.dumps({"state": text, "sha256": _digest(plain, text)})
    atomic_write(path, save(plain, metadata={_METADATA: entry}), lambda: _rotate(path, keep))


def older_path(path: Path, age: int) -> Path:
    """Where the checkpoint lies that is ``age`` saves older than ``path``."""
    return path.with_name(f"{path.stem}.{age}{path.suffix}") if age else path


def checkpoint_paths(path: Path) -> list[Path]:
    """The checkpoints there are, the newest first."""
    ages = {
        int(age) for p in path.parent.glob(f"{path.stem}.*{path.suffix}")
        if (age := p.name[len(path.stem) + 1 : -len(path.suffix)]).isdecimal()
    }  # fmt: skip
    return [p for age in sorted(ages | {0}) if (p := older_path(path, age)).exists()]


def _rotate(path: Path, keep: int) -> None:
    """Makes every checkpoint one older; ``path`` itself stays until it is replaced."""
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
        # A second name, so that the newest one is never missing.
        link = path.with_name(f".{path.name}.link")
        link.unlink(missing_ok=True)
        try:
            os.link(path, link)
        except OSError:  # a file system without links
            os.replace(path, older_path(path, 1))
        else:
            os.replace(link, older_path(path, 1))
            link.unlink(missing_ok=True)  # the rename does nothing if both were the same file


def recover_newest(path: Path) -> tuple[Path, Checkpoint] | None:
    """The newest checkpoint that is whole; None if there is no file at all.

    Every newer one that is damaged is renamed to ``NAME.damaged``, with a warning in the log.

    Raises:
        InputError: there are files, but none that is whole; all of them stay.
    """
    damaged: dict[Path, InputError] = {}
    for candidate in checkpoint_paths(path):
        try:
            checkpoint = load_checkpoint(candidate)
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
    """Reads what :func:`save_checkpoint` wrote.

    Raises:
        InputError: no such file, not a checkpoint, or its content does not match its hash.
    """
    open_regular(path).close()  # the library would wait for a pipe
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            entry = (file.metadata() or {}).get(_METADATA)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except OSError as error:
        raise InputError(f"{path}: can't read the checkpoint: {error}") from error
    except MemoryError as error:
        raise InputError(f"{path}: expected a file that fits memory, got a larger one") from error
    except (safetensors.SafetensorError, ValueError, RuntimeError, AttributeError) as error:
        # The last three: numbers of a type that this torch does not have, or odd shapes of them.
        raise InputError(f"{path}: not a safetensors file: {_first_line(error)}") from error
    if entry is None:
        raise InputError(f"{path}: not a file of this package (no {_METADATA!r} in its metadata)")
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
    if not isinstance(state, dict):  # anyone can hash what they wrote
        raise InputError(f"{path}: expected a state of this package, got something else")
    return Checkpoint(tensors, state)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():  # an empty one may have strides that no view accepts
            digest.update(tensor.reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def atomic_write(
    path: Path, data: bytes, before_replacing: Callable[[], None] = lambda: None
) -> None:
    """Replaces ``path`` by ``data`` all at once, durable when this returns.

    Args:
        path: the file.
        data: its new content.
        before_replacing: called when the new content is on disk, under another name.

    Raises:
        InputError: the file can't be written; ``path`` is as it was and nothing is left beside it.
    """
    # One fixed name: what a killed writer leaves behind is overwritten by the next one.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            before_replacing()
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise InputError(f"{path}: can't write the file: {error.strerror or error}") from error
