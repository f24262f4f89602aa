"""Whole studies: pruned, killed, resumed, with several processes."""

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
from mmssl.errors import InputError

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
    lightgcn = "--model=lightgcn" in options  # does not read the section `training`
    return [*base, *(o for o in OPTIONS if not (lightgcn and "batch_size" in o)), *options]


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


def joined_by(process: subprocess.Popen) -> list[int]:
    """Processes that a study's owner has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    commands = ((int(c), Path(f"/proc/{c}/cmdline").read_bytes()) for c in children)
    return [child for child, line in commands if b"--join" in line]


def ends(pid: int) -> None:
    """Wait until a process that is not our child has ended."""
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline, f"{pid} did not end"
        time.sleep(0.01)


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
    # `mmssl train --config best.toml` repeats that trial to the last digit.
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


@pytest.mark.slow
def test_killed_and_resumed_is_the_same_study(undisturbed, tiny_directory, tmp_path):
    """SIGKILL in the middle of a trial, SIGTERM in a later one: same trials, same values."""
    study = tmp_path / "study"
    process = start(*command(tiny_directory, tmp_path, "--trials=7"))
    wait_for(process, (study / "trial-0001" / "checkpoint" / "last.safetensors").exists)
    process.kill()
    process.communicate()
    with open(study / "journal.log", "a") as journal:
        journal.write('{"op_code":')  # cut short by a power failure
    process = start("tune", "--resume", "--out", str(study))
    wait_for(process, (study / "trial-0003" / "log.jsonl").exists)
    process.send_signal(signal.SIGTERM)
    os.killpg(process.pid, signal.SIGTERM)  # as `timeout` does
    out, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    assert f"mmssl tune --resume --out {study}" in out
    assert not (study / "study.json").exists()
    assert main(["tune", "--resume", "--out", str(study), "--quiet"]) == 0
    assert read_study(tmp_path) == read_study(undisturbed)
    best = [(folder / "study" / "best.toml").read_bytes() for folder in (tmp_path, undisturbed)]
    assert best[0] == best[1]


LONG = ["--model=lightgcn", "--epochs=250", "--set=lightgcn.patience=250", "--trials=2"]


@pytest.fixture(scope="module")
def one_process(tiny_directory, tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("one")
    assert main(command(tiny_directory, folder, *LONG, "--quiet", space=LIGHTGCN)) == 0
    return read_study(folder)["trials"]


def start_two(data: Path, folder: Path) -> tuple[subprocess.Popen, int]:
    """A study of two processes, each in the middle of a trial."""
    process = start(*command(data, folder, *LONG, "--jobs=2", space=LIGHTGCN))
    trials = [folder / "study" / f"trial-000{n}" / "checkpoint" for n in (0, 1)]
    wait_for(process, lambda: all(trial.exists() for trial in trials))
    (other,) = joined_by(process)
    return process, other


@pytest.mark.slow
def test_killed_process_of_two(one_process, tiny_directory, tmp_path):
    """The remaining process continues its trial; no trial and no value differs."""
    process, other = start_two(tiny_directory, tmp_path)
    os.kill(other, signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "a process of the study ended with code -9" in err
    assert read_study(tmp_path)["trials"] == one_process
    assert {trial["state"] for trial in one_process} == {"complete"}


@pytest.mark.slow
def test_killed_owner_of_two(one_process, tiny_directory, tmp_path):
    """The process that it started saves its trial and ends; a resume completes the study."""
    process, other = start_two(tiny_directory, tmp_path)
    process.kill()
    process.communicate()
    ends(other)
    assert main(["tune", "--resume", "--out", str(tmp_path / "study"), "--quiet"]) == 0
    assert read_study(tmp_path)["trials"] == one_process


@pytest.mark.slow
def test_problem_in_another_process(tiny_directory, tmp_path):
    """What one process cannot train for reasons other than its parameters ends the study."""
    process = start(*command(tiny_directory, tmp_path, *LONG, "--jobs=2", space=LIGHTGCN))
    study = tmp_path / "study"
    wait_for(process, (study / "study.toml").exists)
    (study / "trial-0001").mkdir()
    (study / "trial-0001" / "notes.txt").touch()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2 and out == ""
    assert err.startswith(f"error: {study / 'trial-0001'}: exists already") and err.count("\n") == 1
    assert not (study / "study.json").exists()


@pytest.mark.slow
def test_trial_that_kills_its_process(tiny_directory, tmp_path):
    """After three deaths in the same epoch it is marked as failed; a resume tries it once more."""
    from optuna.trial import TrialState

    from mmssl.tuning.study import Study, StudySpec

    options = ["--model=lightgcn", "--trials=1", "--quiet"]
    assert main(command(tiny_directory, tmp_path, *options, space=LIGHTGCN)) == 0
    out, ended = tmp_path / "study", []
    for _ in range(3):
        study = Study(out, StudySpec.read(out / "study.toml"))
        study.set_trials(2)
        trial = study.claim(lambda *_: pytest.fail("ended"))
        assert trial is not None and trial.number == 1
        study.release(trial)  # a stop on request does not count
        assert study.claim(lambda *_: pytest.fail("ended")).number == 1
        assert study.claim(lambda *_: pytest.fail("ended")) is None
        study.close()  # what the kernel does for a process that dies
    study = Study(out, StudySpec.read(out / "study.toml"))
    assert study.claim(lambda number, reason: ended.append((number, reason))) is None
    assert ended == [(1, "failed: its process died 3 times after epoch 0")]
    assert study.trials()[1].state == TrialState.FAIL and study.is_complete()
    study.close()
    assert main(["tune", "--resume", "--out", str(out), "--quiet"]) == 0
    first, failed, again = read_study(tmp_path)["trials"]
    assert failed["state"] == "fail" and "died 3 times" in failed["reason"]
    assert again["retry_of"] == 1 and again["state"] == "complete"
    assert again["parameters"] == failed["parameters"]


def test_crashes_end_the_study(tiny_directory, tmp_path, monkeypatch, capsys):
    """One crash is a failed trial; three in a row have a common cause."""
    from mmssl.tuning import worker

    train = worker.fit_run
    calls = []

    def crash(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            return train(*arguments, **options)
        raise RuntimeError("broken\ndevice")

    monkeypatch.setattr(worker, "fit_run", crash)
    options = ["--model=lightgcn", "--trials=9"]
    assert main(command(tiny_directory, tmp_path, *options, space=LIGHTGCN)) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: 3 trials failed in a row, the last one: ") and "device" in err
    assert err.count("\n") == 1 and len(calls) == 5
    assert out.count("failed: ") == 4 and out.count("recall@20") == 1
    study = tmp_path / "study"
    assert "RuntimeError: broken" in (study / "trial-0000" / "error.txt").read_text()
    monkeypatch.undo()
    assert main(["tune", "--resume", "--out", str(study), "--quiet"]) == 0
    trials = read_study(tmp_path)["trials"]
    assert [trial["state"] for trial in trials].count("complete") == 9
    assert [trial["retry_of"] for trial in trials if "retry_of" in trial] == [0, 2, 3, 4]


@pytest.mark.slow
def test_two_processes(tiny_directory, tmp_path):
    """Random search draws by trial number: two processes find what one does."""
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
    assert f"{out}: this process is working on this study; join it" in capsys.readouterr().err
    study.set_trials(5)
    assert main(["tune", "--join", "--out", str(out)]) == 0  # it trains, the owner writes
    assert capsys.readouterr().out.count("val recall@20") == 2 and study.is_complete()
    assert len(read_study(tmp_path)["trials"]) == 3
    study.close()
    with pytest.raises(InputError, match="study.toml: not a study of this version"):
        broken = tmp_path / "study.toml"
        broken.write_text((out / "study.toml").read_text().replace("trials = 5", "trials = 'x'"))
        StudySpec.read(broken)


def test_divergence_is_a_bad_trial_not_an_end(tiny_directory, tmp_path, capsys):
    space = '[space]\n"training.lr" = {choices = [1e30, 0.01]}\n[search]\nsampler = "random"'
    options = ["--trials=4", "--epochs=2"]
    assert main(command(tiny_directory, tmp_path, *options, space=space)) == 0
    trials = read_study(tmp_path)["trials"]
    bad = [trial for trial in trials if trial["parameters"]["training.lr"] == 1e30]
    assert 0 < len(bad) < 4
    assert all(t["state"] == "pruned" and "diverged" in t["reason"] for t in bad)


@pytest.mark.slow
def test_timeout_stops_within_a_trial(tiny_directory, tmp_path, capsys):
    options = ["--epochs=5000", "--set=training.patience=5000", "--timeout=4", "--trials=1"]
    assert main(command(tiny_directory, tmp_path, *options)) == 0
    out = capsys.readouterr().out
    assert "no trial is complete" in out and "time is up" in out
    assert (tmp_path / "study" / "trial-0000" / "checkpoint" / "last.safetensors").exists()


def test_a_model_in_closed_form(tiny_directory, tmp_path, capsys):
    """It has no epochs: nothing is pruned, and the message names none."""
    options = ["--model=ease", "--trials=4", "--quiet"]
    space = '[space]\n"ease.reg" = {low = 1.0, high = 1000.0}\n[search]\npruner = "hyperband"'
    assert main(command(tiny_directory, tmp_path, *options, space=space)) == 0
    result = read_study(tmp_path)
    assert [trial["state"] for trial in result["trials"]] == ["complete"] * 4
    assert (
        "best_epoch" not in result["best"] and 1 <= result["best"]["parameters"]["ease.reg"] <= 1000
    )
    first = (tmp_path / "study" / "best.toml").read_text().splitlines()[0]
    assert first.endswith(", of 4 trials.") and "epoch" not in first
    assert "--model ease" in capsys.readouterr().out
