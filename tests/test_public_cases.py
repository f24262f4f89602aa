"""What people really bring, one test per situation: files as they lie in public, in small.

Each is read to its last interaction, or stops in one line that names what was seen and the option
that mends it. What else there is of each kind is tested in ``tests/data/test_import_kinds.py``.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from mmssl import ops
from mmssl.data import read_dataset
from mmssl.data.log import read_log
from mmssl.errors import InputError
from mmssl.graph import InteractionGraph
from mmssl.ops import sample_bpr
from tests.arrays import filtered
from tests.shell import LOG, ROWS, Shell, pairs, pairs_of, same_log, table

pa = pytest.importorskip("pyarrow", reason="importing tables needs pyarrow (extra data)")

LIGHTGCN = "0 3 1 2 5\n1 2 4\n2 1 3 4 5 0\n"


def test_lightgcn_lines_of_a_user_and_its_items_are_read_to_the_last_item(shell):
    shell.write("train.txt", LIGHTGCN)
    log = shell.bring("train.txt", says="read 11 rows")
    assert log.num_edges == 11 and pairs(log)[:4] == [
        ("0", "1"),
        ("0", "2"),
        ("0", "3"),
        ("0", "5"),
    ]


def test_lightgcn_lines_are_not_half_read_as_columns(shell):
    shell.write(
        "train.txt", "".join(f"{u} {u} {u + 1} {u + 2} {u + 3} {u + 4}\n" for u in range(9))
    )
    columns = ("--sep", " ", "--user-col", "1", "--item-col", "2")
    shell.refused("train.txt", says=("lines of 6 integers", "--format lists", "--format csv"))
    shell.refused("train.txt", *columns, says=("--format lists", "--format csv"))
    assert shell.bring("train.txt", "--format", "lists").num_edges == 45
    kept = shell.bring(
        "train.txt", *columns, "--format", "csv", name="b", says="not used: '3', '4'"
    )
    assert kept.num_edges == 9


def test_lightgcn_train_and_test_get_a_validation_split_from_train(shell):
    shell.write("g/train.txt", LIGHTGCN)
    shell.write("g/test.txt", "0 4\n1 5\n2 \n")
    dataset = shell.bring("g", says="left out 1: user without items")
    assert [edges.num_edges for _, edges in dataset.splits()] == [9, 2, 2]
    assert dataset.split.seed == 2022 and "validation" in dataset.split.parameters


def test_microlens_a_user_a_tab_and_items_by_time(shell):
    shell.write("pairs.tsv", "1\t10 30 20\n2\t20 10 30\n3\t30 10\n")
    shell.bring("pairs.tsv", "--ordered", says="times are the positions of the rows")
    code, printed = shell.run("data", "split", "out", "--protocol", "leave-one-out", "--out", "s")
    assert code == 0, printed
    dataset = read_dataset(shell.folder / "s")
    assert dict(pairs_of(dataset, "test")) == {"1": "20", "2": "30"}
    assert dict(pairs_of(dataset, "val")) == {"1": "30", "2": "10"}


def test_time_columns_by_their_usual_names(shell):
    for number, name in enumerate(["event_time", "t_dat", "unixReviewTime", "Event Date", "tdat"]):
        shell.write("log.csv", f"user,item,price,{name}\na,x,9.5,2017-07-14 03:09:28 UTC\n")
        says = "columns that are not used: 'price'"
        log = shell.bring("log.csv", name=f"out{number}", says=says)
        assert log.time.tolist() == [1_500_001_768_000_000]


def test_a_log_without_times_says_so_and_is_not_split_by_time(shell):
    shell.write("log.csv", "user,item,moment\n" + "".join(f"{u},{i},1\n" for u, i in ROWS))
    shell.bring("log.csv", says="no column of times is known", name="log")
    for protocol in ("leave-one-out", "temporal"):
        split = ("data", "split", "log", "--protocol", protocol, "--out", "out")
        shell.refused(*split, says=("expected data with times", "--time-col", "--ordered"))
    split = ("data", "split", "log", "--protocol", "leave-one-out-random", "--out", "out")
    assert "leave-one-out-random (cold_items keep, seed 2022)" in shell.run(*split)[1]


@pytest.mark.parametrize("null", ["NULL", "None", r"\N", "nan", "NaN", "NA", "<NA>", "null"])
def test_null_strings_are_no_users(shell, null):
    shell.write("log.csv", f"user,item\na,x\n{null},y\nb,y\n")
    shell.refused("log.csv", says=("line 3", repr(null), "--null-ids skip", "--null-ids keep"))
    log = shell.bring("log.csv", "--null-ids", "skip", says="left out 1: user id that stands for")
    assert log.user_ids == ("a", "b")
    assert null in shell.bring("log.csv", "--null-ids", "keep", name="b").user_ids


def test_blanks_around_cells_are_removed_and_counted(shell):
    shell.write("log.csv", "user, item, rating, time\na , x, 3.0, 7\na, y, 4.0, 8\n")
    log = shell.bring("log.csv", says="1 user ids had blanks around them, which were removed: 'a '")
    assert pairs(log) == [("a", "x"), ("a", "y")] and log.rating.tolist() == [3, 4]
    shell.write("aligned.txt", "    1      11  3\n   12       5  4\n")
    columns = ("--sep", "space", "--user-col", "1", "--item-col", "2", "--rating-col", "3")
    assert pairs(shell.bring("aligned.txt", *columns, name="b")) == [("1", "11"), ("12", "5")]
    shell.write("quoted.csv", 'user,item\na, "x"\nb, "y"\n')
    shell.refused("quoted.csv", says="a quote counts at the start of a cell only")


def test_features_as_torch_tensors_are_converted_or_named(shell, tiny_dataset):
    torch = pytest.importorskip("torch", reason="the files are written by torch")
    from mmssl.data import write_dataset

    write_dataset(tiny_dataset, shell.folder / "src")
    (shell.folder / "src" / "image_feat.npy").unlink()
    image = torch.from_numpy(tiny_dataset.features["image"])
    torch.save(image, shell.folder / "src" / "image_feat.pt")
    torch.save({"a": image}, shell.folder / "src" / "audio_feat.pt")
    (shell.folder / "src" / "evil_feat.pt").write_bytes(pickle.dumps(print))
    (shell.folder / "src" / "video_feat.csv").write_text("1,2\n")
    printed = shell.run("data", "inspect", "src")[1]
    assert "not read: audio_feat.pt, evil_feat.pt, image_feat.pt, video_feat.csv" in printed
    dataset = shell.bring("src", says="image_feat.pt was converted to image_feat.npy")
    assert np.array_equal(dataset.features["image"], tiny_dataset.features["image"])
    printed = shell.run("data", "import", "src", "--out", "again")[1]
    assert "audio_feat.pt is left out: expected a plain tensor, got dict" in printed
    assert "evil_feat.pt is left out: expected a plain tensor that loads under" in printed
    assert "files that are not read: video_feat.csv" in printed


AMAZON_2014 = {"reviewerID": "a", "asin": "x", "reviewText": 'a\n"b"', "overall": 5.0,
               "unixReviewTime": 1500001768, "helpful": [0, 0]}  # fmt: skip
AMAZON_2018 = {**AMAZON_2014, "verified": True, "style": {"Size": "L"}, "reviewTime": "07 14, 2017"}
AMAZON_2023 = {"rating": 5.0, "title": "t", "text": "ok", "images": [], "asin": "x1",
               "parent_asin": "x", "user_id": "a", "timestamp": 1500001768000}  # fmt: skip
YELP = {"user_id": "a", "business_id": "x", "stars": 5, "date": "2017-07-14 03:09:28"}


@pytest.mark.parametrize("row", [AMAZON_2014, AMAZON_2018, AMAZON_2023, YELP])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_json_lines_of_amazon_and_yelp(shell, row, pack):
    text = "".join(json.dumps({**row, "n": n}) + "\n" for n in range(3))
    shell.write("reviews.json", pack(text.encode()))
    log = shell.bring("reviews.json", says="left out 2: repeated, the last one kept")
    assert pairs(log) == [("a", "x")] and log.rating.tolist() == [5]
    assert log.time[0] in (1500001768, 1500001768000, 1500001768000000)


def packed(kind: str, content: bytes) -> bytes:
    if kind == "zip":
        path = Path("packed.zip")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("log.csv", content)
        data = path.read_bytes()
        path.unlink()
        return data
    if kind == "zst":
        return pa.Codec("zstd").compress(content, asbytes=True)
    return {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[kind](content)


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zst", "zip"])
def test_compressed_logs(shell, kind):
    data = packed(kind, LOG.encode())
    shell.write(f"log.csv.{kind}", data)
    assert same_log(shell.bring(f"log.csv.{kind}"))
    shell.write("log.csv", data)  # the content counts, not the name
    assert same_log(shell.bring("log.csv", name="b"))
    shell.write("cut.csv", data[:-20])
    shell.refused("cut.csv", says="cut.csv: expected a")


def test_a_log_on_the_standard_input(shell):
    command = [sys.executable, "-m", "mmssl", "data", "import", "-", "--out", "out"]
    subprocess.run(command, input=gzip.compress(LOG.encode()), check=True, cwd=shell.folder)
    assert same_log(read_log(shell.folder / "out")[0])
    done = subprocess.run([*command[:-1], "b"], input=b"x", capture_output=True, cwd=shell.folder)
    assert done.returncode == 2 and done.stderr.startswith(b"error: standard input: line 1")


SPLITS = {"train": ROWS[:7], "valid": ROWS[7:8], "test": ROWS[8:]}


@pytest.mark.parametrize(
    ("kind", "valid"),
    [("csv", "valid"), ("tsv", "val"), ("parquet", "validation"), ("jsonl", "dev")],
)
def test_given_splits_as_files_of_train_valid_test(shell, kind, valid):
    from pyarrow import parquet

    for split, rows in SPLITS.items():
        name = f"d/{valid if split == 'valid' else split}.{kind}"
        shell.write(name, table(rows, "\t" if kind == "tsv" else ","))
        if kind == "jsonl":
            shell.write(name, "".join(json.dumps({"user": u, "item": i}) + "\n" for u, i in rows))
        if kind == "parquet":
            users, items = zip(*rows, strict=True)
            parquet.write_table(pa.table({"user": users, "item": items}), shell.folder / name)
    shell.write("d/README.md", "words")
    dataset = shell.bring("d", says="files that are not read: README.md")
    found = [pairs_of(dataset, split) for split in ("train", "val", "test")]
    assert [sorted(rows) for rows in found] == [sorted(rows) for rows in SPLITS.values()]
    assert dataset.split.protocol == "given" and dataset.split.seed is None


def test_given_splits_without_validation(shell):
    for name, rows in (("train", ROWS[:8]), ("test", ROWS[8:])):
        shell.write(f"d/{name}.csv", table(rows))
    says = "validation: 2 interactions drawn from train, 10% of each user's train interactions"
    dataset = shell.bring("d", says=says)
    again = shell.bring("d", name="b")
    other = shell.bring("d", "--seed", "7", name="c")
    assert [edges.num_edges for _, edges in dataset.splits()] == [6, 2, 1]
    assert dataset.interactions_hash() == again.interactions_hash() and other.split.seed == 7


def json_splits(shell: Shell, **splits: dict[str, list[int]]) -> None:
    for name, lists in splits.items():
        shell.write(f"d/{name}.json", json.dumps(lists))
    np.save(shell.folder / "d" / "image_feat.npy", np.ones((6, 2), np.float32))


TRAIN, TEST = {"0": [0, 1, 2, 3], "1": [1, 2, 4], "2": [5]}, {"0": [4], "1": [0]}


@pytest.mark.parametrize("val", [None, {}, {"0": [], "1": []}, TEST])
def test_released_splits_without_a_validation_of_their_own(shell, val):
    """No val.json; an empty one; one that is test.json, as LLMRec's."""
    json_splits(shell, train=TRAIN, test=TEST, **({} if val is None else {"val": val}))
    train = ("train", "--data", "d", "--out", "out")
    shell.refused(*train, says=("mmssl data import d --out NEW", "from train"))
    dataset = shell.bring("d", "--validation", "from-train", says="drawn from train")
    assert [edges.num_edges for _, edges in dataset.splits()] == [6, 2, 2]
    assert dataset.num_items == 6 and set(dataset.features) == {"image"}
    if val is not TEST:
        assert shell.bring("d", name="b").interactions_hash() == dataset.interactions_hash()


