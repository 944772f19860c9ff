"""The server over real connections: answers, limits and their status codes, headers, and what it leaves behind."""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import json
import logging
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from html.parser import HTMLParser

import numpy as np
import pytest
import uvicorn
from PIL import Image
from serve.running import FORM, PATIENCE, form, noise, png, running, wait_for
from tolerances import assert_close
from toys import SHAPE, place, small_classifier, small_net

from xpcnn import Classifier, Conv2d, Dense, Flatten, Sequential, formats, zoo
from xpcnn.data import image_from_file
from xpcnn.data.images import TooManyPixelsError, image_from_bytes
from xpcnn.errors import ArgumentError, DataError, MissingExtraError
from xpcnn.formats import read_weights
from xpcnn.inspection import grad_cam
from xpcnn.serve import Limits, ServedModel, open_model, serve
from xpcnn.serve.server import _names, listen


@pytest.fixture
def service():
    with running() as found:
        yield found


def probabilities(answer):
    """Return all probabilities of an answer in the order of the classes."""
    assert answer.status == 200, answer.body
    rows = sorted(answer.json["probabilities"], key=lambda row: row["index"])
    return [row["probability"] for row in rows]


# --- answers ----------------------------------------------------------------------------------------------------


def images():
    rng = np.random.default_rng(5)
    colour, deep = rng.integers(0, 256, (30, 20, 3), np.uint8), rng.integers(0, 65536, (9, 9)).astype(np.uint16)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by a quarter
    return {
        "grey.png": noise(1),
        "large.png": noise(2, 50, 31),
        "colour.jpg": png(colour, format="JPEG", exif=turned),
        "clear.png": png(np.dstack([colour, colour[:, :, :1]])),
        "deep.png": png(deep),
        "moving.gif": png(colour[:, :, 0], format="GIF"),
    }


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fit", ["resize", "pad", "crop"])
def test_it_answers_what_the_classifier_says_of_the_file(tmp_path, channels, fit):
    classifier = small_classifier(normalize=(0.4, 0.2))
    classifier.build((channels, 8, 8))
    classifier.image["fit"] = fit
    with running(Limits(batch=1), classifier) as service:
        for name, content in images().items():
            (tmp_path / name).write_bytes(content)
            expected = classifier.predict_proba(tmp_path / name)[0]
            assert probabilities(service.predict(content)) == expected.tolist()  # to the last bit
    with running(Limits(batch=8), classifier) as service:
        found = probabilities(service.predict(content))
        assert_close(np.float32(found), expected, "forward")


def test_the_form_and_the_bytes_give_the_same(service):
    content = noise(3)
    first = service.predict(content)
    assert first.status == 200
    for contents in (form(content), form(content, name="../../etc/passwd"), form(content, name="C:\\x\\y")):
        assert service.ask("POST", "/predict", contents, {"Content-Type": FORM}).body == first.body
    chunks = [content[i : i + 7] for i in range(0, len(content), 7)]
    assert service.ask("POST", "/predict", iter(chunks), {"Content-Type": "image/png"}).body == first.body


def test_classes_come_in_the_order_of_their_probability(service):
    whole = service.predict(noise(4)).json
    assert [sorted(row) for row in whole["probabilities"]] == [["class", "index", "probability"]] * 3
    values = [row["probability"] for row in whole["probabilities"]]
    assert values == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(1)
    assert whole["class"] == whole["probabilities"][0]["class"]
    assert service.predict(noise(4), "?top=2").json["probabilities"] == whole["probabilities"][:2]


def decoded(url: str) -> np.ndarray:
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
        return np.asarray(image)


@pytest.mark.parametrize("channels", [1, 3])
def test_it_explains_a_class(channels):
    classifier = small_classifier(classes=["north", "east", "south"])
    classifier.build((channels, 8, 8))
    content = images()["colour.jpg"]
    with running(classifier=classifier) as service:
        pixels = service.model.decode(content)
        everything = service.predict(content).json
        assert "explanation" not in everything
        best = everything["class"]
        for query, wanted in (("", best), ("&class=east", "east"), ("&class=2", "south")):
            found = service.predict(content, f"?explain=true{query}").json
            assert found["probabilities"] == everything["probabilities"]
            look, expected = found["explanation"], grad_cam(classifier, pixels, wanted)
            assert (look["class"], look["method"], look["layer"]) == (wanted, "Grad-CAM", expected.layer)
            assert (look["height"], look["width"]) == (8, 8)
            assert look["most"] == float(expected.maps.max())
            most = expected.maps[0].max()
            scaled = np.rint(expected.maps[0] * (255 / most if most else 0)).astype(np.uint8)
            np.testing.assert_array_equal(decoded(look["map"]), scaled)
            seen = decoded(look["image"]).reshape(8, 8, channels)
            np.testing.assert_array_equal(seen.transpose(2, 0, 1), pixels)
            (row,) = [row for row in everything["probabilities"] if row["class"] == wanted]
            assert look["probability"] == row["probability"]


