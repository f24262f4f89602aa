"""Loads the compiled modules once and remembers why one is missing.

``ops`` is ``mmssl._C``, ``cuda`` is ``mmssl._C_cuda``, ``host`` is ``mmssl._host``; each is None
where it is not there, with the reason in ``missing``.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import torch

missing: dict[str, str] = {}
"""Module name -> why it is not loaded, in one line."""

_OPS = (  # what this version calls
    "spmm",
    "spmm_value_grad",
    "propagate",
    "info_nce",
    "info_nce_backward",
    "norm_act",
    "keep_mask",
    "view_attention",
    "add_normalized",
    "masked_topk",
    "bpr_loss",
    "bpr_loss_backward",
    "sample_bpr",
    "tall_product",
    "gram",
    "transposed",
)

_BUILD_INFO = Path(__file__).resolve().parents[1] / "_build_info.json"


def _build_reason(name: str) -> str:
    """What setup.py wrote down about a module that is not there."""
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


def _load_ops() -> ModuleType | None:
    """``_C``, unless an older build of it than these Python files lies around."""
    module = _load("_C")
    lacking = [op for op in _OPS if module is not None and not hasattr(torch.ops.mmssl, op)]
    if lacking:
        missing["_C"] = f"mmssl._C is an older build without {lacking[0]}; build it again"
        return None
    return module


def _load_cuda() -> ModuleType | None:
    if ops is None:
        missing["_C_cuda"] = missing["_C"]  # the schemas of all ops are in _C
    elif torch.version.cuda is None:
        missing["_C_cuda"] = f"torch {torch.__version__} is a build without CUDA"
    else:
        return _load("_C_cuda")
    return None


host = _load("_host")
ops = _load_ops()
cuda = _load_cuda()
