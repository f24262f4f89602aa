"""Item features from text and from a knowledge graph: a bag of words or relations, IDF, SVD.

Needs scikit-learn: ``pip install "mmssl[text]"``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmssl.data.dataset import FloatArray
from mmssl.errors import InputError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


def text_features(texts: Sequence[str], dim: int, seed: int = 0) -> FloatArray:
    """TF-IDF of words (sublinear counts, L2 rows), reduced by a truncated SVD.

    Equals ``TruncatedSVD(dim).fit_transform(TfidfVectorizer(sublinear_tf=True).fit_transform(x))``.

    Args:
        texts: One text per item; an empty one gets a zero row.
        dim: Width d, below the number of texts and of different words.
        seed: Seed of the randomised SVD.

    Returns:
        (len(texts), dim) float32, the same for the same arguments on one machine.

    Raises:
        InputError: Too few words or texts for ``dim``, or scikit-learn is missing.
    """
    require_sklearn()
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        # A word is a run of letters or digits, one included: "Seven", "2", "Children's" -> 2 words.
        vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)[^\W_]+")
        rows = vectorizer.fit_transform(texts)
    except ValueError as error:  # scikit-learn's "empty vocabulary"
        raise InputError(f"texts must hold words, got none: {error}") from None
    return _reduce(rows, dim, seed, "words")


def relation_features(
    head: Sequence[str],
    relation: Sequence[str],
    tail: Sequence[str],
    entities: Sequence[str],
    dim: int,
    seed: int = 0,
) -> FloatArray:
    """What a knowledge graph says of each item: TF-IDF of (relation, neighbour), reduced by SVD.

    An item's features are the edges of its entity in either direction: ``(relation, tail)`` where
    it is the head, ``(relation, head)`` where it is the tail. An edge to a neighbour that no other
    item shares in this way says nothing of which items are alike and is left out.

    Args:
        head: (T,) entity of each triple.
        relation: (T,) name.
        tail: (T,) entity.
        entities: (I,) each item's entity; "" or one that isn't in the graph gets a zero row.
        dim: Width d.
        seed: Seed of the randomised SVD.

    Returns:
        (I, dim) float32, the same for the same arguments on one machine.

    Raises:
        InputError: The three columns differ in length, too few shared neighbours for ``dim``, or
            scikit-learn is missing.
    """
    require_sklearn()
    from sklearn.feature_extraction.text import TfidfTransformer

    if not len(head) == len(relation) == len(tail):
        raise InputError(
            f"head, relation and tail must have one length, got {len(head)}, {len(relation)} "
            f"and {len(tail)}"
        )
    counts = _relation_matrix(head, relation, tail, entities)
    shared = np.asarray((counts > 0).sum(axis=0)).ravel() >= 2
    return _reduce(TfidfTransformer().fit_transform(counts[:, shared]), dim, seed, "neighbours")


def _relation_matrix(
    head: Sequence[str], relation: Sequence[str], tail: Sequence[str], entities: Sequence[str]
) -> csr_matrix:
    """Binary (I, columns) matrix; columns in order of first appearance."""
    from scipy.sparse import csr_matrix

    items_of: dict[str, list[int]] = {}  # two items may be one entity
    for item, entity in enumerate(entities):
        if entity:
            items_of.setdefault(entity, []).append(item)
    columns: dict[tuple[str, str, str], int] = {}
    cells: set[tuple[int, int]] = set()
    for source, name, target in zip(head, relation, tail, strict=True):
        for entity, feature in ((source, ("out", name, target)), (target, ("in", name, source))):
            for item in items_of.get(entity, ()):
                cells.add((item, columns.setdefault(feature, len(columns))))
    places = np.array(sorted(cells), dtype=np.int64).reshape(-1, 2)
    return csr_matrix(
        (np.ones(len(places)), (places[:, 0], places[:, 1])), shape=(len(entities), len(columns))
    )


def _reduce(rows: Any, dim: int, seed: int, what: str) -> FloatArray:
    """Truncated SVD of a sparse (N, columns) matrix, as (N, dim) float32."""
    from sklearn.decomposition import TruncatedSVD

    if dim < 1 or dim >= min(rows.shape):
        raise InputError(
            f"dim must be in 1 .. {min(rows.shape) - 1} for {rows.shape[0]} items with "
            f"{rows.shape[1]} different {what}, got {dim}"
        )
    reduced = TruncatedSVD(dim, random_state=seed).fit_transform(rows)
    return np.ascontiguousarray(reduced, dtype=np.float32)


def require_sklearn() -> None:
    """Raises InputError, with the extra to install, when scikit-learn is missing."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise InputError(
            "features from text need scikit-learn, which is not installed: "
            'pip install "mmssl[text]"'
        ) from None
