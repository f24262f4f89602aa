"""An export reproduces the lists of its run without the data set; every format can be loaded."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from mmssl.cli import main
from mmssl.errors import InputError
from mmssl.serving import Recommender
from mmssl.serving.export import export
from mmssl.serving.tables import MANIFEST, tables_of_run

K = 7


def test_the_export_alone_gives_the_lists_of_the_run(world, exported):
    users = [f"user-{n:03d}" for n in range(80)]
    of_run = Recommender.load(world / "run")
    code = (
        "import json, sys; from mmssl.serving import Recommender\n"
        "r = Recommender.load(sys.argv[1])\n"
        f"print(json.dumps(r.recommend({users!r}, {K})))"
    )
    # In another process and folder, without access to the data set.
    (world / "data").rename(world / "elsewhere")
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(exported)], capture_output=True, text=True, check=True
        )
    finally:
        (world / "elsewhere").rename(world / "data")
    expected = of_run.recommend(users, K)
    assert json.loads(done.stdout) == [[list(item) for item in row] for row in expected]
    assert all(len(row) == K for row in expected)
    for kind in ({}, {"seen": "all"}):
        assert Recommender.load(world / "run", **kind).recommend(users, K, filter_seen=False) == (
            of_run.recommend(users, K, filter_seen=False)
        )


def test_either_file_of_vectors_is_enough(world, exported, tmp_path):
    users = ["user-000", "user-079"]
    expected = Recommender.load(exported).recommend(users, K)
    for form in ("npz", "safetensors"):
        target = tmp_path / form
        assert main(["export", str(world / "run"), "--to", str(target), "--formats", form]) == 0
        assert Recommender.load(target).recommend(users, K) == expected
    target = tmp_path / "none"
    command = ["export", str(world / "run"), "--to", str(target), "--formats", "torch-export"]
    assert main(command) == 0
    with pytest.raises(InputError, match="export again with --formats npz"):
        Recommender.load(target)


def test_the_manifest_describes_the_export(world, exported):
    manifest = json.loads((exported / MANIFEST).read_text())
    assert (manifest["num_users"], manifest["num_items"]) == (80, 50)
    assert manifest["embedding_dim"] == 16 and manifest["model"] == "mmssl"
    assert manifest["data"]["name"] == "named" and len(manifest["data"]["hash"]) == 64
    assert manifest["num_cold_items"] == 1
    assert manifest["feature_map"]["modalities"] == ["image", "text"]
    assert set(manifest["files"]) == {p.name for p in exported.iterdir()} - {MANIFEST}
    seen = np.load(exported / "seen.npz")
    dataset = tables_of_run(world / "run")
    assert seen["rowptr"][-1] == seen["col"].size == dataset.graph.nnz == manifest["num_seen"]
    lines = (exported / "items.tsv").read_text().splitlines()
    assert lines[:2] == ["item\tid\ttitle", '0\tb0\tFilm "0", part']


def test_too_few_items_for_a_map_from_features(world, tmp_path):
    tables = tables_of_run(world / "run")
    few = torch.zeros_like(tables.train_degree)
    few[:4] = 1
    with pytest.warns(UserWarning, match="new items: 4 items have train interactions, and 5 are"):
        export(dataclasses.replace(tables, train_degree=few), tmp_path / "few", ["npz"])
    assert Recommender.load(tmp_path / "few").tables.feature_map is None


def test_whoever_may_read_one_file_may_read_all(exported, tmp_path):
    (tmp_path / "plain").touch()
    expected = (tmp_path / "plain").stat().st_mode
    assert {file.name: file.stat().st_mode for file in exported.iterdir()} == {
        file.name: expected for file in exported.iterdir()
    }


def test_seen_interactions(world, recommender, tmp_path):
    dataset = tables_of_run(world / "run")
    held_out = tables_of_run(world / "run", seen="all")
    assert held_out.graph.nnz > dataset.graph.nnz
    first, last = dataset.graph.index.rowptr[:2].tolist()
    mine = {f"b{n}" for n in dataset.graph.index.col[first:last].tolist()}
    assert mine
    (row,) = recommender.recommend(["user-000"], 100)
    assert {one.item for one in row} == {f"b{n}" for n in range(50)} - mine
    (row,) = recommender.recommend(["user-000"], 100, filter_seen=False)
    assert len(row) == 50
    target = tmp_path / "all"
    assert main(["export", str(world / "run"), "--to", str(target), "--seen", "all"]) == 0
    (row,) = Recommender.load(target, seen="all").recommend(["user-000"], 100)
    assert len(row) < 50 - len(mine)
    with pytest.raises(InputError, match="expected seen = 'all', as exported"):
        Recommender.load(target, seen="train")


def test_a_target_with_files_is_refused(world, exported, capsys):
    before = sorted(p.name for p in exported.iterdir())
    assert main(["export", str(world / "run"), "--to", str(exported)]) == 2
    assert "expected a new or empty directory" in capsys.readouterr().err
    assert sorted(p.name for p in exported.iterdir()) == before


def test_bad_requests_leave_nothing(world, tmp_path, capsys, monkeypatch):
    run, target = str(world / "run"), tmp_path / "out"
    assert main(["export", run, "--to", str(target), "--formats", "pickle"]) == 2
    assert "--formats: expected names among npz, " in capsys.readouterr().err
    assert main(["export", run, "--to", str(target), "--top-k", "0"]) == 2
    for extra, form, module in (("ann", "faiss", "faiss"), ("onnx", "onnx", "onnx")):
        monkeypatch.setitem(sys.modules, module, None)
        capsys.readouterr()
        assert main(["export", run, "--to", str(target), "--formats", "npz", form]) == 2
        assert f'pip install "mmssl[{extra}]"' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["embeddings.safetensors", "seen.npz", "items.tsv"])
def test_damage_is_found(world, tmp_path, name):
    target = tmp_path / "export"
    assert main(["export", str(world / "run"), "--to", str(target)]) == 0
    data = bytearray((target / name).read_bytes())
    data[len(data) // 2] ^= 1
    (target / name).write_bytes(data)
    with pytest.raises(
        InputError, match=f"{name}: expected content with the hash in manifest.json"
    ):
        Recommender.load(target)
    (target / name).unlink()
    with pytest.raises(InputError, match=f"{name}: can't be read"):
        Recommender.load(target)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 9}', '{"format": 1}'])
def test_other_manifests(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(InputError, match=MANIFEST) as caught:
        Recommender.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_scorer_of_torch_export(world, tmp_path, recommender):
    target = tmp_path / "out"
    command = ["export", str(world / "run"), "--to", str(target), "--formats", "torch-export"]
    assert main([*command, "--top-k", str(K)]) == 0
    program = torch.export.load(target / "scorer.pt2").module()
    for users in ([3], [0, 1, 79], list(range(80))):
        score, item = program(*scorer_input(recommender, users))
        check_lists(recommender, users, score.numpy(), item.numpy())


def test_the_scorer_of_onnx(world, tmp_path, recommender):
    pytest.importorskip("onnx", reason="onnx is not installed (extra onnx, 30 MB)")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (80 MB)")
    target = tmp_path / "out"
    command = ["export", str(world / "run"), "--to", str(target), "--formats", "onnx"]
    assert main([*command, "--top-k", str(K)]) == 0
    session = runtime.InferenceSession(
        str(target / "scorer.onnx"), providers=["CPUExecutionProvider"]
    )
    for users in ([3], [0, 1, 79], list(range(80))):
        inputs = (x.numpy() for x in scorer_input(recommender, users))
        score, item = session.run(None, dict(zip(("users", "exclude"), inputs, strict=True)))
        check_lists(recommender, users, score, item)


def test_the_index_of_faiss(world, tmp_path, recommender):
    faiss = pytest.importorskip("faiss", reason="faiss is not installed (extra ann)")
    target = tmp_path / "out"
    assert main(["export", str(world / "run"), "--to", str(target), "--formats", "faiss"]) == 0
    index = faiss.read_index(str(target / "items.faiss"))
    assert (index.ntotal, index.d) == (50, 16)
    users = list(range(80))
    seen = recommender.tables.graph.index
    longest = int(seen.rowptr.diff().max())
    score, item = index.search(recommender.tables.vectors.user[users].numpy(), K + longest)
    for user in users:
        mine = seen.col[seen.rowptr[user] : seen.rowptr[user + 1]].numpy()
        kept = ~np.isin(item[user], mine)
        check_lists(recommender, [user], score[user][kept][:K][None], item[user][kept][:K][None])


def scorer_input(recommender, users):
    """Return users and their seen items, padded with -1."""
    seen = recommender.tables.graph.index
    lists = [seen.col[seen.rowptr[u] : seen.rowptr[u + 1]].long() for u in users]
    padded = torch.nn.utils.rnn.pad_sequence(lists, batch_first=True, padding_value=-1)
    return torch.tensor(users), padded


def check_lists(recommender, users, score, item):
    """Compare with the lists of the recommender, except for rounding between adjacent items."""
    rows = recommender.recommend([f"user-{u:03d}" for u in users], K)
    expected = np.array([[one.score for one in row] for row in rows], dtype=np.float32)
    np.testing.assert_allclose(score, expected, rtol=1e-5, atol=1e-6)
    same = item == [[int(one.item.removeprefix("b")) for one in row] for row in rows]
    gap = np.abs(np.diff(expected, prepend=np.inf, append=-np.inf))
    assert (same | (np.minimum(gap[:, :-1], gap[:, 1:]) < 1e-5)).all()


def test_many_threads_get_the_answers_of_one(recommender):
    users = [[f"user-{n:03d}", f"user-{(7 * n) % 80:03d}"] for n in range(80)] * 5
    expected = [recommender.recommend(pair, K) for pair in users]
    similar = [recommender.similar_items(f"b{n % 50}", 5) for n in range(400)]
    fresh = Recommender(recommender.tables)  # values cached on first use are computed concurrently

    def ask(number):
        return fresh.recommend(users[number], K), fresh.similar_items(f"b{number % 50}", 5)

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(ask, range(400)))
    assert got == list(zip(expected, similar, strict=True))
