"""The page about a training: complete, true, alone in the world, and deaf to what class names say."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.util
import io
import json
import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from report_runs import HOSTILE, Page, train
from toys import place, quarters, small_net

from xpcnn import Classifier, Dense, Flatten, Sequential, load, zoo
from xpcnn.cli import main
from xpcnn.data import ArrayDataset, Subset, open_dataset
from xpcnn.errors import ArgumentError, MissingExtraError
from xpcnn.inspection import report
from xpcnn.inspection.report import _confusion, _confusion_table, _initial, _mistakes, _overlay, _where
from xpcnn.training import Report

SECTIONS = ["curves", "data", "confusion", "classes", "mistakes", "examples", "filters", "maps", "network", "settings"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short training on classes with hostile names, and the page about it."""
    folder = train(tmp_path_factory.mktemp("run"))
    assert main(["report", str(folder), "--device", "cpu"]) == 0
    return folder


@pytest.fixture(scope="module")
def html(run):
    return (run / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def by_hand(folder, net, images, labels, epochs=1):
    """Leave in a folder what a training of `net` on 3 classes and more would leave."""
    classifier = Classifier(net, classes=int(labels.max()) + 1, device="cpu")
    dataset = ArrayDataset(images, labels, [f"class {i}" for i in range(labels.max() + 1)])
    classifier.fit(dataset, epochs=epochs, verbose=False).to_csv(folder / "history.csv")
    classifier.save(folder / "model.safetensors")
    settings = {"data": "by hand", "model": "small", "seed": 0}
    (folder / "run.json").write_text(json.dumps({"settings": settings, "training_images": 3, "validation_images": 0}))
    return dataset


# --- what is on the page ----------------------------------------------------------------------------------------


def test_every_section_is_there(page):
    assert [found["id"] for found in page.all("section")] == SECTIONS
    assert {link["href"] for link in page.all("a")} == {f"#{name}" for name in SECTIONS}
    assert len(page.all("h2")) == len(SECTIONS)


def test_every_picture_opens_and_is_described_in_figures(page):
    pictures = page.all("img")
    assert len(pictures) >= 3 + 1 + 2 * 3 + 2 + 2  # curves, confusions, examples, filters, feature maps
    for picture in pictures:
        kind, content = re.fullmatch(r"data:image/(png|svg\+xml);base64,(.+)", picture["src"]).groups()
        if kind == "png":
            Image.open(io.BytesIO(base64.b64decode(content))).verify()
        else:
            assert ElementTree.fromstring(base64.b64decode(content)).tag.endswith("svg")
        assert len(picture["alt"]) > 15
        assert re.search(r"\d", picture["alt"]), picture["alt"]


def test_figures_are_those_of_the_training(page, run):
    best = json.loads((run / "run.json").read_text())["result"]["best"]
    facts = page.text("dd")
    assert f"{100 * best['val_accuracy']:.1f}\N{NO-BREAK SPACE}% of 30 held-out images" in facts.replace(" %", "\xa0%")
    assert f"{best['val_loss']:.4g}" in facts
    assert f"best.safetensors, epoch {best['epoch']} of 3" in facts
    header, *rows = page.tables["Every epoch"]
    with open(run / "history.csv", newline="") as file:
        known = list(csv.DictReader(file))
    assert [dict(zip(header, row, strict=True))["val_loss"] for row in rows] == [
        f"{float(row['val_loss']):.4g}" for row in known
    ]
    loss, rate = (next(p["alt"] for p in page.all("img") if p["alt"].startswith(s)) for s in ("Loss", "Learning rate"))
    assert f"training: {float(known[0]['loss']):.4g} in epoch 1" in loss
    assert f"{float(known[2]['val_loss']):.4g} in epoch 3" in loss
    assert "0.001 in epoch 1, 0.001 in epoch 3" in rate


def test_classes_and_confusions_are_those_of_evaluate(page, run):
    _, held_out = open_dataset(run.parent / "data.npz")
    scores = load(run / "best.safetensors", device="cpu").evaluate(held_out)
    _, *rows = page.tables["Confusions"]
    assert rows == [[name, *map(str, counts)] for name, counts in zip(HOSTILE, scores.confusion.tolist(), strict=True)]
    header, *rows = page.tables["Classes"]
    assert header == ["class", "training images", "images", "accuracy", "precision", "F1"]
    assert [row[:3] for row in rows] == [[name, "20", "10"] for name in HOSTILE]
    assert [row[3] for row in rows] == [f"{100 * part:.1f}\xa0%" for part in scores.per_class.values()]


def test_network_and_settings(page):
    header, *rows = page.tables["Layers"]
    assert header == ["name", "layer", "output", "parameters", "MACs", "kept for backward"]
    first = dict(zip(header, rows[0], strict=True))
    assert (first["output"], first["parameters"]) == ("32x6x6", "320")
    assert first["MACs"] == "10.4 k"  # 32 * 6 * 6 * 9
    settings = dict(page.tables["Settings"][1:])
    assert (settings["model"], settings["epochs"], settings["lr"], settings["numpy"]) == (
        "keras_style", "3", "–", np.__version__,
    )  # fmt: skip


def test_the_verdict_names_a_leak(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (240, 1, 8, 8), dtype=np.uint8)
    labels = np.arange(240) % 3
    known = by_hand(tmp_path, small_net(), images, labels)
    held_out = ArrayDataset(images[:60], labels[:60], known.classes)
    text = Page(report(tmp_path, held_out, known, device="cpu").read_text("utf-8")).text("p")
    assert "The validation data look leaked: 100% of 60 held-out images have a near-duplicate" in text
    fresh = ArrayDataset(rng.integers(0, 256, (60, 1, 8, 8), dtype=np.uint8), labels[:60], known.classes)
    assert "No sign of a leak" in Page(report(tmp_path, fresh, known, device="cpu").read_text("utf-8")).text("p")
    assert "Not judged" in Page(report(tmp_path, fresh, device="cpu").read_text("utf-8")).text("p")
    page = Page(report(tmp_path, None, known, device="cpu").read_text("utf-8"))
    assert "Nothing was held out" in page.text("p")
    assert "of 240 training images" in page.text("dd")
    assert "model.safetensors, epoch 1 of 1" in page.text("dd")


# --- it stands alone --------------------------------------------------------------------------------------------


def test_nothing_comes_from_elsewhere(html, page):
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("data:", "#"))
        assert not any(name.startswith("on") or name == "style" for name in attributes)
    assert "://" not in html
    assert not {tag for tag, _ in page.tags} & {"iframe", "object", "embed", "form", "base"}
    assert len(html.encode()) < 1_000_000


