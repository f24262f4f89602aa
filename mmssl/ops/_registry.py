"""The declaration of an op, in the spirit of torch's OpInfo, and the table of all declared ops.

Every file of :mod:`mmssl.ops` that defines an op ends with one :func:`declare`. What is declared
feeds the choice of a backend, :func:`mmssl.ops.status`, ``mmssl doctor``, the check for stale
builds, the tables of the documentation and the contract suite ``tests/ops/test_all_ops.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from mmssl import _extension
from mmssl.ops._autograd import Operator, register
from mmssl.ops._cases import Bad, Sample

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float64)
CPU_DTYPES = (*KERNEL_DTYPES, torch.float16)  # float16 by the kernels of float32


@dataclass(frozen=True)
class Contract:
    """What ``tests/ops/test_all_ops.py`` checks an op on."""

    samples: Callable[[torch.dtype], Iterable[Sample]]
    """Valid arguments in a dtype: typical, empty, one row, odd sizes, strided, every option."""
    bad: Callable[[], Iterable[Bad]] = tuple
    """Wrong arguments, each of which replaces one of the first sample."""
    differentiable: tuple[str, ...] = ()
    """Arguments that get a gradient; ``view.value`` stands for the edge values of a graph view."""
    derivatives: int = 1
    """How often the result can be differentiated."""
    updated: tuple[str, ...] = ()
    """Tensors that are updated in place."""


@dataclass(frozen=True)
class Words:
    """What the tables of the documentation say about an op."""

    equals: str
    """What it computes."""
    avoids: str
    """What it never holds in memory."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Device type -> remark for the table of the README."""
    page: str = ""
    """Page in docs/ops/; the name of the op if empty."""


@dataclass(frozen=True)
class Op:
    """Everything that the rest of the package and its tests know about one op."""

    function: Callable[..., Any]
    contract: Contract
    words: Words | None
    """None for an internal op, which the documentation leaves out."""
    dtypes: Mapping[str, tuple[torch.dtype, ...]] = field(default_factory=dict)
    """Device type -> dtypes that have a kernel; an empty tuple for a kernel without a dtype."""
    operators: tuple[Operator, ...] = ()
    """The compiled operators that only this op owns, those of its backward passes included."""
    gpu_operators: tuple[Operator, ...] = ()
    """Operators that only a GPU has; the CPU composes the same numbers from others."""
    folder: str = ""
    """Folder of the kernels in csrc/ops/; the name of the op if empty, "-" without kernels."""

    @property
    def name(self) -> str:
        """The name of the function."""
        return self.function.__name__

    @property
    def public(self) -> bool:
        """Whether users call it."""
        return self.words is not None


OPS: dict[str, Op] = {}
"""Name -> declaration, in the order of declaration."""

QUERIES = ("cpu_capability",)
"""Operators that compute nothing: they describe the build."""


def declare(op: Op) -> None:
    """Add an op to :data:`OPS`."""
    assert op.name not in OPS, op.name
    OPS[op.name] = op


def operators() -> dict[str, tuple[Operator, Op]]:
    """Name of every declared operator -> its declaration and the op that owns it."""
    return {o.name: (o, op) for op in OPS.values() for o in (*op.operators, *op.gpu_operators)}


def activate() -> None:
    """Register all declared operators with torch, unless the compiled module is missing or stale.

    ``mmssl.ops`` calls this once, after importing every op.
    """
    declared = operators()
    _extension.require_operators([*declared, *QUERIES])
    if _extension.ops is None:
        return
    for operator, _ in declared.values():
        register(operator)
