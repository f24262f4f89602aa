"""Several seeds: layout, summary, killed and resumed."""

from __future__ import annotations

import json
import signal
import statistics
from pathlib import Path

import pytest

from mmssl.cli import main
from tests.training.test_kill import OPTIONS, finish, signal_after_epochs, start

SMALL = [*OPTIONS, "--epochs=4", "--set=training.batch_size=64", "--device=cpu"]


def train(data: Path, out: Path, *options: str) -> int:
    return main(["train", "--data", str(data), "--out", str(out), *SMALL, *options])


@pytest.fixture(scope="module")
def seeds(tiny_directory, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("seeds") / "x"
    assert train(tiny_directory, out, "--seeds=3", "--quiet") == 0
    return out


def test_summary(seeds, tiny_directory, tmp_path):
    summary = json.loads((seeds / "summary.json").read_text())
    assert (summary["model"], summary["variant"], summary["seeds"]) == ("mmssl", "paper", [3, 4, 5])
    runs = [json.loads((seeds / f"seed-{s}" / "metrics.json").read_text()) for s in (3, 4, 5)]
    for split in ("val", "test"):
        for name, entry in summary[split].items():
            values = [run[split][name] for run in runs]
            assert entry["values"] == values
            assert entry["mean"] == pytest.approx(statistics.fmean(values))
            assert entry["std"] == pytest.approx(statistics.stdev(values))  # n - 1
    assert len(set(summary["test"]["recall@10"]["values"])) > 1
    # Each is what a run of its own would be.
    assert train(tiny_directory, tmp_path / "one", "--seed=4", "--quiet") == 0
    one = (tmp_path / "one" / "model.safetensors").read_bytes()
    assert one == (seeds / "seed-4" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_killed_and_resumed(seeds, tiny_directory, tmp_path):
    out = tmp_path / "x"
    process = start("--data", tiny_directory, "--out", out, *SMALL, "--seeds=3")
    signal_after_epochs(process, out / "seed-4", 1, signal.SIGKILL)
    finish(process, -signal.SIGKILL)
    first = (out / "seed-3" / "metrics.json").stat().st_mtime_ns
    process = start("--resume", "--out", out)
    signal_after_epochs(process, out / "seed-5", 1, signal.SIGTERM)
    printed = finish(process, 143)
    assert f"mmssl train --resume --out {out}" in printed
    assert not (out / "summary.json").exists()
    assert main(["train", "--resume", "--out", str(out), "--quiet"]) == 0
    assert (out / "summary.json").read_text() == (seeds / "summary.json").read_text()
    assert (out / "seed-3" / "metrics.json").stat().st_mtime_ns == first  # left alone


def test_lightgcn_and_more_seeds(tiny_directory, tmp_path, capsys):
    out = tmp_path / "x"
    assert train(tiny_directory, out, "--model=lightgcn", "--seeds=2") == 0
    assert "2 seeds (3, 4), mean +- standard deviation" in capsys.readouterr().out
    assert main(["train", "--resume", "--out", str(out), "--seeds=3", "--quiet"]) == 0
    assert json.loads((out / "summary.json").read_text())["seeds"] == [3, 4, 5]
    # An unfinished baseline has no checkpoint: it is trained again, from its start.
    (out / "seed-4" / "metrics.json").unlink()
    before = (out / "summary.json").read_text()
    assert main(["train", "--resume", "--out", str(out), "--quiet"]) == 0
    assert (out / "summary.json").read_text() == before
    assert len((out / "seed-4" / "log.jsonl").read_text().splitlines()) == 4


def test_bad_input(seeds, tiny_directory, tmp_path, capsys):
    out = tmp_path / "x"
    assert train(tiny_directory, out, "--seeds=1") == 2
    assert "--seeds" in capsys.readouterr().err
    assert train(tiny_directory, out, "--seeds=2", "--profile") == 2
    assert "--profile" in capsys.readouterr().err
    assert not out.exists()
    assert main(["train", "--resume", "--out", str(seeds), "--seeds=2"]) == 2
    assert "at least 3" in capsys.readouterr().err
    assert train(tiny_directory, seeds, "--seeds=2") == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["train", "--resume", "--out", str(seeds / "seed-3"), "--seeds=2"]) == 2
    assert "is one run" in capsys.readouterr().err


def test_nothing_is_left_of_seeds_that_can_not_begin(tiny_directory, tmp_path, capsys):
    """Without content MMSSL has nothing to train on."""
    data = tmp_path / "data"
    data.mkdir()
    for file in tiny_directory.glob("*.json"):
        (data / file.name).write_bytes(file.read_bytes())
    assert train(data, tmp_path / "x", "--seeds=2", "--quiet") == 2
    assert "modality" in capsys.readouterr().err
    assert not list(tmp_path.glob("*x*"))
