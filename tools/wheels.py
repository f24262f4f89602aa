"""Build the source distribution and the wheels; test wheels in fresh environments.

``python -m tools.wheels build`` writes ``dist/``: the source distribution and, built from it
without asking a package index, ``manylinux_2_28`` wheels for the interpreter that runs this and for
``--pythons``. ``_C`` is built once, with the torch of that interpreter, ``_host`` for each.
``--cuda`` adds ``_C_cuda``, for which that torch has to be a CUDA build, marks the version with the
CUDA version and writes to a directory of ``dist/`` with that name.

``python -m tools.wheels test 2.11.0 2.13.0`` installs the wheel next to each of these versions of
torch and runs the op tests against what is installed, from a directory without the package.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

from tools.symbols import PLATFORM, violations
from tools.tree import ROOT, under

DIST = ROOT / "dist"
# Libraries that the modules find in the torch that imports them, not in the wheel.
OF_TORCH = ("libc10.so", "libtorch_cpu.so", "libtorch.so", "libc10_cuda.so", "libtorch_cuda.so",
            "libcudart.so.*")  # fmt: skip
# What building mmssl._host takes; building mmssl._C takes torch as well.
BUILD_TOOLS = ("setuptools>=77", "pybind11>=2.13", "numpy>=1.26", "ninja")
SOURCES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
# What the op tests read, without the package and its sources, which they must not find.
TESTED = ("tests", "docs", "examples", "benchmarks", "README.md", "pyproject.toml")
TESTING = ("pytest>=8", "pytest-benchmark", "pytest-xdist", "hypothesis", "scipy")
LEVELS = ("default", "avx2")
IMPORT_ROUNDS = 11


class Failure(Exception):
    """Something that ends the command with one line."""


def run(command: Sequence[str | Path], cwd: Path = ROOT, **environment: str) -> str:
    """Run a command and return what it printed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        sys.stderr.write(done.stdout)
        raise Failure(f"{' '.join(map(str, command[:6]))} ... failed with exit code "
                      f"{done.returncode}")  # fmt: skip
    return done.stdout


def make_environment(folder: Path, python: str, packages: Sequence[str]) -> Path:
    """Return the Python of a virtual environment with the packages, made unless it exists."""
    found = folder / "bin" / "python"
    if not found.exists():
        run([python, "-m", "venv", folder])
    run([found, "-m", "pip", "install", "--quiet", *packages])
    return found


