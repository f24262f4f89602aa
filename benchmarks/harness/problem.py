"""Measurement of one case: agreement first, then time, then memory."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.harness import environment, memory
from benchmarks.harness.clock import Turns, Work, clock_of, ratios, take_turns
from benchmarks.harness.record import Case, Limit, Row, Spread, Timing
from benchmarks.peers.ops import OTHER_FUNCTION
from benchmarks.peers.registry import Missing

GRAPHED_BELOW_S = 1e-3  # on a GPU, calls below this are measured as a CUDA graph, too


class Probe(Protocol):
    """Measures a limit in the same rounds as everything else."""

    def turn(self) -> None:
        """Measure; called once per round."""

    def limit(self) -> Limit:
        """Return the limit; called after the last round."""


@dataclasses.dataclass
class Problem:
    """An op on a workload, and the implementations of it."""

    op: str
    workload: str
    dtype: str
    device: str
    sizes: dict[str, int]
    peers: dict[str, Callable[[], Work]]
    expected: Callable[[], Sequence[Tensor]]  # outputs, then gradients
    tolerance: float = 1e-4  # relative to the largest entry
    probe: Probe | None = None
    agree: Callable[[Sequence[Tensor], Sequence[Tensor]], float] | None = None
    again: tuple[str, dict[str, Any]] | None = None  # module of benchmarks, arguments of problem()
    baseline: str = "native"

    def made(self, wanted: Sequence[str] | None = None) -> tuple[dict[str, Work], dict[str, str]]:
        """Return the available peers, and the reasons why the others are missing."""
        works: dict[str, Work] = {}
        missing: dict[str, str] = {}
        for name, make in self.peers.items():
            if wanted is not None and name != self.baseline and name not in wanted:
                continue
            try:
                works[name] = make()
            except Missing as reason:
                missing[name] = str(reason)
            except Exception as error:  # whatever a peer's package raises
                if name == self.baseline:
                    raise
                missing[name] = _reason(error)
        return works, missing


@dataclasses.dataclass
class Budget:
    """How long to measure, and whether to measure memory."""

    seconds: float = 2.0
    turns: int = 3
    peers: Sequence[str] | None = None  # None: all
    memory: bool = True


def measure(problem: Problem, budget: Budget) -> Case:
    """Measure a case.

    Raises:
        AssertionError: The package's own op disagrees with what is expected. A peer that disagrees
            is left out, and the result says so.
    """
    works, missing, errors = prepared(problem, budget.peers)
    clock = clock_of(problem.device)
    probe = problem.probe
    if problem.device == "cuda" and works[problem.baseline].timed(clock).full < GRAPHED_BELOW_S:
        _add_graphed(problem, works, missing)
    each_turn = probe.turn if probe is not None else lambda: None
    turns = take_turns(
        works, clock, seconds=budget.seconds, turns=budget.turns, each_turn=each_turn
    )
    limit = probe.limit() if probe is not None else None
    rows = {name: _row(turns, name, problem.baseline, limit) for name in works}
    for name, row in rows.items():
        row.error, row.note = errors.get(name), OTHER_FUNCTION.get(name)
        if budget.memory and problem.again is not None:
            row.peak_mb = peak_mb(problem, name, works[name])
    return Case(
        problem.op, problem.workload, problem.dtype, problem.sizes, problem.baseline, rows, missing,
        limit, environment.commit(),
    )  # fmt: skip


def prepared(
    problem: Problem, wanted: Sequence[str] | None = None
) -> tuple[dict[str, Work], dict[str, str], dict[str, float]]:
    """Prepare what may be timed: peers that are available and agree with what is expected.

    Args:
        problem: The case.
        wanted: Names of peers in addition to the baseline; None for all.

    Returns:
        The callables by name, why the others are missing, and the worst deviations by name.

    Raises:
        AssertionError: The package's own op disagrees with what is expected.
    """
    works, missing = problem.made(wanted)
    return works, missing, _agreement(problem, works, missing)


def _agreement(
    problem: Problem, works: dict[str, Work], missing: dict[str, str]
) -> dict[str, float]:
    """Return the worst deviations; peers that fail or disagree move to the missing ones."""
    expected = problem.expected()
    agree = problem.agree or largest_deviation
    errors: dict[str, float] = {}
    for name in list(works):
        if name in OTHER_FUNCTION:
            continue
        try:
            errors[name] = agree(works[name].full(), expected)
            if not errors[name] <= problem.tolerance:
                raise AssertionError(
                    f"disagrees: {errors[name]:.1e} of the largest entry, "
                    f"expected at most {problem.tolerance:.0e}"
                )
        except Exception as error:  # becomes the row of the peer
            if name == problem.baseline:
                raise
            del works[name]
            missing[name] = _reason(error)
            if problem.device == "cuda":
                torch.cuda.empty_cache()  # it may have filled the card
    return errors


def largest_deviation(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest deviation relative to the largest entry; integers must be equal."""
    worst = 0.0
    for mine, right in zip(got, expected, strict=True):
        if not right.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(mine, right) else 1.0)
        elif right.numel():
            scale = float(right.abs().max())
            error = float((mine.to(right.dtype) - right).abs().max())
            error = error / scale if scale else error
            if not error <= worst:  # NaN included, which max() would pass over
                worst = error
        if math.isnan(worst):
            break
    return worst


def _row(rounds: Turns, name: str, baseline: str, limit: Limit | None) -> Row:
    calls = [call for turn in rounds[name] for call in turn]
    full = Timing.of([call.full for call in calls])
    row = Row(full, relative=Spread.of(ratios(rounds, name, baseline)))
    if any(call.forward != call.full for call in calls):
        row.forward = Timing.of([call.forward for call in calls])
        row.backward = Timing.of([call.full - call.forward for call in calls])
    if limit is not None:
        row.of_limit = limit.ms / full.median_ms
    return row


def _add_graphed(problem: Problem, works: dict[str, Work], missing: dict[str, str]) -> None:
    """Add the package's op as one replayed CUDA graph, without launches and Python."""
    name = f"{problem.baseline}, CUDA graph"
    try:
        works[name] = graphed(works[problem.baseline])
    except RuntimeError as error:
        missing[name] = _reason(error)


def graphed(work: Work) -> Work:
    """Capture forward and backward; only their sum can be timed."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work.full()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = work.full()

    def replay() -> tuple[Tensor, ...]:
        graph.replay()
        return kept

    return Work(replay)


def peak_mb(problem: Problem, name: str, work: Work) -> float | None:
    """Return the growth of memory over one forward and backward."""
    if problem.device == "cuda":
        return memory.growth_mb(work.full, "cuda")
    if not sys.platform.startswith("linux"):
        return None
    assert problem.again is not None
    module, arguments = problem.again
    try:
        found = memory.in_fresh_process("harness.problem", module, json.dumps(arguments), name)
    except RuntimeError as error:
        warnings.warn(f"no peak memory of {name}: {error}", stacklevel=2)
        return None
    return None if found is None else float(found)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


@functools.cache
def problem_of(module: str) -> Callable[..., Problem]:
    """Return ``problem()`` of a benchmark's module."""
    import importlib

    make: Callable[..., Problem] = importlib.import_module(f"benchmarks.{module}").problem
    return make


if __name__ == "__main__":  # memory of one peer, in a fresh process
    made = problem_of(sys.argv[1])(**json.loads(sys.argv[2]))
    print(json.dumps(memory.growth_mb(made.peers[sys.argv[3]]().full, "cpu")))
