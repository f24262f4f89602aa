"""Cold items: ways to make a vector for an item that has no interaction in train yet.

``python benchmarks/bench_cold.py --data DIR [--preset NAME] [--model lightgcn]`` removes a tenth of
the items from training, trains, and ranks only those items for the users who have them. It prints
Recall@20 among the cold items, mean over users, one line per way with its spread over ``--seeds``
draws of the items. ``--smoke`` generates a small data set instead.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import environment  # noqa: E402
from benchmarks.harness.record import Case, Results, Row, Timing, write  # noqa: E402
from mmssl.config import Config, load_config  # noqa: E402
from mmssl.data import InteractionDataset, Interactions, read_dataset  # noqa: E402
from mmssl.models.registry import DEFAULT_MODEL, model_names  # noqa: E402
from mmssl.serving.cold import fit_feature_map  # noqa: E402
from mmssl.training.fit import fit_run  # noqa: E402
from mmssl.training.run import RunDirectory  # noqa: E402

K = 20
SHARE = 0.1  # of the items with interactions, held out
NEIGHBORS = 20


def hold_out(dataset: InteractionDataset, seed: int) -> tuple[InteractionDataset, np.ndarray]:
    """Return the data set whose test split is the edges of cold items, and the cold items."""
    rng = np.random.default_rng(seed)
    known = np.unique(dataset.train.item)
    cold = np.sort(rng.choice(known, max(1, round(SHARE * known.size)), replace=False))
    user = np.concatenate([edges.user for _, edges in dataset.splits()])
    item = np.concatenate([edges.item for _, edges in dataset.splits()])
    is_cold = np.isin(item, cold)
    in_train = np.isin(dataset.train.item, cold)
    in_val = np.isin(dataset.val.item, cold)
    train = Interactions(dataset.train.user[~in_train], dataset.train.item[~in_train])
    # Users without a train item have no vector to rank with.
    asked = is_cold & np.isin(user, train.user)
    return (
        dataclasses.replace(
            dataset,
            train=train,
            val=Interactions(dataset.val.user[~in_val], dataset.val.item[~in_val]),
            test=Interactions.from_edges(user[asked], item[asked]),
        ),
        cold,
    )


def train(dataset: InteractionDataset, model: str, config: Config, folder: Path) -> RunDirectory:
    run = RunDirectory.new(folder / "run", model, folder, dataset, config)
    fit_run(run, dataset, show_progress=False)
    return run


def ways(
    dataset: InteractionDataset, cold: np.ndarray, run: RunDirectory
) -> dict[str, Callable[[], tuple[Tensor, Tensor]]]:
    """Return name -> function of user vectors (U, D) and vectors of the cold items (N, D)."""
    tensors = run.load_model().tensors
    user, item = run.load_embeddings()
    rows = {name: torch.from_numpy(table) for name, table in dataset.features.items()}
    degree = torch.from_numpy(np.bincount(dataset.train.item, minlength=dataset.num_items))
    warm = degree.nonzero().squeeze(1)
    content = torch.cat([F.normalize(table) for table in rows.values()], 1)
    index = torch.from_numpy(cold)
    cold_rows = {name: table[index] for name, table in rows.items()}

    def ridge() -> tuple[Tensor, Tensor]:
        return user, fit_feature_map(rows, item, degree.sqrt())(cold_rows)

    def unweighted() -> tuple[Tensor, Tensor]:
        return user, fit_feature_map(rows, item, degree > 0)(cold_rows)

    def neighbors() -> tuple[Tensor, Tensor]:
        similarity = content[index] @ content[warm].T
        weight, nearest = similarity.topk(min(NEIGHBORS, warm.numel()))
        return user, (weight.clamp(min=0)[..., None] * item[warm][nearest]).mean(1)

    def projection() -> tuple[Tensor, Tensor]:
        """The model's own feature projection without propagation, which needs no edges."""
        total = torch.zeros(index.numel(), item.shape[1])
        for position, table in enumerate(cold_rows.values()):
            weight = tensors[f"parameter.projection.{position}.weight"]
            total += F.normalize(
                F.linear(table, weight, tensors[f"parameter.projection.{position}.bias"])
            )
        return user, total

    def profile() -> tuple[Tensor, Tensor]:
        """No model: the mean similarity of an item to the user's train items."""
        mean = torch.zeros(dataset.num_users, content.shape[1])
        owner = torch.from_numpy(dataset.train.user)
        mean.index_add_(0, owner, content[torch.from_numpy(dataset.train.item)])
        return F.normalize(mean), content[index]

    def random() -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        return user, torch.randn(index.numel(), item.shape[1], generator=generator)

    found = {
        "random vectors": random,
        "as trained": lambda: (user, item[index]),
        "content alone": profile,
        f"{NEIGHBORS} nearest neighbors": neighbors,
        "ridge map": unweighted,
        "ridge map, weighted by degree": ridge,
    }
    if "parameter.projection.0.weight" in tensors:
        found["own projection"] = projection
    return found


