"""Item features from text and from a knowledge graph: a bag of words or relations, IDF, SVD.

Needs scikit-learn: ``pip install "mmssl[text]"``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmssl.data.dataset import FloatArray, IntArray
from mmssl.errors import InputError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

DEFAULT_DIM = 128
WORD = r"(?u)[^\W_]+"
"""A run of letters or digits, one included: "Seven", "2"; "Children's" is two words."""


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
    return _reduce(_word_matrix(texts), dim, seed, "words")


class TfidfEncoder:
    """:func:`text_features` as an encoder for :func:`mmssl.features.extract_text`.

    Args:
        dim: width; None for 128, or as many as the texts allow.
        seed: of the randomised SVD.
    """

    def __init__(self, dim: int | None = None, seed: int = 0) -> None:
        require_sklearn()
        self.dim = dim
        self.seed = seed
        self.record: dict[str, Any] = {}

    def has_content(self, text: str) -> bool:
        """Whether there is a word in it."""
        return re.search(WORD, text) is not None

    def encode(self, texts: Sequence[str]) -> Iterator[tuple[IntArray, FloatArray]]:
        """All rows as one block: the words' weights depend on all texts."""
        import sklearn

        rows = _word_matrix(texts)
        dim = max(1, min(DEFAULT_DIM, min(rows.shape) - 1)) if self.dim is None else self.dim
        self.record.update(
            name="tfidf",
            dim=dim,
            words=rows.shape[1],
            seed=self.seed,
            scikit_learn=sklearn.__version__,
        )
        yield np.arange(len(texts)), _reduce(rows, dim, self.seed, "words")


def _word_matrix(texts: Sequence[str]) -> Any:
    """Sparse (N, words) TF-IDF, rows of length 1."""
    require_sklearn()
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        return TfidfVectorizer(sublinear_tf=True, token_pattern=WORD).fit_transform(texts)
    except ValueError as error:  # scikit-learn's "empty vocabulary"
        raise InputError(f"texts must hold words, got none: {error}") from None


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