def test_the_policy_allows_only_what_is_there(html):
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html)
    rules = dict(rule.split(" ", 1) for rule in policy.replace("&#39;", "'").split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for name, tag in (("style-src", "style"), ("script-src", "script")):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"


def test_hostile_class_names_are_text(html, page):
    assert [row[0] for row in page.tables["Classes"][1:]] == HOSTILE
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert all(picture["src"] != "x" for picture in page.all("img"))
    assert any(HOSTILE[0] in picture["alt"] for picture in page.all("img"))
    assert "<script>alert" not in html


def test_the_same_run_gives_the_same_page(run, html, tmp_path):
    other = tmp_path / "deep" / "other.html"
    assert main(["report", str(run), "--out", str(other), "--device", "cpu"]) == 0
    assert other.read_text(encoding="utf-8") == html
    assert [path.name for path in other.parent.iterdir()] == ["other.html"]


def test_large_noisy_colour_images_stay_small(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (63, 3, 300, 224), dtype=np.uint8), np.arange(63) % 21
    dataset = by_hand(tmp_path, small_net(21), images, labels)
    html = report(tmp_path, dataset, device="cpu").read_text("utf-8")
    assert len(html) < 5_000_000
    page = Page(html)
    assert page.tables["Confusions"][0] == ["truth", "prediction", "images"]
    assert "The most frequent mistakes" in page.text("summary")
    assert len(page.tables["Confusions"]) <= 21


# --- its parts --------------------------------------------------------------------------------------------------


def test_filters_before_are_the_initial_ones(run):
    classifier = load(run / "best.safetensors", device="cpu")
    net, caption = _initial(classifier, {"seed": 0, "weights": None})
    expected = zoo.build("keras_style", 3)
    expected.build((1, 8, 8), seed=0)
    assert caption == "Before training"
    np.testing.assert_array_equal(net["0"].weight.data, expected["0"].weight.data)
    assert not np.array_equal(net["0"].weight.data, classifier.net["0"].weight.data)


def test_filters_before_of_a_training_that_began_with_weights(run, tmp_path):
    weights = tmp_path / "start.safetensors"
    shutil.copy(run / "best.safetensors", weights)
    again = train(tmp_path, "--weights", str(weights))
    classifier = load(again / "best.safetensors", device="cpu")
    net, caption = _initial(classifier, {"seed": 0, "weights": str(weights)})
    assert caption == "Before training, from start.safetensors"
    start = load(weights, device="cpu").net
    np.testing.assert_array_equal(net["0"].weight.data, start["0"].weight.data)
    weights.unlink()
    assert main(["report", str(again), "--device", "cpu"]) == 0
    page = Page((again / "report.html").read_text("utf-8"))
    assert "file of weights that it began with is not there any more" in page.text("p")
    assert sum("filters of layer" in picture["alt"] for picture in page.all("img")) == 1


def test_the_surest_mistakes_come_first():
    images = np.zeros((4, 1, 8, 8), np.uint8)
    dataset = ArrayDataset(images, np.array([0, 1, 0, 1]), ["a", "b"])
    probabilities = np.array([[0.1, 0.9], [0.0, 1.0], [0.4, 0.6], [0.99, 0.01]])
    found = [picture.alt for picture in _mistakes(dataset, probabilities, ["a", "b"])]
    assert found == [
        "Image 3: b, taken for a (99.0\xa0%).",
        "Image 0: a, taken for b (90.0\xa0%).",
        "Image 2: a, taken for b (60.0\xa0%).",
    ]


def test_a_hundred_classes_and_more_are_not_drawn():
    scores = Report(0.0, np.eye(101, dtype=np.int64)[::-1], [str(i) for i in range(101)])
    assert _confusion(scores) is None
    rows = _confusion_table(scores).rows
    assert rows[0] == [("0", ""), ("100", ""), ("1", "1")]  # each text with the number to sort by
    assert len(rows) == 20


def test_a_mistake_has_the_name_of_its_file(tmp_path):
    for name in ("bright", "dark"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((8, 8), 40, np.uint8)).save(tmp_path / name / f"{name} one.png")
    whole, _ = open_dataset(tmp_path, (8, 8))
    dataset = Subset(whole, [1, 0])
    (found,) = _mistakes(dataset, np.array([[0.2, 0.8], [0.2, 0.8]]), dataset.classes)
    assert found.alt == "bright one.png: bright, taken for dark (80.0\xa0%)."


def test_where_the_evidence_lies():
    heat = np.zeros((9, 9))
    assert _where(heat) == "nothing speaks for the class."
    heat[7, 1], heat[0, 0] = 3.0, 1.0
    assert _where(heat) == "most of the evidence, 75.0\xa0%, lies in the bottom left ninth of the image."
    laid = _overlay(np.ones((9, 9)), heat)
    np.testing.assert_allclose(laid[4, 4], 0.6)  # no evidence: the image, darkened
    assert laid[7, 1].min() > 0.6 or np.ptp(laid[7, 1]) > 0.1  # the brightest end of the colours


def test_a_network_without_convolution(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (30, 1, 8, 8), dtype=np.uint8), np.arange(30) % 3
    dataset = by_hand(tmp_path, Sequential(Flatten(), Dense(3)), images, labels)
    page = Page(report(tmp_path, dataset, device="cpu").read_text("utf-8"))
    assert "No Grad-CAM: the network has no convolution whose output is larger than one pixel" in page.text("p")
    assert page.text("p").count("The network has no convolution.") == 2


def test_no_mistakes(tmp_path):
    images = np.zeros((30, 1, 8, 8), np.uint8)
    images[::2] = 255
    dataset = by_hand(tmp_path, small_net(2), images, np.arange(30) % 2, epochs=100)
    page = Page(report(tmp_path, dataset, device="cpu").read_text("utf-8"))
    assert "There are none: every image is predicted right." in page.text("p")


def test_on_both_backends(xp, tmp_path):
    x, y = quarters(30)
    dataset = by_hand(tmp_path, small_net(), x, y)
    page = Page(report(tmp_path, dataset, device=place(xp)).read_text("utf-8"))
    pixels = [p for p in page.all("img") if p["alt"].startswith("Grad-CAM of Image")]
    assert len(pixels) == 3


# --- what can be wrong ------------------------------------------------------------------------------------------


def test_other_images(run, tmp_path, capsys):
    images, labels = np.zeros((4, 1, 8, 8), np.uint8), np.array([0, 1, 2, 0])
    np.savez(tmp_path / "other.npz", x=images, y=labels, classes=HOSTILE)
    out = tmp_path / "other.html"
    assert main(["report", str(run), str(tmp_path / "other.npz"), "--out", str(out), "--device", "cpu"]) == 0
    page = Page(out.read_text("utf-8"))
    assert "of 4 held-out images" in page.text("dd")
    assert str(out) in capsys.readouterr().out
    np.savez(tmp_path / "other.npz", x=images, y=labels, classes=["a", "b", "c"])
    assert main(["report", str(run), str(tmp_path / "other.npz"), "--device", "cpu"]) == 1
    assert "the classes are" in capsys.readouterr().err


def test_the_images_have_gone(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    settings = json.loads((copy / "run.json").read_text())
    settings["settings"]["data"] = "gone.npz"
    (copy / "run.json").write_text(json.dumps(settings))
    assert main(["report", str(copy)]) == 2
    assert "is not there. Name the data: xpcnn report RUN DATA" in capsys.readouterr().err
    del settings["settings"]["stem"]
    (copy / "run.json").write_text(json.dumps(settings))
    assert main(["report", str(copy)]) == 1
    assert "is not what xpcnn train writes: no setting 'stem'" in capsys.readouterr().err


def test_no_training_or_no_model_or_no_images(run, tmp_path):
    with pytest.raises(ArgumentError, match=r"is not the folder of a training: it has no history\.csv"):
        report(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    with pytest.raises(ArgumentError, match="a report judges the network by images; give held_out, or training"):
        report(copy)
    for name in ("best", "model"):
        (copy / f"{name}.safetensors").unlink()
    with pytest.raises(ArgumentError, match=r"has no model yet: best\.safetensors is there after the first epoch"):
        report(copy)


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_without_the_extra(run, monkeypatch, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(MissingExtraError, match=rf'writing a report needs {package}.*pip install "xpcnn\[report\]"'):
        report(run)
