"""`mmssl bench models`: phases and limits of a step."""

from __future__ import annotations

import pytest

from benchmarks import bench_models, model_phases
from benchmarks.report.tables import model_tables
from tests.ops.kernels import needs_compiler, needs_cpu_kernel

BATCH = 200


@needs_compiler
@needs_cpu_kernel
@pytest.mark.parametrize(
    ("model", "phases"),
    [
        ("lightgcn", {"sampling", model_phases.LIGHTGCN}),
        ("plus", {"sampling", "propagation", "item graph", "softmax and contrast", "Adam"}),
    ],
)
def test_phases_add_up_to_the_step_and_each_has_a_limit(model, phases):
    case = bench_models.step(model, "smoke", turns=1, batch=BATCH)
    row = case.rows["native"]
    assert row.extra["phases_ms"].keys() == {*phases, model_phases.REST}
    assert sum(row.extra["phases_ms"].values()) == pytest.approx(row.full.median_ms)
    assert case.limit.parts_ms.keys() == phases
    assert all(part > 0 for part in case.limit.parts_ms.values())
    assert case.limit.ms == pytest.approx(sum(case.limit.parts_ms.values()))
    (table,) = model_tables([case])
    assert len(table.rows) == 1 + len(row.extra["phases_ms"])


@needs_compiler
@needs_cpu_kernel
def test_limits_count_every_hop_forward_and_backward():
    task = bench_models.make_task("lightgcn", bench_models.workloads.dataset("smoke"), BATCH)
    task.start_epoch(0, 0)
    parts = model_phases.parts_of(task, lambda: task.step(0))
    adam, hops, rows = (part for part in parts if part.phase == model_phases.LIGHTGCN)
    assert hops.times == 2 * bench_models.LAYERS
    assert rows.probe.bytes == 4 * 64 * 2 * 3 * BATCH
    assert adam.probe.bytes == 28 * 64 * (task.graph.num_users + task.graph.num_items)
