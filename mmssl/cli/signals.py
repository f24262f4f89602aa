"""SIGINT and SIGTERM as a request to save and stop."""

from __future__ import annotations

import signal


class StopOnSignal:
    """SIGINT and SIGTERM ask training to save and stop; a second one stops at once."""

    def __init__(self) -> None:
        self._signal = 0

    def requested(self) -> bool:
        """Whether a signal came."""
        return self._signal != 0

    @property
    def exit_code(self) -> int:
        """130 or 143."""
        return 128 + self._signal

    def __enter__(self) -> StopOnSignal:
        self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: object) -> None:
        if self._signal:
            raise KeyboardInterrupt
        self._signal = number
