"""Trackers on real runs, verified with the trackers' own libraries."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmssl.cli import main
from mmssl.config import load_config
from mmssl.tracking import Tracking
from mmssl.tracking.base import flatten, numbers
from mmssl.training.run import RunDirectory
from tests.tracking.readers import read_mlflow, read_tensorboard, read_wandb
from tests.training.test_kill import finish, signal_after_epochs, start

SMALL = ["--set=model.embedding_dim=16", "--set=training.batch_size=32", "--quiet", "--device=cpu"]


def needs(package: str):
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed (an optional extra)")


EVERY = [
    "tensorboard",
    pytest.param("wandb", marks=needs("wandb")),
    pytest.param("mlflow", marks=needs("mlflow")),
]


@pytest.fixture(autouse=True)
def local(tmp_path, monkeypatch):
    """Keep all trackers offline and inside the directory of the test."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    # Child processes must not connect to the W&B service of an earlier test.
    monkeypatch.delenv("WANDB_SERVICE", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)


def read(name: str, run: Path) -> dict[str, list[tuple[int, float]]]:
    if name == "mlflow":
        series, _ = read_mlflow(os.environ["MLFLOW_TRACKING_URI"])
        return {key.replace("_at_", "@"): values for key, values in series.items()}
    return {"tensorboard": read_tensorboard, "wandb": read_wandb}[name](run)


