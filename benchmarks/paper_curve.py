"""Why the validation curve of ``paper`` jumps: epochs of one setting after the other.

``python -m benchmarks.paper_curve --data DIR [--only NAME ...] [--seeds 3] [--epochs 30] --json F``
trains variant ``paper`` from several seeds in every setting of `SETTINGS` and keeps, per epoch,
validation Recall@20, how much of the users' top 20 stays the same from one epoch to the next, and
the parts of the score. Finished runs are kept in the file and not run again; the test split is
never read. ``--show`` prints a table of what the file holds.

Legend: U users, I items, B batch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import environment
from mmssl import ops
from mmssl.config import load_config, preset_names
from mmssl.data.dataset import InteractionDataset
from mmssl.data.readers import read_dataset
from mmssl.evaluation.evaluator import Evaluator
from mmssl.files import atomic_write
from mmssl.graph import InteractionGraph, Normalization
from mmssl.memory import keep_freed_memory
from mmssl.models.embeddings import Embeddings
from mmssl.models.mmssl.step import StepInput
from mmssl.models.mmssl.task import MMSSLTask
from mmssl.ops import Triples
from mmssl.ops.masked_similarity import batch_edges
from mmssl.training.guards import deterministic
from mmssl.training.pairwise import trainable_edges

K = 20
NORMALIZATIONS: tuple[Normalization, ...] = ("row_sqrt", "sym", "row")
_DECAY = 0.98  # of the running mean of the parameters, per step: about the last 50 steps


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What differs from the preset with the critic off."""

    fields: tuple[str, ...] = ()
    """Settings of the configuration."""
    uniform_edges: bool = False
    """Draw train edges uniformly instead of users."""


SETTINGS = {
    "critic off": Setting(),
    "sym": Setting(fields=("model.normalization=sym",)),
    "sym, lr x 10": Setting(fields=("model.normalization=sym", "training.lr=5.4e-3")),
    "lr / 10": Setting(fields=("training.lr=5.4e-5",)),
    "final softmax": Setting(fields=("model.final_softmax=true",)),
    "one layer": Setting(fields=("model.num_layers=1",)),
    "no features": Setting(fields=("model.feat_weight=0",)),
    "no contrast": Setting(fields=("loss.cl_weight=0",)),
    "no contrast, edges": Setting(fields=("loss.cl_weight=0",), uniform_edges=True),
    "critic 512": Setting(fields=("loss.g_weight=1.8e-3", "critic.hidden=512")),
    "row, lr x 10": Setting(fields=("model.normalization=row", "training.lr=5.4e-3")),
    "critic 512, sym, lr x 10": Setting(
        fields=(
            *("loss.g_weight=1.8e-3", "critic.hidden=512"),
            *("model.normalization=sym", "training.lr=5.4e-3"),
        )
    ),
    "sym, lr x 10, no contrast": Setting(
        fields=("model.normalization=sym", "training.lr=5.4e-3", "loss.cl_weight=0")
    ),
    "sym, lr x 10, no contrast, edges": Setting(
        fields=("model.normalization=sym", "training.lr=5.4e-3", "loss.cl_weight=0"),
        uniform_edges=True,
    ),
    "sym, lr x 10, no features": Setting(
        fields=("model.normalization=sym", "training.lr=5.4e-3", "model.feat_weight=0")
    ),
    "graphs not refreshed": Setting(fields=("structure.refresh_interval=1000000",)),
}


class CurveTask(MMSSLTask):
    """The task of ``paper`` with the two switches that the configuration does not have."""

    def __init__(self, dataset: InteractionDataset, config: Any, setting: Setting) -> None:
        super().__init__(dataset, config, "cpu")
        self.edges = trainable_edges(self.graph) if setting.uniform_edges else None

    def step(self, number: int) -> Tensor:
        """See the base class."""
        inputs = self.training_step.draw() if self.edges is None else self._draw(*self.edges)
        return self.training_step(inputs, number).to_vector()

    def _draw(self, user: Tensor, item: Tensor) -> StepInput:
        step = self.training_step
        chosen = torch.randint(user.numel(), (step.batch_size,), generator=step.generator)
        draw = torch.rand(step.batch_size, generator=step.generator, dtype=torch.float64)
        users = user[chosen]
        batch = Triples(users, item[chosen], self.graph.missing_item(users, draw))
        return StepInput(batch, batch_edges(self.graph.ui, users), None, None)