def test_a_network_without_a_feature_map_says_that_it_cannot_explain():
    classifier = small_classifier(Sequential(Flatten(), Dense(3)))
    classifier.build(SHAPE)
    with running(classifier=classifier) as service:
        assert service.get("/health").json["explains"] is False
        assert service.predict(noise(0)).status == 200
        answer = service.predict(noise(0), "?explain=true")
        assert answer.status == 400
        assert "no feature map" in answer.json["error"]


def test_health_says_what_is_served(service):
    facts = service.get("/health").json
    assert facts.pop("version")
    assert facts == {
        "status": "ready",
        "model": "toy",
        "classes": ["0", "1", "2"],
        "input_shape": [1, 8, 8],
        "explains": True,
        "device": "cpu",
        "batch": service.model.width,
        "max_bytes": 10_000_000,
        "max_pixels": 50_000_000,
    }


def test_metrics_count(service):
    service.predict(noise(0))
    service.predict(b"nothing")
    service.get("/nothing")
    text = service.get("/metrics").body.decode()
    sample = re.compile(r'\w+(\{\w+="[^"]+"\})? [\d.e+-]+')
    lines = text.splitlines()
    assert [line for line in lines if not line.startswith("# ") and not sample.fullmatch(line)] == []
    assert text.endswith("\n")
    for status in (200, 404, 422):
        assert service.metric(f'xpcnn_requests_total{{status="{status}"}}') >= 1
    assert service.metric("xpcnn_batch_images_count") == 1
    assert service.metric("xpcnn_queue_images") == 0
    assert service.metric("xpcnn_resident_bytes") > 10_000_000
    buckets = [float(line.split()[1]) for line in lines if line.startswith("xpcnn_request_seconds_bucket")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == 3  # the scrape itself is counted in the next one
    assert service.metric("xpcnn_request_seconds_sum") > 0


def test_a_crowd_gets_its_own_answers(xp):
    """64 threads, each with an image of its own, get the bits they get when alone. One in four asks for a map."""
    classifier = small_classifier(device=place(xp))
    classifier.build(SHAPE)
    with running(Limits(queue=64, seconds=PATIENCE), classifier) as service:
        contents = [(noise(i), "?explain=true" if i % 4 == 0 else "") for i in range(64)]
        alone = [service.predict(*content).body for content in contents]
        assert len(set(alone)) == 64
        passes = service.metric("xpcnn_batch_images_count")
        with ThreadPoolExecutor(64) as pool:
            for _ in range(5):
                together = pool.map(lambda content: service.predict(*content), contents)
                assert [answer.body for answer in together] == alone
        images = service.metric("xpcnn_batch_images_sum") - passes
        assert images == 5 * 64
        assert service.metric("xpcnn_batch_images_count") - passes < images  # some went together


def test_an_onnx_file_is_served(tmp_path):
    classifier = small_classifier()
    classifier.build(SHAPE)
    formats.onnx.save(classifier, tmp_path / "net.onnx", SHAPE)
    content = noise(1)
    names = ["north", "east", "south"]
    opened = open_model(tmp_path / "net.onnx", "cpu", names)
    assert opened.classes_ == names
    with running(classifier=opened) as service:
        found = probabilities(service.predict(content))
        assert_close(np.float32(found), classifier.predict_proba(service.model.decode(content))[0], "forward")


def test_real_photographs_by_a_real_network(real_data):
    """A third of the test images of CIFAR-10 that are at hand, 8 at a time; 91.4 % of all are recognised."""
    net = zoo.build("resnet20")
    classifier = Classifier(net, 10, normalize=((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), device="cpu")
    classifier.build((3, 32, 32))
    net.load_state_dict(read_weights(real_data("cifar10_resnet20.safetensors")), strip_prefix="module.")
    with np.load(real_data("cifar10_small.npz")) as data:
        images, labels = data["x_test"][::3], data["y_test"][::3]
    expected = classifier.predict_proba(images.transpose(0, 3, 1, 2))
    with running(Limits(seconds=PATIENCE), classifier) as service, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda image: service.predict(png(image), "?top=10"), images))
    found = np.float32([probabilities(answer) for answer in answers])
    assert_close(found, expected, "forward")
    assert (found.argmax(axis=1) == labels).mean() == pytest.approx(0.914, abs=0.02)


