"""The report in a real browser: no error, no request, no overflow, both themes, curves in sight."""

from __future__ import annotations

import io

import pytest

from mmssl.report import write_report
from tests.report.browser import Browser, find_chromium

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on PATH (Debian: apt-get install chromium)"
)
WIDTHS = (390, 1280)


@pytest.fixture(scope="module")
def page(finished, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    runs = [finished / name for name in ("mmssl", "seeds", "popularity")]
    write_report(runs, path, map_method="pca")
    return path


@pytest.fixture(scope="module")
def browser():
    assert CHROMIUM is not None
    with Browser(CHROMIUM) as browser:
        yield browser


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_loads_without_a_word_or_a_request(browser, page, width, dark):
    browser.open(page, width, dark=dark)
    # `details` opened, so that nothing hides.
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("document.body.scrollWidth") <= width
    methods = {event["method"] for event in browser.events}
    assert not methods & {
        "Runtime.exceptionThrown",
        "Runtime.consoleAPICalled",
        "Log.entryAdded",
    }, [event for event in browser.events if event["method"].startswith(("Log", "Runtime"))]
    asked = [
        event["params"]["request"]["url"]
        for event in browser.events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_sticks_out(browser, page, width):
    """Not even inside: wide tables scroll, all else fits its box; texts don't leave their chart."""
    browser.open(page, width)
    wider = browser.evaluate(
        "[...document.querySelectorAll('main *:not(.scroll *):not(pre *)')]"
        ".filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML)"
    )
    assert wider == []
    cut = browser.evaluate(
        "[...document.querySelectorAll('svg')].flatMap(s => { const b = s.getBoundingClientRect();"
        "return [...s.querySelectorAll('text')].filter(t => { const r = t.getBoundingClientRect();"
        "return r.left < b.left - 1 || r.right > b.right + 1 || r.bottom > b.bottom + 1 })"
        ".map(t => t.textContent) })"
    )
    assert cut == []
    smallest = browser.evaluate(
        "Math.min(...[...document.querySelectorAll('svg text')]"
        ".map(t => t.getBoundingClientRect().height))"
    )
    assert smallest > 9


def test_the_curves_are_drawn_in_the_colours_of_their_runs(browser, page):
    browser.open(page, 1280)
    lines = browser.evaluate(
        "[...document.querySelectorAll('path.line')].map(p => [p.getTotalLength(),"
        " getComputedStyle(p).stroke])"
    )
    assert len(lines) >= 6
    assert all(length > 50 for length, _ in lines)
    assert len({stroke for _, stroke in lines}) == 2  # popularity has no epochs
    bars = browser.evaluate("document.querySelectorAll('rect.bar').length")
    assert bars >= 3 * 4


def test_the_two_themes(browser, page):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra report)")
    corners, inks = [], []
    for dark in (False, True):
        browser.open(page, 800, dark=dark)
        picture = image.open(io.BytesIO(browser.screenshot())).convert("L")
        corners.append(picture.getpixel((2, 2)))
        inks.append(browser.evaluate("getComputedStyle(document.body).color"))
        values = picture.histogram()
        assert sum(v > 0 for v in values) > 50  # something is on it
    assert corners[0] > 240 and corners[1] < 40
    assert inks[0] != inks[1]
