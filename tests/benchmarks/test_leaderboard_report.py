"""The leaderboard's tables, tests and picture, from records with known numbers."""

from __future__ import annotations

import re

import numpy as np
import pytest

from benchmarks.leaderboard import records, report
from benchmarks.leaderboard.board import load
from benchmarks.leaderboard.entries import entries
from benchmarks.leaderboard.records import pack, unpack
from benchmarks.report.readme import with_block
from mmssl.config import read_toml

USERS = 40
MACHINE = {
    "name": "a processor", "threads": 2, "torch": "2.13.0", "commit": "abc", "busy": False,
}  # fmt: skip
DATA = {
    "name": "tiktok", "hash": "0" * 64, "split": {"protocol": "given", "parameters": {}},
    "users": 50, "items": 30, "train": 300, "val": 40, "test": 40, "features": {"image": 8},
    "neighbors": [],
}  # fmt: skip


def seed(label, number, users, *, base=None, trained=True, busy=False, **changes):
    """A record whose metrics are all the mean of the users' recall."""
    mean = float(np.mean(users))
    keys = [f"{m}@{k}" for m in ("recall", "ndcg", "precision", "hit") for k in (10, 20)]
    times = {"seconds": 3.0}
    if trained:
        times |= {"seconds_per_epoch": 0.5, "seconds_to_best": 2.0, "evaluate_seconds": 0.1}
    return {
        "kind": "seed", "label": label, "model": "m", "base": base, "seed": number,
        "tuning": {"trials": 4, "chosen": 1, "parameters": {"m.lr": 0.002, "m.layers": 2}},
        "state": "complete", "test": dict.fromkeys(keys, mean), "users": pack(users),
        "groups": {
            "sparse": {"users": 9, "recall@20": mean / 2}, "cold": {"users": 0},
            "tail": {"users": 20, "recall@20": mean / 4},
        },
        "coverage@20": 0.5, "best_epoch": 7 if trained else 0, "epochs": 9 if trained else 0,
        **times, "peak_mb": 400.0, "parameters": 1280, "environment": {**MACHINE, "busy": busy},
        **changes,
    }  # fmt: skip


@pytest.fixture
def results(tmp_path):
    """Two models from three seeds, one in closed form, an ablation, a diverged seed."""
    generator = np.random.default_rng(0)
    users = {
        "best": generator.random((3, USERS)) * 0.2 + 0.4,
        "next": generator.random((3, USERS)) * 0.2 + 0.3,
        "best, no part": generator.random((3, USERS)) * 0.2 + 0.2,
    }
    records.write(tmp_path / "tiktok" / "data.json", DATA)
    for label, rows in users.items():
        base = "best" if "," in label else None
        for number, row in enumerate(rows, 1):
            path = tmp_path / "tiktok" / label.replace(", ", "-") / f"seed-{number}.json"
            records.write(path, seed(label, number, row, base=base, busy=label == "next"))
    diverged = {"state": "diverged", "reason": "NaN", "test": None, "label": "best", "base": None}
    records.write(tmp_path / "tiktok" / "best" / "seed-4.json", diverged)
    closed = seed("closed", 1, np.full(USERS, 0.1), trained=False)
    closed["tuning"] = {"trials": 0, "chosen": None, "parameters": {}}
    records.write(tmp_path / "tiktok" / "closed" / "seed-1.json", closed)
    return tmp_path, users


def test_means_deviations_and_tests(results):
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    folder, users = results
    (part,) = load(folder)
    assert [row.label for row in part.models()] == ["best", "next", "closed"]
    best, second, closed = part.models()
    (ablation,) = part.ablations(best)
    means = [row.mean() for row in users["best"]]
    assert best.value("test", "recall@20") == pytest.approx((np.mean(means), np.std(means, ddof=1)))
    assert closed.value("test", "recall@20") == (pytest.approx(0.1), None)
    assert closed.value("seconds_per_epoch") is None and best.diverged == 1
    found = best.minus(second)
    expected = stats.ttest_rel(users["best"].mean(0), users["next"].mean(0)).pvalue
    assert found.p_users == pytest.approx(expected, rel=1e-4)
    others = [row.mean() for row in users["next"]]
    expected = stats.ttest_ind(means, others, equal_var=False).pvalue
    assert found.p_seeds == pytest.approx(expected, rel=1e-4)
    assert found.mean == pytest.approx(np.mean(means) - np.mean(others))
    assert ablation.minus(best).mean < 0
    assert best.minus(closed).p_seeds is None and best.minus(best) == (0, 1, 1)


