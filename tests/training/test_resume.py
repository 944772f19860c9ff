"""Trainings that are broken off and resumed: the same bits as in one go, and nothing lost by kills and full disks."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from toys import place, quarters, small_classifier, small_net

import xpcnn
from xpcnn import (
    SGD,
    Adam,
    ArgumentError,
    BatchNorm2d,
    Conv2d,
    Dense,
    Dropout,
    FileFormatError,
    Flatten,
    MaxPool2d,
    ReLU,
    Sequential,
    backend,
)
from xpcnn.cli import main
from xpcnn.data import Compose, Mixup, RandomAffine, RandomHorizontalFlip
from xpcnn.files import FolderInUseError, locked
from xpcnn.schedule import Cosine, OneCycle
from xpcnn.training import Callback, CSVLog, EarlyStopping, LearningRateLog, LossScale, SaveBest, StopOnNaN
from xpcnn.training.resume import Checkpoints, checkpoints_in

ROOT = Path(__file__).resolve().parents[2]
DATA = quarters(30)
TEST = quarters(12, seed=1)[0]
SHORT = {"epochs": 3, "batch_size": 6, "verbose": False}
posix = pytest.mark.skipif(os.name == "nt", reason="signals and limits are POSIX")


class Dies(Callback):
    """Breaks a training off at a step, counted from 1 over all epochs, before that step is in a checkpoint."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, fit):
        if (fit.epoch - 1) * len(fit.loader) + fit.batch == self.step:
            raise InterruptedError


class Counts(Callback):
    """Notes every event; and its state has an array, a nested dict and a number of NumPy's in it."""

    def __init__(self):
        self.events = []
        self.more = {"inner": {"array": np.zeros(3, np.float32)}, "last": np.float64(0.5)}

    def note(self, what):
        self.events.append(what)
        self.more["inner"]["array"] += np.float32(0.1)
        self.more["last"] = np.float64(self.more["last"] / 3)

    def on_epoch_begin(self, fit):
        self.note(f"begin {fit.epoch}")

    def on_step_end(self, fit):
        self.note(f"step {fit.batch}")

    def on_epoch_end(self, fit, logs):
        self.note(f"end {fit.epoch}")

    def state_dict(self):
        return {"events": list(self.events), "more": self.more}


class DecaysByHand(Callback):
    """Changes the optimizer's own learning rate."""

    def on_epoch_begin(self, fit):
        fit.optimizer.lr *= 0.7


def norm_dropout_net():
    return Sequential(
        Conv2d(4, 3), BatchNorm2d(), ReLU(), MaxPool2d(2), Flatten(), Dropout(0.3), Dense(3)
    )  # fmt: skip


class Training:
    """One set of settings; every call of `life` is a new process as far as the classifier can tell."""

    def __init__(self, classifier, fit=None, net=norm_dropout_net, callbacks=list):
        self.classifier, self.options, self.net, self.callbacks = classifier, fit or {}, net, callbacks

    def life(self, device="cpu", dies=None, **options):
        given = {name: value() if callable(value) else value for name, value in self.classifier.items()}
        clf = small_classifier(self.net(), device=device, seed=3, **given)
        callbacks = [*self.callbacks(), *([] if dies is None else [Dies(dies)])]
        try:
            clf.fit(DATA, callbacks=callbacks, **SHORT | self.options | options)
        except InterruptedError:
            return None
        return outcome(clf, callbacks)


def outcome(clf, callbacks=()):
    """Return everything that must be the same to the last bit."""
    arrays = {f"net/{name}": array for name, array in clf.net.state_dict().items()}
    arrays |= {f"optimizer/{name}": array for name, array in clf.optimizer.state_dict().items()}
    arrays |= {} if clf.ema is None else clf.ema.state_dict()
    arrays |= {} if clf.scale is None else {f"scale/{name}": array for name, array in clf.scale.state_dict().items()}
    arrays |= {f"history/{name}": np.array(row) for name, row in clf.history.items() if name != "seconds"}
    arrays["probabilities"] = clf.predict_proba(TEST)
    states = [callback.state_dict() | {"snapshot": None} for callback in callbacks if not isinstance(callback, Dies)]
    text = re.sub(r"np\.float64\(([^)]*)\)", r"\1", repr(states))
    return {name: xpcnn.to_numpy(array).copy() for name, array in arrays.items()}, text, clf.optimizer.lr


def assert_same_bits(result, expected):
    assert result[0].keys() == expected[0].keys()
    for name, array in expected[0].items():
        assert result[0][name].dtype == array.dtype
        assert result[0][name].tobytes() == array.tobytes(), name
    assert result[1:] == expected[1:]


