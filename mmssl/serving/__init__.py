"""Recommendations from trained models, and export for serving."""

from mmssl.serving.export import export
from mmssl.serving.recommend import (
    Recommendation,
    UserRecommendations,
    item_label,
    recommend,
    recommend_with_titles,
    resolve_user,
    user_label,
)
from mmssl.serving.recommender import RecommendedItem, Recommender

__all__ = [
    "Recommendation",
    "RecommendedItem",
    "Recommender",
    "UserRecommendations",
    "export",
    "item_label",
    "recommend",
    "recommend_with_titles",
    "resolve_user",
    "user_label",
]
