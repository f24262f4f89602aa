"""A study: trials chosen by Optuna, trained in worker processes, kept in one directory.

``STUDY/study.toml`` (what is searched), ``journal.log`` (Optuna's storage), ``trial-0000/`` and so
on (run directories), in the end ``best.toml`` and ``study.json``.

Only the study's own process touches the storage; workers answer through pipes. A worker that dies
therefore leaves no lock behind, and its trial is marked as failed at once. A study that dies leaves
trials "running" in the storage; a resume continues them from their checkpoints. Since the sampler's
randomness depends on the seed and the trial's number alone, a study with one worker ends with the
same trials whether it was interrupted or not.

The storage is Optuna's journal file: one appended and flushed line per event, readable as text,
safe on network file systems where SQLite's locks are not, and without SQLAlchemy at work.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tomli_w

from mmssl.config import Config, read_toml
from mmssl.errors import InputError
from mmssl.models.registry import model_spec
from mmssl.training.checkpoint import atomic_write
from mmssl.tuning.space import Space, parse_space

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial, Trial


@dataclass(frozen=True, kw_only=True)
class StudySpec:
    """Everything that determines a study besides the data; ``study.toml``."""

    model: str
    data: str
    data_hash: str
    config: Config
    space: Mapping[str, Any]
    """The search space's TOML, as it was read."""
    seed: int
    trials: int
    trackers: tuple[str, ...] = ()

    def to_toml(self) -> str:
        """As written to ``study.toml``."""
        study = {
            "model": self.model,
            "data": self.data,
            "data_hash": self.data_hash,
            "seed": self.seed,
            "trials": self.trials,
            "trackers": list(self.trackers),
        }
        content = {"study": study, "search_space": self.space, "config": self.config.to_dict()}
        return tomli_w.dumps(content)

    @classmethod
    def read(cls, path: Path) -> StudySpec:
        """Reads ``study.toml``.

        Raises:
            InputError: not a study, or one that this version can't read.
        """
        if not path.is_file():
            raise InputError(f"{path.parent}: not a study (it has no study.toml)")
        content = read_toml(path)
        try:
            study = dict(content["study"])
            return cls(
                **{**study, "trackers": tuple(study["trackers"])},
                config=Config().replace(content["config"], source=str(path)),
                space=content["search_space"],
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"{path}: not a study of this version: {error}") from error


