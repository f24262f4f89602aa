"""What a trained model is for: ranked items for a user."""

from mmssl.serving.recommend import (
    Recommendation,
    UserRecommendations,
    item_label,
    recommend,
    recommend_with_titles,
    resolve_user,
    user_label,
)

__all__ = [
    "Recommendation",
    "UserRecommendations",
    "item_label",
    "recommend",
    "recommend_with_titles",
    "resolve_user",
    "user_label",
]
