"""Training steps that run as CUDA graphs: recorded once, then started by one call each.

A step of MMSSL starts hundreds of kernels, most of which take less time than their start. A CUDA
graph starts all of them at once. What can be recorded follows from the plan of a step, see
:class:`StepPlan`; steps of other shapes or with other kernels are recorded apart.

Not run on a GPU yet. The tests replace :class:`CUDARecorder` by one that runs a recorded step again
on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

# Runs of a kind of step before it is recorded: torch's libraries allocate at their first calls.
_WARM_UP = 2


class StepPlan(NamedTuple):
    """One step, divided into what the host does and what the device does.

    ``compute`` may be recorded, and is then not called again: another step of this kind with other
    inputs starts the same kernels on the same memory. So it waits for nothing, and what a step
    leaves for the next are values of tensors that both read in place, and what ``replayed`` does.
    """

    kind: Hashable
    """Steps that start the same kernels are of one kind."""
    inputs: tuple[Tensor, ...]
    """Tensors that were drawn for this step."""
    compute: Callable[[tuple[Tensor, ...]], Tensor]
    """Takes tensors like the inputs; returns the (K,) loss terms."""
    replayed: Callable[[], None] = lambda: None
    """Does to objects of Python what ``compute`` does; called where a recording takes its place."""


class Recorder(Protocol):
    """Records what computes on tensors that stay where they are."""

    def warm_up(self, compute: Callable[[], Tensor]) -> Tensor:
        """Run it without recording."""

    def record(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Record it without running it; return what runs it."""


class CUDARecorder:
    """Records CUDA graphs that share one pool of memory.

    Args:
        device: The device.
        generators: All generators that steps draw from, torch's default ones excepted.
    """

    def __init__(self, device: torch.device, generators: Sequence[torch.Generator]) -> None:
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.generators = generators

    def warm_up(self, compute: Callable[[], Tensor]) -> Tensor:
        """See :class:`Recorder`."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            out = compute()
        torch.cuda.current_stream().wait_stream(self.stream)
        return out

    def record(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """See :class:`Recorder`."""
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            out = compute()

        def run() -> Tensor:
            graph.replay()
            return out.clone()  # the next run overwrites it

        return run


class RecordedSteps:
    """Runs steps by their plans.

    Args:
        recorder: Records them.
        optimizers: Those of the steps. Their learning rates become tensors, which every run
            of a recorded step reads.
        device: Their device.
    """

    def __init__(
        self,
        recorder: Recorder,
        optimizers: Sequence[torch.optim.Optimizer],
        device: torch.device,
    ) -> None:
        self.recorder = recorder
        self._runs: dict[Hashable, int] = {}
        self._recorded: dict[Hashable, tuple[tuple[Tensor, ...], Callable[[], Tensor]]] = {}
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["capturable"] = True
                group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=device)

    def __call__(self, plan: StepPlan) -> Tensor:
        """Run one step; return its loss terms."""
        kind = plan.kind, tuple((t.shape, t.dtype) for t in plan.inputs)
        if kind not in self._recorded:
            self._runs[kind] = self._runs.get(kind, 0) + 1
            if self._runs[kind] <= _WARM_UP:
                return self.recorder.warm_up(lambda: plan.compute(plan.inputs))
            inputs = tuple(t.clone() for t in plan.inputs)
            self._recorded[kind] = inputs, self.recorder.record(lambda: plan.compute(inputs))
        else:
            plan.replayed()
        inputs, run = self._recorded[kind]
        for own, new in zip(inputs, plan.inputs, strict=True):
            own.copy_(new)
        return run()
