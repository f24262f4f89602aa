"""Benchmarks of whole steps beyond a smoke run: huge peers, memory, phases, sizes."""

from __future__ import annotations

import pytest

from benchmarks import bench_scale, bench_train_step
from benchmarks.harness import memory
from benchmarks.harness.phases import Named, annotated, phases
from benchmarks.harness.record import Case, Row, Timing


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    """The smoke sizes use generated data even if real data is available."""
    monkeypatch.delenv("MMSSL_DATA", raising=False)


def test_a_huge_peer_runs_once(monkeypatch):
    monkeypatch.setattr(bench_train_step, "LARGE_FLOP", 0)
    case = bench_train_step.measure(
        "smoke", "cpu", turns=2, peers=["released"], profile=False, with_memory=False
    )
    peer = case.rows[bench_train_step.PEER]
    assert (peer.full.calls, case.rows["released"].full.calls) == (1, 2)
    assert "one step" in peer.note
    assert case.rows["released"].relative.median == pytest.approx(
        case.rows["released"].full.median_ms / peer.full.median_ms
    )


@pytest.mark.slow
def test_memory_of_a_fresh_process(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = memory.in_fresh_process("bench_train_step", "released", "smoke")
    assert 0 < found["critic_state_mb"] < found["peak_mb"]


def test_a_process_that_fails_is_reported():
    with pytest.raises(RuntimeError, match="-m benchmarks.no_such failed"):
        memory.in_fresh_process("no_such")


def test_scale_extrapolates_memory():
    def case(edges: int, peak_mb: float) -> Case:
        row = Row(Timing.of([1.0]), peak_mb=peak_mb)
        rows = {bench_scale.NAME: row}
        return Case("step against size", "", "float32", {"edges": edges}, bench_scale.NAME, rows)

    rows = [case(10, 100.0), case(20, 300.0)]
    assert bench_scale.expected_mb(rows, bench_scale.Size(1, 1, 50)) == 900
    assert bench_scale.expected_mb(rows[:1], bench_scale.Size(1, 1, 50)) == 0


def test_phases_exclude_nested_phases():
    import time

    class Work:
        def inner(self):
            time.sleep(0.02)

        def outer(self):
            time.sleep(0.01)
            self.inner()

    work = Work()
    named = [Named(work, "inner", "inner"), Named(work, "outer", "outer")]
    with annotated([*named, Named(work, "gone", "gone")]):
        found = phases(lambda: work.outer())
    assert set(found) == {"inner", "outer", "other"}
    assert found["inner"] >= 20 and 10 <= found["outer"]
    assert work.inner.__func__ is Work.inner
