"""MovieLens-100K as a multi-modal data set, from RecBole's atomic files.

Ratings of at least 4 become interactions, which are split 8:1:1 at random for each user. Users and
items without a train edge are removed with all their edges, and the others are numbered in the
order of their original ids. Modalities: ``text`` (words of title and genres) and ``knowledge``
(relations of the film to its genres, release year and decade).

The wheel's own knowledge graph (``.kg``, ``.link``) is not used: its ``.link`` file uses the film
ids of MovieLens-1M (Star Wars is 260 there and 50 here; RUCAIBox/RecSysDatasets#130), so nearly
every film is linked to the facts of another film. Item-to-item scores from that graph reach a test
Recall@20 of .016, no better than random scores (.015); the relations below reach .06.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from mmssl.data.dataset import InteractionDataset, Interactions
from mmssl.data.manifest import SplitInfo
from mmssl.data.splits import random_holdout
from mmssl.errors import InputError
from mmssl.features.tfidf import relation_features, text_features

MIN_RATING = 4.0
SPLIT_SEED = 2022
TEXT_DIM = 64
KNOWLEDGE_DIM = 32  # there are about 100 distinct genres, years and decades


def build_movielens(name: str, texts: Mapping[str, str]) -> InteractionDataset:
    """Build the data set.

    Args:
        name: Name of the data set.
        texts: Kind (``inter``, ``item``) -> content of the atomic file.

    Raises:
        InputError: A column is missing, a line has the wrong number of cells or a number is
            malformed.
    """
    ratings = parse_atomic("inter", texts["inter"], ("user_id", "item_id", "rating"))
    try:
        liked = np.array(ratings["rating"], dtype=np.float64) >= MIN_RATING
        user = np.array(ratings["user_id"], dtype=np.int64)[liked]
        item = np.array(ratings["item_id"], dtype=np.int64)[liked]
    except (ValueError, OverflowError) as error:
        raise InputError(f".inter file: expected numbers in every row: {error}") from None
    splits = random_holdout(user, item, seed=SPLIT_SEED)
    users, items = np.unique(splits[0].user), np.unique(splits[0].item)
    train, val, test = (_renumber(edges, users, items) for edges in splits)

    films = parse_atomic("item", texts["item"], ("item_id", "movie_title", "release_year", "class"))
    facts = {
        film: (title, year, genres)
        for film, title, year, genres in zip(*films.values(), strict=True)
    }
    described = [facts.get(str(film), ("", "", "")) for film in items]
    titles = tuple(f"{title} ({year})" if year else title for title, year, _ in described)
    item_ids = tuple(map(str, items))
    triples = [
        (film, relation, value)
        for film, (_, year, genres) in zip(item_ids, described, strict=True)
        for relation, value in _relations(year, genres)
    ]
    head, relation, tail = zip(*triples, strict=True)
    return InteractionDataset(
        name=name,
        num_users=len(users),
        num_items=len(items),
        train=train,
        val=val,
        test=test,
        features={
            "knowledge": relation_features(head, relation, tail, item_ids, KNOWLEDGE_DIM),
            "text": text_features(
                [f"{title} {genres}" for title, _, genres in described], TEXT_DIM
            ),
        },
        user_ids=tuple(map(str, users)),
        item_ids=item_ids,
        item_titles=titles,
        split=SplitInfo(
            "random", SPLIT_SEED, {"ratio": "8:1:1", "min_rating": MIN_RATING, "cold_items": "drop"}
        ),
    )


def parse_atomic(kind: str, text: str, columns: Sequence[str]) -> dict[str, list[str]]:
    """Parse a RecBole atomic file, which is tab-separated with header cells ``name:type``.

    Args:
        kind: Suffix of the file, for error messages.
        text: Content of the file.
        columns: Names of the columns to return.

    Returns:
        Column name -> one cell per row.

    Raises:
        InputError: A column is missing or a line has the wrong number of cells.
    """
    lines = text.removesuffix("\n").split("\n")
    names = [cell.split(":")[0] for cell in lines[0].removesuffix("\r").split("\t")]
    for column in columns:
        if column not in names:
            raise InputError(f".{kind} file: expected a column {column}, got {', '.join(names)}")
    rows = [line.removesuffix("\r").split("\t") for line in lines[1:]]
    for number, row in enumerate(rows, start=2):
        if len(row) != len(names):
            raise InputError(
                f".{kind} file: line {number}: expected {len(names)} cells, got {len(row)}"
            )
    places = [names.index(column) for column in columns]
    return {
        column: [row[place] for row in rows] for column, place in zip(columns, places, strict=True)
    }


def _relations(year: str, genres: str) -> list[tuple[str, str]]:
    """Return the relations of a film as (relation, value) pairs."""
    pairs = [("genre", genre) for genre in genres.split()]
    if year:
        pairs += [("year", year), ("decade", year[:3] + "0s")]
    return pairs


def _renumber(
    edges: Interactions, users: npt.NDArray[np.int64], items: npt.NDArray[np.int64]
) -> Interactions:
    """Keep edges between the given (sorted) users and items, replacing ids with positions."""
    kept = np.isin(edges.user, users) & np.isin(edges.item, items)
    return Interactions.from_edges(
        np.searchsorted(users, edges.user[kept]), np.searchsorted(items, edges.item[kept])
    )
