"""Guards around the training step: numbers that are not finite, sums in a fixed order.

Legend: K loss terms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mmssl.errors import Diverged

# How many steps a GPU may run ahead before its losses are looked at; each look waits for it.
_STEPS_PER_LOOK = 50


class Interrupted(Exception):  # noqa: N818
    """Training stopped on request, its state saved."""


class LossMeter:
    """Sums of every loss term over an epoch, and the watch over each of them.

    The terms are fetched from the device and looked at after each step on the CPU and after
    every 50th on a GPU, which never waits for anything else. They are added in the order of the
    steps, in float64, so the sums don't depend on when that was.

    Args:
        names: of the K terms.
        device: where they are computed.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names = list(names)
        self.steps_per_look = 1 if device.type == "cpu" else _STEPS_PER_LOOK
        self.sums = dict.fromkeys(self.names, 0.0)
        self._pending: list[Tensor] = []
        self._epoch = self._steps = 0

    def start(self, epoch: int, steps: int = 0, sums: Mapping[str, float] | None = None) -> None:
        """Forgets everything but the ``sums`` of an epoch that has run ``steps`` steps."""
        self._epoch = epoch
        self.sums = {name: (sums or {}).get(name, 0.0) for name in self.names}
        self._pending = []
        self._steps = steps

    def add(self, terms: Tensor) -> None:
        """Takes the terms (K,) of the next step.

        Raises:
            Diverged: one of them, or of a step not looked at yet, is not finite.
        """
        self._pending.append(terms)
        if len(self._pending) >= self.steps_per_look:
            self.look()

    def look(self) -> dict[str, float]:
        """The sums up to now, by name.

        Raises:
            Diverged: a term of a step not looked at yet is not finite.
        """
        rows = torch.stack(self._pending).tolist() if self._pending else []
        self._pending = []
        for row in rows:
            self._steps += 1
            terms = dict(zip(self.names, row, strict=True))
            if not all(map(math.isfinite, row)):
                raise Diverged(f"{_blame(terms)} in epoch {self._epoch}, step {self._steps}")
            self.sums = {name: self.sums[name] + value for name, value in terms.items()}
        return self.sums


def _blame(terms: Mapping[str, float]) -> str:
    """The first of the terms that are not finite, in the order in which a step comes by them."""
    bad = [name for name, value in terms.items() if not math.isfinite(value)]
    # The critic's step is before the recommender's, and a gradient after the loss it belongs to.
    first = min(bad, key=lambda name: (not name.startswith("critic_"), name.endswith("grad_norm")))
    others = [name for name in bad if name != first]
    text = f"{'' if first.endswith('grad_norm') else 'loss term '}{first} is {terms[first]}"
    return f"{text} (and with it {', '.join(others)})" if others else text


def check_finite(tensors: Mapping[str, Tensor], when: str) -> None:
    """Looks at every number of a state.

    Args:
        tensors: any shape, device and dtype.
        when: ends the message.

    Raises:
        Diverged: one is NaN or infinite; the message names the tensor.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            for value in map(float, torch.aminmax(tensor)):  # one pass; a NaN comes through
                if not math.isfinite(value):
                    raise Diverged(f"{name} holds {value} {when}")


@contextmanager
def deterministic(device: torch.device, enabled: bool) -> Iterator[None]:
    """Same seed, same bits: torch's scatter-adds race between threads unless told not to.

    Args:
        device: that of the training; on a GPU an op that has no deterministic form only warns.
        enabled: False leaves torch as it is.
    """
    if not enabled:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warn_before = torch.is_deterministic_algorithms_warn_only_enabled()
    options: Any = torch.utils.deterministic  # a module with properties, which types can't say
    fill_before = options.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
    options.fill_uninitialized_memory = False  # costs 8 % of a step
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_before)
        options.fill_uninitialized_memory = fill_before
