"""The contract tests of the ops, and training steps, on the CUDA kernels under the emulator.

CI runs them without sanitizers, ``make cuda-check`` with AddressSanitizer and UBSan (marker
``emulated``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mmssl.ops._registry import OPS, Op
from tests.ops.kernels import ROOT, needs_compiler, needs_cpu_kernel, preloaded

# Tests of the CPU kernels that run long on the emulator, or that are about threads, SIMD levels,
# speed or memory, or of a type that the CPU converts to float32.
LEFT_OUT = ("any_problem", "many_rows", "every_simd", "memory", "zero_rows_at_any", "captured",
            "same_bits", "compiles", "either_interface", "whole_shuffle", "are_uniform",
            "large_batch", "out_of_range", "share_out", "no_matrix",
            "-float16")  # fmt: skip
ALL_OPS = "tests/ops/test_all_ops.py"


@dataclass(frozen=True)
class Contract:
    """Tests of the CPU kernels that a family of CUDA kernels has to pass."""

    files: tuple[str, ...]
    names: str
    """Which of these tests, as ``pytest -k`` takes it."""
    environment: dict[str, str] = field(default_factory=dict)


def of_op(op: Op) -> Contract:
    """The contract suite, and the tests of the op itself."""
    names = dict.fromkeys([op.name, op.folder, op.name.removesuffix("_loss")])
    files = [f for f in (f"tests/ops/test_{name}.py" for name in names) if (ROOT / f).is_file()]
    # A name that is part of another's selects the tests of both.
    longer = [other for other in OPS if op.name in other and other != op.name]
    checked_by_cpu = ("wrong_tensors",) if op.name == "bpr_loss" else ()  # ids out of range
    left_out = " and not ".join(("", *longer, *LEFT_OUT, *checked_by_cpu))
    return Contract((ALL_OPS, *files), f"{op.name}{left_out}")


def of_older_kernels(kernels: str, names: str) -> Contract:
    """Some tests of info_nce on kernels that the emulated device, of 9.0, does not choose."""
    contract = of_op(OPS["info_nce"])
    return Contract(contract.files, f"{contract.names} and {names}", {"MMSSL_INFO_NCE": kernels})


WITH_KERNELS = [op for op in OPS.values() if "cuda" in op.dtypes]
CONTRACTS = {
    **{op.name: of_op(op) for op in [*WITH_KERNELS, OPS["cosine_logsumexp"]]},
    "forms of info_nce": Contract(
        ("tests/ops/test_info_nce_forms.py",), " and not ".join(("forms", *LEFT_OUT))
    ),
    # The other types use mma.sync on every device.
    "info_nce by mma.sync": of_older_kernels("mma", "(bfloat16 or temperatures)"),
    "info_nce in tiles": of_older_kernels("tiles", "(within_those or temperatures)"),
    "what only a GPU has": Contract(
        ("tests/ops/test_similarity.py", "tests/ops/test_add_normalized.py",
         "tests/ops/test_keep_mask.py", "tests/test_indexing.py",
         "tests/training/test_recorded.py", "tests/models/test_critic_pass.py",
         "tests/models/test_whole_pass.py", "tests/models/test_batch_loss.py",
         "tests/models/test_fixtures.py"),
        "similarity or capacity or padded or lists or recorded_steps and paper or critic_pass"
        " or whole_pass or batch_loss or fixtures or rows_of_one_length or dropped or rounds",
    ),
}  # fmt: skip


def run_on_emulator(
    contract: Contract, library: Path, left_out: str = "", **environment: str
) -> None:
    """Run the tests of a contract against the CUDA kernels."""
    names = f"({contract.names}){left_out}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.ops.emulated", "-p", "no:cacheprovider",
         *contract.files, "-k", names],
        cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "MMSSL_EMULATED": str(library), **contract.environment, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@needs_compiler
@needs_cpu_kernel
@pytest.mark.parametrize("name", CONTRACTS)
def test_contract_on_the_emulated_kernels(name, emulated):
    run_on_emulator(CONTRACTS[name], emulated)


@pytest.mark.emulated
@needs_compiler
@needs_cpu_kernel
@pytest.mark.parametrize("name", CONTRACTS)
def test_contract_under_sanitizers(name, sanitized):
    # opcheck repeats calls of the samples to check what Python knows of an operator.
    run_on_emulator(CONTRACTS[name], sanitized, " and not opcheck", **preloaded())


@needs_compiler
def test_every_folder_of_kernels_has_a_contract():
    """Kernels that no op owns belong to what only a GPU has."""
    folders = {path.parent.name for path in (ROOT / "csrc/ops").glob("*/*.cu")}
    assert folders - {op.folder or op.name for op in WITH_KERNELS} == {"critic", "index"}


# What a step may start on the device; the first steps whose loss terms, and how many of these, are
# those of the CPU kernels, up to a relative error. On a GPU `paper` draws as many numbers for the
# edges of a batch as it has space for, so that only what comes before is equal; the critic of
# `released` amplifies rounding, since Adam divides gradients by their size.
STEPS = {
    "plus": (117, 3, None, 1e-4),
    "paper": (150, 1, 4, 1e-4),
    "released": (313, 3, None, 0.05),
}


def check_steps(variant: str, library: Path, **environment: str) -> None:
    """Backend "native" trains on CUDA kernels; a step waits for nothing and starts few of them."""
    most, steps, terms, error = STEPS[variant]
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.emulated_step", str(library), variant],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    for found, expected in list(zip(result["found"], result["expected"], strict=True))[:steps]:
        assert found[:terms] == pytest.approx(expected[:terms], rel=error)
    assert result["waits"] == []
    started = sum(result["kernels"].values()) + sum(
        sum(c.values()) for c in result["operators"].values()
    )
    assert started <= most, result["operators"]


@pytest.mark.slow
@needs_compiler
@needs_cpu_kernel
@pytest.mark.parametrize("variant", STEPS)
def test_training_steps_on_the_emulated_kernels(variant, emulated):
    check_steps(variant, emulated)


@pytest.mark.emulated
@needs_compiler
@needs_cpu_kernel
@pytest.mark.parametrize("variant", STEPS)
def test_training_steps_under_sanitizers(variant, sanitized):
    check_steps(variant, sanitized, **preloaded())
