"""A directory that appears whole or not at all, whatever happens to the process that writes it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mmssl.errors import InputError


@contextlib.contextmanager
def staged(directory: str | Path) -> Iterator[Path]:
    """A folder beside ``directory`` to write into; renamed to it when the block ends well.

    An error or an interrupt removes it. A killed process can't: what it leaves is a hidden folder
    ``.NAME.partial-*``, which the next writer of the same directory removes.

    Args:
        directory: Where nothing is, or an empty folder. Never overwritten.

    Raises:
        InputError: ``directory`` exists and is not empty, or can't be written.
    """
    target = Path(directory)
    check_writable(target)
    try:
        final = target.resolve()
        final.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{final.name}.partial-"
        _remove_abandoned(final.parent, prefix)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=final.parent))
        lock = _lock(folder)
        try:
            yield folder
            for path in (*folder.iterdir(), folder):
                _flush(path)
            umask = os.umask(0)
            os.umask(umask)
            folder.chmod(0o777 & ~umask)  # mkdtemp's are private
            folder.rename(final)
            _flush(final.parent)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            if lock is not None:
                os.close(lock)
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


def _lock(folder: Path) -> int | None:
    """A lock on a folder that dies with this process; None when somebody else holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a file system without locks: either way not known to be free
        os.close(descriptor)
        return None
    return descriptor


def _remove_abandoned(parent: Path, prefix: str) -> None:
    for name in os.listdir(parent):
        path = parent / name
        if not name.startswith(prefix) or path.is_symlink() or not path.is_dir():
            continue
        with contextlib.suppress(OSError):
            lock = _lock(path)
            if lock is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


def _flush(path: Path) -> None:
    """To the disk, so that a power failure after the rename finds the content as well."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
