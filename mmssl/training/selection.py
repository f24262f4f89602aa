"""A setting of a model that is selected on validation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from mmssl.evaluation.evaluator import Evaluator
from mmssl.models.scorer import Scorer
from mmssl.training import SELECTION_METRIC

Kind = TypeVar("Kind", bound=Scorer)


def best_on_validation(
    validation: Evaluator, values: Iterable[float], fit: Callable[[float], Kind]
) -> tuple[float, Kind]:
    """Return the value whose scorer has the highest validation Recall@20, and that scorer.

    At most two scorers are in memory at a time.

    Args:
        validation: Evaluator of the validation split.
        values: What is tried, at least one; the first of equally good ones is returned.
        fit: Computes the scorer of a value.
    """
    best: tuple[float, float, Kind] | None = None
    for value in values:
        scorer = fit(value)
        recall = validation.evaluate(scorer)[SELECTION_METRIC]
        if best is None or recall > best[0]:
            best = recall, value, scorer
        del scorer
    assert best is not None
    return best[1:]
