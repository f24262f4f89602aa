"""MMSSL, the multi-modal self-supervised recommender (WWW 2023), and its ops.

``from mmssl import ops, InteractionGraph, GraphView, GraphBuffer, Recommender, Run, train, load,
keep_freed_memory``. Importing the package has no side effects; each of these names is loaded on
first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmssl import ops
    from mmssl.api import Run, load, train
    from mmssl.graph import InteractionGraph
    from mmssl.graph_buffer import GraphBuffer
    from mmssl.memory import keep_freed_memory
    from mmssl.serving.recommender import Recommender
    from mmssl.view import GraphView

__version__ = "0.1.0"

__all__ = [
    "GraphBuffer",
    "GraphView",
    "InteractionGraph",
    "Recommender",
    "Run",
    "__version__",
    "keep_freed_memory",
    "load",
    "ops",
    "train",
]

_MODULES = {
    "GraphBuffer": "mmssl.graph_buffer",
    "GraphView": "mmssl.view",
    "InteractionGraph": "mmssl.graph",
    "Recommender": "mmssl.serving.recommender",
    "Run": "mmssl.api",
    "keep_freed_memory": "mmssl.memory",
    "load": "mmssl.api",
    "train": "mmssl.api",
}


def __getattr__(name: str) -> Any:
    if name == "ops":
        return importlib.import_module("mmssl.ops")
    if name not in _MODULES:
        raise AttributeError(f"module 'mmssl' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
