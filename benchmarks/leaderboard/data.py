"""A data set of the leaderboard and its record among the results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.leaderboard import records
from benchmarks.leaderboard.records import Record
from mmssl.data.dataset import InteractionDataset
from mmssl.errors import InputError


@dataclass(frozen=True)
class Data:
    """A data set and its records."""

    path: Path
    dataset: InteractionDataset
    record: Record

    @classmethod
    def read(cls, path: Path, out: Path) -> Data:
        """Read a data set.

        Raises:
            InputError: It can't be read, or the results are those of other data of this name.
        """
        from mmssl.data.readers import read_dataset

        dataset = read_dataset(path)
        record = records.describe(dataset)
        file = _file(out, dataset)
        known = records.read(file) if file.exists() else record
        if what := records.difference(known, record):
            raise InputError(
                f"{path}: expected the data of {file}, got other {what}; choose another --out"
            )
        return cls(path, dataset, record)

    def write(self, out: Path) -> None:
        """Write ``data.json`` among the results unless it is there."""
        file = _file(out, self.dataset)
        if not file.exists():
            records.write(file, self.record)


def _file(out: Path, dataset: InteractionDataset) -> Path:
    return out / dataset.name / "data.json"
