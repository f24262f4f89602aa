"""Files that all processes write together and that any number of them reads.

They are the same files that a single process writes: one safetensors file with a hash. Every
process writes and reads its rows in place, so none holds a whole table. A file written by some
processes is read by another number of them, or by one. (torch.distributed.checkpoint stores its
metadata as a pickle, which this package does not read.)
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import safetensors
import torch
from torch import Tensor

from mmssl.distributed.group import Processes
from mmssl.distributed.partition import Ranges
from mmssl.errors import InputError
from mmssl.files import open_regular
from mmssl.models.embeddings import Embeddings
from mmssl.training.checkpoint import (
    METADATA,
    Checkpoint,
    checkpoint_paths,
    recover_newest,
    rotate,
)
from mmssl.training.store import Store

if TYPE_CHECKING:
    from mmssl.data.dataset import InteractionDataset
    from mmssl.training.run import RunDirectory

Layout = Callable[[str], Ranges | None]
"""Name of a tensor -> which process holds which of its rows; None if every process holds all."""

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_CHUNK = 1 << 24


class Entry(NamedTuple):
    """A tensor in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]  # of the whole tensor
    start: int  # first byte after the header
    size: int  # bytes


class ShardedStore(Store):
    """The tensors of processes that hold rows of them.

    Args:
        run: The run directory.
        group: The processes; all of them call every method together.
        layout: Which rows they hold.
    """

    def __init__(self, run: RunDirectory, group: Processes, layout: Layout) -> None:
        super().__init__(run, group)
        self.layout = layout

    def save_model(self, tensors: Mapping[str, Tensor]) -> None:
        """See the base class."""
        path = self.run.path / "model.safetensors"
        self._write(path, tensors, {"model": self.run.info.model}, keep=1)

    def save_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """See the base class."""
        path = self.run.checkpoint_path
        if self.group.leads:
            try:
                path.parent.mkdir(exist_ok=True)
            except OSError as error:
                raise _cannot_write(path.parent, error) from error
        self._write(path, tensors, state, keep=self.run.config.training.keep_checkpoints)

    def recover_newest(self) -> tuple[Path, Checkpoint] | None:
        """See the base class."""
        path = self.run.checkpoint_path
        with self.group.leader_first():
            if self.group.leads:  # it sets damaged files aside
                recover_newest(path, load=check_file)
        newest = checkpoint_paths(path)
        return (newest[0], self._read(newest[0])) if newest else None

    def load_scorer(self, dataset: InteractionDataset) -> Embeddings:
        """See the base class; the rows of this process."""
        tensors = self._read(self.run.path / "model.safetensors").tensors
        return Embeddings(tensors["embedding.user"], tensors["embedding.item"])

    def _write(
        self, path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int
    ) -> None:
        plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        text, entries = json.dumps(state), self._entries(plain)
        header = len(_header(entries, text, "0" * 64))
        # The state has clock readings, whose length differs; that of the leading process counts.
        header = int(self.group.sum(torch.tensor(header if self.group.leads else 0)))
        draft = path.with_name(f".{path.name}.draft")
        try:
            if self.group.leads:
                with open(draft, "wb") as file:
                    file.truncate(header + sum(entry.size for entry in entries.values()))
            self.group.wait()
            self._write_rows(draft, header, entries, plain)
            self.group.wait()
            if self.group.leads:
                digest = _digest_of_file(draft, header, entries, text)
                with open(draft, "r+b") as file:
                    file.write(_header(entries, text, digest))
                    file.flush()
                    os.fsync(file.fileno())
                rotate(path, keep)
                os.replace(draft, path)
        except OSError as error:
            raise _cannot_write(path, error) from error
        self.group.wait()

    def _entries(self, tensors: Mapping[str, Tensor]) -> dict[str, Entry]:
        entries, start = {}, 0
        # Wide numbers first, so that every tensor is aligned.
        for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
            tensor, ranges = tensors[name], self.layout(name)
            shape = tuple(tensor.shape)
            shape = shape if ranges is None else (ranges.num_rows, *shape[1:])
            size = torch.Size(shape).numel() * tensor.element_size()
            entries[name] = Entry(tensor.dtype, shape, start, size)
            start += size
        return entries

    def _write_rows(
        self, path: Path, header: int, entries: Mapping[str, Entry], tensors: Mapping[str, Tensor]
    ) -> None:
        with open(path, "r+b") as file:
            for name, entry in entries.items():
                ranges = self.layout(name)
                if ranges is None and not self.group.leads:
                    continue
                first = 0
                if ranges is not None:
                    row = entry.size // max(ranges.num_rows, 1)
                    first = ranges.of(self.group.rank).start * row
                file.seek(header + entry.start + first)
                if tensors[name].numel():
                    file.write(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())

    def _read(self, path: Path) -> Checkpoint:
        """Read this process's rows of a file that is known to be whole."""
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                entry = json.loads((file.metadata() or {})[METADATA])
                tensors = {name: self._read_rows(path, file, name) for name in file.keys()}
        except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: can't read the checkpoint: {error}") from error
        return Checkpoint(tensors, json.loads(entry["state"]))

    def _read_rows(self, path: Path, file: Any, name: str) -> Tensor:
        ranges = self.layout(name)
        if ranges is None:
            tensor: Tensor = file.get_tensor(name)
            return tensor
        rows = file.get_slice(name)
        if rows.get_shape()[0] != ranges.num_rows:
            raise InputError(
                f"{path}: expected {ranges.num_rows} rows in {name}, the number in the data set, "
                f"got {rows.get_shape()[0]}"
            )
        own = ranges.of(self.group.rank)
        part: Tensor = rows[own.start : own.stop]
        return part.clone()


