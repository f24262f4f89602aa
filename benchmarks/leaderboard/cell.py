"""One model on one data set: a study on validation, then runs from several seeds, tested once.

Everything that has finished is a record among the results. What has been interrupted is a run
directory or a study in the working folder, from which the next call continues.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import memory
from benchmarks.leaderboard import records
from benchmarks.leaderboard.data import Data
from benchmarks.leaderboard.entries import Entry
from benchmarks.leaderboard.records import Record
from benchmarks.leaderboard.score import KS, METRICS, FinalTest
from mmssl.config import Config, apply_settings
from mmssl.errors import Diverged, InputError
from mmssl.evaluation.metrics import keys
from mmssl.models.registry import model_spec
from mmssl.models.scorer import Scorer
from mmssl.training import SELECTION_METRIC
from mmssl.training.checkpoint import load_checkpoint
from mmssl.training.fit import fit_run
from mmssl.training.guards import Interrupted
from mmssl.training.run import RunDirectory

if TYPE_CHECKING:
    from mmssl.tuning.study import Study

TUNING_SEED = 2022
"""Seed of the search and of its trials; the reported runs have the seeds 1, 2, ..."""


@dataclass(frozen=True)
class Budget:
    """What each model gets."""

    trials: int
    seeds: int


class Cell:
    """An entry on a data set.

    Args:
        data: The data set.
        entry: The model.
        budget: Trials and seeds.
        out: Folder of the results.
        work: Folder of runs that have not finished.
    """

    def __init__(self, data: Data, entry: Entry, budget: Budget, out: Path, work: Path) -> None:
        self.data = data
        self.entry = entry
        self.budget = budget
        self.folder = out / data.dataset.name / entry.folder
        self.work = work / data.dataset.name / entry.folder
        self._base = out / data.dataset.name, work / data.dataset.name
        self.start = entry.start(data.dataset.name)
        self.space = entry.space(self.start)

    @property
    def trials(self) -> int:
        """Number of trials: none without a field that is searched, and for an ablation."""
        return self.budget.trials if self.space and self.entry.base is None else 0

    @property
    def seeds(self) -> range:
        """Seeds of the reported runs; one for a model in closed form."""
        return range(1, 1 + (self.budget.seeds if self.entry.is_trained else 1))

    def finished_trials(self) -> dict[int, Record]:
        """Return the records of the trials within the budget that are not out of date."""
        every = records.numbered(self.folder, "trial").items()
        return {
            number: record
            for number, record in every
            if number < self.trials
            and record["space"] == self.space
            and self._agrees(record["start"], self.start, record["epochs"])
        }

    def finished_seeds(self, config: Config) -> dict[int, Record]:
        """Return the records of the seeds that ran with this configuration."""
        every = records.numbered(self.folder, "seed").items()
        return {
            number: record
            for number, record in every
            if self._agrees(record["config"], config, record.get("epochs", 0))
        }

    def _agrees(self, recorded: dict[str, Any], config: Config, epochs: int) -> bool:
        """Whether a run of the configuration would be the recorded one, which had ``epochs``.

        The model has to read the same fields with the same values. Only the limit of epochs may
        differ, if neither limit is what ended the run.
        """
        wanted = self.entry.read_fields(config)
        section = model_spec(self.entry.model, self.entry.variant).schedule
        if section is not None and "epochs" in recorded.get(section, {}):
            limits = recorded[section]["epochs"], wanted[section]["epochs"]
            if epochs < min(limits):
                wanted[section]["epochs"] = limits[0]
        return bool(recorded == wanted)

    # ---- tuning ------------------------------------------------------------------------------

    def config(self) -> tuple[Config, dict[str, Any]] | None:
        """Return the setting with the best validation metric; None before all trials are done.

        Returns:
            The configuration without a seed, and how it was chosen.

        Raises:
            InputError: No trial is complete.
        """
        if self.entry.base is not None:
            return self._of_base()
        trials = self.finished_trials()
        if len(trials) < self.trials:
            return None
        if not trials:
            return self.start, {"trials": 0, "chosen": None, "parameters": {}}
        complete = {n: trial for n, trial in trials.items() if trial["state"] == "complete"}
        if not complete:
            raise InputError(f"{self.folder}: expected a complete trial, got none")
        best = max(complete, key=lambda n: (complete[n]["val"][SELECTION_METRIC], -n))
        parameters = complete[best]["parameters"]
        layer: dict[str, dict[str, Any]] = {}
        for name, value in parameters.items():
            section, field = name.split(".")
            layer.setdefault(section, {})[field] = value
        config = self.start.replace(layer, source=f"trial {best}")
        return config, {"trials": len(trials), "chosen": best, "parameters": parameters}

    def _of_base(self) -> tuple[Config, dict[str, Any]]:
        from benchmarks.leaderboard.entries import entries

        base = next(entry for entry in entries() if entry.label == self.entry.base)
        found = Cell(self.data, base, self.budget, self._base[0].parent, self._base[1].parent)
        config = found.config()
        if config is None:
            raise InputError(
                f"{self.entry.label}: expected {self.budget.trials} trials of {base.label} on "
                f"{self.data.dataset.name}, whose setting it changes, got "
                f"{len(found.finished_trials())}; run it first, or use --trials 0"
            )
        return apply_settings(config[0], self.entry.settings), config[1]

    def tune(self, should_stop: Callable[[], bool], say: Callable[[str], None]) -> None:
        """Run the trials that are missing.

        Raises:
            Interrupted: Requested by ``should_stop``; the trial is saved.
            InputError: The model can't be trained on the data, or trials crash in a row.
        """
        if len(self.finished_trials()) >= self.trials:
            return
        from mmssl.tuning.worker import run_trials

        study = self._study()

        def on_trial(number: int, text: str) -> None:
            say(f"trial {number}: {text}")
            self._record_trials(study)

        try:
            self._record_trials(study)  # what a killed process had not written any more
            self._take_recorded(study)
            complete = run_trials(
                study, self.data.dataset, should_stop=should_stop, on_trial=on_trial
            )
        finally:
            study.close()
        if not complete:
            raise Interrupted

    def _study(self) -> Study:
        """Open the study, or create it; one of another space, start or data is removed."""
        from mmssl.tuning.study import Study, StudySpec

        path = self.work / "study"
        start = self.start.replace({"training": {"seed": TUNING_SEED}}, source="leaderboard")
        wanted = StudySpec(
            model=self.entry.model,
            data=str(self.data.path.resolve()),
            data_hash=self.data.record["hash"],
            config=start,
            space=self.space,
            seed=TUNING_SEED,
            trials=self.trials,
        )
        if path.exists():
            try:
                found = StudySpec.read(path / "study.toml")
            except InputError:
                found = None
            same = ("model", "data_hash", "config", "space", "seed")
            if found and all(getattr(found, name) == getattr(wanted, name) for name in same):
                study = Study(path, found)
                study.set_trials(self.trials)
                study.problem = ""
                return study
            shutil.rmtree(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        return Study.create(path, wanted)

    def _take_recorded(self, study: Study) -> None:
        """End trials with their recorded result, where the study has been lost or is elsewhere."""
        from optuna.trial import TrialState

        known = self.finished_trials()
        missing = []  # claimed until all records have been taken, those of later trials too
        while trial := study.claim(lambda number, reason: None):
            record = known.get(trial.number)
            if record is not None and record["parameters"] == study.decode(trial.params):
                state = TrialState[record["state"].upper()]
                value = record["val"][SELECTION_METRIC] if state == TrialState.COMPLETE else None
                study.finish(trial, state, value, record.get("reason", ""))
                continue
            (self.folder / f"trial-{trial.number}.json").unlink(missing_ok=True)
            missing.append(trial)
            if trial.number >= max(known, default=0):
                break  # the next one is drawn when this one has finished
        for trial in missing:
            study.release(trial)

    def _record_trials(self, study: Study) -> None:
        """Write the records of finished trials that have none yet."""
        known = self.finished_trials()
        for trial in study.trials():
            if not trial.state.is_finished() or trial.number in known:
                continue
            directory = study.trial_path(trial.number)
            metrics: Record = {}
            if (directory / "metrics.json").exists():
                metrics = RunDirectory.open(directory).read_metrics() or {}
            history = metrics.get("epochs", [])
            seconds = _seconds(history) if history else trial.duration.total_seconds()
            record = {
                "kind": "trial",
                "number": trial.number,
                "state": trial.state.name.lower(),
                **({"reason": trial.user_attrs["reason"]} if "reason" in trial.user_attrs else {}),
                "parameters": study.decode(trial.params),
                "val": _shown(metrics.get("val", {})),
                "best_epoch": metrics.get("best_epoch"),
                "epochs": len(trial.intermediate_values),
                "seconds": seconds,
                "seed": TUNING_SEED,
                "space": self.space,
                "start": self.entry.read_fields(self.start),
                "data": self.data.record["hash"],
                "environment": records.machine(),
            }
            records.write(self.folder / f"trial-{trial.number}.json", record)
            with suppress(FileNotFoundError):  # the embeddings are not needed any more
                (directory / "model.safetensors").unlink()

    # ---- seeds -------------------------------------------------------------------------------

    def run_seeds(
        self,
        test: Callable[[], FinalTest],
        should_stop: Callable[[], bool],
        say: Callable[[str], None],
    ) -> None:
        """Train and test the seeds that are missing, with the chosen setting.

        Raises:
            Interrupted: Requested by ``should_stop``; the run is saved.
            InputError: The trials are not finished, or the model can't be trained on the data.
        """
        found = self.config()
        if found is None:
            raise InputError(f"{self.folder}: expected {self.trials} trials before the seeds")
        config, tuning = found
        finished = self.finished_seeds(config)
        for number in set(records.numbered(self.folder, "seed")) - set(finished):
            say(f"seed {number}: its setting is not the chosen one any more, removed")
            (self.folder / f"seed-{number}.json").unlink()
        for number, record in finished.items():
            if record["tuning"]["trials"] < tuning["trials"]:  # trials have chosen the same since
                records.write(self.folder / f"seed-{number}.json", {**record, "tuning": tuning})
        for seed in self.seeds:
            if seed in finished:
                continue
            record = self._run_seed(config, seed, test, should_stop)
            record = {
                "kind": "seed",
                "label": self.entry.label,
                "model": self.entry.model,
                "base": self.entry.base,
                "seed": seed,
                "tuning": tuning,
                **record,
                "config": self.entry.read_fields(config),
                "data": self.data.record["hash"],
                "environment": records.machine(),
            }
            records.write(self.folder / f"seed-{seed}.json", record)
            shutil.rmtree(self.work / f"seed-{seed}", ignore_errors=True)
            found = record["test"]
            outcome = f"test recall@20 {found['recall@20']:.4f}" if found else record["reason"]
            say(f"seed {seed}: {outcome}")

    def _run_seed(
        self,
        config: Config,
        seed: int,
        test: Callable[[], FinalTest],
        should_stop: Callable[[], bool],
    ) -> Record:
        dataset = self.data.dataset
        run, resume = self._open_run(seed, config)
        memory.trim()
        memory.reset_peak()
        begin = time.perf_counter()
        if should_stop():
            raise Interrupted
        try:
            metrics = fit_run(
                run,
                dataset,
                show_progress=False,
                resume=resume,
                should_stop=should_stop,
                test=False,
            )
        except Diverged as error:
            return {"state": "diverged", "reason": str(error), "test": None}
        except InputError:
            if not resume:
                raise
            shutil.rmtree(run.path)  # for example a checkpoint of another version
            return self._run_seed(config, seed, test, should_stop)
        spent, peak = time.perf_counter() - begin, memory.peak_mb()
        scorer = run.load_scorer(dataset)
        history, best = metrics["epochs"], metrics.get("best_epoch", 0)
        timing = {"seconds": spent}
        if history:
            timing = {
                "seconds": _seconds(history),
                "seconds_to_best": _seconds(history[:best]),
                "seconds_per_epoch": metrics["timing"]["seconds_per_epoch"],
                "evaluate_seconds": metrics["timing"]["evaluate_seconds"],
            }
        return {
            "state": "complete",
            "val": _shown(metrics["val"]),
            **test().score(scorer),
            "best_epoch": best,
            "epochs": len(history),
            **timing,
            "peak_mb": peak,
            "parameters": _count_parameters(run, scorer),
        }

    def _open_run(self, seed: int, config: Config) -> tuple[RunDirectory, bool]:
        """Return the run of a seed, and whether it is one to continue."""
        config = config.replace({"training": {"seed": seed}}, source="leaderboard")
        path = self.work / f"seed-{seed}"
        if (path / "config.toml").exists():
            with suppress(InputError):  # a configuration of another version
                run = RunDirectory.open(path)
                if run.config == config and run.info.data_hash == self.data.record["hash"]:
                    return run, True
        shutil.rmtree(path, ignore_errors=True)
        model, dataset = self.entry.model, self.data.dataset
        return RunDirectory.new(path, model, self.data.path, dataset, config), False


def _shown(metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics that the test split has as well."""
    return {key: metrics[key] for key in keys(METRICS, KS) if key in metrics}


def _seconds(history: list[dict[str, Any]]) -> float:
    """Return the time of epochs: steps and validation."""
    return float(sum(epoch["seconds"] + epoch["evaluate_seconds"] for epoch in history))


def _count_parameters(run: RunDirectory, scorer: Scorer) -> int:
    """Return the numbers in the trained module, or in what a model in closed form has stored."""
    if not run.checkpoint_path.exists():
        stored = scorer.tensors().values()
        return sum(tensor.numel() for tensor in stored if tensor.is_floating_point())
    tensors = load_checkpoint(run.checkpoint_path).tensors
    return sum(tensor.numel() for name, tensor in tensors.items() if name.startswith("model."))
