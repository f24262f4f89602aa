"""The benchmark harness: rounds, agreement, the schema of results, comparison of two files."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import torch

from benchmarks import compare, limits, suites
from benchmarks.harness import problem as harness
from benchmarks.harness.clock import Clock, Work, ratios, take_turns
from benchmarks.harness.problem import Budget, Problem, largest_deviation
from benchmarks.harness.record import Case, Results, Row, Spread, Timing, read, write
from benchmarks.peers.registry import Missing
from mmssl.cli import main
from mmssl.errors import InputError

ENVIRONMENT = {
    "device": "cpu", "name": "a CPU", "threads": 2, "simd": "AVX2", "torch": "2.13", "smoke": False,
    "python": "3.11", "commit": "abc",
}  # fmt: skip


class Ticks(Clock):
    """A clock on which every mark is one second after the one before."""

    def __init__(self):
        self.ticks = itertools.count()

    def mark(self):
        return next(self.ticks)


def test_timing_and_spread():
    assert Timing.of([2.0]) == (2000.0, 2000.0, 2000.0, 1)
    assert Timing.of([1.0, 2.0, 3.0]) == (2000.0, 1500.0, 2500.0, 3)
    assert Timing.of([4.0]).divided(4) == (1000.0, 1000.0, 1000.0, 1)
    assert Spread.of([1.0, 3.0]) == (2.0, 1.5, 2.5, 2)


def test_turns_interleave_and_rotate():
    order: list[str] = []
    works = {name: Work(lambda name=name: order.append(name)) for name in "ab"}
    rounds = take_turns(works, Ticks(), seconds=0, turns=2, most_calls=1)
    # A warm-up each in the first round; the second round starts with the other one.
    assert "".join(order) == "aabbba"[:4] + "ba"
    assert [len(calls) for calls in rounds["a"]] == [1, 1]
    assert ratios(rounds, "a", "b") == [1.0, 1.0]


def test_a_call_is_split_into_forward_and_backward():
    x = torch.ones(3, requires_grad=True)
    call = Work(lambda: x.square().sum(), (x,)).timed(Ticks())
    assert (call.forward, call.full) == (1.0, 2.0)
    assert Work(lambda: None).timed(Ticks()).full == 1.0


def problem(**peers) -> Problem:
    x = torch.arange(4.0, requires_grad=True)

    def scaled(factor: float) -> Work:
        return Work(lambda: factor * x.square().sum(), (x,))

    def make(value):
        def call() -> Work:
            if isinstance(value, Exception):
                raise value
            return scaled(value)

        return call

    return Problem(
        op="square", workload="four", dtype="float32", device="cpu", sizes={"n": 4},
        peers={"native": make(1.0)} | {name: make(value) for name, value in peers.items()},
        expected=scaled(1.0).full,
        probe=limits.Products(1e6, "cpu", "float32", 1e3),
    )  # fmt: skip


def test_a_case_lists_who_is_missing_and_who_disagrees():
    found = harness.measure(
        problem(good=1.0, wrong=1.1, absent=Missing("not installed"), broken=RuntimeError("no\nx")),
        Budget(0, 2),
    )
    assert list(found.rows) == ["native", "good"]
    assert found.missing["absent"] == "not installed"
    assert found.missing["broken"] == "RuntimeError: no"
    assert "disagrees: 1.0e-01" in found.missing["wrong"]
    row = found.rows["good"]
    assert row.forward.median_ms + row.backward.median_ms == pytest.approx(
        row.full.median_ms, rel=0.5
    )
    assert row.relative.turns == 2 and row.error == 0
    assert found.limit.ms > 0 and row.of_limit == pytest.approx(found.limit.ms / row.full.median_ms)


def test_our_own_op_must_agree():
    made = problem(other=1.0)
    made.peers["native"] = made.peers.pop("other")
    made.expected = lambda: [torch.tensor(0.0), torch.zeros(4)]
    with pytest.raises(AssertionError, match="disagrees"):
        harness.measure(made, Budget(0, 1))


def test_only_the_peers_asked_for():
    works, missing = problem(a=1.0, b=Missing("no")).made(["b"])
    assert list(works) == ["native"] and missing == {"b": "no"}


def test_deviation():
    exact, off = torch.tensor([1.0, -4.0]), torch.tensor([1.0, -4.4])
    assert largest_deviation([off], [exact]) == pytest.approx(0.1)
    assert largest_deviation([torch.tensor([1])], [torch.tensor([2])]) == 1
    assert largest_deviation([torch.zeros(0)], [torch.zeros(0)]) == 0
    nothing = torch.tensor([torch.nan, 0.0])
    assert not largest_deviation([nothing], [exact]) <= 1
    assert not largest_deviation([nothing, exact], [exact, exact]) <= 1


def case(name: str = "info_nce", ms: float = 10.0, spread: float = 1.0) -> Case:
    def row(factor: float) -> Row:
        t = Timing(factor * ms, factor * (ms - spread), factor * (ms + spread), 5)
        return Row(t, forward=t, relative=Spread(factor, factor, factor, 3), peak_mb=7.5)

    return Case(name, "N = 4", "float32", {"n": 4, "d": 64}, "native", {
        "native": row(1.0), "eager": dataclasses.replace(row(3.0), note="slow"),
    }, missing={"inf-cl": "no GPU"}, commit="abc")  # fmt: skip


def results(*cases: Case, **environment) -> Results:
    return Results("ops", {**ENVIRONMENT, **environment}, list(cases))


def test_files_round_trip_and_merge(tmp_path):
    path = tmp_path / "ops.json"
    write(path, results(case("a"), case("b")))
    assert read(path).cases == [case("a"), case("b")]
    write(path, results(case("b", 20.0), case("c")))
    assert [(c.op, c.rows["native"].full.median_ms) for c in read(path).cases] == [
        ("a", 10.0), ("b", 20.0), ("c", 10.0)
    ]  # fmt: skip
    write(path, results(case("e"), versions={"faiss": "1", "implicit": "1"}))
    write(path, results(case("f"), versions={"faiss": "2", "implicit": "not installed"}))
    assert read(path).environment["versions"] == {"faiss": "2", "implicit": "1"}  # of case e
    write(path, results(case("d"), threads=4))  # another set-up: earlier cases are dropped
    assert [c.op for c in read(path).cases] == ["d"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected JSON"),
        ("[]", "of schema 1, got None"),
        ('{"schema": 2}', "of schema 1, got 2"),
        ('{"schema": 1, "suite": "ops"}', "expected benchmark results, got KeyError"),
        ('{"schema": 1, "suite": "", "environment": {}, "cases": [{"rows": {}}]}', "TypeError"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read(path)


@pytest.fixture
def compared(tmp_path, capsys):
    def run(before: Results, after: Results, *options: str) -> tuple[int, str]:
        for name, content in (("a", before), ("b", after)):
            (tmp_path / f"{name}.json").unlink(missing_ok=True)
            write(tmp_path / f"{name}.json", content)
        files = (str(tmp_path / "a.json"), str(tmp_path / "b.json"))
        code = main(["bench", "compare", *files, *options])
        found = capsys.readouterr()
        return code, found.out + found.err

    return run


def test_compare_fails_only_where_quartiles_are_apart(compared):
    assert compared(results(case()), results(case()))[0] == 0
    code, text = compared(results(case()), results(case(ms=13.0)))
    assert code == 1
    assert "slower: info_nce, N = 4, float32, native: 10.000 ms" in text and "1.30x" in text
    assert "peers: 1.30x" in text  # the machine itself became slower
    assert compared(results(case(spread=3.0)), results(case(ms=13.0, spread=3.0)))[0] == 0
    assert compared(results(case()), results(case(ms=13.0)), "--threshold", "1.5")[0] == 0
    code, text = compared(results(case(ms=13.0)), results(case()))
    assert code == 0 and "faster: info_nce" in text


def test_compare_warns_and_refuses(compared):
    code, text = compared(results(case()), results(case(), threads=8, busy=True, load_at_start=3.0))
    assert code == 0
    assert "warning: not the same machine or set-up: threads 2 / 8" in text
    assert "warning: measured on a busy machine (load 3.0)" in text
    code, text = compared(results(case()), results(case("other")))
    assert code == 2 and "expected a case that" in text
    for threshold in ("1", "nan", "0.5"):
        code, text = compared(results(case()), results(case()), "--threshold", threshold)
        assert code == 2 and "--threshold: expected a ratio above 1" in text


def test_whose_rows_count():
    assert compare.is_ours(case(), "native, CUDA graph")
    assert compare.is_ours(case(), "paper, bfloat16")
    assert not compare.is_ours(case(), "torch CSR")
    evaluation = case("evaluation")
    assert compare.is_ours(evaluation, "mmssl")
    assert not compare.is_ours(evaluation, "released, 1 process")


def test_what_is_written_is_plain_json(tmp_path):
    write(tmp_path / "x.json", results(case()))
    row = json.loads((tmp_path / "x.json").read_text())["cases"][0]["rows"]["eager"]
    assert row["full"] == {"median_ms": 30.0, "q1_ms": 27.0, "q3_ms": 33.0, "calls": 5}
    assert "backward" not in row and row["note"] == "slow"


def test_a_failed_case_does_not_end_the_suite(tmp_path, monkeypatch, capsys):
    def wrong(*_, **__):
        raise AssertionError("disagrees")

    wrong.__module__ = suites.bench_layers.__name__  # what --only reads
    monkeypatch.setattr(suites.bench_layers, "problem", wrong)
    monkeypatch.setattr(suites.limits, "machine", lambda device: {})
    options = suites.Options(smoke=True, out=tmp_path, only="bench_layers")
    path, failures = suites.run("ops", options)
    assert len(failures) == len(suites.bench_layers.LAYERS) and not path.exists()
    assert capsys.readouterr().out.count("FAILED: ") == len(failures)
