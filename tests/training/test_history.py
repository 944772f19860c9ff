"""The history: lists of equal length, the best epoch, CSV and the picture."""

from __future__ import annotations

import csv
import math
import sys

import pytest

from xpcnn import ArgumentError, MissingExtraError
from xpcnn.training import History


def history_of(*rows):
    history = History()
    for epoch, row in enumerate(rows, 1):
        history.append({"epoch": epoch, "lr": 0.1, "seconds": 1.0, "accuracy": 0.5} | row)
    return history


def test_lists_stay_equally_long():
    history = history_of({"loss": 3.0}, {"loss": 2.0, "val_loss": 2.5, "val_accuracy": 0.4}, {"loss": 1.0})
    assert history.epochs == 3
    assert {len(values) for values in history.values()} == {3}
    assert history["loss"] == [3.0, 2.0, 1.0]
    assert math.isnan(history["val_loss"][0])
    assert math.isnan(history["val_loss"][2])
    assert history.row(1)["val_loss"] == 2.5


def test_best_is_by_validation_loss_where_there_is_one():
    assert history_of({"loss": 3.0}, {"loss": 1.0}, {"loss": 2.0}).best["epoch"] == 2
    history = history_of({"loss": 3.0, "val_loss": 1.0}, {"loss": 1.0, "val_loss": 2.0}, {"loss": 0.5})
    assert history.best["epoch"] == 1


def test_best_of_an_empty_history():
    with pytest.raises(ArgumentError, match="the history is empty"):
        _ = History().best


def test_csv_has_a_header_and_empty_cells(tmp_path):
    path = tmp_path / "new" / "history.csv"
    history_of({"loss": 3.0}, {"loss": 2.0, "val_loss": 2.5}).to_csv(path)
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "loss", "accuracy", "lr", "seconds", "val_loss"]
    assert [row["val_loss"] for row in rows] == ["", "2.5"]
    assert [float(row["loss"]) for row in rows] == [3.0, 2.0]


def test_plot_draws_training_and_validation(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    path = tmp_path / "curves.png"
    history = history_of({"loss": 3.0, "val_loss": 3.5, "val_accuracy": 0.2}, {"loss": 2.0, "val_loss": 2.5})
    figure = history.plot(path)
    assert path.read_bytes()[:4] == b"\x89PNG"
    loss, accuracy = figure.axes
    assert [line.get_label() for line in loss.lines] == ["training", "validation"]
    assert list(loss.lines[1].get_ydata()) == [3.5, 2.5]
    assert accuracy.get_ylabel() == "accuracy"
    assert len(history_of({"loss": 1.0}).plot().axes[0].lines) == 1


def test_plot_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r'history\.plot\(\) needs matplotlib.*pip install "xpcnn\[viz\]"'):
        history_of({"loss": 1.0}).plot()
