"""The page of `xpcnn report` in Chromium: it shows all pictures, sorts tables, asks for nothing, fits any screen."""

from __future__ import annotations

import numpy as np
import pytest
from browser.driver import chromium
from PIL import Image
from report_runs import HOSTILE, train

from xpcnn.cli import main

pytestmark = pytest.mark.browser

LOADED = "return Promise.all([...document.images].map(i => i.decode())).then(() => document.images.length)"
COLUMN = (
    """return [...document.querySelectorAll(arguments[0] + ' tbody tr')].map(r => r.cells[arguments[1]].textContent)"""
)
CLICK = """document.querySelectorAll(arguments[0] + ' thead th button')[arguments[1]].click()"""
SORTED = """return document.querySelectorAll(arguments[0] + ' thead th')[arguments[1]].getAttribute('aria-sort')"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = train(tmp_path_factory.mktemp("run"))
    assert main(["report", str(folder), "--device", "cpu"]) == 0
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def opened(browser, page):
    """The page in a window of 1100 x 800, with all pictures decoded."""
    browser.look_like(1100, 800)
    browser.log(), browser.requests()
    browser.open(page)
    assert browser.run(LOADED) >= 14
    return browser


def column(browser, table: str, number: int) -> list[str]:
    return browser.run(COLUMN, table, number)


def test_all_pictures_are_there_and_nothing_is_asked_for(opened, page):
    assert opened.run("return [...document.images].filter(i => !(i.naturalWidth > 0)).map(i => i.alt)") == []
    asked = opened.requests()
    assert page.resolve().as_uri() in asked
    assert [url for url in asked if not url.startswith("data:") and url != page.resolve().as_uri()] == []
    assert opened.log() == []


def test_what_the_log_and_the_policy_are_worth(opened, tmp_path):
    """The test above would notice: a script, a style and a picture that do not belong are refused and logged."""
    opened.run("document.body.insertAdjacentHTML('beforeend', '<img src=\"http://127.0.0.1:9/x.png\">')")
    opened.run("const s = document.createElement('script'); s.textContent = 'window.evil = 1'; document.body.append(s)")
    opened.run("document.body.setAttribute('style', 'color: red')")
    assert opened.run("return window.evil") is None
    assert sum("Content Security Policy" in line for line in opened.log()) >= 3


def test_hostile_class_names_do_nothing(opened):
    assert column(opened, "#classes", 0) == HOSTILE
    assert opened.run("return document.scripts.length") == 1
    assert opened.run("return document.querySelectorAll('[onerror]').length") == 0


def test_tables_sort_by_number_and_by_name_and_back(opened):
    opened.run(CLICK, "#network", 3)
    found = [int(text.replace(",", "")) for text in column(opened, "#network", 3)]
    assert found == sorted(found)
    assert opened.run(SORTED, "#network", 3) == "ascending"
    opened.run(CLICK, "#network", 3)
    assert [int(text.replace(",", "")) for text in column(opened, "#network", 3)] == sorted(found, reverse=True)
    assert opened.run(SORTED, "#network", 3) == "descending"
    opened.run(CLICK, "#network", 0)
    assert column(opened, "#network", 0) == [str(i) for i in range(len(found))]  # 10 comes after 9
    assert opened.run(SORTED, "#network", 3) is None
    opened.run(CLICK, "#classes", 0)
    assert column(opened, "#classes", 0) == opened.run(
        "return arguments[0].sort((a, b) => a.localeCompare(b))", HOSTILE
    )


@pytest.mark.parametrize("width", [320, 390, 768, 1100])
def test_it_fits_the_screen(opened, width):
    opened.look_like(width, 844)
    assert opened.run("return document.documentElement.scrollWidth") <= width
    wide = "return [...document.images].filter(i => i.getBoundingClientRect().right > innerWidth + 1).length"
    assert opened.run(wide) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_curves_stand_out_from_the_page(opened, tmp_path, scheme):
    opened.look_like(1100, 800, scheme)
    style = "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
    ink, paper = ([int(part) for part in text[4:-1].split(",")] for text in opened.run(style))
    assert contrast(ink, paper) > 7
    assert (sum(paper) < 200) == (scheme == "dark")
    opened.run("document.querySelector('#curves').scrollIntoView()")
    box = opened.run("return document.querySelector('#curves img').getBoundingClientRect().toJSON()")
    corners = [round(box[side]) for side in ("left", "top", "right", "bottom")]
    opened.screenshot(tmp_path / "shot.png")
    with Image.open(tmp_path / "shot.png") as shot:
        pixels = np.asarray(shot.convert("RGB").crop(corners)).reshape(-1, 3).tolist()
    assert pixels[0] == paper  # a figure has no paper of its own
    assert max(contrast(pixel, paper) for pixel in set(map(tuple, pixels))) > 10  # letters and axes


def test_on_paper_it_is_light_and_whole(opened):
    opened.look_like(800, 1100, "light", "print")
    opened.run("dispatchEvent(new Event('beforeprint'))")
    assert opened.run("return [...document.querySelectorAll('details')].every(d => d.open)")
    assert opened.run("return getComputedStyle(document.querySelector('nav')).display") == "none"
    assert opened.run("return getComputedStyle(document.querySelector('img.drawn')).filter") == "none"


def contrast(one, other) -> float:
    """Return the contrast of two colours as WCAG 2 defines it, 1 to 21."""

    def luminance(colour):
        shares = [value / 255 for value in colour[:3]]
        linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
