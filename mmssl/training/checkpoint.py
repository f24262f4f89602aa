"""Checkpoints in one safetensors file: tensors, a JSON state, a hash over both. No pickle.

A file is written beside its place, flushed to disk and renamed, so a reader sees the old or the
new one, whole, whenever the writer is killed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from mmssl.errors import InputError
from mmssl.files import open_regular

_METADATA = "mmssl"


class Checkpoint(NamedTuple):
    """Tensors by name and whatever else JSON can hold."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Writes ``path`` atomically.

    Raises:
        InputError: the directory can't be written or the disk is full; ``path`` is as it was.
    """
    plain = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(tensors.items())
    }
    text = json.dumps(state)
    # One entry: safetensors writes several in random order, and equal content shall be equal bytes.
    entry = json.dumps({"state": text, "sha256": _digest(plain, text)})
    atomic_write(path, save(plain, metadata={_METADATA: entry}))


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


def atomic_write(path: Path, data: bytes) -> None:
    """Replaces ``path`` by ``data`` all at once, durable when this returns.

    Raises:
        InputError: the file can't be written; ``path`` is as it was and nothing is left beside it.
    """
    # One fixed name: what a killed writer leaves behind is overwritten by the next one.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
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
