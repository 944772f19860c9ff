"""Callbacks: early stopping, saving, logs, progress, and the look-out for NaN."""

from __future__ import annotations

import csv
import io
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from toys import norm_net, place, quarters, small_classifier

import xpcnn
from xpcnn import SGD, ArgumentError, BatchNorm2d, Conv2d, Dense, Flatten, Layer, ReLU, Sequential
from xpcnn.training import (
    Callback,
    CSVLog,
    EarlyStopping,
    LearningRateLog,
    NonFiniteError,
    Progress,
    SaveBest,
    StopOnNaN,
)


def scripted(monkeypatch, values):
    """Let the validation loss follow a script."""
    script = iter(values)
    monkeypatch.setattr(
        "xpcnn.training.Classifier._validate", lambda *_: {"val_loss": next(script), "val_accuracy": 0.5}
    )


def flat(clf):
    return clf.net.flat().data.copy()


class Weights(Callback):
    """Remembers the weights of every epoch."""

    def on_fit_begin(self, fit):
        self.epochs = {}

    def on_epoch_end(self, fit, logs):
        self.epochs[fit.epoch] = fit.net.flat().data.copy()


# --- early stopping ---------------------------------------------------------------------------------------------


def test_early_stopping_restores_the_best_epoch(monkeypatch, capsys):
    scripted(monkeypatch, [3.0, 1.0, 2.0, 1.5, 9.0])
    weights, clf = Weights(), small_classifier()
    history = clf.fit(quarters(24), epochs=9, validation=0.25, callbacks=[weights, EarlyStopping(patience=2)])
    assert history["epoch"] == [1, 2, 3, 4]
    np.testing.assert_array_equal(flat(clf), weights.epochs[2])
    assert (weights.epochs[2] != weights.epochs[4]).any()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == ("stopped early after epoch 4: val_loss has not improved for 2 epochs; weights of epoch 2 restored")


def test_early_stopping_restores_at_the_end_of_fit_too(monkeypatch, capsys):
    scripted(monkeypatch, [1.0, 2.0])
    weights, clf = Weights(), small_classifier()
    clf.fit(quarters(24), epochs=2, validation=0.25, callbacks=[weights, EarlyStopping()])
    np.testing.assert_array_equal(flat(clf), weights.epochs[1])
    assert capsys.readouterr().out.splitlines()[-1] == "done; weights of epoch 1 restored"


def test_early_stopping_without_restoring(monkeypatch):
    scripted(monkeypatch, [1.0, 2.0, 3.0])
    weights, clf = Weights(), small_classifier()
    stop = EarlyStopping(patience=1, restore_best=False)
    history = clf.fit(quarters(24), epochs=9, validation=0.25, callbacks=[weights, stop], verbose=False)
    assert history.epochs == 2
    np.testing.assert_array_equal(flat(clf), weights.epochs[2])
    assert stop.state_dict() == {"best": 1.0, "best_epoch": 1, "wait": 1, "snapshot": None}


def test_min_delta_and_nan_do_not_count_as_improvement(monkeypatch):
    scripted(monkeypatch, [1.0, 0.95, float("nan"), 0.5])
    clf = small_classifier()
    stop = EarlyStopping(patience=2, min_delta=0.1)
    assert clf.fit(quarters(24), epochs=9, validation=0.25, callbacks=[stop], verbose=False).epochs == 3


def test_accuracy_should_rise():
    stop = EarlyStopping(monitor="accuracy")
    assert [stop.improved({"accuracy": value}) for value in (0.5, 0.4, 0.6, 0.6)] == [True, False, True, False]


def test_early_stopping_restores_the_moving_average(monkeypatch):
    scripted(monkeypatch, [1.0, 2.0, 3.0])
    clf = small_classifier(ema=0.5)
    averages = {}

    class Averages(Callback):
        def on_epoch_end(self, fit, logs):
            with fit.classifier.averaged() as net:
                averages[fit.epoch] = net.flat().data.copy()

    clf.fit(quarters(24), epochs=3, validation=0.25, callbacks=[Averages(), EarlyStopping()], verbose=False)
    with clf.averaged() as net:
        np.testing.assert_array_equal(net.flat().data, averages[1])


def test_a_second_fit_starts_counting_anew(monkeypatch):
    scripted(monkeypatch, [1.0, 2.0, 5.0, 6.0])
    clf, stop = small_classifier(), EarlyStopping(patience=1)
    clf.fit(quarters(24), epochs=9, validation=0.25, callbacks=[stop], verbose=False)
    clf.fit(quarters(24), epochs=9, validation=0.25, callbacks=[stop], verbose=False)
    assert clf.history["epoch"] == [1, 2, 3, 4]
    assert stop.best_epoch == 3