TRAININGS = {
    "plain": Training({"optimizer": lambda: SGD(0.1, momentum=0.9)}),
    "everything": Training(
        {"optimizer": lambda: Adam(1e-2), "schedule": OneCycle, "ema": 0.9, "normalize": "data"},
        {
            "augment": Compose([RandomAffine(10, translate=0.1), RandomHorizontalFlip(), Mixup(0.2, 3)]),
            "validation": 0.2,
            "workers": 3,
            "batch_size": 5,
            "accumulate": 2,
            "micro_batch": 3,
        },
        callbacks=lambda: [EarlyStopping("val_accuracy", 2), LearningRateLog(), Counts(), DecaysByHand()],
    ),
    "stopped early": Training(
        {"optimizer": lambda: SGD(0.0), "schedule": Cosine, "class_weights": "balanced", "label_smoothing": 0.1},
        {"epochs": 9, "validation": 0.2, "drop_last": True},
        callbacks=lambda: [EarlyStopping("val_loss", 2), Counts()],
    ),
    "mixed precision": Training(
        {"dtype": "mixed_float16", "optimizer": lambda: Adam(1e-2)}, {"accumulate": 3}, callbacks=lambda: [Counts()]
    ),
    "less memory": Training({}, {"memory_limit": "1MB", "shuffle": False, "workers": 1}),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_stopped_at_every_step_it_ends_in_the_same_bits(name, tmp_path, xp):
    training, device = TRAININGS[name], place(xp)
    expected = training.life(device)
    step, result = 1, None
    while result is None:
        result = training.life(device, dies=step, checkpoint=tmp_path, every=1)
        step += 1
    assert step > 12
    assert_same_bits(result, expected)
    assert_same_bits(training.life(device, checkpoint=tmp_path), expected)  # finished: nothing is done
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("every", [2, 3, 7, np.int64(4), "epoch"])
def test_with_other_intervals(every, tmp_path):
    training = TRAININGS["everything"]
    expected = training.life()
    for dies in (4, 5, 9, 10, 11, 13):
        assert training.life(dies=dies, checkpoint=tmp_path, every=every) is None
        numbers = [int(path.stem.partition("-")[2]) for path in checkpoints_in(tmp_path)]
        assert numbers == [n for n in range(1, dies) if n % (5 if every == "epoch" else every) == 0][-2:]
    assert_same_bits(training.life(checkpoint=tmp_path, every=every), expected)


def test_a_training_that_is_not_interrupted_does_not_care(tmp_path):
    for every in (1, "epoch"):
        training = TRAININGS["everything"]
        assert_same_bits(training.life(checkpoint=tmp_path / str(every), every=every), training.life())


def test_loss_scale_and_start_of_the_moving_average(tmp_path):
    """A scale that is too large at first: left-out steps count neither here nor there."""

    def life(**options):
        clf = small_classifier(seed=3, dtype="mixed_float16", optimizer=Adam(1e-2), ema=0.5)
        clf.scale = LossScale(start=2.0**30, growth_steps=3)
        dies = [Dies(options.pop("dies"))] if "dies" in options else []
        try:
            clf.fit(DATA, epochs=4, batch_size=5, verbose=False, callbacks=dies, **options)
        except InterruptedError:
            return None
        assert int(clf.scale.skipped) > 3
        return outcome(clf)

    expected = life()
    for dies in (1, 2, 8, 9, 20):
        assert life(dies=dies, checkpoint=tmp_path, every=1) is None
    assert_same_bits(life(checkpoint=tmp_path), expected)


def test_best_model_and_log_are_those_of_one_go(tmp_path):
    def life(folder, **options):
        clf = small_classifier(seed=3)
        callbacks = [SaveBest(folder / "best.safetensors"), CSVLog(folder / "log.csv")]
        callbacks += [Dies(options.pop("dies"))] if "dies" in options else []
        try:
            clf.fit(DATA, epochs=4, batch_size=6, validation=0.2, verbose=False, callbacks=callbacks, **options)
        except InterruptedError:
            return ""
        return re.sub(r",[^,]*$", "", (folder / "log.csv").read_text().replace(",seconds", ""), flags=re.MULTILINE)

    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    life(tmp_path / "one")
    for dies in (3, 6, 11):
        life(tmp_path / "two", dies=dies, checkpoint=tmp_path / "runs", every=2)
    life(tmp_path / "two", checkpoint=tmp_path / "runs")
    best = [(tmp_path / folder / "best.safetensors").read_bytes() for folder in ("one", "two")]
    assert best[0] == best[1]
    rows = [xpcnn_rows(tmp_path / folder / "log.csv") for folder in ("one", "two")]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 4


def xpcnn_rows(path):
    header, *lines = (line.split(",") for line in path.read_text().splitlines())
    return [{name: value for name, value in zip(header, line, strict=True) if name != "seconds"} for line in lines]


# --- what people see --------------------------------------------------------------------------------------------


def test_it_says_from_where_it_goes_on_and_that_it_is_finished(tmp_path, capsys):
    training, lines = TRAININGS["plain"], []
    for options in ({"dies": 8}, {"dies": 11, "every": "epoch"}, {}, {}):
        training.life(**{"checkpoint": tmp_path, "every": 1, "verbose": "lines"} | options)
        lines.append(capsys.readouterr().out.splitlines())
    assert lines[0][0].startswith("Epoch 1/3")
    assert lines[1][0] == f"going on after epoch 2, batch 2 of 5 ({tmp_path}/checkpoint-0000000007.safetensors)"
    assert lines[1][1].startswith("Epoch 2/3")
    assert lines[2][0] == f"going on after epoch 2 ({tmp_path}/checkpoint-0000000010.safetensors)"
    assert lines[3] == [f"{tmp_path} holds this training, finished with epoch 3"]


def test_the_bar_goes_on_too(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("xpcnn.training.callbacks.Bar.add_task", lambda self, name, **given: seen.append((name, given)))
    monkeypatch.setattr("xpcnn.training.callbacks.Bar.advance", lambda self, task: None)
    training = TRAININGS["plain"]
    for dies in (3, None):
        training.life(dies=dies, checkpoint=tmp_path, every=1, verbose="bar")
    assert [(name, given["completed"]) for name, given in seen] == [("1/3", 0), ("1/3", 2), ("2/3", 0), ("3/3", 0)]


def test_a_finished_training_is_left_alone(tmp_path):
    training = TRAININGS["everything"]
    training.life(checkpoint=tmp_path)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.iterdir()}
    training.life(checkpoint=tmp_path)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.iterdir()} == before


