"""The report: well-formed HTML, the numbers in it, escaped, self-contained, all or nothing."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mmssl import plotting
from mmssl.cli import main
from mmssl.data.dataset import InteractionDataset
from mmssl.data.writers import write_dataset
from mmssl.errors import InputError
from mmssl.report import write_report
from mmssl.report.charts import light_theme
from tests.conftest import ROOT
from tests.report.conftest import epoch_line, write_run

matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra report)")
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


def report_of(*runs: Path, **arguments) -> Page:
    path, _ = write_report(runs, **arguments)
    assert path == runs[0] / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_one_run_by_hand(run_dir):
    page = report_of(run_dir)
    for wanted in (
        *("a-run", "mmssl paper", "seed 2022", "3 epochs, best 2", "data set not found"),
        *("0.1117", "0.0717", "0.0498", "0.1203"),
        *("9.9.9", "12.25", 'variant = "paper"', "embedding_dim = 64"),
        *("Validation recall@20", "Loss: total", "Loss: bpr", "a-run: 0.1203 at 2"),
    ):
        assert wanted in page.text, wanted
    assert page.tags.count("svg") == 4
    assert "Coverage" not in page.text


def test_everything_of_several_runs(finished):
    names = ("mmssl", "seeds", "popularity")
    page = report_of(*(finished / name for name in names), map_method="pca")
    metrics = json.loads((finished / "mmssl" / "metrics.json").read_text())
    of_seeds = [
        json.loads((finished / "seeds" / f"seed-{n}" / "metrics.json").read_text()) for n in (1, 2)
    ]
    values = [m["test"]["recall@20"] for m in of_seeds]
    assert f"{metrics['test']['recall@20']:.4f}" in page.text
    assert f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}" in page.text
    for wanted in (
        "mmssl against seeds, popularity",
        "tiny: 80 users, 50 items",
        *("lightgcn, 2 seeds", "Lines are means over the seeds"),
        *("Coverage and popularity bias", "Gini", "what users chose (test)"),
        *("PCA of the item vectors of mmssl, 50 items", "train interactions of the user"),
        *("Examples", "held out", "Held-out test items are marked."),
    ):
        assert wanted in page.text, wanted
    # curves: recall, ndcg, losses; two charts of exposure; the map
    assert page.tags.count("svg") >= 8
    assert page.attributes.count(("class", "band")) >= 2  # the range over the seeds
    assert page.tags.count("ol") == 9


def test_nothing_is_fetched_and_no_script_runs(finished):
    page = report_of(finished / "mmssl", finished / "lightgcn", map_method="pca")
    assert not {"script", "iframe", "object", "embed", "form"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on"), name
        if name in ("src", "href", "xlink:href"):
            assert (value or "").startswith(("data:", "#")), value
    text = (finished / "mmssl" / "report.html").read_text()
    assert "http:" not in text and "https:" not in text
    assert "@import" not in text and "url(" not in text
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text


def test_ids_are_unique_and_links_stay_in_their_chart(finished):
    """Two inline SVGs share one document: an id that repeats would draw another chart's marker."""
    report_of(finished / "mmssl", finished / "seeds", map_method="pca")
    text = (finished / "mmssl" / "report.html").read_text()
    identifiers = re.findall(r' id="([^"]*)"', text)
    assert len(identifiers) >= 8 and len(set(identifiers)) == len(identifiers)
    charts = re.findall("<svg.*?</svg>", text, re.DOTALL)
    labels = [re.search('role="img" aria-label="([^"]+)"', chart)[1] for chart in charts]
    assert len(set(labels)) == len(labels) >= 8
    for chart in charts:
        links = set(re.findall(' href="#([^"]*)"', chart))
        assert links == set(re.findall(' id="([^"]*)"', chart))


def test_colors_are_stated_once(finished):
    """Charts hold names of colors, so both themes apply; the light theme has no color twice."""
    theme = light_theme()
    assert len(set(theme.values())) == len(theme) > 12
    assert {plotting.INK, plotting.MUTED, plotting.LINE, plotting.BLUE} <= set(theme.values())
    report_of(finished / "mmssl", map_method="pca")
    text = (finished / "mmssl" / "report.html").read_text()
    body = text[text.index("<body>") :]
    assert not re.search("#[0-9a-f]{6}", body)
    names = set(re.findall(r"var\(--(\w+)\)", body))
    assert names >= {"muted", "line", "panel", "s0", "p0", "p4"} and names <= set(theme)


