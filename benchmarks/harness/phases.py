"""Time spent in each of the profiler ranges ``mmssl::...`` of a job."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple
from unittest import mock

from torch.profiler import ProfilerActivity, profile, record_function

from mmssl.training.profile import quiet_kineto

RANGE = "mmssl::"


class Named(NamedTuple):
    """A function to profile: ``getattr(owner, attribute)`` under the name of a phase."""

    owner: Any
    attribute: str
    phase: str


@contextlib.contextmanager
def annotated(functions: Iterable[Named]) -> Iterator[None]:
    """Wrap functions in a profiler range within the context; unknown ones are ignored."""
    with contextlib.ExitStack() as stack:
        for owner, attribute, phase in functions:
            original = getattr(owner, attribute, None)
            if original is not None:
                wrapped = _ranged(original, RANGE + phase)
                stack.enter_context(mock.patch.object(owner, attribute, wrapped))
        yield


def _ranged(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(name):
            return function(*args, **kwargs)

    return call


def phases(job: Callable[[], object], repeats: int = 1) -> dict[str, float]:
    """Return the milliseconds spent in each ``mmssl::`` range, excluding nested ranges.

    Time outside of all ranges is ``other``, so the phases add up to the job; the mean of the runs
    is returned. This is host time: on a GPU, the time to launch.
    """
    with (
        quiet_kineto(),
        profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler,
    ):
        start = time.perf_counter()
        for _ in range(repeats):
            job()
        total = 1e3 * (time.perf_counter() - start)
    spans = sorted(
        (event.time_range.start, -event.time_range.end, event.name.removeprefix(RANGE))
        for event in profiler.events()
        if event.name.startswith(RANGE) and event.is_user_annotation  # ops are named alike
    )
    spent: dict[str, float] = {}
    open_spans: list[tuple[float, str]] = []  # (end, name)
    for start_us, negative_end, name in spans:
        while open_spans and open_spans[-1][0] <= start_us:
            open_spans.pop()
        length = (-negative_end - start_us) / 1e3
        if open_spans:
            spent[open_spans[-1][1]] -= length
        spent[name] = spent.get(name, 0.0) + length
        open_spans.append((-negative_end, name))
    spent["other"] = total - sum(spent.values())
    return {name: value / repeats for name, value in spent.items()}
