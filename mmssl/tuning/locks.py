"""File locks that end with the process that holds them, however it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from optuna.storages.journal import JournalFileOpenLock

from mmssl.errors import InputError


class FileLock:
    """An exclusive ``flock`` on a file of its own; a context manager that waits for the lock.

    The kernel releases the lock when its process dies, so no lock outlives a killed process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None

    def acquire(self, *, wait: bool = True) -> bool:
        """Take the lock; False if another process holds it and ``wait`` is False.

        Raises:
            InputError: The file cannot be opened or locked.
        """
        file = None
        try:
            file = open(self.path, "ab")  # noqa: SIM115 - held until release()
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if file is not None:
                file.close()
            if isinstance(error, BlockingIOError):
                return False
            raise InputError(f"{self.path}: can't lock the file: {error.strerror}") from error
        self._file = file
        return True

    def release(self) -> None:
        """Release the lock; no effect if it is not held."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class JournalLock(JournalFileOpenLock):
    """Optuna's lock around a write to the journal, by `FileLock`.

    Optuna's own locks are files that a killed process leaves behind and that the other processes
    remove after half a minute. This lock also removes a last line that was cut short (by a power
    failure), which would otherwise corrupt the line that is appended to it.
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self._journal = journal
        self._held = FileLock(journal.with_name(f".{journal.name}.lock"))

    def acquire(self) -> bool:
        """Take the lock and leave a journal of whole lines."""
        self._held.acquire()
        with open(self._journal, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            if file.read(1) not in (b"", b"\n"):
                file.seek(0)
                os.truncate(self._journal, file.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        """Release the lock."""
        self._held.release()
