"""The benchmarks of serving and of cold items run and write consistent results."""

from __future__ import annotations

import pytest

from benchmarks import bench_cold, bench_http, bench_serving
from benchmarks.harness.record import read


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    """The smoke modes use generated data even if real data is available."""
    monkeypatch.delenv("MMSSL_DATA", raising=False)


def test_serving(tmp_path, capsys):
    file = tmp_path / "serving.json"
    bench_serving.main(["--smoke", "--json", str(file)])
    (case,) = read(file).cases
    assert all(0 < row.full.median_ms <= row.extra["p99_ms"] for row in case.rows.values())
    assert case.rows["NumPy by hand"].extra["same_items"] == 1
    assert "users a second" in capsys.readouterr().out


@pytest.mark.slow
def test_http(capsys):
    bench_http.main(["--smoke"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [row[:2] for row in rows] == [["1", "1"], ["1", "2"]]
    assert all(0 < float(p50) <= float(p99) for *_, p50, p99 in rows)


def test_cold(tmp_path, capsys):
    file = tmp_path / "cold.json"
    bench_cold.main(["--smoke", "--model", "lightgcn", "--json", str(file)])
    (case,) = read(file).cases
    found = {name: row.extra["recall@20"] for name, row in case.rows.items()}
    assert all(0 <= value <= 1 for row in found.values() for value in row)
    # In this data set the features reveal the tastes.
    assert found["ridge map"][0] > found["random vectors"][0] + 0.1
    assert "40 of 400 items cold" in capsys.readouterr().out
