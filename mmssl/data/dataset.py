"""The data set that models are trained and evaluated on: three splits and the item features.

Legend: U users, I items, E edges (interactions), d_m width of modality m.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmssl.columns import id_column
from mmssl.data import hashes
from mmssl.data.blocks import IntArray, ascending, row_blocks
from mmssl.data.manifest import SplitInfo
from mmssl.data.neighbors import Neighbors
from mmssl.errors import InputError

FloatArray = npt.NDArray[np.float32]
FeatureArray = npt.NDArray[np.float16] | npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

MAX_ID = 2**31 - 1
"""Exclusive upper bound of ids; ``user * num_items + item`` then always fits an int64."""

MAX_FEATURE = 1e10
"""Largest magnitude of a feature. Models square features, projections of them and their gradients,
which overflows float32 from about 1e12 on."""

USABLE = "finite and at most 1e10 in magnitude, since models square them in float32"
"""What values of features must be, for error messages."""

MODALITY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
"""Pattern of a valid modality name, which is also the stem of a file name."""


class Interactions(NamedTuple):
    """Unique edges of one split, sorted by (user, item).

    This is a NamedTuple so that ``user, item = dataset.train`` works. ``len()`` is therefore 2; use
    :attr:`num_edges` for the number of edges.
    """

    user: IntArray
    """(E,) int64 user ids."""
    item: IntArray
    """(E,) int64 item ids."""

    @classmethod
    def from_edges(cls, user: Any, item: Any) -> Interactions:
        """Sort edges that are in any order.

        Ranges and duplicates are checked by :class:`InteractionDataset`.

        Args:
            user: (E,) integers of any dtype and array type, see :func:`mmssl.columns.id_column`.
            item: (E,) integers, likewise.

        Raises:
            InputError: ``user`` and ``item`` are not integer vectors of equal length.
        """
        users, items = id_column("user", user), id_column("item", item)
        if users.ndim != 1 or users.shape != items.shape:
            raise InputError(
                f"user, item: expected shape (E,) of both, got {users.shape} and {items.shape}"
            )
        if users.size and ascending(users, items):
            return cls(users.astype(np.int64), items.astype(np.int64))
        order = np.lexsort((items, users))
        return cls(users[order].astype(np.int64), items[order].astype(np.int64))

    @property
    def num_edges(self) -> int:
        """Number of interactions E."""
        return int(self.user.size)


@dataclass(frozen=True, kw_only=True, eq=False)
class InteractionDataset:
    """Interactions in three splits with item features and id maps, validated on construction.

    Raises:
        InputError: An id is out of range, an edge occurs twice, a split is empty, features are not
            one row of float16 or float32 per item with values up to :data:`MAX_FEATURE`, or an id
            map has the wrong length.
    """

    name: str
    """Name of the data set in reports."""
    num_users: int
    """Number of users U; user ids are 0 .. U-1."""
    num_items: int
    """Number of items I; item ids are 0 .. I-1."""
    train: Interactions
    """Edges of the training graph."""
    val: Interactions
    """Edges for model selection."""
    test: Interactions
    """Edges for the final evaluation."""
    features: Mapping[str, FeatureArray] = field(default_factory=dict)
    """Modality name -> (I, d_m) float32, C-contiguous, sorted by name when read; may be empty.
    float16 stays as it is: large files are mapped into memory (:mod:`mmssl.data.npy`)."""
    masks: dict[str, BoolArray] = field(default_factory=dict)
    """Modality name -> (I,) bool, True where the item has content; all other feature rows are zero.
    A modality without a mask has content for every item. Models do not read the masks."""
    neighbors: dict[str, Neighbors] = field(default_factory=dict)
    """Modality name -> its item graph, sorted by name when read: neighbors of features that are
    not in the data set, or only in a shortened form. May be empty."""
    user_ids: tuple[str, ...] | None = None
    """External id of each user, from the source of the data."""
    item_ids: tuple[str, ...] | None = None
    """External id of each item, from the source of the data."""
    item_titles: tuple[str, ...] | None = None
    """Display title of each item; titles may repeat or be empty."""
    item_columns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Additional text columns (genres, brand, ...): column name -> one cell per item."""
    split: SplitInfo = SplitInfo()
    """How the splits were made; the protocol is ``given`` for splits that were read as is."""

    def __post_init__(self) -> None:
        _check_text("name", self.name)
        for what, count in (("num_users", self.num_users), ("num_items", self.num_items)):
            if type(count) is not int or not 0 < count <= MAX_ID:
                raise InputError(f"{what} must be an int in 1 .. {MAX_ID}, got {count!r}")
        kinds: dict[str, type] = dict.fromkeys(("train", "val", "test"), Interactions)
        kinds |= dict.fromkeys(("features", "masks", "neighbors", "item_columns"), Mapping)
        for what, kind in kinds.items():
            if not isinstance(getattr(self, what), kind):
                got = type(getattr(self, what)).__name__
                raise InputError(f"{what} must be of type {kind.__name__}, got {got}")
        keys = {
            split: _checked_keys(split, edges, self.num_users, self.num_items)
            for split, edges in self.splits()
        }
        for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
            both = overlap(keys[first], keys[second])
            if both.size:
                user, item = divmod(int(both[0]), self.num_items)
                raise InputError(
                    f"splits must be disjoint, got user {user}, item {item} in both {first} and "
                    f"{second} ({both.size} such edges)"
                )
        for modality, rows in self.features.items():
            _check_features(modality, rows, self.num_items)
        for modality, mask in self.masks.items():
            check_mask(modality, mask, self.features.get(modality))
        for modality, neighbors in self.neighbors.items():
            _check_modality(modality)
            try:
                neighbors.check(self.num_items)
            except InputError as error:
                raise InputError(f"neighbors of {modality!r}: {error}") from None
        _check_names("user_ids", self.user_ids, self.num_users, unique=True)
        _check_names("item_ids", self.item_ids, self.num_items, unique=True)
        _check_names("item_titles", self.item_titles, self.num_items, unique=False)
        for column, cells in self.item_columns.items():
            _check_text("the name of an item column", column)
            if column in ("item", "id", "title"):
                raise InputError(f"item_columns must not contain the reserved name {column!r}")
            _check_names(f"item_columns[{column!r}]", cells, self.num_items, unique=False)

    @property
    def num_train_edges(self) -> int:
        """Number of train edges of all users."""
        return self.train.num_edges

    def splits(self) -> Iterator[tuple[str, Interactions]]:
        """Yield (name, edges) of train, val and test, in this order."""
        yield "train", self.train
        yield "val", self.val
        yield "test", self.test

    def interactions_hash(self) -> str:
        """Return the SHA-256 (hex) of the interactions in the three splits, which identifies them.

        Features, sizes, names and id maps are excluded, so adding features does not change it.
        """
        return hash_of_splits(self.splits())

    def content_hash(self) -> str:
        """Return the SHA-256 (hex) of sizes, splits, features and neighbors on any machine.

        Names, id maps, titles, masks and the order of the modalities are excluded.
        """
        digest = hashes.of_content(self.num_users, self.num_items)
        for split, edges in self.splits():
            _add_split(digest, split, edges)
        for modality in sorted(self.features):
            digest.update(hashes.features_title(modality, self.features[modality]))
            hashes.add_rows([digest], self.features[modality])
        for modality in sorted(self.neighbors):
            hashes.add_neighbors(digest, modality, self.neighbors[modality])
        return digest.hexdigest()