def test_state_goes_out_and_in():
    stop, other = EarlyStopping(), EarlyStopping()
    stop.best, stop.wait, stop.best_epoch = 0.5, 3, 7
    other.load_state_dict(stop.state_dict())
    assert other.state_dict() == stop.state_dict()
    assert Callback().state_dict() == {}


@pytest.mark.parametrize("options", [{"patience": 0}, {"min_delta": -1.0}])
def test_early_stopping_refuses_nonsense(options):
    with pytest.raises(ArgumentError, match="patience must be at least 1 and min_delta at least 0; received"):
        EarlyStopping(**options)


def test_monitoring_what_is_not_there():
    clf = small_classifier()
    with pytest.raises(ArgumentError, match=r'SaveBest monitors "val_loss", but fit has no validation data\. .*"loss"'):
        clf.fit(quarters(24), callbacks=[SaveBest("x.json")])
    with pytest.raises(ArgumentError, match='EarlyStopping monitors "f1"; an epoch has only: accuracy, epoch, loss'):
        clf.fit(quarters(24), callbacks=[EarlyStopping("f1")], verbose=False)


# --- files and logs ---------------------------------------------------------------------------------------------


def test_save_best_keeps_the_best_model(tmp_path, monkeypatch):
    scripted(monkeypatch, [3.0, 1.0, 2.0, 1.5, 0.5])
    path, weights, clf = tmp_path / "best.safetensors", Weights(), small_classifier()
    save = SaveBest(path)
    clf.fit(quarters(24), epochs=3, validation=0.25, callbacks=[save, weights], verbose=False)
    np.testing.assert_array_equal(flat(xpcnn.load(path, "cpu")), weights.epochs[2])
    assert save.state_dict() == {"best": 1.0}

    clf.fit(quarters(24), epochs=1, validation=0.25, callbacks=[save], verbose=False)  # 1.5 is not better
    np.testing.assert_array_equal(flat(xpcnn.load(path, "cpu")), weights.epochs[2])
    clf.fit(quarters(24), epochs=1, validation=0.25, callbacks=[save, weights], verbose=False)
    np.testing.assert_array_equal(flat(xpcnn.load(path, "cpu")), weights.epochs[5])


def test_save_best_starts_anew_with_another_classifier(tmp_path):
    save = SaveBest(tmp_path / "m.json", monitor="loss")
    small_classifier().fit(quarters(24), epochs=3, callbacks=[save], verbose=False)
    (tmp_path / "m.json").unlink()
    small_classifier().fit(quarters(24), epochs=1, callbacks=[save], verbose=False)
    assert (tmp_path / "m.json").exists()


def test_csv_log_is_written_every_epoch(tmp_path):
    path, lengths = tmp_path / "history.csv", []

    class Count(Callback):
        def on_epoch_end(self, fit, logs):
            lengths.append(len(path.read_text().splitlines()))

    clf = small_classifier()
    clf.fit(quarters(24), epochs=2, callbacks=[CSVLog(path), Count()], verbose=False)
    clf.fit(quarters(24), epochs=1, callbacks=[CSVLog(path), Count()], verbose=False)
    assert lengths == [2, 3, 4]
    with open(path, newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]


def test_learning_rate_log():
    log = LearningRateLog()
    small_classifier(schedule=xpcnn.schedule.Exponential(0.5)).fit(
        quarters(24), epochs=2, batch_size=12, callbacks=[log], verbose=False
    )
    assert log.rates == pytest.approx([0.1, 0.1, 0.05, 0.05])


# --- NaN --------------------------------------------------------------------------------------------------------


@xpcnn.register
class Overflow(Layer):
    """Passes x on, times infinity from the given training step on."""

    def __init__(self, step: int = 0) -> None:
        self.step = step

    def forward(self, x, train):
        step = xpcnn.Step.of(train)
        return x * (np.inf if step is not None and step.number >= self.step else 1.0), ()

    def backward(self, dy, ctx, need_dx=True):
        return dy


def bad_net(*, step=0):
    return Sequential(
        Conv2d(4, 3), BatchNorm2d(), body=Sequential(ReLU(), Overflow(step)), squash=Flatten(), last=Dense(3)
    )


