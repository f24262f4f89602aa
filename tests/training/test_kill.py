"""Real training processes, killed and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmssl.training.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow

OPTIONS = [
    "--epochs=6",
    "--seed=3",
    "--set=model.embedding_dim=16",
    "--set=training.batch_size=16",
    "--set=structure.top_k_rate=0.06",
]


# The command, which receives a signal in the middle of its second validation.
SIGNAL_IN_VALIDATION = """
import os, signal, sys
from mmssl.cli import main
from mmssl.training.trainer import Evaluator

evaluate, calls = Evaluator.evaluate, []

def interrupted(self, *embeddings):
    calls.append(None)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    return evaluate(self, *embeddings)

Evaluator.evaluate = interrupted
sys.exit(main(sys.argv[1:]))
"""


def start(*arguments: str | Path, program: tuple[str, str] = ("-m", "mmssl")) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *program, "train", "--device=cpu", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # One thread: the models are tiny, and spinning threads would only slow each other down.
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen, code: int = 0) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    return out


def signal_after_epochs(process: subprocess.Popen, run: Path, count: int, number: int) -> None:
    """Send a signal once the log holds ``count`` epochs; the process must not be done by then."""
    deadline = time.monotonic() + 120
    log = run / "log.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < count:
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.002)
    process.send_signal(number)


@pytest.fixture(scope="module")
def undisturbed(tiny_directory, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("kill") / "whole"
    finish(start("--data", tiny_directory, "--out", run, *OPTIONS))
    return run


def assert_same_result(run: Path, undisturbed: Path) -> None:
    model = "model.safetensors"
    assert (run / model).read_bytes() == (undisturbed / model).read_bytes()
    last = [load_checkpoint(r / "checkpoint" / "last.safetensors") for r in (run, undisturbed)]
    assert last[0].tensors.keys() == last[1].tensors.keys()
    for name, tensor in last[0].tensors.items():
        assert tensor.equal(last[1].tensors[name]), name
    assert len((run / "log.jsonl").read_text().splitlines()) == 6


def test_sigkill_again_and_again(tiny_directory, tmp_path, undisturbed):
    run = tmp_path / "run"
    process = start("--data", tiny_directory, "--out", run, *OPTIONS)
    for epochs in (1, 2, 4):
        signal_after_epochs(process, run, epochs, signal.SIGKILL)
        finish(process, -signal.SIGKILL)
        assert not (run / "metrics.json").exists()
        process = start("--resume", "--out", run)
    finish(process)
    assert_same_result(run, undisturbed)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_polite_signals_save_first(tiny_directory, tmp_path, undisturbed, number, code):
    run = tmp_path / "run"
    process = start("--data", tiny_directory, "--out", run, *OPTIONS)
    signal_after_epochs(process, run, 2, number)
    out = finish(process, code)
    assert f"mmssl train --resume --out {run}" in out
    finish(start("--resume", "--out", run))
    assert_same_result(run, undisturbed)


def test_signal_in_validation(tiny_directory, tmp_path, undisturbed):
    """The epoch whose validation is interrupted is completed; the run stops after it."""
    run = tmp_path / "run"
    program = ("-c", SIGNAL_IN_VALIDATION)
    out = finish(start("--data", tiny_directory, "--out", run, *OPTIONS, program=program), 143)
    assert f"mmssl train --resume --out {run}" in out
    assert len((run / "log.jsonl").read_text().splitlines()) == 2
    finish(start("--resume", "--out", run))
    assert_same_result(run, undisturbed)
