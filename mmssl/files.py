"""How files of strangers are opened: regular ones only, of bounded size, waiting for nobody.

A pipe would wait for a writer and a device may never end; both can lie behind an innocent name or
a symlink. A file is opened once and everything is asked of what was opened, so that nobody can put
another in its place between a check and the read.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from mmssl.errors import InputError

MAX_TEXT_BYTES = 2**33
"""Of a data set's tables and lists; a thousand million interactions stay below."""
MAX_CONFIG_BYTES = 2**20
"""Of a configuration: what a person writes."""


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading, unbuffered reads aside like ``open(path, "rb")``.

    Raises:
        InputError: There is none, it can't be read, or it is something else.
    """
    try:
        # O_NONBLOCK: a pipe opens at once, with or without a writer, and is refused below.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from None
    except ValueError:  # a NUL in the name
        raise InputError(f"{path}: expected the name of a file") from None
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise InputError(f"{path}: expected a regular file, got {_name(kind)}")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, limit: int = MAX_TEXT_BYTES) -> bytes:
    """The whole of a regular file.

    Raises:
        InputError: As :func:`open_regular`, and for more than ``limit`` bytes.
    """
    with open_regular(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            if size <= limit:
                return file.read(size)  # what was there when it was opened
        except OSError as error:
            raise InputError(f"{path}: can't be read: {error.strerror or error}") from None
        except MemoryError:
            pass
    raise InputError(f"{path}: expected at most {limit} bytes that fit memory, got more")


def read_text(path: Path, limit: int = MAX_TEXT_BYTES) -> str:
    """The whole of a regular file as UTF-8, without a byte order mark.

    Raises:
        InputError: As :func:`read_bytes`, and for other bytes than UTF-8.
    """
    content = read_bytes(path, limit)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text, got byte {error.start}") from None


def _name(kind: int) -> str:
    return {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a pipe",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFSOCK: "a socket",
    }.get(kind, "something else")