def train(
    dataset: InteractionDataset, setting: Setting, seed: int, epochs: int
) -> list[dict[str, float]]:
    """Train one run and return what is kept of every epoch."""
    preset = dataset.name if dataset.name in preset_names() else None
    fields = ["loss.g_weight=0", f"training.seed={seed}", *setting.fields]
    task = CurveTask(dataset, load_config("paper", preset=preset, settings=fields), setting)
    evaluator = Evaluator(dataset, "val", task.graph, ks=(K,))
    curve: list[dict[str, float]] = []
    mean = {name: value.detach().clone() for name, value in task.model.named_parameters()}
    before: Tensor | None = None
    with deterministic(task.device, True):
        for epoch in range(epochs):
            task.start_epoch(epoch, 0)
            start = time.perf_counter()
            for number in range(task.steps_per_epoch):
                last = task.embed() if number == task.steps_per_epoch - 1 else None
                task.step(number)
                for name, value in task.model.named_parameters():
                    mean[name].lerp_(value.detach(), 1 - _DECAY)
            seconds = time.perf_counter() - start
            record, before = look(task, evaluator, before)
            assert last is not None
            record["step"] = step_size(last, task.embed(), evaluator.users)
            record["recall@20 of mean"] = with_parameters(task.model, mean, task, evaluator)
            curve.append({**record, "seconds": seconds})
    return curve


@torch.no_grad()
def look(
    task: MMSSLTask, evaluator: Evaluator, before: Tensor | None
) -> tuple[dict[str, float], Tensor]:
    """Return what is kept of the current parameters, and the users' lists (T, K)."""
    task.model.eval()
    found = task.model()
    scores = evaluator.evaluate(found.user, found.item)
    users = evaluator.users
    _, lists = ops.masked_topk(found.user, found.item, K, users=users, exclude=task.graph.ui)
    degree = task.graph.index.colptr.diff().double()
    weight = task.config.model.feat_weight
    features = [
        weight * nn.functional.normalize(tables, dim=-1).sum(0)
        for tables in (found.user_feature, found.item_feature)
    ]
    ids = [found.user - features[0], found.item - features[1]]
    whole = spread(found.user, found.item, users)
    record = {
        "recall@20": scores["recall@20"],
        "ndcg@20": scores["ndcg@20"],
        "popularity of lists": float(degree[lists].mean()),
        "share of ids": spread(*ids, users) / whole,
        "share of features": spread(*features, users) / whole,
    }
    if before is not None:
        kept = (lists[:, :, None] == before[:, None, :]).any(2)
        record["lists kept"] = float(kept.double().mean())
    return record, lists


def spread(user: Tensor, item: Tensor, users: Tensor) -> float:
    """Standard deviation of the users' scores over the items, averaged over users.

    The covariance of the items gives it without the scores: ``u^T cov(item) u``.
    """
    centered_items = (item - item.mean(0)).double()
    covariance = centered_items.T @ centered_items / item.shape[0]  # (D, D)
    rows = user[users].double()
    return float(((rows @ covariance) * rows).sum(1).clamp(min=0).sqrt().mean())


def step_size(before: Embeddings, after: Embeddings, users: Tensor) -> float:
    """How much one step changes the scores, relative to their spread over the items.

    The difference of two products is one product of twice the width.
    """
    user = torch.cat([after.user, before.user], 1)
    item = torch.cat([after.item, -before.item], 1)
    return spread(user, item, users) / spread(*after, users)


