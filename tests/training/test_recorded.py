"""Recorded steps equal steps that start one operator at a time.

In place of a CUDA graph, a tape: the operators of a recorded step are run again, on the tensors of
the recording, and their results written over the recorded ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmssl.config import load_config
from mmssl.models.lightgcn import LightGCNTask
from mmssl.training.recorded import RecordedSteps
from mmssl.training.task import Task, create_task
from tests.ops.kernels import needs_cpu_kernel, needs_gpu_operators


class Tape(TorchDispatchMode):
    """Records operators with their arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.namespace != "profiler":
            self.calls.append((func, args, kwargs, _tensors(out)))
        return out

    @torch.no_grad()
    def run(self) -> None:
        for func, args, kwargs, recorded in self.calls:
            for old, new in zip(recorded, _tensors(func(*args, **kwargs)), strict=True):
                assert old.shape == new.shape, f"{func} depends on values"
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


class TapeRecorder:
    """Records tapes; what a recorded step computes while it is recorded is undone."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.recordings = 0

    def warm_up(self, compute: Callable[[], Tensor]) -> Tensor:
        return compute()

    def record(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        tensors = {name: t for name, t in self.task.state().items() if not name.startswith("rng.")}
        before = {name: t.clone() for name, t in tensors.items()}
        graphs = [t.clone() for t in _index(self.task)]
        states = [generator.get_state() for generator in self.task.generators]
        default = torch.get_rng_state()
        tape = Tape()
        with tape:
            out = compute()
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(before[name])
            for tensor, array in zip(_index(self.task), graphs, strict=True):
                tensor.copy_(array)
        for generator, state in zip(self.task.generators, states, strict=True):
            generator.set_state(state)
        torch.set_rng_state(default)
        self.recordings += 1

        def run() -> Tensor:
            tape.run()
            return out.clone()

        return run


def _index(task: Any) -> list[Tensor]:
    """The arrays of learned graphs, which the state holds by their edges only."""
    graphs = task.structure.graphs if hasattr(task, "structure") else []
    return [t for g in graphs for t in (*g.index[:4], g.ui.row_scale, g.iu.row_scale)]


# Model, variant, epochs, steps of an epoch at most, settings. A last batch that is smaller is of
# another kind, once per epoch; so is a step of `paper` with a penalty or with new graphs.
PAIRWISE = ("model.embedding_dim=8",)
PAPER = (
    *("model.embedding_dim=8", "training.batch_size=16", "critic.hidden=12"),
    *("training.lr_decay=1e-20", "structure.refresh_interval=2", "critic.penalty_interval=2"),
)
CASES = {
    "bprmf": ("bprmf", "paper", 3, 99, (*PAIRWISE, "bprmf.batch_size=64")),
    "lightgcn": ("lightgcn", "paper", 3, 99, (*PAIRWISE, "lightgcn.batch_size=64")),
    "plus": ("mmssl", "plus", 3, 99, (*PAIRWISE, "plus.batch_size=64")),
    "plus, pruned": ("mmssl", "plus", 3, 99, (*PAIRWISE, "plus.batch_size=64", "plus.prune=0.3")),
    "paper": ("mmssl", "paper", 2, 4, PAPER),
}


@needs_cpu_kernel
@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[needs_gpu_operators] if c == "paper" else []) for c in CASES],
)
def test_recorded_steps(case, tiny_dataset, monkeypatch):
    # Steps are recorded on CUDA devices, where a step of LightGCN is not one call.
    monkeypatch.delattr(LightGCNTask, "train_on")
    model, variant, epochs, longest, settings = CASES[case]
    config = load_config(variant, settings=settings)
    results = []
    for record in (False, True):
        task = create_task(model, tiny_dataset, config)
        assert task.unrecorded == ""
        recorder = TapeRecorder(task)
        steps = RecordedSteps(recorder, task.optimizers, task.device)  # lr becomes a tensor
        terms = []
        for epoch in range(epochs):
            task.start_epoch(epoch, 0)
            for number in range(min(task.steps_per_epoch, longest)):
                terms.append(steps(task.plan(number)) if record else task.step(number))
            task.embed()
        assert recorder.recordings == (2 if record else 0)
        results.append((terms, {name: t.clone() for name, t in task.state().items()}))
    (expected, state), (found, found_state) = results
    for step, (want, got) in enumerate(zip(expected, found, strict=True)):
        assert torch.equal(want, got), step
    for name, tensor in state.items():
        assert torch.equal(tensor, found_state[name]), name
    # A run that continues from there takes the same next step.
    random, following = torch.get_rng_state(), []
    continued = create_task(model, tiny_dataset, config)
    RecordedSteps(TapeRecorder(continued), continued.optimizers, continued.device)
    continued.load_state(found_state)
    for one in (task, continued):
        torch.set_rng_state(random)
        one.start_epoch(epochs - 1, 1)
        following.append(one.step(1))
    assert torch.equal(*following)


@needs_cpu_kernel
@needs_gpu_operators
def test_padded_graphs_train_as_others_do(tiny_dataset):
    """New graphs overwrite the old ones in place, once the backward pass has read these."""
    states = []
    for padded in (True, False):
        task = create_task("mmssl", tiny_dataset, load_config("paper", settings=PAPER[:3]))
        assert task.structure.padded
        if not padded:
            task.structure.padded = False
            task.structure.graphs = task.model.modality_graphs = [task.graph] * 2
        task.start_epoch(0, 0)
        for number in range(3):
            task.step(number)
        states.append(task.parameters())
    for name, parameter in states[0].items():
        torch.testing.assert_close(parameter, states[1][name])


@needs_cpu_kernel
@pytest.mark.parametrize(
    ("variant", "settings", "reason"),
    [
        ("released", (), "structure.schedule = released merges repeated edges"),
    ],
)
def test_why_steps_are_not_recorded(variant, settings, reason, tiny_dataset):
    task = create_task("mmssl", tiny_dataset, load_config(variant, settings=settings))
    assert reason in task.unrecorded
