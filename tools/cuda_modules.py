"""Unpack the modules of a wheel with CUDA kernels into the checkout, and show what they hold.

``python -m tools.cuda_modules``, in an environment with a CUDA build of torch, takes the wheels of
its CUDA version in ``dist/`` apart, loads the modules where ``benchmarks/gpu.sh`` looks for them,
and lists the operators that have a CUDA kernel and the architectures that these are compiled for.
It exits with 1 if an operator of an op with CUDA kernels has none, or an architecture has no
machine code. The last lines name the files, ignored by git, that a machine with a GPU needs along
with the tracked ones.

No GPU is needed. cuobjdump comes from CUDA_HOME, from PATH or from ``nvidia-cuda-cuobjdump``.
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

from tools.cuda_budget import Missing, find
from tools.tree import ROOT, tracked
from tools.wheels import DIST, Failure, cuda_version

# What setup.py compiles for; the last one is that of the files named *_sm90a.cu.
ARCHITECTURES = ("sm_80", "sm_90", "sm_90a")


def unpack(wheels: list[Path], root: Path) -> list[Path]:
    """Write the compiled modules of wheels, and the record of the build, to where they belong.

    Args:
        wheels: Wheels for several Pythons; their modules have different names or the same content.
        root: The checkout.
    """
    names: dict[str, None] = {}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(".so") or name == "mmssl/_build_info.json":
                    (root / name).unlink(missing_ok=True)  # a process may have loaded it
                    archive.extract(name, root)
                    names[name] = None
    return [root / name for name in names]


def architectures(listing: str) -> Counter[str]:
    """Count the machine code of each architecture in what ``cuobjdump --list-elf`` printed."""
    return Counter(re.findall(r"\.(sm_\d+\w?)\.cubin", listing))


def kernels_of_cuda() -> dict[str, bool]:
    """Name of every operator that should have a CUDA kernel -> whether it is registered."""
    import torch

    from mmssl.ops._registry import OPS

    names = [
        operator.name
        for op in OPS.values()
        for operator in (*(op.operators if "cuda" in op.dtypes else ()), *op.gpu_operators)
    ]
    registered = torch._C._dispatch_has_kernel_for_dispatch_key
    return {name: registered(f"mmssl::{name}", "CUDA") for name in names}


def main() -> int:
    """Unpack, load and list."""
    try:
        folder = DIST / cuda_version()
    except Failure as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    wheels = sorted(folder.glob("mmssl-*.whl"))
    files = unpack(wheels, ROOT)
    from mmssl import _extension  # loads what has just been unpacked

    if _extension.cuda is None:
        reason = _extension.missing.get("_C_cuda") or _extension.missing.get("_C")
        print(f"error: {len(wheels)} wheels in {folder}: {reason}", file=sys.stderr)
        return 1
    import torch

    import mmssl.ops  # noqa: F401  (declares the ops)

    module = Path(str(_extension.cuda.__file__))
    print(f"loaded: {module.relative_to(ROOT)} next to torch {torch.__version__}, "
          f"CUDA {torch.version.cuda}")  # fmt: skip
    try:
        tool = find("cuobjdump")
    except Missing as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    listing = subprocess.run([tool, "--list-elf", str(module)], capture_output=True, text=True)
    found, kernels = architectures(listing.stdout), kernels_of_cuda()
    print("machine code:", ", ".join(f"{name} in {count} files"
                                     for name, count in sorted(found.items())))  # fmt: skip
    print(f"{sum(kernels.values())} operators with CUDA kernels:", ", ".join(kernels))
    wrong = [f"no CUDA kernel of {name}" for name, there in kernels.items() if not there]
    wrong += [f"no machine code for {name}" for name in ARCHITECTURES if not found[name]]
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    sizes = [sum((ROOT / name).stat().st_size for name in names) / 2**20
             for names in (tracked(), files)]  # fmt: skip
    print(f"for a machine with a GPU, {sizes[0]:.1f} MiB of tracked files and {sizes[1]:.1f} MiB:")
    for file in files:
        print(f"  {file.relative_to(ROOT)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