# --- limits and status codes ------------------------------------------------------------------------------------

GOOD = noise(0)
REFUSED = {
    "unknown path": (("GET", "/nothing"), 404, "There are /, /predict, /health and /metrics."),
    "a slash too many": (("GET", "/health/"), 404, "There are /, /predict, /health and /metrics."),
    "method": (("GET", "/predict"), 405, "Use POST."),
    "no CORS": (("OPTIONS", "/predict", None, {"Origin": "http://a.example"}), 405, "Use POST."),
    "top": (("POST", "/predict?top=4", GOOD, {"Content-Type": "image/png"}), 400, "1 to 3; received 4."),
    "top 0": (("POST", "/predict?top=0", GOOD, {"Content-Type": "image/png"}), 400, "1 to 3; received 0."),
    "top word": (("POST", "/predict?top=all", GOOD, {"Content-Type": "image/png"}), 400, "received all."),
    "explain": (("POST", "/predict?explain=so", GOOD, {"Content-Type": "image/png"}), 400, "true or false"),
    "class": (
        ("POST", "/predict?explain=true&class=3", GOOD, {"Content-Type": "image/png"}),
        400,
        "its number, 0 to 2; received 3.",
    ),
    "class alone": (("POST", "/predict?class=1", GOOD, {"Content-Type": "image/png"}), 400, "needs explain=true"),
    "unknown query": (("POST", "/predict?size=9", GOOD, {"Content-Type": "image/png"}), 400, "received size."),
    "no kind": (("POST", "/predict", GOOD), 415, "Received no Content-Type."),
    "kind": (("POST", "/predict", b"{}", {"Content-Type": "application/json"}), 415, "Received application/json."),
    "compressed": (
        ("POST", "/predict", GOOD, {"Content-Type": "image/png", "Content-Encoding": "gzip"}),
        415,
        "without Content-Encoding",
    ),
    "empty": (("POST", "/predict", b"", {"Content-Type": "image/png"}), 400, "Received nothing."),
    "empty part": (("POST", "/predict", form(b""), {"Content-Type": FORM}), 400, "Received nothing."),
    "no part": (("POST", "/predict", b"--xxxx--\r\n", {"Content-Type": FORM}), 400, "Expected an image"),
    "two parts": (("POST", "/predict", form(GOOD, GOOD), {"Content-Type": FORM}), 400, "more than one part"),
    "no boundary": (
        ("POST", "/predict", form(GOOD), {"Content-Type": "multipart/form-data"}),
        400,
        "broken or cut off",
    ),
    "cut form": (("POST", "/predict", form(GOOD)[:-9], {"Content-Type": FORM}), 400, "broken or cut off"),
    "no form": (("POST", "/predict", b"\0" * 99, {"Content-Type": FORM}), 400, "broken or cut off"),
    "no image": (("POST", "/predict", b"GIF", {"Content-Type": "image/gif"}), 422, "is not an image"),
    "cut image": (("POST", "/predict", GOOD[:60], {"Content-Type": "image/png"}), 422, "the image: "),
    "text of a path": (("POST", "/predict", b"/etc/hostname", {"Content-Type": "image/png"}), 422, "not an image"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_answered_is_refused(service, case):
    request, status, words = REFUSED[case]
    answer = service.ask(*request)
    assert answer.status == status
    assert sorted(answer.json) == ["error", "status"]
    assert answer.json["status"] == status
    assert words in answer.json["error"]
    if status == 405:
        assert answer.headers["allow"] == "POST"
    if status == 415:
        assert {"accept", "accept-encoding"} & set(answer.headers)
    assert service.predict(GOOD).status == 200


@pytest.mark.parametrize("limit", ["bytes", "pixels", "seconds", "queue", "batch"])
def test_limits_are_above_zero(limit):
    with pytest.raises(ArgumentError, match=f"{limit} must be above 0; received 0"):
        Limits(**{limit: 0})


def test_nobody_may_wait_longer_for_company_than_for_the_answer():
    with pytest.raises(ArgumentError, match=r"wait must lie in 0 to 1, the seconds of a request; it is 2"):
        Limits(seconds=1, wait=2)


def test_a_request_that_says_it_is_too_large_is_refused_before_it_is_sent():
    with running(Limits(bytes=1000)) as service, service.raw() as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n")
        client.sendall(b"Content-Length: 1001\r\nExpect: 100-continue\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += client.recv(65536)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"may have 1000 bytes; this one has more. Send a smaller image." in answer


def test_a_request_that_turns_out_too_large_is_refused_while_it_is_read():
    with running(Limits(bytes=100_000)) as service, service.raw() as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n")
        client.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
        client.setblocking(False)
        sent, answer = 0, b""
        while not answer and sent < 100_000_000:  # a body without end
            with suppress(BlockingIOError):
                sent += client.send(b"fffe\r\n" + bytes(0xFFFE) + b"\r\n")
            with suppress(BlockingIOError):
                answer = client.recv(65536)
        assert answer.startswith(b"HTTP/1.1 413 ")


def test_who_sends_all_of_it_first_reads_the_refusal_too():
    with running(Limits(bytes=1000)) as service:
        for _ in range(5):
            answer = service.predict(bytes(20_000_000))
            assert answer.status == 413
            assert "Send a smaller image" in answer.json["error"]
        assert service.predict(GOOD).status == 200
        assert service.ask("POST", "/predict", form(bytes(1000)), {"Content-Type": FORM}).status == 413


def bomb(height: int, width: int) -> bytes:
    """Return a small PNG file of many pixels, all black."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + width // 8)) for _ in range(height)) + packer.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [7200, 10_000, 16_000], ids=["ours", "Pillow warns", "Pillow refuses"])
def test_an_image_of_too_many_pixels_is_not_decoded(service, side):
    content = bomb(side, side)
    assert len(content) < 100_000
    answer = service.predict(content)
    assert answer.status == 413
    assert answer.json["error"] == "the image: has more than 50000000 pixels. Make it smaller."


def test_the_limit_on_pixels_is_that_of_the_file():
    with running(Limits(pixels=100)) as service:
        assert service.predict(noise(0, 10, 10)).status == 200
        assert service.predict(noise(0, 10, 11)).status == 413


def test_a_request_that_does_not_arrive_is_given_up():
    with running(Limits(seconds=0.3)) as service, service.raw() as client:
        begun = time.monotonic()
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n")
        client.sendall(b"Content-Length: 100\r\n\r\nabc")
        answer = b""
        while piece := client.recv(65536):  # until the server closes
            answer += piece
        assert time.monotonic() - begun > 0.25
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in answer.lower()
        assert b"did not arrive within 0.3 s" in answer


def test_who_breaks_off_leaves_nothing(service):
    with service.raw() as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n")
        client.sendall(b"Content-Length: 100\r\n\r\nabc")
    wait_for(lambda: service.metric('xpcnn_requests_total{status="400"}') == 1)
    assert service.predict(GOOD).status == 200


class Gate:
    """Stops a model until it is opened."""

    def __init__(self):
        self.open, self.entered = threading.Event(), threading.Event()

    def __call__(self, model):
        predict = model.predict

        def waiting(images):
            self.entered.set()
            assert self.open.wait(PATIENCE)
            return predict(images)

        model.predict = waiting


def test_an_answer_that_takes_too_long_is_given_up():
    gate = Gate()
    with running(Limits(seconds=0.5), change=gate) as service:
        try:
            answer = service.predict(GOOD)
        finally:
            gate.open.set()
        assert answer.status == 503
        assert answer.headers["retry-after"] == "1"
        assert answer.json["error"] == "The answer was not there within 0.5 s. Try again in a moment."
        assert service.predict(GOOD).status == 200


def test_images_that_nobody_waits_for_still_fill_the_queue():
    gate = Gate()
    with running(Limits(queue=1, batch=1, seconds=0.5), change=gate) as service:
        try:
            for words in ("was not there within", "was not there within", "1 images are waiting."):  # one is computed
                answer = service.predict(GOOD)
                assert answer.status == 503
                assert words in answer.json["error"]
        finally:
            gate.open.set()
        wait_for(lambda: service.metric("xpcnn_queue_images") == 0)
        assert service.predict(GOOD).status == 200


def test_more_than_the_queue_are_refused_at_once_and_the_others_answered():
    gate = Gate()
    with running(Limits(queue=6, batch=2, seconds=PATIENCE), change=gate) as service, ThreadPoolExecutor(6) as pool:
        try:
            contents = [noise(i) for i in range(6)]
            answers = [pool.submit(service.predict, content) for content in contents]
            assert gate.entered.wait(PATIENCE)
            wait_for(lambda: service.metric("xpcnn_queue_images") >= 4)  # one or two are being computed
            for _ in range(20):
                begun = time.monotonic()
                refused = service.predict(noise(99))
                assert time.monotonic() - begun < PATIENCE / 4  # and not as long as those that wait
                assert refused.status == 503
                assert refused.headers["retry-after"] == "1"
                assert refused.json["error"] == "6 requests are in work. Try again in a moment."
            assert service.get("/health").status == 200
        finally:
            gate.open.set()
        found = [answer.result(PATIENCE).body for answer in answers]
        assert found == [service.predict(content).body for content in contents]


def test_a_bug_is_answered_and_its_words_stay_inside(caplog):
    def spoil(model):
        predict = model.predict

        def failing(images):
            if failing.broken:
                raise RuntimeError(failing.words)
            return predict(images)

        failing.broken, failing.words = True, "secret pixels"
        model.predict = failing

    with running(change=spoil) as service, caplog.at_level(logging.INFO):
        answer = service.predict(GOOD)
        assert answer.status == 500
        assert answer.json["error"] == "Something went wrong here, not with your request."
        assert answer.headers["x-content-type-options"] == "nosniff"
        wait_for(lambda: "a bug: RuntimeError" in caplog.text)
        assert "in failing" in caplog.text
        assert "secret" not in caplog.text
        service.model.predict.broken = False
        assert service.predict(GOOD).status == 200


def test_no_memory_is_an_answer_too():
    def spoil(model):
        def decode(content):
            raise MemoryError

        model.decode = decode

    with running(change=spoil) as service:
        answer = service.predict(GOOD)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert "no memory" in answer.json["error"]


# --- whom it answers, and with which headers --------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/health", "/metrics", "/nothing", "/predict"])
def test_every_answer_has_safe_headers(service, path):
    headers = service.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "server" not in headers
    assert not any(name.startswith("access-control") for name in headers)
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in headers["content-security-policy"]


class Tags(HTMLParser):
    """Collects tags with their attributes, and the text of style and script."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self.last = [], {}, ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.last = tag

    def handle_data(self, data):
        self.texts.setdefault(self.last, []).append(data)
        self.last = ""


def test_the_page_needs_nothing_else_and_its_policy_fits(service):
    answer = service.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = Tags(answer.body.decode())
    for _, attributes in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        for name in ("src", "href", "action"):
            assert attributes.get(name, "data:,").startswith("data:")
    for tag in ("style", "script"):
        (text,) = page.texts[tag]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in answer.headers["content-security-policy"]
    assert service.ask("HEAD", "/").body == b""


def test_other_names_are_refused(service):
    for host in ("127.0.0.1", "127.0.0.1:99", "127.0.0.1."):
        assert service.ask("GET", "/health", host=host).status == (421 if host.endswith(".") else 200)
    for host in ("attacker.example", "attacker.example:8000", "127.0.0.1.attacker.example", "[", "a@127.0.0.2", ":"):
        answer = service.ask("POST", "/predict", GOOD, {"Content-Type": "image/png"}, host)
        assert answer.status == 421
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.json["error"] == (
            "This server answers to 127.0.0.1. Call it so, or start it with --allow-host NAME."
        )


def test_names_by_address():
    own = {"localhost", "127.0.0.1", "::1"}
    assert _names("127.0.0.1", ()) == _names("localhost", ()) == _names("::1", ()) == own
    assert _names("127.0.0.2", ["Box"]) == own | {"127.0.0.2", "box"}
    assert _names("0.0.0.0", ()) is None
    assert _names("0.0.0.0", ["box.example"]) == {"box.example"}
    with running(hosts=None) as service:
        assert service.ask("GET", "/health", host="box.example").status == 200


# --- what it leaves behind --------------------------------------------------------------------------------------

OPENED: list[tuple[str, int]] = []
WATCHED = [False]


def _note_opened(event, arguments):
    if WATCHED[0] and event == "open":
        OPENED.append((str(arguments[0]), arguments[2] or 0))


def test_nothing_is_written_and_no_name_of_a_request_is_opened():
    """Also not by a large form, which others put into a temporary file."""
    sys.addaudithook(_note_opened)
    content = noise(7, 2000, 2000)
    assert len(content) > 3_000_000
    with running() as service:
        service.predict(GOOD, "?explain=true")  # imports
        OPENED.clear()
        WATCHED[0] = True
        try:
            sent = form(content, name="/etc/hostname")
            answer = service.ask("POST", "/predict?explain=true", sent, {"Content-Type": FORM})
            open(os.devnull).close()
        finally:
            WATCHED[0] = False
        assert answer.status == 200
        assert os.devnull in [path for path, _ in OPENED]  # the hook works
        writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        assert [path for path, flags in OPENED if flags & writing or "hostname" in path] == []


class Kept(logging.Handler):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        if record.name.startswith(("xpcnn", "uvicorn", "starlette", "python_multipart")):
            self.lines.append(record.getMessage())


def test_the_log_has_status_and_time_alone(service):
    kept, root = Kept(), logging.getLogger()
    before = root.level
    root.addHandler(kept)
    root.setLevel(logging.DEBUG)
    try:
        service.ask("POST", "/predict?top=secret", GOOD, {"Content-Type": "image/png", "Cookie": "secret"})
        service.ask("POST", "/predict", form(GOOD, name="secret.png"), {"Content-Type": FORM})
        service.ask("POST", "/predict", b"secret\r\nof a broken form", {"Content-Type": FORM})
        service.ask("GET", "/secret")
    finally:
        root.setLevel(before)
        root.removeHandler(kept)
    assert [line.split()[0] for line in kept.lines] == ["400", "200", "400", "404"]
    assert all(re.fullmatch(r"\d{3} \d+\.\d ms", line) for line in kept.lines)


# --- beginning and ending ---------------------------------------------------------------------------------------


def test_when_it_ends_what_is_queued_is_answered_first():
    gate = Gate()
    with running(Limits(batch=2, seconds=PATIENCE), change=gate) as service, ThreadPoolExecutor(5) as pool:
        try:
            answers = [pool.submit(service.predict, noise(i)) for i in range(5)]
            assert gate.entered.wait(PATIENCE)
            wait_for(lambda: service.metric("xpcnn_queue_images") >= 3)
            service.server.should_exit = True
            time.sleep(0.3)  # it looks every 0.1 s
            with pytest.raises(ConnectionError):
                service.get("/health")
        finally:
            gate.open.set()
        assert [answer.result(PATIENCE).status for answer in answers] == [200] * 5
        service.thread.join(PATIENCE)
        assert not service.thread.is_alive()


@pytest.fixture
def saved(tmp_path):
    classifier = Classifier(small_net(), classes=["a", "b", "c"], device="cpu")
    classifier.build(SHAPE)
    classifier.save(tmp_path / "toy.safetensors")
    return tmp_path / "toy.safetensors"


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 143, ""), (signal.SIGINT, 130, "xpcnn: interrupted\n")]
)
def test_the_command_serves_until_a_signal_comes(saved, number, code, word):
    command = [sys.executable, "-m", "xpcnn", "serve", str(saved), "--port", "0", "--device", "cpu", "--log"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert (
                process.stdout.readline() == "toy.safetensors: 3 classes, images of 1x8x8, 8 a forward pass, on cpu\n"
            )
            found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/ \(Ctrl-C ends it\)\n", process.stdout.readline())
            connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=PATIENCE)
            connection.request("GET", "/health")
            answer = connection.getresponse()
            assert json.load(answer)["classes"] == ["a", "b", "c"]
            connection.close()
            process.send_signal(number)
            out, err = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == code
    assert out == ""
    assert re.fullmatch(r"200 \d+\.\d ms\n" + word, err)