def check_file(path: Path) -> Checkpoint:
    """Compare the content of a file with its hash, in bounded memory.

    Returns:
        A checkpoint without tensors and state.

    Raises:
        InputError: It is not a checkpoint, or its content does not match its hash.
    """
    kinds = {name: dtype for dtype, name in _DTYPES.items()}
    try:
        with open_regular(path) as file:
            length = int.from_bytes(file.read(8), "little")
            if length > os.fstat(file.fileno()).st_size:
                raise ValueError("no header")
            header = json.loads(file.read(length))
        content = json.loads(header.pop("__metadata__")[METADATA])
        entries = {
            name: Entry(
                kinds[found["dtype"]],
                tuple(found["shape"]),
                found["data_offsets"][0],
                found["data_offsets"][1] - found["data_offsets"][0],
            )
            for name, found in header.items()
        }
        whole = content["sha256"] == _digest_of_file(path, 8 + length, entries, content["state"])
    except OSError as error:
        raise InputError(f"{path}: can't read the checkpoint: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not a checkpoint of this package: {error}") from error
    if not whole:
        raise InputError(f"{path}: the content does not match its hash; the file is damaged")
    return Checkpoint({}, {})


def _header(entries: Mapping[str, Entry], text: str, digest: str) -> bytes:
    """Return the first part of a safetensors file; its length does not depend on the digest."""
    content: dict[str, Any] = {
        "__metadata__": {METADATA: json.dumps({"state": text, "sha256": digest})}
    }
    for name, entry in entries.items():
        content[name] = {
            "dtype": _DTYPES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [entry.start, entry.start + entry.size],
        }
    data = json.dumps(content, separators=(",", ":")).encode()
    data += b" " * (-len(data) % 8)
    return len(data).to_bytes(8, "little") + data


def _digest_of_file(path: Path, header: int, entries: Mapping[str, Entry], text: str) -> str:
    """Return what :mod:`mmssl.training.checkpoint` computes of the tensors and the state."""
    digest = hashlib.sha256(text.encode())
    with open(path, "rb") as file:
        for name, entry in sorted(entries.items()):
            digest.update(f"{name} {entry.dtype} {entry.shape}".encode())
            file.seek(header + entry.start)
            left = entry.size
            while left > 0:
                data = file.read(min(left, _CHUNK))
                if not data:
                    raise ValueError("the file is too short")
                digest.update(data)
                left -= len(data)
    return digest.hexdigest()


def _cannot_write(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: can't write the file: {error.strerror or error}")
