"""File locks that end with the process that holds them, however it ends."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mmssl.errors import InputError

LOCK_NAME = ".mmssl.lock"
"""Name of the lock file of a directory."""

# The content is overwritten, so a symlink to another file must not be followed. Over NFS, a lock
# needs a file that is open for writing.
_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
_ATTEMPTS, _SECONDS_BETWEEN_ATTEMPTS = 5, 0.02

logger = logging.getLogger(__name__)


class LocksUnsupported(InputError):
    """The file system has no ``flock``."""


class FileLock:
    """An exclusive ``flock`` on a file of its own; a context manager that waits for the lock.

    The kernel releases the lock when its process dies, so no lock outlives a killed process. A
    forked child does not hold the locks of its parent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self, *, wait: bool = True) -> bool:
        """Take the lock; False if another process holds it and ``wait`` is False.

        Raises:
            LocksUnsupported: The file system has no locks.
            InputError: The file can't be opened or locked.
        """
        try:
            while True:
                descriptor = os.open(self.path, _FLAGS | os.O_CREAT, 0o666)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                    if _is_same_file(descriptor, self.path):
                        break
                except BaseException:
                    os.close(descriptor)
                    raise
                os.close(descriptor)  # its holder removed the file after it was opened here
        except BlockingIOError:
            return False
        except OSError as error:
            kind = LocksUnsupported if error.errno in _UNSUPPORTED else InputError
            raise kind(f"{self.path}: can't lock the file: {error.strerror}") from error
        self._descriptor = descriptor
        _held.add(self)
        return True

    def release(self) -> None:
        """Release the lock; no effect if it is not held."""
        self._close()

    def _close(self) -> None:
        """Close the file, which releases the lock unless another process has it open."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            _held.discard(self)

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class DirectoryLock(FileLock):
    """The lock of a directory in which one process works at a time; a context manager.

    The process is named in a hidden file of the directory, which is removed on release. The
    directory is created if it does not exist; one that was created and is still empty is removed
    on release. An object that holds the lock can be entered again: the function that trains a run
    takes the lock, and so may its caller.

    Args:
        directory: The directory.
        activity: What a process that holds the lock does, for the error message.
        remedy: What the user can do instead, for the error message.
        required: Whether to refuse a file system without locks; otherwise a warning is logged and
            nothing is locked.
    """

    def __init__(
        self,
        directory: Path,
        activity: str = "is training in this directory",
        remedy: str = "stop it or choose another --out",
        *,
        required: bool = False,
    ) -> None:
        super().__init__(directory / LOCK_NAME)
        self._activity, self._remedy, self._required = activity, remedy, required
        self._uses = 0
        self._created: list[Path] = []

    def check(self) -> None:
        """Refuse if another process holds the lock.

        Raises:
            InputError: Another process holds it.
        """
        if not self._uses and not _retried(self._is_free):
            raise self._refusal()

    def take(self) -> None:
        """Take the lock, once more if this object holds it.

        Raises:
            InputError: Another process holds it, or :meth:`acquire` fails.
        """
        if not self.acquire():
            raise self._refusal()

    def acquire(self, *, wait: bool = False) -> bool:
        """Take the lock, once more if this object holds it; False if another process holds it.

        Raises:
            LocksUnsupported: The file system has no locks, and they are required.
            InputError: The directory can't be created or the file can't be locked.
        """
        assert not wait, "the holder may work for days"
        if not self._uses:
            self._create_directory()
            try:
                if not _retried(lambda: FileLock.acquire(self, wait=False)):
                    return False
                self._write_holder()
            except LocksUnsupported as error:
                self.path.unlink(missing_ok=True)
                if self._required:
                    self._remove_created()
                    raise
                logger.warning("warning: %s; a second training here is not refused", error)
            except InputError:
                self._remove_created()
                raise
        self._uses += 1
        return True

    def release(self) -> None:
        """Undo one :meth:`acquire`; the last one releases the lock. No effect if not held."""
        self._uses = max(0, self._uses - 1)
        if self._uses:
            return
        if self._descriptor is not None:
            with suppress(OSError):  # the directory may have been moved or removed
                if _is_same_file(self._descriptor, self.path):
                    self.path.unlink()
            self._close()
        self._remove_created()

    def _close(self) -> None:
        super()._close()
        self._uses = 0

    def holder(self) -> str:
        """Return the process that holds the lock, as the subject of a sentence."""
        try:
            descriptor = os.open(self.path, _FLAGS)
            try:
                text = os.read(descriptor, 400).decode("utf-8", "replace")
            finally:
                os.close(descriptor)
        except OSError:
            text = ""
        note = re.fullmatch(r"(\d{1,10}) ([\w.-]{1,255})\n", text)
        if note is None:
            return "another process"
        process, host = note.groups()
        if host != _host():
            return f"process {process} on {host}"
        return "this process" if int(process) == os.getpid() else f"process {process}"

    def __enter__(self) -> None:
        self.take()

    def _refusal(self) -> InputError:
        return InputError(f"{self.path.parent}: {self.holder()} {self._activity}; {self._remedy}")

    def _is_free(self) -> bool:
        """Try the lock without creating its file; :meth:`acquire` reports other problems."""
        try:
            descriptor = os.open(self.path, _FLAGS)
        except OSError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            os.close(descriptor)
        return True

    def _write_holder(self) -> None:
        assert self._descriptor is not None
        with suppress(OSError):  # on a full disk the lock works without the name
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()} {_host()}\n".encode(), 0)

    def _create_directory(self) -> None:
        folder = self.path.parent
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: can't create the directory: {error.strerror}") from error
        self._created = missing

    def _remove_created(self) -> None:
        with suppress(OSError):  # not empty
            for folder in self._created:
                folder.rmdir()
        self._created = []


def _retried(attempt: Callable[[], bool]) -> bool:
    """Repeat for a moment: a process that only checks the lock must not cause a refusal."""
    for _ in range(_ATTEMPTS - 1):
        if attempt():
            return True
        time.sleep(_SECONDS_BETWEEN_ATTEMPTS)
    return attempt()


def _is_same_file(descriptor: int, path: Path) -> bool:
    """Whether ``path`` is still the name of the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _host() -> str:
    return re.sub(r"[^\w.-]", "_", socket.gethostname()) or "_"


_held: set[FileLock] = set()


def _forget_held() -> None:
    """Close the inherited descriptors: a lock lasts until every process has closed its file."""
    for lock in tuple(_held):
        lock._close()


os.register_at_fork(after_in_child=_forget_held)