def test_the_first_layer_with_a_bad_output_is_named():
    clf = small_classifier(bad_net(step=2))
    with pytest.raises(NonFiniteError) as info:
        clf.fit(quarters(24), epochs=2, batch_size=6, verbose=False)
    text = str(info.value)
    assert "the loss became nan in epoch 1, in batch 3." in text
    assert 'What is not finite first: the output of layer "body.1" (Overflow).' in text
    assert "Try a smaller learning rate" in text
    assert np.isfinite(flat(clf)).all(), "the weights are those before the bad step"
    assert not clf.net.flat().grad.any()
    assert "forward" not in vars(clf.net["body.1"])


def test_the_first_layer_with_bad_weights_is_named(xp):
    clf = small_classifier(norm_net(), device=place(xp))
    clf.build((1, 8, 8))
    clf.net["4"].weight.data[0, 0] = np.nan
    with pytest.raises(NonFiniteError, match=r'not finite first: the weight of layer "4" \(Dense\)\. Try'):
        clf.fit(quarters(24), epochs=1, callbacks=[StopOnNaN(every=1)], verbose=False)


def test_by_default_nan_is_seen_in_the_first_epoch(xp):
    clf = small_classifier(bad_net(), device=place(xp))
    with pytest.raises(NonFiniteError) as info:
        clf.fit(quarters(24), epochs=2, verbose=False)
    assert "the loss became nan in epoch 1" in str(info.value)
    assert ("run again with callbacks=[StopOnNaN(every=1)]" in str(info.value)) == (xp is not np)


def test_a_learning_rate_that_is_too_high():
    clf = small_classifier(optimizer=SGD(1e30))
    with pytest.raises(NonFiniteError, match=r'not finite first: the (weight|bias|output) of (the )?layer "\d"'):
        clf.fit(quarters(24), epochs=5, batch_size=6, verbose=False)


def test_bad_images_are_named():
    def spoil(image, rng):
        return image.astype(np.float32) * np.float32(np.nan)

    with pytest.raises(NonFiniteError, match="the images of this batch are not finite"):
        small_classifier().fit(quarters(24), augment=spoil, verbose=False)


def test_a_bad_loss_is_named():
    def loss(y, t):
        return y.sum() * np.inf, y

    with pytest.raises(NonFiniteError, match="the loss itself, for every layer is finite on this batch"):
        small_classifier(loss=loss).fit(quarters(24), verbose=False)


@pytest.mark.parametrize(
    ("every", "where"),
    [(None, "in batch 1"), (1, "in batch 1"), (3, "in or before batch 3"), (100, "in or before batch 4")],
)
def test_how_often_it_looks(every, where):
    clf = small_classifier(bad_net())
    with pytest.raises(NonFiniteError, match=rf"in epoch 1, {where}\."):
        clf.fit(quarters(24), batch_size=6, callbacks=[StopOnNaN(every)], verbose=False)


def test_every_must_be_a_step():
    with pytest.raises(ArgumentError, match="every must be at least 1 step, or None; received 0"):
        StopOnNaN(0)


def test_batch_norm_statistics_survive_the_search():
    clf = small_classifier(bad_net(step=0))
    clf.build((1, 8, 8))
    with pytest.raises(NonFiniteError):
        clf.fit(quarters(24), batch_size=6, verbose=False)
    seen_once = clf.net["1"].running_mean.data.copy()
    twin = small_classifier(bad_net(step=10**9))
    twin.build((1, 8, 8))
    loader = xpcnn.Loader(xpcnn.ArrayDataset(*quarters(24)), 6)
    twin.net.forward(twin._entrance(next(iter(loader))[0]), True)
    np.testing.assert_array_equal(seen_once, twin.net["1"].running_mean.data)


# --- progress ---------------------------------------------------------------------------------------------------


def output_of(style="auto", terminal=False, **options):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None)
    callbacks = [*options.pop("callbacks", []), Progress(style, console)]
    small_classifier(**options).fit(quarters(24), epochs=2, validation=0.25, callbacks=callbacks, verbose=False)
    return console.file.getvalue()


def test_a_log_has_one_plain_line_an_epoch():
    lines = output_of().splitlines()
    assert len(lines) == 2
    for number, line in enumerate(lines, 1):
        assert line.startswith(f"Epoch {number}/2  ")
        names = line.split("  ")
        assert [part.split(" ")[0] for part in names[2:]] == ["loss", "acc", "val_loss", "val_acc", "lr"]
        assert names[-1] == "lr 0.1"
    assert "\x1b" not in "".join(lines)


def test_a_terminal_has_a_bar_and_the_same_lines(monkeypatch):
    clock = iter(range(0, 10_000, 2))
    monkeypatch.setattr("xpcnn.training.callbacks.time.monotonic", lambda: next(clock))
    text = output_of(terminal=True)
    assert "\x1b" in text
    assert "1/2" in text
    assert text.count("val_loss") == 2
    assert "loss" in text.split("val_loss")[0]


