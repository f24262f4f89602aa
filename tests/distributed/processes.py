"""Models trained step by step in one process or several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from mmssl.config import Config, load_config
from mmssl.data import InteractionDataset, write_dataset
from mmssl.distributed.dataset import read_part
from mmssl.distributed.group import SINGLE, Group, Processes
from mmssl.models.mmssl.task import MMSSLTask
from mmssl.training.sharded import ShardedTask
from mmssl.training.task import Task, create_task
from tests.conftest import make_dataset
from tests.processes import run_together

STEPS = 50

SETTINGS = (
    *("model.embedding_dim=16", "model.num_heads=2", "critic.hidden=24", "structure.min_k=2"),
    *("training.batch_size=17", "plus.batch_size=41", "lightgcn.batch_size=41"),
    *("training.lr=0.003", "lightgcn.lr=0.003", "plus.mix=0"),
)
MODELS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "lightgcn": ("lightgcn", "paper", ()),
    "plus": ("mmssl", "plus", ("plus.prune=0.2",)),
    "plus, bfloat16": ("mmssl", "plus", ("training.wire=bfloat16",)),
    "plus, whole graph": ("mmssl", "plus", ()),
    "plus, mix": ("mmssl", "plus", ("plus.mix=validation", "plus.mix_rank=6")),
    "plus, bpr": ("mmssl", "plus", ("plus.ranking=bpr", "plus.item_weight=0")),
    "plus, drawn negatives": ("mmssl", "plus", ("plus.negatives=12", "plus.contrast_weight=0")),
    "paper": ("mmssl", "paper", ("training.clip_norm=2",)),
    "paper, float64": ("mmssl", "paper", ("critic.clip_norm=2", "structure.refresh_interval=3")),
    "released, latest graphs, float64": (
        *("mmssl", "released"),
        (
            *("structure.schedule=latest", "model.normalization=sym", "training.clip_norm=1"),
            # For so few items, more noise needs rows that are formed; and with a slope of 1 some
            # parameters have no effect and no gradient but rounding.
            *("critic.gumbel_scale=1e-7", "critic.negative_slope=0.2"),
        ),
    ),
}
SHARDED = (
    *("lightgcn", "plus", "plus, mix", "plus, drawn negatives", "plus, bpr", "plus, bfloat16"),
    *("paper", "paper, float64", "released, latest graphs, float64"),
)
Run = tuple[str, str]
"""A mode and a name of a model."""
ROUNDED: Run = ("sharded", "plus, bfloat16")
# With `data` no rows travel, and rows that are flat but for a few numbers are as any other.
RUNS = [
    *(("data", name) for name in MODELS if name not in (ROUNDED[1], SHARDED[-1])),
    *(("sharded", name) for name in SHARDED),
]
# Rounding in float32 grows a thousandfold in the critic within 50 steps, as it does in one process
# between the kernels and plain PyTorch. In float64 these terms are equal to 1e-5 as well.
CRITIC_TERMS = ("adversarial", "critic_fake", "critic_real", "critic_penalty")


def configuration(name: str) -> tuple[str, Config]:
    model, variant, settings = MODELS[name]
    return model, load_config(variant, settings=(*SETTINGS, *settings))


def part_of(dataset: InteractionDataset, group: Group, folder: Path) -> InteractionDataset:
    """Return what a process of a group trains on; ``folder`` is where the data set is written."""
    if not isinstance(group, Processes) or not group.sharded:
        return dataset
    with group.leader_first():
        if group.leads:
            write_dataset(dataset, folder)
    return read_part(folder, group)


def train(name: str, group: Group = SINGLE, folder: Path | None = None) -> dict[str, np.ndarray]:
    """Train for ``STEPS`` steps; return the losses, the embeddings and the test metrics."""
    dataset = part_of(make_dataset(), group, folder)
    model, config = configuration(name)
    task = create_task(model, dataset, config, group=group)
    if name.endswith("float64"):
        widen(task)
    losses = []
    for number in range(STEPS):
        epoch, step = divmod(number, task.steps_per_epoch)
        if step == 0:
            task.start_epoch(epoch, 0)
        losses.append(task.step(step).numpy())
        if number == STEPS // 2 and name.endswith("float64"):
            task.load_state({key: tensor.clone() for key, tensor in task.state().items()})
    scorer = task.finish(task.embed())
    metrics = task.evaluator(dataset, "test").evaluate(scorer)
    tensors = dict(scorer.tensors())
    if name.endswith("float64"):
        state = task.state().items()
        tensors.update({key: tensor for key, tensor in state if not key.startswith("rng")})
    arrays = {key: tensor.detach().numpy() for key, tensor in whole(task, tensors).items()}
    terms = dict(zip(task.terms, np.stack(losses, 1), strict=True))
    if name == "paper":
        terms = {key: values for key, values in terms.items() if key not in CRITIC_TERMS}
    losses = {f"loss {key}": values for key, values in terms.items()}
    return {**losses, "metrics": np.array(list(metrics.values())), **arrays}


def whole(task: Task, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put the rows of all processes together."""
    if not isinstance(task, ShardedTask):
        return tensors
    out = {}
    for name, rows in tensors.items():
        ranges = task.layout(name)
        if ranges is None:
            out[name] = rows
            continue
        out[name] = rows.new_zeros(ranges.num_rows, rows.shape[1])
        out[name][ranges.of(task.shards.rank)] = rows
        task.shards.sum(out[name])
    return out


def widen(task: Task) -> None:
    """Train MMSSL in float64."""
    assert isinstance(task, MMSSLTask) and task.critic is not None
    task.model.double()
    task.critic.double()
    draw = task.training_step._rand
    task.training_step._rand = lambda shape: draw(shape).double()


def _train_all(runs: Sequence[Run], folder: Path) -> None:
    for mode, name in runs:
        group = Processes(sharded=mode == "sharded")
        result = train(name, group, folder / f"data of {name}")
        np.savez(folder / f"{mode}, {name}.{group.rank}.npz", **result)


def train_together(
    size: int, folder: Path, runs: Sequence[Run]
) -> dict[Run, dict[str, np.ndarray]]:
    """Train models in ``size`` processes; what all of them return must be equal bits."""
    run_together(size, _train_all, runs, folder)
    results = {}
    for mode, name in runs:
        first, *others = (
            dict(np.load(folder / f"{mode}, {name}.{rank}.npz")) for rank in range(size)
        )
        for other in others:
            assert_same_bits(other, first, name)
        results[mode, name] = first
    return results


def assert_same_bits(
    got: dict[str, np.ndarray], expected: dict[str, np.ndarray], name: str
) -> None:
    assert got.keys() == expected.keys()
    for key, wanted in expected.items():
        np.testing.assert_array_equal(got[key], wanted, err_msg=f"{name}: {key}")


def assert_close(got: dict[str, np.ndarray], expected: dict[str, np.ndarray], name: str) -> None:
    """Losses and embeddings to 1e-5, relative to the size of the array; equal metrics."""
    for key, wanted in expected.items():
        if key == "metrics":
            np.testing.assert_allclose(got[key], wanted, rtol=0, atol=1e-12, err_msg=name)
        else:
            norm = np.inf if key.startswith("loss") else None
            scale = np.linalg.norm(wanted.ravel(), norm)
            difference = np.linalg.norm((got[key] - wanted).ravel(), norm)
            assert difference <= 1e-5 * scale, (name, key, difference / scale)