def recall(dataset: InteractionDataset, cold: np.ndarray, user: Tensor, item: Tensor) -> float:
    """Return Recall@K of ranking only the cold items, mean over the users who have some."""
    users, row = np.unique(dataset.test.user, return_inverse=True)
    relevant = torch.zeros(users.size, cold.size, dtype=torch.bool)
    relevant[torch.from_numpy(row), torch.from_numpy(np.searchsorted(cold, dataset.test.item))] = 1
    top = (user[torch.from_numpy(users)] @ item.T).topk(min(K, cold.size)).indices
    return float((relevant.gather(1, top).sum(1) / relevant.sum(1)).mean())


def smoke() -> InteractionDataset:
    from tests.conftest import make_dataset

    return make_dataset(300, 400)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", choices=model_names(trained=True), default=DEFAULT_MODEL)
    parser.add_argument("--preset")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="A.B=C")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    if options.smoke:
        options.seeds = 1
        options.settings = ["training.epochs=2", "lightgcn.epochs=2", *options.settings]
    elif options.data is None:
        parser.error("--data DIR or --smoke is required")
    dataset = smoke() if options.smoke else read_dataset(options.data)
    values: dict[str, list[float]] = {}
    spent: dict[str, list[float]] = {}
    found = environment.environment(smoke=options.smoke)
    print(environment.heading(found))
    for seed in range(options.seeds):
        settings = [*options.settings, f"training.seed={2022 + seed}"]
        config = load_config("paper", preset=options.preset, settings=settings)
        warm, cold = hold_out(dataset, seed)
        with tempfile.TemporaryDirectory() as folder:
            run = train(warm, options.model, config, Path(folder))
            for name, way in ways(warm, cold, run).items():
                start = time.perf_counter()
                vectors = way()
                spent.setdefault(name, []).append(time.perf_counter() - start)
                values.setdefault(name, []).append(recall(warm, cold, *vectors))
            metrics = run.read_metrics() or {}
        print(
            f"seed {seed}: {cold.size} of {dataset.num_items} items cold, "
            f"{np.unique(warm.test.user).size} users asked; best epoch {metrics['best_epoch']}, "
            f"val recall@20 {metrics['val']['recall@20']:.4f}",
            flush=True,
        )
    print(f"{dataset.name}, {options.model}: Recall@{K} among the cold items")
    for name, of_seeds in values.items():
        spread = np.std(of_seeds, ddof=len(of_seeds) > 1)
        print(f"  {name:30s} {np.mean(of_seeds):.4f} +- {spread:.4f}")
    if options.json:
        rows = {
            name: Row(Timing.of(spent[name]), extra={f"recall@{K}": of_seeds})
            for name, of_seeds in values.items()
        }
        sizes = {"users": dataset.num_users, "items": dataset.num_items}
        case = Case(
            f"cold items, {options.model}", dataset.name, "float32", sizes, "random vectors", rows
        )
        case.commit = environment.commit()
        write(options.json, Results("cold", found, [case]))


if __name__ == "__main__":
    main()
