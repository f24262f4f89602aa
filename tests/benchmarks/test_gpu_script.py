"""gpu.sh: its calls, budgets, results and exit codes, with stand-ins for what needs a GPU.

What the parts do on a device cannot be tested here. The pass over every op, which compares results
with the reference, is tested on the CPU.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    not (shutil.which("bash") and shutil.which("timeout")), reason="no bash or no timeout"
)

# Prints its arguments; fails or hangs if a file of that name exists.
PYTHON = """#!/bin/bash
echo "${MMSSL_INFO_NCE:-} $*" >> "$STUB/calls"
echo "${CUDA_HOME-unset}" > "$STUB/cuda-home"
for word in setup.py benchmarks.gpu_pass pytest bench; do
  case " $* " in *" $word "*)
    echo "output of $word"
    [ -e "$STUB/fail-$word" ] && exit 1
    [ -e "$STUB/hang-$word" ] && exec sleep 30
  esac
done
case "$*" in
  *"e.cuda is not None"*) [ -e "$STUB/binaries" ] || { touch "$STUB/binaries"; exit 1; } ;;
  *"import msgspec"*) exit 1 ;;
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

    call.stub, call.out = stub, tmp_path / "out"
    return call


def packed(out: Path, call: str) -> set[str]:
    """Return the names in the one file that a call leaves behind."""
    assert [p.name for p in out.iterdir()] == [f"gpu-{call}.tar"]
    with tarfile.open(out / f"gpu-{call}.tar") as archive:
        return {Path(name).name for name in archive.getnames()} - {call}


def test_check_builds_only_what_did_not_come_along(run):
    code, text, calls = run("check")
    assert code == 0, text
    assert any("setup.py" in call for call in calls)
    expected = {
        f"{name}.log" for name in ("load", "build", "pass", "tests", "memcheck", "racecheck")
    }
    assert packed(run.out, "check") == expected | {"machine.txt"}
    assert "not installed: msgspec" in text and "NVIDIA Stub" in text
    code, text, calls = run("check")
    assert code == 0 and not any("setup.py" in call for call in calls)
    shown = "\n".join(calls)
    for tool in ("memcheck", "racecheck"):
        assert f"sanitizer --tool {tool} --error-exitcode 9 --kernel-name" in shown


def test_ops_measures_all_kernels_of_info_nce(run):
    code, text, calls = run("ops")
    assert code == 0, text
    bench = [call for call in calls if "mmssl bench" in call]
    assert [call.split()[0] for call in bench] == ["-m", "mma", "tiles", "-m", "-m"]
    assert all("--device cuda" in call and "--smoke" not in call for call in bench)
    assert {"bounds-before.md", "ceilings.log", "info_nce_mma.log"} <= packed(run.out, "ops")


def test_step(run):
    code, _, calls = run("step")
    assert code == 0
    assert [c.split()[3] for c in calls if "mmssl bench" in c] == ["step", "evaluate"]


@pytest.mark.parametrize("call", ["ops", "step"])
def test_every_call_builds_what_did_not_come_along(call, run):
    code, text, calls = run(call)
    assert code == 0 and "== build: ok" in text and any("setup.py" in c for c in calls)
    (run.stub / "binaries").unlink()
    (run.stub / "fail-setup.py").touch()
    code, text, calls = run(call)
    assert code == 1 and not any("mmssl bench" in c for c in calls)


def test_a_failure_is_reported_and_the_rest_goes_on(run):
    (run.stub / "binaries").touch()
    (run.stub / "dirty-memcheck").touch()
    (run.stub / "fail-pytest").touch()
    code, text, _ = run("check")
    assert code == 1
    assert "== memcheck: FAILED" in text and "== racecheck: ok" in text
    assert "== tests: FAILED" in text and "output of pytest" in text
    assert "tests.log" in packed(run.out, "check")


def test_nothing_follows_a_build_that_fails(run):
    (run.stub / "fail-setup.py").touch()
    code, text, _ = run("check")
    assert code == 1 and "== build: FAILED" in text and "== pass" not in text
    assert "build.log" in packed(run.out, "check")


def test_a_stage_stops_at_its_budget(run):
    (run.stub / "binaries").touch()
    (run.stub / "hang-benchmarks.gpu_pass").touch()
    code, text, _ = run("check", CHECK_S="4")
    assert code == 1 and "== pass: stopped at its 1 s" in text


def test_a_rehearsal_needs_no_gpu(run):
    for call in ("check", "ops", "step"):
        code, text, calls = run(call, "--rehearse")
        assert code == 0, text
        assert not any("cuda" in c.split("import")[0] and "--device" in c for c in calls)
        assert not any("sanitizer" in c or "setup.py" in c for c in calls)
        (run.out / f"gpu-{call}.tar").unlink()


def test_a_rehearsal_of_all_calls(run):
    code, text, _ = run("--rehearse")
    assert code == 0, text
    assert {p.name for p in run.out.iterdir()} == {f"gpu-{c}.tar" for c in ("check", "ops", "step")}
    (run.stub / "fail-pytest").touch()
    code, text, calls = run("--rehearse")
    assert code == 1 and "== tests: FAILED" in text and "evaluate" in calls[-1]


def test_cuda_home_is_set_only_where_it_exists(run):
    for home, seen in ((str(run.stub / "cuda"), str(run.stub / "cuda")), ("/nowhere", "unset")):
        assert run("step", CUDA_HOME=home)[0] == 0
        assert (run.stub / "cuda-home").read_text().strip() == seen


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected check, ops or step"),
        (["deploy"], "expected check, ops or step, got deploy"),
        (["check", "--wheels"], "--wheels needs a value"),
        (["check", "--wheels", "/nowhere"], "--wheels: expected a folder, got /nowhere"),
    ],
)
def test_bad_options(run, arguments, message):
    code, text, calls = run(*arguments)
    assert code == 2 and message in text and not calls


def test_without_a_device(run):
    code, text, _ = run("check", PYTHON="/bin/false")
    assert code == 2 and "has no torch with a usable CUDA device" in text


def test_the_pass_over_every_op():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_pass", "--device", "cpu"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("ok ") == 75
    assert "every op agrees with its reference" in done.stdout
