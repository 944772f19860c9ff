"""The page of `xpcnn serve` in Chromium: a digit is chosen or dropped, its class is read, and the map lies over it."""

from __future__ import annotations

import base64
import time

import numpy as np
import pytest
from browser.driver import chromium
from browser.test_report import contrast
from PIL import Image
from report_runs import HOSTILE
from serve.running import noise, png, running
from toys import SHAPE, small_classifier

from xpcnn import Classifier, zoo
from xpcnn.data import mnist
from xpcnn.serve import Limits

pytestmark = pytest.mark.browser

ROWS = "return [...document.querySelectorAll('#classes tbody tr')].map(row => [...row.cells].map(c => c.textContent))"
TEXT = "return document.querySelector(arguments[0]).textContent"
DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), c => c.charCodeAt(0)), data = new DataTransfer();
data.items.add(new File([bytes], arguments[1], {type: arguments[2]}));
const options = {dataTransfer: data, bubbles: true, cancelable: true};
for (const type of ["dragover", "drop"]) document.querySelector("#drop").dispatchEvent(new DragEvent(type, options));
"""
INK = """
const map = document.querySelector("#map"), dots = map.getContext("2d").getImageData(0, 0, map.width, map.height).data;
return [...dots].filter((_, i) => i % 4 === 3);
"""


@pytest.fixture(scope="module")
def digits():
    return mnist()


@pytest.fixture(scope="module")
def classifier(digits):
    found = Classifier(zoo.build("lenet", 10), device="cpu", seed=1)
    found.fit(digits[0], epochs=1, batch_size=50, verbose=False)
    return found


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def service(classifier):
    with running(Limits(seconds=60), classifier) as found:
        yield found


@pytest.fixture
def page(browser, service):
    """The page, opened and ready; what it asked for and what the console said is thrown away."""
    browser.look_like(1100, 800)
    browser.open(f"http://127.0.0.1:{service.port}/")
    wait_for(lambda: browser.run("return document.querySelector('#wanted').options.length") == 10)
    browser.log(), browser.requests()
    yield browser
    browser.open("about:blank")


def wait_for(truth):
    end = time.monotonic() + 30
    while not truth():
        assert time.monotonic() < end, "this never came true"
        time.sleep(0.05)


def sure_digit(classifier, digits, wanted):
    """Return a test image of a digit that the network recognises, as a file of another size."""
    test = digits[1]
    chosen = np.flatnonzero((test.labels == wanted) & (classifier.predict(test.x) == wanted))[0]
    return png(np.asarray(Image.fromarray(test.x[chosen, 0]).resize((112, 112))))


def drop(browser, content, name="digit.png", kind="image/png"):
    browser.run(DROP, base64.b64encode(content).decode(), name, kind)


def shown(browser) -> bool:
    return browser.run("return !document.querySelector('#result').hidden")


def text(browser, selector) -> str:
    return browser.run(TEXT, selector)


def test_a_chosen_file_is_recognised_and_explained(page, service, classifier, digits, tmp_path):
    content = sure_digit(classifier, digits, 7)
    (tmp_path / "digit.png").write_bytes(content)
    page.type("#file", str(tmp_path / "digit.png"))
    wait_for(lambda: shown(page))
    answer = service.predict(content, "?explain=true").json
    rows = page.run(ROWS)
    assert [row[0] for row in rows] == [row["class"] for row in answer["probabilities"]]
    assert rows[0][0] == "7"
    for row, expected in zip(rows, answer["probabilities"], strict=True):
        assert float(row[2].removesuffix(" %")) == pytest.approx(100 * expected["probability"], abs=0.0051)
    assert text(page, "#status") == f"Most probable: 7, {rows[0][2]}"
    widths = page.run("return [...document.querySelectorAll('.bar')].map(b => b.getBoundingClientRect().width)")
    full = page.run("return document.querySelector('.bar').parentElement.clientWidth")
    assert widths[0] == pytest.approx(full * answer["probabilities"][0]["probability"], abs=full * 0.05)
    assert widths == sorted(widths, reverse=True)

    pixels = service.model.decode(content)
    look = service.model.explain(pixels, 7)
    strength = page.run(INK)
    assert len(strength) == look["height"] * look["width"]
    assert max(strength) == 255
    boxes = page.run("return ['image', 'map'].map(i => document.getElementById(i).getBoundingClientRect().toJSON())")
    for side in ("left", "top", "width", "height"):  # the map lies over the image
        assert boxes[0][side] == pytest.approx(boxes[1][side], abs=1)
    assert boxes[0]["width"] > 200
    assert look["layer"] in text(page, "#caption")


def test_nothing_is_asked_of_others_and_the_console_is_silent(page, service, classifier, digits):
    drop(page, sure_digit(classifier, digits, 4))
    wait_for(lambda: shown(page))
    page.run("document.querySelector('#wanted').value = 3")
    page.run("document.querySelector('#wanted').dispatchEvent(new Event('change'))")
    wait_for(lambda: "for 3" in text(page, "#caption"))
    own = f"http://127.0.0.1:{service.port}/"
    asked = page.requests()
    assert len([url for url in asked if url.startswith(own + "predict?")]) == 2
    assert [url for url in asked if not url.startswith((own, "data:"))] == []
    assert page.log() == []


def test_a_dropped_file_and_another_class(page, classifier, digits):
    drop(page, sure_digit(classifier, digits, 2))
    wait_for(lambda: shown(page))
    assert page.run(ROWS)[0][0] == "2"
    assert page.run("return document.querySelector('#wanted').value") == "2"
    first = page.run(INK)
    page.run("document.querySelector('#wanted').focus()")
    page.type("#wanted", "8")  # by keyboard
    wait_for(lambda: "speaks for 8" in text(page, "#caption"))
    assert page.run(INK) != first
    assert page.run(ROWS)[0][0] == "2"


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"no image at all", "is not an image"), (bytes(20_000), "more than 20000 bytes. Choose a smaller one")],
)
def test_a_file_that_cannot_be_read_is_explained(browser, classifier, digits, content, words):
    with running(Limits(bytes=20_000, seconds=60), classifier) as service:
        browser.open(f"http://127.0.0.1:{service.port}/")
        wait_for(lambda: browser.run("return document.querySelector('#wanted').options.length") == 10)
        drop(browser, sure_digit(classifier, digits, 1))
        wait_for(lambda: shown(browser))
        drop(browser, content, "<img src=x onerror=alert(1)>", "image/png")
        wait_for(lambda: words in text(browser, "#problem"))
        assert not shown(browser)
        assert browser.run("return document.querySelectorAll('[onerror]').length") == 0
        drop(browser, sure_digit(classifier, digits, 1))
        wait_for(lambda: shown(browser))
        assert text(browser, "#problem") == ""
        browser.log()
        browser.open("about:blank")


def test_a_server_that_is_gone_is_named(browser, classifier, digits):
    with running(Limits(seconds=60), classifier) as service:
        browser.open(f"http://127.0.0.1:{service.port}/")
        wait_for(lambda: browser.run("return document.querySelector('#wanted').options.length") == 10)
    drop(browser, sure_digit(classifier, digits, 1))
    wait_for(lambda: "does not answer. Is it still running?" in text(browser, "#problem"))
    browser.log()
    browser.open("about:blank")


def test_it_can_be_used_without_a_mouse_and_by_ear(page, classifier, digits):
    drop(page, sure_digit(classifier, digits, 5))
    wait_for(lambda: shown(page))
    tree = page.devtools("Accessibility.getFullAXTree")["nodes"]
    named = {
        (node.get("role", {}).get("value"), node.get("name", {}).get("value"))
        for node in tree
        if not node.get("ignored")
    }
    for expected in (
        ("heading", "Probabilities"),
        ("heading", "Where the network looked"),
        ("image", "Places that speak for 5"),
        ("image", "The image as the network saw it"),
        ("slider", "How strongly to show it"),
    ):
        assert expected in named
    assert any(role == "combobox" and name.startswith("Evidence for") for role, name in named if name)
    labelled = "return document.querySelector('#file').labels[0].textContent"
    assert page.run(labelled) == "Choose an image, or drop it here"
    assert page.run("return document.querySelector('#status').getAttribute('role')") == "status"
    order = []
    for _ in range(4):
        page.devtools("Input.dispatchKeyEvent", type="keyDown", key="Tab", code="Tab", windowsVirtualKeyCode=9)
        page.devtools("Input.dispatchKeyEvent", type="keyUp", key="Tab", code="Tab", windowsVirtualKeyCode=9)
        order.append(page.run("return document.activeElement.id || document.activeElement.tagName"))
    assert order == ["file", "wanted", "strength", "SUMMARY"]
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert page.run(outline) != "none"


def test_hostile_class_names_do_nothing(browser):
    classifier = small_classifier(classes=HOSTILE)
    classifier.build(SHAPE)
    with running(Limits(seconds=60), classifier) as service:
        browser.open(f"http://127.0.0.1:{service.port}/")
        wait_for(lambda: browser.run("return document.querySelector('#wanted').options.length") == 3)
        drop(browser, noise(1))
        wait_for(lambda: shown(browser))
        assert sorted(row[0] for row in browser.run(ROWS)) == sorted(HOSTILE)
        assert browser.run("return [...document.querySelector('#wanted').options].map(o => o.label)") == HOSTILE
        assert browser.run("return document.scripts.length") == 1
        assert browser.run("return document.querySelectorAll('[onerror]').length") == 0
        browser.open("about:blank")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_schemes(page, scheme):
    page.look_like(1100, 800, scheme)
    style = "const s = getComputedStyle(document.querySelector(arguments[0])); return [s.color, s.backgroundColor]"
    ink, paper = ([int(part) for part in colour[4:-1].split(",")] for colour in page.run(style, "body"))
    soft = [int(part) for part in page.run(style, "footer")[0][4:-1].split(",")]
    assert contrast(ink, paper) > 7
    assert contrast(soft, paper) > 4.5
    assert (sum(paper) < 200) == (scheme == "dark")


@pytest.mark.parametrize("width", [320, 390, 1100])
def test_it_fits_the_screen(page, classifier, digits, width):
    drop(page, sure_digit(classifier, digits, 6))
    wait_for(lambda: shown(page))
    page.look_like(width, 844)
    assert page.run("return document.documentElement.scrollWidth") <= width
