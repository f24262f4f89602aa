"""The benchmark of importing runs in its smoke mode."""

from __future__ import annotations

from benchmarks import bench_import


def test_smoke(capsys):
    bench_import.main(["--smoke"])
    out = capsys.readouterr().out
    assert "2,000 rows" in out and "5-core" in out and "split with it" in out
