"""The report in a real browser: no error, no request, no overflow, both themes, visible curves."""

from __future__ import annotations

import io
import shutil
from contextlib import contextmanager

import pytest

from mmssl.report import write_report

playwright = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is not installed (extra test)"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on PATH (Debian: apt-get install chromium)"
)
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
).split()
WIDTHS = (390, 1280)


@pytest.fixture(scope="module")
def report(finished, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    runs = [finished / name for name in ("mmssl", "seeds", "popularity")]
    write_report(runs, path, map_method="pca")
    return path


@pytest.fixture(scope="module")
def chromium():
    """The Chromium of the system; Playwright downloads none."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def opened(chromium, report, width: int = 1280, *, dark: bool = False):
    """The report at a width, in one of the two themes; `heard` holds what the page reported."""
    page = chromium.new_page(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if dark else "light",
        has_touch=width < 600,
    )
    page.heard = []
    for event in ("console", "pageerror"):
        page.on(event, lambda message: page.heard.append(str(message)))
    page.on("request", lambda request: page.heard.append(request.url))
    page.goto(report.as_uri())
    yield page
    page.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_loads_without_an_error_or_a_request(chromium, report, width, dark):
    with opened(chromium, report, width, dark=dark) as page:
        # `details` opened, so that nothing hides.
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.body.scrollWidth") <= width
        assert [heard for heard in page.heard if not heard.startswith("data:")] == [report.as_uri()]


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_sticks_out(chromium, report, width):
    """Not even inside: wide tables scroll, all else fits its box; texts don't leave their chart."""
    with opened(chromium, report, width) as page:
        wider = page.evaluate(
            "[...document.querySelectorAll('main *:not(.scroll *):not(pre *)')]"
            ".filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML)"
        )
        assert wider == []
        cut = page.evaluate(
            "[...document.querySelectorAll('svg')].flatMap(s => {"
            "const b = s.getBoundingClientRect();"
            "return [...s.querySelectorAll('text')].filter(t => {"
            "const r = t.getBoundingClientRect();"
            "return r.left < b.left - 1 || r.right > b.right + 1 || r.bottom > b.bottom + 1 })"
            ".map(t => t.textContent) })"
        )
        assert cut == []
        smallest = page.evaluate(
            "Math.min(...[...document.querySelectorAll('svg text')]"
            ".map(t => t.getBoundingClientRect().height))"
        )
        assert smallest > 9


def test_the_curves_are_drawn_in_the_colors_of_their_runs(chromium, report):
    with opened(chromium, report) as page:
        lines = page.evaluate(
            "[...document.querySelectorAll('.line > path')].map(p => [p.getTotalLength(),"
            " getComputedStyle(p).stroke])"
        )
        assert len(lines) >= 6
        assert all(length > 50 for length, _ in lines)
        assert len({stroke for _, stroke in lines}) == 2  # popularity has no epochs
        assert page.evaluate("document.querySelectorAll('.bar path').length") >= 3 * 4


def test_every_color_of_a_chart_follows_the_theme(chromium, report):
    """Each shape and text of the charts looks different in the dark theme."""
    script = (
        "[...document.querySelectorAll('svg text, svg use, svg path:not(defs *)')]"
        ".map(e => { const s = getComputedStyle(e); return [s.fill, s.stroke].join() })"
    )
    looks = []
    for dark in (False, True):
        with opened(chromium, report, dark=dark) as page:
            looks.append(page.evaluate(script))
    assert len(looks[0]) > 100
    assert [light for light, dark in zip(*looks, strict=True) if light == dark] == []


def test_a_point_says_what_it_is(chromium, report):
    """Markers are `use` elements: they are drawn, and their tooltips are theirs."""
    with opened(chromium, report) as page:
        markers = page.evaluate(
            "[...document.querySelectorAll('svg use')].map(u => [u.getBoundingClientRect().width,"
            " u.querySelector('title') && u.querySelector('title').textContent])"
        )
    assert len(markers) > 50
    assert all(width > 1 for width, _ in markers)
    texts = [text for _, text in markers if text is not None]
    assert any(text.startswith("mmssl: ") for text in texts)


def test_the_two_themes(chromium, report):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra report)")
    corners, inks = [], []
    for dark in (False, True):
        with opened(chromium, report, 800, dark=dark) as page:
            picture = image.open(io.BytesIO(page.screenshot())).convert("L")
            inks.append(page.evaluate("getComputedStyle(document.body).color"))
        corners.append(picture.getpixel((2, 2)))
        assert sum(count > 0 for count in picture.histogram()) > 50  # something is on it
    assert corners[0] > 240 and corners[1] < 40
    assert inks[0] != inks[1]
