"""Opens a source: a file, compressed or not; the standard input is stored first.

What a file is follows from its first bytes, not from its name. Files that hold no rows of text are
refused by what they are: a pickle is never opened, since loading one runs code.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import io
import lzma
import os
import re
import shlex
import shutil
import stat
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mmssl.errors import InputError
from mmssl.extras import require

STDIN = "-"
SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zip")
"""Suffixes of compressed files, for the name of what is inside."""
PICKLES = (".pkl", ".pickle", ".joblib")

_ZIP = b"PK\x03\x04"
_ZSTD = b"\x28\xb5\x2f\xfd"
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", _ZSTD: "zstd"}
_NOT_TEXT = {
    b"PAR1": "a Parquet file: --format parquet",
    b"\x93NUMPY": "a NumPy array: write user and item ids as CSV",
    b"ARROW1": "an Arrow (Feather) file: write it as Parquet or CSV",
    b"ORC": "an ORC file: write it as Parquet or CSV",
    b"Obj\x01": "an Avro file: write it as Parquet or CSV",
    b"\x89HDF": "an HDF5 file: write it as Parquet or CSV",
    b"SQLite format 3\0": "an SQLite database: write the table as CSV",
    b"\xd0\xcf\x11\xe0": "an Excel workbook: write the sheet as CSV",
    b"MATLAB": "a MATLAB file: write the matrix with scipy.sparse.save_npz",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it first",
    b"Rar!": "a RAR archive: unpack it first",
    b"%PDF": "a PDF",
}


class _Hashing(io.RawIOBase):
    """Reads a binary file and hashes all that passes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._digest = file, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        self._digest.update(data)
        buffer[: len(data)] = data
        return len(data)

    def sha256(self) -> str:
        """Return the hash of the whole file; reads what a decompressor left."""
        while data := self._file.read(1 << 20):
            self._digest.update(data)
        return self._digest.hexdigest()


class Stream:
    """The decompressed bytes of a source.

    Attributes:
        name: Name of the file without the suffix of a compression; the member of an archive.
    """

    def __init__(self, path: Path, raw: _Hashing, content: Any, name: str) -> None:
        self.path, self.name = path, name
        self._raw, self._content = raw, content
        self._passed = 0

    def read(self, size: int) -> bytes:
        """Read up to ``size`` bytes; fewer at the end only.

        Raises:
            InputError: The file is damaged, or holds too much.
        """
        parts = []
        try:
            while size > 0 and (data := self._content.read(size)):
                parts.append(data)
                size -= len(data)
        except _damage() as error:
            raise InputError(
                f"{self.path}: expected a whole compressed file, got a damaged one: "
                f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
            ) from None
        block = parts[0] if len(parts) == 1 else b"".join(parts)
        self._passed += len(block)
        if self._passed > MAX_STREAM_BYTES:
            raise InputError(
                f"{self.path}: expected at most {MAX_STREAM_BYTES} bytes of text, got more"
            )
        return block

    def sha256(self) -> str:
        """Return the SHA-256 (hex) of the file as stored; call it after the last read."""
        return self._raw.sha256()


MAX_STREAM_BYTES = 2**38
"""Bytes that a stream may hold; a small file can decompress to an endless one."""


@contextlib.contextmanager
def stored(source: str | Path) -> Iterator[Path]:
    """Provide a path that can be opened repeatedly: a pipe is copied to a temporary file.

    Args:
        source: A file or directory, ``-`` for the standard input, or a pipe.

    Raises:
        InputError: It does not exist or can't be read, or the block raised it.
    """
    path = Path(source)
    standard = str(source) == STDIN
    if not standard and not os.path.exists(path):
        raise InputError(f"{path}: expected a file or directory to import, got none")
    if not standard and not stat.S_ISFIFO(os.stat(path).st_mode):
        yield path
        return
    name = "standard input" if standard else str(path)
    with tempfile.TemporaryDirectory(prefix="mmssl-import-") as scratch:
        copy = Path(scratch) / "stdin"
        try:
            with contextlib.ExitStack() as stack:
                pipe = sys.stdin.buffer if standard else stack.enter_context(open(path, "rb"))
                shutil.copyfileobj(pipe, stack.enter_context(open(copy, "wb")), 1 << 20)
        except OSError as error:
            raise InputError(f"{name}: can't be read: {error.strerror or error}") from None
        try:
            yield copy
        except InputError as error:
            raise InputError(str(error).replace(str(copy), name)) from None


def inner_name(path: Path) -> str:
    """Return the name of a file without the suffix of a compression."""
    name = path.name
    return name[: -len(path.suffix)] if path.suffix.lower() in SUFFIXES else name