@pytest.mark.parametrize("layout", ["csr_matrix", "csc_matrix", "coo_matrix"])
def test_a_sparse_matrix_of_scipy(shell, layout):
    sparse = pytest.importorskip("scipy.sparse", reason="the files are written by scipy")
    cells = np.array([[0, 2.5, 0, 1], [0, 0, 0, 0], [3, 0, 0, 0]])
    matrix = getattr(sparse, layout)(cells)
    sparse.save_npz("inter.npz", matrix)
    log = shell.bring("inter.npz", says="read 3 rows of inter.npz (user = row, item = column)")
    assert (log.num_users, log.num_items) == (3, 4)
    assert list(zip(log.user, log.item, log.rating, strict=True)) == [
        (0, 1, 2.5),
        (0, 3, 1),
        (2, 0, 3),
    ]


def test_pickled_matrices_of_diffmm_stay_closed_and_the_line_converts_them(shell):
    sparse = pytest.importorskip("scipy.sparse", reason="the files are written by scipy")
    (shell.folder / "d").mkdir()
    for name, (row, col) in {"trnMat": ([0, 0, 0, 1], [0, 1, 2, 2]), "valMat": ([0], [3]),
                             "tstMat": ([1], [0])}.items():  # fmt: skip
        matrix = sparse.coo_matrix((np.ones(len(row)), (row, col)), shape=(2, 4))
        (shell.folder / "d" / f"{name}.pkl").write_bytes(pickle.dumps(matrix))
    np.save(shell.folder / "d" / "image_feat.npy", np.ones((4, 3), np.float16))
    shell.refused("d/trnMat.pkl", says=("got a pickle", "never opened", "python -c"))
    code, printed = shell.run("data", "import", "d", "--out", "out")
    assert code == 2 and "pickles are never opened" in printed
    command = printed.split("of your own: ")[1].split(", then import")[0]
    command = command.replace("python -c", f"{sys.executable} -c")
    subprocess.run(["sh", "-c", command], check=True, cwd=shell.folder)
    dataset = shell.bring("d", says="features: image_feat.npy")
    assert [edges.num_edges for _, edges in dataset.splits()] == [4, 1, 1]
    assert dataset.num_items == 4


