"""Data sets of which every process reads its own rows, and item graphs that are built from them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo  # before a process group exists, see mmssl/distributed/launch.py
import torch.distributed as dist

from mmssl.config import PlusConfig
from mmssl.data import InteractionDataset, Interactions, read_dataset, write_dataset
from mmssl.data import blocks as blocks_module
from mmssl.data.neighbors import Neighbors
from mmssl.data.split_files import write_records
from mmssl.distributed.dataset import DatasetPart, read_part
from mmssl.distributed.group import Processes
from mmssl.errors import InputError
from mmssl.graph import InteractionGraph
from mmssl.models import item_graph
from mmssl.models.item_graph import Share
from mmssl.models.plus.item_graph import build_item_graph
from tests.conftest import make_dataset
from tests.processes import run_together

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch is built without gloo")

NO_EDGE = {"min_co_visits": 1000}
GRAPHS = (
    {"num_neighbors": 3},
    {"num_neighbors": 4, "min_co_visits": 2},
    {"modality_weights": {"image": 0.0, "given": 0.3}},
    NO_EDGE,
)


def write(folder: Path) -> InteractionDataset:
    """Write a data set with records, float16 features, content for some items, and neighbors."""
    tiny = make_dataset()
    rng = np.random.default_rng(1)
    row = rng.integers(0, 50, 200)
    column = (row + rng.integers(1, 50, 200)) % 50
    pairs = np.unique(row * 50 + column)
    known = np.arange(50) % 7 > 0
    text = np.where(known[:, None], tiny.features["text"], 0).astype(np.float16)
    dataset = InteractionDataset(
        name="parts",
        num_users=80,
        num_items=50,
        features={"image": tiny.features["image"], "text": text},
        masks={"text": known},
        neighbors={"given": Neighbors.from_edges(pairs // 50, pairs % 50, pairs % 9 + 1)},
        **dict(tiny.splits()),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmssl.data.writers.RECORDS_FROM", 1)
        write_dataset(dataset, folder)
    return dataset


@pytest.fixture
def group(tmp_path):
    """One process that behaves as several do."""
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield Processes(sharded=True)
    dist.destroy_process_group()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    write(tmp_path / "data")
    monkeypatch.setattr(blocks_module, "BLOCK", 37)
    return tmp_path / "data"


@pytest.mark.parametrize("kind", ["records", "lists"])
def test_one_process_has_everything(group, folder, tmp_path, kind):
    whole = read_dataset(folder)
    if kind == "lists":
        folder = tmp_path / "lists"
        write_dataset(whole, folder)
    part = read_part(folder, group)
    assert part.content_hash() == whole.content_hash()
    assert part.interactions_hash() == whole.interactions_hash()
    assert part.num_train_edges == whole.num_train_edges
    assert (part.item_degree == np.bincount(whole.train.item, minlength=50)).all()
    assert (part.name, part.split) == (whole.name, whole.split)
    for (_, got), (_, expected) in zip(part.splits(), whole.splits(), strict=True):
        assert all(np.array_equal(*pair) for pair in zip(got, expected, strict=True))
    for name, rows in whole.features.items():
        assert part.item_rows(name).dtype == rows.dtype
        assert np.array_equal(part.item_rows(name), rows)
    for got, expected in zip(part.neighbors["given"], whole.neighbors["given"], strict=True):
        assert np.array_equal(got, expected)


def without_counts(folder: Path) -> None:
    (folder / "dataset.toml").unlink()


def test_sizes_that_no_file_has(group, folder):
    without_counts(folder)
    whole, part = read_dataset(folder), read_part(folder, group)
    assert (part.num_users, part.num_items) == (whole.num_users, whole.num_items)
    assert part.content_hash() == whole.content_hash()


def beyond(folder: Path) -> None:
    write_records(folder / "train.npy", Interactions(np.array([0, 1]), np.array([0, 50])))


def unsorted(folder: Path) -> None:
    """The last two edges, which belong to the last process."""
    edges = np.load(folder / "train.npy")
    edges[[-2, -1]] = edges[[-1, -2]]
    np.save(folder / "train.npy", edges)


def overlapping(folder: Path) -> None:
    """A test edge of the last process's users becomes a train edge."""
    train, test = (np.load(folder / f"{split}.npy") for split in ("train", "test"))
    both = np.sort(np.concatenate([train, test[-1:]]), order=["user", "item"])
    np.save(folder / "train.npy", both)


