"""Guards around the training step: detection of NaN and Inf, sums in a fixed order.

Legend: K loss terms.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mmssl.errors import Diverged

# Number of steps that a GPU may run ahead before its losses are checked; each check waits for it.
_STEPS_PER_LOOK = 50
# The variable that gives cuBLAS a workspace of its own for each stream; torch reads it.
_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


class Interrupted(Exception):  # noqa: N818
    """Training stopped on request, its state saved."""


class LossMeter:
    """Sums every loss term over an epoch and checks that each of them is finite.

    The terms are fetched from the device and checked after each step on the CPU and after every
    50th on a GPU, which never waits for anything else. They are added in the order of the steps, in
    float64, so the sums don't depend on when they are fetched.

    Args:
        names: Names of the K terms.
        device: Where the terms are computed.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names = list(names)
        self.steps_per_look = 1 if device.type == "cpu" else _STEPS_PER_LOOK
        self.sums = dict.fromkeys(self.names, 0.0)
        self._pending: list[Tensor] = []
        self._epoch = self._steps = 0

    def start(self, epoch: int, steps: int = 0, sums: Mapping[str, float] | None = None) -> None:
        """Start from the ``sums`` of an epoch of which ``steps`` steps have run."""
        self._epoch = epoch
        self.sums = {name: (sums or {}).get(name, 0.0) for name in self.names}
        self._pending = []
        self._steps = steps

    def add(self, terms: Tensor) -> None:
        """Add the terms (K,) of the next step.

        Raises:
            Diverged: One of them, or of a step not checked yet, is not finite.
        """
        self._pending.append(terms)
        if len(self._pending) >= self.steps_per_look:
            self.look()

    def look(self) -> dict[str, float]:
        """Return the sums so far, by name.

        Raises:
            Diverged: A term of a step not checked yet is not finite.
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
    """Name the first term that is not finite, in the order in which a step computes them."""
    bad = [name for name, value in terms.items() if not math.isfinite(value)]
    # A critic's step comes before the recommender's, and a gradient's norm after its loss.
    first = min(bad, key=lambda name: (not name.startswith("critic_"), name.endswith("grad_norm")))
    others = [name for name in bad if name != first]
    text = f"{'' if first.endswith('grad_norm') else 'loss term '}{first} is {terms[first]}"
    return f"{text} (and with it {', '.join(others)})" if others else text


def check_finite(tensors: Mapping[str, Tensor], when: str) -> None:
    """Check that every number of a state is finite.

    Args:
        tensors: Any shape, device and dtype.
        when: End of the message.

    Raises:
        Diverged: A number is NaN or infinite; the message names the tensor.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            for value in map(float, torch.aminmax(tensor)):  # one pass; a NaN comes through
                if not math.isfinite(value):
                    raise Diverged(f"{name} holds {value} {when}")


@contextmanager
def deterministic(device: torch.device, enabled: bool) -> Iterator[None]:
    """Make results repeatable: by default torch's scatter-adds race between threads.

    Args:
        device: Device of the training; on a GPU, an op without a deterministic form only warns.
        enabled: False leaves torch's settings as they are.
    """
    if not enabled:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warn_before = torch.is_deterministic_algorithms_warn_only_enabled()
    options: Any = torch.utils.deterministic  # a module with properties, which its type stubs lack
    fill_before = options.fill_uninitialized_memory
    cublas_before = os.environ.get(_CUBLAS)
    if device.type == "cuda":  # products on several streams are repeatable with this only
        os.environ.setdefault(_CUBLAS, ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
    options.fill_uninitialized_memory = False  # costs 8 % of a step
    try:
        yield
    finally:
        if cublas_before is None:
            os.environ.pop(_CUBLAS, None)
        torch.use_deterministic_algorithms(before, warn_only=warn_before)
        options.fill_uninitialized_memory = fill_before
