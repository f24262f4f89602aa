"""Build the compiled parts that this machine supports; the package works without any of them.

``mmssl._C`` (CPU ops, torch's stable ABI), ``mmssl._host`` (index building, pybind11) and
``mmssl._C_cuda`` (CUDA ops). The reason for each one that is skipped is printed and kept in
``mmssl/_build_info.json`` for ``mmssl doctor``.

Environment: ``MMSSL_CUDA=auto|0|1`` (1: fail if the CUDA part can't be built),
``MMSSL_SANITIZE=address,undefined`` (see csrc/sanitize.sh).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext as SetuptoolsBuildExt
from setuptools.command.build_py import build_py as SetuptoolsBuildPy
from setuptools.errors import CompileError

# The API of torch 2.11, whichever torch is installed: one build serves every later one.
STABLE_API = "-DTORCH_TARGET_VERSION=0x020b000000000000"
# The architectures that the kernels are compiled for on a machine without a CUDA device.
CUDA_ARCHITECTURES = "8.0;9.0+PTX"
NVCC = ["-std=c++20", "-O3", "-lineinfo", "-Xptxas=-warn-spills"]
# Files with instructions that compute capability 9.0 alone has: compiled for it, whatever the
# others are compiled for, and chosen at run time.
SM90A_ONLY = "*_sm90a.cu"
SM90A = "-gencode=arch=compute_90a,code=sm_90a"
CSRC = str(Path(__file__).resolve().parent / "csrc")  # absolute: ninja runs elsewhere

# What makes every module load on the systems of manylinux_2_28.
OLD_SYSTEMS = Path("csrc/common/old_systems.cpp")
# Files of csrc/ops/<op>/ that are not part of mmssl._C: the CUDA binding and the tests of kernels.
NOT_OF_CPU = ("cuda.cpp", "emulator_test.cpp", "race.cpp")

built: dict[str, dict[str, Any]] = {}  # module -> {"built": bool, "reason": str}


def named(paths: Iterable[Path]) -> list[str]:
    """Return the paths as strings, in the same order on every machine."""
    return sorted(str(path) for path in paths)


def leave_out(module: str, reason: str) -> None:
    """Record and print why a module is not built."""
    built[module] = {"built": False, "reason": reason}
    print(f"mmssl: {module} is not built: {reason}", file=sys.stderr)


def find_nvcc() -> Path | None:
    """Find nvcc in CUDA_HOME, in /usr/local/cuda, or on PATH (where it may be a wrapper)."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    candidates = [Path(home) / "bin/nvcc" for home in homes if home]
    if on_path := shutil.which("nvcc"):
        candidates.append(Path(on_path))
    return next((nvcc for nvcc in candidates if nvcc.exists()), None)