def hash_of_splits(splits: Iterable[tuple[str, Interactions]]) -> str:
    """Return the SHA-256 (hex) of named, sorted interactions, identical on every machine."""
    digest = hashes.of_interactions()
    for split, edges in splits:
        _add_split(digest, split, edges)
    return digest.hexdigest()


def _add_split(digest: hashes.Digest, split: str, edges: Interactions) -> None:
    hashes.add_split([digest], split, edges.num_edges, lambda which: [edges[which]])


def _checked_keys(split: str, edges: Interactions, num_users: int, num_items: int) -> IntArray:
    """Validate a split and return ``user * num_items + item`` of each edge (E,), increasing."""
    for what, ids, count in (("user", edges.user, num_users), ("item", edges.item, num_items)):
        if not isinstance(ids, np.ndarray) or ids.dtype != np.int64 or ids.ndim != 1:
            raise InputError(f"{split}.{what} must be an int64 vector, see Interactions.from_edges")
        if ids.size == 0:
            raise InputError(f"{split} must have at least one interaction, got none")
        outside = (ids < 0) | (ids >= count)
        if outside.any():
            raise InputError(
                f"{split} must have {what} ids in 0 .. {count - 1}, got "
                f"{int(ids[np.argmax(outside)])}"
            )
    if edges.user.size != edges.item.size:
        raise InputError(
            f"{split} must have one item id per user id, got {edges.user.size} user ids and "
            f"{edges.item.size} item ids"
        )
    keys: IntArray = edges.user * num_items + edges.item
    if (keys[1:] < keys[:-1]).any():
        raise InputError(f"{split} must be sorted by (user, item), see Interactions.from_edges")
    same = keys[1:] == keys[:-1]
    if same.any():
        user, item = divmod(int(keys[np.argmax(same)]), num_items)
        raise InputError(f"{split} must have unique edges, got user {user}, item {item} twice")
    return keys


