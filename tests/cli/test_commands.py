"""The commands on a small data set, in the order in which a user runs them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from mmssl import __version__
from mmssl.cli import main
from mmssl.data.readers import read_dataset
from mmssl.models.registry import model_names, model_spec
from mmssl.training.run import RunDirectory

SMALL = ["--epochs", "2", "--set", "model.embedding_dim=16", "--quiet", "--device", "cpu"]


@pytest.fixture(scope="module")
def runs(tiny_directory, tmp_path_factory):
    """One finished run of every model."""
    base = tmp_path_factory.mktemp("runs")
    for model in model_names():
        command = ["train", "--data", str(tiny_directory), "--model", model]
        assert main([*command, "--out", str(base / model), *SMALL]) == 0
    return base


@pytest.mark.parametrize("model", model_names())
def test_metrics_file(runs, tiny_directory, model):
    metrics = json.loads((runs / model / "metrics.json").read_text())
    assert metrics["model"] == model
    split = read_dataset(tiny_directory)
    assert metrics["data"]["split"]["hash"] == split.interactions_hash()
    assert metrics["data"]["split"] == RunDirectory.open(runs / model).info.split
    for split in ("val", "test"):
        assert {
            "recall@20",
            "precision@20",
            "ndcg@20",
            "hit@20",
            "map@20",
            "mrr@20",
            "recall@10",
        } <= (metrics[split].keys())
    assert len(metrics["epochs"]) == (2 if model in model_names(trained=True) else 0)


@pytest.mark.parametrize("model", model_names())
def test_evaluate_repeats_the_metrics(runs, model, capsys):
    metrics = json.loads((runs / model / "metrics.json").read_text())
    for split in ("val", "test"):
        assert main(["evaluate", str(runs / model), "--split", split, "--json"]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed.pop("split") == split
        assert printed == metrics[split]


def test_recommend(runs, tiny_dataset, capsys):
    assert (
        main(["recommend", str(runs / "mmssl"), "--user", "3", "7", "--top-k", "5", "--json"]) == 0
    )
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["user"] for line in lines] == ["3", "7"]
    for line in lines:
        mine = tiny_dataset.train.item[tiny_dataset.train.user == int(line["user"])]
        recommended = {label for label, _ in line["items"]}
        assert len(recommended) == 5
        assert {f"item {n}" for n in line["item_ids"]} == recommended
        assert not recommended & {f"item {item}" for item in mine}
    assert main(["recommend", str(runs / "mmssl"), "--user", "3"]) == 0
    assert "  1. " in capsys.readouterr().out
    assert main(["recommend", str(runs / "mmssl"), "--user", "80"]) == 2
    assert "'80'" in capsys.readouterr().err
    assert main(["recommend", str(runs / "mmssl"), "--user", "3", "--top-k", "0"]) == 2
    assert "--top-k" in capsys.readouterr().err


def test_report(runs, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra report)")
    command = ["report", str(runs / "mmssl"), "--against", str(runs / "lightgcn")]
    assert main([*command, "--user", "3"]) == 0
    out = capsys.readouterr().out
    assert "lightgcn" in out and "recall@20" in out
    page = (runs / "mmssl" / "report.html").read_text()
    assert "lightgcn" in page and "<svg" in page


def test_other_data_is_refused(runs, tiny_directory, tmp_path, capsys):
    from mmssl.data.writers import write_dataset
    from tests.conftest import make_dataset

    write_dataset(make_dataset(seed=1), tmp_path / "other")
    assert main(["evaluate", str(runs / "mmssl"), "--data", str(tmp_path / "other")]) == 2
    assert "content hash" in capsys.readouterr().err
    assert main(["evaluate", str(runs / "mmssl"), "--data", str(tiny_directory)]) == 0


def test_an_unfinished_run_is_named(runs, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(runs / "lightgcn", run)
    commands = (
        ["evaluate", str(run), "--split", "val"],
        ["recommend", str(run), "--user", "3"],
        ["export", str(run), "--to", str(tmp_path / "export")],
    )
    for command in commands:
        assert main(command) == 0 and capsys.readouterr().err == ""
        shutil.rmtree(tmp_path / "export", ignore_errors=True)
    (run / "metrics.json").unlink()
    for command in commands:
        assert main(command) == 0
        assert capsys.readouterr().err.startswith(f"warning: {run}: training has not ended")


def test_resume_of_a_finished_run(runs):
    for model in model_names():
        before = (runs / model / "model.safetensors").read_bytes()
        assert main(["train", "--resume", "--out", str(runs / model), "--quiet"]) == 0
        assert (runs / model / "model.safetensors").read_bytes() == before


def test_inspect(tiny_directory, capsys):
    assert main(["data", "inspect", str(tiny_directory)]) == 0
    assert "80 users, 50 items" in capsys.readouterr().out
    assert main(["data", "inspect", str(tiny_directory), "--json"]) == 0
    json.loads(capsys.readouterr().out)


def test_doctor(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for op in ("spmm", "info_nce", "masked_topk"):
        assert op in out


def test_version_and_help():
    for command in (["--version"], ["train", "--help"]):
        result = subprocess.run(
            [sys.executable, "-m", "mmssl", *command], capture_output=True, text=True, check=True
        )
        assert result.stdout
    assert (
        __version__
        in subprocess.run(
            [sys.executable, "-m", "mmssl", "--version"], capture_output=True, text=True, check=True
        ).stdout
    )


def test_importing_the_package_is_cheap():
    code = "import sys, mmssl; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_profile(tiny_directory, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["train", "--data", str(tiny_directory), "--out", str(out), "--profile", *SMALL]
    # In a process, since the profiler writes to the file descriptor and not to sys.stderr.
    python = [sys.executable, "-W", "ignore:mmssl.ops:RuntimeWarning"]  # of missing kernels
    done = subprocess.run([*python, "-m", "mmssl", *command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for phase in ("sample", "critic_backward", "optimizer", "step, unprofiled"):
        assert phase in done.stdout
    events = json.loads((out / "trace.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "mmssl::structure" for event in events) >= 5
    other = ["train", "--data", str(tiny_directory), "--out", str(tmp_path / "other"), "--profile"]
    assert main([*other, "--model", "popularity"]) == 2
    message = "error: train: --profile needs one new run of a model that is trained in epochs"
    assert message in capsys.readouterr().err
    assert main([*other, "--model", "lightgcn", "--epochs", "1", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert all(f"{phase}  " in printed for phase in ("sample", "step"))


@pytest.mark.parametrize("seeds", [[], ["--seeds=2"]])
@pytest.mark.parametrize("model", model_names(trained=True))
def test_divergence_is_one_line(tiny_directory, tmp_path, capsys, model, seeds):
    """Several seeds of which the first one diverges in its first epoch leave nothing behind."""
    out = tmp_path / "run"
    command = ["train", "--data", str(tiny_directory), "--model", model, "--out", str(out), *seeds]
    section = model_spec(model, "paper").schedule
    settings = [f"--set={section}.lr=1e30", f"--set={section}.batch_size=32"]
    assert main([*command, *settings, *SMALL]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: training diverged: loss term ") and error.count("\n") == 1
    assert f"(--set {section}.lr=2.5e+29)" in error
    assert out.exists() == (not seeds)
