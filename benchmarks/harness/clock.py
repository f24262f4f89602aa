"""How a call is timed, and how implementations take turns.

On the CPU a call is over when it returns. On a GPU it is put between events on the stream and
waited for, so the time is what the device took, gaps between launches included. A turn runs every
implementation once untimed, so that none starts in caches which the one before filled, then for
about 30 ms; the order moves on by one each turn. A slow minute of the machine hits all of them.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

TURN_S = 0.03  # of timed calls
SLOW_S = 0.3  # a call above it needs no other before it
MIN_TURNS = 3
MAX_CALLS = 200  # a turn


class Work(NamedTuple):
    """An implementation with its arguments bound."""

    compute: Callable[[], Any]
    inputs: tuple[Tensor, ...] = ()  # what gradients are taken for; (): forward only
    grads: tuple[Tensor, ...] | None = None  # of the outputs; None: they are scalars

    def forward(self) -> Any:
        """Without what backward needs."""
        with torch.no_grad():
            return self.compute()

    def full(self) -> tuple[Tensor, ...]:
        """Outputs and gradients."""
        values = outputs(self.compute())
        gradients = self._backward(values) if self.inputs else ()
        return (*(v.detach() for v in values), *gradients)

    def timed(self, clock: Clock) -> Call:
        """Seconds of the forward, and of all of it."""
        clock.settle()
        start = clock.mark()
        value = self.compute()
        if not self.inputs:
            seconds = clock.between(start, clock.mark())
            return Call(seconds, seconds)
        values = outputs(value)
        middle = clock.mark()
        self._backward(values)
        end = clock.mark()
        full = clock.between(start, end)
        return Call(clock.between(start, middle), full)

    def _backward(self, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        trained = [v for v in values if v.requires_grad]
        return torch.autograd.grad(trained, self.inputs, self.grads)


def outputs(value: Any) -> tuple[Tensor, ...]:
    """As a tuple."""
    return (value,) if isinstance(value, Tensor) else tuple(value)


class Call(NamedTuple):
    """Seconds of one call."""

    forward: float
    full: float


class Clock:
    """Of the CPU."""

    def settle(self) -> None:
        """Waits for what was asked for before."""

    def mark(self) -> Any:
        """A moment."""
        return time.perf_counter()

    def between(self, start: Any, end: Any) -> float:
        """Seconds."""
        return float(end - start)


class CudaClock(Clock):
    """Of the current CUDA device and stream."""

    def settle(self) -> None:
        """Waits for the device."""
        torch.cuda.synchronize()

    def mark(self) -> Any:
        """An event on the stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        """Seconds between two events, waiting for the second."""
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3


def clock_of(device: str) -> Clock:
    """For "cpu" or "cuda"."""
    return CudaClock() if device == "cuda" else Clock()


Turns = dict[str, list[list[Call]]]  # implementation -> turn -> calls


def take_turns(
    works: Mapping[str, Work],
    clock: Clock,
    *,
    seconds: float,
    turns: int = MIN_TURNS,
    most_calls: int = MAX_CALLS,
    warm_up: bool = True,
    each_turn: Callable[[], object] = lambda: None,
) -> Turns:
    """Turns for about so many seconds, at least ``turns`` of them.

    Args:
        works: in the order of the first turn.
        clock: of the device that they run on.
        seconds: after which no new turn begins.
        turns: the least number.
        most_calls: of one implementation in one turn; with 1 only the first turn warms up.
        warm_up: False where a call takes minutes.
        each_turn: called at the start of each, e.g. to measure the limit.
    """
    names, kept = list(works), {name: [] for name in works}
    warm: dict[str, float] = {}
    start, number = time.perf_counter(), 0
    while number < turns or time.perf_counter() - start < seconds:
        gc.collect()
        each_turn()
        first = number % max(1, len(names))
        for name in (*names[first:], *names[:first]):
            again = most_calls > 1 and warm.get(name, 0.0) < SLOW_S
            if warm_up and (name not in warm or again):
                warm[name] = works[name].timed(clock).full
            calls: list[Call] = []
            until = time.perf_counter() + TURN_S
            while not calls or (time.perf_counter() < until and len(calls) < most_calls):
                calls.append(works[name].timed(clock))
            kept[name].append(calls)
        number += 1
    return kept


def ratios(turns: Turns, name: str, baseline: str) -> list[float]:
    """Full time of one over another's, turn by turn."""
    pairs = zip(turns[name], turns[baseline], strict=True)
    return [_median(mine) / _median(other) for mine, other in pairs]


def _median(calls: list[Call]) -> float:
    return statistics.median(call.full for call in calls)
