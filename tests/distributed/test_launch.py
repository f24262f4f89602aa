"""Real training processes under torchrun: one run directory, kills, and another number of them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist

from mmssl.cli import main
from mmssl.data import write_dataset
from mmssl.distributed import MODES
from mmssl.training.checkpoint import load_checkpoint
from tests.conftest import ROOT, make_dataset

needs_gloo = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch is built without gloo")

LIMIT = 300  # seconds in which processes must end, on a busy machine too; hung ones never do
_started: list[subprocess.Popen] = []

OPTIONS = ("--model=lightgcn", "--seed=3", "--set=model.embedding_dim=16", "--set=lightgcn.lr=0.01")


def start(size: int, *arguments: str | Path, restarts: int = 0) -> subprocess.Popen:
    """Start ``mmssl train`` in ``size`` processes on the CPU."""
    return torchrun(size, restarts, "mmssl", "train", "--device=cpu", *arguments)


def torchrun(size: int, restarts: int, module: str, *arguments: str | Path) -> subprocess.Popen:
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}")
    launcher += (f"--max-restarts={restarts}",)
    process = subprocess.Popen(
        [sys.executable, *launcher, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    _started.append(process)
    return process


@pytest.fixture(autouse=True)
def nothing_is_left():
    """End what a failed test has left."""
    yield
    while _started:
        with suppress(ProcessLookupError):
            os.killpg(_started.pop().pid, signal.SIGKILL)


def error_lines(err: str) -> list[str]:
    """The lines that the package itself has written; torchrun writes a report of its own."""
    return [line for line in err.splitlines() if line.startswith("error:")]


def wait_for_epochs(process: subprocess.Popen, run: Path, count: int) -> None:
    deadline = time.monotonic() + LIMIT
    while not (run / "log.jsonl").exists() or (run / "log.jsonl").read_text().count("\n") < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def workers(process: subprocess.Popen) -> list[int]:
    """The process ids of the started processes, by rank."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = {}
    for pid in map(int, listed):
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        rank = re.search(rb"\0RANK=(\d+)\0", environment)
        if rank:
            found[int(rank[1])] = pid
    return [found[rank] for rank in sorted(found)]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def assert_same_curve(run: Path, expected: Path) -> None:
    got, wanted = (json.loads((path / "metrics.json").read_text()) for path in (run, expected))
    assert len(got["epochs"]) == len(wanted["epochs"])
    for epoch, other in zip(got["epochs"], wanted["epochs"], strict=True):
        assert epoch["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert epoch["val"] == pytest.approx(other["val"], abs=1e-12)
    assert got["test"] == pytest.approx(wanted["test"], abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--parallel", "data"], {}, "--parallel data: expected to be started by torchrun, as in"),
        ([], {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2"}, "train: expected --parallel data"),
    ],
)
def test_started_in_another_way(
    tiny_directory, tmp_path, monkeypatch, capsys, arguments, environment, message
):
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "run"
    assert main(["train", "--data", str(tiny_directory), "--out", str(out), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


class Output(NamedTuple):
    """What the two processes of a command have returned and written."""

    codes: list[int]
    out: str
    err: str


ERRORS = (
    ("--model=unknown",),
    ("--model=lightgcn", "--data=nowhere"),
    ("--model=ease",),
    ("--model=lightgcn", "--seeds=2"),
    ("--variant=released",),
    ("--model=lightgcn", "--epochs=1RANK"),
    ("--model=lightgcn", "--data=OTHER-RANK"),
    ("--model=lightgcn", "--data=WRONG"),
)


@pytest.fixture(scope="module")
def outputs(tiny_directory, tmp_path_factory):
    """A folder with a run of one process and one of two in each mode; the output of the latter.

    Torchrun starts two processes once, which run the commands one after the other.
    """
    folder = tmp_path_factory.mktemp("commands")
    data = ("train", "--device=cpu", f"--data={tiny_directory}")
    options = (*data, *OPTIONS, "--epochs=3")
    assert main([*options, f"--out={folder}/alone"]) == 0
    commands = [[*options, f"--out={folder}/{mode}", f"--parallel={mode}"] for mode in MODES]
    for error in ERRORS:
        commands.append([*data, *error, f"--out={folder}/failed", "--parallel=sharded"])
    for word, path in (("OTHER", folder / "data"), ("WRONG", folder / "wrong")):
        commands = [[text.replace(word, str(path)) for text in each] for each in commands]
    for rank in range(2):
        write_dataset(make_dataset(30 + rank, 12), folder / f"data-{rank}")
    # A train edge of the last user, whom process 1 holds, is a test edge as well.
    write_dataset(make_dataset(), folder / "wrong")
    splits = [json.loads((folder / "wrong" / f"{s}.json").read_text()) for s in ("train", "test")]
    last = max(splits[1], key=int)
    splits[0][last].append(splits[1][last][0])
    (folder / "wrong" / "train.json").write_text(json.dumps(splits[0]))
    (folder / "commands.json").write_text(json.dumps(commands))
    process = torchrun(2, 0, "tests.distributed.commands", folder)
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    found = []
    for number in range(len(commands)):
        ranks = [json.loads((folder / f"{number}.{rank}.json").read_text()) for rank in range(2)]
        codes, out, err = ([rank[key] for rank in ranks] for key in ("code", "out", "err"))
        found.append(Output(codes, "".join(out), "".join(err)))
    return folder, found


@needs_gloo
@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_one_run_directory_and_one_display(outputs, mode):
    folder, found = outputs
    output = found[MODES.index(mode)]
    assert output.codes == [0, 0] and not error_lines(output.err), output.err
    assert output.out.count("run directory:") == output.out.count("test of epoch") == 1
    assert_same_run(folder / mode, folder / "alone")


def assert_same_run(two: Path, alone: Path) -> None:
    assert_same_curve(two, alone)
    assert sorted(p.name for p in two.iterdir()) == sorted(p.name for p in alone.iterdir())
    assert (two / "log.jsonl").read_text().count("\n") == 3
    # The files are those of one process.
    for name in ("model.safetensors", "checkpoint/last.safetensors"):
        got, wanted = (load_checkpoint(run / name) for run in (two, alone))
        assert got.state.keys() == wanted.state.keys()
        assert got.tensors.keys() == wanted.tensors.keys()
        for key, tensor in got.tensors.items():
            torch.testing.assert_close(tensor, wanted.tensors[key], rtol=1e-4, atol=1e-6)


@needs_gloo
@pytest.mark.slow
@pytest.mark.parametrize("error", ERRORS, ids=" ".join)
def test_an_error_is_reported_once(outputs, error):
    output = outputs[1][len(MODES) + ERRORS.index(error)]
    assert output.codes == [2, 2], output
    assert len(error_lines(output.err)) == 1, output.err
    assert not (outputs[0] / "failed").exists()


@needs_gloo
@pytest.mark.slow
@pytest.mark.parametrize(("mode", "killed"), [("data", 0), ("sharded", 1)])
def test_a_killed_process_ends_all_and_others_continue(tiny_directory, tmp_path, mode, killed):
    run, alone = tmp_path / "run", tmp_path / "alone"
    options = ("--data", tiny_directory, *OPTIONS, "--epochs=40", "--set=lightgcn.patience=40")
    assert main(["train", *map(str, options), "--device=cpu", "--quiet", f"--out={alone}"]) == 0
    process = start(3, *options, "--out", run, f"--parallel={mode}", "--quiet")
    wait_for_epochs(process, run, 3)
    pids = workers(process)
    assert len(pids) == 3
    os.kill(pids[killed], signal.SIGKILL)
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode != 0 and not any(map(is_running, pids))
    (line,) = error_lines(err)
    assert line.startswith("error: lost the connection to another process of the run")
    # Two processes continue, then one.
    process = start(2, "--resume", "--out", run, f"--parallel={mode}", "--quiet")
    wait_for_epochs(process, run, 8)
    os.kill(workers(process)[0], signal.SIGTERM)  # any process may be asked to stop
    process.communicate(timeout=LIMIT)
    assert main(["train", "--resume", "--device=cpu", "--quiet", f"--out={run}"]) == 0
    assert_same_curve(run, alone)


@needs_gloo
@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_torchrun_restarts_and_the_run_continues(tiny_directory, tmp_path, mode):
    run, alone = tmp_path / "run", tmp_path / "alone"
    options = ("--data", tiny_directory, *OPTIONS, "--epochs=30", "--set=lightgcn.patience=30")
    assert main(["train", *map(str, options), "--device=cpu", "--quiet", f"--out={alone}"]) == 0
    process = start(2, *options, "--out", run, f"--parallel={mode}", "--quiet", restarts=1)
    wait_for_epochs(process, run, 3)
    os.kill(workers(process)[1], signal.SIGKILL)
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    (line,) = error_lines(err)
    assert line.startswith("error: lost the connection to another process of the run")
    assert_same_curve(run, alone)


@needs_gloo
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the system sends no signal")
def test_processes_end_with_torchrun(tiny_directory, tmp_path):
    run = tmp_path / "run"
    options = ("--data", tiny_directory, *OPTIONS, "--epochs=10000", "--set=lightgcn.patience=9999")
    process = start(2, *options, "--out", run, "--parallel=sharded", "--quiet")
    wait_for_epochs(process, run, 2)
    pids = workers(process)
    process.kill()
    out, _ = process.communicate(timeout=LIMIT)  # until the last process closes its end
    assert "stopped; continue with" in out
    deadline = time.monotonic() + LIMIT
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
