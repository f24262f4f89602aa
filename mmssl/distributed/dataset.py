"""A data set as several processes read it that divide users and items: each reads its own rows.

The leading process alone reads everything, in blocks: it checks the files, counts the edges of
users and items, and computes the hashes of the data set. With them it hashes the rows of every
process, with which these compare what they have read: on several machines, the files could be
others.

Legend: U users, I items, E edges, N processes, d width of a modality.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmssl.data import hashes
from mmssl.data.blocks import IntArray
from mmssl.data.dataset import FeatureArray, InteractionDataset, Interactions, check_mask
from mmssl.data.manifest import Manifest
from mmssl.data.neighbors import Neighbors
from mmssl.data.npy import MAPPED_FROM, check_usable, open_features
from mmssl.data.npz import read_neighbors
from mmssl.data.readers import (
    NEIGHBORS_SUFFIX,
    check_disjoint,
    check_hash,
    check_items,
    common_rows,
    count_ids,
    dataset_name,
    feature_paths,
    modality_paths,
    open_directory,
    read_masks,
)
from mmssl.data.split_files import SPLITS, ListedSplit, RecordSplit, open_split, split_path
from mmssl.distributed.group import Processes
from mmssl.distributed.partition import Partition, Ranges

Splits = Mapping[str, RecordSplit | ListedSplit]


@dataclass(frozen=True, kw_only=True, eq=False)
class DatasetPart(InteractionDataset):
    """What one of several processes holds of a data set, checked by :func:`read_part`.

    ``train``, ``val`` and ``test`` have the interactions of its users and ``neighbors`` those of
    its items, with the ids of the data set; a split may be empty. Records of interactions, which
    are int32, and ``features`` are mapped into memory as they are in their files. Masks, ids and
    titles, which training does not need, are not held.
    """

    partition: Partition
    """The users and items of every process."""
    item_degree: IntArray
    """(I,) number of train users of every item, of all processes."""
    hash_of_interactions: str
    """:meth:`interactions_hash` of the whole data set."""
    hash_of_content: str
    """:meth:`content_hash` of the whole data set."""

    def __post_init__(self) -> None:
        """Check nothing: the processes have done so together."""

    @property
    def num_train_edges(self) -> int:
        """See the base class."""
        return int(self.item_degree.sum())

    def interactions_hash(self) -> str:
        """See the base class."""
        return self.hash_of_interactions

    def content_hash(self) -> str:
        """See the base class."""
        return self.hash_of_content

    def item_rows(self, modality: str) -> FeatureArray:
        """Return the features of this process's items, of the type that one process would have.

        They are mapped if the file is large, else in memory as float32.
        """
        rows = self.features[modality]
        own: FeatureArray = rows[self.partition.own_items]
        return own if rows.nbytes >= MAPPED_FROM else np.array(own, dtype=np.float32)


def read_part(directory: str | Path, group: Processes) -> DatasetPart:
    """Read the part of a data set that a process needs. All processes call this together.

    Splits in records (``train.npy``) are read by range of users. Splits in JSON, which
    ``mmssl data import`` writes for at most 10 million interactions, and neighbors are parsed as a
    whole before the rest is dropped.

    Args:
        directory: Directory of the data set.
        group: The processes.

    Raises:
        InputError: As :func:`mmssl.data.readers.read_dataset`, in one of the processes; or a
            process has read other data than the leading one.
    """
    info = open_directory(directory)
    folder = info.path.parent
    splits = {split: open_split(folder, split) for split in SPLITS}
    paths = feature_paths(folder)
    num_rows = common_rows(info, paths)
    features = {name: open_features(path) for name, path in paths.items()}
    partition, item_degree = _divide(
        _count_edges(info, splits, num_rows) if group.leads else None, group
    )
    num_users, num_items = partition.users.num_rows, partition.items.num_rows
    graphs = {
        name: read_neighbors(path, num_items)
        for name, path in modality_paths(folder, NEIGHBORS_SUFFIX).items()
    }
    users = _range(partition.own_users)
    own = {name: split.read(users) for name, split in splits.items()}
    check_disjoint(folder, own, num_items)
    files = _Files(info, splits, paths, features, graphs, partition)
    found = torch.empty(2 + group.size, hashlib.sha256().digest_size, dtype=torch.uint8)
    if group.leads:
        found = torch.stack([_bytes(digest) for digest in files.check(group.size)])
    group.broadcast(found, 0)
    group.check_digest("data set", _bytes(files.digest_of_part(own)), found[2:])
    own = {name: split.map(users) for name, split in splits.items()}
    return DatasetPart(
        partition=partition,
        item_degree=item_degree,
        hash_of_interactions=bytes(found[0].tolist()).hex(),
        hash_of_content=bytes(found[1].tolist()).hex(),
        name=dataset_name(info),
        num_users=num_users,
        num_items=num_items,
        train=own["train"],
        val=own["val"],
        test=own["test"],
        features=features,
        neighbors={name: _of_items(graph, partition.own_items) for name, graph in graphs.items()},
        split=info.split,
    )


def _count_edges(info: Manifest, splits: Splits, num_rows: int | None) -> tuple[IntArray, IntArray]:
    """Check the ids of all splits; return the train edges of every user (U,) and item (I,)."""
    highest, degrees = [0, 0], [np.zeros(0, np.int64), np.zeros(0, np.int64)]
    for split, found in splits.items():
        for edges in found.blocks():
            if num_rows is not None:
                check_items(split_path(info.path.parent, split), edges, num_rows)
            for which, ids in enumerate(edges):
                highest[which] = max(highest[which], int(ids.max()))
                if split == "train":
                    degrees[which] = _counted(degrees[which], ids)
    num_users = count_ids(info, "user", highest[0])
    num_items = count_ids(info, "item", highest[1]) if num_rows is None else num_rows
    user, item = (_padded(d, n) for d, n in zip(degrees, (num_users, num_items), strict=True))
    return user, item


def _counted(degree: IntArray, ids: IntArray) -> IntArray:
    """Add the numbers of occurrences of some ids; users come in ascending order."""
    first, last = int(ids.min()), int(ids.max()) + 1
    degree = _padded(degree, max(last, degree.size))
    degree[first:last] += np.bincount(ids - first)
    return degree


def _padded(degree: IntArray, size: int) -> IntArray:
    return np.concatenate((degree, np.zeros(size - degree.size, np.int64)))


def _divide(
    degrees: tuple[IntArray, IntArray] | None, group: Processes
) -> tuple[Partition, IntArray]:
    """Divide users and items by their degrees, which the leading process has counted.

    Returns:
        The partition, and the degrees of the items (I,).
    """
    bounds = torch.zeros(2, group.size + 1, dtype=torch.int64)
    if degrees is not None:
        ranges = [Ranges.balanced(torch.from_numpy(d), group.size).bounds for d in degrees]
        bounds = torch.tensor(ranges)
    group.broadcast(bounds, 0)
    users, items = (Ranges(tuple(row)) for row in bounds.tolist())
    item_degree = torch.empty(items.num_rows, dtype=torch.int64)
    if degrees is not None:
        item_degree = torch.from_numpy(degrees[1])
    group.broadcast(item_degree, 0)
    return Partition(users, items, group.rank), item_degree.numpy()


class _Files(NamedTuple):
    """The content of a data set as its files have it."""

    info: Manifest
    splits: Splits
    paths: Mapping[str, Path]
    features: Mapping[str, FeatureArray]
    neighbors: Mapping[str, Neighbors]
    partition: Partition

    def check(self, size: int) -> list[bytes]:
        """Check everything but the splits, which were read before, and hash everything.

        Args:
            size: N.

        Returns:
            The hash of the interactions, that of the content, and those of N parts.
        """
        users, items = self.partition.users, self.partition.items
        interactions = hashes.of_interactions()
        content = hashes.of_content(users.num_rows, items.num_rows)
        parts = [hashlib.sha256() for _ in range(size)]

        def column(split: RecordSplit | ListedSplit, which: int) -> Iterator[IntArray]:
            for rank, part in enumerate(parts):
                for edges in split.blocks(_range(users.of(rank))):
                    part.update(edges[which].data)
                    yield edges[which]

        for name, split in self.splits.items():
            columns = partial(column, split)
            hashes.add_split([interactions, content], name, split.num_edges, columns)
        check_hash(self.info, interactions.hexdigest())
        for name, rows in self.features.items():
            content.update(hashes.features_title(name, rows))
            for rank, part in enumerate(parts):
                part.update(hashes.features_title(name, rows))
                own = items.of(rank)
                hashes.add_rows([content, part], rows[own], self._usable(name, own.start))
        masks = read_masks(self.info.path.parent, self.paths, items.num_rows)
        for name, mask in masks.items():
            check_mask(name, mask, self.features[name])
        for name, graph in self.neighbors.items():
            for digest in (content, *parts):
                hashes.add_neighbors(digest, name, graph)
        return [bytes.fromhex(d.hexdigest()) for d in (interactions, content, *parts)]

    def digest_of_part(self, own: Mapping[str, Interactions]) -> bytes:
        """Hash what this process has read, as :meth:`check` does."""
        digest = hashlib.sha256()
        for edges in own.values():
            for ids in edges:
                digest.update(np.ascontiguousarray(ids).data)
        for name, rows in self.features.items():
            digest.update(hashes.features_title(name, rows))
            hashes.add_rows([digest], rows[self.partition.own_items])
        for name, graph in self.neighbors.items():
            hashes.add_neighbors(digest, name, graph)
        return digest.digest()

    def _usable(self, name: str, first: int) -> Callable[[slice, FeatureArray], None]:
        return lambda part, block: check_usable(self.paths[name], block, first=first + part.start)


def _bytes(digest: bytes) -> Tensor:
    return torch.tensor(list(digest), dtype=torch.uint8)


def _range(part: slice) -> range:
    return range(part.start, part.stop)


def _of_items(graph: Neighbors, items: slice) -> Neighbors:
    """Return the neighbors of some items, in memory of their own."""
    own = slice(*np.searchsorted(graph.row, (items.start, items.stop)).tolist())
    value = None if graph.value is None else graph.value[own].copy()
    return Neighbors(graph.row[own].copy(), graph.col[own].copy(), value)
