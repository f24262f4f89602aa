"""Gradients of compiled operators, written once for eager code, export, compile and torch.func.

An :class:`Operator` states what a ``torch.ops.mmssl`` operator returns, what its forward pass saves
and how its gradient is formed. :func:`register` hands that to ``torch.library``, which ``export``
and ``torch.compile`` need; :func:`eager` builds two classes of ``torch.autograd.Function`` from the
same functions: one at half the Python overhead per call, which matters for small problems, and one
for the transforms of ``torch.func``, which want every tensor among the inputs and outputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmssl.errors import InputError

# What csrc/common/check_index.h throws: std::invalid_argument, which Python sees as a ValueError
# and, with torch 2.15, as a RuntimeError.
_REFUSED = re.compile(r"\w+: expected (?:ids|numbers) in \[")


@dataclass(frozen=True)
class Operator:
    """One ``torch.ops.mmssl`` operator.

    ``backward`` gets one gradient per visible output, may read ``ctx.needed`` (one bool per entry
    of ``differentiable``, or a list of bools for a list input) and returns one gradient per entry.
    It calls operators through :func:`eager` if their own gradients are supported.
    """

    name: str
    fake: Callable[..., Any]
    """Returns empty outputs of the right shape and dtype."""
    save: Callable[..., None] | None = None
    """``save(ctx, inputs, output)``: stores what ``backward`` needs."""
    backward: Callable[..., Sequence[Any]] | None = None
    differentiable: tuple[int, ...] = ()
    """Positions of the inputs that get a gradient."""
    hidden: int = 0
    """Number of trailing outputs that only ``backward`` reads."""
    list_input: bool = False
    """Whether the differentiable input is a list of tensors, and the output as well."""
    refused: str = ""
    """Which derivative is not supported, for an operator that itself computes a derivative."""
    vmap: Callable[..., tuple[Any, Any]] | None = None
    """``vmap(call, info, in_dims, *inputs)`` returns outputs and their batch dimensions, by calls
    of ``call``; None calls the operator for one example after the other."""


def register(operator: Operator) -> None:
    """Register fake and gradient of an operator, whose schema must be loaded."""
    name = f"mmssl::{operator.name}"
    torch.library.register_fake(name)(operator.fake)
    if operator.refused:
        torch.library.register_autograd(name, _refusal(operator, operator.refused))
    elif operator.backward is not None:
        setup, backward = _library_rule(operator)
        torch.library.register_autograd(name, backward, setup_context=setup)


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    if isinstance(output, tuple):
        ctx.mark_non_differentiable(*(t for t in output if not t.is_floating_point()))


def _refusal(operator: Operator, what: str) -> Callable[..., Any]:
    op = operator.name.removesuffix("_backward").removesuffix("_double")

    def refuse(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f'mmssl.ops.{op}: {what} is not supported; use mmssl.ops.backend("reference")'
        )

    return refuse


def under_torch_func() -> bool:
    """Whether a transform of ``torch.func``, such as grad or vmap, is active."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def one_by_one(
    call: Callable[..., Any], info: Any, in_dims: Sequence[Any], *inputs: Any
) -> tuple[Any, Any]:
    """The rule of vmap for any operator: a call for every example.

    Args:
        call: the operator.
        info: has the ``batch_size``.
        in_dims: the batch dimension of each input, None, or a list of them for a list.
        inputs: the inputs, with their batch dimensions.

    Returns:
        The outputs and the batch dimension of each.
    """

    def example(x: Any, dim: Any, n: int) -> Any:
        if isinstance(x, list):
            return [example(part, at, n) for part, at in zip(x, dim, strict=True)]
        return x if dim is None else x.select(dim, n)

    pairs = list(zip(inputs, in_dims, strict=True))
    results = [call(*(example(x, dim, n) for x, dim in pairs)) for n in range(info.batch_size)]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def _rule(operator: Operator) -> tuple[Callable[..., None], Callable[..., Any]]:
    if not operator.differentiable:
        return _save_nothing, _refusal(operator, operator.refused or "a derivative")
    assert operator.save is not None and operator.backward is not None, operator.name
    return operator.save, operator.backward