@contextlib.contextmanager
def open_stream(path: Path) -> Iterator[Stream]:
    """Open a source for reading.

    Args:
        path: A file, compressed by gzip, bzip2, xz or zstd or a zip archive of one file.

    Raises:
        InputError: It can't be read, or is of a kind that is never or not opened.
    """
    try:
        with contextlib.ExitStack() as stack:
            raw = _Hashing(stack.enter_context(open(path, "rb")))
            buffered = io.BufferedReader(raw, 1 << 20)
            start = buffered.peek(1 << 10)[: 1 << 10]
            name, content = _content(path, buffered, start, stack)
            if content is not buffered:
                content = io.BufferedReader(content, 1 << 20)
                start = _peek(path, content)
            _refuse_other_kinds(path, start)
            yield Stream(path, raw, content, name)
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: can't be read: {error}") from None


def first_bytes(path: Path, size: int = 1 << 16) -> bytes:
    """Return the start of the decompressed content, to find out what it is."""
    with open_stream(path) as stream:
        return stream.read(size)


def pickle_advice(folder: Path, files: list[str]) -> str:
    """Return how the user converts pickled matrices, in one line."""
    load = "s.coo_matrix(pickle.load(open(n, 'rb')))"
    names = ", ".join(map(repr, files))
    code = f"import pickle, scipy.sparse as s; [s.save_npz(n + '.npz', {load}) for n in [{names}]]"
    # Within double quotes, the shell would run what some file names hold.
    plain = all(re.fullmatch(r"[\w.-]+", name) for name in files)
    quoted = f'"{code}"' if plain else shlex.quote(code)
    return (
        "pickles are never opened, since loading one runs code; if you trust the source, convert "
        f"in an environment of your own: cd {shlex.quote(str(folder))} && python -c {quoted}, then "
        "import the .npz"
    )


def is_pickle(name: str, start: bytes) -> bool:
    """Return whether a file is a pickle, by its name or its first bytes."""
    protocols = start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    return protocols or Path(name).suffix.lower() in PICKLES


def _content(
    path: Path, buffered: Any, start: bytes, stack: contextlib.ExitStack
) -> tuple[str, Any]:
    name = inner_name(path)
    if start.startswith(_ZIP):
        return _zip_member(path, buffered, stack)
    kind = next((kind for magic, kind in _COMPRESSIONS.items() if start.startswith(magic)), None)
    if kind == "gzip":
        return name, gzip.GzipFile(fileobj=buffered)
    if kind == "bzip2":
        return name, bz2.BZ2File(buffered)
    if kind == "xz":
        return name, lzma.LZMAFile(buffered)
    if kind == "zstd":
        return name, _Zstd(_zstd(path, buffered))
    return name, buffered


class _Zstd(io.RawIOBase):
    """A stream of pyarrow as a raw file of Python."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data: bytes = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _zstd(path: Path, buffered: Any) -> Any:
    require("pyarrow", "data", f"{path}: reading zstd needs pyarrow")
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(buffered, mode="r"), "zstd")


def _zip_member(path: Path, buffered: Any, stack: contextlib.ExitStack) -> tuple[str, Any]:
    """Open the only file of an archive."""
    while buffered.read(1 << 20):  # for the hash; an archive is read backwards
        pass
    file = stack.enter_context(open(path, "rb"))
    try:
        archive = stack.enter_context(zipfile.ZipFile(file))
        members = [
            entry.filename
            for entry in archive.infolist()
            if not entry.is_dir() and not entry.filename.startswith("__MACOSX/")
        ]
        if "[Content_Types].xml" in members:
            raise InputError(
                f"{path}: expected text, got an Excel workbook: write the sheet as CSV"
            )
        if any(member.endswith("data.pkl") for member in members):
            raise InputError(
                f"{path}: expected text, got a file of torch.save: write user and item ids as CSV"
            )
        if len(members) != 1:
            listed = ", ".join(members[:5]) + (", ..." if len(members) > 5 else "")
            raise InputError(
                f"{path}: expected a zip archive of one file, got {len(members)} "
                f"({listed:.200}): unpack it and import the file of interactions"
            )
        member = stack.enter_context(archive.open(members[0]))
    except InputError:
        raise
    except Exception as error:  # zipfile raises a dozen types for malformed archives
        raise InputError(
            f"{path}: expected a zip archive that opens without a password, got "
            f"{type(error).__name__}"
        ) from None
    return Path(members[0]).name, member


def _peek(path: Path, content: io.BufferedReader) -> bytes:
    try:
        return content.peek(1 << 10)[: 1 << 10]
    except _damage() as error:
        raise InputError(
            f"{path}: expected a whole compressed file, got a damaged one: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from None


def _refuse_other_kinds(path: Path, start: bytes) -> None:
    if start[257:262] == b"ustar":
        raise InputError(f"{path}: expected text, got a tar archive: unpack it first")
    if is_pickle(path.name, start):
        advice = pickle_advice(path.parent, [path.name])
        raise InputError(f"{path}: expected text, got a pickle; {advice}")
    for magic, kind in _NOT_TEXT.items():
        if start.startswith(magic):
            raise InputError(f"{path}: expected text, got {kind}")


def _damage() -> tuple[type[BaseException], ...]:
    """Return what decompressors raise for damaged content; pyarrow's errors are two of these."""
    return (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError)
