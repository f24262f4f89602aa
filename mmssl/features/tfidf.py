"""Item features from texts and knowledge graphs: TF-IDF of words or relations, then an SVD.

Requires scikit-learn: ``pip install "mmssl[text]"``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmssl.data.dataset import FloatArray, IntArray
from mmssl.errors import InputError
from mmssl.extras import require

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

DEFAULT_DIM = 128
WORD = r"(?u)[^\W_]+"
"""Pattern of a word: one or more letters or digits; "Children's" is two words."""
_OPTIONS: dict[str, Any] = {"sublinear_tf": True, "token_pattern": WORD}


def text_features(texts: Sequence[str], dim: int, seed: int = 0) -> FloatArray:
    """Compute TF-IDF features of texts (sublinear counts, L2 rows), reduced by a truncated SVD.

    Equals ``TruncatedSVD(dim).fit_transform(TfidfVectorizer(sublinear_tf=True).fit_transform(x))``
    with :data:`WORD` as the token pattern.

    Args:
        texts: (I,) one text per item; an empty text gets a zero row.
        dim: Width d, less than the number of texts and the number of distinct words.
        seed: Random seed of the randomized SVD.

    Returns:
        (I, dim) float32, on every machine the same to rounding.

    Raises:
        InputError: ``dim`` is out of range, no text contains a word, or scikit-learn is missing.
    """
    return _reduce(_word_matrix(texts)[0], dim, seed, "words")[0]


@dataclass(frozen=True, eq=False)
class FittedTfidf:
    """Text encoder with the words, weights and projection that a :class:`TfidfEncoder` has fitted.

    Rows of new items are comparable with those of the data set. Words that it lacks are ignored.
    """

    words: tuple[str, ...]
    """(W,) known words."""
    idf: npt.NDArray[np.float64]
    """(W,) inverse document frequency of each word."""
    components: npt.NDArray[np.float32]
    """(d, W) projection."""
    record: dict[str, Any]
    """Description for the record of the features."""

    @cached_property
    def _vectorizer(self) -> Any:
        require_sklearn()
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(**_OPTIONS, vocabulary=self.words)
        vectorizer.idf_ = self.idf
        return vectorizer

    def has_content(self, text: str) -> bool:
        """Return whether a text contains a known word."""
        known = self._vectorizer.vocabulary_
        return any(word in known for word in self._vectorizer.build_analyzer()(text))

    def encode(self, texts: Sequence[str]) -> Iterator[tuple[IntArray, FloatArray]]:
        """Yield the (n, d) rows of all texts as one block."""
        rows = self._vectorizer.transform(texts) @ self.components.T
        yield np.arange(len(texts)), np.ascontiguousarray(rows, dtype=np.float32)

    def save(self, path: Path) -> None:
        """Write a file for :meth:`load`.

        Raises:
            InputError: The file can't be written.
        """
        import torch

        from mmssl.training.checkpoint import save_checkpoint

        text = np.frombuffer("\n".join(self.words).encode(), dtype=np.uint8).copy()
        arrays = {"words": text, "idf": self.idf, "components": self.components}
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        save_checkpoint(path, tensors, self.record)

    @classmethod
    def load(cls, path: Path) -> FittedTfidf:
        """Read what :meth:`save` has written.

        Raises:
            InputError: It can't be read, is damaged or another kind of file.
        """
        import torch

        from mmssl.training.checkpoint import load_checkpoint

        tensors, state = load_checkpoint(path)
        kinds = {"words": torch.uint8, "idf": torch.float64, "components": torch.float32}
        if {name: tensor.dtype for name, tensor in tensors.items()} == kinds:
            text, idf, components = (tensors[name].numpy() for name in kinds)
            words = tuple(text.tobytes().decode("utf-8", "replace").split("\n"))
            finite = np.isfinite(idf).all() and np.isfinite(components).all()
            if finite and components.shape[1:] == idf.shape == (len(set(words)),):
                record = {
                    name: value for name, value in state.items() if isinstance(value, (str, int))
                }
                return cls(words, idf, components, record | {"name": "tfidf"})
        raise InputError(f"{path}: expected what `mmssl features text --save` writes")


class TfidfEncoder:
    """Text encoder for :func:`mmssl.features.extract_text` that uses :func:`text_features`.

    Args:
        dim: Width d; None selects 128, or the maximum that the texts allow if that is lower.
        seed: Random seed of the randomized SVD.
    """

    def __init__(self, dim: int | None = None, seed: int = 0) -> None:
        require_sklearn()
        self.dim = dim
        self.seed = seed
        self.record: dict[str, Any] = {}
        self.fitted: FittedTfidf | None = None
        """What the last call of :meth:`encode` has learned from its texts, for new items."""

    def has_content(self, text: str) -> bool:
        """Return whether a text contains a word."""
        return re.search(WORD, text) is not None

    def encode(self, texts: Sequence[str]) -> Iterator[tuple[IntArray, FloatArray]]:
        """Yield all rows as one block, since the weights of words depend on all texts."""
        import sklearn

        rows, vectorizer = _word_matrix(texts)
        dim = max(1, min(DEFAULT_DIM, min(rows.shape) - 1)) if self.dim is None else self.dim
        self.record.update(
            name="tfidf",
            dim=dim,
            words=rows.shape[1],
            seed=self.seed,
            scikit_learn=sklearn.__version__,
        )
        reduced, components = _reduce(rows, dim, self.seed, "words")
        words = tuple(vectorizer.get_feature_names_out().tolist())
        projection = components.astype(np.float32)
        self.fitted = FittedTfidf(words, vectorizer.idf_, projection, self.record)
        yield np.arange(len(texts)), reduced


def _word_matrix(texts: Sequence[str]) -> tuple[Any, Any]:
    """Compute the sparse (N, words) TF-IDF matrix with rows of length 1; also what computed it."""
    require_sklearn()
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(**_OPTIONS)
    try:
        return vectorizer.fit_transform(texts), vectorizer
    except ValueError as error:  # scikit-learn's "empty vocabulary"
        raise InputError(f"texts: expected at least one word, got none: {error}") from None


def relation_features(
    head: Sequence[str],
    relation: Sequence[str],
    tail: Sequence[str],
    entities: Sequence[str],
    dim: int,
    seed: int = 0,
) -> FloatArray:
    """Compute TF-IDF features of the items' relations in a knowledge graph, reduced by an SVD.

    Terms are the edges of an item's entity in both directions: ``(relation, tail)`` where it is the
    head and ``(relation, head)`` where it is the tail. Terms of a single item are excluded, since
    they contain no information about similarity.

    Args:
        head: (T,) head entity of each triple.
        relation: (T,) relation of each triple.
        tail: (T,) tail entity of each triple.
        entities: (I,) entity of each item; "" or an entity that is not in the graph gets a zero
            row.
        dim: Width d.
        seed: Random seed of the randomized SVD.

    Returns:
        (I, dim) float32, on every machine the same to rounding.

    Raises:
        InputError: The columns differ in length, there are too few shared neighbors for ``dim``, or
            scikit-learn is missing.
    """
    require_sklearn()
    from sklearn.feature_extraction.text import TfidfTransformer

    if not len(head) == len(relation) == len(tail):
        raise InputError(
            f"head, relation and tail must have equal length, got {len(head)}, {len(relation)} "
            f"and {len(tail)}"
        )
    counts = _relation_matrix(head, relation, tail, entities)
    shared = np.asarray((counts > 0).sum(axis=0)).ravel() >= 2
    return _reduce(TfidfTransformer().fit_transform(counts[:, shared]), dim, seed, "neighbors")[0]


def _relation_matrix(
    head: Sequence[str], relation: Sequence[str], tail: Sequence[str], entities: Sequence[str]
) -> csr_matrix:
    """Build the binary (I, columns) matrix, with columns in order of first appearance."""
    from scipy.sparse import csr_matrix

    items_of: dict[str, list[int]] = {}  # several items may share an entity
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


def _reduce(
    rows: Any, dim: int, seed: int, what: str
) -> tuple[FloatArray, npt.NDArray[np.float64]]:
    """Reduce a sparse (N, columns) matrix to (N, dim) float32 by a truncated SVD.

    Returns:
        The reduced rows and the (dim, columns) projection.
    """
    from sklearn.decomposition import TruncatedSVD

    if dim < 1 or dim >= min(rows.shape):
        raise InputError(
            f"dim must be in 1 .. {min(rows.shape) - 1} for {rows.shape[0]} items with "
            f"{rows.shape[1]} distinct {what}, got {dim}"
        )
    svd = TruncatedSVD(dim, random_state=seed)
    reduced = np.ascontiguousarray(svd.fit_transform(rows), dtype=np.float32)
    return reduced, svd.components_


def require_sklearn() -> None:
    """Raise InputError, naming the extra to install, if scikit-learn is missing."""
    require("sklearn", "text", "features of texts need scikit-learn")
