"""The loop around the step: epochs, validation, early stopping, checkpoints, the final test."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mmssl.config import Config
from mmssl.data.dataset import InteractionDataset
from mmssl.errors import Diverged, InputError
from mmssl.evaluation.evaluator import Evaluator
from mmssl.graph import InteractionGraph
from mmssl.models.critic import Critic
from mmssl.models.mmssl import MMSSL
from mmssl.models.structure import structure_learner
from mmssl.training.checkpoint import load_checkpoint, save_checkpoint
from mmssl.training.run import RunDirectory
from mmssl.training.step import TrainingStep

SELECTION_METRIC = "recall@20"

# A checkpoint is written after every epoch, and inside one that lasts longer than this.
_CHECKPOINT_SECONDS = 600.0


class Interrupted(Exception):  # noqa: N818
    """Training stopped on request, its state saved."""


@dataclass
class Progress:
    """Where training stands; plain values that JSON holds."""

    epoch: int = 0  # finished ones
    step: int = 0  # of the epoch
    best_epoch: int = 0  # counted from 1
    best: float = -1.0
    validations_since_best: int = 0
    finished: bool = False
    epoch_seconds: float = 0.0  # spent in the steps of the epoch so far
    log_size: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """Trains MMSSL on a data set and leaves its traces in a run directory.

    Args:
        dataset: with at least one modality.
        config: the complete configuration.
        run: where everything is written.
        device: "cpu" or a CUDA device.
        show_progress: draw a progress bar on stderr.
        should_stop: polled between steps; once it returns True, :meth:`fit` saves and raises
            :class:`Interrupted`.
        on_epoch: called with the epoch's record once its checkpoint is on disk; whatever it raises
            ends :meth:`fit`.
    """

    def __init__(
        self,
        dataset: InteractionDataset,
        config: Config,
        run: RunDirectory,
        *,
        device: torch.device | str = "cpu",
        show_progress: bool = True,
        should_stop: Callable[[], bool] = lambda: False,
        on_epoch: Callable[[dict[str, Any]], None] = lambda record: None,
    ) -> None:
        self.config = config
        self.run = run
        self.device = torch.device(device)
        self.show_progress = show_progress
        self.should_stop = should_stop
        self.on_epoch = on_epoch
        self.dataset = dataset
        self.progress = Progress()

        torch.manual_seed(config.training.seed)
        graph = InteractionGraph.from_edges(
            *dataset.train,
            dataset.num_users,
            dataset.num_items,
            normalization=config.model.normalization,
        ).to(self.device)
        if graph.trainable_users.numel() < 2:
            raise InputError(
                "train: expected at least two users with both a train item and a missing one, "
                f"got {graph.trainable_users.numel()}"
            )
        features = {name: torch.from_numpy(rows) for name, rows in dataset.features.items()}
        self.model = MMSSL(graph, features, config.model).to(self.device)
        self.critic = None
        if config.loss.g_weight > 0:
            self.critic = Critic(dataset.num_items, config.critic).to(self.device)
        self.structure = structure_learner(graph, len(features), config.structure)
        self.generator = torch.Generator(self.device).manual_seed(config.training.seed)
        self.step = TrainingStep(self.model, self.critic, self.structure, config, self.generator)
        self.steps_per_epoch = dataset.train.num_edges // self.step.batch_size + 1
        self.loss_sum: Tensor | None = None
        self._last_save = time.monotonic()

    def fit(self, *, test: bool = True) -> dict[str, Any]:
        """Trains to the end, tests the best epoch once, writes and returns the metrics.

        Args:
            test: False leaves the test split unread and the metrics without it.

        Raises:
            Interrupted: on request, with the state saved.
            Diverged: the loss is no longer finite.
            InputError: a file can't be written.
        """
        validation = Evaluator(self.dataset, "val", self.model.graph)
        with _deterministic(self.device):
            while not self.progress.finished:
                self._train_epoch()
                self._finish_epoch(validation)
        return self._finish_run(test)

    def resume(self) -> bool:
        """Continues from the run's checkpoint; False if there is none yet."""
        if not self.run.checkpoint_path.exists():
            self.run.truncate_log(0)
            return False
        checkpoint = load_checkpoint(self.run.checkpoint_path)
        self._restore(checkpoint.tensors, checkpoint.state)
        return True

    def _train_epoch(self) -> None:
        training = self.config.training
        progress = self.progress
        for group in self.step.optimizer.param_groups:
            group["lr"] = training.lr * training.lr_decay ** (progress.epoch / 50)
        bar = tqdm(
            total=self.steps_per_epoch,
            initial=progress.step,
            desc=f"epoch {progress.epoch + 1:3d}",
            disable=None if self.show_progress else True,  # None: only on a terminal
            leave=False,
            unit="step",
        )
        with bar:
            while progress.step < self.steps_per_epoch:
                start = time.perf_counter()
                losses = self.step(self.step.draw(), progress.step)
                vector = losses.to_vector().double()
                self.loss_sum = vector if self.loss_sum is None else self.loss_sum + vector
                progress.step += 1
                progress.epoch_seconds += time.perf_counter() - start
                bar.update()
                if self.should_stop():
                    self._save()
                    raise Interrupted
                if time.monotonic() - self._last_save > _CHECKPOINT_SECONDS:
                    self._save()

    def _finish_epoch(self, validation: Evaluator) -> None:
        progress = self.progress
        assert self.loss_sum is not None
        means = (self.loss_sum / self.steps_per_epoch).tolist()
        losses = dict(zip(self.step.loss_names(), means, strict=True))
        for name, value in losses.items():
            if value != value or abs(value) == float("inf"):
                raise Diverged(
                    f"training diverged: loss term {name} is {value} in epoch "
                    f"{progress.epoch + 1}; try a smaller learning rate (the checkpoint of the "
                    "epoch before is intact)"
                )
        start = time.perf_counter()
        user, item = self._embed()
        metrics = validation.evaluate(user, item)
        record = {
            "epoch": progress.epoch + 1,
            "loss": losses,
            "val": metrics,
            "lr": self.step.optimizer.param_groups[0]["lr"],
            "seconds": progress.epoch_seconds,
            "evaluate_seconds": time.perf_counter() - start,
        }
        progress.history.append(record)
        self.run.log("epoch", **record)
        improved = metrics[SELECTION_METRIC] > progress.best
        if improved:
            progress.best, progress.best_epoch = metrics[SELECTION_METRIC], progress.epoch + 1
            progress.validations_since_best = 0
            self.run.save_model(user, item, self.model.state_dict())
        else:
            progress.validations_since_best += 1
        if self.show_progress:
            tqdm.write(
                f"epoch {progress.epoch + 1:3d}  loss {sum(means[:5]):8.4f}  "
                f"val recall@20 {metrics['recall@20']:.4f}  ndcg@20 {metrics['ndcg@20']:.4f}  "
                f"{progress.epoch_seconds:6.1f} s{'  *' if improved else ''}"
            )
        progress.epoch += 1
        progress.step, progress.epoch_seconds, self.loss_sum = 0, 0.0, None
        progress.finished = (
            progress.validations_since_best >= self.config.training.patience
            or progress.epoch >= self.config.training.epochs
        )
        self._save()
        self.on_epoch(record)

    @torch.no_grad()
    def _embed(self) -> tuple[Tensor, Tensor]:
        self.model.eval()
        embeddings = self.model()
        return embeddings.user, embeddings.item

    def _finish_run(self, test: bool) -> dict[str, Any]:
        """The only place that reads the test split."""
        history = self.progress.history
        seconds = [epoch["seconds"] for epoch in history]
        scores = {"val": history[self.progress.best_epoch - 1]["val"]}
        if test:
            user, item = (e.to(self.device) for e in self.run.load_embeddings())
            scores["test"] = Evaluator(self.dataset, "test", self.model.graph).evaluate(user, item)
        metrics = {
            "model": self.run.info.model,
            "variant": self.config.variant,
            "seed": self.config.training.seed,
            "data": {"name": self.dataset.name, "hash": self.run.info.data_hash},
            "best_epoch": self.progress.best_epoch,
            **scores,
            "epochs": history,
            "timing": {
                "seconds_per_step": statistics.median(seconds) / self.steps_per_epoch,
                "steps_per_epoch": self.steps_per_epoch,
                "train_seconds": sum(seconds),
                "evaluate_seconds": statistics.median(e["evaluate_seconds"] for e in history),
            },
        }
        self.run.write_metrics(metrics)
        return metrics

    # ---- state -------------------------------------------------------------------------------

    def _save(self) -> None:
        """Everything that the next step depends on."""
        self.progress.log_size = self.run.log_size()
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors.update((f"structure.{k}", v) for k, v in self.structure.state_dict().items())
        tensors.update(_optimizer_state("optimizer", self.step.optimizer))
        if self.critic is not None and self.step.critic_optimizer is not None:
            tensors.update((f"critic.{k}", v) for k, v in self.critic.state_dict().items())
            tensors.update(_optimizer_state("critic_optimizer", self.step.critic_optimizer))
        tensors["rng.default"] = torch.get_rng_state()
        tensors["rng.generator"] = self.generator.get_state()
        if self.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        if self.loss_sum is not None:
            tensors["loss_sum"] = self.loss_sum
        save_checkpoint(self.run.checkpoint_path, tensors, asdict(self.progress))
        self._last_save = time.monotonic()

    def _restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        try:
            self.model.load_state_dict(_section(tensors, "model"))
            self.structure.load_state_dict(_section(tensors, "structure"))
            self.model.modality_graphs = self.structure.graphs
            _restore_optimizer("optimizer", self.step.optimizer, tensors)
            if self.critic is not None and self.step.critic_optimizer is not None:
                self.critic.load_state_dict(_section(tensors, "critic"))
                _restore_optimizer("critic_optimizer", self.step.critic_optimizer, tensors)
            torch.set_rng_state(tensors["rng.default"])
            self.generator.set_state(tensors["rng.generator"])
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(tensors["rng.cuda"], self.device)
            self.progress = Progress(**state)
        except (KeyError, TypeError, RuntimeError) as error:
            line = str(error).splitlines()[0]
            raise InputError(
                f"{self.run.checkpoint_path}: not a checkpoint of this configuration: {line}"
            ) from error
        if "loss_sum" in tensors:
            self.loss_sum = tensors["loss_sum"].to(self.device)
        # A larger --epochs continues a run that had ended at its limit.
        self.progress.finished = (
            self.progress.validations_since_best >= self.config.training.patience
            or self.progress.epoch >= self.config.training.epochs
        )
        self.run.truncate_log(self.progress.log_size)


def _section(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = f"{name}."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _optimizer_state(name: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}.{index}.{key}": value
        for index, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
    }


def _restore_optimizer(
    name: str, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in _section(tensors, name).items():
        index, field_name = key.split(".")
        state.setdefault(int(index), {})[field_name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """Same seed, same bits: torch's scatter-adds race between threads unless told not to."""
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
