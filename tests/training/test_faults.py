"""Real disks that fill up, turn read-only or vanish: one line, exit code 2, nothing lost."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmssl.training.checkpoint import load_checkpoint
from tests.training.test_kill import OPTIONS, assert_same_result, finish, start

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
STEPWISE = [*OPTIONS, "--set=training.checkpoint_interval=1"]
EPOCHS = 6  # of OPTIONS


@pytest.fixture(scope="module")
def undisturbed(tiny_directory, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("faults") / "whole"
    finish(start("--data", tiny_directory, "--out", run, *STEPWISE))
    return run


def one_line(process: subprocess.Popen, *words: str) -> None:
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2, err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err, (word, err)


def paused_after(count: int, data: Path, run: Path) -> subprocess.Popen:
    """Return a training process that is paused by SIGSTOP after ``count`` epochs."""
    deadline = time.monotonic() + 240
    log = run / "log.jsonl"
    while True:
        process = start("--data", data, "--out", run, *STEPWISE)
        while not log.exists() or log.read_text().count("\n") < count:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGSTOP)
        if process.poll() is None and log.read_text().count("\n") < EPOCHS:
            return process
        # On a busy machine it ended before this test ran again.
        process.kill()
        process.communicate()
        shutil.rmtree(run)


def limited(size: int, *arguments: str | Path) -> subprocess.Popen:
    """Limit the size of the process's files, which has the effect of a full disk or a quota."""
    return subprocess.Popen(
        [sys.executable, "-m", "mmssl", "train", "--device=cpu", "--quiet", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )


def test_checkpoint_too_large_for_the_disk(tiny_directory, tmp_path, undisturbed):
    run = tmp_path / "run"
    last = run / "checkpoint" / "last.safetensors"
    size = (undisturbed / "checkpoint" / "last.safetensors").stat().st_size
    one_line(
        limited(size // 2, "--data", tiny_directory, "--out", run, *STEPWISE),
        str(last),
        "File too large",
    )
    assert os.listdir(run / "checkpoint") == []
    # Only the checkpoint's history grows, so it fits for a while.
    one_line(limited(size - 900, "--resume", "--out", run), "last.safetensors", "File too large")
    assert load_checkpoint(last).state["epoch"] >= 1
    assert sorted(os.listdir(run / "checkpoint")) == ["last.1.safetensors", "last.safetensors"]
    finish(start("--resume", "--out", run))
    assert_same_result(run, undisturbed)


def test_log_on_a_full_device(tiny_directory, tmp_path, undisturbed):
    run = tmp_path / "run"
    process = paused_after(2, tiny_directory, run)
    shutil.move(run / "log.jsonl", tmp_path / "log.jsonl")
    (run / "log.jsonl").symlink_to("/dev/full")
    process.send_signal(signal.SIGCONT)
    one_line(process, "log.jsonl", "No space left on device")
    (run / "log.jsonl").unlink()
    finish(start("--resume", "--out", run))  # the log is rewritten from the checkpoint
    assert_same_result(run, undisturbed)


def test_vanished_directory(tiny_directory, tmp_path, undisturbed):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    process = paused_after(1, tiny_directory, run)
    run.rename(elsewhere)
    process.send_signal(signal.SIGCONT)
    one_line(process, str(run), "No such file or directory")
    assert not run.exists()
    finish(start("--resume", "--out", elsewhere))
    assert_same_result(elsewhere, undisturbed)


def in_a_mount_namespace(script: str, **variables: str | Path) -> str:
    """Run a shell script that may mount file systems, also as an ordinary user."""
    probe = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"]
    try:
        subprocess.run([*probe, "mount -t tmpfs none /mnt"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no tmpfs can be mounted here: {error}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.update((name, str(value)) for name, value in variables.items())
    train = f'train() {{ {sys.executable} -m mmssl train --device=cpu --quiet "$@"; }}\n'
    result = subprocess.run(
        [*probe, train + script],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def test_full_then_read_only_disk(tiny_directory, tmp_path, undisturbed):
    size = (undisturbed / "checkpoint" / "last.safetensors").stat().st_size
    script = """
    mount -t tmpfs -o size=$SIZE none "$DISK"
    code=0; train --data "$DATA" --out "$DISK/run" $OPTIONS || code=$?
    test $code = 2
    ls "$DISK/run/checkpoint"
    mount -o remount,ro,size=64m "$DISK"
    code=0; train --resume --out "$DISK/run" || code=$?
    test $code = 2
    mount -o remount,rw "$DISK"
    train --resume --out "$DISK/run"
    cp -r "$DISK/run" "$RESULT"
    """
    disk, result = tmp_path / "disk", tmp_path / "result"
    disk.mkdir()
    out = in_a_mount_namespace(
        script,
        DISK=disk,
        DATA=tiny_directory,
        RESULT=result,
        OPTIONS=" ".join(STEPWISE),
        SIZE=str(2 * size + size // 2 + 65536),  # two checkpoints fit, a third one does not
    )
    errors = [line for line in out.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2, out
    assert "No space left on device" in errors[0] and "Read-only file system" in errors[1]
    assert "last.safetensors" in out and "Traceback" not in out
    assert_same_result(result, undisturbed)


def test_damaged_checkpoint_on_resume(tiny_directory, tmp_path, undisturbed):
    run = tmp_path / "run"
    process = paused_after(2, tiny_directory, run)
    process.terminate()
    process.send_signal(signal.SIGCONT)
    finish(process, 143)
    last = run / "checkpoint" / "last.safetensors"
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 16
    last.write_bytes(data)
    shutil.copy(run / "model.safetensors", tmp_path)
    (run / "model.safetensors").unlink()  # the checkpoint holds it as well
    process = start("--resume", "--out", run)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert err.startswith("warning: ") and err.count("\n") == 1, err
    assert "last.safetensors" in err and "continuing from last.1.safetensors" in err
    assert_same_result(run, undisturbed)