def test_more_epochs_after_the_end_need_another_folder(tmp_path):
    clf = small_classifier()
    clf.fit(DATA, epochs=2, verbose=False, checkpoint=tmp_path / "first")
    with pytest.raises(ArgumentError, match="training that is finished; one that begins with epoch 3 needs another"):
        clf.fit(DATA, epochs=2, verbose=False, checkpoint=tmp_path / "first")
    assert clf.fit(DATA, epochs=2, verbose=False, checkpoint=tmp_path / "second")["epoch"] == [1, 2, 3, 4]
    other = small_classifier()
    assert other.fit(DATA, epochs=2, verbose=False, checkpoint=tmp_path / "second")["epoch"] == [1, 2, 3, 4]
    assert_same_bits(outcome(other), outcome(clf))


def test_wall_time_counts_all_parts_of_an_epoch(tmp_path, monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr("xpcnn.training.loop.time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    monkeypatch.setattr("xpcnn.training.resume.time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    for dies in (3, 5):
        TRAININGS["plain"].life(dies=dies, checkpoint=tmp_path, every=1)
    clf = small_classifier(norm_dropout_net(), seed=3, optimizer=SGD(0.1, momentum=0.9))
    first = clf.fit(DATA, epochs=3, batch_size=6, verbose=False, checkpoint=tmp_path)["seconds"][0]
    assert 4 <= first <= 10  # one tick a checkpoint, or so; a clock begun anew would show 1


@pytest.mark.parametrize("every", [0, -1, 2.5, "steps", None])
def test_an_interval_that_makes_no_sense(every, tmp_path):
    with pytest.raises(ArgumentError, match=re.escape('every must be an int of at least 1 (steps), or "epoch"')):
        small_classifier().fit(DATA, checkpoint=tmp_path / "x", every=every)
    assert not (tmp_path / "x").exists()


# --- only the same training is resumed --------------------------------------------------------------------------

BASE = {"optimizer": lambda: SGD(0.1), "schedule": Cosine, "ema": 0.9}
FIT = {"validation": 0.2, "augment": RandomHorizontalFlip()}


def stopping():
    return [EarlyStopping("val_loss", 2)]


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unfinished")
    Training(BASE, FIT, callbacks=stopping).life(dies=4, checkpoint=folder, every=1)
    return folder


@pytest.mark.parametrize(
    ("classifier", "fit", "more", "words"),
    [
        ({"optimizer": lambda: SGD(0.2)}, {}, {}, "optimizer.lr was 0.1 and is now 0.2"),
        ({"optimizer": lambda: Adam(0.1)}, {}, {}, "optimizer.optimizer was SGD and is now Adam"),
        ({"schedule": OneCycle}, {}, {}, r"schedule was Cosine\(every='epoch', final=0.0\) and is now OneCycle"),
        ({"ema": 0.99}, {}, {}, "ema was 0.9 and is now 0.99"),
        ({"ema": None}, {}, {}, "ema was 0.9 and is now None"),
        ({"label_smoothing": 0.1}, {}, {}, "label_smoothing was 0.0 and is now 0.1"),
        ({"class_weights": "balanced"}, {}, {}, "class_weights was None and is now balanced"),
        ({"class_weights": lambda: [1.0, 2.0, 3.0]}, {}, {}, r"class_weights was None and is now \[1.0, 2.0, 3.0\]"),
        ({"normalize": (0.5, 0.2)}, {}, {}, r"mean was None and is now \[0.5\]; std was None"),
        ({"dtype": "float64"}, {}, {}, "dtype was float32 and is now float64"),
        ({"loss": "mse"}, {}, {}, "loss was softmax_cross_entropy and is now mse"),
        ({}, {"epochs": 4}, {}, "epochs was 3 and is now 4"),
        ({}, {"batch_size": 7}, {}, "batch_size was 6 and is now 7; micro_batch was 6"),
        ({}, {"shuffle": False}, {}, "shuffle was True and is now False"),
        ({}, {"drop_last": True}, {}, "drop_last was False and is now True"),
        ({}, {"accumulate": 2}, {}, "accumulate was 1 and is now 2"),
        ({}, {"augment": RandomHorizontalFlip(0.1)}, {}, r"augment was RandomHorizontalFlip\(p=0.5\) and is now"),
        ({}, {"augment": lambda image, rng: image}, {}, r"is now <function <lambda>>"),
        ({}, {"validation": 0.3}, {}, r"data.images was 24 and is now 21.*; and \d more"),
        ({}, {"validation": quarters(6, seed=9)}, {}, "data.images was 24 and is now 30"),
        ({}, {}, {"net": small_net}, "network.arguments.1.layer was BatchNorm2d and is now ReLU"),
        ({}, {}, {"callbacks": lambda: [EarlyStopping("val_loss", 3)]}, r"callbacks\[0\].patience was 2 and is now 3"),
        ({}, {}, {"callbacks": list}, r"callbacks was \[\{'class': 'EarlyStopping'"),
    ],
)
def test_other_settings_are_refused_and_named(unfinished, classifier, fit, more, words):
    other = Training(BASE | classifier, FIT | fit, **{"callbacks": stopping} | more)
    with pytest.raises(ArgumentError, match=f"is of a training with other settings: .*{words}") as refused:
        other.life(checkpoint=unfinished)
    assert str(refused.value).startswith(str(unfinished))
    assert str(refused.value).endswith(
        "Give the same settings to go on with it, or another folder to begin anew."
    )  # fmt: skip


@pytest.mark.parametrize("change", ["pixel", "label", "seed", "frozen"])
def test_other_data_seed_and_frozen_layers_are_refused(tmp_path, change):
    def fit(changed, checkpoint=tmp_path):
        images, labels = quarters(30)
        if changed and change == "pixel":
            images[4, 0, 1, 2] ^= 1
        if changed and change == "label":
            labels = labels.copy()
            labels[7] = 0
        clf = small_classifier(seed=int(changed and change == "seed"))
        clf.build((1, 8, 8))
        if changed and change == "frozen":
            clf.net.freeze("0")
        clf.fit((images, labels), epochs=1, verbose=False, checkpoint=checkpoint)

    fit(False)
    fit(False)
    words = {"pixel": "data.digest was", "label": "data.digest was", "seed": "seed was 0 and is now 1"}
    with pytest.raises(ArgumentError, match=words.get(change, change)):
        fit(True)


def test_what_does_not_change_numbers_may_change(tmp_path):
    training = Training(BASE, FIT, callbacks=stopping)
    expected = training.life()
    training.life(dies=4, checkpoint=tmp_path / "here", every=2)
    (tmp_path / "here").rename(tmp_path / "there")
    looking = [StopOnNaN(every=1), *stopping(), CSVLog(tmp_path / "log.csv")]
    other = Training(BASE, FIT | {"workers": 2}, callbacks=lambda: looking)
    assert_same_bits(other.life(checkpoint=tmp_path / "there", every=5, verbose="lines")[:1], expected[:1])


def test_another_number_of_lanes_is_worth_a_warning(tmp_path, monkeypatch, caplog):
    TRAININGS["plain"].life(dies=4, checkpoint=tmp_path, every=2)
    monkeypatch.setattr("xpcnn.training.resume.lanes", lambda: 77)
    with caplog.at_level(logging.WARNING, "xpcnn"):
        assert TRAININGS["plain"].life(checkpoint=tmp_path) is not None
    assert re.search(r"lanes was \d+ and is now 77. The last bits may differ", caplog.text)


def test_another_number_of_threads_with_the_same_lanes_is_not(tmp_path, monkeypatch, caplog):
    for name in ("_count", "_lanes"):
        monkeypatch.setattr(backend, name, getattr(backend, name))  # and back
    backend.set_threads(2, lanes=4)
    TRAININGS["plain"].life(dies=4, checkpoint=tmp_path, every=2)
    backend.set_threads(1, lanes=4)
    with caplog.at_level(logging.WARNING, "xpcnn"):
        assert TRAININGS["plain"].life(checkpoint=tmp_path) is not None
    assert "was" not in caplog.text


def test_a_layer_that_no_file_may_name_is_refused_before_training(tmp_path):
    class Mine(ReLU):
        pass

    net = Sequential(Conv2d(4, 3), Mine(), Flatten(), Dense(3))
    with pytest.raises(ArgumentError, match=r"Mine cannot be written to a file: decorate the class"):
        small_classifier(net).fit(DATA, checkpoint=tmp_path)


@pytest.mark.parametrize("value", [{1: 2}, object(), np.array(["x"]), 1j])
def test_a_state_that_cannot_be_kept(value, tmp_path):
    class Odd(Callback):
        def state_dict(self):
            return {"odd": [value]}

    with pytest.raises(ArgumentError, match=rf"{type(value).__name__} as callbacks/0/odd/0. Change what state_dict"):
        small_classifier().fit(DATA, epochs=1, verbose=False, checkpoint=tmp_path, callbacks=[Odd()])


def test_keys_with_slashes_do_not_meet(tmp_path):
    class Slashes(Callback):
        def state_dict(self):
            return {"a/b": np.array([1]), "a": {"b": np.array([2])}}

        def load_state_dict(self, state):
            self.loaded = state

    small_classifier().fit(DATA, epochs=1, verbose=False, checkpoint=tmp_path, callbacks=[Slashes()])
    again = Slashes()
    small_classifier().fit(DATA, epochs=1, verbose=False, checkpoint=tmp_path, callbacks=[again])
    assert again.loaded == {"a/b": [1], "a": {"b": [2]}}


# --- damaged files ----------------------------------------------------------------------------------------------


def flip(path, where):
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "one bit of a weight": lambda path: flip(path, -10),
    "one bit of the header": lambda path: flip(path, path.read_bytes().index(b"batch_size") + 15),
    "a model": lambda path: small_saved(path),
    "other tensors": lambda path: save_file({"x": np.zeros(3, np.float32)}, path),
}


def small_saved(path):
    clf = small_classifier()
    clf.build((1, 8, 8))
    clf.save(path)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(damage, tmp_path, caplog):
    training = TRAININGS["everything"]
    expected = training.life()
    training.life(dies=8, checkpoint=tmp_path, every=1)
    older, newest = checkpoints_in(tmp_path)
    DAMAGE[damage](newest)
    with caplog.at_level(logging.WARNING, "xpcnn"):
        assert training.life(dies=9, checkpoint=tmp_path, every=3) is None
    assert caplog.text.count(str(newest)) == 1
    assert "Trying the checkpoint before it." in caplog.text
    assert checkpoints_in(tmp_path) == [older, newest]  # nothing better has been written
    assert_same_bits(training.life(checkpoint=tmp_path, every=1), expected)
    assert newest not in checkpoints_in(tmp_path)


def test_a_damaged_one_does_not_count_among_those_kept(tmp_path):
    training = TRAININGS["plain"]
    training.life(dies=10, checkpoint=tmp_path, every=3)
    older, newest = checkpoints_in(tmp_path)
    assert [path.stem[-2:] for path in (older, newest)] == ["06", "09"]
    newest.write_bytes(b"")
    training.life(dies=9, checkpoint=tmp_path, every=8)
    assert [path.stem[-2:] for path in checkpoints_in(tmp_path)] == ["06", "08"]


def test_when_all_are_damaged_nothing_is_begun_anew(tmp_path):
    TRAININGS["plain"].life(dies=8, checkpoint=tmp_path, every=1)
    for path in checkpoints_in(tmp_path):
        path.write_bytes(b"")
    with pytest.raises(FileFormatError, match=r"none of the 2 checkpoints in .* can be read. Remove them"):
        TRAININGS["plain"].life(checkpoint=tmp_path)


def test_a_checkpoint_that_lacks_something_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("xpcnn.training.resume._state", lambda fit, finished: {"finished": False})
    assert TRAININGS["plain"].life(dies=2, checkpoint=tmp_path, every=1) is None
    with pytest.raises(FileFormatError, match=r"0001.safetensors does not hold what a checkpoint should \(KeyError"):
        TRAININGS["plain"].life(checkpoint=tmp_path)


def test_a_checkpoint_is_safe_data_and_no_model(tmp_path):
    TRAININGS["everything"].life(dies=7, checkpoint=tmp_path, every=1)  # in the middle of an accumulation
    newest = checkpoints_in(tmp_path)[-1]
    arrays = load_file(newest)
    parts = {"net", "optimizer", "ema", "gradients", "totals", "callbacks"}
    assert {name.partition("/")[0] for name in arrays} == parts
    meta, _ = xpcnn.formats.read(newest)
    assert set(json.loads(meta["content"])) == {"identity", "environment", "state"}
    with pytest.raises(FileFormatError, match="it is a checkpoint of a training: give its folder to fit"):
        xpcnn.load(newest)


def test_weights_that_are_not_finite_are_not_kept(tmp_path):
    class Poison(Callback):
        def on_step_end(self, fit):
            if fit.batch == 3:
                fit.net["4"].bias.data[0] = np.nan

    with pytest.raises(xpcnn.training.NonFiniteError):
        small_classifier().fit(DATA, batch_size=6, verbose=False, callbacks=[Poison()], checkpoint=tmp_path, every=1)
    assert [path.stem[-1] for path in checkpoints_in(tmp_path)] == ["1", "2"]


# --- signals, kills, full disks ---------------------------------------------------------------------------------


class Signals(Callback):
    """Sends signals to its own process in the middle of a step."""

    def __init__(self, step, *numbers):
        self.step, self.numbers = step, numbers

    def on_loss(self, fit):
        if (fit.epoch - 1) * len(fit.loader) + fit.batch == self.step:
            for number in self.numbers:
                os.kill(os.getpid(), number)


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(number, tmp_path, capsys):
    training = TRAININGS["plain"]
    expected = training.life()
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    clf = small_classifier(norm_dropout_net(), seed=3, optimizer=SGD(0.1, momentum=0.9))

    def fit():
        options = {"callbacks": [Signals(7, number)], "checkpoint": tmp_path, "every": 100}
        return clf.fit(DATA, epochs=3, batch_size=6, verbose="lines", **options)

    if number == signal.SIGTERM:
        with pytest.raises(SystemExit) as end:
            fit()
        assert end.value.code == 143
    else:
        assert fit()["epoch"] == [1]
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"interrupted; {tmp_path} holds all up to epoch 2, batch 2 of 5, and the same call goes on from there"
    )
    assert handlers == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-0000000007.safetensors"]
    assert fit()["epoch"] == [1, 2, 3]  # the same classifier goes on
    assert_same_bits(outcome(clf), (expected[0], "[]", expected[2]))