def _library_rule(operator: Operator) -> tuple[Callable[..., None], Callable[..., Any]]:
    """The two functions of ``register_autograd``, which wants one gradient per input."""
    save, backward = _rule(operator)
    places = operator.differentiable

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.needed = [ctx.needs_input_grad[n] for n in places]
        # A list input wants a list of gradients back, unless one of its entries is None.
        ctx.template = [
            [None] * len(x)
            if isinstance(x, list) and all(isinstance(t, Tensor) for t in x)
            else None
            for x in inputs
        ]
        if operator.hidden:
            ctx.mark_non_differentiable(*output[-operator.hidden :])
        save(ctx, inputs, output)

    def gradients(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        if operator.list_input:  # only here does needs_input_grad have the structure of the inputs
            ctx.needed = [ctx.needs_input_grad[n] for n in places]
        out = list(ctx.template)
        visible = grads[: len(grads) - operator.hidden]
        for n, grad in zip(places, backward(ctx, *visible), strict=True):
            out[n] = grad
        return tuple(out)

    return setup, gradients


def _below_autograd() -> AbstractContextManager[Any]:
    """Skip the autograd key inside an autograd function, where nothing is recorded anyway.

    Below that key a call does without the Python that ``torch.library`` adds: 4 us instead of 7.
    A backward pass that is differentiated itself is recorded.
    """
    if torch.is_grad_enabled():
        return nullcontext()
    guard: AbstractContextManager[Any] = torch._C._AutoDispatchBelowAutograd()
    return guard


def eager(operator: Operator, compute: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Return a function that calls an operator and is differentiable.

    Only the differentiable inputs pass through autograd, which inspects every tensor that it gets.
    Without gradients, and while a graph is traced, the operator is called directly. An operator
    without a derivative needs this function for the transforms of ``torch.func``, and for its
    errors; one that takes lists does not support them.

    An argument that the operator's kernel refuses is an :class:`InputError`; in the code that
    ``torch.compile`` generates, which calls the operator itself, it is a ValueError of that text,
    with torch 2.15 a RuntimeError.

    Args:
        operator: the operator.
        compute: what to compute in place of the bare operator, in terms of the inputs that
            ``operator.save`` expects: work around the operator becomes part of its graph node.

    Returns:
        A function of the inputs. It returns the outputs of ``compute``, with or without the hidden
        ones: read the visible ones by position.
    """
    name = operator.name
    save, backward = _rule(operator)
    places, hidden, list_input = operator.differentiable, operator.hidden, operator.list_input

    if compute is None:

        def run(*inputs: Any) -> Any:
            return getattr(torch.ops.mmssl, name)(*inputs)
    else:
        run = compute

    class Node(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, inputs: tuple[Any, ...], *tensors: Tensor | None) -> Any:
            with _below_autograd():
                output = run(*inputs)
            needed = ctx.needs_input_grad[1:]
            ctx.needed = [needed] if list_input else needed
            save(ctx, inputs, output)
            if list_input:
                return tuple(output)
            return output[: len(output) - hidden] if hidden else output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
            with _below_autograd():
                if list_input:
                    return None, *backward(ctx, grads)[0]
                return None, *backward(ctx, *grads)

    class Transformed(torch.autograd.Function):
        @staticmethod
        def forward(*inputs: Any) -> Any:
            return run(*inputs)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.needed, ctx.count = [ctx.needs_input_grad[n] for n in places], len(inputs)
            if hidden:
                ctx.mark_non_differentiable(*output[-hidden:])
            save(ctx, inputs, output)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
            found = backward(ctx, *grads[: len(grads) - hidden])
            at = dict(zip(places, found, strict=True))
            return tuple(at.get(n) for n in range(ctx.count))

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            return _refusal(operator, "forward-mode differentiation")(ctx)

        @staticmethod
        def vmap(info: Any, in_dims: Sequence[Any], *inputs: Any) -> tuple[Any, Any]:
            return (operator.vmap or one_by_one)(transformed, info, in_dims, *inputs)

    def transformed(*inputs: Any) -> Any:
        if torch.compiler.is_compiling():  # breaks the graph; with fullgraph=True it is the answer
            raise RuntimeError(
                f"mmssl::{name}: torch.func inside a graph of torch.compile is not supported; use "
                'mmssl.ops.backend("reference")'
            )
        return Transformed.apply(*inputs)

    def call(*inputs: Any) -> Any:
        try:
            if torch._C._are_functorch_transforms_active():
                return transformed(*inputs)
            if not places or torch.compiler.is_compiling() or not torch.is_grad_enabled():
                return run(*inputs)
            if list_input:
                return Node.apply(inputs, *inputs[places[0]])
            return Node.apply(inputs, *[inputs[n] for n in places])
        except (ValueError, RuntimeError) as error:
            if not isinstance(error, InputError) and _REFUSED.match(str(error)):
                raise InputError(str(error)) from None
            raise

    return call
