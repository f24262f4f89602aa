"""The declaration of an op, in the spirit of torch's OpInfo, and the table of all declared ops.

Every file of :mod:`mmssl.ops` that defines an op ends with one :func:`declare`. What is declared
feeds the choice of a backend, :func:`mmssl.ops.status`, ``mmssl doctor``, the check for stale
builds, the tables of the documentation and the contract suite ``tests/ops/test_all_ops.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from mmssl import _extension
from mmssl.graph import InteractionGraph, Normalization
from mmssl.ops._autograd import Operator, register

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float64)


class Sample(NamedTuple):
    """Valid arguments of a public op."""

    label: str
    arguments: dict[str, Any]
    tiny: bool = True
    """Small enough for numerical differentiation."""
    devices: tuple[str, ...] = ("cpu", "cuda")
    """Device types with a kernel for these arguments, among those of the op."""


class Bad(NamedTuple):
    """One wrong argument and the start of the message that it must cause (a regular expression)."""

    argument: str
    value: Any
    message: str


def sample_graph(
    users: int,
    items: int,
    edges: int,
    normalization: Normalization = "row_sqrt",
    valued: bool = False,
) -> InteractionGraph:
    """Build a graph of random edges for a sample.

    Args:
        users: U.
        items: I.
        edges: number of drawn edges; repeated ones are merged.
        normalization: as in :class:`mmssl.graph.InteractionGraph`.
        valued: whether the edges have values.
    """
    generator = torch.Generator().manual_seed(users + edges)
    user, item = (torch.randint(max(n, 1), (edges,), generator=generator) for n in (users, items))
    value = torch.rand(edges, generator=generator) + 0.5 if valued else None
    return InteractionGraph.from_edges(
        user, item, users, items, normalization=normalization, value=value
    )


@dataclass(frozen=True)
class Op:
    """Everything that the rest of the package and its tests know about one op."""

    name: str
    function: Callable[..., Any]
    """The public function, or the internal one where ``public`` is False."""
    reference: Callable[..., Any]
    """The same in plain PyTorch, with the same arguments."""
    samples: Callable[[torch.dtype], Iterable[Sample]]
    """Valid arguments in a dtype: typical, empty, one row, odd sizes, strided, every option."""
    dtypes: Mapping[str, tuple[torch.dtype, ...]] = field(default_factory=dict)
    """Device type -> dtypes that have a kernel; an empty tuple for a kernel without a dtype."""
    operators: tuple[Operator, ...] = ()
    """The compiled operators that only this op owns, those of its backward passes included."""
    differentiable: tuple[str, ...] = ()
    """Arguments that get a gradient; ``view.value`` stands for the edge values of a graph view."""
    derivatives: int = 1
    """How often the result can be differentiated."""
    bad: Callable[[], Iterable[Bad]] = tuple
    """Wrong arguments; the contract suite applies each to the first sample."""
    equals: str = ""
    """What the op computes, for the table of the documentation."""
    avoids: str = ""
    """What the op never holds in memory, for the same table."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Device type -> remark for the table of the README."""
    page: str = ""
    """Page in docs/ops/; the name of the op if empty."""
    folder: str = ""
    """Folder of the kernels in csrc/ops/; the name of the op if empty, "-" without kernels."""
    public: bool = True


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
    return {o.name: (o, op) for op in OPS.values() for o in op.operators}


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