def test_the_command_refuses_what_it_cannot_serve(run, saved, tmp_path):
    assert run("serve", tmp_path / "none.safetensors")[0::2] == (
        2,
        f"xpcnn: {tmp_path / 'none.safetensors'} does not exist; expected a model saved by xpcnn (.safetensors or "
        ".json), or .onnx.\n",
    )
    code, _, error = run("serve", saved, "--classes", tmp_path / "names.txt")
    assert code == 2
    assert "names.txt does not exist; expected a text file" in error
    (tmp_path / "names.txt").write_text("a\nb\n")
    code, _, error = run("serve", saved, "--device", "cpu", "--classes", tmp_path / "names.txt")
    assert (code, error) == (2, "xpcnn: class names are for .onnx files; a saved model has its own.\n")
    assert run("serve", saved, "--max-bytes", "much")[2].startswith("xpcnn: --max-bytes is a number of bytes")
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        code, _, error = run("serve", saved, "--device", "cpu", "--port", port)
        assert code == 2
        assert error == (
            f"xpcnn: cannot listen on port {port} of 127.0.0.1: Address already in use. Choose another port, or 0 for "
            "any that is free.\n"
        )


def test_a_server_for_all_says_so(monkeypatch):
    run, said = uvicorn.Server.run, []

    def run_shortly(server, sockets):
        def end():
            wait_for(lambda: server.started)
            server.should_exit = True

        ending = threading.Thread(target=end)
        ending.start()
        run(server, sockets)
        ending.join()

    monkeypatch.setattr(uvicorn.Server, "run", run_shortly)
    classifier, before = small_classifier(), signal.getsignal(signal.SIGTERM)
    classifier.build(SHAPE)
    serve(classifier, "0.0.0.0", 0, say=said.append)
    assert said[0] == "model: 3 classes, images of 1x8x8, 8 a forward pass, on cpu"
    assert said[1] == "anybody who can reach 0.0.0.0 can use it: there is no password and no encryption"
    assert re.fullmatch(r"http://0\.0\.0\.0:\d+/ \(Ctrl-C ends it\)", said[2])
    assert signal.getsignal(signal.SIGTERM) == before


