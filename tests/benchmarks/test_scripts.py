"""Every benchmark of whole steps runs in its smoke mode, and what it writes adds up."""

from __future__ import annotations

import json

import pytest

from benchmarks import (
    bench_cold,
    bench_evaluate,
    bench_scale,
    bench_serving,
    bench_train_step,
    measure,
)


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    """Whatever data the machine has, the smoke modes draw their own."""
    monkeypatch.delenv("MMSSL_DATA", raising=False)


def results(path):
    content = json.loads(path.read_text())
    assert content["environment"]["torch"]
    return content


def test_train_step(tmp_path, capsys):
    file = tmp_path / "train.json"
    bench_train_step.main(["--smoke", "--no-memory", "--rounds", "1", "--json", str(file)])
    (result,) = results(file)["results"]
    rows = result["configurations"]
    assert list(rows) == [c.name for c in bench_train_step.CONFIGURATIONS]
    for name, row in rows.items():
        assert 0 < row["low"] <= row["median"] <= row["high"]
        found = row["phases_ms"]
        expected = {"sample", "forward", "similarity_rows", "real_rows", "critic_forward"}
        expected |= {"gradient_penalty", "critic_backward", "critic_optimizer", "structure"}
        expected |= {"recommender_loss", "info_nce", "backward", "optimizer"}
        assert set(found) - {"other"} == expected
        assert all(spent >= 0 for spent in found.values()), name
    assert rows["peer"]["ratio_to_peer"] == 1
    assert max(result["agreement"].values()) < 1e-2
    assert "steps/s" in capsys.readouterr().out


def test_train_step_runs_a_huge_peer_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench_train_step, "_LARGE_FLOP", 0)
    file = tmp_path / "train.json"
    arguments = ["--smoke", "--profiled", "0", "--only", "peer", "released", "--json", str(file)]
    bench_train_step.main([*arguments, "--no-memory"])
    rows = results(file)["results"][0]["configurations"]
    assert [rows[name]["runs"] for name in ("peer", "released")] == [1, 2]
    assert "(one step)" in capsys.readouterr().out


def test_train_step_memory_of_a_fresh_process():
    found = measure.in_fresh_process(
        "bench_train_step.py", "--peak", "released", "--data", "smoke", "--smoke"
    )
    assert 0 < found["critic_state_mb"] < found["peak_mb"]


def test_train_step_refuses_an_unknown_configuration():
    with pytest.raises(SystemExit, match="expected names among peer"):
        bench_train_step.main(["--smoke", "--only", "fastest"])


def test_evaluate(tmp_path, capsys):
    file = tmp_path / "evaluate.json"
    bench_evaluate.main(["--smoke", "--json", str(file)])
    (result,) = results(file)["results"]
    assert set(result["seconds"]) == {
        "mmssl",
        "torch matmul + mask + topk",
        "released, 1 process",
        "released, 2 processes",
    }
    assert "extended to" in capsys.readouterr().out


def test_scale(tmp_path):
    pytest.importorskip("matplotlib")
    file, picture = tmp_path / "scale.json", tmp_path / "scale.png"
    bench_scale.main(["--smoke", "--steps", "1", "--json", str(file), "--plot", str(picture)])
    for rows in results(file)["sweeps"].values():
        assert rows[0]["median_slope"] is None
        assert all(row["peak_mb"] > 0 and row["phases_ms"]["backward"] > 0 for row in rows)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_scale_of_one_size(capsys):
    bench_scale.main(["--one", "60", "50", "300", "--steps", "1"])
    found = json.loads(capsys.readouterr().out)
    assert found["users"] == 60 and found["edges"] > 100 and found["runs"] == 1


def test_scale_foresees_memory():
    rows = [{"peak_mb": 100.0, "edges": 10}, {"peak_mb": 300.0, "edges": 20}]
    assert bench_scale.expected_mb(rows, bench_scale.Size(1, 1, 50)) == 900
    assert bench_scale.expected_mb(rows[:1], bench_scale.Size(1, 1, 50)) == 0


def test_phases_leave_out_what_is_inside_them():
    import time

    class Work:
        def inner(self):
            time.sleep(0.02)

        def outer(self):
            time.sleep(0.01)
            self.inner()

    work = Work()
    named = [measure.Named(work, "inner", "inner"), measure.Named(work, "outer", "outer")]
    with measure.annotated([*named, measure.Named(work, "gone", "gone")]):
        found = measure.phases(lambda: work.outer())
    assert set(found) == {"inner", "outer", "other"}
    assert found["inner"] >= 20 and 10 <= found["outer"]
    assert work.inner.__func__ is Work.inner


def test_timing_of_one_run():
    assert measure.Timing.of([2.0]) == (2.0, 2.0, 2.0, 1)
    assert measure.Timing.of([1.0, 2.0, 3.0]) == (2.0, 1.5, 2.5, 3)


def test_serving(tmp_path, capsys):
    file = tmp_path / "serving.json"
    bench_serving.main(["--smoke", "--json", str(file)])
    found = results(file)["requests"]
    assert all(0 < row["p50_ms"] <= row["p99_ms"] for row in found.values())
    assert found["NumPy by hand"]["same_items"] == 1
    assert "users a second" in capsys.readouterr().out


def test_cold(tmp_path, capsys):
    file = tmp_path / "cold.json"
    bench_cold.main(["--smoke", "--model", "lightgcn", "--json", str(file)])
    found = results(file)["recall"]
    assert all(0 <= value <= 1 for row in found.values() for value in row)
    # Features tell the tastes of this small world.
    assert found["ridge map, weighted by degree"][0] > found["random vectors"][0] + 0.1
    assert "40 of 400 items cold" in capsys.readouterr().out
