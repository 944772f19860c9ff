"""Pictures: files that are pictures, on one scale, without a display."""

from __future__ import annotations

import builtins
import csv

import numpy as np
import pytest
from PIL import Image
from toys import CLASSES, place, quarters, small_classifier

from xpcnn import zoo
from xpcnn.errors import ArgumentError, FileFormatError, MissingExtraError
from xpcnn.inspection import (
    Attribution,
    grad_cam,
    occlusion,
    plot_activations,
    plot_attribution,
    plot_confusion,
    plot_curves,
    plot_filters,
    plot_runs,
)
from xpcnn.layers import Conv2d, Dense, Sequential
from xpcnn.training import History, Report

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


# --- feature maps, attributions, confusions and several runs ----------------------------------------------------


def drawn(path):
    """Return a picture as an array, which must not be blank."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert min(pixels.shape[:2]) > 200
    assert pixels.std() > 5
    return pixels


def test_feature_maps_and_units(xp, tmp_path):
    clf = small_classifier(device=place(xp))
    images, labels = quarters(12)
    clf.fit(images, labels, epochs=1, verbose=False)
    figure = plot_activations(clf, images[0], "0", tmp_path / "maps.png")
    assert len(pictures(figure)) == 4
    assert len({image.get_clim() for image in pictures(figure)}) == 1
    assert "Output of layer 0, 4x6x6, from" in figure.get_suptitle()
    drawn(tmp_path / "maps.png")
    bars = plot_activations(clf, images[0], "4", tmp_path / "bars.png", title="scores")
    assert len(bars.axes[0].patches) == 3
    assert bars.get_suptitle() == "scores"
    drawn(tmp_path / "bars.png")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_map_over_its_image(tmp_path, channels):
    images, labels = quarters(24, channels=channels)
    clf = small_classifier(classes=CLASSES)
    clf.fit(images, labels, epochs=3, verbose=False)
    found = grad_cam(clf, images[:2], "east")
    figure = plot_attribution(images[:2], found, tmp_path / "cam.png", titles=["one", "two"])
    title = "Grad-CAM for east (layer 1)"
    assert [axes.get_title() for axes in figure.axes[:4]] == ["one", title, "two", title]
    plain, grey, heat = (figure.axes[0].images + figure.axes[1].images)[:3]
    expected = images[0].transpose(1, 2, 0) / 255
    np.testing.assert_allclose(np.asarray(plain.get_array()).reshape(8, 8, channels), expected)
    assert grey.get_array().shape == (8, 8)
    np.testing.assert_allclose(heat.get_array(), found.maps[0])
    assert drawn(tmp_path / "cam.png").shape[0] > drawn(tmp_path / "cam.png").shape[1] * 0.8


def test_negative_numbers_have_a_scale_around_zero(tmp_path):
    images = np.random.default_rng(0).standard_normal((1, 1, 8, 8)).astype(np.float32)
    maps = np.linspace(-1, 3, 64).reshape(1, 8, 8)
    figure = plot_attribution(images, Attribution("occlusion", "fall", maps, np.array([2])), tmp_path / "o.png")
    heat = figure.axes[1].images[1]
    assert heat.get_clim() == (-3, 3)
    assert figure.axes[1].get_title() == "occlusion for 2"
    drawn(tmp_path / "o.png")
    zeros = Attribution("saliency", "", np.zeros((1, 8, 8)), np.array([0]))
    assert plot_attribution(images, zeros).axes[1].images[1].get_clim() == (0, 1)


def test_images_that_do_not_fit_the_maps():
    clf = small_classifier()
    clf.fit(*quarters(12), epochs=1, verbose=False)
    found = occlusion(clf, quarters(1)[0])
    for shape in ((2, 1, 8, 8), (1, 2, 8, 8), (8, 8)):
        with pytest.raises(ArgumentError, match=r"takes 1 images \(N, C, H, W\) of 1 or 3 channels.*received shape"):
            plot_attribution(np.zeros(shape), found)


def test_a_confusion_matrix(tmp_path):
    counts = np.array([[9, 1, 0], [0, 5, 5], [0, 0, 0]])
    names = ["a class with a long name", *CLASSES[1:]]
    figure = plot_confusion(Report(0.5, counts, names), tmp_path / "confusion.png")
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.9, 0.1, 0], [0, 0.5, 0.5], [0, 0, 0]])
    assert sorted(text.get_text() for text in axes.texts) == ["1", "5", "5", "9"]
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    assert axes.get_title() == "Accuracy 0.7000 on 20 images"
    assert (drawn(tmp_path / "confusion.png")[:, :4] == 255).all(), "nothing is cut off at the left"
    many = Report(0.5, np.eye(30, dtype=int), [str(i) for i in range(30)])
    assert not plot_confusion(many, title="many").axes[0].texts


def test_several_runs(tmp_path):
    history().to_csv(tmp_path / "history.csv")
    runs = {"one": tmp_path / "history.csv", "two": history(validation=False)}
    figure = plot_runs(runs, tmp_path / "runs.png")
    loss = [line for line in figure.axes[0].get_lines() if len(line.get_xdata())]
    assert [line.get_linestyle() for line in loss] == ["--", "-", "-"]
    assert len({line.get_color() for line in loss}) == 2
    np.testing.assert_allclose(loss[1].get_ydata(), [2, 1, 2 / 3])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two", "validation", "training"]
    drawn(tmp_path / "runs.png")
    with pytest.raises(ArgumentError, match="at least one training by name"):
        plot_runs({})
