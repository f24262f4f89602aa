"""Features from texts and relations."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from mmssl.errors import InputError
from mmssl.features.tfidf import relation_features, text_features

TEXTS = ["Star Wars", "Star Trek wars", "Star Trek", "Heat", "", "!?", "Children's 2", "Amélie"]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def sklearn():
    pytest.importorskip("sklearn", reason="features need mmssl[text]")


def test_full_rank_text_features_keep_the_cosines_of_tf_idf():
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = ["a b", "a c", "b c d", "d"]
    exact = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)[^\W_]+").fit_transform(texts)
    # Three of four dimensions, so the SVD only drops the smallest singular value.
    rows = text_features(texts, 3)
    left, values, right = np.linalg.svd(exact.toarray())
    best = (left[:, :3] * values[:3]) @ right[:3]
    assert np.allclose(rows @ rows.T, best @ best.T, atol=1e-5)
    assert rows.dtype == np.float32 and rows.flags.c_contiguous


def test_similar_texts_are_close_and_empty_texts_are_zero():
    rows = text_features(TEXTS, 5)
    cosine = unit(rows[:4]) @ unit(rows[:4]).T
    assert cosine[0, 1] > 0.5 and cosine[1, 2] > 0.5 and abs(cosine[0, 3]) < 0.1
    assert np.abs(rows[4:6]).max() < 1e-6
    assert np.array_equal(rows, text_features(TEXTS, 5))
    assert np.isfinite(rows).all()


@pytest.mark.parametrize("dim", [0, 8, 100])
def test_refuses_a_width_out_of_range(dim):
    with pytest.raises(InputError, match=rf"dim must be in 1 \.\. 7 for 8 items .* got {dim}"):
        text_features(TEXTS, dim)


def test_refuses_texts_without_words():
    with pytest.raises(InputError, match="texts: expected at least one word"):
        text_features(["", "!"], 1)


def graph(*triples: str) -> tuple[list[str], list[str], list[str]]:
    head, relation, tail = zip(*(triple.split() for triple in triples), strict=True)
    return list(head), list(relation), list(tail)


def test_relations_count_in_both_directions_and_only_when_shared():
    triples = graph(
        "f0 actor x", "f1 actor x", "f2 actor y", "f3 actor y", "z made f0", "z made f1",
        "f0 actor alone", "f2 director x", "f0 actor x",
    )  # fmt: skip
    rows = relation_features(*triples, ["f0", "f1", "f2", "f3", "", "elsewhere", "f1"], 2)
    cosine = unit(rows[:4]) @ unit(rows[:4]).T
    # f0 and f1 share two relations; no others are shared ("director x" differs from "actor x").
    assert np.allclose(cosine[:2, :2], 1, atol=1e-5) and np.allclose(cosine[2:, 2:], 1, atol=1e-5)
    assert np.allclose(cosine[:2, 2:], 0, atol=1e-5)
    assert not rows[4:6].any()
    assert np.allclose(rows[0], rows[1], atol=1e-5)  # the unshared "actor alone" is ignored
    assert np.allclose(rows[6], rows[1])  # two items that share an entity


def test_direction_is_part_of_a_relation():
    triples = graph("f0 sequel x", "x sequel f1", "f0 a b", "f1 a b", "f2 sequel x", "f2 c d")
    rows = relation_features(*triples, ["f0", "f1", "f2"], 1)
    # Shared: (out a b) of f0, f1 and (out sequel x) of f0, f2. "in sequel x" of f1 is not shared.
    assert rows.shape == (3, 1) and np.isfinite(rows).all()
    assert np.allclose(abs(rows[1]), abs(rows[2]), atol=1e-5)


def test_relations_refuse_uneven_columns_and_too_few_neighbors():
    with pytest.raises(InputError, match="equal length, got 1, 1 and 0"):
        relation_features(["a"], ["r"], [], ["a"], 1)
    with pytest.raises(InputError, match="dim must be in"):
        relation_features(*graph("f0 r x", "f1 r x"), ["f0", "f1"], 5)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match=r'pip install "mmssl\[text\]"'):
        text_features(TEXTS, 2)
