"""`mmssl bench` on the command line: smoke run of all suites, reports, README, bad input."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import bench_train_step
from benchmarks.harness.record import read, read_all
from benchmarks.report import readme
from benchmarks.report.page import markdown
from mmssl.cli import main

ROOT = Path(__file__).resolve().parents[2]


def bench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run in a subprocess, without the real data sets."""
    variables = {k: v for k, v in os.environ.items() if k != "MMSSL_DATA"}
    return subprocess.run(
        [sys.executable, "-m", "mmssl", "bench", *arguments],
        cwd=ROOT, env=variables | environment, capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The smoke run of all suites."""
    folder = tmp_path_factory.mktemp("bench")
    done = bench("--smoke", "--out", str(folder))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    # Torch's profiler, among others, writes lines of its own unless it is told not to.
    assert done.stderr == ""
    return folder, done.stdout


@pytest.mark.slow
def test_every_suite_writes_its_file(smoke):
    folder, text = smoke
    for suite in ("ops", "step", "evaluate", "scale", "models"):
        found = read(folder / f"{suite}-cpu-smoke.json")
        assert found.suite == suite and found.environment["smoke"]
        for key in ("name", "threads", "simd", "torch", "commit", "versions", "rates"):
            assert found.environment[key], key
        assert found.environment["data"] == "stand-ins"
        for case in found.cases:
            assert case.baseline in case.rows
            for name, row in case.rows.items():
                assert 0 < row.full.q1_ms <= row.full.median_ms <= row.full.q3_ms, (case.op, name)
    assert "limit" in text and "times the baseline" in text


@pytest.mark.slow
def test_every_op_is_measured_against_its_reference(smoke):
    cases = {case.op: case for case in read(smoke[0] / "ops-cpu-smoke.json").cases}
    assert set(cases) == {
        "propagate", "info_nce", "masked_topk, k = 20", "sample_bpr", "batch_edges",
        "bpr_loss with L2", "modality graphs", "norm_act", "keep_mask", "view_attention",
        "add_normalized", "tall_product", "propagate_layers",
        "masked_similarity_linear",
    }  # fmt: skip
    for op, case in cases.items():
        assert {"native"} < set(case.rows), op
        assert case.rows["native"].error <= 1e-3, op
        assert all(reason for reason in case.missing.values())
    both = cases["info_nce"].rows["native"]
    assert both.forward.median_ms > 0 and both.backward.median_ms > 0
    assert cases["propagate"].limit.parts_ms.keys() == {"gathers", "writes"}


@pytest.mark.slow
def test_the_step_says_where_its_time_goes(smoke):
    (case,) = read(smoke[0] / "step-cpu-smoke.json").cases
    expected = {"sample", "forward", "similarity_rows", "real_rows", "critic_forward"}
    expected |= {"critic_backward", "critic_optimizer", "structure"}
    expected |= {"recommender_loss", "info_nce", "backward", "optimizer"}
    for name, row in case.rows.items():
        spent = row.extra["phases_ms"]
        apart = {"gradient_penalty"} if name == bench_train_step.PEER else set()
        assert set(spent) - {"other"} == expected | apart, name
        assert all(ms >= 0 for ms in spent.values()), name
    assert case.rows[bench_train_step.PEER].relative.median == 1
    assert max(case.rows[bench_train_step.PEER].extra["agreement"].values()) < 1e-2


@pytest.mark.slow
def test_evaluation_and_scale(smoke):
    (case,) = read(smoke[0] / "evaluate-cpu-smoke.json").cases
    assert set(case.rows) == {"mmssl", "torch: matmul, mask, topk", "released, 1 process"}
    assert "extended to" in case.rows["released, 1 process"].note
    sizes = read(smoke[0] / "scale-cpu-smoke.json").cases
    for case in sizes:
        (row,) = case.rows.values()
        assert row.peak_mb > 0 and row.extra["phases_ms"]["backward"] > 0


@pytest.mark.slow
def test_the_reports_need_nothing_else(smoke):
    text = (smoke[0] / "report.md").read_text()
    for title in ("### info_nce", "### training step", "### evaluation", "### step against size"):
        assert title in text
    page = (smoke[0] / "report.html").read_text()
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert "<script" not in page and "src=" not in page
    if "No pictures" not in page:  # with matplotlib
        assert page.count("<svg") >= 4
        for title in ("Roofline", "Native, reference, peers", "Training step"):
            assert f"<h3>{title}</h3>" in page


@pytest.mark.slow
def test_report_of_chosen_files(smoke, tmp_path, capsys):
    file = smoke[0] / "evaluate-cpu-smoke.json"
    assert main(["bench", "report", str(file), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("report: ") == 2
    assert "### evaluation" in (tmp_path / "report.md").read_text()
    assert main(["bench", "report", str(tmp_path)]) == 2
    assert "expected result files, got none" in capsys.readouterr().err


def test_documents_match_the_results(tmp_path):
    """If this fails, run: mmssl bench report --readme."""
    documents = (readme.README, readme.PAGE, readme.NOTES)
    texts = [path.read_text() for path in documents]
    blocks = [readme.summary_block(), readme.block(), readme.limits_block()]
    for text, block in zip(texts, blocks, strict=True):
        assert readme.with_block(text, block) == text
    report = readme.RESULTS / "report.md"
    assert report.read_text() == markdown(read_all([readme.RESULTS]))
    pytest.importorskip("matplotlib", reason='the picture needs pip install "mmssl[report]"')
    copies = [tmp_path / path.name for path in documents]
    for copy, text in zip(copies, texts, strict=True):
        copy.write_text(text)
    readme.write_documents(*copies, tmp_path / "picture.svg")
    assert [copy.read_text() for copy in copies] == texts
    assert readme.PICTURE.read_text().startswith("<svg")
    assert (tmp_path / "picture.svg").read_text().startswith("<svg")


BEGIN, END = (mark.format("bench") for mark in (readme.BEGIN, readme.END))


@pytest.mark.parametrize("text", ["", f"{END}{BEGIN}", f"{BEGIN} twice" * 2])
def test_a_readme_without_its_marks_is_refused(tmp_path, text):
    from mmssl.errors import InputError

    with pytest.raises(InputError, match="expected <!-- bench:begin"):
        readme.with_block(text, "new")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ops", "--smoke", "--peers", "fastest"], "--peers: expected names among native"),
        (["ops", "--data", "nowhere"], "--data: expected a folder of data sets, got nowhere"),
        (["everything"], "invalid choice"),
        (["compare", "a.json", "b.json"], "a.json: No such file"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_cuda_without_a_device(capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("a CUDA device is available")
    assert main(["bench", "ops", "--device", "cuda"]) == 2
    assert "--device cuda: no CUDA device is usable" in capsys.readouterr().err


def test_outside_a_checkout(tmp_path):
    shutil.copytree(ROOT / "mmssl", tmp_path / "mmssl", ignore=shutil.ignore_patterns("*.so"))
    done = subprocess.run(
        [sys.executable, "-m", "mmssl", "bench", "--smoke"], cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "expected mmssl to be installed from a checkout" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_pytest_benchmark_times_the_harness_callables(tmp_path):
    file = tmp_path / "speed.json"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "benchmarks/test_speed.py", "-p", "no:cacheprovider",
         "--benchmark-only", "--benchmark-max-time=0", "--benchmark-min-rounds=1",
         f"--benchmark-json={file}", "-k", "keep_mask or norm_act or propagate-tiktok-native"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    names = {found["name"] for found in json.loads(file.read_text())["benchmarks"]}
    assert names == {
        "test_op[layers-keep_mask-2048-1677-native-full]",
        "test_op[layers-keep_mask-2048-1677-reference-full]",
        "test_op[layers-norm_act-2048-1677-native-forward]",
        "test_op[layers-norm_act-2048-1677-native-full]",
        "test_op[layers-norm_act-2048-1677-reference-forward]",
        "test_op[layers-norm_act-2048-1677-reference-full]",
        "test_op[propagate-tiktok-native-forward]",
        "test_op[propagate-tiktok-native-full]",
    }
