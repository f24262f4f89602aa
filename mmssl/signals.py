"""Signal handling of training commands: save a checkpoint, then stop."""

from __future__ import annotations

import os
import signal
import time

# A second signal within this time is part of the same request: shells, `timeout` and job managers
# often signal both the process and its group.
_SAME_REQUEST_SECONDS = 1.0


def one_request(first: float, second: float) -> bool:
    """Whether signals at two times, in seconds, are one request to stop."""
    return second - first < _SAME_REQUEST_SECONDS


class StopOnSignal:
    """Context manager that turns SIGINT, SIGTERM and SIGHUP into a request to save and stop.

    Before training first polls :meth:`requested`, there is nothing to save and a signal ends the
    command immediately. After that, training saves a checkpoint and stops. A further signal at
    least one second later ends the command immediately and leaves the previous checkpoint. The exit
    code is always 128 plus the signal number. Under ``nohup``, SIGHUP remains ignored.
    """

    def __init__(self) -> None:
        self._signal = 0
        self._time = 0.0
        self._polled = False

    def requested(self) -> bool:
        """Return whether training should save and stop."""
        self._polled = True
        return self._signal != 0

    @property
    def exit_code(self) -> int:
        """Exit code that shells use for a process ended by the signal."""
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
        if self._signal and one_request(self._time, now):
            return
        if self._signal or not self._polled:
            os.write(2, b"interrupted\n")
            raise SystemExit(128 + number)
        self._signal, self._time = number, now
