"""Sources that come with splits: train, perhaps validation, test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmssl.data.dataset import IntArray, InteractionDataset
from mmssl.data.importing.assemble import split_by_label
from mmssl.data.importing.options import ImportOptions
from mmssl.data.importing.rows import Rows
from mmssl.data.log import InteractionLog
from mmssl.data.manifest import SplitInfo
from mmssl.data.splits import TEST, TRAIN, VAL, Edges, Pairs, draw_validation
from mmssl.errors import InputError

SHARE = 0.1
"""Share of each user's train interactions that become validation where a source has none."""


def checked_splits(rows: Rows, files: Sequence[str], options: ImportOptions) -> Rows:
    """Check that no interaction is in two splits.

    ``options.splits`` "join" removes the labels, ``options.validation`` "from-train" removes the
    rows of the validation split.

    Args:
        rows: Rows with labels.
        files: Name of the file of train, validation and test.
        options: Options of the import.

    Raises:
        InputError: Two splits overlap.
    """
    label = rows.label
    if label is None:
        return rows
    if options.splits == "join":
        return rows._replace(label=None)
    if options.validation == "from-train" and (label == VAL).any():
        rows = _without_validation(rows, label)
        label = rows.label
        assert label is not None
    key = rows.user.codes.astype(np.int64) * len(rows.item.values) + rows.item.codes
    of_split = {part: np.unique(key[label == part]) for part in (TRAIN, VAL, TEST)}
    for first, second in ((VAL, TEST), (TRAIN, VAL), (TRAIN, TEST)):
        both = np.intersect1d(of_split[first], of_split[second], assume_unique=True)
        if both.size:
            user, item = divmod(int(both[0]), len(rows.item.values))
            refuse_overlap(
                files[second],
                files[first],
                f"user {rows.user.values[user]}, item {rows.item.values[item]}",
                int(both.size),
                same=both.size == of_split[first].size == of_split[second].size,
                validation=VAL in (first, second),
            )
    return rows


def refuse_overlap(
    second: str, first: str, example: str, count: int, *, same: bool, validation: bool
) -> None:
    """Raise InputError for two splits that overlap, with a way on."""
    way = (
        "--validation from-train draws another validation split from train; " if validation else ""
    )
    got = "the same interactions" if same else f"{count:,} of them"
    raise InputError(
        f"{second}: expected no interaction of {first}, got {got} ({example}): {way}"
        "--splits join takes all as one log, to be split by mmssl data split"
    )


def with_splits(
    log: InteractionLog, label: IntArray | None, options: ImportOptions
) -> tuple[InteractionLog | InteractionDataset, tuple[str, ...]]:
    """Make a data set of a log and its labels, with a validation split from train if it has none.

    Args:
        log: All interactions.
        label: (E,) 0 train, 1 validation, 2 test; None leaves the log as it is.
        options: Options of the import.

    Returns:
        The data set or log, and what to tell about it.
    """
    if label is None:
        return log, ()
    if (label == VAL).any():
        return split_by_label(log, label), ()
    train = np.flatnonzero(label == TRAIN)
    chosen, info, note = from_train(Pairs(log.user[train], log.item[train]), options.seed)
    label = label.copy()
    label[train[chosen]] = VAL
    return split_by_label(log, label, info), (note,)


def from_train(train: Edges, seed: int) -> tuple[IntArray, SplitInfo, str]:
    """Draw a validation split from train.

    Returns:
        Positions of the chosen interactions, the record of the split, and what to tell about it.

    Raises:
        InputError: No user has three train interactions.
    """
    chosen = np.flatnonzero(draw_validation(train, SHARE, seed))
    if not chosen.size:
        raise InputError(
            "expected a validation split or a user with three train interactions, got neither: "
            "--splits join takes all as one log, to be split by mmssl data split"
        )
    rule = f"{SHARE:.0%} of each user's train interactions"
    note = (
        f"validation: {chosen.size:,} interactions drawn from train, {rule}, at least one of "
        f"users with three or more (seed {seed}); train keeps {train.user.size - chosen.size:,}"
    )
    return chosen, SplitInfo(seed=seed, parameters={"validation": rule}), note


def _without_validation(rows: Rows, label: IntArray) -> Rows:
    kept = label != VAL
    arrays = {
        name: values[kept]
        for name in ("rating", "time", "label")
        if (values := getattr(rows, name)) is not None
    }
    dropped = dict(rows.dropped)
    reason = "validation of the source, replaced by one from train"
    dropped[reason] = int(rows.user.size - kept.sum())
    return rows._replace(
        user=rows.user._replace(at=rows.user.codes[kept]),
        item=rows.item._replace(at=rows.item.codes[kept]),
        dropped=dropped,
        **arrays,
    )