def test_a_directory_of_part_files(shell):
    head, *rows = LOG.splitlines(keepends=True)
    for number in range(3):
        shell.write(f"s/part-{number:05d}.csv", head + "".join(rows[number::3]))
    shell.write("s/_SUCCESS", "")
    shell.write("s/.part-00000.csv.crc", b"\0crc")
    assert same_log(shell.bring("s", says="part files read: 3"))
    for rating in ("3", "4%20x"):
        shell.write(f"h/kind={rating}/0.csv", head + rows[int(rating[0])])
    assert shell.bring("h", says="not used: 'kind'", name="b").num_edges == 2
    shell.write("s/part-00003.csv", "user,item,stars,time\na,q,1,1\n")
    shell.refused("s", says="part-00003.csv: expected the columns of part-00000.csv")
    shell.write("m/a.csv", LOG)
    shell.write("m/b.tsv", LOG)
    shell.refused("m", says="part files of one format, got a.csv, b.tsv")


def test_decimal_commas(shell):
    shell.write("semi.csv", "user;item;rating\n1;11;3,5\n1;5;4,5\n")
    shell.refused("semi.csv", says=("'3,5': --decimal , reads decimal commas", "2 of 2 rows"))
    assert sorted(shell.bring("semi.csv", "--decimal", ",").rating.tolist()) == [3.5, 4.5]


