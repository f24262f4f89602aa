"""Real studies: pruned, killed, resumed, in parallel."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmssl.cli import main

optuna = pytest.importorskip("optuna")

SPACE = """
[space]
"training.lr" = {choices = [1e-7, 0.003, 0.01, 0.02]}
"model.num_layers" = {low = 1, high = 3}

[search]
startup_trials = 3
prune_after_trials = 2
warmup_epochs = 2
"""
LIGHTGCN = """
[space]
"lightgcn.lr" = {low = 1e-3, high = 1e-1, log = true}
[search]
sampler = "random"
pruner = "none"
"""
OPTIONS = [
    "--epochs=4",
    "--seed=3",
    "--set=model.embedding_dim=8",
    "--set=training.batch_size=64",
    "--device=cpu",
]


def command(data: Path, folder: Path, *options: str, space: str = SPACE) -> list[str]:
    file = folder / "space.toml"
    file.write_text(space)
    base = ["tune", "--data", str(data), "--space", str(file), "--out", str(folder / "study")]
    return [*base, *OPTIONS, *options]


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "mmssl", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def wait_for(process: subprocess.Popen, condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.002)


def workers_of(process: subprocess.Popen) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    commands = ((int(c), Path(f"/proc/{c}/cmdline").read_bytes()) for c in children)
    return [child for child, line in commands if b"spawn_main" in line]


def read_study(folder: Path) -> dict:
    return json.loads((folder / "study" / "study.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(tiny_directory, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    assert main(command(tiny_directory, folder, "--trials=7", "--quiet")) == 0
    return folder


def test_pruning_and_the_best_trial(undisturbed, tiny_directory, tmp_path, capsys):
    result = read_study(undisturbed)
    states = [trial["state"] for trial in result["trials"]]
    assert len(states) == 7 and set(states) == {"complete", "pruned"}
    pruned = [trial for trial in result["trials"] if trial["state"] == "pruned"]
    assert all(2 <= trial["epochs"] < 4 for trial in pruned)
    best = result["best"]
    complete = [trial for trial in result["trials"] if trial["state"] == "complete"]
    assert best["value"] == max(trial["value"] for trial in complete)
    # What best.toml gives to `mmssl train` is that trial again, to the last digit.
    config = undisturbed / "study" / "best.toml"
    train = ["train", "--data", str(tiny_directory), "--config", str(config), "--device=cpu"]
    assert main([*train, "--out", str(tmp_path / "run"), "--quiet"]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["val"] == best["val"] and metrics["test"] == best["test"]


def test_trials_do_not_read_the_test_split(undisturbed):
    result = read_study(undisturbed)
    for file in (undisturbed / "study").glob("trial-*/metrics.json"):
        assert "test" not in json.loads(file.read_text())
    assert result["test_read"] == [result["best"]["number"]]
    assert not list((undisturbed / "study").glob("trial-*/checkpoint"))


def test_killed_and_resumed_is_the_same_study(undisturbed, tiny_directory, tmp_path):
    """SIGKILL in the middle of a trial, SIGTERM in a later one: same trials, same values."""
    study = tmp_path / "study"
    process = start(*command(tiny_directory, tmp_path, "--trials=7"))
    wait_for(process, (study / "trial-0001" / "checkpoint" / "last.safetensors").exists)
    (worker,) = workers_of(process)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while (
        Path(f"/proc/{worker}").exists()
        and b"spawn" in Path(f"/proc/{worker}/cmdline").read_bytes()
    ):
        assert time.monotonic() < deadline, "the worker outlived its study"
        time.sleep(0.01)
    with open(study / "journal.log", "a") as journal:
        journal.write('{"op_code":')  # cut short by a power failure
    process = start("tune", "--resume", "--out", str(study))
    wait_for(process, (study / "trial-0003" / "log.jsonl").exists)
    process.send_signal(signal.SIGTERM)
    os.killpg(process.pid, signal.SIGTERM)  # as `timeout` does; the workers get it too
    out, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    assert f"mmssl tune --resume --out {study}" in out
    assert not (study / "study.json").exists()
    assert main(["tune", "--resume", "--out", str(study), "--quiet"]) == 0
    assert read_study(tmp_path) == read_study(undisturbed)
    best = [(folder / "study" / "best.toml").read_bytes() for folder in (tmp_path, undisturbed)]
    assert best[0] == best[1]


def test_killed_worker(tiny_directory, tmp_path):
    """Its trial is marked as failed, the others go on; a resume tries it once more."""
    study = tmp_path / "study"
    process = start(*command(tiny_directory, tmp_path, "--trials=3"))
    wait_for(process, (study / "trial-0001" / "log.jsonl").exists)
    (worker,) = workers_of(process)
    os.kill(worker, signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "failed: its process ended with -9 (killed)" in out and "1 failed" in out
    first = read_study(tmp_path)["trials"]
    assert [trial["state"] for trial in first] == ["complete", "fail", "complete"]
    assert main(["tune", "--resume", "--out", str(study), "--quiet"]) == 0
    trials = read_study(tmp_path)["trials"]
    assert trials[:3] == first and len(trials) == 4
    assert trials[3]["retry_of"] == 1 and trials[3]["state"] != "fail"
    assert trials[3]["parameters"] == trials[1]["parameters"]


def test_parallel_workers(tiny_directory, tmp_path):
    """Random search draws by trial number: two workers find what one does."""
    results = []
    for jobs in ("1", "2"):
        folder = tmp_path / jobs
        folder.mkdir()
        options = ["--model=lightgcn", "--trials=4", "--quiet", "--jobs", jobs]
        assert main(command(tiny_directory, folder, *options, space=LIGHTGCN)) == 0
        results.append(read_study(folder))
    assert results[0]["trials"] == results[1]["trials"]
    assert {trial["state"] for trial in results[0]["trials"]} == {"complete"}
    assert results[0]["best"]["test"] == results[1]["best"]["test"]


def test_more_trials_and_a_second_process(tiny_directory, tmp_path, capsys):
    from mmssl.tuning.study import Study, StudySpec

    options = ["--model=lightgcn", "--trials=1", "--quiet"]
    assert main(command(tiny_directory, tmp_path, *options, space=LIGHTGCN)) == 0
    out = tmp_path / "study"
    assert main(command(tiny_directory, tmp_path, *options, space=LIGHTGCN)) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["tune", "--resume", "--out", str(out), "--trials=3", "--quiet"]) == 0
    assert len(read_study(tmp_path)["trials"]) == 3
    study = Study(out, StudySpec.read(out / "study.toml"))
    assert main(["tune", "--resume", "--out", str(out)]) == 2
    assert "another process" in capsys.readouterr().err
    study.close()


def test_divergence_is_a_bad_trial_not_an_end(tiny_directory, tmp_path, capsys):
    space = '[space]\n"training.lr" = {choices = [1e30, 0.01]}\n[search]\nsampler = "random"'
    options = ["--trials=4", "--epochs=2"]
    assert main(command(tiny_directory, tmp_path, *options, space=space)) == 0
    trials = read_study(tmp_path)["trials"]
    bad = [trial for trial in trials if trial["parameters"]["training.lr"] == 1e30]
    assert 0 < len(bad) < 4
    assert all(t["state"] == "pruned" and "diverged" in t["reason"] for t in bad)


def test_timeout_stops_in_mid_trial(tiny_directory, tmp_path, capsys):
    options = ["--epochs=5000", "--set=training.patience=5000", "--timeout=4", "--trials=1"]
    assert main(command(tiny_directory, tmp_path, *options)) == 0
    out = capsys.readouterr().out
    assert "no trial ran to its end" in out and "time is up" in out
    assert (tmp_path / "study" / "trial-0000" / "checkpoint" / "last.safetensors").exists()
