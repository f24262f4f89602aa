"""The cost model: its tables are those of the page, and its parts agree with counting."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import scale_constants, scale_model
from benchmarks.scale_costs import EVERY, H200, Graph, degrees, halo, memory, step

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scale.md"


def test_the_page_has_the_tables_of_the_script(tmp_path):
    text = PAGE.read_text()
    for name in scale_model.TABLES:
        assert f"<!-- scale: {name} -->\n|" in text
    copy = tmp_path / "scale.md"
    copy.write_text(text)
    scale_model.main([str(copy)])
    assert copy.read_text() == text, "run: python -m benchmarks.scale_model docs/scale.md"


def test_everything_is_printed(capsys):
    scale_model.main([])
    printed = capsys.readouterr().out
    assert all(table() in printed for table in scale_model.TABLES.values())


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_halo_against_drawn_graphs(processes):
    graph = Graph(users=4000, items=1500, edges=30_000)
    (of_user, users), (of_item, items) = degrees(graph)
    assert users.sum() == graph.users and items.sum() == graph.items
    assert (of_user * users).sum() == pytest.approx(graph.edges, rel=0.03)
    assert (of_item * items).sum() == pytest.approx(graph.edges, rel=0.1)
    rng = np.random.default_rng(0)
    # Edges with the degrees of the model: probabilities of users and items by rank.
    weight = [np.repeat(degree, count) for degree, count in ((of_user, users), (of_item, items))]
    user, item = (rng.choice(w.size, graph.edges, p=w / w.sum()) for w in weight)
    received = 0
    for one, other, size, others in ((user, item, 4000, 1500), (item, user, 1500, 4000)):
        owner, home = rng.integers(processes, size=size), rng.integers(processes, size=others)
        remote = owner[one] != home[other]
        received += np.unique(other[remote] * processes + owner[one][remote]).size
    # Degrees of drawn graphs scatter around those of the model, which leaves some nodes bare.
    assert received / processes == pytest.approx(halo(graph, processes), rel=0.1)


def test_halo_is_bounded_by_the_rows_of_others():
    for graph in EVERY:
        rows = [halo(graph, processes) for processes in (2, 4, 8, 16)]
        total = [r * p for r, p in zip(rows, (2, 4, 8, 16), strict=True)]
        assert total == sorted(total) and halo(graph, 1) == 0
        assert all(r < graph.nodes * (p - 1) / p for r, p in zip(rows, (2, 4, 8, 16), strict=True))


def test_sharding_divides_and_data_does_not():
    graph = EVERY[1]
    one, eight = step(graph, H200, 1), step(graph, H200, 8)
    assert one.wire == 0 and one.binds == eight.binds == "gathers"
    assert eight.gathers == pytest.approx(one.gathers / 8)
    assert step(graph, H200, 8, sharded=False).gathers == one.gathers
    assert step(graph, H200, 16).wire == pytest.approx(2 * step(graph, H200, 16, wire_bytes=2).wire)
    assert memory(graph, 8, sharded=False) == memory(graph, 1) > 2 * memory(graph, 8)


@pytest.mark.slow
def test_constants_of_a_small_graph(tmp_path):
    out = tmp_path / "constants.json"
    scale_constants.main(["--smoke", "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["step"]["seconds"] > 0 and found["step"]["edges"] > 10_000
    assert all(value > 0 for value in found["rates"].values())
