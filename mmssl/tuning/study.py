"""A study: trials chosen by Optuna and kept in one directory, on which several processes can work.

``STUDY/study.toml`` (what is searched), ``journal.log`` (Optuna's storage), ``trial-0000/`` and so
on (run directories), in the end ``best.toml`` and ``study.json``.

Every process opens the storage; a trial belongs to the process that holds the lock in its run
directory. A trial that is running in the storage but whose lock is free was left by a process that
was stopped or killed; the next process that needs a trial continues it from its checkpoint. Trials
are claimed one process at a time, and the sampler's seed depends on the seed of the study and the
trial's number alone. A study with one process therefore ends with the same trials whether or not
it was interrupted.

The storage is Optuna's journal file: one appended and flushed line per event, readable as text.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import optuna
import tomli_w
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from mmssl.config import Config, read_toml
from mmssl.errors import InputError
from mmssl.files import atomic_write
from mmssl.locks import DirectoryLock, FileLock
from mmssl.models.registry import model_spec
from mmssl.training.run import check_new
from mmssl.tuning.journal import JournalLock
from mmssl.tuning.space import Space, parse_space

_NAME = "mmssl"
# A trial whose process dies this often without finishing another epoch is marked as failed.
_MAX_DEATHS = 3


@dataclass(frozen=True, kw_only=True)
class StudySpec:
    """Everything that determines a study, apart from the data; ``study.toml``."""

    model: str
    data: str
    data_hash: str
    config: Config
    space: dict[str, Any]
    """Content of the search space's TOML file."""
    seed: int
    trials: int
    trackers: tuple[str, ...] = ()

    def to_toml(self) -> str:
        """Return the content of ``study.toml``."""
        study = {**vars(self), "trackers": list(self.trackers)}
        config, space = study.pop("config"), study.pop("space")
        return tomli_w.dumps({"study": study, "search_space": space, "config": config.to_dict()})

    @classmethod
    def read(cls, path: Path) -> StudySpec:
        """Read ``study.toml``.

        Raises:
            InputError: The file does not exist or does not describe a study of this version.
        """
        if not path.is_file():
            raise InputError(f"{path.parent}: not a study (it has no study.toml)")
        content = read_toml(path)
        try:
            config = Config().replace(content["config"], source=str(path))
            fields = {**content["study"], "config": config, "space": content["search_space"]}
            return msgspec.convert(fields, cls)
        except (AttributeError, KeyError, TypeError, msgspec.ValidationError) as error:
            raise InputError(f"{path}: not a study of this version: {error}") from error


