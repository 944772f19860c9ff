"""The command line: what it prints, what it leaves, how it ends."""

from __future__ import annotations

import csv
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from typer.testing import CliRunner

import xpcnn
from xpcnn import cli
from xpcnn.cli import app, main

ROOT = Path(__file__).resolve().parent.parent
TINY = ["--limit", "40", "--batch-size", "20", "--device", "cpu", "--validation", "0.25"]
RESULTS = {"model.safetensors", "best.safetensors", "history.csv", "curves.png", "filters.png", "run.json"}


@pytest.fixture(autouse=True)
def _quiet_logging(monkeypatch):
    monkeypatch.setattr(cli.logging, "basicConfig", lambda **_: None)


@pytest.fixture
def refused(run):
    """Run a command line that must fail: one line on stderr, no traceback."""

    def call(*arguments):
        code, _, err = run(*arguments)
        assert code in (1, 2)
        assert err.startswith("xpcnn: ")
        assert err.count("\n") == 1, err
        return code, err

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder left by a short training."""
    folder = tmp_path_factory.mktemp("trained")
    arguments = ["train", "mnist", "--model", "lenet", "--epochs", "2", *TINY, "--out", str(folder), "--quiet"]
    assert main(arguments) == 0
    return folder


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    """Bright and dark images in train/ and test/."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 3)):
        for name, low in (("bright", 150), ("dark", 20)):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(low, low + 90, (20, 24), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{i}.png")
    return folder


# --- train ------------------------------------------------------------------------------------------------------


def test_train_leaves_everything(trained):
    assert {path.name for path in trained.iterdir()} == RESULTS
    with open(trained / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert set(rows[0]) == {"epoch", "loss", "accuracy", "val_loss", "val_accuracy", "lr", "seconds"}
    run = json.loads((trained / "run.json").read_text())
    assert run["settings"]["limit"] == 40
    assert run["settings"]["optimizer"] == "adam"
    assert run["settings"]["out"] == str(trained)
    assert (run["device"], run["training_images"], run["validation_images"]) == ("cpu", 30, 10)
    assert run["versions"]["numpy"] == np.__version__
    assert run["versions"]["xpcnn"] == xpcnn.__version__
    assert run["result"]["epochs"] == 2
    assert run["result"]["stopped"] is None
    assert run["result"]["last"]["loss"] == pytest.approx(float(rows[-1]["loss"]))
    assert xpcnn.load(trained / "model.safetensors", device="cpu").input_shape == (1, 28, 28)


def test_train_says_what_it_does(run, tmp_path):
    code, out, err = run("train", "mnist", "--epochs", 1, *TINY, "--out", tmp_path / "a" / "b")
    assert code == 0
    assert err == ""
    for expected in (
        "mnist: 30 images of 1x28x28 to train on, 10 images held out",
        "10 classes: 0, 1, 2",
        "lenet: 431,080 parameters on cpu; 2 batches of 20 an epoch",
        "Epoch 1/1",
        "best: epoch 1",
        "model.safetensors, best.safetensors, history.csv, curves.png, filters.png, run.json",
    ):
        assert expected in out


def test_the_same_seed_gives_the_same_training(run, tmp_path):
    results = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        code, _, err = run("train", "mnist", "--epochs", 1, *TINY, "--seed", seed, "--quiet", "--out", tmp_path / name)
        assert code == 0, err
        results.append((tmp_path / name / "model.safetensors").read_bytes())
    assert results[0] == results[1] != results[2]


def test_train_takes_every_option(run, tmp_path):
    options = (
        "--optimizer sgd --momentum 0.9 --lr 0.01 --weight-decay 1e-4 --schedule exponential:0.5 --warmup 1 "
        "--label-smoothing 0.1 --ema 0.9 --augment light --normalize --patience 5 --workers 1 --seed 3 --quiet"
    )
    code, out, err = run("train", "mnist", "--epochs", 2, *TINY, "--out", tmp_path, *options.split())
    assert (code, out, err) == (0, "", "")
    run_json = json.loads((tmp_path / "run.json").read_text())
    assert run_json["settings"]["schedule"] == "exponential:0.5"
    assert run_json["result"]["last"]["lr"] == pytest.approx(0.01)
    model = xpcnn.load(tmp_path / "model.safetensors", device="cpu")
    assert model.mean is not None


def test_train_in_mixed_precision(run, tmp_path):
    code, _, _ = run("train", "mnist", "--epochs", 1, *TINY, "--dtype", "mixed_float16", "--out", tmp_path)
    assert code == 0
    assert json.loads((tmp_path / "run.json").read_text())["settings"]["dtype"] == "mixed_float16"
    assert xpcnn.load(tmp_path / "model.safetensors", device="cpu").net.dtype == "float32"


def test_train_on_a_folder_with_a_test_part(run, image_folder, tmp_path):
    code, out, _ = run(
        "train", image_folder, "--model", "mri", "--size", "24", "--epochs", 4, "--batch-size", 4, "--device", "cpu",
        "--lr", "0.003", "--out", tmp_path,
    )  # fmt: skip
    assert code == 0
    assert "16 images of 1x24x24 to train on, 6 images held out" in out
    assert "2 classes: bright, dark" in out

    images = [image_folder / "test" / "dark" / "0.png", image_folder / "test" / "bright" / "1.png"]
    code, out, _ = run("predict", tmp_path / "model.safetensors", *images, "--json", "--device", "cpu")
    assert code == 0
    found = json.loads(out)
    assert [entry["class"] for entry in found] == ["dark", "bright"]
    assert [entry["file"] for entry in found] == [str(image) for image in images]
    assert sum(found[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert set(found[0]["probabilities"]) == {"bright", "dark"}

    code, out, _ = run("predict", tmp_path / "model.safetensors", *images, "--device", "cpu")
    assert code == 0
    assert "dark" in out
    assert "probability" in out

    code, out, _ = run("evaluate", tmp_path / "best.safetensors", image_folder, "--device", "cpu")
    assert code == 0
    assert "on 6 images" in out
    assert "confusion matrix" in out

    code, out, _ = run(
        "evaluate", tmp_path / "best.safetensors", image_folder, "--device", "cpu", "--json", "--limit", 4
    )
    assert json.loads(out)["count"] == 4


def test_fine_tuning_on_other_classes(run, trained, image_folder, tmp_path):
    weights = trained / "model.safetensors"
    code, out, err = run(
        "train", image_folder, "--size", 28, "--epochs", 1, "--device", "cpu", "--out", tmp_path, "--weights", weights,
        "--freeze", "0", "--freeze", "3.weight", "--lr-group", "7=0", "--lr-group", "*.bias=0", "--optimizer", "sgd",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "lenet: 427,072 parameters, 25,520 of them frozen, on cpu" in out
    assert f"weights from {weights}; begun anew for other classes: 10\n" in out
    before, after = (
        xpcnn.load(folder / "model.safetensors", device="cpu").net.state_dict() for folder in (trained, tmp_path)
    )
    same = {name for name in before if name.split(".")[0] != "10" and (before[name] == after[name]).all()}
    assert same == {"0.weight", "0.bias", "3.weight", "3.bias", "7.weight", "7.bias"}
    assert after["10.weight"].shape == (2, 500)
    settings = json.loads((tmp_path / "run.json").read_text())
    assert settings["frozen"] == 25_520
    assert settings["settings"]["weights"] == str(weights)
    assert settings["settings"]["freeze"] == ["0", "3.weight"]
    assert settings["settings"]["lr_group"] == ["7=0", "*.bias=0"]


def test_training_goes_on_from_weights_of_the_same_classes(run, trained, tmp_path):
    weights = {f"module.{k}": v for k, v in xpcnn.load(trained / "model.safetensors", "cpu").net.state_dict().items()}
    save_file(weights, tmp_path / "w.safetensors")
    common = ["train", "mnist", *TINY, "--epochs", 1, "--lr", 0, "--out", tmp_path / "out"]
    code, out, _ = run(*common, "--weights", tmp_path / "w.safetensors")
    assert code == 0
    assert f"weights from {tmp_path / 'w.safetensors'}\n" in out
    for name, array in xpcnn.load(tmp_path / "out" / "model.safetensors", "cpu").net.state_dict().items():
        np.testing.assert_array_equal(array, weights[f"module.{name}"])


def test_fine_tuning_that_cannot_work_is_refused(refused, trained, tmp_path):
    common = ["train", "mnist", *TINY, "--out", tmp_path / "out"]
    code, err = refused(*common, "--weights", tmp_path / "none.safetensors")
    assert code == 2
    assert "none.safetensors does not exist" in err
    code, err = refused(*common, "--weights", trained / "model.safetensors", "--model", "simple_convnet")
    assert code == 1
    assert "model.safetensors: the state dict does not fit the network: " in err
    code, err = refused(*common, "--freeze", "features")
    assert code == 2
    assert "no parameter matches 'features'; known: 0.weight, " in err
    code, err = refused(*common, "--lr-group", "features=0.1")
    assert code == 2
    assert "no parameter matches 'features'" in err
    for text in ("0.1", "=0.1", "0=fast", "0"):
        code, err = refused(*common, "--lr-group", text)
        assert code == 2
        assert f"--lr-group takes PATTERN=RATE, such as 'features=1e-4'; received '{text}'." in err
    code, err = refused(*common, "--lr-group", "0=-1")
    assert code == 2
    assert "lr of the group '0' must be at least 0.0 and below inf; received -1.0." in err
    assert not (tmp_path / "out").exists()


def test_validation_can_be_other_data_or_none(run, image_folder, tmp_path):
    common = ["--model", "mri", "--size", "16,16", "--mode", "RGB", "--epochs", 1, "--device", "cpu"]
    code, out, _ = run(
        "train", image_folder / "train", *common, "--validation", image_folder / "test", "--out", tmp_path / "a"
    )
    assert code == 0
    assert "16 images of 3x16x16 to train on, 6 images held out" in out
    code, out, _ = run("train", image_folder / "train", *common, "--validation", 0, "--out", tmp_path / "b")
    assert code == 0
    assert "16 images of 3x16x16 to train on, none held out" in out
    assert "val_loss" not in (tmp_path / "b" / "history.csv").read_text()
    assert (tmp_path / "b" / "best.safetensors").exists()


def test_without_a_test_part_a_fifth_is_held_out(run, image_folder, tmp_path):
    code, out, _ = run(
        "train", image_folder / "train", "--size", 28, "--epochs", 1, "--device", "cpu", "--out", tmp_path
    )
    assert code == 0
    assert "13 images of 1x28x28 to train on, 3 images held out" in out


def test_early_stopping_is_in_run_json(run, tmp_path):
    code, out, _ = run("train", "mnist", "--epochs", 9, *TINY, "--lr", 1e-12, "--patience", 1, "--out", tmp_path)
    assert code == 0
    result = json.loads((tmp_path / "run.json").read_text())["result"]
    assert "stopped early" in result["stopped"]
    assert result["epochs"] < 9
    assert "stopped early" in out


def test_a_training_that_blows_up_is_recorded(refused, tmp_path):
    code, err = refused(
        "train", "mnist", *TINY, "--optimizer", "sgd", "--lr", 1e30, "--epochs", 3, "--out", tmp_path, "--quiet"
    )
    assert code == 1
    assert "the loss became" in err
    assert "the loss became" in json.loads((tmp_path / "run.json").read_text())["result"]["error"]


def test_without_matplotlib_the_way_to_get_it_is_said(run, tmp_path, monkeypatch):
    from xpcnn.errors import MissingExtraError

    def missing(*_, **__):
        raise MissingExtraError("matplotlib", "viz", "drawing")

    monkeypatch.setattr(xpcnn.inspection, "plot_curves", missing)
    code, out, _ = run("train", "mnist", "--epochs", 1, *TINY, "--out", tmp_path)
    assert code == 0
    assert (
        'no pictures: drawing needs matplotlib, which is not installed. Install it with: pip install "xpcnn[viz]"'
        in out
    )
    assert not (tmp_path / "curves.png").exists()


def test_ctrl_c_saves_what_there_is(run, tmp_path, monkeypatch):
    original = xpcnn.training.SaveBest.on_epoch_end

    def interrupts(self, fit, logs):
        original(self, fit, logs)
        raise KeyboardInterrupt

    monkeypatch.setattr(xpcnn.training.SaveBest, "on_epoch_end", interrupts)
    code, out, _ = run("train", "mnist", "--epochs", 9, *TINY, "--out", tmp_path)
    assert code == 130
    assert "interrupted" in out
    assert {path.name for path in tmp_path.iterdir()} == RESULTS
    assert "interrupted" in json.loads((tmp_path / "run.json").read_text())["result"]["stopped"]


def test_ctrl_c_before_the_first_epoch(run, tmp_path, monkeypatch):
    def interrupts(self, fit):
        raise KeyboardInterrupt

    monkeypatch.setattr(xpcnn.training.Callback, "on_epoch_begin", interrupts)
    assert run("train", "mnist", *TINY, "--out", tmp_path, "--quiet")[0] == 130
    assert json.loads((tmp_path / "run.json").read_text())["result"]["best"] is None
    assert (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / "curves.png").exists()


def test_ctrl_c_elsewhere(run, monkeypatch):
    def interrupts(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(xpcnn.inspection, "doctor", interrupts)
    code, _, err = run("doctor")
    assert code == 130
    assert err.strip() == "xpcnn: interrupted"


# --- inspect ----------------------------------------------------------------------------------------------------


def test_training_within_a_limit(run, tmp_path):
    limited = ("train", "mnist", "--limit", 100, "--epochs", 1, "--device", "cpu", "--out", tmp_path)
    code, out, _ = run(*limited, "--batch-size", 64, "--memory-limit", "20MiB", "--micro-batch", 40)
    assert code == 0
    assert "Training, batch 64 in micro-batches of " in out
    assert json.loads((tmp_path / "run.json").read_text())["settings"]["micro_batch"] == 40
    code, _, err = run(*limited, "--memory-limit", "5MiB")
    assert code == 2
    assert "memory_limit: 5 MiB is not enough. The least that this training can do with is " in err


def test_summary(run, trained):
    code, out, _ = run("summary", "keras_style")
    assert code == 0
    assert "1,199,882" in out
    code, out, _ = run("summary", "lenet", "--classes", 3, "--input", "1,32,32", "--json")
    assert code == 0
    assert json.loads(out)["input_shape"] == [1, 32, 32]
    assert json.loads(out)["rows"][-1]["output_shape"] == [3]
    code, out, _ = run("summary", trained / "model.safetensors", "--batch-size", 8, "--optimizer", "sgd")
    assert code == 0
    assert "Input: 1x28x28" in out
    assert "\nTraining, batch 8: " in out
    assert "optimizer 0 B" in out


def test_in_a_terminal_tables_have_its_width(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main(["summary", "lenet"]) == 0
    out = capsys.readouterr().out
    assert "\x1b[" in out


def test_gradcheck(run, trained, monkeypatch):
    code, out, _ = run("gradcheck", "lenet", "--input", "1,20,20", "--seed", 4)
    assert code == 0
    assert "all 9 gradients agree" in out
    code, out, _ = run("gradcheck", trained / "model.safetensors", "--batch-size", 1)
    assert code == 0

    monkeypatch.setattr(xpcnn.ReLU, "backward", lambda self, dy, ctx, need_dx=True: dy)
    code, out, _ = run("gradcheck", "lenet", "--input", "1,20,20")
    assert code == 1
    assert "WRONG" in out


def test_crosscheck_of_the_cpu_with_itself(run):
    code, out, _ = run("crosscheck", "lenet", "--device", "cpu", "--input", "1,20,20", "--batch-size", 2)
    assert code == 0
    assert "everything agrees" in out


@pytest.mark.cupy
def test_crosscheck_of_both(run, trained):
    code, out, _ = run("crosscheck", trained / "model.safetensors", "--batch-size", 2)
    assert code == 0
    assert "everything agrees" in out


@pytest.mark.cupy
def test_train_on_a_gpu(run, tmp_path):
    arguments = ["--epochs", 1, "--limit", 20, "--validation", 0.2, "--device", "cuda:0", "--out", tmp_path]
    code, out, _ = run("train", "mnist", *arguments)
    assert code == 0
    assert "on cuda:0" in out


def test_crosscheck_without_a_gpu(refused, monkeypatch):
    monkeypatch.setattr(xpcnn.backend, "gpu_problem", lambda: "there is none")
    code, err = refused("crosscheck", "lenet")
    assert code == 1
    assert 'device "cuda:0" cannot be used: there is none' in err


def test_crosscheck_that_differs(run, monkeypatch):
    report = xpcnn.inspection.CrosscheckReport(
        (xpcnn.inspection.CrosscheckRow("0", "X", "output", 1.0, 9.0),), "cpu", "float32"
    )
    monkeypatch.setattr(xpcnn.inspection, "crosscheck", lambda *_, **__: report)
    code, out, _ = run("crosscheck", "lenet", "--device", "cpu")
    assert code == 1
    assert "first to differ: output of 0, X" in out


def test_doctor(run, monkeypatch):
    code, out, _ = run("doctor", "--json")
    found = json.loads(out)
    assert code == (0 if found["ok"] else 1)
    assert found["devices"][0]["problem"] is None
    code, out, _ = run("doctor")
    assert "device cpu" in out


# --- what goes wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ("train nowhere", 2, 'nowhere does not exist; expected a folder, an .npz file or the word "mnist".'),
        ("train mnist --model resnet", 2, "there is no network called 'resnet'; the zoo has mri, lenet"),
        ("train mnist --epochs 0", 2, "--epochs"),
        ("train mnist --epochs many", 2, "--epochs"),
        ("train", 2, "DATA"),
        ("train mnist --device tpu", 1, 'a device is "cpu", "cuda", "cuda:N" or "auto"; received \'tpu\''),
        ("train mnist --optimizer foo", 2, "foo"),
        ("train mnist --schedule foo", 2, "--schedule takes constant, cosine, exponential:FACTOR"),
        ("train mnist --schedule cosine:1", 2, "received 'cosine:1'"),
        ("train mnist --schedule exponential", 2, "received 'exponential'"),
        ("train mnist --schedule step:0", 2, "size of StepDecay must be at least 1"),
        ("train mnist --schedule onecycle --warmup 2", 2, "onecycle has a warm-up of its own"),
        ("train mnist --momentum 0.9", 2, "--momentum is for sgd and rmsprop; adam has its own"),
        ("train mnist --size 20,20,20", 2, "--size takes H,W or one number, such as 28,28; received '20,20,20'"),
        ("train mnist --validation 1.5", 2, "fraction must lie between 0 and 1"),
        ("train mnist --validation nowhere", 2, "nowhere does not exist"),
        ("train . --mode CMYK", 2, 'mode must be "L" (grey) or "RGB"; received \'CMYK\''),
        ("evaluate nowhere.safetensors mnist", 2, "nowhere.safetensors does not exist"),
        ("predict nowhere.safetensors a.png", 2, "nowhere.safetensors does not exist"),
        ("summary nowhere.safetensors", 2, "nowhere.safetensors does not exist"),
        ("summary nothing", 2, "there is no network called 'nothing'"),
        ("summary lenet --input 1,2", 2, "--input takes C,H,W, such as 1,28,28; received '1,2'"),
        ("summary lenet --input 1,4,4", 1, "kernel"),
        ("nonsense", 2, "No such command 'nonsense'"),
        ("summary lenet --nonsense", 2, "--nonsense"),
    ],
)
def test_errors_are_one_line(refused, tmp_path, monkeypatch, arguments, code, text):
    monkeypatch.chdir(tmp_path)
    found, err = refused(*arguments.split())
    assert text in err
    assert found == code
    assert not any(tmp_path.glob("runs/*"))


def test_files_that_are_no_models(refused, trained, tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((trained / "model.safetensors").read_bytes()[:1000])
    code, err = refused("summary", broken)
    assert code == 1
    assert "broken.safetensors is not a whole safetensors file" in err
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": np.zeros(3)}, foreign)
    assert "without the" in refused("evaluate", foreign, "mnist")[1]
    code, err = refused("summary", trained / "model.safetensors", "--classes", 3)
    assert code == 2
    assert "--classes and --stem are for a model given by name" in err


def test_images_that_are_none(refused, trained, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    code, err = refused("predict", trained / "model.safetensors", tmp_path / "text.png", "--device", "cpu")
    assert code == 1
    assert "text.png: is not an image in any format that Pillow reads" in err
    assert "missing.png" in refused("predict", trained / "model.safetensors", "missing.png", "--device", "cpu")[1]


def test_data_of_another_kind(refused, trained, image_folder):
    code, err = refused("evaluate", trained / "model.safetensors", image_folder, "--device", "cpu")
    assert code == 1
    assert f"{image_folder} has the classes bright, dark, but " in err


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (PermissionError(13, "Permission denied", "/x"), 1, "Permission denied"),
        (FileNotFoundError(2, "No such file", "gone.txt"), 2, "gone.txt does not exist"),
        (
            MemoryError("Unable to allocate 9 TiB"),
            1,
            "out of memory (Unable to allocate 9 TiB); try a smaller --batch-size",
        ),
        (ZeroDivisionError("oh\nno"), 1, "ZeroDivisionError: oh no (a bug; --debug before the command shows where)"),
    ],
)
def test_other_errors_are_one_line_too(refused, run, monkeypatch, error, code, text):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(xpcnn.inspection, "doctor", fails)
    found, err = refused("doctor")
    assert found == code
    assert text in err
    found, _, err = run("--debug", "doctor")
    assert found == code
    assert "Traceback" in err


# --- help, version, processes -----------------------------------------------------------------------------------


def test_help_names_every_command():
    runner = CliRunner()
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in ("train", "evaluate", "predict", "summary", "gradcheck", "crosscheck", "doctor"):
        assert command in result.output
        assert runner.invoke(app, [command, "--help"]).exit_code == 0


def test_nothing_prints_the_help(run):
    code, out, err = run()
    assert code in (0, 2)  # typer and click changed their mind about it
    assert "Usage" in out + err


def test_version(run):
    assert run("--version") == (0, f"xpcnn {xpcnn.__version__}\n", "")


def test_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["xpcnn", "--version"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("xpcnn", run_name="__main__")
    assert end.value.code == 0
    assert capsys.readouterr().out == f"xpcnn {xpcnn.__version__}\n"


def process(*arguments, **options):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "xpcnn", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


def test_as_a_process(tmp_path):
    child = process("--version")
    assert child.communicate(timeout=60)[0] == f"xpcnn {xpcnn.__version__}\n"
    assert child.returncode == 0

    child = process("train", tmp_path / "nowhere")
    out, err = child.communicate(timeout=60)
    assert child.returncode == 2
    assert out == ""
    assert err.count("\n") == 1
    assert "nowhere does not exist" in err


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_ctrl_c_ends_a_process_in_good_order(tmp_path):
    child = process(
        "train", "mnist", "--epochs", "1000", *TINY, "--out", tmp_path, start_new_session=True
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (tmp_path / "history.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert "interrupted in epoch" in out
    assert "Traceback" not in err
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")} == RESULTS


@pytest.mark.skipif(os.name == "nt", reason="pipes differ")
def test_a_reader_that_goes_away_is_no_error():
    child = process("summary", "lenet")
    child.stdout.close()
    err = child.stderr.read()
    child.stderr.close()
    child.wait(timeout=60)
    assert "Traceback" not in err
