"""What can be checked of the distributions without building a wheel or downloading anything."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from mmssl import _extension
from tests.ops.kernels import CXX, needs_compiler, needs_cpu_kernel
from tools import cuda_modules, wheels
from tools.symbols import symbols, violations
from tools.tree import under

MODULES = {"_C": _extension.ops, "_host": _extension.host, "_C_cuda": _extension.cuda}


@needs_compiler
@pytest.mark.parametrize("name", MODULES)
def test_a_module_loads_on_older_systems_pythons_and_torches(name):
    """No symbol of a newer glibc or libstdc++, of torch's C++, or outside Python's limited API."""
    module = MODULES[name]
    if module is None:
        pytest.skip(_extension.missing[name])
    assert module.__file__ is not None
    assert violations(Path(module.__file__)) == []
    assert any(symbol.name.startswith("PyInit_") for symbol in symbols(Path(module.__file__)))


@needs_compiler
def test_each_violation_is_found(tmp_path):
    (tmp_path / "bad.cpp").write_text("""
        #include <string>
        extern "C" int pthread_once_of_glibc(); extern "C" void* PyObject_Str(void*);
        __asm__(".symver pthread_once_of_glibc,pthread_once@GLIBC_2.34");
        namespace c10 { struct Device { void print(); }; }
        namespace std { void __throw_regex_error(int, const char*); }
        int own() {
          c10::Device().print();
          std::__throw_regex_error(0, "");
          return pthread_once_of_glibc() + (PyObject_Str(0) != 0);
        }
    """)
    module = tmp_path / "bad.abi3.so"
    command = [str(CXX), "-shared", "-fPIC", "-O1", "bad.cpp", "-nostdlib", "-o", str(module)]
    libc = subprocess.run(
        [str(CXX), "-print-file-name=libc.so.6"], capture_output=True, text=True, check=True
    )
    subprocess.run([*command, libc.stdout.strip()], cwd=tmp_path, check=True)
    found = sorted(violations(module))
    assert [line.split()[0] for line in found] == [
        "exports",
        "imports",
        "imports",
        "imports",
        "needs",
    ]
    for part in ("limited API", "c10", "than libstdc++", "pthread_once of GLIBC_2.34"):
        assert sum(part in line for line in found) == 1, found


def test_the_source_distribution_has_everything_that_is_tracked(tmp_path):
    sdist = wheels.build_sdist(tmp_path)
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {*wheels.SOURCES, *under("csrc", "mmssl")} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc", "_build_info.json"))]


def test_the_ops_are_added_to_the_wheel_of_another_python(tmp_path):
    def wheel(name: str, **files: str) -> Path:
        path = tmp_path / name
        with zipfile.ZipFile(path, "w") as archive:
            for file, content in files.items():
                archive.writestr(f"mmssl/{file}", content)
        return path

    complete = wheel("a.whl", **{"_C.abi3.so": "ops", "_host.cpython-311.so": "1",
                                 "_build_info.json": "all"})  # fmt: skip
    other = wheel("b.whl", **{"_host.cpython-312.so": "2", "_build_info.json": "no _C"})
    wheels.add_ops(other, complete)
    with zipfile.ZipFile(other) as archive:
        assert {name: archive.read(name).decode() for name in archive.namelist()} == {
            "mmssl/_C.abi3.so": "ops",
            "mmssl/_build_info.json": "all",
            "mmssl/_host.cpython-312.so": "2",
        }


def test_a_wheel_of_another_version_than_the_tests_is_named(tmp_path):
    package = Path(shutil.copytree(wheels.ROOT / "mmssl", tmp_path / "mmssl"))
    assert wheels.outdated(package) == ""
    (package / "errors.py").write_text("older")
    assert wheels.outdated(package) == "mmssl/errors.py"
    (package / "__init__.py").unlink()
    assert wheels.outdated(package) == "mmssl/__init__.py"


def test_modules_are_unpacked_over_older_ones(tmp_path):
    (tmp_path / "mmssl").mkdir()
    old = tmp_path / "mmssl/_C.abi3.so"
    old.write_text("old")
    wheel = tmp_path / "mmssl-1+cu130.whl"
    names = ("_C.abi3.so", "_C_cuda.abi3.so", "_build_info.json", "graph.py")
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in names:
            archive.writestr(f"mmssl/{name}", "new")
    with old.open() as loaded:
        found = cuda_modules.unpack([wheel, wheel], tmp_path)
        assert loaded.read() == "old"  # what a process has mapped stays as it is
    assert found == [tmp_path / "mmssl" / name for name in names[:3]]
    assert old.read_text() == "new" and not (tmp_path / "mmssl/graph.py").exists()


def test_machine_code_is_counted_by_architecture():
    listing = "ELF file    1: _C_cuda.1.sm_80.cubin\nELF file    2: _C_cuda.2.sm_90a.cubin\n"
    assert cuda_modules.architectures(listing) == {"sm_80": 1, "sm_90a": 1}


@needs_cpu_kernel  # it has their schemas
def test_the_operators_that_need_a_cuda_kernel():
    names = cuda_modules.kernels_of_cuda()
    assert {"spmm", "info_nce_backward", "critic_rows", "index_of_lists"} <= set(names)
    assert "cpu_capability" not in names


@pytest.mark.skipif(torch.version.cuda is not None, reason="a CUDA build of torch")
def test_modules_need_a_cuda_build_of_torch(capsys):
    assert cuda_modules.main() == 1
    assert "error: expected a CUDA build of torch, got " in capsys.readouterr().err
