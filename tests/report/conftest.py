"""Finished runs of the tiny data set, and one written by hand for tests to change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmssl.cli import main
from mmssl.config import Config
from mmssl.training.run import RunDirectory

SMALL = ["--epochs", "3", "--set", "model.embedding_dim=16", "--quiet", "--device", "cpu"]


@pytest.fixture(scope="session")
def finished(tiny_directory, tmp_path_factory) -> Path:
    """mmssl, lightgcn, popularity, and seeds/seed-1, seed-2."""
    base = tmp_path_factory.mktemp("report-runs")
    runs = {name: ["--model", name] for name in ("mmssl", "lightgcn", "popularity")}
    runs |= {f"seeds/seed-{n}": ["--model", "lightgcn", "--seed", str(n)] for n in (1, 2)}
    for name, options in runs.items():
        command = ["train", "--data", str(tiny_directory), *options, "--out", str(base / name)]
        assert main([*command, *SMALL]) == 0
    return base


def epoch_line(number: int, *, recall: float | None = 0.1, loss_name: str = "bpr") -> str:
    event = {
        "event": "epoch",
        "epoch": number,
        "loss": {"total": 1.0 / number, loss_name: 0.5 / number},
        "val": None if recall is None else {"recall@20": recall, "ndcg@20": recall / 2},
        "seconds": 1.5,
    }
    return json.dumps(event) + "\n"


def write_run(directory: Path, data: Path, dataset, **metrics) -> Path:
    """A run directory with metrics and a log, but no model."""
    run = RunDirectory.new(directory, "mmssl", data, dataset, Config())
    run.initialize()
    content = {
        "model": "mmssl",
        "variant": "paper",
        "seed": 2022,
        "best_epoch": 2,
        "val": {"recall@20": 0.1203, "ndcg@20": 0.0511},
        "test": {"recall@10": 0.0717, "recall@20": 0.1117, "ndcg@20": 0.0498},
        "timing": {"train_seconds": 12.25},
        "environment": {"torch": "9.9.9", "threads": 2},
    }
    (directory / "metrics.json").write_text(json.dumps({**content, **metrics}))
    lines = [epoch_line(n, recall=r) for n, r in ((1, 0.08), (2, 0.1203), (3, 0.11))]
    (directory / "log.jsonl").write_text('{"event": "start"}\n' + "".join(lines))
    return directory


@pytest.fixture
def run_dir(tmp_path, tiny_dataset) -> Path:
    """A run whose data set does not exist, so the page has metrics and curves only."""
    return write_run(tmp_path / "a-run", tmp_path / "moved", tiny_dataset)
