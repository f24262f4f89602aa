"""Load the compiled modules once and record why one is missing.

``ops`` is ``mmssl._C``, ``cuda`` is ``mmssl._C_cuda`` and ``host`` is ``mmssl._host``. Each is None
when it cannot be used; ``missing`` then holds the reason.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import torch

missing: dict[str, str] = {}
"""Module name -> why it is not loaded, in one line."""

_BUILD_INFO = Path(__file__).resolve().parent / "_build_info.json"
_CSRC = Path(__file__).resolve().parents[1] / "csrc"


def _build_reason(name: str) -> str:
    """Return what setup.py recorded about a module that it did not build."""
    try:
        reason = json.loads(_BUILD_INFO.read_text(encoding="utf-8"))[name]["reason"]
    except (OSError, ValueError, KeyError, TypeError):
        reason = ""
    return f"mmssl.{name} was not built" + (f": {reason}" if reason else "")


def _load(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(f"mmssl.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"mmssl.{name}":
            raise
        missing[name] = _build_reason(name)
    except ImportError as error:
        first_line = str(error).strip().splitlines()[0]
        missing[name] = f"mmssl.{name} does not load with torch {torch.__version__}: {first_line}"
    return None


def _load_cuda() -> ModuleType | None:
    if ops is None:
        missing["_C_cuda"] = missing["_C"]  # _C defines the schemas of all operators
    elif torch.version.cuda is None:
        missing["_C_cuda"] = f"torch {torch.__version__} is a build without CUDA"
    else:
        return _load("_C_cuda")
    return None


def on_gpu(x: torch.Tensor) -> bool:
    """Whether what computes with a tensor are the kernels of a GPU; the emulator replaces this."""
    return x.is_cuda and cuda is not None


def source_schemas() -> dict[str, str]:
    """Return the schema of each operator in the C++ files of this checkout, by name.

    An installed package has none of these files, and needs none: its modules and its Python files
    come from one build. In a checkout either can be newer than the other.
    """
    files = [_CSRC / "library.cpp", *_CSRC.glob("ops/*/cpu.cpp")]
    text = "".join(path.read_text(encoding="utf-8") for path in files if path.is_file())
    calls = re.findall(r'\bm\.def\(\s*((?:"[^"]*"\s*)+)\)', text)
    schemas = ["".join(re.findall('"([^"]*)"', literals)) for literals in calls]
    return {schema.split("(")[0]: schema for schema in schemas}


def _why_stale(names: Iterable[str]) -> str:
    """Return in which operator the loaded ``mmssl._C`` differs from this version; empty if none."""
    expected = source_schemas()
    for name in names:
        operator = getattr(torch.ops.mmssl, name, None)
        if operator is None:
            return f"without {name}"
        if name in expected and str(operator.default._schema) != f"mmssl::{expected[name]}":
            return f"whose {name} takes or returns something else"
    return ""


def require_operators(names: Iterable[str]) -> None:
    """Discard ``mmssl._C`` if it is an older build: an operator is missing or has another schema.

    Args:
        names: every operator that the Python files of this version call, without ``mmssl::``.
    """
    global ops, cuda
    if ops is None:
        return
    if stale := _why_stale(names):
        missing["_C"] = f"mmssl._C is an older build {stale}; build it again"
        missing["_C_cuda"] = missing["_C"]
        ops = cuda = None


host = _load("_host")
ops = _load("_C")
cuda = _load_cuda()
