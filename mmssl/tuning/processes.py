"""Further processes of a study, started and stopped by the process that owns it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HAS_PROBLEM = 3
"""Exit code of a process that ended the study and left the reason in it."""

# Seconds that a process has to save its trial and end before it is killed.
_STOP_SECONDS = 60.0


class Processes:
    """Processes of ``mmssl tune --join`` on the same study; a context manager that ends them.

    Args:
        study: The study's directory.
        count: Number of processes.
        threads: Number of CPU threads of each.
        options: Further options of the command.
    """

    def __init__(self, study: Path, count: int, threads: int, options: list[str]) -> None:
        # A session of their own: signals of the terminal reach only the owner, which passes them
        # on once, so that none of them takes a repeated signal for the request to end at once.
        command = [sys.executable, "-m", "mmssl", "tune", "--join", "--out", str(study)]
        self._processes = [
            subprocess.Popen(
                [*command, "--owner", str(os.getpid()), *options],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                start_new_session=True,
            )
            for _ in range(count)
        ]
        self._stopped = False

    def exit_codes(self) -> list[int]:
        """Return the exit codes of the processes that have ended; negative for a signal."""
        codes = [process.poll() for process in self._processes]
        return [code for code in codes if code is not None]

    def stop(self) -> None:
        """Ask all processes to save their trials and to end."""
        if not self._stopped:
            self._stopped = True
            for process in self._processes:
                process.send_signal(signal.SIGTERM)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and not self._stopped:
            for process in self._processes:
                process.kill()  # the study is complete, so none of them has a trial
        self.stop()
        deadline = time.monotonic() + _STOP_SECONDS
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