class Study:
    """The trials of one directory.

    Args:
        path: The study's directory, with its ``study.toml``.
        spec: Content of ``study.toml``.
        join: Work next to the process that owns the study. Only the owner changes the study and
            writes its result; a second owner is refused.
    """

    def __init__(self, path: Path, spec: StudySpec, *, join: bool = False) -> None:
        self.path = path
        self.spec = spec
        where = str(path / "study.toml")
        self.space: Space = parse_space(spec.space, spec.config, spec.model, where)
        self._distributions = self.space.distributions()
        self._owner = DirectoryLock(
            path, "is working on this study", "join it by --join", required=True
        )
        self._claiming = FileLock(path / ".claim.lock")
        self._trial_locks: dict[int, DirectoryLock] = {}
        if not join:
            self._owner.take()
        self._open_storage()

    @classmethod
    def create(cls, path: Path, spec: StudySpec) -> Study:
        """Create a study.

        Raises:
            InputError: The directory is not empty or cannot be written.
        """
        check_new(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path}: can't make the directory: {error.strerror}") from error
        atomic_write(path / "study.toml", spec.to_toml().encode())
        return cls(path, spec)

    def close(self) -> None:
        """Release all locks."""
        for lock in (self._owner, *self._trial_locks.values()):
            lock.release()

    def trial_path(self, number: int) -> Path:
        """Return the run directory of a trial."""
        return self.path / f"trial-{number:04d}"

    def trial_lock(self, trial: Trial) -> DirectoryLock:
        """Return the lock of a claimed trial's run directory, which this process holds."""
        return self._trial_locks[trial.number]

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials in one of the states, or all of them."""
        return self.optuna.get_trials(deepcopy=False, states=states or None)

    def claim(self, on_ended: Callable[[int, str], None]) -> Trial | None:
        """Claim a trial for this process.

        Args:
            on_ended: Called with the number of every trial that cannot be trained, and the reason.

        Returns:
            A trial that no process is training, or a new one; None if the study has all its trials.
        """
        with self._claiming:
            for frozen in self.trials(TrialState.RUNNING):
                if self._lock(frozen.number):
                    trial = self._reopen(frozen)
                    reason = self._why_not(trial)
                    if not reason:
                        return trial
                    on_ended(trial.number, reason)
            while self._used() < self.spec.trials:
                waiting = [trial.number for trial in self.trials(TrialState.WAITING)]
                number = min(waiting, default=len(self.trials()))
                self.optuna.sampler = self._sampler(number)
                trial = self.optuna.ask(fixed_distributions=self._distributions)
                self._lock(trial.number)
                reason = self._why_not(trial)
                if not reason:
                    return trial
                on_ended(trial.number, reason)
            return None

    def release(self, trial: Trial) -> None:
        """Give a claimed trial back, to be continued by whichever process claims it next."""
        trial.set_user_attr("starts", trial.user_attrs["starts"][:-1])
        self._trial_locks.pop(trial.number).release()

    def report(self, trial: Trial, epoch: int, value: float) -> bool:
        """Store an epoch's validation metric and return whether the trial should be pruned."""
        known = self.trials()[trial.number].intermediate_values
        if epoch not in known:
            trial.report(value, epoch)
        return epoch >= max(known, default=0) and trial.should_prune()

    def finish(
        self, trial: Trial, state: TrialState, value: float | None = None, reason: str = ""
    ) -> None:
        """End a claimed trial."""
        with self._claiming:
            self._finish(trial, state, value, reason)

    def config_of(self, trial: Trial) -> Config:
        """Return the configuration of a trial.

        Raises:
            InputError: The configuration refuses the combination.
        """
        return self.space.apply(self.spec.config, trial.params)

    def decode(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration's values for Optuna's."""
        return {name: self.space.parameters[name].decode(v) for name, v in parameters.items()}

    def is_complete(self) -> bool:
        """Return whether the study has all its trials and none of them is running."""
        return self._used() >= self.spec.trials and not self.trials(TrialState.RUNNING)

    def has_no_result(self) -> bool:
        """Return whether no trial has finished."""
        return all(not trial.state.is_finished() for trial in self.trials())

    def retry_failed(self) -> None:
        """Enqueue every failed trial once more."""
        trials = self.trials()
        retried = {trial.user_attrs.get("retry_of") for trial in trials}
        for trial in trials:
            if trial.state == TrialState.FAIL and trial.number not in retried and trial.params:
                self.optuna.enqueue_trial(trial.params, user_attrs={"retry_of": trial.number})

    def set_trials(self, count: int) -> None:
        """Change the number of trials."""
        self.spec = replace(self.spec, trials=count)
        atomic_write(self.path / "study.toml", self.spec.to_toml().encode())

    @property
    def problem(self) -> str:
        """What ended the study in one of its processes, in one line; empty if nothing did."""
        return str(self.optuna.user_attrs.get("problem", ""))

    @problem.setter
    def problem(self, text: str) -> None:
        if text != self.problem:
            self.optuna.set_user_attr("problem", text)

    # ---- Optuna ------------------------------------------------------------------------------

    def _open_storage(self) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        journal = self.path / "journal.log"
        try:
            self._storage = JournalStorage(JournalFileBackend(str(journal), JournalLock(journal)))
            with self._claiming:
                self.optuna = optuna.create_study(
                    study_name=_NAME,
                    storage=self._storage,
                    direction="maximize",
                    pruner=self._pruner(),
                    load_if_exists=True,
                )
                start = self.space.values_of(self.spec.config)
                if start is not None and not self.trials():
                    self.optuna.enqueue_trial(start)  # the result is never worse than the start
        except (ValueError, KeyError) as error:
            self.close()
            raise InputError(f"{journal}: not a readable journal: {error}") from error

    def _sampler(self, number: int) -> BaseSampler:
        """Return a sampler seeded by the trial's number, the same before and after a resume."""
        seed = int(np.random.SeedSequence([self.spec.seed, number]).generate_state(1)[0])
        search = self.space.search
        if search.sampler == "random":
            return RandomSampler(seed=seed)
        return TPESampler(seed=seed, n_startup_trials=search.startup_trials, constant_liar=True)

    def _pruner(self) -> BasePruner:
        search = self.space.search
        if search.pruner == "none":
            return NopPruner()
        if search.pruner == "median":
            return MedianPruner(search.prune_after_trials, search.warmup_epochs)
        section = model_spec(self.spec.model, self.spec.config.variant).schedule
        if section is None:
            return NopPruner()  # a model in closed form has no epochs
        epochs = getattr(self.spec.config, section).epochs
        return HyperbandPruner(min(search.warmup_epochs, epochs), epochs)

    def _reopen(self, frozen: FrozenTrial) -> Trial:
        self.optuna.sampler = self._sampler(frozen.number)
        study = self._storage.get_study_id_from_name(_NAME)
        identifier = self._storage.get_trial_id_from_study_id_trial_number(study, frozen.number)
        trial = Trial(self.optuna, identifier)
        # Stored values are returned; the sampler draws the others as it would have drawn them.
        for name, kind in self._distributions.items():
            if isinstance(kind, IntDistribution):
                trial.suggest_int(name, kind.low, kind.high, step=kind.step, log=kind.log)
            elif isinstance(kind, FloatDistribution):
                trial.suggest_float(name, kind.low, kind.high, step=kind.step, log=kind.log)
            elif isinstance(kind, CategoricalDistribution):
                trial.suggest_categorical(name, kind.choices)
        return trial

    def _lock(self, number: int) -> bool:
        if number in self._trial_locks:
            return False
        lock = DirectoryLock(self.trial_path(number), required=True)
        if not lock.acquire():
            return False
        self._trial_locks[number] = lock
        return True

    def _why_not(self, trial: Trial) -> str:
        """Record a start of a claimed trial, or end the trial and return the reason."""
        starts = trial.user_attrs.get("starts", [])
        epochs = len(self.trials()[trial.number].intermediate_values)
        if starts.count(epochs) >= _MAX_DEATHS:
            reason = f"its process died {_MAX_DEATHS} times after epoch {epochs}"
            self._finish(trial, TrialState.FAIL, None, reason)
            return f"failed: {reason}"
        try:
            self.config_of(trial)
        except InputError as error:
            self._finish(trial, TrialState.PRUNED, None, str(error))
            return f"not possible: {error}"
        trial.set_user_attr("starts", [*starts, epochs])
        return ""

    def _finish(self, trial: Trial, state: TrialState, value: float | None, reason: str) -> None:
        if reason:
            trial.set_user_attr("reason", reason)
        self.optuna.tell(trial, value, state=state)
        # The optimizer's state is not needed any more, and is the larger part of a run.
        directory = self.trial_path(trial.number)
        shutil.rmtree(directory / "checkpoint", ignore_errors=True)
        self._trial_locks.pop(trial.number).release()
        with suppress(OSError):  # not empty, unless it was never trained
            directory.rmdir()

    def _used(self) -> int:
        """Return the number of trials that count; a failed trial that was retried does not."""
        trials = self.trials()
        retried = {trial.user_attrs.get("retry_of") for trial in trials}
        return sum(
            trial.state != TrialState.WAITING
            and not (trial.state == TrialState.FAIL and trial.number in retried)
            for trial in trials
        )
