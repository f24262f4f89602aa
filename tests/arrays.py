"""Columns as pandas gives them, whether or not it is installed."""

from __future__ import annotations

import numpy as np

try:
    import pandas
except ModuleNotFoundError:
    pandas = None


class Column:
    """What a filtered column of pandas is to NumPy: labels with gaps, and ``__array__``.

    Indexing goes by label, so that code that treats it as a sequence fails.
    """

    def __init__(self, values, dtype=None):
        self.array = np.asarray(values, dtype)

    def __array__(self, dtype=None, copy=None):
        return self.array if dtype is None else self.array.astype(dtype)

    def __len__(self):
        return len(self.array)

    def __getitem__(self, label):
        raise KeyError(label)


def filtered(values):
    """A filtered column of pandas, or the same by hand where pandas is not installed."""
    if pandas is None:
        return Column(values)
    frame = pandas.DataFrame({"x": np.repeat(values, 2), "kept": [False, True] * len(values)})
    return frame[frame.kept].x