def build_sdist(out: Path) -> Path:
    """Build the source distribution from the tracked files alone."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in [*SOURCES, *under("csrc", "mmssl")]:
            (Path(scratch) / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, Path(scratch) / name)
        run([sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", out],
            Path(scratch), MMSSL_CUDA="0")  # fmt: skip
    (sdist,) = out.glob("mmssl-*.tar.gz")
    return sdist


def build_wheel(python: str | Path, sdist: Path, out: Path, cuda: str = "") -> Path:
    """Build a wheel from the source distribution alone, with what the interpreter has installed."""
    out.mkdir(parents=True)
    environment = {"MMSSL_CUDA": "1" if cuda else "0"}
    if cuda:
        settings = out / "version.cfg"
        settings.write_text(f"[egg_info]\ntag_build = +{cuda}\n", encoding="utf-8")
        environment["DIST_EXTRA_CONFIG"] = str(settings)
    run([python, "-m", "pip", "wheel", "--no-index", "--no-deps", "--no-build-isolation",
         "--wheel-dir", out, sdist], ROOT, **environment)  # fmt: skip
    (wheel,) = out.glob("*.whl")
    return wheel


def add_ops(wheel: Path, complete: Path) -> None:
    """Put ``_C`` of a complete wheel, which serves every Python, into the wheel of another one."""
    merged = wheel.with_suffix(".merged")
    with (
        zipfile.ZipFile(wheel) as own,
        zipfile.ZipFile(complete) as other,
        zipfile.ZipFile(merged, "w", zipfile.ZIP_DEFLATED) as out,
    ):
        taken = [n for n in other.namelist() if n.startswith(("mmssl/_C", "mmssl/_build_info"))]
        for source, names in ((own, set(own.namelist()) - set(taken)), (other, taken)):
            for name in sorted(names):
                out.writestr(source.getinfo(name), source.read(name))
    merged.replace(wheel)


def repair(wheel: Path, out: Path) -> Path:
    """Check every module, then let auditwheel check the whole and name the platform."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with zipfile.ZipFile(wheel) as archive:
            modules = [name for name in archive.namelist() if name.endswith(".so")]
            archive.extractall(folder, modules)
        names = {Path(name).name.split(".")[0] for name in modules}
        if not {"_C", "_host"} <= names:
            raise Failure(f"{wheel.name}: expected _C and _host, got {sorted(names)}")
        wrong = [f"{name}: {line}" for name in modules for line in violations(folder / name)]
        if wrong:
            raise Failure(f"{wheel.name}: {wrong[0]}")
        excluded = [part for name in OF_TORCH for part in ("--exclude", name)]
        run(["auditwheel", "repair", "--plat", f"{PLATFORM}_x86_64", "--only-plat",
             *excluded, "--wheel-dir", folder / "out", wheel],
            PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")  # fmt: skip
        (repaired,) = (folder / "out").glob("*.whl")
        return Path(shutil.copy2(repaired, out))


def cuda_version() -> str:
    """Return the CUDA version of the installed torch as a local version, such as ``cu130``."""
    import torch

    if torch.version.cuda is None:
        raise Failure(f"expected a CUDA build of torch, got {torch.__version__}")
    return "cu" + torch.version.cuda.replace(".", "")


def build(options: argparse.Namespace) -> None:
    """Build everything into ``dist/``, with CUDA into a directory of its own there."""
    cuda = cuda_version() if options.cuda else ""
    dist = DIST / cuda
    dist.mkdir(parents=True, exist_ok=True)
    for old in dist.glob("mmssl-*"):
        old.unlink()
    sdist = build_sdist(dist)
    wheels = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        complete = build_wheel(sys.executable, sdist, folder / "complete", cuda)
        wheels.append(repair(complete, dist))
        for number, name in enumerate(options.pythons):
            other = folder / f"other-{number}"
            python = make_environment(other / "environment", name, BUILD_TOOLS)
            wheel = build_wheel(python, sdist, other / "wheel", cuda)
            if wheel.name == complete.name:
                continue  # the interpreter that runs this, by another name
            add_ops(wheel, complete)
            wheels.append(repair(wheel, dist))
    for path in [sdist, *wheels]:
        print(f"{path.relative_to(ROOT)}  {path.stat().st_size / 1e6:.2f} MB")


def seconds_to_import(python: Path, cwd: Path) -> dict[str, float]:
    """Return the median seconds of new processes that import torch, and mmssl with its ops."""
    spent: dict[str, list[float]] = {"import torch": [], "from mmssl import ops": []}
    for _ in range(IMPORT_ROUNDS):
        for code, times in spent.items():
            start = time.perf_counter()
            run([python, "-c", code], cwd, PYTHONPATH="")
            times.append(time.perf_counter() - start)
    return {code: statistics.median(times) for code, times in spent.items()}


def installed_package(python: Path, cwd: Path) -> Path:
    """Return the directory of the installed package, which has to be of the checkout's version."""
    code = "import mmssl; print(mmssl.__file__)"
    package = Path(run([python, "-c", code], cwd, PYTHONPATH="").splitlines()[-1]).parent
    if package.is_relative_to(ROOT):
        raise Failure(f"{python}: imports the checkout, {package}")
    if name := outdated(package):
        raise Failure(f"{DIST.name}/: the wheel has another {name} than the checkout, whose tests "
                      "would run; build it again")  # fmt: skip
    return package


def outdated(package: Path) -> str:
    """Return a Python file in which a package differs from the checkout; else an empty string."""
    for name in under("mmssl", suffix=".py"):
        own = package.parent / name
        if not own.is_file() or own.read_bytes() != (ROOT / name).read_bytes():
            return name
    return ""


def installed_bytes(package: Path) -> int:
    """Return the size of an installed package without caches."""
    files = [p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    return sum(path.stat().st_size for path in files)


def test_one(torch: str, scratch: Path, options: argparse.Namespace) -> None:
    """Install the wheel next to one version of torch and run the op tests from elsewhere."""
    folder = scratch / f"torch-{torch}"
    python = make_environment(folder, options.python, [f"torch=={torch}", "numpy>=1.26"])
    # First from the built wheels alone, then what it requires from the index.
    install: list[str | Path] = [python, "-m", "pip", "install", "--quiet"]
    run([*install, "--force-reinstall", "--no-index", "--no-deps", "--find-links", DIST, "mmssl"])
    run([*install, "mmssl[text]", *TESTING])
    away = scratch / "away"
    shutil.rmtree(away, ignore_errors=True)
    away.mkdir()
    for name in TESTED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, away / name)
    size = installed_bytes(installed_package(python, away))
    print(f"torch {torch}: installed, {size / 1e6:.1f} MB", flush=True)
    pytest: list[str | Path] = [python, "-m", "pytest", "tests/ops", "-q", "-p", "no:cacheprovider"]
    pytest += ["-n", options.workers, "--dist", "loadfile"]
    pytest += [] if options.slow else ["-m", "not slow"]
    for level in ("", *options.levels):
        cap = {"ATEN_CPU_CAPABILITY": level} if level else {}
        last = run(pytest, away, PYTHONPATH="", **cap).strip().splitlines()[-1]
        print(f"torch {torch}: tests/ops{f', {level}' if level else ''}: {last}", flush=True)
    times = seconds_to_import(python, away)
    base, own = times.values()
    print(f"torch {torch}: import torch {base:.2f} s, mmssl.ops {own:.2f} s, {own / base:.2f}x")


def test(options: argparse.Namespace) -> None:
    """Test the wheel of ``dist/`` with each version of torch."""
    with tempfile.TemporaryDirectory() as own:
        for torch in options.torch:
            test_one(torch, Path(options.scratch or own).resolve(), options)


def main() -> int:
    """Build or test."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.wheels", description=(__doc__ or "").splitlines()[0]
    )
    commands = parser.add_subparsers(required=True)
    builder = commands.add_parser("build", help="the source distribution and the wheels into dist/")
    builder.add_argument("--pythons", nargs="*", default=[], metavar="PYTHON",
                         help="more interpreters, each of which gets a wheel")  # fmt: skip
    builder.add_argument("--cuda", action="store_true", help="with the CUDA kernels")
    builder.set_defaults(job=build)
    tester = commands.add_parser("test", help="the op tests from the installed wheel")
    tester.add_argument("torch", nargs="+", help="versions of torch, such as 2.11.0")
    add = tester.add_argument
    add("--python", default=sys.executable, help="interpreter of the environments")
    add("--scratch", type=Path, metavar="DIR", help="keep the environments, gigabytes, here")
    add("--levels", nargs="*", choices=LEVELS, default=[], help="more SIMD levels than the best")
    add("--slow", action="store_true", help="also the tests marked slow")
    add("--workers", default="2", help="processes that run tests")
    tester.set_defaults(job=test)
    options = parser.parse_args()
    try:
        options.job(options)
    except Failure as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