@torch.no_grad()
def with_parameters(
    model: nn.Module, values: dict[str, Tensor], task: MMSSLTask, evaluator: Evaluator
) -> float:
    """Validation Recall@20 with other parameters, which are then set back."""
    own = {name: value.detach().clone() for name, value in model.named_parameters()}
    for name, value in model.named_parameters():
        value.copy_(values[name])
    recall = evaluator.evaluate(*task.embed())["recall@20"]
    for name, value in model.named_parameters():
        value.copy_(own[name])
    return recall


def amplification(dataset: InteractionDataset, normalization: Normalization) -> float:
    """Largest eigenvalue of two hops, items to users and back, by power iteration."""
    graph = InteractionGraph.from_edges(
        *dataset.train, dataset.num_users, dataset.num_items, normalization=normalization
    )
    signal = graph.index.colptr.diff().double().sqrt()[:, None]  # (I, 1)
    value = 0.0
    for _ in range(200):
        signal = signal / signal.norm()
        signal = ops.spmm(graph.iu, ops.spmm(graph.ui, signal))
        value = float(signal.norm())
    return value


def table(runs: dict[str, Any]) -> list[str]:
    """Return a Markdown table: a row per setting, means over the seeds."""
    lines = [
        "| | best | in epoch | last five | change per epoch | lists kept | of the mean |"
        " change per step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in SETTINGS:
        curves = [run["curve"] for run in runs.values() if run["setting"] == name]
        if not curves:
            continue
        columns = [
            statistics.fmean(column)
            for column in zip(*(summary(curve) for curve in curves), strict=True)
        ]
        best, epoch, last, change, kept, mean, step = columns
        lines.append(
            f"| {name} | {best:.4f} | {epoch:.0f} | {last:.4f} | {change:.1%} | {kept:.0%} | "
            f"{mean:.4f} | {step:.1%} |"
        )
    return lines


def summary(curve: list[dict[str, float]]) -> list[float]:
    """Return the columns of the table for one run; changes are counted from the second epoch."""
    recalls = [epoch["recall@20"] for epoch in curve]
    changes = [abs(b / a - 1) for a, b in zip(recalls[1:], recalls[2:], strict=False)]
    return [
        max(recalls),
        recalls.index(max(recalls)) + 1,
        statistics.fmean(recalls[-5:]),
        statistics.fmean(changes),
        statistics.fmean(epoch["lists kept"] for epoch in curve[2:]),
        statistics.fmean(epoch["recall@20 of mean"] for epoch in curve[-5:]),
        statistics.fmean(epoch["step"] for epoch in curve[2:]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, metavar="DIR")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--json", type=Path, required=True, help="keep the runs here")
    parser.add_argument("--show", action="store_true", help="print the table and train nothing")
    options = parser.parse_args()
    if options.epochs < 3:
        parser.error(f"--epochs: expected at least 3, got {options.epochs}")
    content = json.loads(options.json.read_text()) if options.json.exists() else {"runs": {}}
    runs: dict[str, Any] = content["runs"]
    if not options.show:
        if options.data is None:
            raise SystemExit("error: --data DIR is required")
        keep_freed_memory()
        dataset = read_dataset(options.data)
        content = {
            "data": dataset.name,
            "hash": dataset.content_hash(),
            "environment": environment.environment(),
            "amplification": {name: amplification(dataset, name) for name in NORMALIZATIONS},
            "runs": runs,
        }
        for seed in range(options.seeds):
            for name in options.only:
                key = f"{name}, seed {seed}, {options.epochs} epochs"
                if key in runs:
                    continue
                curve = train(dataset, SETTINGS[name], seed, options.epochs)
                runs[key] = {"setting": name, "seed": seed, "curve": curve}
                print(key, " ".join(f"{e['recall@20']:.4f}" for e in curve), flush=True)
                atomic_write(options.json, (json.dumps(content, indent=1) + "\n").encode())
    print("largest eigenvalue of two hops:", content["amplification"])
    print("\n".join(table(runs)))


if __name__ == "__main__":
    main()
