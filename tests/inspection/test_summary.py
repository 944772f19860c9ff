"""The summary: numbers that are known, and memory that is measured."""

from __future__ import annotations

import numpy as np
import pytest

from xpcnn import SGD, BatchNorm1d, Classifier, zoo
from xpcnn.errors import ArgumentError
from xpcnn.inspection import summary
from xpcnn.layers import AuxiliaryHead, BatchNorm2d, Conv2d, Dense, Flatten, Layer, ReLU, Residual, Sequential
from xpcnn.table import Table, quantity


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [
        ("mri", 5_125_264, 8 * 200 * 200 * 9 + 12 * 100 * 100 * 72 + 16 * 50 * 50 * 108 + 10_000 * 512 + 512 * 4),
        ("lenet", 431_080, 20 * 24 * 24 * 25 + 50 * 8 * 8 * 500 + 800 * 500 + 500 * 10),
        ("simple_convnet", 433_890, 30 * 24 * 24 * 25 + 4320 * 100 + 100 * 10),
        ("keras_style", 1_199_882, 32 * 26 * 26 * 9 + 64 * 24 * 24 * 288 + 9216 * 128 + 128 * 10),
    ],
)
def test_totals_of_the_zoo(name, parameters, macs):
    entry = zoo.entry(name)
    found = summary(zoo.build(name), entry.input_shape)
    assert found.parameters == found.trainable == entry.parameters == parameters
    assert found.weights == 4 * parameters
    assert found.macs == macs
    assert found.input_shape == entry.input_shape


def test_rows():
    found = summary(zoo.build("keras_style"), (1, 28, 28))
    first = found.rows[0]
    assert (first.path, first.layer, first.activation) == ("0", "Conv2d(32, 3, init='xavier_uniform')", "relu")
    assert (first.input_shape, first.output_shape, first.parameters) == ((1, 28, 28), (32, 26, 26), 320)
    shapes = {row.path: row.output_shape for row in found.rows}
    assert shapes["4"] == (64, 12, 12)
    assert shapes["6"] == (9216,)
    assert [row.activation for row in found.rows if row.activation] == ["relu"] * 3


def test_memory_of_a_training_step():
    found = summary(zoo.build("lenet"), (1, 28, 28), batch_size=6, optimizer=SGD(0.1, momentum=0.9), ema=True)
    assert found.training.batch_size == 6
    assert found.training.weights == found.weights
    assert found.training.optimizer == 2 * found.weights
    assert found.training.kept > 6 * found.kept * 0.5  # a ReLU and its convolution are one there
    assert str(found).splitlines()[-1] == str(found.training)
    assert summary(zoo.build("lenet"), (1, 28, 28)).training is None


def test_a_trained_classifier_has_its_own_optimizer():
    classifier = Classifier(zoo.build("lenet"), optimizer=SGD(0.1), device="cpu")
    classifier.build((1, 28, 28))
    assert classifier.summary(batch_size=4).training.optimizer == 0
    assert summary(classifier, batch_size=4).training.optimizer == 2 * classifier.summary().weights


def test_batch_norm_of_features_takes_two_images():
    found = summary(Sequential(Dense(4), BatchNorm1d()), (3,), batch_size=4)
    assert found.kept == 4 * (3 + 4) + 4 * 2 * 4 / 2  # and mean and variance, once


def test_bytes_kept_are_those_of_distinct_arrays():
    # the convolution keeps the image, the ReLU its output, the dense layer the same memory, flattened
    found = summary(Sequential(Conv2d(4, 3), ReLU(), Flatten(), Dense(5)), (2, 6, 6))
    assert [row.kept for row in found.rows] == [4 * 2 * 6 * 6, 4 * 4 * 4 * 4, 0, 0]
    assert found.kept == 4 * (2 * 6 * 6 + 4 * 4 * 4)


class KeepsMore(Layer):
    """Keeps a slice of a large array, in a dict, and its own parameter, which is no extra memory."""

    def __init__(self):
        self.inner = Dense(2)

    def setup(self, input_shape, new):
        return new.child("inner", self.inner, input_shape)

    def forward(self, x, train):
        y, ctx = self.inner.forward(x, train)
        return y, {"large": np.zeros(1000)[:1], "weight": self.inner.weight.data, "inner": [ctx, Holder(x)]}


class Holder:
    def __init__(self, x):
        self.x = x


def test_a_container_may_keep_more_than_its_leaves():
    found = summary(KeepsMore(), (3,))
    assert sum(row.kept for row in found.rows) == 12
    assert found.kept == 12 + 8000


def test_the_network_is_not_changed(rng):
    net = Sequential(Conv2d(3, 3), BatchNorm2d(), ReLU())
    net.build((1, 8, 8))
    before = {name: array.copy() for name, array in net.state_dict().items()}
    summary(net, (1, 8, 8), batch_size=2)
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    assert "forward" not in vars(net[0])


def test_frozen_parameters_are_counted_apart():
    net = Sequential(Conv2d(3, 3), Flatten(), Dense(2))
    net.build((1, 4, 4))
    net.freeze("0")
    found = summary(net, (1, 4, 4))
    assert (found.parameters, found.trainable) == (30 + 26, 26)


def test_a_layer_used_twice_has_its_parameters_once():
    dense = Dense(3)
    found = summary(Sequential(dense, dense), (3,))
    assert [row.parameters for row in found.rows] == [12, 0]
    assert [row.path for row in found.rows] == ["0", "0"]
    assert found.parameters == 12
    assert found.macs == 18


def test_auxiliary_heads_have_parameters_but_no_macs():
    """MACs are those of inference, where such a head is idle."""
    net = Sequential(AuxiliaryHead(Sequential(Flatten(), Dense(2))), Flatten(), Dense(2))
    found = summary(net, (1, 4, 4))
    assert found.parameters == 34 + 34
    assert found.macs == 32


def test_a_network_in_the_dark_is_refused():
    with pytest.raises(ArgumentError, match=r"for which images it was built; call summary\(net, \(C, H, W\)\)"):
        summary(Sequential(Dense(2)))


def test_text_fits_a_log():
    text = str(summary(Sequential(Residual(Conv2d(1, 3, padding="same"))), (1, 8, 8)))
    for expected in ("Input: 1x8x8", "Conv2d(1, 3, padding='same')", "kept for backward", "10 (10 trainable), 40 B"):
        assert expected in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_on_both_backends(xp):
    net = zoo.build("lenet")
    net.build((1, 28, 28), device="cpu" if xp is np else "cuda:0")
    assert summary(net, (1, 28, 28)).kept == 81_236


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0, "", "0"), (999, "", "999"), (1_234_567, "", "1.23 M"), (1536, "B", "1.5 KiB"), (312 * 1024, "B", "312 KiB"),
     (5, "B", "5 B"), (2.5, "B", "2.5 B"), (3e15, "", "3000 T")],
)  # fmt: skip
def test_quantities(value, unit, text):
    assert quantity(value, unit) == text


def test_a_table_keeps_brackets():
    table = Table("t", [("a", "<")])
    table.add("[bold]x")
    assert "[bold]x" in str(table)