def why_no_cuda(torch: ModuleType) -> str:
    """Return why the CUDA part can't be built here; empty if it can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    nvcc = find_nvcc()
    if nvcc is None:
        return "nvcc was not found (set CUDA_HOME)"
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    release = re.search(r"release (\d+)\.(\d+)", text)
    if release is None or release[1] != torch.version.cuda.split(".")[0]:
        found = release[0] if release else "unknown"
        return f"nvcc is of CUDA {found} but torch of CUDA {torch.version.cuda}"
    os.environ.setdefault("CUDA_HOME", str(nvcc.resolve().parent.parent))
    return ""


def plan() -> tuple[list[Extension], type[SetuptoolsBuildExt]]:
    """Return the extensions to build and the command class that builds them."""
    want_cuda = os.environ.get("MMSSL_CUDA", "auto")
    if want_cuda not in ("auto", "0", "1"):
        sys.exit(f"error: MMSSL_CUDA must be auto, 0 or 1, got {want_cuda!r}")
    compiler = shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")[0]
    found = shutil.which(compiler) or shutil.which("g++") or shutil.which("c++")
    if found is None:
        for module in ("_C", "_host", "_C_cuda"):
            leave_out(module, f"no C++ compiler ({compiler} is not on PATH)")
        return [], SetuptoolsBuildExt
    if shutil.which(compiler) is None:
        os.environ["CXX"] = found

    sanitize = os.environ.get("MMSSL_SANITIZE")
    flags = ["-std=c++20", "-fvisibility=hidden", "-Wall", "-Wno-psabi", "-ffp-contract=off"]
    flags += ["-include", f"{CSRC}/common/old_systems.h"]
    if sanitize:
        flags += [f"-fsanitize={sanitize}", "-fno-sanitize-recover=undefined", "-O1", "-g1"]
    else:
        flags += ["-O3", "-g0"]
    link = [f"-Wl,--version-script={CSRC}/exports.map"]
    link += [f"-fsanitize={sanitize}"] if sanitize else []

    def common() -> dict[str, Any]:  # new lists each time: torch's extensions append to them
        return {
            "include_dirs": [CSRC],
            "extra_link_args": list(link),
            "depends": named([*Path("csrc").rglob("*.h"), *Path("csrc").rglob("*.cuh")]),
            "language": "c++",
        }

    extensions: list[Extension] = []

    try:
        import pybind11
    except ImportError:
        leave_out("_host", "pybind11 is not installed")
    else:
        options = common()
        options["include_dirs"].append(pybind11.get_include())
        options["extra_link_args"].append("-pthread")
        sources = named([OLD_SYSTEMS, *Path("csrc/host").glob("*.cpp")])
        extensions.append(
            Extension("mmssl._host", sources, extra_compile_args=[*flags, "-pthread"], **options)
        )

    try:
        import torch
    except ImportError:
        for module in ("_C", "_C_cuda"):
            leave_out(module, "torch is not installed where the package is built")
        return extensions, SetuptoolsBuildExt
    if tuple(int(n) for n in torch.__version__.split(".")[:2]) < (2, 11):
        for module in ("_C", "_C_cuda"):
            leave_out(module, f"torch {torch.__version__} is older than 2.11")
        return extensions, SetuptoolsBuildExt

    no_cuda = "MMSSL_CUDA=0" if want_cuda == "0" else why_no_cuda(torch)
    if no_cuda and want_cuda == "1":
        sys.exit(f"error: MMSSL_CUDA=1 but {no_cuda}")
    # Imported only now: it looks for CUDA_HOME when it is imported.
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    csrc = Path("csrc")
    sources = [csrc / "library.cpp", *csrc.glob("common/*.cpp")]
    sources += [path for path in csrc.glob("ops/*/*.cpp") if path.name not in NOT_OF_CPU]
    arguments = {"cxx": [*flags, STABLE_API]}
    extensions.append(
        CppExtension(
            "mmssl._C",
            named(sources),
            extra_compile_args=arguments,
            py_limited_api=True,
            **common(),
        )
    )
    if no_cuda:
        leave_out("_C_cuda", no_cuda)
    else:
        if not torch.cuda.is_available():
            os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES)
        extensions.append(
            CUDAExtension(
                "mmssl._C_cuda",
                named(
                    [
                        OLD_SYSTEMS,
                        csrc / "library_cuda.cpp",
                        *csrc.glob("ops/*/cuda.cpp"),
                        *(p for p in csrc.glob("ops/*/*.cu") if not p.match(SM90A_ONLY)),
                    ]
                ),
                extra_compile_args={"cxx": [*flags, STABLE_API, "-DUSE_CUDA"], "nvcc": NVCC},
                py_limited_api=True,
                **common(),
            )
        )
    return extensions, BuildExtension


extensions, BaseBuildExt = plan()
required = {"mmssl._C_cuda"} if os.environ.get("MMSSL_CUDA") == "1" else set()
for extension in extensions:
    extension.optional = extension.name not in required


def write_build_info(directory: Path) -> None:
    """Write what was built, and why the rest was not, for ``mmssl doctor``."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "_build_info.json"
    path.write_text(json.dumps(dict(sorted(built.items())), indent=1) + "\n", encoding="utf-8")


class BuildExt(BaseBuildExt):
    """Builds every extension separately; one that fails is skipped and its reason recorded."""

    def build_extension(self, ext: Extension) -> None:
        """Build one extension and record the outcome."""
        module = ext.name.removeprefix("mmssl.")
        try:
            if module == "_C_cuda":
                ext.extra_objects = self.sm90a_objects()
            super().build_extension(ext)
        except Exception as error:
            leave_out(module, "it failed to compile (the compiler's messages are in the build log)")
            raise CompileError(f"{ext.name} failed to compile") from error
        built[module] = {"built": True, "reason": ""}

    def sm90a_objects(self) -> list[str]:
        """Compile the files for compute capability 9.0: torch has one set of options for all."""
        nvcc = find_nvcc()
        assert nvcc is not None  # or the extension would not be built
        host = ["-ccbin", os.environ["CC"]] if "CC" in os.environ else []  # as torch does
        objects = []
        for source in named(Path("csrc").glob(f"ops/*/{SM90A_ONLY}")):
            target = Path(self.build_temp) / source.replace(".cu", ".o")
            target.parent.mkdir(parents=True, exist_ok=True)
            command = [str(nvcc), *NVCC, SM90A, *host, f"-I{CSRC}", "-Xcompiler=-fPIC"]
            self.spawn([*command, "-c", source, "-o", str(target)])
            objects.append(str(target))
        return objects

    def run(self) -> None:
        """Build all extensions, then write the record next to them."""
        super().run()
        inplace = self.inplace or getattr(self, "editable_mode", False)
        write_build_info(Path("." if inplace else self.build_lib) / "mmssl")


class BuildPy(SetuptoolsBuildPy):
    """Writes the record as well, since build_ext does not run if there is nothing to build."""

    def run(self) -> None:
        """Copy the Python files and write the record."""
        super().run()
        if not extensions:
            editable = getattr(self, "editable_mode", False)
            write_build_info(Path("." if editable else self.build_lib) / "mmssl")


setup(ext_modules=extensions, cmdclass={"build_ext": BuildExt, "build_py": BuildPy})
