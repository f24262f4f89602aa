"""Signals to a training command: save, then stop."""

from __future__ import annotations

import os
import signal
import time

# A second signal so soon is the same request: shells, `timeout` and job managers often signal the
# process and its group.
_SAME_REQUEST_SECONDS = 1.0


class StopOnSignal:
    """SIGINT, SIGTERM and SIGHUP end a command politely.

    Before training polls :meth:`requested` for the first time there is nothing to save, and the
    command ends at once. From then on training saves and stops. Another signal, a second later or
    more, ends the command at once: the checkpoint is then the one before. The exit code is
    128 + the signal's number in every case. Under ``nohup`` SIGHUP stays ignored.
    """

    def __init__(self) -> None:
        self._signal = 0
        self._time = 0.0
        self._polled = False

    def requested(self) -> bool:
        """Whether to save and stop."""
        self._polled = True
        return self._signal != 0

    @property
    def exit_code(self) -> int:
        """What a shell reports for a process that the signal ended."""
        return 128 + self._signal

    def __enter__(self) -> StopOnSignal:
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        self._before = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: object) -> None:
        now = time.monotonic()
        if self._signal and now - self._time < _SAME_REQUEST_SECONDS:
            return
        if self._signal or not self._polled:
            os.write(2, b"interrupted\n")
            raise SystemExit(128 + number)
        self._signal, self._time = number, now
