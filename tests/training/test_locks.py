"""A second training in a directory is refused at once, and a killed process blocks nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mmssl
from mmssl.cli import main
from mmssl.errors import InputError
from mmssl.locks import LOCK_NAME, DirectoryLock, FileLock
from mmssl.training.run import RunDirectory
from tests.training.test_kill import OPTIONS, assert_same_result, finish, start
from tests.training.test_kill import undisturbed as undisturbed

FAST = ["--model=lightgcn", "--epochs=2", "--device=cpu", "--quiet"]
# Holds the lock of a directory until its standard input ends; optionally forks a child first.
HOLDER = """
import os, sys, time
from pathlib import Path
from mmssl.locks import DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]))
lock.take()
if sys.argv[2:]:
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
print("held", flush=True)
sys.stdin.read()
lock.release()
"""


@pytest.fixture
def hold():
    """Start processes that hold the lock of a directory."""
    processes = []

    def start_holder(path: Path, *options: str) -> subprocess.Popen:
        command = [sys.executable, "-c", HOLDER, str(path), *options]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, **pipes)
        processes.append(process)
        if options:
            process.child = int(process.stdout.readline())
        assert process.stdout.readline() == "held\n"
        return process

    yield start_holder
    for process in processes:
        process.kill()
        process.communicate()


def train(data: Path, out: Path, *options: str) -> int:
    return main(["train", "--data", str(data), "--out", str(out), *FAST, *options])


def refused(capsys, code: int, directory: Path, process: subprocess.Popen) -> None:
    captured = capsys.readouterr()
    assert code == 2 and captured.out == ""
    assert captured.err == (
        f"error: {directory}: process {process.pid} is training in this directory; stop it or "
        "choose another --out\n"
    )


@pytest.mark.parametrize("options", [(), ("--model=mmssl", "--profile"), ("--seeds=2",)])
def test_a_new_training_is_refused(tiny_directory, tmp_path, capsys, hold, options):
    out = tmp_path / "run"
    holder = hold(out)  # before it has written anything else
    refused(capsys, train(tiny_directory, out, *options), out, holder)
    (out / "config.toml").touch()
    # The data is not even read.
    refused(capsys, train(tmp_path / "no data", out, *options), out, holder)
    assert sorted(os.listdir(out)) == [LOCK_NAME, "config.toml"]
    with pytest.raises(InputError, match=f"process {holder.pid} is training in this directory"):
        mmssl.train(tmp_path / "no data", "lightgcn", out=out)


def test_resume_is_refused(tiny_directory, tmp_path, capsys, hold):
    out = tmp_path / "run"
    assert train(tiny_directory, out) == 0
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert LOCK_NAME not in os.listdir(out)
    capsys.readouterr()
    holder = hold(out)
    resume = ["train", "--resume", "--out", str(out), "--epochs=3"]
    refused(capsys, main(resume), out, holder)
    for command in (["evaluate", str(out)], ["report", str(out)], ["recommend", str(out)]):
        assert main([*command, *(["--user", "1"] if "recommend" in command else [])]) == 0
    (out / "report.html").unlink()
    holder.kill()
    holder.wait()
    assert (out / LOCK_NAME).exists()  # a killed process leaves the file, but not the lock
    files[out / LOCK_NAME] = (out / LOCK_NAME).read_bytes()
    assert files == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main([*resume, "--quiet"]) == 0
    assert LOCK_NAME not in os.listdir(out)


def test_seeds_are_locked_together_and_one_by_one(tiny_directory, tmp_path, capsys, hold):
    out = tmp_path / "runs"
    assert train(tiny_directory, out, "--seeds=2") == 0
    assert not list(out.rglob(f"*{LOCK_NAME}*"))
    capsys.readouterr()
    resume = ["train", "--resume", "--out", str(out), "--seeds=3", "--quiet"]
    holder = hold(out)
    refused(capsys, main(resume), out, holder)
    assert sorted(p.name for p in out.glob("seed-*")) == ["seed-2022", "seed-2023"]
    holder.communicate()
    (out / "seed-2023" / "metrics.json").unlink()
    holder = hold(out / "seed-2023")  # somebody resumes this run alone
    refused(capsys, main(resume), out / "seed-2023", holder)
    holder.communicate()
    assert main(resume) == 0


def test_a_run_that_appears_while_the_data_is_read_is_not_overwritten(tiny_dataset, tmp_path):
    """Two processes may both find the directory empty; the second one to lock it is refused."""
    from mmssl.config import Config
    from mmssl.training.fit import fit_run

    config = Config().replace({"lightgcn": {"epochs": 1}}, source="test")
    path = tmp_path / "run"
    runs = [RunDirectory.new(path, "lightgcn", tmp_path, tiny_dataset, config) for _ in range(2)]
    fit_run(runs[0], tiny_dataset, show_progress=False)
    metrics = (path / "metrics.json").read_bytes()
    with pytest.raises(InputError, match="exists already; continue it with --resume"):
        fit_run(runs[1], tiny_dataset, show_progress=False)
    assert (path / "metrics.json").read_bytes() == metrics


def test_what_a_killed_start_leaves_blocks_nothing(tiny_directory, tmp_path, hold):
    for number, options in enumerate([(), ("--seeds=2",), ("--model=popularity",)]):
        out = tmp_path / f"run-{number}"
        holder = hold(out)
        holder.kill()
        holder.wait()
        assert os.listdir(out) == [LOCK_NAME]
        assert train(tiny_directory, out, *options) == 0
        assert LOCK_NAME not in os.listdir(out)


def test_a_child_of_a_killed_process_does_not_keep_the_lock(tmp_path, hold):
    """Workers of a data loader, for example, may outlive a killed training for a moment."""
    holder = hold(tmp_path / "run", "fork")
    lock = DirectoryLock(tmp_path / "run")
    assert not lock.acquire()
    holder.kill()
    holder.wait()
    os.kill(holder.child, 0)  # alive
    assert lock.acquire()
    lock.release()
    os.kill(holder.child, signal.SIGKILL)


def test_a_refused_start_leaves_no_directory(tmp_path, tiny_directory, capsys):
    """MMSSL has nothing to train on without content, which is found after the lock is taken."""
    data = tmp_path / "data"
    data.mkdir()
    for file in tiny_directory.glob("*.json"):
        (data / file.name).write_bytes(file.read_bytes())
    assert train(data, tmp_path / "a" / "b", "--model=mmssl") == 2
    assert "modality" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["data"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path, tiny_directory, monkeypatch, caplog, number):
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert train(tiny_directory, tmp_path / "run") == 0
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"warning: {tmp_path / 'run' / LOCK_NAME}: can't lock the file: ")
    assert warning.endswith("; a second training here is not refused") and "\n" not in warning
    assert LOCK_NAME not in os.listdir(tmp_path / "run")
    with pytest.raises(InputError, match="can't lock the file"):
        DirectoryLock(tmp_path / "study", required=True).take()
    assert os.listdir(tmp_path) == ["run"]


def test_directory_lock(tmp_path):
    path = tmp_path / "a" / "b"
    lock, other = DirectoryLock(path), DirectoryLock(path)
    lock.release()  # not held: no effect
    with lock, lock:  # again, by the same object
        lock.check()  # by the holder
        assert not other.acquire()
        with pytest.raises(InputError, match="this process is training"):
            other.check()
        with pytest.raises(InputError, match="this process is training"), other:
            pass
        text = (path / LOCK_NAME).read_text()
        assert re.fullmatch(rf"{os.getpid()} \S+\n", text)
        (path / LOCK_NAME).write_text("17 elsewhere\n")
        assert other.holder() == "process 17 on elsewhere"
        for text in ("", "17", "17 a\x1b[2Jb\n", "x" * 4000):
            (path / LOCK_NAME).write_text(text)
            assert other.holder() == "another process"
    assert os.listdir(tmp_path) == []
    other.check()
    assert os.listdir(tmp_path) == []  # checking creates nothing


def test_a_lock_file_that_was_replaced_is_not_removed(tmp_path):
    lock = DirectoryLock(tmp_path / "run")
    lock.take()
    (tmp_path / "run").rename(tmp_path / "moved")
    other = DirectoryLock(tmp_path / "run")
    other.take()
    lock.release()
    assert not DirectoryLock(tmp_path / "run").acquire()
    other.release()


def test_a_symlink_is_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK_NAME).symlink_to(precious)
    with pytest.raises(InputError, match=f"{LOCK_NAME}: can't lock the file"):
        DirectoryLock(tmp_path / "run").take()
    assert precious.read_text() == "mine"


def test_a_waiting_lock_survives_the_removal_of_its_file(tmp_path):
    """The holder removes the file while another process waits for it: both see one lock."""
    held = FileLock(tmp_path / "lock")
    with held:
        child = os.fork()
        if child == 0:
            waiting = FileLock(tmp_path / "lock")
            waiting.acquire()
            os._exit(0 if waiting.path.exists() else 1)
        time.sleep(0.2)
        held.path.unlink()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.slow
def test_two_real_trainings(tiny_directory, tmp_path, undisturbed):
    out = tmp_path / "run"
    first = start("--data", tiny_directory, "--out", out, *OPTIONS)
    deadline = time.monotonic() + 120
    while not (out / "log.jsonl").exists():
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    first.send_signal(signal.SIGSTOP)
    for options in (
        ["--data", tiny_directory, *OPTIONS],
        ["--resume"],
        ["--data", tiny_directory, *OPTIONS, "--seeds=2"],
    ):
        second = start("--out", out, *options)
        _, err = second.communicate(timeout=120)
        assert second.returncode == 2, err
        assert err.count("\n") == 1 and f"{out}: process {first.pid} is training in" in err
    first.kill()
    finish(first, -signal.SIGKILL)
    finish(start("--resume", "--out", out))
    assert LOCK_NAME not in os.listdir(out)
    assert_same_result(out, undisturbed)
