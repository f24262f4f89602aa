"""Training steps on the CUDA kernels and the Python that a GPU takes, without a GPU.

``python -m tests.ops.emulated_step LIBRARY VARIANT`` trains two models of a variant from one seed
for a few steps with backend "native": one on the kernels of the CPU, one on the CUDA kernels of a
library that :func:`tests.ops.kernels.build_emulated_bindings` has built. It prints the loss terms
of both, and what the last step has started on the device and waited for, as JSON. Without a VARIANT
it prints the tables of docs/cuda.md: what a step of each variant starts, by phase and by cause.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
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
# The names of ranges in the tables.
PHASES = {
    **{f"mmssl::{name}": name.replace("_", " ") for name in (
        "sample", "forward", "critic_forward", "critic_backward", "structure", "recommender_loss",
        "backward")},
    "Optimizer.step#Adam.step": "Adam", "Optimizer.step#AdamW.step": "AdamW",
    "between": "the vector of loss terms",
}  # fmt: skip
# What kind an operator is of; all others are elementwise.
KIND_OF = {
    name: kind
    for kind, names in {
        "matrix products": "mm addmm bmm baddbmm dot",
        "sums and means": "sum mean",
        "joining and copying": "cat stack copy _foreach_copy repeat clone slice_backward",
        "filling": "zeros new_zeros ones_like full zeros_like fill scalar_tensor new_full ones",
        "gather, scatter, sort": "index index_put argsort sort unique2 index_add gather scatter",
        "random numbers": "rand randint",
        "fused Adam": "_fused_adam _fused_adamw",
    }.items()
    for name in names.split()
}
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

    def __init__(self, kernels_started: Callable[[], int]) -> None:
        super().__init__()
        self.kernels_started = kernels_started
        self.kernels: Counter[str] = Counter()
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
        elif space == "mmssl":
            before = self.kernels_started()
            out = func(*args, **kwargs)
            self.kernels[name] += self.kernels_started() - before
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


def tables(library: str) -> str:
    """Return what a step of each variant starts, by phase and by cause, as Markdown."""
    results = {}
    for variant in ("plus", "paper", "released"):
        command = [sys.executable, "-m", "tests.ops.emulated_step", library, variant]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results[variant] = json.loads(done.stdout)
    phases = [
        Counter({PHASES.get(phase, phase): sum(c.values()) for phase, c in r["operators"].items()})
        for r in results.values()
    ]
    causes = [Counter(r["kernels"]) for r in results.values()]
    for counts, result in zip(causes, results.values(), strict=True):
        for operators in result["operators"].values():
            for name, count in operators.items():
                counts["torch: " + KIND_OF.get(name.rstrip("_"), "elementwise")] += count
    rows = {
        "waits for the device": [len(r["waits"]) for r in results.values()],
        "kernels of this package": [sum(r["kernels"].values()) for r in results.values()],
    }
    for phase in dict.fromkeys(phase for counts in reversed(phases) for phase in counts):
        rows[f"operators of torch: {phase}"] = [counts[phase] for counts in phases]
    rows["together"] = [sum(counts.values()) for counts in causes]
    names = sorted({name for c in causes for name in c}, key=lambda n: (-causes[1][n], n))
    by_cause = {name: [counts[name] for counts in causes] for name in names}
    return f"{_table(rows, list(results))}\n\n{_table(by_cause, list(results))}"


def _table(rows: dict[str, list[int]], head: list[str]) -> str:
    lines = [["", *head], ["---"] * (len(head) + 1)]
    lines += [[name, *map(str, counts)] for name, counts in rows.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    if len(sys.argv) == 2:
        print(tables(sys.argv[1]))
        return
    library, variant = sys.argv[1:]
    ops.set_backend("native")
    expected = train(build(variant))
    emulated.load(library)
    started = ctypes.CDLL(library).mmssl_emu_started
    started.restype = ctypes.c_int64
    watch = Watch(started)
    with (
        mock.patch.object(indexing, "_host_for", lambda array: None),
        mock.patch.object(product, "_native", lambda x: False),
        mock.patch.object(product, "_takes_onednn", lambda a: False),
    ):
        task = build(variant)

        @contextmanager
        def watched() -> Iterator[None]:
            with watch, Reads(watch):
                yield

        found = train(task, watched())
    print(json.dumps({
        "names": list(task.terms), "expected": expected, "found": found, "waits": watch.waits,
        "kernels": dict(watch.kernels),
        "operators": {phase: dict(count.most_common()) for phase, count in watch.started.items()},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
