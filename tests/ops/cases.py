"""Run the declared ops on their samples: what the contract suite and the thread tests share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmssl import ops
from mmssl.graph import GraphView, InteractionGraph
from mmssl.ops._cases import Sample
from mmssl.ops._registry import CPU_DTYPES, OPS, Op
from tests.ops.graphs import on
from tests.ops.kernels import KERNELS

NATIVE = [op for op in OPS.values() if op.operators]
"""The ops with kernels of their own."""


def each(chosen: Sequence[Op]) -> Any:
    """Parametrize a test by op."""
    return pytest.mark.parametrize("op", chosen, ids=[op.name for op in chosen])


def kernel_dtypes(op: Op, device: str = "cpu") -> list[torch.dtype]:
    """Return the dtypes of an op's kernel; float32 for an op without floating point input."""
    dtypes = op.dtypes.get(device, CPU_DTYPES)
    return [d for d in dtypes if d.is_floating_point] or [torch.float32]


def each_dtype(chosen: Sequence[Op]) -> Any:
    """Parametrize a test by op and by the dtypes of its CPU kernel."""
    cases = [
        pytest.param(op, dtype, id=f"{op.name}-{str(dtype).removeprefix('torch.')}")
        for op in chosen
        for dtype in kernel_dtypes(op)
    ]
    return pytest.mark.parametrize(("op", "dtype"), cases)


def each_kernel(chosen: Sequence[Op]) -> Any:
    """Parametrize a test by op, dtype and every device that has a kernel for them."""
    cases = [
        pytest.param(
            op,
            dtype,
            device.values[0],
            marks=device.marks,
            id=f"{op.name}-{name}-{device.values[0]}",
        )
        for op in chosen
        for device in KERNELS
        if device.values[0] in op.dtypes
        for dtype in kernel_dtypes(op, device.values[0])
        for name in [str(dtype).removeprefix("torch.")]
    ]
    return pytest.mark.parametrize(("op", "dtype", "device"), cases)


def moved(arguments: dict[str, Any], device: str) -> dict[str, Any]:
    """Return the same arguments on another device."""

    def move(value: Any) -> Any:
        if isinstance(value, list):
            return [move(part) for part in value]
        if isinstance(value, GraphView):
            return on(value, device)
        return value.to(device) if isinstance(value, (Tensor, InteractionGraph)) else value

    return arguments if device == "cpu" else {k: move(v) for k, v in arguments.items()}


def labels(op: Op) -> list[str]:
    """Return the labels of the samples."""
    return [s.label for s in op.contract.samples(torch.float32)]


def sample(op: Op, dtype: torch.dtype, label: str) -> dict[str, Any]:
    """Return the arguments of the sample with a label."""
    return next(s.arguments for s in op.contract.samples(dtype) if s.label == label)


def tensors(op: Op, arguments: dict[str, Any]) -> list[Tensor]:
    """Return the tensors that get a gradient."""
    found: list[Tensor] = []
    for name in op.contract.differentiable:
        value = arguments.get(name.split(".")[0])
        value = value.value if name == "view.value" else value
        found += value if isinstance(value, list) else [value] if isinstance(value, Tensor) else []
    return found


def with_tensors(op: Op, arguments: dict[str, Any], new: Sequence[Tensor]) -> dict[str, Any]:
    """Return the same arguments with other tensors, in the order of :func:`tensors`.

    Those that the op updates in place are copied.
    """
    out, left = with_own_tensors(op.function, arguments), list(new)
    for name in op.contract.differentiable:
        value = arguments.get(name.split(".")[0])
        if name == "view.value":
            if value.value is not None:
                out["view"] = dataclasses.replace(value, value=left.pop(0))
        elif isinstance(value, list):
            out[name] = [left.pop(0) for _ in value]
        elif isinstance(value, Tensor):
            out[name] = left.pop(0)
    assert not left
    return out


def flat(result: Any) -> list[Tensor]:
    """Flatten a result into tensors; numbers become tensors."""
    if isinstance(result, (list, tuple)):
        return [t for part in result for t in flat(part)]
    return [] if result is None else [torch.as_tensor(result)]


def call(function: Callable[..., Any], arguments: dict[str, Any]) -> list[Tensor]:
    """Return the results of a function and the arguments it updates in place, from one seed."""
    torch.manual_seed(0)
    own = with_own_tensors(function, arguments)
    updated = [own.get(name) for name in OPS[function.__name__].contract.updated]
    return flat(function(**own)) + flat(updated)


def with_own_tensors(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the same arguments with copies of those that an op updates in place."""
    updated = OPS[function.__name__].contract.updated
    return {k: v.clone() if k in updated and v is not None else v for k, v in arguments.items()}


def everything(op: Op, arguments: dict[str, Any], backend: str) -> list[Tensor]:
    """Return results and first gradients, under uneven upstream gradients."""
    leaves = [t.detach().requires_grad_() for t in tensors(op, arguments)]
    with ops.backend(backend):
        results = call(op.function, with_tensors(op, arguments, leaves))
        return [t.detach().cpu() for t in [*results, *first_gradients(results, leaves)]]


def first_gradients(
    results: Sequence[Tensor], leaves: Sequence[Tensor], **options: Any
) -> list[Tensor]:
    total = weighted_sum(results)
    if not leaves or total is None:
        return []
    grads = torch.autograd.grad(total, leaves, allow_unused=True, **options)
    pairs = zip(grads, leaves, strict=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in pairs]


def weighted_sum(results: Sequence[Tensor]) -> Tensor | None:
    """Sum the results that have a gradient, with uneven weights."""
    total = None
    for result in results:
        if result.requires_grad:
            weight = (
                0.5 + torch.arange(result.numel(), device=result.device) % 9 / 8
            )  # exact at every SIMD level
            part = (result * weight.view_as(result).to(result.dtype)).sum().double()
            total = part if total is None else total + part
    return total


class Recorder(TorchDispatchMode):
    """Record the calls of mmssl operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "mmssl":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def operator_calls(op: Op, arguments: dict[str, Any]) -> list[tuple[Any, tuple[Any, ...]]]:
    """Return the operator calls of an op, forward, backward and in a second derivative."""
    leaves = [t.detach().requires_grad_() for t in tensors(op, arguments)]
    with ops.backend("native"), Recorder() as recorder:
        results = call(op.function, with_tensors(op, arguments, leaves))
        grads = first_gradients(results, leaves, create_graph=op.contract.derivatives > 1)
        if op.contract.derivatives > 1:
            first_gradients([g.sin() for g in grads if g.requires_grad], leaves)
    return recorder.calls


def small(samples: Sequence[Sample], op: Op, most: int = 60) -> list[Sample]:
    """Select the samples that are small enough for numerical differentiation."""
    fit = [s for s in samples if s.tiny]
    return [s for s in fit if 0 < sum(t.numel() for t in tensors(op, s.arguments)) <= most]
