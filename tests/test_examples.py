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

from xpcnn import Classifier, load, zoo
from xpcnn.layers import config

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NAMES = ("mri", "lenet", "simple_convnet", "keras_style", "loop_by_hand", "zoo_cifar10")
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


@pytest.fixture
def cifar(request, tmp_path):
    """60 + 20 images of one colour, and noise, in a file or folder such as those of CIFAR-10."""
    rng = np.random.default_rng(0)
    parts = {}
    for part, count in (("train", 60), ("test", 20)):
        y = np.arange(count, dtype=np.uint8) % 10
        x = 20 * y[:, None, None, None] + rng.integers(0, 40, (count, 3, 32, 32), dtype=np.uint8)
        parts[part] = x, y
    if getattr(request, "param", "npz") == "npz":
        arrays = {f"x_{part}": x.transpose(0, 2, 3, 1) for part, (x, _) in parts.items()}
        np.savez(tmp_path / "cifar.npz", **arrays, **{f"y_{part}": y for part, (_, y) in parts.items()})
        return tmp_path / "cifar.npz"
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "batches.meta.txt").write_text("\n".join(example("zoo_cifar10").CLASSES))
    records = {part: np.concatenate([y[:, None], x.reshape(len(x), -1)], axis=1) for part, (x, y) in parts.items()}
    records["test"].tofile(folder / "test_batch.bin")
    for i, batch in enumerate(np.array_split(records["train"], 5), 1):
        batch.tofile(folder / f"data_batch_{i}.bin")
    return tmp_path


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


def test_zoo_cifar10(cifar, tmp_path, capsys):
    """Header, epoch lines, tables and curves, and a second run that adds its network to the report of the first."""
    module, out = example("zoo_cifar10"), tmp_path / "out"
    run = [str(cifar), *TINY, "--batch-size", "20", "--out", str(out)]
    first = module.main([*run, "--nets", "squeezenet1_1,resnet20", "--augment"])
    text = capsys.readouterr().out
    for expected in (
        "resnet20: 269,722 parameters (269,722 trained), 40,551,040 MACs an image",
        "40 training and 20 test images",
        "epochs = 1, batch size = 20, highest learning rate = 0.1\n",
        "random crops and flips",
        "highest learning rate = 0.05\n",  # of SqueezeNet, which has no batch norm
        "Epoch 1/1",
        f"| squeezenet1_1 | 2016 | {zoo.entry('squeezenet1_1').form('cifar').parameters:,} |",
        "| class | resnet20 | squeezenet1_1 |",
        "| truck |",
    ):
        assert expected in text
    assert text.endswith((out / "report.md").read_text())
    assert {path.name for path in out.iterdir()} == {
        "curves.png", "report.md", "resnet20.json", "resnet20.safetensors", "squeezenet1_1.json",
        "squeezenet1_1.safetensors",
    }  # fmt: skip
    with Image.open(out / "curves.png") as curves:
        assert curves.width > curves.height > 100

    second = module.main([*run, "--nets", "squeezenet1_0"])
    assert second.keys() == {"resnet20", "squeezenet1_0", "squeezenet1_1"}
    assert first.items() <= second.items()


def test_zoo_cifar10_judges_and_fine_tunes_given_weights(cifar, tmp_path, capsys):
    """Weights on file have the same accuracy again; with --head-only nothing but the last layer is trained."""
    module, out = example("zoo_cifar10"), tmp_path / "out"
    run = [str(cifar), "--nets", "resnet20", "--device", "cpu", "--batch-size", "20"]
    trained = module.main([*run, "--epochs", "1", "--out", str(out)])
    weights = ["--weights", str(out / "resnet20.safetensors")]
    capsys.readouterr()
    judged = module.main([*run, *weights, "--epochs", "0", "--out", str(tmp_path / "judged")])
    text = capsys.readouterr().out
    assert judged == trained
    assert "weights from resnet20.safetensors" in text
    assert "| resnet20 | 2015 | 269,722 | 40,551,040 | 0 x 60 |" in text
    assert not (tmp_path / "judged" / "curves.png").exists()

    module.main([*run, *weights, "--epochs", "1", "--head-only", "--out", str(tmp_path / "tuned")])
    assert "269,722 parameters (650 trained)" in capsys.readouterr().out
    before, after = (load(folder / "resnet20.safetensors").net.state_dict() for folder in (out, tmp_path / "tuned"))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"linear.weight", "linear.bias"}


def test_zoo_cifar10_goes_on_from_checkpoints(cifar, tmp_path, capsys):
    """What was finished is not trained again."""
    run = [str(cifar), *TINY, "--nets", "resnet20", "--resume", "--out", str(tmp_path / "out")]
    first = example("zoo_cifar10").main(run)
    assert "Epoch 1/1" in capsys.readouterr().out
    assert example("zoo_cifar10").main(run) == first
    assert "Epoch 1/1" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--nets", "alexnet,resnet20", "--weights", "w.pth"], "--weights are those of one network"),
        (["--nets", "resnet20", "--head-only"], "--head-only needs --weights"),
        (["--test-limit", "9"], "must leave at least 10 images, one of each class"),
    ],
)
def test_zoo_cifar10_refuses_options_that_make_no_sense(options, words, capsys):
    with pytest.raises(SystemExit):
        example("zoo_cifar10").main(["data.npz", *options])
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("cifar", ["npz", "folder"], indirect=True)
def test_zoo_cifar10_reads_both_layouts(cifar):
    """Image i is the image written there, and a limit takes as many of each class."""
    train, test = example("zoo_cifar10").images(cifar, None, None)
    assert (len(train), len(test), train.shape) == (60, 20, (3, 32, 32))
    assert train.classes[0] == "airplane"
    for image, label in (train[i] for i in (0, 7, 59)):
        assert 20 * label <= image.min() <= image.max() < 20 * label + 40
    train, test = example("zoo_cifar10").images(cifar, 20, 10)
    assert np.bincount(train.labels).tolist() == [2] * 10
    assert np.bincount(test.labels).tolist() == [1] * 10


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