def changed(folder: Path) -> None:
    write_records(folder / "val.npy", Interactions(np.array([3]), np.array([4])))


def cut(folder: Path) -> None:
    path = folder / "train.npy"
    path.write_bytes(path.read_bytes()[:-4])


def infinite(folder: Path) -> None:
    rows = np.load(folder / "text_feat.npy")
    rows[-1, 3] = np.inf
    np.save(folder / "text_feat.npy", rows)


def filled(folder: Path) -> None:
    np.save(folder / "text_mask.npy", np.zeros(50, bool))


def fewer(folder: Path) -> None:
    np.save(folder / "text_feat.npy", np.zeros((49, 2), np.float32))


def looped(folder: Path) -> None:
    np.savez_compressed(folder / "given_knn.npz", row=np.array([1]), col=np.array([1]))


def unsplit(folder: Path) -> None:
    (folder / "val.npy").unlink()


BAD = {
    beyond: r"train.npy: expected items in 0 .. 49 .*, got item 50 for user 1",
    unsorted: "train.npy: expected unique records sorted by user, then item",
    overlapping: "test.npy: expected no edge of train.npy, got overlap: user 79",
    changed: "dataset.toml: expected interactions with the hash",
    cut: "train.npy: expected .* records of 8 bytes, got",
    infinite: "text_feat.npy: expected values that are finite .*, got inf at row 49, column 3",
    filled: "features of 'text' must be zero where its mask is False",
    fewer: "text_feat.npy: expected 50 rows, num_items of dataset.toml, got 49",
    looped: "given_knn.npz: expected neighbors other than the item itself, got item 1",
    unsplit: "val.json: expected a file, got none",
}


@pytest.mark.parametrize("fault", BAD, ids=lambda fault: fault.__name__)
def test_what_is_refused(group, folder, fault):
    fault(folder)
    with pytest.raises(InputError, match=BAD[fault]):
        read_part(folder, group)
    if fault is not changed:
        with pytest.raises(InputError, match=BAD[fault]):
            read_dataset(folder)


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> tuple[InteractionDataset, list[dict]]:
    """What two processes have read and built."""
    folder = tmp_path_factory.mktemp("parts")
    dataset = write(folder / "data")
    # One edge of the last user, and one number of the last item: rows of process 1.
    for name in ("edge", "feature"):
        shutil.copytree(folder / "data", folder / f"{name}-1")
        (folder / f"{name}-0").symlink_to(folder / "data")
    edges = np.load(folder / "edge-1" / "train.npy")
    edges[-1]["item"] += 1 if edges[-1]["item"] < 49 else -edges[-2]["item"]
    np.save(folder / "edge-1" / "train.npy", edges)
    rows = np.load(folder / "feature-1" / "image_feat.npy")
    rows[-1, -1] += 1
    np.save(folder / "feature-1" / "image_feat.npy", rows)
    run_together(2, _read_and_build, folder)
    return dataset, [torch.load(folder / f"{r}.pt", weights_only=False) for r in range(2)]


def _read_and_build(folder: Path) -> None:
    group = Processes(sharded=True)
    read: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks_module, "BLOCK", 37)
        patch.setattr(item_graph, "RESIDENT", 12 * 4 * 9)
        fromfile = np.fromfile

        def counted(*arguments, count=-1, **options):
            read.append(count)
            return fromfile(*arguments, count=count, **options)

        patch.setattr(np, "fromfile", counted)
        part = read_part(folder / "data", group)
        held = [*part.features.values(), *(ids for _, edges in part.splits() for ids in edges)]
        mapped = all(isinstance(array, np.memmap) for array in held)
        result = {
            "part": _arrays(part),
            "read": sum(n for n in read if n > 0),
            "mapped": mapped,
            "errors": [],
        }
        result["graphs"] = [_graph(part, group, fields) for fields in GRAPHS]
        for name in ("edge", "feature"):
            with pytest.raises(InputError) as error:
                read_part(folder / f"{name}-{group.rank}", group)
            result["errors"].append(str(error.value))
    torch.save(result, folder / f"{group.rank}.pt")


