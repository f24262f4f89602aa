"""The training loop of every model: epochs, validation, early stopping, checkpoints, final test."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmssl.data.dataset import InteractionDataset
from mmssl.distributed.group import SINGLE, Group
from mmssl.errors import Diverged, InputError
from mmssl.evaluation.evaluator import Evaluator
from mmssl.models.embeddings import stored_embeddings
from mmssl.models.registry import ModelSpec, model_spec
from mmssl.models.scorer import Scorer
from mmssl.training import SELECTION_METRIC
from mmssl.training.guards import Interrupted, LossMeter, check_finite, deterministic
from mmssl.training.recorded import CUDARecorder, RecordedSteps
from mmssl.training.run import RunDirectory
from mmssl.training.state import prefixed, section
from mmssl.training.task import Task

# A checkpoint is written after every epoch, and within an epoch once this much time has passed.
_CHECKPOINT_SECONDS = 600.0


@dataclass
class Progress:
    """The state of the loop, in values that JSON can hold."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the current epoch
    best_epoch: int = 0  # counted from 1
    best: float = -1.0
    validations_since_best: int = 0
    finished: bool = False
    epoch_seconds: float = 0.0  # spent in the steps of the current epoch
    loss_sums: dict[str, float] = field(default_factory=dict)  # over these steps
    log_size: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """Trains a task and writes its artifacts to a run directory.

    Args:
        task: The model in training, see :func:`mmssl.training.task.create_task`.
        dataset: The data; validation selects the epoch, test is read once, at the end.
        run: The run directory; it must exist before :meth:`fit`.
        show_progress: Draw a progress bar on stderr and print a line per epoch.
        should_stop: Polled between steps; once it returns True, :meth:`fit` saves and raises
            :class:`Interrupted`.
        on_epoch: Called with the epoch's record once its checkpoint is on disk; an exception that
            it raises ends :meth:`fit`.
        group: The processes that train the task together.
    """

    def __init__(
        self,
        task: Task,
        dataset: InteractionDataset,
        run: RunDirectory,
        *,
        show_progress: bool = True,
        should_stop: Callable[[], bool] = lambda: False,
        on_epoch: Callable[[dict[str, Any]], None] = lambda record: None,
        group: Group = SINGLE,
    ) -> None:
        self.task = task
        self.group = group
        self.dataset = dataset
        self.run = run
        self.store = task.store(run)
        self.show_progress = show_progress
        self.should_stop = should_stop
        self.on_epoch = on_epoch
        self.progress = Progress()
        self.losses = LossMeter(task.terms, task.device)
        self.recorded: RecordedSteps | None = None  # None: every step starts its kernels itself
        self.best: dict[str, Tensor] = {}  # content of model.safetensors
        self._last_save = time.monotonic()
        self._saved: tuple[int, int] | None = None  # epoch and step of the newest checkpoint

    def fit(self, *, test: bool = True) -> dict[str, Any]:
        """Train to the end, test the best epoch once, write and return the metrics.

        Args:
            test: False leaves the test split unread and the metrics without it.

        Raises:
            Interrupted: Requested by ``should_stop``; the state is saved.
            Diverged: A loss, a gradient's norm, a parameter or an embedding is NaN or Inf; the
                newest checkpoint is from before that.
            InputError: A file can't be written; the newest checkpoint is unchanged.
        """
        validation = self.task.evaluator(self.dataset, "val")
        scores: dict[str, Any] = {}
        with deterministic(self.task.device, self.run.config.training.deterministic):
            try:
                self._record_steps()
                if self.task.epochs == 0:
                    scorer = self._embed()
                    self._keep_best(scorer)
                    scores["val"] = validation.evaluate(scorer)
                while self.progress.epoch < self.task.epochs and not self.progress.finished:
                    self._train_epoch()
                    self._finish_epoch(validation)
            except Diverged as error:
                raise Diverged(self._diverged(error)) from None
        if self.progress.history:
            scores["val"] = self._finish(validation)
        if test:
            scores["test"] = self._test()
        return self._write_metrics(scores)

    def resume(self) -> bool:
        """Continue from the run's newest checkpoint; return False if no checkpoint exists yet.

        A damaged checkpoint is set aside, with a warning, in favor of the one before it: the steps
        in between are computed again, to the same bits.

        Raises:
            InputError: No checkpoint is whole, or they belong to another configuration.
        """
        newest = self.store.recover_newest()
        if newest is None:
            self.run.truncate_log(0)
            return False
        path, checkpoint = newest
        self._restore(checkpoint.tensors, checkpoint.state, path)
        done = self.progress.epoch
        if self.show_progress and (self.progress.finished or done >= self.task.epochs):
            why = f"epochs = {self.task.epochs}" if done >= self.task.epochs else "stopped early"
            print(f"nothing is left to train after {done} epochs: {why}", file=sys.stderr)
        return True

    # ---- the loop ----------------------------------------------------------------------------

    def _train_epoch(self) -> None:
        task, progress = self.task, self.progress
        self.losses.start(progress.epoch + 1, progress.step, progress.loss_sums)
        # A checkpoint without a step of the epoch must not hold the random numbers of its start.
        self._save_if_needed()
        start = time.perf_counter()
        task.start_epoch(progress.epoch, progress.step)
        progress.epoch_seconds += time.perf_counter() - start
        with self._bar() as bar:
            while progress.step < task.steps_per_epoch:
                start = time.perf_counter()
                self.losses.add(self._step(progress.step))
                progress.step += 1
                progress.epoch_seconds += time.perf_counter() - start
                if bar is not None:
                    bar.update()
                if progress.step < task.steps_per_epoch:  # after the last one it is saved anyway
                    self._save_if_needed(self._is_time_to_save())

    def _record_steps(self) -> None:
        """Run steps as CUDA graphs from now on, where that is possible and wanted."""
        task, wanted = self.task, self.run.config.training.capture == "auto"
        if task.device.type != "cuda" or task.epochs == 0 or not wanted:
            return
        if not task.unrecorded:
            recorder = CUDARecorder(task.device, task.generators)
            self.recorded = RecordedSteps(recorder, task.optimizers, task.device)
        elif self.show_progress:
            print(f"steps are not recorded as CUDA graphs: {task.unrecorded}", file=sys.stderr)

    def _step(self, number: int) -> Tensor:
        """Run a step; return its loss terms (K,)."""
        if self.recorded is None:
            return self.task.step(number)
        return self.recorded(self.task.plan(number))

    def _save_if_needed(self, due: bool = False) -> None:
        """Save if it is due, and save and stop if that is requested, in any process."""
        due, stop = self.group.any(due, self.should_stop())
        if due or stop:
            self._save()
        if stop:
            raise Interrupted

    def _bar(self) -> AbstractContextManager[Any]:
        if not self.show_progress:
            return nullcontext()
        from tqdm import tqdm

        bar: AbstractContextManager[Any] = tqdm(
            total=self.task.steps_per_epoch,
            initial=self.progress.step,
            desc=f"epoch {self.progress.epoch + 1:3d}",
            disable=None,  # only on a terminal
            leave=False,
            unit="step",
        )
        return bar

    def _is_time_to_save(self) -> bool:
        """Whether to save within an epoch."""
        interval = self.run.config.training.checkpoint_interval
        due = interval > 0 and self.progress.step % interval == 0
        return due or time.monotonic() - self._last_save > _CHECKPOINT_SECONDS

    def _finish_epoch(self, validation: Evaluator) -> None:
        task, progress = self.task, self.progress
        sums = self.losses.look()
        terms = {name: total / task.steps_per_epoch for name, total in sums.items()}
        self._check(task.state())
        norms = {name: terms.pop(name) for name in list(terms) if name.endswith("grad_norm")}
        start = time.perf_counter()
        scorer = self._embed()
        metrics = validation.evaluate(scorer)
        record = {
            "epoch": progress.epoch + 1,
            "loss": terms,
            **({"grad_norm": norms} if norms else {}),
            "val": metrics,
            "lr": task.learning_rate,
            "seconds": progress.epoch_seconds,
            "evaluate_seconds": time.perf_counter() - start,
        }
        progress.history.append(record)
        progress.log_size = self.run.log("epoch", **record)
        improved = metrics[SELECTION_METRIC] > progress.best
        if improved:
            progress.best, progress.best_epoch = metrics[SELECTION_METRIC], progress.epoch + 1
            progress.validations_since_best = 0
            self._keep_best(scorer)
        else:
            progress.validations_since_best += 1
        if self.show_progress:
            self._show(record, improved)
        progress.epoch += 1
        progress.step, progress.epoch_seconds, progress.loss_sums = 0, 0.0, {}
        self.losses.start(progress.epoch + 1)
        progress.finished = self._is_finished()
        self._save()
        self.on_epoch(record)

    def _is_finished(self) -> bool:
        progress, task = self.progress, self.task
        return progress.validations_since_best >= task.patience or progress.epoch >= task.epochs

    def _embed(self) -> Scorer:
        scorer = self.task.embed()
        self._check(scorer.tensors())
        return scorer

    def _show(self, record: dict[str, Any], improved: bool) -> None:
        from tqdm import tqdm

        loss = sum(record["loss"][name] for name in self.task.objective)
        metrics = record["val"]
        tqdm.write(
            f"epoch {record['epoch']:3d}  loss {loss:8.4f}  "
            f"val recall@20 {metrics['recall@20']:.4f}  ndcg@20 {metrics['ndcg@20']:.4f}  "
            f"{record['seconds']:6.1f} s{'  *' if improved else ''}"
        )

    # ---- results -----------------------------------------------------------------------------

    def _finish(self, validation: Evaluator) -> dict[str, float]:
        """Store the final scorer of the task; return its validation metrics."""
        # Only models in closed form, which have no epochs, have other scorers than embeddings.
        best = stored_embeddings(self.best, self.run.path).to(self.task.device)
        final = self.task.finish(best)
        if final is best:
            metrics: dict[str, float] = self.progress.history[self.progress.best_epoch - 1]["val"]
            return metrics
        self._check(final.tensors())
        self.store.save_model({**self.best, **final.tensors()})
        return validation.evaluate(final)

    def _test(self) -> dict[str, float]:
        """Evaluate what is on disk; the only place that reads the test split."""
        self.group.wait()  # until it is written
        scorer = self.store.load_scorer(self.dataset).to(self.task.device)
        return self.task.evaluator(self.dataset, "test").evaluate(scorer)

    def _write_metrics(self, scores: dict[str, Any]) -> dict[str, Any]:
        config, info, history = self.run.config, self.run.info, self.progress.history
        metrics: dict[str, Any] = {
            "model": info.model,
            **({"variant": config.variant} if self._spec.variants else {}),
            "seed": config.training.seed,
            "data": info.data_record(self.dataset.name),
            **({"best_epoch": self.progress.best_epoch} if history else {}),
            **({"selected": dict(self.task.selected)} if self.task.selected else {}),
            **scores,
            "epochs": history,
        }
        if history:
            seconds = [epoch["seconds"] for epoch in history]
            metrics["timing"] = {
                "seconds_per_step": statistics.median(seconds) / self.task.steps_per_epoch,
                "steps_per_epoch": self.task.steps_per_epoch,
                "seconds_per_epoch": statistics.median(seconds),
                "train_seconds": sum(seconds),
                "evaluate_seconds": statistics.median(e["evaluate_seconds"] for e in history),
            }
        self.run.write_metrics(metrics)
        return metrics

    @property
    def _spec(self) -> ModelSpec:
        return model_spec(self.run.info.model, self.run.config.variant)

    # ---- state -------------------------------------------------------------------------------

    def _keep_best(self, scorer: Scorer) -> None:
        best = {**scorer.tensors(), **prefixed("parameter", self.task.parameters())}
        self.best = {name: tensor.clone() for name, tensor in best.items()}
        self.store.save_model(self.best)

    def _check(self, tensors: dict[str, Tensor]) -> None:
        check_finite(tensors, f"in epoch {self.progress.epoch + 1}, step {self.progress.step}")

    def _save(self) -> None:
        """Write everything that the next step depends on, unless a number in it is not finite."""
        progress = self.progress
        progress.loss_sums = self.losses.look() if progress.step else {}
        tensors = self.task.state()
        self._check(tensors)
        tensors.update(prefixed("best", self.best))
        tensors["rng.default"] = torch.get_rng_state()
        if self.task.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.task.device)
        self.store.save_state(tensors, asdict(progress))
        self._last_save = time.monotonic()
        self._saved = progress.epoch, progress.step

    def _restore(self, tensors: dict[str, Tensor], state: dict[str, Any], path: Path) -> None:
        known = {item.name for item in fields(Progress)}
        if set(state) != known:
            raise InputError(
                f"{path}: expected a checkpoint of this version of the package, got one of another "
                "version; train this model in a new run directory"
            )
        try:
            self.task.load_state(tensors)
            torch.set_rng_state(tensors["rng.default"])
            if self.task.device.type == "cuda":
                torch.cuda.set_rng_state(tensors["rng.cuda"], self.task.device)
            self.progress = Progress(**state)
            # A larger number of epochs continues a run that had ended at its limit.
            self.progress.finished = self._is_finished()
            self.best = section(tensors, "best")
            if self.best:
                self.store.save_model(
                    self.best
                )  # the file may be of a later epoch than the checkpoint
        except (KeyError, TypeError, RuntimeError) as error:
            line = str(error).splitlines()[0]
            raise InputError(f"{path}: not a checkpoint of this configuration: {line}") from error
        progress = self.progress
        self._saved = progress.epoch, progress.step
        self.run.truncate_log(progress.log_size, progress.history)

    def _diverged(self, error: Diverged) -> str:
        """Say in one line what happened where, which checkpoint is left, and what to try."""
        name = self._spec.schedule
        if name is None:
            return str(error)
        kept = "no checkpoint was written yet, start again"
        if self._saved is not None:
            epochs, steps = self._saved
            kept = f"the checkpoint after {epochs} epochs and {steps} steps is intact, continue it"
        settings = getattr(self.run.config, name)
        remedy = f"a smaller learning rate (--set {name}.lr={settings.lr / 4:.2g})"
        if hasattr(settings, "clip_norm"):
            remedy += f" or a limit on the gradient (--set {name}.clip_norm=1)"
        return f"training diverged: {error}; {kept} with {remedy}"
