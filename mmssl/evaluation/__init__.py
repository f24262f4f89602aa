"""Full-ranking evaluation: metrics of top-K lists with the train items left out."""

from mmssl.evaluation.evaluator import Evaluator
from mmssl.evaluation.metrics import METRICS, RELEASED, STANDARD, RankedHits

__all__ = ["METRICS", "RELEASED", "STANDARD", "Evaluator", "RankedHits"]
