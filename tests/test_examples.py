"""The examples run, on very little data, and use the networks of the zoo."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xpcnn import Classifier, zoo
from xpcnn.layers import config

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NAMES = ("mri", "lenet", "simple_convnet", "keras_style", "loop_by_hand")
TINY = ["--epochs", "1", "--limit", "40", "--device", "cpu"]


def example(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def digits(tmp_path):
    """A small .npz file instead of the embedded digits, so that evaluating takes no time."""
    from xpcnn.data import mnist

    train, test = mnist()
    path = tmp_path / "digits.npz"
    first, some = np.arange(60), np.arange(30)
    arrays = {"x_train": train.take(first)[:, 0], "y_train": train.labels[first]}
    np.savez(path, **arrays, x_test=test.take(some)[:, 0], y_test=test.labels[some])
    return path


@pytest.fixture
def heads(tmp_path):
    """A folder of small grey images in the four classes, and the same folder zipped."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "train"
    for level, name in enumerate(("MildDemented", "ModerateDemented", "NonDemented", "VeryMildDemented")):
        (folder / name).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(60 * level, 60 * level + 40, (24, 20), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.jpg")
    with zipfile.ZipFile(tmp_path / "heads.zip", "w") as archive:
        for path in folder.rglob("*.jpg"):
            archive.write(path, path.relative_to(tmp_path))
    return folder


def test_there_are_no_others():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(NAMES)


@pytest.mark.parametrize("name", ["mri", "lenet", "simple_convnet", "keras_style"])
def test_the_network_is_that_of_the_zoo(name):
    assert config(example(name).network()) == config(zoo.build(name))


@pytest.mark.parametrize("p", [1.0, 3.0])
def test_lenet_with_norm_pooling_is_that_of_the_zoo(p):
    assert config(example("lenet").network(p=p)) == config(zoo.lenet(pool=p))


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_mri(heads, kind, tmp_path, capsys):
    source = heads if kind == "folder" else tmp_path / "heads.zip"
    out = tmp_path / "model.json"
    accuracy = example("mri").main(
        [str(source), "--size", "16", "--epochs", "2", "--batch-size", "8", "--device", "cpu", "--out", str(out)]
    )
    text = capsys.readouterr().out
    assert 0 <= accuracy <= 1
    assert out.exists()
    for expected in (
        "Input: 1x16x16",
        "32 images in 4 classes: MildDemented",
        "24 training samples, 8 validation samples",
        "3 batches of 8 in an epoch",
        "the slides: 290 s an epoch of 192 images",
        "neighbouring slices",
    ):
        assert expected in text


def test_mri_stops_at_what_is_no_zip(tmp_path):
    (tmp_path / "no.zip").write_text("no")
    with pytest.raises(zipfile.BadZipFile):
        example("mri").main([str(tmp_path / "no.zip")])


@pytest.mark.parametrize("pool", ["inf", "2"])
def test_lenet(digits, capsys, pool):
    accuracy = example("lenet").main(["--data", str(digits), "--pool", pool, "--batch-size", "10", *TINY])
    text = capsys.readouterr().out
    assert 0 <= accuracy <= 1
    assert "the article: loss 0.104 at the end of training, 96 % of 100 test images" in text
    assert "1 epochs of 40 images" in text or "40 images" in text


def test_simple_convnet(digits, tmp_path, capsys):
    accuracy = example("simple_convnet").main(["--data", str(digits), "--out", str(tmp_path / "out"), *TINY])
    text = capsys.readouterr().out
    assert 0 <= accuracy <= 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "filters_before.png", "filters_after.png", "model.safetensors",
    }  # fmt: skip
    assert "all 7 gradients agree" in text
    assert f"test accuracy: {accuracy:.2%} on 30 images; after saving and loading: {accuracy:.2%}" in text


def test_simple_convnet_refuses_a_wrong_gradient(digits, tmp_path, monkeypatch):
    module = example("simple_convnet")
    monkeypatch.setattr(module.ReLU, "backward", lambda self, dy, ctx, need_dx=True: dy)
    with pytest.raises(SystemExit, match="a gradient is wrong"):
        module.main(["--data", str(digits), "--out", str(tmp_path), *TINY])


@pytest.mark.parametrize("options", [[], ["--augment"]])
def test_keras_style(digits, capsys, options):
    accuracy = example("keras_style").main(["--data", str(digits), *TINY, *options])
    text = capsys.readouterr().out
    assert 0 <= accuracy <= 1
    assert "1,199,882" in text
    assert "the notebook: 1,010 to 1,440 s an epoch, 92.3 %" in text
    assert "40 training images, 30 test images, batches of 16" in text


def test_loop_by_hand_does_what_fit_does(digits, capsys):
    """The same order, the same updates, the same loss as `Classifier.fit`."""
    module = example("loop_by_hand")
    accuracy = module.main(["--data", str(digits), *TINY])
    text = capsys.readouterr().out
    train, test = module.open_dataset(digits, limit=40)
    classifier = Classifier(module.network(), classes=10, device="cpu", seed=0)
    history = classifier.fit(train, epochs=1, batch_size=32, verbose=False)
    assert f"epoch 1: mean loss {history['loss'][0]:.4f}" in text
    assert classifier.score(test) == accuracy


def test_loop_by_hand_on_both_backends(xp, digits, capsys):
    device = "cpu" if xp is np else "cuda:0"
    example("loop_by_hand").main(["--data", str(digits), "--epochs", "1", "--limit", "20", "--device", device])
    assert "test images are right" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_as_people_run_it(name):
    result = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", "--help"],
        env={**__import__("os").environ, "PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "--epochs" in result.stdout
    assert "--device" in result.stdout
