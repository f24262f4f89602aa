"""Results of the Recommender against formulas, unknown ids, new items and the batch command."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch

from mmssl.cli import main
from mmssl.data.dataset import Interactions
from mmssl.errors import InputError
from mmssl.serving import Recommender
from mmssl.serving.cold import fit_feature_map


def test_scores_are_dot_products(recommender):
    tables = recommender.tables
    got = recommender.score("user-005", ["b0", "b49"])
    assert got == pytest.approx((tables.vectors.item[[0, 49]] @ tables.vectors.user[5]).tolist())
    (row,) = recommender.recommend(["user-005"], 3)
    assert recommender.score("user-005", [one.item for one in row]) == pytest.approx(
        [one.score for one in row]
    )
    assert recommender.score("user-005", []) == []


def test_similar_items_by_cosine(recommender):
    unit = torch.nn.functional.normalize(recommender.tables.vectors.item)
    cosine = unit @ unit[7]
    cosine[7] = -2
    expected = cosine.topk(5)
    got = recommender.similar_items("b7", 5)
    assert [one.item for one in got] == [f"b{n}" for n in expected.indices.tolist()]
    assert [one.score for one in got] == pytest.approx(expected.values.tolist(), abs=1e-6)
    assert len(recommender.similar_items("b7", 1000)) == 49


def test_titles(recommender):
    rows = recommender.recommend(["user-005"], 50, filter_seen=False)
    titles = {one.item: one.title for one in rows[0]}
    assert titles["b3"] == "" and titles["b8"] == 'Film "8", part'


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda r: r.recommend(["user-05"]), r"80 user ids, such as 'user-0\d\d', .*got 'user-05'"),
        (lambda r: r.recommend("user-005"), "users: expected a list of ids, got 'user-005'"),
        (lambda r: r.recommend([5]), "user: expected one of .* got '5'"),
        (lambda r: r.recommend(["user-005"], 0), "k: expected an integer of at least 1, got 0"),
        (lambda r: r.recommend(["user-005"], 2.5), "k: expected an integer of at least 1, got 2.5"),
        (lambda r: r.similar_items("b50"), "item: expected one of .* such as .* got 'b50'"),
        (lambda r: r.score("user-005", ["b0", "x"]), "item: expected one of .* got 'x'"),
    ],
)
def test_bad_requests(recommender, ask, message):
    with pytest.raises(InputError, match=message) as caught:
        ask(recommender)
    assert "\n" not in str(caught.value)


def test_the_feature_map_recovers_a_linear_map():
    generator = torch.Generator().manual_seed(0)
    rows = {"a": torch.randn(300, 6, generator=generator)}
    truth = torch.nn.functional.normalize(rows["a"]) @ torch.randn(6, 4, generator=generator) + 1
    degree = torch.randint(0, 5, (300,), generator=generator)
    noisy = truth + 0.01 * torch.randn(truth.shape, generator=generator)
    noisy[degree == 0] = 1e3  # vectors of cold items are ignored by the fit
    fitted = fit_feature_map(rows, noisy, degree)
    assert fitted.explained > 0.99
    cold = degree == 0
    assert (fitted({"a": rows["a"][cold]}) - truth[cold]).abs().max() < 0.05
    with pytest.raises(InputError, match=r"features\['a'\]: expected shape \(N, 6\)"):
        fitted({"a": rows["a"][:, :5]})
    with pytest.raises(InputError, match="features: expected a, got b"):
        fitted({"b": rows["a"]})
    with pytest.raises(InputError, match="finite"):
        fitted({"a": rows["a"] * torch.inf})
    with pytest.raises(InputError, match="at least 5 items with train interactions"):
        fit_feature_map(rows, noisy, torch.zeros(300, dtype=torch.int64))


def test_cold_items_come_from_their_features(exported, recommender):
    cold = Recommender.load(exported, cold=True)
    tables = recommender.tables
    assert tables.cold_items.tolist() == [4]
    assert torch.equal(cold.tables.vectors.item[4], tables.cold_vectors[0])
    assert torch.equal(cold.tables.vectors.item[5:], tables.vectors.item[5:])


def test_new_items(recommender):
    rng = np.random.default_rng(0)
    features = {name: rng.normal(size=(2, 12)).astype(np.float32) for name in ("image", "text")}
    more = recommender.with_items(["n0", "n1"], features, ["New", "Newer"])
    assert recommender.tables.num_items == 50
    expected = recommender.tables.feature_map({k: torch.from_numpy(v) for k, v in features.items()})
    assert more.score("user-001", ["n0", "n1"]) == pytest.approx(
        (expected @ recommender.tables.vectors.user[1]).tolist()
    )
    (row,) = more.recommend(["user-001"], 100)
    (old,) = recommender.recommend(["user-001"], 100)
    kept = [one for one in row if one.item[0] == "b"]
    assert [(one.item, one.title) for one in kept] == [(one.item, one.title) for one in old]
    # A product of torch rounds a score differently among more items; the kernel does not.
    assert [one.score for one in kept] == pytest.approx([one.score for one in old], rel=1e-6)
    assert {(one.item, one.title) for one in row} >= {("n0", "New"), ("n1", "Newer")}
    for ids, titles, message in (
        (["n0"], None, "expected 2 ids and titles"),
        (["n0", "b3"], None, "new, unique ids, got 'b3' twice"),
        (["n0", "n0"], None, "got 'n0' twice"),
        (["n0", "n1"], ["New"], "expected 2 ids and titles"),
    ):
        with pytest.raises(InputError, match=message):
            recommender.with_items(ids, features, titles)


def test_batches_from_the_command_line(world, exported, tmp_path, capsys):
    users = tmp_path / "users.txt"
    users.write_text("user-003\n\nuser-070\r\n")
    command = ["recommend", str(exported), "--users", str(users), "--top-k", "4"]
    assert main([*command, "--format", "csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [(r["user"], r["rank"]) for r in rows] == [
        (user, str(rank)) for user in ("user-003", "user-070") for rank in range(1, 5)
    ]
    assert main([*command, "--format", "json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [item for line in lines for item in line["item_ids"]] == [r["item"] for r in rows]
    assert [label for line in lines for label, _ in line["items"]] == [r["title"] for r in rows]
    out = tmp_path / "all.csv"
    for source in (exported, world / "run"):
        assert main(["recommend", str(source), "--all", "--format", "csv", "--out", str(out)]) == 0
        content = out.read_text()
        assert content.count("\n") == 1 + 20 * 80
    assert sorted(p.name for p in tmp_path.iterdir()) == ["all.csv", "users.txt"]


def test_nothing_is_written_for_an_unknown_user(exported, tmp_path, capsys):
    users, out = tmp_path / "users.txt", tmp_path / "out.csv"
    users.write_text("user-003\nuser-3\n")
    command = ["recommend", str(exported), "--users", str(users), "--out", str(out)]
    assert main(command) == 2
    assert f"{users}: line 2: user: expected one of the data set's" in capsys.readouterr().err
    users.write_text("\n")
    assert main(command) == 2
    assert "expected one user id per line, got none" in capsys.readouterr().err
    assert main(["recommend", str(exported), "--users", str(tmp_path / "none")]) == 2
    assert main([*command, "--user", "user-003"]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["users.txt"]


def test_seen_cold_and_new_items_on_the_command_line(exported, tmp_path, capsys):
    base = ["recommend", str(exported), "--user", "user-003", "--top-k", "100", "--json"]

    def items(*more):
        assert main([*base, *more]) == 0
        return json.loads(capsys.readouterr().out)["item_ids"]

    assert len(items("--keep-seen")) == 50 > len(items())
    assert set(items("--cold")) == set(items())
    folder = tmp_path / "new"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("image", "text"):
        np.save(folder / f"{name}_feat.npy", rng.normal(size=(2, 12)).astype(np.float32))
    assert {"new-0", "new-1"} <= set(items("--new-items", str(folder)))
    (folder / "items.tsv").write_text("item\tid\ttitle\n0\tx\tX\n1\ty\tY\n")
    assert {"x", "y"} <= set(items("--new-items", str(folder)))
    (folder / "text_feat.npy").unlink()
    assert main([*base, "--new-items", str(folder)]) == 2
    assert "text_feat.npy" in capsys.readouterr().err


def test_a_run_without_features(tmp_path, capsys):
    from mmssl.data.dataset import InteractionDataset
    from mmssl.data.writers import write_dataset

    bare = InteractionDataset(
        name="bare",
        num_users=2,
        num_items=4,
        train=Interactions.from_edges([0, 1], [0, 1]),
        val=Interactions.from_edges([0], [1]),
        test=Interactions.from_edges([1], [0]),
    )
    write_dataset(bare, tmp_path / "data")
    run, target = str(tmp_path / "run"), str(tmp_path / "export")
    data = str(tmp_path / "data")
    assert main(["train", "--data", data, "--model", "popularity", "--out", run, "--quiet"]) == 0
    assert main(["export", run, "--to", target]) == 0
    (row,) = Recommender.load(target).recommend(["1"], 3)
    assert [one.item for one in row] == ["0", "2", "3"]
    capsys.readouterr()
    assert main(["recommend", target, "--user", "1", "--cold"]) == 2
    assert "cold: expected data with item features" in capsys.readouterr().err
    assert main(["recommend", target, "--user", "1", "--new-items", data]) == 2
    assert "expected a run with item features" in capsys.readouterr().err
