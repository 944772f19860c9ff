"""The gradient check: right gradients pass, wrong ones do not, and nothing is changed by looking."""

from __future__ import annotations

import math

import numpy as np
import pytest

from xpcnn.errors import ArgumentError
from xpcnn.inspection import gradcheck, numerical_gradient
from xpcnn.layers import BatchNorm2d, Conv2d, Dense, Dropout, Flatten, Layer, MaxPool2d, ReLU, Sequential, Tanh


def small_net():
    return Sequential(Conv2d(3, 3), BatchNorm2d(), ReLU(), MaxPool2d(2), Flatten(), Dropout(0.3), Dense(4))


class Square(Layer):
    """y = x * x, with a backward that is off by a factor if asked for."""

    def __init__(self, factor=2.0):
        self.factor = factor

    def forward(self, x, train):
        return x * x, x if train else None

    def backward(self, dy, ctx, need_dx=True):
        return self.factor * ctx * dy


class ForgetfulDense(Dense):
    """A dense layer whose bias gradient is forgotten."""

    def backward(self, dy, ctx, need_dx=True):
        before = self.bias.grad.copy()
        dx = super().backward(dy, ctx, need_dx)
        self.bias.grad[...] = before
        return dx


def test_numerical_gradient_of_a_known_function(rng):
    x = rng.standard_normal((2, 3))
    gradient = numerical_gradient(lambda v: (v**3).sum(), x)
    np.testing.assert_allclose(gradient, 3 * x**2, rtol=1e-6, atol=1e-8)


def test_numerical_gradient_works_in_place_and_puts_everything_back(rng):
    x = rng.standard_normal((2, 3))
    before = x.copy()
    gradient = numerical_gradient(lambda _: math.sin(x[1, 2]), x)
    expected = np.zeros((2, 3))
    expected[1, 2] = math.cos(before[1, 2])
    np.testing.assert_allclose(gradient, expected, atol=1e-8)
    np.testing.assert_array_equal(x, before)


def test_numerical_gradient_puts_back_after_an_error():
    x = np.ones(2)

    def fails(v):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        numerical_gradient(fails, x)
    np.testing.assert_array_equal(x, np.ones(2))


def test_numerical_gradient_refuses_float32():
    with pytest.raises(ArgumentError, match=r"numerical gradients need float64.*received float32"):
        numerical_gradient(lambda v: v.sum(), np.ones(2, np.float32))


@pytest.mark.parametrize("labels", [None, [0, 3, 1]])
@pytest.mark.parametrize("inference", [False, True])
def test_right_gradients_pass(rng, labels, inference):
    x = rng.standard_normal((3, 2, 6, 6))
    t = None if labels is None else np.array(labels)
    report = gradcheck(small_net(), x, t, inference=inference)
    assert report.passed, str(report)
    names = [row.name for row in report.rows]
    assert names == ["0.weight", "0.bias", "1.weight", "1.bias", "6.weight", "6.bias", "input"]
    assert report.worst.error <= 1e-6
    assert "all 7 gradients agree" in str(report)


def test_small_arrays_by_element_and_large_ones_by_direction(rng):
    report = gradcheck(Sequential(Dense(20)), rng.standard_normal((2, 30)), elements=100, directions=7)
    found = {row.name: (row.method, row.checked, row.shape) for row in report.rows}
    assert found == {
        "0.weight": ("direction", 7, (20, 30)),
        "0.bias": ("element", 20, (20,)),
        "input": ("element", 60, (30, 2)),
    }


@pytest.mark.parametrize("elements", [0, 1000])
def test_a_wrong_backward_is_caught(rng, elements):
    x = rng.standard_normal((2, 3))
    assert gradcheck(Square(), x, elements=elements).passed
    report = gradcheck(Square(2.001), x, elements=elements)
    assert not report.passed
    assert report.worst.name == "input"
    assert "WRONG" in str(report)
    assert "wrong: input" in str(report)


def test_a_forgotten_gradient_is_named(rng):
    net = Sequential(Dense(3), Tanh(), ForgetfulDense(2))
    report = gradcheck(net, rng.standard_normal((4, 5)), np.array([0, 1, 1, 0]))
    assert [row.name for row in report.rows if not row.passed] == ["2.bias"]


def test_nan_never_passes():
    report = gradcheck(Square(math.nan), np.ones((1, 2)))
    assert not report.passed
    assert report.worst.error == math.inf


def test_the_network_is_not_touched(rng):
    net = small_net()
    net.build((2, 6, 6), seed=3)
    net.parameters()["0.bias"].grad[...] = 7.0
    before = {name: array.copy() for name, array in net.state_dict().items()}
    x = rng.standard_normal((3, 2, 6, 6)).astype(np.float32)
    image = x.copy()
    assert gradcheck(net, x).passed
    np.testing.assert_array_equal(x, image)
    assert net.dtype == np.float32
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    np.testing.assert_array_equal(net.parameters()["0.bias"].grad, np.full(3, 7.0, np.float32))


def test_one_image_as_input_is_not_written_to(rng, readonly):
    x = readonly(rng.standard_normal((1, 2, 6, 6)))
    assert gradcheck(Sequential(Conv2d(2, 3), Tanh()), x).passed


def test_frozen_parameters_are_left_out(rng):
    net = Sequential(Dense(3), Dense(2))
    net.build((4,))
    net.freeze("0")
    assert [row.name for row in gradcheck(net, rng.standard_normal((2, 4))).rows] == ["1.weight", "1.bias", "input"]


def test_a_kink_between_the_points_is_told_from_a_wrong_gradient():
    """|x| at 5e-7: the first difference straddles the kink, the second does not."""
    assert gradcheck(ReLU(), np.array([[5e-7, 1.0]])).passed


def test_on_both_backends(xp, rng):
    net = Sequential(Conv2d(2, 3), ReLU(), MaxPool2d(2), Flatten(), Dense(3))
    net.build((1, 6, 6), device="cpu" if xp is np else "cuda:0")
    x, t = xp.asarray(rng.standard_normal((2, 1, 6, 6))), xp.asarray([0, 2])
    report = gradcheck(net, x, t, elements=20, directions=2)
    assert report.passed, str(report)


def test_rich_output(capsys):
    from rich.console import Console

    Console(width=150).print(gradcheck(Square(1.0), np.ones((1, 2))))
    assert "WRONG" in capsys.readouterr().out
