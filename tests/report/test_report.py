"""The report: well-formed HTML, the numbers in it, escaped, self-contained, all or nothing."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mmssl.errors import InputError
from mmssl.report import write_run_report
from mmssl.serving import UserRecommendations

PAYLOAD = "<script>alert('x')</script>\"&amp;"
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Text, tags and attributes; fails on tags that don't nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def epoch_line(number: int, *, recall: float | None = 0.1, loss_name: str = "bpr") -> str:
    event = {
        "event": "epoch",
        "epoch": number,
        "loss": {"total": 1.0 / number, loss_name: 0.5 / number},
        "val": None if recall is None else {"recall@20": recall, "ndcg@20": recall / 2},
        "seconds": 1.5,
    }
    return json.dumps(event) + "\n"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "a-run"
    directory.mkdir()
    metrics = {
        "variant": "paper",
        "seed": 2022,
        "best_epoch": 2,
        "val": {"recall@20": 0.1203, "ndcg@20": 0.0511},
        "test": {"recall@10": 0.0717, "recall@20": 0.1117, "ndcg@20": 0.0498},
        "epochs": [],
        "timing": {"total_seconds": 12.25},
        "environment": {"torch": "9.9.9", "threads": 2},
    }
    (directory / "metrics.json").write_text(json.dumps(metrics))
    lines = [epoch_line(n, recall=r) for n, r in ((1, 0.08), (2, 0.1203), (3, 0.11))]
    (directory / "log.jsonl").write_text('{"event": "start"}\n' + "".join(lines))
    (directory / "config.toml").write_text('variant = "paper"\n')
    return directory


def report_of(directory: Path, **arguments) -> Page:
    path = write_run_report(directory, **arguments)
    assert path == directory / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_everything_is_there(run_dir):
    page = report_of(
        run_dir,
        baselines={"LightGCN": {"recall@20": 0.0931, "ndcg@20": 0.0402}},
        recommendations=[
            UserRecommendations("u-17", ("Alien", "Brazil"), (("Dune", 3.25), ("Heat", 1.5)))
        ],
    )
    for wanted in (
        *("a-run", "paper", "seed 2022", "3 epochs, best 2"),
        *("0.1117", "0.0717", "0.0498", "0.1203", "LightGCN", "0.0931", "0.0402"),
        "+20.0% vs LightGCN",
        *("u-17", "Alien, Brazil", "Dune", "3.25", "Heat"),
        *("9.9.9", "12.25", 'variant = "paper"'),
        *("validation recall@20", "loss: total", "loss: bpr", "0.1203 at epoch 2"),
    ):
        assert wanted in page.text, wanted
    assert page.tags.count("svg") == 1
    assert page.tags.count("path") > 10
    assert (run_dir / "learning_curve.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert (run_dir / "learning_curve.png").stat().st_size > 5000


def test_nothing_is_fetched_and_no_script_runs(run_dir):
    page = report_of(run_dir)
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on"), name
        if name in ("src", "href", "xlink:href"):
            assert (value or "").startswith("#"), value
    text = (run_dir / "report.html").read_text()
    assert "http" not in text
    assert "@import" not in text


def test_colours_follow_the_theme(run_dir):
    write_run_report(run_dir)
    text = (run_dir / "report.html").read_text()
    assert "prefers-color-scheme:dark" in text
    svg = text[text.index("<svg") : text.index("</svg>")]
    assert {"ink", "muted", "line", "accent"} <= set(re.findall(r"var\(--(\w+)\)", svg))
    assert re.findall(r"#[0-9a-f]{6}\b", svg) == []


def test_text_of_strangers_is_escaped(tmp_path):
    directory = tmp_path / "<b>run"
    directory.mkdir()
    metrics = {
        "variant": PAYLOAD,
        "seed": PAYLOAD,
        "best_epoch": PAYLOAD,
        "val": {PAYLOAD: 0.1},
        "test": {f"{PAYLOAD}@20": 0.1, "recall@20": 0.2},
        "baselines": {PAYLOAD: {"recall@20": 0.1}},
        "timing": {PAYLOAD: PAYLOAD},
        "environment": {PAYLOAD: [PAYLOAD]},
    }
    (directory / "metrics.json").write_text(json.dumps(metrics))
    lines = epoch_line(1, loss_name=PAYLOAD) + epoch_line(2, loss_name="$\\frac{")
    (directory / "log.jsonl").write_text(lines)
    (directory / "config.toml").write_text(f"# </pre>{PAYLOAD}")
    row = UserRecommendations(PAYLOAD, (PAYLOAD,), ((PAYLOAD, 1.0),))
    page = report_of(directory, recommendations=[row])
    assert "script" not in page.tags
    assert page.tags.count("b") == 1  # the one tile
    # variant twice, seed, best epoch, baseline and margin, timing, ..., config: as text, every one.
    assert page.text.count("<script>alert('x')</script>") >= 12
    assert "loss: $\\frac{" in page.text


def test_baselines_from_the_metrics_file(run_dir):
    path = run_dir / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["baselines"] = {"popularity": {"recall@20": 0.0564}}
    path.write_text(json.dumps(metrics))
    assert "popularity" in report_of(run_dir).text
    assert "popularity" not in report_of(run_dir, baselines={}).text


def test_a_better_baseline_is_shown_as_better(run_dir):
    write_run_report(run_dir, baselines={"EASE": {"recall@20": 0.25}})
    text = (run_dir / "report.html").read_text()
    assert "<td class=best>0.2500</td>" in text
    assert "<td>0.1117</td>" in text
    assert "-55.3% vs EASE" in text
    table = text[text.index("<tbody>") :]
    assert table.index("EASE") < table.index("this run")


def test_a_line_cut_short_by_a_kill_is_left_out(run_dir):
    log = run_dir / "log.jsonl"
    log.write_text(log.read_text() + epoch_line(4)[:30])
    assert "3 epochs" in report_of(run_dir).text


def test_an_epoch_run_again_after_a_resume_counts_once(run_dir):
    log = run_dir / "log.jsonl"
    log.write_text(log.read_text() + epoch_line(2, recall=0.2222))
    page = report_of(run_dir)
    assert "3 epochs" in page.text
    assert "0.2222 at epoch 2" in page.text


def test_epochs_without_validation_and_values_that_are_not_finite(run_dir):
    lines = [epoch_line(1, recall=None), epoch_line(2), epoch_line(3, recall=float("nan"))]
    (run_dir / "log.jsonl").write_text("".join(lines))
    page = report_of(run_dir)
    assert "0.1000 at epoch 2" in page.text
    assert page.tags.count("svg") == 1


def test_a_run_without_epochs_has_no_picture(run_dir):
    (run_dir / "config.toml").unlink()
    for change in (lambda path: path.write_text(""), Path.unlink):
        change(run_dir / "log.jsonl")
        page = report_of(run_dir)
        assert "No epoch was logged." in page.text
        assert "svg" not in page.tags
    assert not (run_dir / "learning_curve.png").exists()


def test_the_same_run_gives_the_same_bytes(run_dir):
    write_run_report(run_dir)
    first = [(run_dir / name).read_bytes() for name in ("report.html", "learning_curve.png")]
    write_run_report(run_dir)
    again = [(run_dir / name).read_bytes() for name in ("report.html", "learning_curve.png")]
    assert first == again


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.json", None, r"metrics\.json: can't be read: No such file"),
        ("metrics.json", "{", r"metrics\.json: not valid JSON"),
        ("metrics.json", "[1]", r"metrics\.json: expected a JSON object, got list"),
        ("metrics.json", '{"test": 3}', r"metrics\.json: test: expected names with numbers, got 3"),
        ("metrics.json", '{"val": {"recall@20": "x"}}', r"val: recall@20: expected a number"),
        ("metrics.json", '{"baselines": []}', r"baselines: expected names with metrics, got \[\]"),
        ("metrics.json", b"\xff\xfe", r"metrics\.json: expected UTF-8 text, got byte 0"),
        ("log.jsonl", "{\n{}\n", r"log\.jsonl:1: not valid JSON"),
        (
            "log.jsonl",
            '{"event": "epoch"}\n',
            r"log\.jsonl:1: epoch: expected an integer, got None",
        ),
        ("log.jsonl", '{"event": "epoch", "epoch": 1, "loss": 2}\n', r":1: loss: expected names"),
    ],
)
def test_bad_files_end_in_one_line(run_dir, name, content, message):
    path = run_dir / name
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        write_run_report(run_dir)
    assert "\n" not in str(caught.value)
    assert not (run_dir / "report.html").exists()


def test_a_failed_write_keeps_the_old_report(run_dir, monkeypatch):
    write_run_report(run_dir)
    before = (run_dir / "report.html").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="can't write the file: No space left on device"):
        write_run_report(run_dir)
    assert (run_dir / "report.html").read_bytes() == before
    assert sorted(path.name for path in run_dir.iterdir()) == [
        "config.toml",
        "learning_curve.png",
        "log.jsonl",
        "metrics.json",
        "report.html",
    ]


def test_without_matplotlib_the_extra_is_named(run_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"needs matplotlib: .*mmssl\[report\]"):
        write_run_report(run_dir)
