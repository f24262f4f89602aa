"""The comparison of memory with its prediction, of made-up measurements."""

from __future__ import annotations

import json
import re

from benchmarks.sharded_memory import draw, predicted_bytes, table, with_others
from mmssl.plotting import figure_to_svg


def process(users: int, items: int, training: float, halo: float = 0) -> dict:
    return {
        "users": users,
        "items": items,
        "base_bytes": 1e9,
        "training_bytes": training,
        "starting_bytes": training - 1e9,
        "list_bytes": halo * 0.2,
        "halo_bytes": halo * 0.8,
        "sent_bytes": 5e6,
        "predicted_sent_bytes": 5e6,
    }


RECORD = {
    "options": {"users": 90, "items": 10, "limit": 6.0},
    "runs": {
        1: [process(90, 10, 9e9)],
        2: [process(45, 5, 5.5e9, 0.5e9), process(45, 5, 5.2e9, 0.5e9)],
    },
    "limited": {1: {"trains": False, "reason": "can't allocate memory"}, 2: {"trains": True}},
}


def test_a_share_of_what_one_process_needs_and_what_travels():
    alone, (first, _) = RECORD["runs"][1][0], RECORD["runs"][2]
    assert predicted_bytes(alone, alone, 100) == 9e9
    assert predicted_bytes(first, alone, 100) == 1e9 + 4e9 + 0.5e9


def test_numbers_of_processes_that_were_measured_one_by_one(tmp_path):
    whole = {**RECORD, "options": {**RECORD["options"], "processes": [1, 2]}}
    one, two = (
        {
            "options": {**RECORD["options"], "processes": [size]},
            "runs": {size: RECORD["runs"][size]},
            "limited": {size: RECORD["limited"][size]},
        }
        for size in (1, 2)
    )
    file = tmp_path / "record.json"
    file.write_text(json.dumps(two))
    assert with_others(one, file) == whole
    other = {**one, "options": {**one["options"], "users": 91}}
    assert with_others(other, file) == other


def test_the_largest_process_of_every_run_in_a_table_and_a_plot():
    head, _, one, two = table(RECORD)
    assert head.endswith("trains with at most 6 GB |")
    assert one.startswith("| 1 | 9.00 GB | 9.00 GB (+0%) |") and one.endswith("out of memory |")
    assert two.startswith("| 2 | 5.50 GB | 5.50 GB (+0%) | 4.50 GB |") and two.endswith("| yes |")
    svg = figure_to_svg(lambda figure: draw(figure, RECORD), 5, 3)
    words = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert {"measured", "predicted", "limit of 6 GB", "1", "2"} <= set(words)
