"""MLflow: a run of the experiment in ``MLFLOW_EXPERIMENT_NAME`` (default ``mmssl``).

The store is ``MLFLOW_TRACKING_URI``, or ``sqlite:///mlflow.db`` in the working directory, where
``mlflow ui`` looks by itself. MLflow no longer writes the plain files of before (``./mlruns``).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

from mmssl.tracking.base import Status, TrackedRun

_STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
_RUN_TAG = "mmssl.run"
# One that every epoch has: which epochs a run holds is read from its steps.
_EVERY_EPOCH = "seconds"


class MlflowTracker:
    """One MLflow step per epoch; parameters are the configuration.

    MLflow keeps every value it is sent, also two of the same step. A resumed run therefore asks the
    store which epochs the run holds and sends only later ones.
    """

    def start(self, run: TrackedRun) -> int:
        """Creates the run, or finds it again by its tag."""
        # Else a server that is down would hold up training for minutes, by MLflow's defaults.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        for name in ("alembic", "mlflow.store.db.utils"):  # they announce every table they make
            logging.getLogger(name).setLevel(logging.WARNING)
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param, RunTag

        self._metric = Metric
        store = run.memory.get("store") or os.environ.get("MLFLOW_TRACKING_URI")
        run.memory["store"] = store or f"sqlite:///{Path('mlflow.db').resolve()}"
        self._client = MlflowClient(tracking_uri=run.memory["store"])
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "mmssl")
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else None
        if experiment_id is None:
            experiment_id = self._client.create_experiment(name)
        found = self._client.search_runs([experiment_id], f"tags.`{_RUN_TAG}` = '{run.id}'")
        if found:
            self._id: str = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            created = self._client.create_run(
                experiment_id, tags={_RUN_TAG: run.id}, run_name=run.path.name
            )
            self._id = created.info.run_id
            self._client.log_batch(
                self._id,
                params=[Param(key, str(value)) for key, value in run.config.items()],
                tags=[RunTag("mmssl.directory", str(run.path.resolve()))],
            )
        steps = [m.step for m in self._client.get_metric_history(self._id, _EVERY_EPOCH)]
        self._epoch = run.epoch
        return max(steps, default=0)

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """One request for all values of the epoch."""
        self._send(epoch, values)
        self._epoch = epoch

    def finish(self, status: Status, metrics: Mapping[str, float]) -> None:
        """Final metrics at the step of the last epoch, unless the run has them already."""
        if metrics:
            known = self._client.get_metric_history(self._id, _key("best_epoch"))
            if not any(metric.step == self._epoch for metric in known):
                self._send(self._epoch, metrics)
        self._client.set_terminated(self._id, status=_STATUS[status])

    def _send(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(_key(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)


def _key(name: str) -> str:
    """MLflow takes no ``@``: ``val/recall@20`` is ``val/recall_at_20`` there."""
    return name.replace("@", "_at_")
