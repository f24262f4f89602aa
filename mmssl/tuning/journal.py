"""The lock around writes to a study's journal."""

from __future__ import annotations

import os
from pathlib import Path

from optuna.storages.journal import JournalFileOpenLock

from mmssl.locks import FileLock


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
