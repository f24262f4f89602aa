"""Timing of single calls, and interleaving of implementations.

On the CPU a call is over when it returns. On a GPU it is placed between events on the stream and
synchronized, so the time is that of the device, gaps between launches included. A round ("turn")
runs every implementation once untimed, so that none starts from caches that another one filled,
and then for about 30 ms; the order rotates by one each round. A slow minute affects all of them.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

TURN_S = 0.03  # timed, per implementation and round
SLOW_S = 0.3  # calls above this need no warm-up in each round
MIN_TURNS = 3
MAX_CALLS = 200  # per round


class Work(NamedTuple):
    """An implementation with its arguments bound."""

    compute: Callable[[], Any]
    inputs: tuple[Tensor, ...] = ()  # gradients are taken for these; (): forward only
    grads: tuple[Tensor, ...] | None = (
        None  # gradients of the outputs; None: the outputs are scalars
    )

    def forward(self) -> Any:
        """Compute the outputs without recording for backward."""
        with torch.no_grad():
            return self.compute()

    def full(self) -> tuple[Tensor, ...]:
        """Return outputs and gradients."""
        values = outputs(self.compute())
        gradients = self._backward(values) if self.inputs else ()
        return (*(v.detach() for v in values), *gradients)

    def timed(self, clock: Clock) -> Call:
        """Return the seconds of the forward and of forward and backward."""
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
    """Return one or several outputs as a tuple."""
    return (value,) if isinstance(value, Tensor) else tuple(value)


class Call(NamedTuple):
    """Seconds of one call."""

    forward: float
    full: float


class Clock:
    """Clock of the CPU."""

    def settle(self) -> None:
        """Wait for earlier work to finish."""

    def mark(self) -> Any:
        """Return the current time."""
        return time.perf_counter()

    def between(self, start: Any, end: Any) -> float:
        """Return the seconds between two marks."""
        return float(end - start)


class CudaClock(Clock):
    """Clock of the current CUDA device and stream."""

    def settle(self) -> None:
        """Wait for the device."""
        torch.cuda.synchronize()

    def mark(self) -> Any:
        """Record an event on the stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        """Return the seconds between two events, waiting for the second."""
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3


def clock_of(device: str) -> Clock:
    """Return the clock for "cpu" or "cuda"."""
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
    """Run interleaved rounds for about ``seconds``, at least ``turns`` of them.

    Args:
        works: Implementations, in the order of the first round.
        clock: Clock of the device that they run on.
        seconds: No new round starts after this time.
        turns: Minimum number of rounds.
        most_calls: Maximum number of calls per implementation and round; with 1 only the first
            round warms up.
        warm_up: False if a call takes minutes.
        each_turn: Called at the start of each round, e.g. to measure the limit.
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
    """Return the ratio of two full times, round by round."""
    pairs = zip(turns[name], turns[baseline], strict=True)
    return [_median(mine) / _median(other) for mine, other in pairs]


def _median(calls: list[Call]) -> float:
    return statistics.median(call.full for call in calls)
