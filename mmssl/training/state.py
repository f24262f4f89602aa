"""Conversion of optimizers to named tensors and back, for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def prefixed(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the names ``name.key``."""
    return {f"{name}.{key}": tensor for key, tensor in tensors.items()}


def section(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the tensors named ``name.key`` under the names ``key``; drop all others."""
    prefix = f"{name}."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def optimizer_state(name: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state as ``name.PARAMETER.key``; hyper-parameters come from the configuration."""
    return {
        f"{name}.{index}.{key}": value
        for index, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
    }


def restore_optimizer(
    name: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Restore what :func:`optimizer_state` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in section(tensors, name).items():
        index, field_name = key.split(".")
        state.setdefault(int(index), {})[field_name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def adam_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """Return the state of a parameter, which Adam otherwise makes in its first step.

    Returns:
        "step", a scalar, and the moments "exp_avg" and "exp_avg_sq" like the parameter.
    """
    state: dict[str, Tensor] = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter, requires_grad=False)
        state["exp_avg_sq"] = torch.zeros_like(parameter, requires_grad=False)
    return state


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of all parameters, in place where it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(value)
        else:
            group["lr"] = value