MOMENT = 1_500_001_768_000_000  # 2017-07-14 03:09:28 UTC


@pytest.mark.parametrize(
    "text",
    ["2017-07-14T03:09:28Z", "2017-07-14 05:09:28.0+0200", "2017/07/14 03:09:28",
     "14.07.2017 03:09:28", "14/07/2017 03:09:28", "7/14/2017 3:09:28 AM", "07-14-2017, 03:09:28",
     "Jul 14, 2017 03:09:28", "14 July 2017 03:09:28", "Fri Jul 14 03:09:28 +0000 2017",
     "Fri, 14 Jul 2017 03:09:28 GMT"],
)  # fmt: skip
def test_the_usual_ways_to_write_a_moment(shell, text):
    shell.write("log.tsv", f"user\titem\ttime\na\tx\t{text}\n")
    assert shell.bring("log.tsv").time.tolist() == [MOMENT]


# Graphs and arrays.


class Propagation(torch.nn.Module):
    def __init__(self, graph):
        super().__init__()
        self.graph, self.item = graph, torch.nn.Parameter(torch.arange(80.0).reshape(20, 4))

    def forward(self):
        return ops.spmm(self.graph.ui, self.item)


def small_graph():
    return InteractionGraph.from_edges(torch.arange(50) % 10, torch.arange(50) % 20, 10, 20)