@posix
def test_a_signal_that_the_process_ignores_stays_ignored(tmp_path):
    """A shell's background jobs ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        clf = small_classifier(norm_dropout_net(), seed=3, optimizer=SGD(0.1, momentum=0.9))
        callbacks = [Signals(7, signal.SIGINT)]
        history = clf.fit(DATA, epochs=3, batch_size=6, verbose=False, callbacks=callbacks, checkpoint=tmp_path)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert history["epoch"] == [1, 2, 3]


@posix
def test_a_signal_while_it_is_judged_is_heard_after_the_epoch(tmp_path):
    class Judged(Callback):
        def on_epoch_end(self, fit, logs):
            if fit.epoch == 2:
                os.kill(os.getpid(), signal.SIGINT)

    clf = small_classifier()
    assert clf.fit(DATA, epochs=3, validation=0.2, verbose=False, callbacks=[Judged()], checkpoint=tmp_path, every=100)[
        "epoch"
    ] == [1, 2]
    assert len(checkpoints_in(tmp_path)) == 1


@posix
def test_a_second_signal_breaks_the_step_off(tmp_path, capsys):
    training = TRAININGS["plain"]
    Training(training.classifier, callbacks=lambda: [Signals(7, signal.SIGINT, signal.SIGINT)]).life(
        checkpoint=tmp_path, every=2, verbose="lines"
    )
    assert f"interrupted; {tmp_path} holds all up to epoch 2, batch 1 of 5" in capsys.readouterr().out
    assert_same_bits(training.life(checkpoint=tmp_path), training.life())


@posix
def test_a_signal_before_anything_was_saved(tmp_path, capsys):
    callbacks = [Signals(1, signal.SIGINT, signal.SIGINT)]
    small_classifier().fit(DATA, verbose="lines", callbacks=callbacks, checkpoint=tmp_path)
    assert capsys.readouterr().out.strip() == "interrupted before the first checkpoint: the same call begins anew"


@posix
def test_sigterm_is_heard_without_progress_too(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "xpcnn"), pytest.raises(SystemExit):
        small_classifier().fit(DATA, verbose=False, callbacks=[Signals(1, signal.SIGTERM)], checkpoint=tmp_path)
    assert "holds all up to epoch 1, batch 1 of 1, and the same call goes on" in caplog.text


def test_temporary_files_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / ".checkpoint-0000000007-abcd1234.tmp.safetensors").write_bytes(b"half")
    (tmp_path / ".best-abcd1234.tmp.safetensors").write_bytes(b"half")
    (tmp_path / ".hidden").write_bytes(b"a user's own")
    TRAININGS["plain"].life(checkpoint=tmp_path, epochs=1)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [".hidden", "checkpoint-0000000005.safetensors"]


def test_save_best_and_log_remove_their_own_leftovers(tmp_path):
    for name in (".best-abcd1234.tmp.safetensors", ".log-abcd1234.tmp.csv", ".other-abcd1234.tmp.csv"):
        (tmp_path / name).write_bytes(b"half")
    callbacks = [SaveBest(tmp_path / "best.safetensors", "loss"), CSVLog(tmp_path / "log.csv")]
    small_classifier().fit(DATA, epochs=1, verbose=False, callbacks=callbacks)
    assert {path.name for path in tmp_path.iterdir()} == {"best.safetensors", "log.csv", ".other-abcd1234.tmp.csv"}


def test_two_trainings_do_not_share_a_folder(tmp_path):
    with locked(tmp_path), pytest.raises(FolderInUseError, match=rf"training \(process {os.getpid()}\) is using"):
        TRAININGS["plain"].life(checkpoint=tmp_path)
    assert TRAININGS["plain"].life(checkpoint=tmp_path) is not None


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file"):
        TRAININGS["plain"].life(checkpoint=tmp_path / "file" / "runs")


SCRIPT = """
import os, random, resource, signal, sys, time
from pathlib import Path
import numpy as np
from toys import quarters, small_classifier, small_net
from xpcnn import Adam
from xpcnn.data import Compose, Mixup, RandomAffine, RandomHorizontalFlip
from xpcnn.schedule import Cosine
from xpcnn.training import CSVLog, EarlyStopping, LearningRateLog, SaveBest
from xpcnn.training.resume import checkpoints_in

