"""Full-ranking evaluation: metrics of top-K lists that exclude train items."""

from mmssl.evaluation.evaluator import Evaluator
from mmssl.evaluation.metrics import METRICS, RELEASED, STANDARD, RankedHits

__all__ = ["METRICS", "RELEASED", "STANDARD", "Evaluator", "RankedHits"]