def test_tables(results):
    pytest.importorskip("scipy", reason="scipy is not installed")
    folder, users = results
    other = {**DATA, "name": "other", "features": {}, "neighbors": ["text"]}
    other["split"] = {"protocol": "leave-one-out", "parameters": {}}
    records.write(folder / "other" / "data.json", other)
    records.write(folder / "other" / "best" / "seed-1.json", seed("best", 1, users["best"][0]))
    records.write(folder / "untouched" / "data.json", {**DATA, "name": "untouched"})
    text = report.block(load(folder))
    assert "untouched" not in text
    part, first = text.split("### tiktok")[1], text.split("### tiktok")[0]
    mean, deviation = (f(users["best"].mean(1)) for f in (np.mean, lambda x: np.std(x, ddof=1)))
    shown = f"**{mean:.4f} ± {deviation:.4f}**".replace("0.", ".")
    assert f"| best | {' | '.join([shown] * 6)} | 3, 1 diverged | 4 |" in part
    assert re.search(
        r"Recall@20 of best minus that of next: \+\.\d+; over users p < \.001, over", part
    )
    assert "| closed |  |  | 3 | 400 | 1,280 |  |" in part
    assert "| next | 0.5 * | 7 | 2 * | 400 | 1,280 | lr 0.002, layers 2 |" in part
    assert "long-tail items (20 users) | cold items (0 users) | sparse users (9 users)" in part
    assert "Ablations of best" in part and "| no part | 3 | ." in part
    assert "| DiffMM | .1129 |  | .0456 |  | test | unknown |" in part
    assert "2 threads of a processor, torch 2.13.0, commit abc." in part
    assert "split leave-one-out; item graph of text" in first
    assert "|  | HR@10 | HR@20 | NDCG@10 | NDCG@20 | seeds | trials |" in first
    assert "Not run on this data set: next, closed." in first
    assert "|  | tiktok | other |" in first  # the data set with more models comes first
    table = first.partition("### ")[0]
    assert f"| best | **{mean:.4f}** | **".replace("0.", ".") in table
    assert re.search(r"\| next \| \.\d{4} \|  \|\n\| closed \| \.1000 \|  \|\n", table)
    assert "published" not in first


def test_the_picture_has_a_panel_per_data_set(results):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    svg = report.overview(load(results[0]))
    assert svg.startswith("<svg") and all(name in svg for name in ("tiktok", "best", "closed"))
    assert "no part" not in svg


def test_published_figures_stand_next_to_ours(results, tmp_path, monkeypatch):
    text = report.PUBLISHED.read_text(encoding="utf-8")
    changed = tmp_path / "published.toml"
    changed.write_text(text.replace("[label]", '[label]\nDiffMM = "closed"'), encoding="utf-8")
    monkeypatch.setattr(report, "PUBLISHED", changed)
    part = next(part for part in load(results[0]) if part.data["name"] == "tiktok")
    closed = next(row for row in part.models() if row.label == "closed")
    recall, ndcg = (f"{closed.value('test', k).mean:.4f}"[1:] for k in ("recall@20", "ndcg@20"))
    assert f"| DiffMM | .1129 | {recall} | .0456 | {ndcg} | test |" in report.block([part])


def test_published_figures_are_complete():
    content = read_toml(report.PUBLISHED)
    assert set(content["label"].values()) <= {entry.label for entry in entries()}
    for figures in content["data"].values():
        for source, rows in figures.items():
            assert set(content["source"][source]) == {"text", "epoch", "tuning", "note"}
            assert {content["source"][source][key] for key in ("epoch", "tuning")} <= {
                "validation", "test", "unknown",
            }  # fmt: skip
            assert all(0 < ndcg < recall < 0.2 for _, recall, ndcg in rows)


def test_the_page_matches_the_results(tmp_path):
    """If this fails, run: python -m benchmarks.leaderboard report."""
    pytest.importorskip("scipy", reason="scipy is not installed")
    text = report.PAGE.read_text(encoding="utf-8")
    found = load(report.RESULTS)
    assert with_block(text, report.block(found), report.BLOCK) == text
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    page, picture = tmp_path / "page.md", tmp_path / "picture.svg"
    page.write_text(text, encoding="utf-8")
    written = report.write_page(page=page, picture=picture)
    assert page.read_text(encoding="utf-8") == text
    assert (picture in written) == picture.exists() == report.PICTURE.exists()


def test_packed_numbers():
    values = np.array([0.0, 1 / 3, 1.0])
    np.testing.assert_allclose(unpack(pack(values)), values, rtol=1e-7)