def train(folder, **options):
    net = small_net(dropout=0.3)
    clf = small_classifier(net, seed=3, optimizer=Adam(1e-2), ema=0.9, schedule=Cosine(every="step"))
    rates, stop = LearningRateLog(), EarlyStopping("val_loss", 8)
    callbacks = [stop, SaveBest(folder / "best.safetensors"), CSVLog(folder / "log.csv"), rates]
    augment = Compose([RandomAffine(10, translate=0.1), RandomHorizontalFlip(), Mixup(0.2, 3)])
    fit = {"epochs": 10, "batch_size": 6, "accumulate": 2, "augment": augment, "validation": 0.2, "workers": 3}
    clf.fit(quarters(60), verbose=False, callbacks=callbacks, **fit, **options)
    arrays = dict(clf.net.state_dict()) | clf.optimizer.state_dict() | clf.ema.state_dict()
    arrays |= {name: np.array(row) for name, row in clf.history.items() if name != "seconds"}
    arrays |= {"rates": np.array(rates.rates), "probabilities": clf.predict_proba(quarters(12, seed=1)[0])}
    parts = [f"{name} {array.dtype} {array.shape}".encode() + array.tobytes() for name, array in sorted(arrays.items())]
    (folder / "outcome").write_bytes(b"".join(parts) + (folder / "best.safetensors").read_bytes())
