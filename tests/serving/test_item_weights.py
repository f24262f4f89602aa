"""A model with item weights is exported, served and reported like any other."""

from __future__ import annotations

import json

import pytest
import torch

from mmssl.cli import main
from mmssl.errors import InputError
from mmssl.serving import Recommender
from mmssl.serving.tables import MANIFEST, tables_of_run
from mmssl.training.run import RunDirectory

USERS = [f"user-{n:03d}" for n in range(80)]


@pytest.fixture(scope="module")
def run(world):
    command = ["train", "--data", str(world / "data"), "--model", "ease", "--quiet"]
    assert main([*command, "--out", str(world / "ease"), "--set", "ease.reg=20"]) == 0
    return world / "ease"


@pytest.fixture(scope="module")
def recommender(run):
    return Recommender.load(run)


@pytest.mark.parametrize(
    "options", [(), ("--formats", "npz"), ("--formats", "safetensors"), ("--seen", "all")]
)
def test_an_export_has_the_scores_of_the_run(run, recommender, tmp_path, options):
    assert main(["export", str(run), "--to", str(tmp_path / "export"), *options]) == 0
    manifest = json.loads((tmp_path / "export" / MANIFEST).read_text())
    assert manifest["score"] == "item weights" and "embedding_dim" not in manifest
    exported = Recommender.load(tmp_path / "export")
    # The history that is scored stays that of train, whatever is excluded.
    expected = recommender.recommend(USERS, 50, filter_seen=False)
    assert exported.recommend(USERS, 50, filter_seen=False) == expected
    same = "--seen" not in options
    assert (exported.recommend(USERS, 50) == recommender.recommend(USERS, 50)) == same


def test_scores_are_sums_over_the_history(run, recommender):
    tables = tables_of_run(run)
    weight, history = tables.scorer.weight.double(), tables.graph.ui.to_dense() > 0
    expected = history.double() @ weight
    got = recommender.score("user-005", ["b0", "b49"])
    assert got == pytest.approx(expected[5, [0, 49]].tolist(), rel=1e-5)
    (row,) = recommender.recommend(["user-005"], 3)
    order = expected[5].masked_fill(history[5], -torch.inf).argsort(descending=True)
    assert [item.item for item in row] == [f"b{n}" for n in order[:3].tolist()]
    similar = recommender.similar_items("b7", 50)
    order = weight[7].argsort(descending=True)
    kept = [f"b{n}" for n in order.tolist() if n != 7 and weight[7, n] != 0]
    assert [item.item for item in similar] == kept


def test_a_new_user_with_the_history_of_a_known_one(run, recommender, capsys):
    tables = tables_of_run(run)
    pointer, column = tables.graph.index.rowptr, tables.graph.index.col
    mine = [f"b{n}" for n in column[pointer[9] : pointer[10]].tolist()]
    expected = recommender.recommend(["user-009"], 5)
    others = recommender.for_users({"ann": mine, "bob": []})
    assert others.recommend(["ann"], 5) == expected
    assert others.recommend(["bob", "ann"], 5) == [[], *expected]
    assert others.recommend(["ann"], 50, filter_seen=False) == recommender.recommend(
        ["user-009"], 50, filter_seen=False
    )
    assert main(["recommend", str(run), "--history", *mine, "--top-k", "5", "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["item_ids"] == [item.item for item in expected[0]]
    assert main(["recommend", str(run), "--history", "b999"]) == 2
    assert "item: expected one of the data set's 50 item ids" in capsys.readouterr().err


def test_features_of_new_items_need_vectors(world, run, capsys):
    command = ["recommend", str(run), "--user", "user-005", "--new-items", str(world / "data")]
    assert main(command) == 2
    message = "error: model ease: expected user and item vectors, got item weights\n"
    assert capsys.readouterr().err == message


def test_what_needs_vectors_is_refused(world, run, recommender, tmp_path, capsys):
    words = "model ease: expected user and item vectors, got item weights"
    for form in ("torch-export", "onnx", "faiss"):
        pytest.importorskip("faiss" if form == "faiss" else "onnx" if form == "onnx" else "torch")
        assert main(["export", str(run), "--to", str(tmp_path / "x"), "--formats", form]) == 2
        assert words in capsys.readouterr().err and not (tmp_path / "x").exists()
    assert main(["recommend", str(run), "--user", "user-005", "--cold"]) == 2
    assert words in capsys.readouterr().err
    with pytest.raises(InputError, match=words):
        recommender.with_items(["new"], {})
    vectors = Recommender.load(world / "run")
    with pytest.raises(InputError, match="model mmssl: expected item weights, .* got user vectors"):
        vectors.for_users({"ann": ["b1"]})


def test_a_report_compares_both_kinds(world, run, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra report)")
    command = ["report", str(run), "--against", str(world / "run"), "--user", "user-003"]
    assert main([*command, "--out", str(tmp_path / "page.html")]) == 0
    assert "ease" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    (best,) = Recommender.load(run).recommend(["user-003"], 1)[0]
    assert best.title.split(",")[0].replace('"', "&quot;") in page or best.title in page


def test_numbers_that_are_not_finite(run, tmp_path):
    directory = RunDirectory.open(run)
    tensors = dict(directory.load_model().tensors)
    before = (run / "model.safetensors").read_bytes()
    tensors["weights.dense"] = tensors["weights.dense"].fill_(torch.nan)
    directory.save_model(tensors)
    try:
        with pytest.raises(InputError, match="weights.dense: expected finite values"):
            Recommender.load(run)
    finally:
        (run / "model.safetensors").write_bytes(before)
