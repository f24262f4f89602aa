"""gpu.sh: its order, budgets, resuming and exit codes, with stand-ins for what needs a GPU.

What the parts do on a device cannot be tested here. The pass over every op, which compares results
with the reference, is tested on the CPU.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    not (shutil.which("bash") and shutil.which("timeout")), reason="no bash or no timeout"
)

# Prints its arguments, and fails if a file of that name exists.
PYTHON = """#!/bin/bash
echo "$*" >> "$STUB/calls"
echo "${CUDA_HOME-unset}" > "$STUB/cuda-home"
for word in setup.py benchmarks.gpu_pass pytest bench; do
  case " $* " in *" $word "*)
    [ -e "$STUB/fail-$word" ] && exit 1
    [ -e "$STUB/hang-$word" ] && exec sleep 30
  esac
done
case "$*" in
  *"import pytest"*) [ ! -e "$STUB/no-pytest" ] ;;
  *"torch.__version__"*) echo torch 2.11 ;;
esac
"""
SANITIZER = """#!/bin/bash
[ "$1" = --help ] && { echo "  --kernel-name"; exit 0; }
echo "sanitizer $*" >> "$STUB/calls"
[ ! -e "$STUB/dirty-$2" ] || exit 9
"""


@pytest.fixture
def run(tmp_path):
    stub = tmp_path / "stub"
    (stub / "cuda" / "bin").mkdir(parents=True)
    for path, text in (
        (stub / "python", PYTHON),
        (stub / "cuda" / "bin" / "compute-sanitizer", SANITIZER),
        (stub / "nvidia-smi", "#!/bin/bash\necho NVIDIA Stub, 580.1\n"),
    ):
        path.write_text(text)
        path.chmod(0o755)

    def call(*arguments: str, **variables: str) -> tuple[int, str, list[str]]:
        (stub / "calls").unlink(missing_ok=True)
        environment = os.environ | {
            "STUB": str(stub), "PYTHON": str(stub / "python"), "OUT": str(tmp_path / "out"),
            "CUDA_HOME": str(stub / "cuda"), "PATH": f"{stub}:{os.environ['PATH']}", **variables,
        }  # fmt: skip
        done = subprocess.run(
            ["bash", str(ROOT / "benchmarks" / "gpu.sh"), *arguments],
            env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        calls = (stub / "calls").read_text().splitlines() if (stub / "calls").exists() else []
        return done.returncode, done.stdout + done.stderr, calls

    call.stub = stub
    return call


def test_all_parts_in_order_and_once(run, tmp_path):
    code, text, calls = run()
    assert code == 0, text
    marks = [text.index(f"== {part}: ok") for part in ("build", "test", "sanitize", "bench")]
    assert marks == sorted(marks)
    assert "NVIDIA Stub" in text
    shown = "\n".join(calls)
    for tool in ("memcheck", "racecheck", "initcheck"):
        assert f"sanitizer --tool {tool} --error-exitcode 9 --kernel-name" in shown
    for suite in ("ops", "step", "evaluate"):
        assert f"-m mmssl bench {suite} --device cuda --out {tmp_path / 'out'} --budget" in shown
    assert (tmp_path / "out" / "bench.log").exists()
    code, text, _ = run()
    assert code == 0 and text.count("done before") == 4
    code, text, calls = run("--part", "bench")
    assert code == 0 and text.count("== ") == 2 and any("bench ops" in call for call in calls)
    code, text, _ = run("--fresh")
    assert code == 0 and "done before" not in text


def test_a_failed_part_is_run_again(run):
    (run.stub / "dirty-racecheck").touch()
    code, text, _ = run()
    assert code == 1
    assert "FOUND SOMETHING, see sanitize-racecheck.log" in text
    assert "== sanitize: FAILED" in text and "== bench: ok" in text
    (run.stub / "dirty-racecheck").unlink()
    code, text, _ = run()
    assert code == 0 and text.count("done before") == 3 and "== sanitize: ok" in text


def test_nothing_follows_a_build_that_fails(run):
    (run.stub / "fail-setup.py").touch()
    code, text, _ = run()
    assert code == 1 and "== build: FAILED" in text and "== test" not in text


def test_without_pytest_the_short_pass_remains(run):
    (run.stub / "no-pytest").touch()
    code, text, calls = run("--part", "test")
    assert code == 0 and "pytest or hypothesis is missing" in text
    assert any("benchmarks.gpu_pass" in call for call in calls)
    assert not any("-m pytest" in call for call in calls)


def test_a_part_stops_at_its_budget(run):
    (run.stub / "hang-benchmarks.gpu_pass").touch()
    code, text, _ = run("--part", "test", TEST_S="1")
    assert code == 1 and "== test: FAILED" in text


def test_without_the_sanitizer(run):
    (run.stub / "cuda" / "bin" / "compute-sanitizer").unlink()
    if shutil.which("compute-sanitizer"):
        pytest.skip("there is a compute-sanitizer on PATH")
    code, text, _ = run("--part", "sanitize")
    assert code == 0 and "== sanitize: left out" in text


def test_cuda_home_is_set_only_where_it_exists(run):
    for home, seen in ((str(run.stub / "cuda"), str(run.stub / "cuda")), ("/nowhere", "unset")):
        assert run("--part", "build", CUDA_HOME=home)[0] == 0
        assert (run.stub / "cuda-home").read_text().strip() == seen


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--part", "deploy"], "--part: expected one of build test sanitize bench, got deploy"),
        (["--part"], "--part needs a value"),
        (["--wheels", "/nowhere"], "--wheels: expected a folder, got /nowhere"),
        (["--quick"], "unknown option --quick"),
    ],
)
def test_bad_options(run, arguments, message):
    code, text, calls = run(*arguments)
    assert code == 2 and message in text and not calls


def test_without_a_device(run):
    code, text, _ = run(PYTHON="/bin/false")
    assert code == 2 and "has no torch with a usable CUDA device" in text


def test_the_pass_over_every_op():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_pass", "--device", "cpu"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("ok ") == 54
    assert "every op agrees with its reference" in done.stdout
