"""Comparing the folders of trainings, and the commands `compare`, `explain` and `lr-find`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from toys import CLASSES, quarters, small_classifier

from xpcnn import ArgumentError, FileFormatError
from xpcnn.inspection import compare
from xpcnn.training import History

pytest.importorskip("matplotlib", reason="matplotlib is not installed")


def folder_of(path, losses, stopped=None, **settings):
    """Write what a training leaves."""
    history = History()
    for epoch, loss in enumerate(losses, 1):
        row = {"epoch": epoch, "loss": loss, "accuracy": 1 - loss, "val_loss": 2 * loss, "val_accuracy": 0.9 - loss}
        history.append(row | {"lr": 0.1, "seconds": 1.5})
    path.mkdir(parents=True)
    history.to_csv(path / "history.csv")
    run = {"settings": {"model": "lenet", "out": str(path), **settings}, "device": "cpu", "versions": {}}
    run["result"] = {"stopped": stopped} if stopped else None
    (path / "run.json").write_text(json.dumps(run))
    return path


def test_what_differs_and_what_is_best(tmp_path):
    one = folder_of(tmp_path / "one", [0.5, 0.25, 0.3], lr=0.1, momentum=0.9)
    two = folder_of(tmp_path / "two", [0.5, 0.4], "interrupted in epoch 3", lr=0.2, momentum=0.9, ema=0.99)
    found = compare([one, two])
    assert [run.name for run in found.runs] == ["one", "two"]
    assert found.differences() == {"lr": [0.1, 0.2], "ema": [None, 0.99]}
    assert [row["epoch"] for row in found.best()] == [2, 2]
    rows = {cells[0]: cells[1:] for cells, _ in found.table().rows}
    assert rows == {
        "lr": ("0.1", "0.2"),
        "ema": ("-", "0.99"),
        "best: epoch": ("2", "2"),
        "best: loss": ("0.2500 *", "0.4000"),
        "best: accuracy": ("0.7500 *", "0.6000"),
        "best: val_loss": ("0.5000 *", "0.8000"),
        "best: val_accuracy": ("0.6500 *", "0.5000"),
        "epochs": ("3", "2"),
        "seconds": ("4.5", "3.0"),
        "ended": ("-", "interrupted in epoch 3"),
    }
    assert "2 trainings" in str(found)
    assert len(found.plot().axes) == 2


def test_folders_of_one_name(tmp_path):
    folders = [folder_of(tmp_path / name / "lenet", [0.5]) for name in ("a", "b")]
    assert [run.name for run in compare(folders).runs] == ["a/lenet", "b/lenet"]
    with pytest.raises(ArgumentError, match=r"a training is compared with others; received .* more than once"):
        compare([folders[0], folders[0]])


def test_one_training_alone(tmp_path):
    found = compare([folder_of(tmp_path / "a", [0.5])])
    assert found.differences() == {}
    assert "*" not in str(found)


def test_what_is_no_training(tmp_path):
    with pytest.raises(ArgumentError, match="at least one folder of a training; received none"):
        compare([])
    with pytest.raises(ArgumentError, match=r"nothing is not the folder of a training: it has no history\.csv"):
        compare([tmp_path / "nothing"])
    folder = folder_of(tmp_path / "a", [0.5])
    for content in ("{", "[]", "{}", '{"settings": 3}', '{"settings": {}, "result": 5}'):
        (folder / "run.json").write_text(content)
        with pytest.raises(FileFormatError, match=r"run\.json is not what xpcnn train writes"):
            compare([folder])
    (folder / "run.json").unlink()
    with pytest.raises(ArgumentError, match=r"it has no run\.json"):
        compare([folder])


# --- the commands -----------------------------------------------------------------------------------------------


def blank(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("L")).std() < 5 or min(picture.size) < 200


@pytest.fixture
def model(tmp_path):
    images, labels = quarters(36)
    clf = small_classifier(classes=CLASSES)
    clf.fit(images, labels, epochs=5, verbose=False)
    clf.save(tmp_path / "model.safetensors")
    Image.fromarray(images[1, 0]).save(tmp_path / "image.png")
    return clf


def test_compare_reads_what_train_writes(run, tmp_path):
    for name, lr in (("a", 0.001), ("b", 0.01)):
        options = ["--limit", 40, "--epochs", 1, "--device", "cpu", "--quiet", "--out", tmp_path / name, "--lr", lr]
        assert run("train", "mnist", *options)[0] == 0
    code, out, err = run("compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "curves.png")
    assert (code, err) == (0, "")
    table = [line.split() for line in out.splitlines()]
    assert ["lr", "0.001", "0.01"] in table
    assert not any(line[:1] == ["out"] for line in table)
    assert "curves.png: loss and accuracy" in out
    assert not blank(tmp_path / "curves.png")
    code, _, err = run("compare", tmp_path / "c")
    assert code == 2
    assert "is not the folder of a training" in err


@pytest.mark.parametrize("method", ["gradcam", "saliency", "occlusion"])
def test_explain_prints_classes_and_draws(run, tmp_path, monkeypatch, model, method):
    monkeypatch.chdir(tmp_path)
    options = ["--method", method, "--top", 2, "--device", "cpu"]
    code, out, err = run("explain", "model.safetensors", "image.png", *options)
    assert (code, err) == (0, "")
    probabilities = model.predict_proba("image.png")[0]
    first, second = np.argsort(-probabilities)[:2]
    table = [line.split() for line in out.splitlines()]
    assert table.index([CLASSES[first], f"{probabilities[first]:.4f}"]) + 1 == table.index(
        [CLASSES[second], f"{probabilities[second]:.4f}"]
    )
    assert sum(line[:1] == [name] for line in table for name in CLASSES) == 2
    assert f"image-{method}.png: " in out
    assert f"for {CLASSES[first]}" in out
    assert not blank(tmp_path / f"image-{method}.png")


def test_explain_another_class_at_another_layer(run, tmp_path, model):
    files = [tmp_path / "model.safetensors", tmp_path / "image.png"]
    code, out, _ = run("explain", *files, "--class", "south", "--layer", "0", "--out", tmp_path / "x.png")
    assert code == 0
    assert "x.png: Grad-CAM for south, layer 0" in out
    for options, message in (
        (["--class", "west"], "a class is given by name (north, east, south) or by number (0 to 2)"),
        (["--layer", "fc"], "no layer 'fc' takes part in prediction; there are: 0, 1, 2, 3, 4."),
        (["--layer", "0", "--method", "saliency"], "--layer is for --method gradcam; saliency looks at the pixels"),
    ):
        code, _, err = run("explain", *files, *options, "--device", "cpu", "--out", tmp_path / "y.png")
        assert code == 2
        assert message in err
    assert not (tmp_path / "y.png").exists()


def test_lr_find_suggests_and_draws(run, tmp_path):
    options = ["--limit", 60, "--steps", 40, "--optimizer", "sgd", "--device", "cpu", "--out", tmp_path / "lr.png"]
    code, out, err = run("lr-find", "mnist", *options)
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith("suggested learning rate: 0.")
    assert "lr.png: loss against learning rate" in out
    assert not blank(tmp_path / "lr.png")
    assert {path.name for path in tmp_path.iterdir()} == {"lr.png"}
    code, _, err = run("lr-find", "mnist", "--low", 2, "--high", 1, "--limit", 60, "--device", "cpu")
    assert code == 2
    assert "lr_find needs 0 < low < high" in err