def test_untrusted_text_is_escaped(tmp_path, tiny_dataset):
    run = write_run(
        tmp_path / "<b>run",
        tmp_path / "moved",
        tiny_dataset,
        variant=PAYLOAD,
        model=PAYLOAD,
        seed=PAYLOAD,
        best_epoch=PAYLOAD,
        val={PAYLOAD: 0.1},
        test={f"{PAYLOAD}@20": 0.1, "recall@20": 0.2},
        timing={PAYLOAD: PAYLOAD},
        environment={PAYLOAD: [PAYLOAD]},
    )
    lines = epoch_line(1, loss_name=PAYLOAD) + epoch_line(2, loss_name="$\\frac{")
    (run / "log.jsonl").write_text(lines)
    (run / "config.toml").write_text((run / "config.toml").read_text() + f"# </pre>{PAYLOAD}")
    page = report_of(run)
    assert "script" not in page.tags
    assert page.tags.count("b") == 1  # the one tile
    assert page.text.count("<script>alert('x')</script>") >= 10
    assert "Loss: $\\frac{" in page.text


def test_untrusted_titles_are_escaped(tmp_path, tiny_dataset):
    fields = {**vars(tiny_dataset), "item_titles": (PAYLOAD,) * tiny_dataset.num_items}
    fields["user_ids"] = tuple(f"{PAYLOAD}{n}" for n in range(tiny_dataset.num_users))
    write_dataset(InteractionDataset(**fields), tmp_path / "data")
    command = ["train", "--data", str(tmp_path / "data"), "--model", "lightgcn", "--epochs", "1"]
    assert main([*command, "--out", str(tmp_path / "run"), "--quiet"]) == 0
    page = report_of(tmp_path / "run", users=[f"{PAYLOAD}3"], map_method="pca")
    assert "script" not in page.tags
    assert page.text.count("<script>alert('x')</script>") > 50


def test_a_better_run_is_shown_as_better(tmp_path, tiny_dataset, run_dir):
    other = write_run(tmp_path / "EASE", tmp_path / "moved", tiny_dataset, test={"recall@20": 0.25})
    report_of(run_dir, other)
    text = (run_dir / "report.html").read_text()
    assert "<td class=best>0.2500</td>" in text
    assert "<td>0.1117</td>" in text
    assert "-55.3% vs EASE" in text
    table = text[text.index("<tbody>") :]
    assert table.index("EASE") < table.index("a-run")


def test_runs_of_one_name_are_distinguished(tmp_path, tiny_dataset):
    runs = [
        write_run(tmp_path / where / "same", tmp_path / "moved", tiny_dataset)
        for where in ("one", "two")
    ]
    page = report_of(*runs)
    assert "one/same" in page.text and "two/same" in page.text


def test_a_line_cut_short_by_a_kill_is_left_out(run_dir):
    log = run_dir / "log.jsonl"
    log.write_text(log.read_text() + epoch_line(4)[:30])
    assert "3 epochs" in report_of(run_dir).text


def test_an_epoch_run_again_after_a_resume_counts_once(run_dir):
    log = run_dir / "log.jsonl"
    log.write_text(log.read_text() + epoch_line(2, recall=0.2222))
    page = report_of(run_dir)
    assert "3 epochs" in page.text
    assert "0.2222 at 2" in page.text


def test_epochs_without_validation_and_values_that_are_not_finite(run_dir):
    lines = [epoch_line(1, recall=None), epoch_line(2), epoch_line(3, recall=float("nan"))]
    (run_dir / "log.jsonl").write_text("".join(lines))
    page = report_of(run_dir)
    assert "a-run: 0.1 at 2" in page.text
    assert page.tags.count("svg") == 4


def test_a_run_without_epochs_has_no_picture(run_dir):
    for change in (lambda path: path.write_text(""), Path.unlink):
        change(run_dir / "log.jsonl")
        page = report_of(run_dir)
        assert "No epoch was logged." in page.text
        assert "svg" not in page.tags