class Study:
    """The trials of one directory, locked against a second process.

    Args:
        path: the study's directory, with its ``study.toml``.
        spec: its content.
    """

    def __init__(self, path: Path, spec: StudySpec) -> None:
        self.path = path
        self.spec = spec
        where = str(path / "study.toml")
        self.space: Space = parse_space(spec.space, spec.config, spec.model, where)
        self._distributions = self.space.distributions()
        self._lock = self._acquire()
        self.optuna = self._open_storage()

    @classmethod
    def create(cls, path: Path, spec: StudySpec) -> Study:
        """A new study.

        Raises:
            InputError: the directory exists and is not empty, or can't be written.
        """
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise InputError(
                f"{path}: exists already; continue it with --resume or choose another --out"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path}: can't make the directory: {error.strerror}") from error
        atomic_write(path / "study.toml", spec.to_toml().encode())
        return cls(path, spec)

    def close(self) -> None:
        """Releases the lock."""
        self._lock.close()

    def trial_path(self, number: int) -> Path:
        """The run directory of a trial."""
        return self.path / f"trial-{number:04d}"

    def unfinished(self) -> list[Trial]:
        """Trials that were under way when the study stopped, to be continued first."""
        import optuna

        trials = self.optuna.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING])
        return [self._revive(trial) for trial in trials]

    def retry_failed(self) -> int:
        """Queues the trials whose worker died or crashed once more; returns how many."""
        import optuna

        trials = self.optuna.get_trials(deepcopy=False)
        retried = {trial.user_attrs.get("retry_of") for trial in trials}
        failed = [
            t
            for t in trials
            if t.state == optuna.trial.TrialState.FAIL and t.number not in retried and t.params
        ]
        for trial in failed:
            self.optuna.enqueue_trial(trial.params, user_attrs={"retry_of": trial.number})
        return len(failed)

    def next_trial(self) -> Trial | None:
        """The next trial, or None once the study has as many as it shall have."""
        import optuna

        if self._used() >= self.spec.trials:
            return None
        trials = self.optuna.get_trials(deepcopy=False)
        waiting = [t.number for t in trials if t.state == optuna.trial.TrialState.WAITING]
        self.optuna.sampler = self._sampler(min(waiting, default=len(trials)))
        return self.optuna.ask(fixed_distributions=self._distributions)

    def is_complete(self) -> bool:
        """Whether the study has all its trials and none is under way."""
        return self._used() >= self.spec.trials and not self.unfinished()

    def has_no_result(self) -> bool:
        """Whether no trial has come to an end."""
        return all(not t.state.is_finished() for t in self.optuna.get_trials(deepcopy=False))

    def report(self, trial: Trial, epoch: int, value: float) -> bool:
        """Takes an epoch's validation metric; whether the trial shall end now."""
        known = self._frozen(trial).intermediate_values
        if epoch not in known:
            trial.report(value, epoch)
        return epoch >= max(known, default=0) and trial.should_prune()

    def tell(self, trial: Trial, state: str, value: float | None = None, reason: str = "") -> None:
        """Ends a trial: ``complete`` with its value, ``pruned`` or ``fail``."""
        import optuna

        if reason:
            trial.set_user_attr("reason", reason)
        self.optuna.tell(trial, value, state=optuna.trial.TrialState[state.upper()])
        # The state of the optimisers is of no use any more, and is the larger part of a run.
        shutil.rmtree(self.trial_path(trial.number) / "checkpoint", ignore_errors=True)

    def config_of(self, trial: Trial | FrozenTrial) -> Config:
        """The configuration of a trial.

        Raises:
            InputError: the configuration refuses the combination.
        """
        return self.space.apply(self.spec.config, trial.params)

    def set_trials(self, count: int) -> None:
        """Changes how many trials the study shall have."""
        self.spec = StudySpec(**{**vars(self.spec), "trials": count})
        atomic_write(self.path / "study.toml", self.spec.to_toml().encode())

    # ---- Optuna ------------------------------------------------------------------------------

    def _acquire(self) -> Any:
        lock = open(self.path / ".lock", "w")  # noqa: SIM115 - held until close()
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise InputError(f"{self.path}: another process is working on this study") from None
        return lock

    def _open_storage(self) -> optuna.Study:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        journal = self.path / "journal.log"
        # Left behind by a study that was killed; nobody else writes here, we hold the lock.
        (self.path / "journal.log.lock").unlink(missing_ok=True)
        _cut_torn_line(journal)
        try:
            study = optuna.create_study(
                study_name="mmssl",
                storage=JournalStorage(JournalFileBackend(str(journal))),
                direction="maximize",
                pruner=self._pruner(),
                load_if_exists=True,
            )
        except (ValueError, KeyError) as error:
            raise InputError(f"{journal}: not a readable journal: {error}") from error
        own = self.space.values_of(self.spec.config)
        if own is not None and not study.get_trials(deepcopy=False):
            study.enqueue_trial(own)  # so that the result is never worse than the start
        return study

    def _sampler(self, number: int) -> Any:
        """Seeded by the trial's number, so that a resumed study goes on as if never stopped."""
        from optuna.samplers import RandomSampler, TPESampler

        seed = int(np.random.SeedSequence([self.spec.seed, number]).generate_state(1)[0])
        if self.space.search.sampler == "random":
            return RandomSampler(seed=seed)
        return TPESampler(
            seed=seed, n_startup_trials=self.space.search.startup_trials, constant_liar=True
        )

    def _pruner(self) -> Any:
        from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner

        search = self.space.search
        if search.pruner == "none":
            return NopPruner()
        if search.pruner == "median":
            return MedianPruner(search.prune_after_trials, search.warmup_epochs)
        section = model_spec(self.spec.model).schedule
        assert section is not None  # only trained models are tuned
        epochs = getattr(self.spec.config, section).epochs
        return HyperbandPruner(min(search.warmup_epochs, epochs), epochs)

    def _revive(self, frozen: FrozenTrial) -> Trial:
        import optuna

        self.optuna.sampler = self._sampler(frozen.number)
        trial = optuna.Trial(self.optuna, frozen._trial_id)
        # Those that are stored are returned; a study killed in mid-draw draws the same again.
        for name, distribution in self._distributions.items():
            if name not in frozen.params:
                trial._suggest(name, distribution)
        return trial

    def _used(self) -> int:
        """Trials that count; of one that failed and was tried again, only the last."""
        import optuna

        states = optuna.trial.TrialState
        trials = self.optuna.get_trials(deepcopy=False)
        retried = {trial.user_attrs.get("retry_of") for trial in trials}
        return sum(
            trial.state != states.WAITING
            and not (trial.state == states.FAIL and trial.number in retried)
            for trial in trials
        )

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return self.optuna.get_trials(deepcopy=False)[trial.number]


def _cut_torn_line(journal: Path) -> None:
    """A line that a power failure cut short would spoil the next one that is appended to it."""
    if not journal.exists():
        return
    content = journal.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(journal, whole)