"""

KILLING = (
    SCRIPT
    + """
def life(*arguments, **options):
    "Fork a process from this one, which has everything imported; return its id."
    child = os.fork()
    if child == 0:
        code = 1
        try:
            train(*arguments, **options)
            code = 0
        except BaseException as error:
            print(type(error).__name__, error, flush=True)
        os._exit(code)
    return child

def ended(child, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            assert status == 0, status
            return True
        time.sleep(0.001)
    return False

folder, wanted, draw = Path(sys.argv[1]), int(sys.argv[2]), random.Random()
one = folder / "one"
one.mkdir()
begin = time.monotonic()
assert ended(life(one), 300)
took = time.monotonic() - begin
kills = runs = writing = inside = 0
while kills < wanted:
    runs += 1
    run = folder / f"run{runs}"
    run.mkdir()
    while not ended(child := life(run, checkpoint=run, every=1), draw.uniform(0, took) if kills < wanted else 300):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
        writing += any(".tmp" in path.name for path in run.iterdir())
        inside += any(int(path.stem[-10:]) % 8 for path in checkpoints_in(run)[-1:])
    assert (run / "outcome").read_bytes() == (one / "outcome").read_bytes(), "other bits"
    names = sorted(path.name for path in run.iterdir())
    assert len(names) == 5 and not any(name.startswith(".") for name in names), names
print(f"{kills} kills in {runs} trainings: {inside} inside an epoch, {writing} while a file was being written")
"""
)


def script(text, *arguments, **options):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-W", "ignore", "-c", text, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, **options
    )


@posix
@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_ends_in_the_same_bits(kills, tmp_path):
    child = script(KILLING, tmp_path, kills)
    out, _ = child.communicate(timeout=600)
    assert child.returncode == 0, out
    print(out)
    assert re.match(rf"{kills} kills in \d+ trainings", out)


@posix
def test_a_killed_owner_leaves_no_lock(tmp_path):
    child = script(SCRIPT + "train(Path(sys.argv[1]), checkpoint=Path(sys.argv[1]), every=1)", tmp_path)
    deadline = time.monotonic() + 60
    while not checkpoints_in(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(FolderInUseError, match=rf"training \(process {child.pid}\) is using"), locked(tmp_path):
        pass
    child.kill()
    child.communicate(timeout=60)
    assert (tmp_path / ".lock").exists()
    with locked(tmp_path):
        pass
    assert not (tmp_path / ".lock").exists()


FULL = (
    SCRIPT
    + """
folder, size = Path(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
try:
    train(folder, checkpoint=folder / "runs", every=1)
except OSError as error:
    print("OSError", error)
"""
)


@posix
def test_a_full_disk_leaves_the_checkpoints_before(tmp_path):
    """A limit on the size of files stands for the disk."""
    training = SCRIPT + "train(Path(sys.argv[1]), checkpoint=Path(sys.argv[1]) / 'runs', every=1)"
    child = script(training, tmp_path)
    deadline = time.monotonic() + 60
    while len(checkpoints_in(tmp_path / "runs")) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    child.kill()
    child.communicate(timeout=60)
    before = {path: path.read_bytes() for path in checkpoints_in(tmp_path / "runs")}
    out, _ = script(FULL, tmp_path, 4096).communicate(timeout=60)
    assert re.search(r"^OSError \[Errno 27\] File too large: '.*/runs/checkpoint-\d{10}\.safetensors'$", out), out
    assert {path: path.read_bytes() for path in (tmp_path / "runs").iterdir()} == before

    one = tmp_path / "one"
    one.mkdir()
    for arguments in ((training, tmp_path), (SCRIPT + "train(Path(sys.argv[1]))", one)):  # there is room again
        child = script(*arguments)
        assert child.communicate(timeout=60)[0] == ""
        assert child.returncode == 0
    assert (tmp_path / "outcome").read_bytes() == (one / "outcome").read_bytes()


# --- the command line -------------------------------------------------------------------------------------------

TINY = ["train", "mnist", "--limit", "80", "--batch-size", "10", "--device", "cpu", "--validation", "0.25"]
TINY += ["--model", "simple_convnet", "--epochs", "3", "--optimizer", "sgd", "--augment", "light", "--ema", "0.9"]


def model_of(folder):
    return (folder / "model.safetensors").read_bytes(), (folder / "best.safetensors").read_bytes()


@pytest.fixture
def call(capsys, monkeypatch):
    monkeypatch.setattr("xpcnn.cli.logging.basicConfig", lambda **_: None)

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def in_one_go(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    assert main([*TINY, "--quiet", "--out", str(folder)]) == 0
    return folder


@posix
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_command_line_interrupted_and_resumed(in_one_go, tmp_path, call, monkeypatch, number, code):
    arguments = [*TINY, "--out", tmp_path, "--checkpoint-every", 100]
    with monkeypatch.context() as patch:
        patch.setattr("xpcnn.cli.training.Recorder.on_loss", Signals(8, number).on_loss.__func__, raising=False)
        patch.setattr("xpcnn.cli.training.Recorder.step", 8, raising=False)
        patch.setattr("xpcnn.cli.training.Recorder.numbers", (number,), raising=False)
        ended, out, err = call(*arguments)
    assert ended == code
    assert "checkpoints holds all up to epoch 2, batch 2 of 6" in out
    assert "The same command with --resume goes on from there." in out
    assert err.strip() == {130: "xpcnn: interrupted", 143: "xpcnn: terminated"}[code]
    assert (tmp_path / "run.json").exists()

    ended, _, err = call(*arguments)
    assert ended == 2
    assert f"{tmp_path} holds a training with checkpoints. --resume goes on with it; another --out begins" in err

    ended, out, _ = call(*arguments, "--resume")
    assert ended == 0
    assert "going on after epoch 2, batch 2 of 6" in out
    assert model_of(tmp_path) == model_of(in_one_go)
    assert xpcnn_rows(tmp_path / "history.csv") == xpcnn_rows(in_one_go / "history.csv")
    assert json.loads((tmp_path / "run.json").read_text())["result"]["epochs"] == 3
    assert not list(tmp_path.glob(".*"))


def test_command_line_resume_in_an_empty_folder_and_when_finished(in_one_go, tmp_path, call):
    folder = tmp_path / "new"
    code, out, _ = call(*TINY, "--out", folder, "--resume")
    assert code == 0
    assert "going on" not in out
    assert model_of(folder) == model_of(in_one_go)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}
    code, out, _ = call(*TINY, "--out", folder, "--resume", "--checkpoint-every", "epoch")
    assert code == 0
    assert "checkpoints holds this training, finished with epoch 3" in out
    assert out.splitlines()[-1] == f"{folder}: nothing was left to do, and nothing was changed"

    code, _, err = call(*TINY, "--out", folder, "--resume", "--epochs", 4)
    assert code == 2
    assert "epochs was 3 and is now 4" in err
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}
    assert after == before


def test_command_line_killed_between_the_last_checkpoint_and_the_results(in_one_go, tmp_path, call):
    call(*TINY, "--out", tmp_path, "--resume", "--quiet")
    run = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(run | {"result": None}))
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / ".model-abcd1234.tmp.safetensors").touch()
    assert call(*TINY, "--out", tmp_path, "--resume", "--quiet")[0] == 0
    assert model_of(tmp_path) == model_of(in_one_go)
    assert json.loads((tmp_path / "run.json").read_text())["result"]["epochs"] == 3
    assert not list(tmp_path.glob(".*"))


def test_command_line_refuses_a_folder_in_use(tmp_path, call):
    with locked(tmp_path):
        code, _, err = call(*TINY, "--out", tmp_path)
    assert code == 1
    assert f"another training (process {os.getpid()}) is using {tmp_path}. Wait for its end" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["0", "-3", "2.5", "epochs"])
def test_command_line_interval(text, call, tmp_path):
    code, _, err = call(*TINY, "--out", tmp_path / "x", f"--checkpoint-every={text}")
    assert code == 2
    assert f"--checkpoint-every takes a number of steps or the word \"epoch\"; received '{text}'" in err
    assert not (tmp_path / "x").exists()


def test_an_interval_is_kept_as_given():
    assert Checkpoints("runs/x").every == "epoch"
    assert Checkpoints("runs/x", 5).every == 5
