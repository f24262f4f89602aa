"""MLflow tracker: a run of the experiment ``MLFLOW_EXPERIMENT_NAME`` (default ``mmssl``).

The store is ``MLFLOW_TRACKING_URI`` or, by default, ``sqlite:///mlflow.db`` in the working
directory, which is also the default of ``mlflow ui``.
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
# A metric of every epoch, whose steps show which epochs a run contains.
_EVERY_EPOCH = "seconds"


class MlflowTracker:
    """Tracker that logs one MLflow step per epoch and the configuration as parameters.

    MLflow keeps every value it receives, including duplicates of a step. A resumed run therefore
    queries the store for the epochs it contains and only sends later ones.
    """

    def start(self, run: TrackedRun) -> int:
        """Create the run, or find an existing one by its tag."""
        # With MLflow's defaults, an unreachable server would block training for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        for name in ("alembic", "mlflow.store.db.utils"):  # they log every table they create
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
        """Send all values of the epoch in one request."""
        self._send(epoch, values)
        self._epoch = epoch

    def finish(self, status: Status, metrics: Mapping[str, float]) -> None:
        """Log final metrics at the step of the last epoch, unless the run has them already."""
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
    """Replace ``@``, which MLflow does not allow in metric names: ``val/recall_at_20``."""
    return name.replace("@", "_at_")
