"""Opens untrusted files safely (regular files only, bounded size, never blocking); atomic writes.

Opening a pipe waits for a writer and reading a device may never end, and either can hide behind an
innocent name or a symlink. A file is opened once and every check applies to the open descriptor,
so the file cannot be swapped between a check and the read.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from mmssl.errors import InputError

MAX_TEXT_BYTES = 2**33
"""Maximum size in bytes of a table or list of a data set; a billion interactions fit."""
MAX_CONFIG_BYTES = 2**20
"""Maximum size in bytes of a hand-written configuration file."""


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, like ``open(path, "rb")``.

    Raises:
        InputError: The file does not exist, can't be read or is not a regular file.
    """
    try:
        # O_NONBLOCK: a pipe opens at once, with or without a writer, and is refused below.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from None
    except ValueError:  # a NUL in the name
        raise InputError(f"{path}: expected a file name, got one with a NUL character") from None
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise InputError(f"{path}: expected a regular file, got {_name(kind)}")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, limit: int = MAX_TEXT_BYTES) -> bytes:
    """Read a regular file completely.

    Args:
        path: File to read.
        limit: Maximum size in bytes.

    Raises:
        InputError: :func:`open_regular` fails, or the file is larger than ``limit`` or than memory.
    """
    with open_regular(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            if size <= limit:
                return file.read(size)  # never more than was measured, even if the file grows
        except OSError as error:
            raise InputError(f"{path}: can't be read: {error.strerror or error}") from None
        except MemoryError:
            pass
    raise InputError(f"{path}: expected at most {limit} bytes that fit in memory, got more")


def read_text(path: Path, limit: int = MAX_TEXT_BYTES) -> str:
    """Read a regular file as UTF-8 text and strip a byte order mark.

    Raises:
        InputError: :func:`read_bytes` fails, or the file is not valid UTF-8.
    """
    content = read_bytes(path, limit)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: expected UTF-8 text, got an invalid byte at offset {error.start}"
        ) from None


def quoted(path: str | Path) -> str:
    """Return a path as a shell reads it, for commands in messages."""
    return shlex.quote(str(path))


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content as 64 hexadecimal digits.

    Raises:
        OSError: The file can't be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def atomic_write(
    path: Path, data: bytes, before_replacing: Callable[[], None] = lambda: None
) -> None:
    """Replace the content of ``path`` atomically; durable when this returns.

    The data is written to a hidden file in the same directory, flushed to disk and renamed.

    Args:
        path: The file.
        data: Its new content.
        before_replacing: Called when the new content is on disk, under another name.

    Raises:
        InputError: The file can't be written; ``path`` is unchanged and no other file is left.
    """
    # A fixed name: the next writer overwrites what a killed one left behind.
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


def _name(kind: int) -> str:
    return {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a pipe",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFSOCK: "a socket",
    }.get(kind, "something else")