def assert_shows_every_epoch_once(name: str, run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    epochs = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    shown = read(name, run)
    assert len(epochs) == len(metrics["epochs"]) > 0
    for key in numbers(epochs[0]):
        steps, values = zip(*shown[key], strict=True)
        assert list(steps) == [epoch["epoch"] for epoch in epochs], key
        if "seconds" not in key:
            expected = [numbers(epoch)[key] for epoch in epochs]
            assert values == pytest.approx(expected, rel=1e-6), key
    if name != "wandb":  # W&B stores them in the summary
        final = flatten(metrics["test"], "test/")
        assert {key: shown[key][-1][1] for key in final} == pytest.approx(final, rel=1e-6)
        assert all(len(shown[key]) == 1 for key in final)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("model", ["mmssl", "lightgcn"])
def test_every_epoch_once(tiny_directory, tmp_path, name, model):
    run = tmp_path / "run"
    command = ["train", "--data", str(tiny_directory), "--out", str(run), "--model", model]
    assert main([*command, *SMALL, "--epochs=3", "--track", name]) == 0
    assert_shows_every_epoch_once(name, run)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_killed_and_resumed(tiny_directory, tmp_path, name):
    """SIGKILL at any point, then SIGTERM, then completion: one run, and no epoch occurs twice."""
    run = tmp_path / "run"
    options = [*SMALL, "--epochs=8", "--track", name]
    process = start("--data", tiny_directory, "--out", run, *options)
    signal_after_epochs(process, run, 3, signal.SIGKILL)
    finish(process, -signal.SIGKILL)
    process = start("--resume", "--out", run)
    signal_after_epochs(process, run, 5, signal.SIGTERM)
    finish(process, 143)
    assert main(["train", "--resume", "--out", str(run), "--quiet"]) == 0
    assert_shows_every_epoch_once(name, run)
    # Resuming a finished run changes nothing.
    assert main(["train", "--resume", "--out", str(run), "--quiet"]) == 0
    assert_shows_every_epoch_once(name, run)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("shown", [0, 2, 4])
def test_tracker_behind_or_ahead_of_the_run(tiny_dataset, tiny_directory, tmp_path, name, shown):
    """Every epoch occurs once, even if the tracker lost epochs or the run was set back."""
    config = load_config("paper")
    run = RunDirectory.new(tmp_path / "run", "mmssl", tiny_directory, tiny_dataset, config)
    run.initialize()
    records = [{"epoch": e, "loss": {"bpr": 1 / e}, "seconds": 0.5} for e in range(1, 6)]
    first = Tracking(run, [name])
    first.start([])
    for record in records[:shown]:
        first.on_epoch(record)
    first.finish("interrupted")
    second = Tracking(run)  # reads the trackers from tracking.json
    second.start(records[:3])
    for record in records[3:]:
        second.on_epoch(record)
    second.finish("finished", {"best_epoch": 5, "test": {"recall@20": 0.25}})
    expected = [(e, pytest.approx(1 / e)) for e in range(1, 6)]
    assert read(name, run.path)["loss/bpr"] == expected


def test_configuration_as_hyper_parameters(tiny_directory, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    run = tmp_path / "run"
    command = ["train", "--data", str(tiny_directory), "--out", str(run), "--track", "tensorboard"]
    assert main([*command, "--model=lightgcn", "--epochs=1", *SMALL]) == 0
    accumulator = EventAccumulator(str(run / "tensorboard"))
    accumulator.Reload()
    content = accumulator.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    parameters = HParamsPluginData.FromString(content).session_start_info.hparams
    assert parameters["model.embedding_dim"].number_value == 16
    assert parameters["run.model"].string_value == "lightgcn"
    assert "_hparams_/session_end_info" in accumulator.summary_metadata


@needs("mlflow")
def test_mlflow_parameters_and_status(tiny_directory, tmp_path):
    command = ["train", "--data", str(tiny_directory), "--out", str(tmp_path / "run")]
    assert main([*command, "--model=popularity", "--quiet", "--track", "mlflow"]) == 0
    series, run = read_mlflow(os.environ["MLFLOW_TRACKING_URI"])
    assert run.info.status == "FINISHED"
    assert run.data.params["model.embedding_dim"] == "64"
    assert series["test/recall_at_20"][0][1] > 0


@needs("mlflow")
def test_server_that_is_down(tiny_directory, tmp_path, monkeypatch, capsys):
    """The run finishes after one warning, and the next resume sends all epochs."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = tmp_path / "run"
    command = ["train", "--data", str(tiny_directory), "--out", str(run), "--epochs=2", *SMALL]
    assert main([*command, "--track", "mlflow", "tensorboard"]) == 0
    err = capsys.readouterr().err
    assert err.count("warning: tracker mlflow can't start") == 1 and err.count("\n") == 1
    assert_shows_every_epoch_once("tensorboard", run)
    memory = json.loads((run / "tracking.json").read_text())
    memory["trackers"]["mlflow"]["store"] = f"sqlite:///{tmp_path / 'mlflow.db'}"
    (run / "tracking.json").write_text(json.dumps(memory))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", memory["trackers"]["mlflow"]["store"])
    assert main(["train", "--resume", "--out", str(run), "--quiet"]) == 0
    assert_shows_every_epoch_once("mlflow", run)


@pytest.mark.slow
def test_event_file_that_cannot_be_written(tiny_directory, tmp_path, capsys):
    """A full disk in the second epoch causes one warning; the next resume sends the epoch."""
    run = tmp_path / "run"
    limited = (
        "import sys, mmssl.tracking.tensorboard as t\n"
        "from mmssl.cli import main\n"
        "def full(self, epoch, values):\n"
        "    if epoch == 2: raise OSError(28, 'No space left on device')\n"
        "    return log(self, epoch, values)\n"
        "log, t.TensorBoardTracker.log = t.TensorBoardTracker.log, full\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = ["train", "--data", str(tiny_directory), "--out", str(run), "--epochs=3", *SMALL]
    result = subprocess.run(
        [sys.executable, "-c", limited, *command, "--track", "tensorboard"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("\n") == 1 and "No space left on device" in result.stderr
    assert [step for step, _ in read_tensorboard(run)["lr"]] == [1]
    assert main(["train", "--resume", "--out", str(run), "--quiet"]) == 0
    assert_shows_every_epoch_once("tensorboard", run)


def test_bad_trackers(tiny_directory, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    command = ["train", "--data", str(tiny_directory), "--out", str(run), "--track"]
    assert main([*command, "tensorbored"]) == 2
    err = capsys.readouterr().err
    assert "tensorboard, wandb, mlflow" in err and "'tensorbored'" in err and err.count("\n") == 1
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main([*command, "wandb"]) == 2
    assert 'pip install "mmssl[wandb]"' in capsys.readouterr().err
    assert not run.exists()


def test_no_file_is_written_without_trackers(tiny_directory, tmp_path):
    command = ["train", "--data", str(tiny_directory), "--out", str(tmp_path / "run")]
    assert main([*command, "--model=popularity", "--quiet"]) == 0
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"config.toml", "metrics.json", "model.safetensors"}