def test_the_line_below_the_bar(monkeypatch):
    seconds = iter(range(0, 10_000, 2))
    monkeypatch.setattr("xpcnn.training.callbacks.time.monotonic", lambda: next(seconds))
    lines, losses = [], []

    class Look(Callback):
        def on_step_end(self, fit):
            lines.append(progress.bar.line)
            losses.append(float(fit.batch_loss))

    progress = Progress("bar", Console(file=io.StringIO(), width=120))
    small_classifier().fit(quarters(24), epochs=2, batch_size=6, callbacks=[progress, Look()], verbose=False)
    loss, accuracy, trend, speed, left = lines[3].split("  ")
    assert loss == f"loss {np.mean(losses[:4]):.4f}"
    assert accuracy.startswith("acc ")
    assert len(trend) == 4
    assert trend[int(np.argmax(losses[:4]))] == "█"
    np.testing.assert_allclose(progress.trend.values, losses, rtol=1e-6)
    assert speed == "3 images/s", "6 images, and the clock goes on by 2 seconds whenever it is read"
    # steps end at 4, 8, 12 and 16 seconds: four more at 4.5 s each, as fit began at 0 and the fourth was seen at 18
    assert left == "0:00:16 to the end"
    assert lines[-1].endswith("0:00:00 to the end")


def test_a_terminal_without_blocks_gets_no_curve():
    class Plain(io.StringIO):
        encoding = "ascii"

    progress = Progress("lines", Console(file=Plain()))
    progress.on_fit_begin(small_fit := SimpleNamespace(memory=None, checkpoints=None, epochs=1, epoch=1, batch=1))
    small_fit.loader, small_fit.totals = [1, 2], SimpleNamespace(count=4, read=lambda: {"loss": 1.0, "accuracy": 0.5})
    small_fit.ranks = SimpleNamespace(size=1)
    progress.steps, progress.read, progress.counted, progress.summed = 1, progress.began, 0, 0.0
    line = progress._figures(small_fit, progress.began + 2.0)
    assert line == "loss 1.0000  acc 0.5000  2 images/s  0:00:02 to the end"


def test_a_bar_where_there_is_no_terminal():
    assert output_of("bar").count("val_loss") == 2


def test_lines_in_a_terminal():
    assert "\x1b[?25l" not in output_of("lines", terminal=True), "the cursor is hidden, so there is a bar"


def test_the_bar_is_closed_when_fit_fails():
    console = Console(file=io.StringIO(), force_terminal=True)
    progress = Progress("bar", console)
    with pytest.raises(NonFiniteError):
        small_classifier(bad_net()).fit(quarters(24), callbacks=[progress], verbose=False)
    assert progress.bar is None
    assert console.file.getvalue().endswith("\x1b[?25h") or "\x1b[?25h" in console.file.getvalue()


def test_progress_refuses_other_styles():
    with pytest.raises(ArgumentError, match='progress is "auto", "bar" or "lines"; received \'loud\''):
        small_classifier().fit(quarters(24), verbose="loud")


@pytest.mark.parametrize(("verbose", "lines"), [("auto", 1), (True, 1), ("lines", 1), (False, 0)])
def test_verbose(verbose, lines, capsys):
    small_classifier().fit(quarters(24), epochs=1, verbose=verbose)
    assert len(capsys.readouterr().out.splitlines()) == lines


# --- interruption -----------------------------------------------------------------------------------------------


def test_ctrl_c_ends_fit_in_good_order(capsys, monkeypatch):
    ended = []

    class Press(Callback):
        def on_loss(self, fit):
            if fit.epoch == 2 and fit.batch == 2:
                raise KeyboardInterrupt

        def on_fit_end(self, fit):
            ended.append(fit.epoch)

    clf = small_classifier()
    history = clf.fit(quarters(24), epochs=5, batch_size=6, callbacks=[Press()])
    assert history["epoch"] == [1]
    assert ended == [2]
    assert not clf.net.flat().grad.any()
    assert capsys.readouterr().out.splitlines()[-1] == "interrupted in epoch 2; the history has the 1 before it"
    assert clf.fit(quarters(24), epochs=1, verbose=False)["epoch"] == [1, 2]


def test_a_callback_may_stop_the_training():
    class Stop(Callback):
        def on_epoch_end(self, fit, logs):
            fit.stop = "enough"

    assert small_classifier().fit(quarters(24), epochs=5, callbacks=[Stop()], verbose=False).epochs == 1