def _arrays(part: DatasetPart) -> dict:
    return {
        "users": part.partition.own_users,
        "items": part.partition.own_items,
        "edges": {name: tuple(edges) for name, edges in part.splits()},
        "rows": {name: np.array(part.item_rows(name)) for name in part.features},
        "neighbors": tuple(part.neighbors["given"]),
        "hash": part.content_hash(),
    }


def _graph(dataset: InteractionDataset, group: Processes | None, fields: dict) -> torch.Tensor:
    """The item graph, or this process's rows of it, as a dense matrix."""
    user, item = (torch.from_numpy(ids.astype(np.int64)) for ids in dataset.train)
    settings = PlusConfig(**fields)
    if group is None:
        graph = InteractionGraph.from_edges(user, item, 80, 50, normalization="sym")
        view = build_item_graph(dataset, graph, settings)
    else:
        assert isinstance(dataset, DatasetPart)
        users, items = dataset.partition.own_users, dataset.partition.own_items
        graph = InteractionGraph.from_edges(
            user - users.start, item, users.stop - users.start, 50, normalization="none"
        )
        share = Share(group, items, torch.from_numpy(dataset.item_degree))
        view = build_item_graph(dataset, graph, settings, share)
    if view is None:
        return torch.zeros(0, 50)
    dense = torch.zeros(view.num_rows, 50)
    dense[view.row_of_edge(), view.col.long()] = view.edge_weight()
    return dense


def test_a_process_has_the_rows_of_its_users_and_items(together):
    dataset, results = together
    first, second = (result["part"] for result in results)
    assert first["users"].stop == second["users"].start and second["users"].stop == 80
    assert first["items"].stop == second["items"].start and second["items"].stop == 50
    for name, edges in dataset.splits():
        for result in (first, second):
            user, item = result["edges"][name]
            mine = (edges.user >= result["users"].start) & (edges.user < result["users"].stop)
            assert 0 < user.size < edges.num_edges
            assert np.array_equal(user, edges.user[mine])
            assert np.array_equal(item, edges.item[mine])
    for result in (first, second):
        assert result["hash"] == dataset.content_hash()
        for name, rows in dataset.features.items():
            assert np.array_equal(result["rows"][name], rows[result["items"]])
    for whole, *parts in zip(
        dataset.neighbors["given"], first["neighbors"], second["neighbors"], strict=True
    ):
        assert np.array_equal(whole, np.concatenate(parts))


def test_a_process_does_not_read_the_rows_of_others(together):
    dataset, (leader, other) = together
    edges = sum(edges.num_edges for _, edges in dataset.splits())
    own = sum(user.size for user, _ in other["part"]["edges"].values())
    # Of three splits of less than 2^11 interactions, at both ends, to read and to map.
    bisections = 3 * 2 * 11 * 2
    assert own <= other["read"] <= own + bisections < edges < leader["read"]
    assert other["mapped"] and leader["mapped"]


def test_a_process_with_other_data_is_named(together):
    for result in together[1]:
        assert len(result["errors"]) == 2
        for message in result["errors"]:
            assert message == (
                "--parallel: expected the same data set in all processes, got another one in "
                "process 1 than in process 0"
            )


@pytest.mark.parametrize("number", range(len(GRAPHS)))
def test_the_rows_of_an_item_graph_are_those_of_one_process(together, number):
    dataset, results = together
    expected = _graph(dataset, None, GRAPHS[number])
    assert expected.any() == (GRAPHS[number] is not NO_EDGE)
    rows = torch.cat([result["graphs"][number] for result in results])
    torch.testing.assert_close(rows, expected, rtol=1e-6, atol=0)