def test_the_same_runs_give_the_same_bytes(finished, tmp_path):
    """Whatever the user's matplotlibrc says."""
    pages = []
    for size in (10.0, 25.0):
        with matplotlib.rc_context({"font.size": size, "lines.linestyle": ":"}):
            write_report([finished / "mmssl", finished / "seeds"], tmp_path / f"{size}.html")
        pages.append((tmp_path / f"{size}.html").read_bytes())
    assert pages[0] == pages[1]
    assert b"t-SNE of the item vectors" in pages[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.toml", None, r"not a run directory"),
        ("metrics.json", None, r"the run is not finished"),
        ("metrics.json", "{", r"metrics\.json: not valid JSON"),
        ("metrics.json", "[1]", r"metrics\.json: expected a JSON object, got list"),
        ("metrics.json", '{"test": 3}', r"metrics\.json: test: expected names with numbers, got 3"),
        ("metrics.json", '{"val": {"recall@20": "x"}}', r"val: recall@20: expected a number"),
        ("metrics.json", b"\xff\xfe", r"metrics\.json: expected UTF-8 text, got an inv"),
        ("log.jsonl", "{\n{}\n", r"log\.jsonl:1: not valid JSON"),
        (
            "log.jsonl",
            '{"event": "epoch"}\n',
            r"log\.jsonl:1: epoch: expected an integer >= 0, got None",
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
        write_report([run_dir])
    assert "\n" not in str(caught.value)
    assert not (run_dir / "report.html").exists()


def test_a_seed_that_is_not_finished_is_named(tmp_path, tiny_dataset):
    for seed in (1, 2):
        write_run(tmp_path / "runs" / f"seed-{seed}", tmp_path / "moved", tiny_dataset)
    (tmp_path / "runs" / "seed-2" / "metrics.json").unlink()
    with pytest.raises(InputError, match="seed-2: the run is not finished"):
        write_report([tmp_path / "runs"])


def test_other_data_is_refused(run_dir, finished):
    import dataclasses

    from mmssl.training.run import RunDirectory

    run = RunDirectory.open(run_dir)
    run.info = run.info._replace(data_hash="0" * 64)
    run.initialize()
    with pytest.raises(InputError, match="was trained on other data than"):
        write_report([finished / "mmssl", run_dir])
    assert dataclasses.is_dataclass(run.config)


def test_a_failed_write_keeps_the_old_report(run_dir, monkeypatch):
    write_report([run_dir])
    before = (run_dir / "report.html").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="can't write the file: No space left on device"):
        write_report([run_dir])
    assert (run_dir / "report.html").read_bytes() == before
    names = ["config.toml", "log.jsonl", "metrics.json", "report.html"]
    assert sorted(path.name for path in run_dir.iterdir()) == names


def test_without_matplotlib_the_extra_is_named(run_dir, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.style", None)
    assert main(["report", str(run_dir)]) == 2
    message = capsys.readouterr().err
    assert 'expected it installed (pip install "mmssl[report]")' in message
    assert message.count("\n") == 1 and not (run_dir / "report.html").exists()


def test_matplotlib_is_imported_only_to_draw():
    code = "import sys, mmssl.report; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_names_that_fit_no_utf8(run_dir):
    """JSON may escape half a character; the page shows a question mark."""
    (run_dir / "log.jsonl").write_text(epoch_line(1, loss_name="\ud800"))
    assert "Loss: ?" in report_of(run_dir).text


def test_without_scikit_learn_the_extra_is_named(finished, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(InputError, match=r"mmssl\[report\]\"\) or --map pca"):
        write_report([finished / "mmssl"], tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []
    write_report([finished / "mmssl"], tmp_path / "page.html", map_method="pca")


def test_pictures_of_items(finished, tmp_path):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra report)")
    folder = tmp_path / "images"
    folder.mkdir()
    for item in range(50):
        image.new("RGB", (300, 200 + item), (5 * item, 90, 200)).save(folder / f"{item}.png")
    (folder / "3.png").write_bytes(b"not a picture")
    (folder / "notes.txt").write_text("no picture either")
    page_path = tmp_path / "page.html"
    write_report([finished / "mmssl"], page_path, images=folder, users=["5"], map_method="none")
    page = Page(page_path.read_text())
    sources = [value for name, value in page.attributes if name == "src"]
    assert len(sources) > 12
    assert all(value.startswith("data:image/webp;base64,") for value in sources)
    assert page_path.stat().st_size < 200_000
    with pytest.raises(InputError, match="expected files ID.jpg"):
        write_report([finished / "mmssl"], page_path, images=tmp_path / "images" / "..")


def test_the_command(finished, tmp_path, capsys):
    out = tmp_path / "page.html"
    command = ["report", str(finished / "mmssl"), "--out", str(out), "--map", "pca"]
    assert main([*command, "--against", str(finished / "seeds"), "--user", "3"]) == 0
    printed = capsys.readouterr().out
    assert "recall@20" in printed and "+-" in printed and f"report: {out}" in printed
    assert "User 3" in out.read_text()
    for options, message in (
        (["--user", "unknown"], "got 'unknown'"),
        (["--examples", "-1"], "--examples: expected at least 0"),
        (["--images", str(tmp_path / "none")], "No such file"),
        (["--data", str(tmp_path)], "train.json"),
    ):
        before = out.read_bytes()
        assert main([*command, *options]) == 2
        assert message in capsys.readouterr().err
        assert out.read_bytes() == before
