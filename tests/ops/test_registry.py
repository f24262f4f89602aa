"""What is declared, built, documented, measured and tested agrees, so nothing is forgotten."""

from __future__ import annotations

import re
import shutil

import pytest
import torch

from mmssl import _extension, ops
from mmssl.ops import _docs
from mmssl.ops._registry import OPS, QUERIES, operators
from tests.ops import truth
from tests.ops.cases import each, labels
from tests.ops.kernels import ROOT, SANITIZERS, needs_compiler, needs_cpu_kernel, run_emulated

PUBLIC = [op for op in OPS.values() if op.public]
KERNELS = [op for op in OPS.values() if op.folder != "-"]
CUDA_FOLDERS = sorted(
    {op.folder or op.name for op in KERNELS if "cuda" in op.dtypes}
    | {path.parent.name for path in (ROOT / "csrc/ops").glob("*/kernels.cu")}
)
CONTROL = {"BACKENDS", "OpStatus", "Triples", "backend", "requested_backend", "set_backend"}


@needs_cpu_kernel
def test_every_operator_of_the_build_is_declared():
    names = [
        name.split("::")[1].split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("mmssl::")
    ]
    assert set(names) == {*operators(), *QUERIES}


def test_every_public_op_is_declared():
    assert set(ops.__all__) - CONTROL - {"status"} == {op.name for op in PUBLIC}
    for op in PUBLIC:
        assert getattr(ops, op.name) is op.function
        assert op.function.__name__ == op.name


@each(list(OPS.values()))
def test_an_op_has_samples_truth_and_tests(op):
    found = labels(op)
    assert found[0] == "typical" and len(found) == len(set(found))
    if op.operators:
        assert "large" in found
    assert callable(getattr(truth, op.name))
    folder = ROOT / "tests/ops"
    own = [folder / f"test_{name}.py" for name in (op.name, op.folder, op.folder.rstrip("s"))]
    own += [folder.parent / "models" / "test_critic.py"] if op.folder == "-" else []
    assert any(path.is_file() for path in own)


@each(PUBLIC)
def test_a_public_op_is_documented_and_measured(op):
    named = op.words.page or op.name
    page = ROOT / f"docs/ops/{named}.md"
    assert f"ops.{op.name}(" in page.read_text()
    assert op.words.equals and op.words.avoids and list(op.contract.bad())
    assert re.search(
        rf"^::: mmssl\.ops\.\w+\.{op.name}$", (ROOT / "docs/reference/ops.md").read_text(), re.M
    )
    doc = op.function.__doc__ or ""
    assert all(part in doc for part in ("Args:", "Returns:", "Raises:"))
    benchmarks = "".join(path.read_text() for path in (ROOT / "benchmarks").glob("bench_*.py"))
    assert re.search(rf"\b({op.name}|{named})\b", benchmarks)


@pytest.mark.parametrize("page", ["README.md", "docs/ops/index.md"])
def test_tables_are_those_of_the_declarations(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "<!-- ops:" in text
    assert _docs.filled(text) == text, f"run: python -m mmssl.ops._docs {page}"


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("folder", CUDA_FOLDERS)
def test_cuda_kernels_are_right_under_the_emulator(folder, sanitizer, tmp_path):
    if sanitizer == "thread" and not shutil.which("setarch"):
        pytest.skip("no setarch, which ThreadSanitizer needs")
    run_emulated(tmp_path, folder, sanitizer)


@pytest.fixture
def extension(monkeypatch):
    """What is loaded, to be discarded by the test alone."""
    monkeypatch.setattr(_extension, "ops", object())
    monkeypatch.setattr(_extension, "cuda", None)
    monkeypatch.setattr(_extension, "missing", {})
    return _extension


def test_a_build_without_a_declared_operator_is_not_used(extension):
    """Backward operators included: each is declared, and each declared one is required."""
    extension.require_operators(["no_such_operator_backward"])
    assert extension.ops is None
    reason = "mmssl._C is an older build without no_such_operator_backward; build it again"
    assert extension.missing == {"_C": reason, "_C_cuda": reason}


@needs_cpu_kernel
@pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="no source tree")
def test_a_build_with_another_schema_is_not_used(extension, monkeypatch, tmp_path):
    """Sources whose operator has a parameter more than the build that is loaded."""
    names = [*operators(), *QUERIES]
    assert sorted(extension.source_schemas()) == sorted(names)  # each was found in the sources
    extension.require_operators(names)
    assert extension.ops is not None and not extension.missing

    folder = tmp_path / "csrc" / "ops" / "products"
    folder.mkdir(parents=True)
    source = (ROOT / "csrc/ops/products/cpu.cpp").read_text()
    (folder / "cpu.cpp").write_text(source.replace("gram(Tensor x)", "gram(Tensor x, bool half)"))
    monkeypatch.setattr(_extension, "_CSRC", tmp_path / "csrc")
    extension.require_operators(names)
    assert extension.ops is None
    reason = "an older build whose gram takes or returns something else; build it again"
    assert extension.missing["_C"] == extension.missing["_C_cuda"] == f"mmssl._C is {reason}"


@needs_cpu_kernel
def test_an_installed_package_has_no_sources_to_compare(extension, monkeypatch, tmp_path):
    monkeypatch.setattr(_extension, "_CSRC", tmp_path / "csrc")
    assert extension.source_schemas() == {}
    extension.require_operators([*operators(), *QUERIES])
    assert extension.ops is not None


@needs_cpu_kernel
def test_a_declared_backward_is_required(monkeypatch):
    required = []
    monkeypatch.setattr(_extension, "require_operators", required.extend)
    monkeypatch.setattr(_extension, "ops", None)
    ops._registry.activate()
    assert {o.name for op in OPS.values() for o in op.operators if o.refused} <= set(required)
    assert len([name for name in required if name.endswith("backward")]) >= 6
