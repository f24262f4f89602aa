"""Atomic creation of directories: complete or absent, even if the writing process is killed."""

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
    """Provide a temporary folder that is renamed to ``directory`` when the block succeeds.

    An exception or interrupt removes the folder. A killed process leaves a hidden folder
    ``.NAME.partial-*`` next to ``directory``, which the next writer of ``directory`` removes.

    Args:
        directory: Path that does not exist or is an empty directory; never overwritten.

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
            folder.chmod(0o777 & ~umask)  # mkdtemp creates private folders
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
    """Raise InputError unless ``directory`` does not exist or is an empty directory."""
    if os.path.isdir(directory):
        try:
            empty = not os.listdir(directory)
        except OSError as error:
            raise InputError(f"{directory}: can't be read: {error.strerror or error}") from None
        if not empty:
            raise InputError(f"{directory}: expected a new or empty directory, got one with files")
    elif os.path.lexists(directory):
        raise InputError(f"{directory}: expected a new or empty directory, got a file")


def _lock(folder: Path) -> int | None:
    """Lock a folder until this process ends; None if another process holds the lock."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # locked, or locks are not supported: the folder may be in use
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
    """Flush to disk, so that the content survives a power failure after the rename."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
