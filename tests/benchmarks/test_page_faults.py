"""The comparison of the allocator's settings runs."""

from __future__ import annotations

import re

from benchmarks import bench_page_faults


def test_a_row():
    row = bench_page_faults.compare("`spmm`, TikTok", rounds=2, seconds=0)
    number = r"[\d,.]+"
    assert re.fullmatch(
        rf"\| `spmm`, TikTok \| {number} ms \| {number} \| {number} ms \| {number} \| {number} \|",
        row,
    )