def gradient(graph, backend):
    model = Propagation(graph)
    with ops.backend(backend):
        model().square().sum().backward()
    return model.item.grad


def test_weighted_degree_cancellation():
    generator = torch.Generator().manual_seed(0)
    users, items, edges = 5000, 2000, 100_000
    user = torch.randint(users, (edges,), generator=generator)
    item = torch.randint(items, (edges,), generator=generator)
    days = (torch.rand(users, generator=generator) * 730)[user]
    graph = InteractionGraph.from_edges(
        user, item, users, items, value=0.5 ** (days / 14), normalization="row"
    )
    sums = ops.spmm(graph.ui, torch.ones(items, 1)).squeeze(1)
    assert torch.allclose(sums, (torch.bincount(user, minlength=users) > 0).float(), rtol=1e-6)


def test_inference_mode_poisons_graph():
    graph = small_graph()
    with torch.inference_mode():
        ops.masked_topk(Propagation(graph)(), torch.ones(20, 4), k=5, exclude=graph.ui)
    for backend in ("reference", "auto"):
        assert bool(gradient(graph, backend).any())


@pytest.mark.parametrize("strict", [False, True])
def test_export_poisons_graph(strict):
    model = Propagation(small_graph())
    expected = model()
    torch.export.export(model, (), strict=strict)
    assert type(model()) is torch.Tensor and torch.equal(model(), expected)
    assert torch.equal(torch.compile(model, fullgraph=True, backend="eager")(), expected)


def test_from_scipy_dups_and_zeros():
    coo = sparse.coo_matrix((np.ones(3), ([0, 0, 1], [1, 1, 0])), shape=(2, 2))
    graph = InteractionGraph.from_scipy(coo, normalization="none")
    assert graph.ui.to_dense().tolist() == coo.toarray().tolist() == [[0, 2], [1, 0]]
    ratings = sparse.csr_matrix(np.array([[1, 0, 5.0], [0, 3, 4]]))
    ratings.data[ratings.data < 4] = 0
    graph = InteractionGraph.from_scipy(ratings)
    assert ratings.nnz == 4 and graph.nnz == 2  # the matrix is left as it was
    drawn = [sample_bpr(graph, 2) for _ in range(20)]
    assert {int(i) for batch in drawn for i in batch.pos_item} == {2}


def test_negative_weights_silent_zero():
    for normalization in ("row", "row_sqrt", "sym"):
        with pytest.raises(InputError, match=f"user 0 .*'{normalization}' divides by it, got -1;"):
            InteractionGraph.from_edges(
                [0, 0, 1], [1, 2, 0], 2, 3, value=[1.0, -2.0, 1.0], normalization=normalization
            )


def test_pandas_filtered():
    user, item, value = filtered([0, 1, 2]), filtered([2, 0, 3]), filtered([3.0, 4.0, 5.0])
    graph = InteractionGraph.from_edges(user, item, 3, 4, value=value)
    assert graph.index.col.tolist() == [2, 0, 3] and graph.value.tolist() == [3, 4, 5]
    with pytest.raises(InputError, match="user: expected integer ids, got float64; drop missing"):
        InteractionGraph.from_edges(value, item, 6, 4)
