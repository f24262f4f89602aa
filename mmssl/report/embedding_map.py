"""Projects item vectors to a plane: t-SNE or PCA of a sample, colored by popularity."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmssl.data.dataset import InteractionDataset
from mmssl.errors import InputError
from mmssl.evaluation.exposure import activity_groups
from mmssl.serving import item_label

Method = Literal["tsne", "pca"]
_MAX_ITEMS = 1200  # keeps the page small and t-SNE within seconds
CLASSES = 5
_MIN_ITEMS = 10


class EmbeddingMap(NamedTuple):
    """A sample of the items as points of a plane."""

    method: Method
    points: list[tuple[float, float]]
    classes: list[int]
    """0 .. `CLASSES` - 1 by popularity, the most popular items last."""
    tips: list[str]
    """Label and train interactions of each item."""
    legend: list[str]
    """Train interactions of each class; "0" for a class that ties have left empty."""


def map_items(item: Tensor, dataset: InteractionDataset, method: Method) -> EmbeddingMap | None:
    """Project items that have train interactions; equal inputs give the same sample.

    Vectors are scaled to unit length: their direction holds what an item is like, their length
    mostly its popularity, which the color shows.

    Args:
        item: Item vectors (I, D).
        dataset: The source of train interactions and titles.
        method: "tsne" (needs scikit-learn) or "pca".

    Returns:
        The map, None if vectors have one dimension or fewer than ten items have interactions.

    Raises:
        InputError: Scikit-learn is not installed and the method is "tsne".
    """
    degree = torch.from_numpy(np.bincount(dataset.train.item, minlength=dataset.num_items))
    warm = degree.nonzero().squeeze(1)
    if item.shape[1] < 2 or warm.numel() < _MIN_ITEMS:
        return None
    if warm.numel() > _MAX_ITEMS:
        chosen = np.random.default_rng(0).choice(warm.numel(), _MAX_ITEMS, replace=False)
        warm = warm[torch.from_numpy(np.sort(chosen))]
    rows = torch.nn.functional.normalize(item[warm].double()).numpy()
    points = _tsne(rows) if method == "tsne" else _pca(rows)
    classes = activity_groups(degree[warm], CLASSES)
    legend = []
    for number in range(CLASSES):
        mine = degree[warm][classes == number]
        low, high = (int(mine.min()), int(mine.max())) if mine.numel() else (0, 0)
        legend.append(str(low) if low == high else f"{low}–{high}")
    return EmbeddingMap(
        method,
        [(float(x), float(y)) for x, y in points],
        classes.tolist(),
        [f"{item_label(dataset, n)}: {int(degree[n])}" for n in warm.tolist()],
        legend,
    )


def _pca(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    centered = rows - rows.mean(0)
    left, scale, _ = np.linalg.svd(centered, full_matrices=False)
    points: npt.NDArray[np.float64] = left[:, :2] * scale[:2]
    # The sign of a singular vector is arbitrary; fix it, so that equal runs give equal pages.
    return points * np.sign(points[np.abs(points).argmax(0), [0, 1]] + 1e-300)


def _tsne(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    try:
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise InputError(
            'the map needs scikit-learn: expected it installed (pip install "mmssl[report]") or '
            f"--map pca, got {error}"
        ) from error
    start = _pca(rows)
    start = start / start[:, 0].std() * 1e-4
    perplexity = min(30.0, (len(rows) - 1) / 3)
    # A thousand points gain nothing from threads, which would compete with other processes.
    with threadpool_limits(1):
        tsne = TSNE(init=start, perplexity=perplexity, random_state=0)
        points: npt.NDArray[np.float64] = tsne.fit_transform(rows)
    return points
