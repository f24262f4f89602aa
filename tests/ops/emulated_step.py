"""Training steps on the CUDA kernels and the Python that a GPU takes, without a GPU.

``python -m tests.ops.emulated_step LIBRARY VARIANT`` trains two models of a variant from one seed
for a few steps with backend "native": one on the kernels of the CPU, one on the CUDA kernels of a
library that :func:`tests.ops.kernels.build_emulated_bindings` has built. It prints the loss terms
of both, and what the last step has started on the device and waited for, as JSON.
"""

from __future__ import annotations

import ctypes
import json
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmssl import indexing, ops
from mmssl.config import load_config
from mmssl.ops import product
from mmssl.training.task import Task, create_task
from tests.conftest import make_dataset
from tests.ops import emulated

STEPS = 3
SETTINGS = {
    "paper": ("model.embedding_dim=8", "training.batch_size=16", "critic.hidden=12"),
    "released": ("model.embedding_dim=8", "training.batch_size=16", "critic.hidden=12"),
    "plus": ("model.embedding_dim=8", "plus.batch_size=32", "plus.num_neighbors=4"),
}
# Return a part of their argument, or nothing on the device.
VIEWS = {
    "view", "_unsafe_view", "t", "transpose", "expand", "slice", "select", "unsqueeze", "squeeze",
    "detach", "as_strided", "alias", "split", "split_with_sizes", "unbind", "permute",
    "_reshape_alias", "lift_fresh", "empty", "empty_like", "new_empty", "empty_strided",
    "new_empty_strided", "set_", "diagonal", "is_same_size", "promote_types",
}  # fmt: skip
# Only the CPU checks ids, and reads the result.
CHECKS = {"aminmax", "_local_scalar_dense"}
# Have an answer whose size depends on the data.
SIZED_BY_DATA = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"}


def _place() -> str:
    """Return the line of the package that has made the call."""
    root = Path(ops.__file__).parents[1]
    for frame in reversed(traceback.extract_stack()):
        if Path(frame.filename).is_relative_to(root):
            return f"{Path(frame.filename).relative_to(root)}: {frame.line}"
    return "?"


def _is_check(place: str) -> bool:
    """Whether a wait belongs to a check of ids, which only the CPU makes."""
    return "torch.aminmax(" in place


class Watch(TorchDispatchMode):
    """Counts operators of torch by the range of the profiler they are in, and what waits."""

    def __init__(self) -> None:
        super().__init__()
        self.started: dict[str, Counter[str]] = {}
        self.waits: list[str] = []
        self.phase = ["between"]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        space, name = func._schema.name.split("::")
        if space == "profiler":
            self.phase = [*self.phase, args[0]] if "enter" in name else self.phase[:-1]
        elif space == "aten" and name not in VIEWS:
            by_mask = name == "index" and any(
                t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1]
            )
            sized = name == "repeat_interleave" and kwargs.get("output_size") is None
            if name in SIZED_BY_DATA or by_mask or sized or name == "_local_scalar_dense":
                self.wait(name)
            out = func(*args, **kwargs)
            same = name == "reshape" and out.data_ptr() == args[0].data_ptr()
            if name not in CHECKS and not same:
                self.started.setdefault(self.phase[-1], Counter())[name] += 1
            return out
        return func(*args, **kwargs)

    def wait(self, name: str) -> None:
        if not _is_check(place := _place()):
            self.waits.append(f"{name} at {place}")


class Reads(TorchFunctionMode):
    """Finds the reads of numbers that no operator does."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("tolist", "numpy", "cpu"):
            self.watch.wait(func.__name__)
        return func(*args, **(kwargs or {}))


def build(variant: str) -> Task:
    """Create a task, the same each time."""
    torch.manual_seed(0)
    config = load_config(variant, settings=SETTINGS[variant])
    return create_task("mmssl", make_dataset(), config)


def train(task: Task, last: Any = None) -> list[list[float]]:
    """Run some steps, the last one within a context; return the loss terms of each."""
    task.start_epoch(0, 0)
    terms: list[Tensor] = [task.step(number) for number in range(STEPS - 1)]
    with last or nullcontext():
        terms.append(task.step(STEPS - 1))
    return [row.tolist() for row in terms]


def main() -> None:
    library, variant = sys.argv[1:]
    ops.set_backend("native")
    expected = train(build(variant))
    emulated.load(library)
    started = ctypes.CDLL(library).mmssl_emu_started
    started.restype = ctypes.c_int64
    watch = Watch()
    with (
        mock.patch.object(indexing, "_host_for", lambda array: None),
        mock.patch.object(product, "_native", lambda x: False),
        mock.patch.object(product, "_takes_onednn", lambda a: False),
    ):
        task = build(variant)
        kernels = 0

        @contextmanager
        def watched() -> Iterator[None]:
            nonlocal kernels
            kernels = -started()
            with watch, Reads(watch):
                yield
            kernels += started()

        found = train(task, watched())
    print(json.dumps({
        "names": list(task.terms), "expected": expected, "found": found, "waits": watch.waits,
        "kernels": kernels,
        "operators": {phase: dict(count.most_common()) for phase, count in watch.started.items()},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