def test_images_of_two_channels_cannot_be_served():
    classifier = small_classifier()
    classifier.build((2, 8, 8))
    with pytest.raises(ArgumentError, match=r"toy takes images of 2 channels; image files have one \(grey\) or three"):
        ServedModel(classifier, "toy")


@pytest.mark.parametrize("batch", [1, 8])
def test_a_network_that_answers_nan_cannot_be_served(batch):
    classifier = small_classifier()
    classifier.build(SHAPE)
    classifier.net.parameters()["4.weight"].data[...] = np.nan
    with pytest.raises(
        ArgumentError, match=r"^toy answers with NaN or infinity: it cannot be served\. Train it again\.$"
    ):
        ServedModel(classifier, "toy", batch)


def test_an_onnx_file_of_any_size_cannot_be_served(tmp_path):
    net = Sequential(Conv2d(3, 3), Flatten(), Dense(2))
    net.build(SHAPE)
    formats.onnx.save(net, tmp_path / "net.onnx", SHAPE)
    import onnx

    model = onnx.load(tmp_path / "net.onnx")
    for size in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        size.dim_param = "side"
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(ArgumentError, match=r"net.onnx does not say the size of its images.*--input C,H,W"):
        open_model(tmp_path / "net.onnx", "cpu")


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "python_multipart"])
def test_without_its_packages_the_extra_is_named(monkeypatch, run, saved, package):
    for name in [name for name in sys.modules if name.startswith("xpcnn.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    code, _, error = run("serve", saved)
    assert code == 1
    assert error == (
        f"xpcnn: xpcnn.serve needs the package {package}, which is not installed. Install it with: "
        'pip install "xpcnn[serve]"\n'
    )
    with pytest.raises(MissingExtraError):
        import xpcnn.serve  # noqa: F401


# --- images in memory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", images())
def test_an_image_in_memory_is_read_as_from_a_file(tmp_path, name):
    content = images()[name]
    (tmp_path / name).write_bytes(content)
    for options in ({}, {"size": (5, 7), "mode": "RGB", "fit": "pad"}):
        expected = image_from_file(tmp_path / name, **options)
        np.testing.assert_array_equal(image_from_bytes(content, **options), expected)
    with pytest.raises(TooManyPixelsError, match=r"^photo: has more than 10 pixels\. Make it smaller\.$"):
        image_from_bytes(content, where="photo", most=10)
    with pytest.raises(DataError, match=r"^photo: is not an image"):
        image_from_bytes(b"", where="photo")
