"""The loop around the step: epochs, validation, early stopping, checkpoints, the final test."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mmssl.config import Config
from mmssl.data.dataset import InteractionDataset
from mmssl.errors import Diverged, InputError
from mmssl.evaluation.evaluator import Evaluator
from mmssl.graph import InteractionGraph
from mmssl.losses import LossTerms
from mmssl.models.critic import Critic
from mmssl.models.mmssl import MMSSL
from mmssl.models.structure import structure_learner
from mmssl.training.checkpoint import recover_newest
from mmssl.training.guards import Interrupted, LossMeter, check_finite, deterministic
from mmssl.training.run import RunDirectory
from mmssl.training.state import optimizer_state, prefixed, restore_optimizer, section
from mmssl.training.step import TrainingStep

SELECTION_METRIC = "recall@20"

# A checkpoint is written after every epoch, and inside one that lasts longer than this.
_CHECKPOINT_SECONDS = 600.0


__all__ = ["SELECTION_METRIC", "Interrupted", "Progress", "Trainer"]


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
    loss_sums: dict[str, float] = field(default_factory=dict)  # of those steps
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
        self.losses = LossMeter(self.step.loss_names(), self.device)
        self.best: dict[str, Tensor] = {}  # what model.safetensors holds
        self._last_save = time.monotonic()
        self._saved: tuple[int, int] | None = None  # epoch and step of the newest checkpoint

    def fit(self, *, test: bool = True) -> dict[str, Any]:
        """Trains to the end, tests the best epoch once, writes and returns the metrics.

        Args:
            test: False leaves the test split unread and the metrics without it.

        Raises:
            Interrupted: on request, with the state saved.
            Diverged: a loss, a gradient's norm or a parameter is no longer finite; the newest
                checkpoint is from before that.
            InputError: a file can't be written; the newest checkpoint is as it was.
        """
        validation = Evaluator(self.dataset, "val", self.model.graph)
        with deterministic(self.device, self.config.training.deterministic):
            try:
                while not self.progress.finished:
                    self._train_epoch()
                    self._finish_epoch(validation)
            except Diverged as error:
                raise Diverged(self._diverged(error)) from None
        return self._finish_run(test)

    def resume(self) -> bool:
        """Continues from the run's newest checkpoint; False if there is none yet.

        A damaged one is set aside, with a warning, for the one before it: the steps between
        them are computed again, to the same bits.

        Raises:
            InputError: no checkpoint is whole, or they are of another configuration.
        """
        newest = recover_newest(self.run.checkpoint_path)
        if newest is None:
            self.run.truncate_log(0)
            return False
        path, checkpoint = newest
        self._restore(checkpoint.tensors, checkpoint.state, path)
        return True

    def _train_epoch(self) -> None:
        training = self.config.training
        progress = self.progress
        for group in self.step.optimizer.param_groups:
            group["lr"] = training.lr * training.lr_decay ** (progress.epoch / 50)
        self.losses.start(progress.epoch + 1, progress.step, progress.loss_sums)
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
                if self.should_stop():
                    self._save()
                    raise Interrupted
                start = time.perf_counter()
                losses = self.step(self.step.draw(), progress.step)
                self.losses.add(losses.to_vector())
                progress.step += 1
                progress.epoch_seconds += time.perf_counter() - start
                bar.update()
                if self._is_time_to_save():
                    self._save()

    def _is_time_to_save(self) -> bool:
        """Inside an epoch; its last step is followed by a checkpoint anyway."""
        step, interval = self.progress.step, self.config.training.checkpoint_interval
        if step == self.steps_per_epoch:
            return False
        due = interval > 0 and step % interval == 0
        return due or time.monotonic() - self._last_save > _CHECKPOINT_SECONDS

    def _finish_epoch(self, validation: Evaluator) -> None:
        progress = self.progress
        terms = {name: total / self.steps_per_epoch for name, total in self.losses.look().items()}
        self._check(self._parameters())
        norms = {name: terms.pop(name) for name in list(terms) if name.endswith("grad_norm")}
        start = time.perf_counter()
        user, item = self._embed()
        metrics = validation.evaluate(user, item)
        record = {
            "epoch": progress.epoch + 1,
            "loss": terms,
            **({"grad_norm": norms} if norms else {}),
            "val": metrics,
            "lr": self.step.optimizer.param_groups[0]["lr"],
            "seconds": progress.epoch_seconds,
            "evaluate_seconds": time.perf_counter() - start,
        }
        progress.history.append(record)
        progress.log_size = self.run.log("epoch", **record)
        improved = metrics[SELECTION_METRIC] > progress.best
        if improved:
            progress.best, progress.best_epoch = metrics[SELECTION_METRIC], progress.epoch + 1
            progress.validations_since_best = 0
            self._keep_best(user, item)
            self._save_best()
        else:
            progress.validations_since_best += 1
        if self.show_progress:
            loss = sum(terms[name] for name in LossTerms._fields)
            tqdm.write(
                f"epoch {progress.epoch + 1:3d}  loss {loss:8.4f}  "
                f"val recall@20 {metrics['recall@20']:.4f}  ndcg@20 {metrics['ndcg@20']:.4f}  "
                f"{progress.epoch_seconds:6.1f} s{'  *' if improved else ''}"
            )
        progress.epoch += 1
        progress.step, progress.epoch_seconds, progress.loss_sums = 0, 0.0, {}
        self.losses.start(progress.epoch + 1)
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
            "data": self.run.info.data_record(self.dataset.name),
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

    def _keep_best(self, user: Tensor, item: Tensor) -> None:
        self.best = {"embedding.user": user, "embedding.item": item}
        self.best.update(prefixed("parameter", self.model.state_dict()))
        self.best = {name: tensor.clone() for name, tensor in self.best.items()}

    def _save_best(self) -> None:
        parameters = section(self.best, "parameter")
        self.run.save_model(self.best["embedding.user"], self.best["embedding.item"], parameters)

    def _parameters(self) -> dict[str, Tensor]:
        """What training changes, besides the RNG."""
        tensors = prefixed("model", self.model.state_dict())
        tensors.update(prefixed("structure", self.structure.state_dict()))
        tensors.update(optimizer_state("optimizer", self.step.optimizer))
        if self.critic is not None and self.step.critic_optimizer is not None:
            tensors.update(prefixed("critic", self.critic.state_dict()))
            tensors.update(optimizer_state("critic_optimizer", self.step.critic_optimizer))
        return tensors

    def _check(self, tensors: dict[str, Tensor]) -> None:
        check_finite(tensors, f"in epoch {self.progress.epoch + 1}, step {self.progress.step}")

    def _save(self) -> None:
        """Everything that the next step depends on, unless a part of it is not finite."""
        progress = self.progress
        progress.loss_sums = self.losses.look() if progress.step else {}
        tensors = self._parameters()
        self._check(tensors)
        tensors.update(prefixed("best", self.best))
        tensors["rng.default"] = torch.get_rng_state()
        tensors["rng.generator"] = self.generator.get_state()
        if self.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        self.run.save_state(tensors, asdict(progress))
        self._last_save = time.monotonic()
        self._saved = progress.epoch, progress.step

    def _restore(self, tensors: dict[str, Tensor], state: dict[str, Any], path: Path) -> None:
        try:
            self.model.load_state_dict(section(tensors, "model"))
            self.structure.load_state_dict(section(tensors, "structure"))
            self.model.modality_graphs = self.structure.graphs
            restore_optimizer("optimizer", self.step.optimizer, tensors)
            if self.critic is not None and self.step.critic_optimizer is not None:
                self.critic.load_state_dict(section(tensors, "critic"))
                restore_optimizer("critic_optimizer", self.step.critic_optimizer, tensors)
            torch.set_rng_state(tensors["rng.default"])
            self.generator.set_state(tensors["rng.generator"])
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(tensors["rng.cuda"], self.device)
            self.progress = Progress(**state)
            self.best = section(tensors, "best")
            if self.best:
                self._save_best()  # the file may be of a later epoch than the checkpoint
        except (KeyError, TypeError, RuntimeError) as error:
            line = str(error).splitlines()[0]
            raise InputError(f"{path}: not a checkpoint of this configuration: {line}") from error
        progress = self.progress
        self._saved = progress.epoch, progress.step
        # A larger --epochs continues a run that had ended at its limit.
        progress.finished = (
            progress.validations_since_best >= self.config.training.patience
            or progress.epoch >= self.config.training.epochs
        )
        self.run.truncate_log(progress.log_size, progress.history)

    def _diverged(self, error: Diverged) -> str:
        """One line: what, where, what is left, what to do."""
        kept = "no checkpoint was written yet, start anew"
        if self._saved is not None:
            epochs, steps = self._saved
            kept = f"the checkpoint after {epochs} epochs and {steps} steps is intact, continue it"
        smaller = f"--set training.lr={self.config.training.lr / 4:.2g}"
        return (
            f"training diverged: {error}; {kept} with a smaller learning "
            f"rate ({smaller}) or a limit on the gradient (--set training.clip_norm=1)"
        )
