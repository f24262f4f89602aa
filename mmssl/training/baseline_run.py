"""Baselines in the same run directory and the same ``metrics.json`` as MMSSL."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm

from mmssl.config import Config
from mmssl.data.dataset import InteractionDataset
from mmssl.evaluation.evaluator import Evaluator
from mmssl.graph import InteractionGraph
from mmssl.models.popularity import popularity
from mmssl.training.baselines import BaselineEpoch, train_lightgcn
from mmssl.training.checkpoint import Checkpoint, recover_newest
from mmssl.training.run import RunDirectory


def fit_baseline(
    dataset: InteractionDataset,
    run: RunDirectory,
    *,
    device: torch.device | str = "cpu",
    show_progress: bool = True,
    on_start: Callable[[list[dict[str, Any]]], None] = lambda history: None,
    on_epoch: Callable[[dict[str, Any]], None] = lambda record: None,
    test: bool = True,
    resume: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Trains the baseline that ``run.info.model`` names, writes and returns the metrics.

    A LightGCN run has a checkpoint after every epoch. Popularity is computed anew.

    Args:
        dataset: the data of the run.
        run: an initialised run directory.
        device: "cpu" or a CUDA device.
        show_progress: one line per epoch.
        on_start: called with the records of the epochs that a resumed run has behind it.
        on_epoch: called with the epoch's record once its checkpoint is on disk; whatever it raises
            ends the training.
        test: False leaves the test split unread and the metrics without it.
        resume: continue from the newest whole checkpoint, or from the beginning if there is none.
        should_stop: polled between steps; True ends the training at once.

    Raises:
        Interrupted: ``should_stop`` said so; the newest checkpoint is that of the epoch before.
        InputError: a file can't be written, or no checkpoint is whole.
        Diverged: a number is no longer finite.
    """
    graph = InteractionGraph.from_edges(*dataset.train, dataset.num_users, dataset.num_items)
    graph = graph.to(device)
    config = run.config
    metrics: dict[str, Any] = {"model": run.info.model, "seed": config.training.seed}
    metrics["data"] = run.info.data_record(dataset.name)
    if run.info.model == "popularity":
        on_start([])
        embeddings = popularity(graph)
        for split in ("val", "test") if test else ("val",):
            metrics[split] = Evaluator(dataset, split, graph).evaluate(*embeddings)
        metrics["epochs"] = []
    else:
        found = recover_newest(run.checkpoint_path) if resume else None
        newest = None if found is None else found[1]
        done = [] if newest is None else newest.state["history"]
        records = [_record(BaselineEpoch(**epoch), config) for epoch in done]
        if resume:
            run.truncate_log(0 if newest is None else newest.state["log_size"], records)
        on_start(list(records))

        log_size = 0

        def finish_epoch(epoch: BaselineEpoch) -> None:
            nonlocal log_size
            record = _record(epoch, config)
            log_size = run.log("epoch", **record)
            if show_progress:
                tqdm.write(
                    f"epoch {epoch.epoch:3d}  loss {epoch.loss:.4f}  "
                    f"val recall@20 {epoch.val['recall@20']:.4f}  {epoch.seconds:6.1f} s"
                )
            records.append(record)

        def save(state: Checkpoint) -> None:
            run.save_state(state.tensors, state.state | {"log_size": log_size})
            on_epoch(records[-1])

        result = train_lightgcn(
            dataset,
            graph,
            epochs=config.lightgcn.epochs,
            lr=config.lightgcn.lr,
            reg=config.lightgcn.reg,
            batch_size=config.lightgcn.batch_size,
            seed=config.training.seed,
            patience=config.lightgcn.patience,
            embedding_dim=config.model.embedding_dim,
            num_layers=config.lightgcn.num_layers,
            progress=finish_epoch,
            test=test,
            resume=newest,
            save=save,
            should_stop=should_stop,
        )
        embeddings = result.embeddings
        metrics.update(best_epoch=result.best_epoch, val=result.val)
        if result.test is not None:
            metrics["test"] = result.test
        metrics["epochs"] = [epoch._asdict() for epoch in result.epochs]
        metrics["timing"] = {
            "seconds_per_epoch": statistics.median(e.seconds for e in result.epochs),
            "train_seconds": result.seconds,
        }
    run.save_model(embeddings.user, embeddings.item, {})
    run.write_metrics(metrics)
    return metrics


def _record(epoch: BaselineEpoch, config: Config) -> dict[str, Any]:
    return {
        "epoch": epoch.epoch,
        "loss": {"bpr": epoch.loss},
        "val": epoch.val,
        "lr": config.lightgcn.lr,
        "seconds": epoch.seconds,
    }
