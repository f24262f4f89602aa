"""The result of a study: ``best.toml`` for `mmssl train`, ``study.json`` and a table."""

from __future__ import annotations

import json
from typing import Any

from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from mmssl.data.dataset import InteractionDataset
from mmssl.evaluation.evaluator import Evaluator
from mmssl.files import atomic_write, quoted
from mmssl.graph import InteractionGraph
from mmssl.models.registry import DEFAULT_MODEL, model_spec
from mmssl.training.run import RunDirectory
from mmssl.tuning.study import Study

# With fewer complete trials the importances are noise.
_MIN_TRIALS_FOR_IMPORTANCE = 10


def write_result(study: Study, dataset: InteractionDataset) -> dict[str, Any]:
    """Write ``best.toml`` and ``study.json`` and return the content of the latter.

    Trials are ranked by validation Recall@20. The test split is read here only, once, for the best
    trial. ``test_read`` lists all trials for which it was ever read, since a study that is
    continued may end with a different best trial.
    """
    trials = [_row(study, trial) for trial in study.trials()]
    result: dict[str, Any] = {
        "model": study.spec.model,
        "data": {"path": study.spec.data, "hash": study.spec.data_hash},
        "seed": study.spec.seed,
        "best": None,
        "test_read": [],
        "importance": _importance(study),
        "trials": trials,
    }
    finished = [trial for trial in trials if trial["state"] == "complete"]
    if finished:
        best = max(finished, key=lambda trial: (trial["value"], -trial["number"]))
        before = _previous(study)
        run = RunDirectory.open(study.trial_path(best["number"]))
        metrics = run.read_metrics() or {}
        test = (before.get("best") or {}).get("test")
        if not before or before["best"]["number"] != best["number"]:
            graph = InteractionGraph.from_edges(
                *dataset.train, dataset.num_users, dataset.num_items
            )
            test = Evaluator(dataset, "test", graph).evaluate(run.load_scorer(dataset))
        result["best"] = {
            **best,
            **({"best_epoch": metrics["best_epoch"]} if "best_epoch" in metrics else {}),
            "val": metrics["val"],
            "test": test,
        }
        read = before.get("test_read", [])
        result["test_read"] = [*read, *([] if best["number"] in read[-1:] else [best["number"]])]
        title = f"# Trial {best['number']}: validation recall@20 {best['value']:.4f}"
        epoch = f" in epoch {metrics['best_epoch']}" if "best_epoch" in metrics else ""
        text = f"{title}{epoch}, of {len(trials)} trials.\n"
        atomic_write(study.path / "best.toml", (text + run.config.to_toml()).encode())
    atomic_write(study.path / "study.json", (json.dumps(result, indent=1) + "\n").encode())
    return result


def result_lines(study: Study, result: dict[str, Any], most: int = 5) -> list[str]:
    """Return the best trials, the importances of the parameters and the next command."""
    trials = result["trials"]
    counts = {s: sum(t["state"] == s for t in trials) for s in ("complete", "pruned", "fail")}
    lines = [f"{counts['complete']} trials complete, {counts['pruned']} pruned, "
             f"{counts['fail']} failed"]  # fmt: skip
    if result["best"] is None:
        return [*lines, "no trial is complete, so there is no best one"]
    names = list(study.space.parameters)
    ranked = sorted(
        (trial for trial in trials if trial["state"] == "complete"),
        key=lambda trial: (-trial["value"], trial["number"]),
    )[:most]
    table = [["trial", "val recall@20", "epochs", *names]]
    for trial in ranked:
        values = [_short(trial["parameters"][name]) for name in names]
        table.append([str(trial["number"]), f"{trial['value']:.4f}", str(trial["epochs"]), *values])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines += ["  ".join(f"{c:>{w}s}" for c, w in zip(row, widths, strict=True)) for row in table]
    if result["importance"]:
        shares = (f"{name} {share:.2f}" for name, share in result["importance"].items())
        lines.append(f"importance (PED-ANOVA): {', '.join(shares)}")
    best = result["best"]
    lines.append(
        f"trial {best['number']} on test, read once: recall@20 {best['test']['recall@20']:.4f}, "
        f"ndcg@20 {best['test']['ndcg@20']:.4f}"
    )
    model = "" if study.spec.model == DEFAULT_MODEL else f" --model {study.spec.model}"
    config, data = quoted(study.path / "best.toml"), quoted(study.spec.data)
    trained = model_spec(study.spec.model, study.spec.config.variant).schedule is not None
    seeds = " --seeds 5" if trained else ""  # a model in closed form draws nothing
    lines.append(f"next: mmssl train --data {data}{model} --config {config}{seeds}")
    return lines


def _row(study: Study, trial: FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "value": trial.value,
        "epochs": len(trial.intermediate_values),
        "parameters": study.decode(trial.params),
        "directory": study.trial_path(trial.number).name,
        **{key: trial.user_attrs[key] for key in ("reason", "retry_of") if key in trial.user_attrs},
    }


def _importance(study: Study) -> dict[str, float]:
    """Evaluate by PED-ANOVA, the only evaluator of Optuna that does not need scikit-learn."""
    trials = study.trials(TrialState.COMPLETE)
    values = {trial.value for trial in trials}
    if (
        len(trials) < _MIN_TRIALS_FOR_IMPORTANCE
        or len(values) < 2
        or len(study.space.parameters) < 2
    ):
        return {}
    return get_param_importances(study.optuna, evaluator=PedAnovaImportanceEvaluator())


def _previous(study: Study) -> dict[str, Any]:
    path = study.path / "study.json"
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content if content["best"] is not None else {}
    except (OSError, ValueError, KeyError):
        return {}


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
