"""NumPy against another device, layer by layer. Where there is no GPU, the CPU is compared with itself."""

from __future__ import annotations

import numpy as np
import pytest

from xpcnn import backend, zoo
from xpcnn.errors import DeviceError
from xpcnn.inspection import crosscheck
from xpcnn.layers import BatchNorm2d, Conv2d, Dense, Dropout, Flatten, Layer, LpPool2d, MaxPool2d, ReLU, Sequential


class Drifts(Layer):
    """Gives another answer each time it is asked, as a backend that is wrong would."""

    calls = 0

    def __init__(self, size, on_the_way_back=False):
        self.size = size
        self.on_the_way_back = on_the_way_back

    def _drift(self):
        Drifts.calls += 1
        return 1.0 + self.size * Drifts.calls

    def forward(self, x, train):
        return x * (1.0 if self.on_the_way_back else self._drift()), ()

    def backward(self, dy, ctx, need_dx=True):
        return dy * (self._drift() if self.on_the_way_back else 1.0)


def net():
    return Sequential(
        Conv2d(4, 3, padding="same"), BatchNorm2d(), ReLU(), MaxPool2d(2), Conv2d(3, 3, stride=2), LpPool2d(1, p=3),
        Flatten(), Dropout(0.4), Dense(3),
    )  # fmt: skip


def other(xp):
    return "cpu" if xp is np else "cuda:0"


@pytest.mark.parametrize("labels", [None, [0, 1, 2, 2]])
def test_both_backends_agree(xp, rng, labels):
    x = rng.random((4, 2, 12, 12))
    report = crosscheck(net(), x, None if labels is None else np.array(labels), device=other(xp))
    assert report.passed, str(report)
    assert report.device == other(xp)
    what = [(row.path, row.what) for row in report.rows]
    assert what[:9] == [(str(i), "output") for i in range(9)]
    assert what[9:18] == [(str(i), "gradient of input") for i in reversed(range(9))]
    assert {row.what for row in report.rows[18:]} == {"gradient of weight", "gradient of bias"}
    assert "everything agrees (26 arrays)" in str(report)


@pytest.mark.parametrize("name", ["lenet", "simple_convnet", "keras_style"])
def test_networks_of_the_zoo(xp, rng, name):
    report = crosscheck(zoo.build(name), rng.random((2, 1, 28, 28)), np.array([3, 9]), device=other(xp))
    assert report.passed, str(report)


def test_in_float64_the_difference_is_smaller(xp, rng):
    tested = net()
    tested.build((2, 12, 12), dtype="float64")
    report = crosscheck(tested, rng.random((4, 2, 12, 12)), device=other(xp))
    assert report.dtype == "float64"
    assert report.passed, str(report)
    assert "1e-12 relative" in str(report)


def test_a_difference_is_found_where_it_begins(rng):
    tested = Sequential(Dense(4), Drifts(1e-3), Dense(3))
    report = crosscheck(tested, rng.random((2, 5)), device="cpu")
    assert not report.passed
    assert [row.path for row in report.rows if row.what == "output" and not row.passed] == ["1", "2"]
    assert "first to differ: output of 1, Drifts(0.001)" in str(report)
    assert "DIFFERS" in str(report)


def test_a_difference_on_the_way_back_is_found(rng):
    tested = Sequential(Dense(4), Drifts(1e-3, on_the_way_back=True), Dense(3))
    report = crosscheck(tested, rng.random((2, 5)), device="cpu")
    assert all(row.passed for row in report.rows if row.what == "output")
    assert "first to differ: gradient of input of 1" in str(report)


def test_a_difference_within_rounding_is_not_one(rng):
    assert crosscheck(Sequential(Drifts(1e-7)), rng.random((2, 5)), device="cpu").passed


def test_nan_is_a_difference():
    report = crosscheck(Sequential(Drifts(float("nan"))), np.ones((1, 2)), device="cpu")
    assert not report.passed


def test_a_single_layer_has_no_path(rng):
    report = crosscheck(Drifts(1.0), rng.random((2, 5)), device="cpu")
    assert "first to differ: output of the network" in str(report)


def test_the_network_is_not_touched(xp, rng):
    tested = net()
    tested.build((2, 12, 12))
    tested.parameters()["0.bias"].grad[...] = 2.0
    before = {name: array.copy() for name, array in tested.state_dict().items()}
    crosscheck(tested, rng.random((4, 2, 12, 12)), device=other(xp))
    for name, array in tested.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    assert float(tested.parameters()["0.bias"].grad.sum()) == 8.0
    assert str(tested.device) == "cpu"
    assert "forward" not in vars(tested[0])


def test_rich_output(rng, capsys):
    from rich.console import Console

    Console(width=150).print(crosscheck(Drifts(1.0), rng.random((2, 5)), device="cpu"))
    assert "DIFFERS" in capsys.readouterr().out


@pytest.mark.cupy
def test_a_network_that_lives_on_the_device(rng):
    import cupy

    tested = net()
    tested.build((2, 12, 12), device="cuda:0")
    report = crosscheck(tested, cupy.asarray(rng.random((4, 2, 12, 12))), cupy.asarray([0, 1, 2, 0]))
    assert report.passed, str(report)


def test_without_a_gpu_the_error_says_what_is_missing(monkeypatch, rng):
    monkeypatch.setattr(backend, "gpu_problem", lambda: "CuPy is not installed")
    with pytest.raises(DeviceError, match=r'device "cuda:0" cannot be used: CuPy is not installed\. Use device="cpu"'):
        crosscheck(net(), rng.random((4, 2, 12, 12)))