def overlap(one: IntArray, other: IntArray) -> IntArray:
    """Return what two vectors of distinct, increasing numbers share, increasing.

    The shorter one is looked up in the longer one, which takes neither the time nor the memory of
    sorting both together.
    """
    short, long = (one, other) if one.size < other.size else (other, one)
    if not short.size:
        return short
    found = np.searchsorted(long, short)
    found[found == long.size] = 0
    return short[long[found] == short]


def _check_modality(modality: str) -> None:
    if not isinstance(modality, str) or not MODALITY_NAME.fullmatch(modality):
        raise InputError(
            f"modality names must consist of letters, digits, '_' and '-', got {modality!r}"
        )


def _check_features(modality: str, rows: FeatureArray, num_items: int) -> None:
    _check_modality(modality)
    if not isinstance(rows, np.ndarray) or rows.dtype not in (np.float32, np.float16):
        got = rows.dtype if isinstance(rows, np.ndarray) else type(rows).__name__
        raise InputError(f"features of {modality!r} must be a float16 or float32 array, got {got}")
    if rows.ndim != 2 or rows.shape[0] != num_items or rows.shape[1] == 0:
        raise InputError(
            f"features of {modality!r} must have shape ({num_items}, d) with d >= 1, "
            f"got {rows.shape}"
        )
    if not rows.flags.c_contiguous:
        raise InputError(f"features of {modality!r} must be C-contiguous, got a strided view")
    where = first_unusable(rows)
    if where is not None:
        raise InputError(
            f"features of {modality!r} must be {USABLE}, got {rows[where]} at row {where[0]}, "
            f"column {where[1]}"
        )


def check_mask(modality: str, mask: BoolArray, rows: FeatureArray | None) -> None:
    """Check a mask against the features of its modality.

    Raises:
        InputError: No features, not one boolean per row, or a row that should be zero is not.
    """
    if rows is None:
        raise InputError(f"a mask must belong to a modality, got {modality!r} without features")
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != rows.shape[:1]:
        got = f"{mask.dtype}, {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise InputError(f"mask of {modality!r} must be {len(rows)} booleans, got {got}")
    filled = np.flatnonzero(~mask & has_content(rows))
    if filled.size:
        raise InputError(
            f"features of {modality!r} must be zero where its mask is False, got row {filled[0]} "
            f"({filled.size} such rows)"
        )


def first_unusable(rows: FeatureArray) -> tuple[int, int] | None:
    """Return (row, column) of the first value of (N, d) features that is not :data:`USABLE`."""
    for part in row_blocks(rows):
        block = rows[part]
        small = block.dtype == np.float16  # all of its finite values are below the limit
        usable = np.isfinite(block) if small else np.abs(block) <= MAX_FEATURE
        if not usable.all():
            row, column = divmod(int(np.argmin(usable)), rows.shape[1])
            return part.start + row, column
    return None


def has_content(rows: FeatureArray) -> BoolArray:
    """Return (N,) which rows of an (N, d) array are not all zero."""
    known = np.empty(len(rows), dtype=np.bool_)
    for part in row_blocks(rows):
        known[part] = rows[part].any(axis=1)
    return known


def _check_names(what: str, names: tuple[str, ...] | None, count: int, *, unique: bool) -> None:
    if names is None:
        return
    if not isinstance(names, tuple) or len(names) != count:
        got = len(names) if isinstance(names, tuple) else type(names).__name__
        raise InputError(f"{what} must be a tuple of {count} strings, got {got}")
    if not _all_plain(names, may_be_empty=not unique):  # the loop only finds the name to report
        for index, name in enumerate(names):
            _check_text(f"{what}[{index}]", name, may_be_empty=not unique)
    if unique and len(set(names)) != count:
        twice, times = Counter(names).most_common(1)[0]
        raise InputError(f"{what} must be unique, got {twice!r} {times} times")


def _all_plain(names: tuple[str, ...], *, may_be_empty: bool) -> bool:
    """Return whether :func:`_check_text` accepts all names; joined, a million take a moment."""
    try:
        joined = "\t".join(names)
    except TypeError:
        return False
    marks = joined.count("\t") != max(len(names) - 1, 0) or "\n" in joined or "\r" in joined
    return not marks and (may_be_empty or all(names)) and _encodable(joined)


def _check_text(what: str, text: str, *, may_be_empty: bool = False) -> None:
    """Require one line of text without tabs, which a tab-separated file stores unchanged."""
    if not isinstance(text, str) or not (text or may_be_empty):
        raise InputError(f"{what} must be a non-empty string, got {text!r}")
    if any(mark in text for mark in "\t\n\r") or not _encodable(text):
        raise InputError(f"{what} must be one line of UTF-8 text without tabs, got {text!r}")


def _encodable(text: str) -> bool:
    """Return False for text with lone surrogates, which UTF-8 cannot represent."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
