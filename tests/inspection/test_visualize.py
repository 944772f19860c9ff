"""Pictures: files that are pictures, on one scale, without a display."""

from __future__ import annotations

import builtins
import csv

import numpy as np
import pytest
from PIL import Image

from xpcnn import zoo
from xpcnn.errors import ArgumentError, FileFormatError, MissingExtraError
from xpcnn.inspection import plot_curves, plot_filters
from xpcnn.layers import Conv2d, Dense, Sequential
from xpcnn.training import History

pytest.importorskip("matplotlib", reason="matplotlib is not installed")


def history(validation=True):
    result = History()
    for epoch in (1, 2, 3):
        row = {"epoch": epoch, "loss": 1 / epoch, "accuracy": 1 - 0.5 / epoch, "lr": 0.1, "seconds": 1.0}
        result.append(row | ({"val_loss": 2 / epoch, "val_accuracy": 0.3 * epoch} if validation else {}))
    return result


def pictures(figure):
    return [axes.images[0] for axes in figure.axes if axes.images]


def test_grey_filters_share_one_scale(tmp_path):
    net = zoo.build("lenet")
    net.build((1, 28, 28))
    figure = plot_filters(net, path=tmp_path / "filters.png")
    found = pictures(figure)
    assert len(found) == 20
    assert len({image.get_clim() for image in found}) == 1
    low, high = found[0].get_clim()
    assert high == -low == float(np.abs(net["0"].weight.data).max())
    np.testing.assert_allclose(found[3].get_array(), net["0"].weight.data[3, 0], rtol=1e-6)
    with Image.open(tmp_path / "filters.png") as picture:
        assert picture.width > 300
    assert "Filters of layer 0, 20x1x5x5" in figure.get_suptitle()


def test_another_layer_and_title():
    net = zoo.build("lenet")
    net.build((1, 28, 28))
    figure = plot_filters(net, "3", title="second")
    assert figure.get_suptitle() == "second"
    assert len(pictures(figure)) == 16 * 16


def test_colour_filters_are_rgb():
    conv = Conv2d(4, 3)
    conv.build((3, 8, 8))
    figure = plot_filters(conv)
    assert pictures(figure)[0].get_array().shape == (3, 3, 3)
    assert 0 <= pictures(figure)[0].get_array().min() <= pictures(figure)[0].get_array().max() <= 1
    assert "Filters of the layer" in figure.get_suptitle()


def test_filters_on_both_backends(xp):
    conv = Conv2d(2, 3)
    conv.build((1, 8, 8), device="cpu" if xp is np else "cuda:0")
    assert len(pictures(plot_filters(conv))) == 2


def test_filters_of_zeros_can_be_drawn():
    conv = Conv2d(2, 3, init="zeros")
    conv.build((1, 8, 8))
    assert pictures(plot_filters(conv))[0].get_clim() == (-1, 1)


def test_no_filters_no_picture():
    net = Sequential(Dense(3))
    net.build((4,))
    with pytest.raises(ArgumentError, match="filters are drawn of a built convolution; received a network without one"):
        plot_filters(net)
    with pytest.raises(ArgumentError, match="received 0"):
        plot_filters(net, "0")
    with pytest.raises(ArgumentError, match=r"Call net\.build"):
        plot_filters(Conv2d(2, 3))


@pytest.mark.parametrize("validation", [True, False])
def test_curves(tmp_path, validation):
    figure = plot_curves(history(validation), tmp_path / "curves.png")
    lines = [line for axes in figure.axes for line in axes.get_lines()]
    assert len(lines) >= (4 if validation else 2)
    np.testing.assert_allclose(lines[0].get_ydata(), [1, 1 / 2, 1 / 3])
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 300


def test_curves_from_the_file(tmp_path):
    history().to_csv(tmp_path / "history.csv")
    figure = plot_curves(tmp_path / "history.csv")
    np.testing.assert_allclose(figure.axes[0].get_lines()[0].get_ydata(), [1, 1 / 2, 1 / 3])


@pytest.mark.parametrize("content", ["epoch,loss\n1,abc\n", "epoch,loss\n1,2,3\n", "\xff\xfe\n1\n"])
def test_a_file_that_is_no_history(tmp_path, content):
    path = tmp_path / "history.csv"
    path.write_bytes(content.encode("latin1"))
    with pytest.raises(FileFormatError, match=r"history\.csv is not a table of numbers"):
        plot_curves(path)


def test_a_history_without_epochs(tmp_path):
    with open(tmp_path / "history.csv", "w", newline="") as file:
        csv.writer(file).writerow(["epoch", "loss"])
    with pytest.raises(FileFormatError, match="holds no finished epoch"):
        plot_curves(tmp_path / "history.csv")


def test_without_matplotlib(monkeypatch):
    real = builtins.__import__

    def refuses(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    conv = Conv2d(2, 3)
    conv.build((1, 8, 8))
    monkeypatch.setattr(builtins, "__import__", refuses)
    with pytest.raises(MissingExtraError, match=r'drawing filters needs matplotlib.*pip install "xpcnn\[viz\]"'):
        plot_filters(conv)
