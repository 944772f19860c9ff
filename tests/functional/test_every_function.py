"""What every function promises: it refuses what is no array, leaves its inputs alone, and keeps dtype and layout."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from helpers import readonly, to_numpy
from strategies import laid_out, normal

from xpcnn import backend
from xpcnn.errors import DeviceError
from xpcnn.functional import activation, conv, dense, dropout, loss, merge, norm, pool
from xpcnn.functional.geometry import Window, make_window

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Call:
    """A function, the shapes of its arrays and its other arguments; `unchecked` arrays may be anything.

    Of several results number `result` has the dtype of the input. Where `y` is given, it makes y from x. `called` says
    what errors call an array, if that is not its name; an only array is called by its number.
    """

    function: Callable[..., Any]
    shapes: Shapes
    options: dict[str, Any] = field(default_factory=dict)
    unchecked: Shapes = field(default_factory=dict)
    result: int = 0
    y: Callable[[Any], Any] | None = None
    called: dict[str, str] = field(default_factory=dict)

    def arrays(self, xp: Any, dtype: str, layout: str = "C") -> dict[str, Any]:
        """Positive numbers; all sorts of labels in t, and a mask that drops every third element."""
        result = {}
        for seed, (name, shape) in enumerate((self.shapes | self.unchecked).items()):
            array = laid_out((np.abs(normal(seed, *shape)) + 0.5).astype(dtype), layout)
            if name in ("t", "mask"):
                numbers = np.arange(array.size).reshape(shape)
                array = numbers if name == "t" else numbers % 3 > 0
            result[name] = readonly(array) if xp is np else xp.asarray(array)
        return result if self.y is None else result | {"y": self.y(result["x"])}

    def label(self, name: str) -> str:
        return self.called.get(name, "argument 0" if len(self.shapes) == 1 else name)

    def __call__(self, arrays: dict[str, Any]) -> Any:
        found = self.function(**arrays, **self.options)
        return found[self.result] if isinstance(found, tuple) else found


PIXELS, OUT = (4, 6, 5, 3), (4, 3, 2, 3)  # (C, H, W, N), and what windows of 2x2 with stride 2 leave
X, DY, DY_Y, DY_X_Y = {"x": PIXELS}, {"dy": OUT}, {"dy": PIXELS, "y": PIXELS}, {"dy": OUT, "x": PIXELS, "y": OUT}
SCORES, D_SCORES = {"x": (5, 3)}, {"dy": (5, 3), "y": (5, 3)}
KERNELS = {"weight": (2, 4, 3, 3), "bias": (2,)}
CONV = {"dy": (2, 6, 5, 3), "x": PIXELS, "weight": (2, 4, 3, 3)}
STRIDED = {"dy": (2, 3, 2, 3), "x": PIXELS, "weight": (2, 4, 2, 2)}
MEAN, VAR, AFFINE, SCALE = {"mean": (4,)}, {"var": (4,)}, {"weight": (4,), "bias": (4,)}, {"weight": (4,)}
DOT = {"window": make_window((6, 5), (1, 1), (1, 1), 0)}
HALVES = {"window": make_window((6, 5), (2, 2), (2, 2), 0)}
SAME = {"window": make_window((6, 5), (3, 3), (1, 1), 1)}
RESPONSE = {"size": 3, "alpha": 0.3, "beta": 0.75}


def largest(window: Window) -> Callable[[Any], Any]:
    return lambda x: pool.max_pool2d_forward(x, window)


CALLS = {
    "relu": Call(activation.relu_forward, X),
    "relu, backward": Call(activation.relu_backward, DY_Y),
    "sigmoid": Call(activation.sigmoid_forward, X),
    "sigmoid, backward": Call(activation.sigmoid_backward, DY_Y, called={"dy": "argument 0", "y": "argument 1"}),
    "softmax": Call(activation.softmax_forward, SCORES),
    "softmax, backward": Call(activation.softmax_backward, D_SCORES),
    "log softmax": Call(activation.log_softmax_forward, SCORES),
    "log softmax, backward": Call(activation.log_softmax_backward, D_SCORES),
    "convolution": Call(conv.conv2d_forward, X | KERNELS, SAME),
    "convolution with relu": Call(conv.conv2d_forward, X | KERNELS, SAME | {"relu": True}),
    "convolution of pixels, rows a page apart": Call(
        conv.conv2d_forward,
        {"x": (4, 8, 16, 16), "weight": (2, 4, 1, 1), "bias": (2,)},
        {"window": make_window((8, 16), (1, 1), (1, 1), 0)},
    ),
    "convolution, by gathering": Call(
        conv.conv2d_backward, {"x": PIXELS, "weight": (2, 4, 1, 1)}, DOT, unchecked={"dy": (2, 6, 5, 3)}
    ),
    "convolution, by scattering": Call(conv.conv2d_backward, STRIDED, HALVES),
    "convolution, by scattering, padded": Call(
        conv.conv2d_backward, CONV | {"dy": (2, 3, 3, 3)}, {"window": make_window((6, 5), (3, 3), (2, 2), 1)}
    ),
    "convolution, weight only": Call(conv.conv2d_backward, STRIDED, HALVES | {"need_dx": False}, result=1),
    "convolution of images": Call(conv.conv2d, {"x": (3, 4, 6, 5)} | KERNELS),
    "dense": Call(dense.dense_forward, {"x": (5, 3), "weight": (4, 5), "bias": (4,)}),
    "dense, backward": Call(dense.dense_backward, {"dy": (4, 3), "x": (5, 3), "weight": (4, 5)}),
    "dropout": Call(dropout.dropout_forward, X, {"p": 0.5, "key": 1}),
    "dropout of everything": Call(dropout.dropout_forward, X, {"p": 1.0, "key": 1}),
    "dropout, backward": Call(dropout.dropout_backward, {"dy": PIXELS, "mask": PIXELS}, {"p": 0.5}),
    "cross-entropy": Call(loss.softmax_cross_entropy, {"logits": (5, 3), "t": (3,), "class_weights": (5,)}, result=1),
    "cross-entropy of labels alone": Call(loss.softmax_cross_entropy, {"logits": (5, 3), "t": (3,)}, result=1),
    "mean squared error": Call(loss.mse_loss, {"y": (5, 3), "target": (3, 5)}, result=1),
    "sum": Call(merge.add, {"a": PIXELS, "b": PIXELS}, called={"a": "argument 0", "b": "argument 1"}),
    "batch norm": Call(norm.batch_norm_forward, X | AFFINE, {"eps": 1e-5, "relu": True}),
    "batch norm, backward": Call(
        norm.batch_norm_backward, {"dy": PIXELS} | X | SCALE, {"eps": 1e-5}, unchecked=MEAN | VAR
    ),
    "batch norm with relu, backward": Call(
        norm.batch_norm_backward,
        {"dy": PIXELS} | X | SCALE,
        {"eps": 1e-5},
        unchecked=MEAN | VAR | {"y": PIXELS},
        y=lambda x: x * (x > 1.0),
    ),
    "batch norm, inference": Call(
        norm.batch_norm_inference, X | MEAN | SCALE, {"eps": 1e-5}, unchecked=VAR | {"bias": (4,)}
    ),
    "batch norm, frozen": Call(
        norm.batch_norm_frozen_backward, {"dy": PIXELS} | SCALE, {"eps": 1e-5}, unchecked=VAR, called={"dy": "x"}
    ),
    "response norm": Call(norm.local_response_norm_forward, X, RESPONSE | {"k": 1.0}),
    "response norm, backward": Call(
        norm.local_response_norm_backward, {"dy": PIXELS} | X, RESPONSE, unchecked={"y": PIXELS, "scale": PIXELS}
    ),
    "max pooling": Call(pool.max_pool2d_forward, X, HALVES),
    "max pooling, backward": Call(pool.max_pool2d_backward, DY_X_Y, HALVES, y=largest(HALVES["window"])),
    "max pooling, padded": Call(pool.max_pool2d_forward, X, SAME),
    "max pooling, padded, backward": Call(
        pool.max_pool2d_backward, {"dy": PIXELS, "x": PIXELS, "y": PIXELS}, SAME, y=largest(SAME["window"])
    ),
    "average pooling": Call(pool.avg_pool2d_forward, X, HALVES),
    "average pooling, backward": Call(pool.avg_pool2d_backward, DY, HALVES),
    "average pooling, padded": Call(pool.avg_pool2d_forward, X, SAME),
    "average pooling, padded, backward": Call(pool.avg_pool2d_backward, {"dy": PIXELS}, SAME),
    "Lp pooling": Call(pool.lp_pool2d_forward, X, HALVES | {"p": 2.0}),
    "Lp pooling, backward": Call(pool.lp_pool2d_backward, DY_X_Y, HALVES | {"p": 2.0}),
    "Lp pooling, padded": Call(pool.lp_pool2d_forward, X, SAME | {"p": 2.0}),
    "Lp pooling, padded, backward": Call(
        pool.lp_pool2d_backward, {"dy": PIXELS, "x": PIXELS, "y": PIXELS}, SAME | {"p": 2.0}
    ),
    "adaptive average": Call(pool.adaptive_avg_pool2d_forward, X, {"output": (3, 2)}),
    "adaptive average, backward": Call(pool.adaptive_avg_pool2d_backward, DY, {"input_size": (6, 5)}),
    "adaptive maximum": Call(pool.adaptive_max_pool2d_forward, X, {"output": (3, 2)}),
    "adaptive maximum, backward": Call(
        pool.adaptive_max_pool2d_backward, DY_X_Y, y=lambda x: pool.adaptive_max_pool2d_forward(x, (3, 2))
    ),
}
every = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def each(arrays: Callable[[Call], Any]) -> pytest.MarkDecorator:
    rows = {f"{title}, {name}": (call, name) for title, call in CALLS.items() for name in arrays(call)}
    return pytest.mark.parametrize(("call", "name"), rows.values(), ids=rows)


each_argument = each(lambda call: call.shapes)
each_array = each(lambda call: call.shapes | call.unchecked)


@each_argument
def test_a_list_is_no_array(xp, call, name):
    arrays = call.arrays(xp, "float32")
    arrays[name] = to_numpy(arrays[name]).tolist()
    with pytest.raises(DeviceError, match=rf"^{call.label(name)} is neither a numpy\.ndarray .* received list\."):
        call(arrays)


@pytest.mark.cupy
@each_argument
def test_two_devices_do_not_meet(call, name):
    import cupy

    arrays = call.arrays(cupy, "float32")
    if len(arrays) == 1:
        return  # one array is at home wherever it is
    arrays[name] = to_numpy(arrays[name])
    with pytest.raises(DeviceError, match=rf"({name}|{call.label(name)}) on cpu"):
        call(arrays)


@every
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_dtype_stays(xp, call, dtype):
    for layout in ("C", "F", "strided"):
        assert call(call.arrays(xp, dtype, layout)).dtype == dtype


@each_array
def test_the_layout_of_one_array_changes_no_number(xp, call, name):
    """The GPU's kernels must leave it to the generic code then."""
    arrays = call.arrays(xp, "float64")
    expected = to_numpy(call(arrays))
    arrays[name] = xp.repeat(arrays[name], 2, axis=-1)[..., ::2]
    np.testing.assert_allclose(to_numpy(call(arrays)), expected, rtol=1e-12)


@every
def test_contiguous_arrays_give_contiguous_ones(xp, call):
    """The GPU's kernels, and reshapes that copy nothing, count on it."""
    if call.function is conv.conv2d or call.result == 1:
        return  # (N, C, H, W) images and gradients of weights may be views of another order
    assert call(call.arrays(xp, "float32")).flags.c_contiguous


@every
def test_inputs_are_left_alone(xp, call):
    arrays = call.arrays(xp, "float32")
    before = {name: to_numpy(a).copy() for name, a in arrays.items()}
    result = call(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(to_numpy(array), before[name])
        assert not xp.shares_memory(result, array)


@every
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_scratch_memory_has_names_and_the_dtype_of_the_numbers(call, dtype, monkeypatch):
    """Or that in which float16 is summed."""
    monkeypatch.setattr(backend._local, "buffers", scratch := {}, raising=False)
    monkeypatch.setattr(conv, "CHUNK", 64)  # several chunks, and so the scratch memory that only these need
    monkeypatch.setattr(conv, "CHUNK_COLUMNS", (1, 7))
    call(call.arrays(np, dtype))
    for name, kind in scratch:
        assert isinstance(name, str)
        assert kind in (dtype, "bool", "float32" if dtype == "float16" else dtype)


SHARED = {
    "relu": activation.relu_forward,
    "relu, backward": lambda dy: activation.relu_backward(dy, np.asarray(dy)),
    "gelu": activation.gelu_forward,
    "sum": lambda a: merge.add(a, np.asarray(a)),
    "concatenation": lambda a: merge.concatenate([a, a]),
    "batch norm": lambda x: norm.batch_norm_forward(x, None, None, 1e-5),
    "batch norm, backward": lambda dy: norm.batch_norm_backward(dy, np.asarray(dy), np.ones(4), np.ones(4), None, 1e-5),
    "batch norm, inference": lambda x: norm.batch_norm_inference(x, np.ones(4), np.ones(4), None, None, 1e-5),
}


@pytest.mark.parametrize("function", SHARED.values(), ids=SHARED)
def test_large_arrays_are_worked_on_by_several_threads_at_once(function, monkeypatch):
    meeting, met = threading.Barrier(2), set()

    class Shared(np.ndarray):
        """Who takes a part of it waits for another thread that does."""

        def __getitem__(self, key):
            meeting.wait(timeout=60.0)
            met.add(threading.get_ident())
            return np.asarray(self)[key]

    monkeypatch.setattr(backend, "_count", 2)
    monkeypatch.setattr(backend, "_lanes", 0)
    function(normal(1, 4, 60_000).view(Shared))
    assert len(met) > 1


CONVERSIONS = {  # call, an array, its dtype where all others are float32, and how many arrays are converted then
    "target": ("mean squared error", "target", "float64", 1),
    "logits and their gradient": ("cross-entropy", "logits", "float16", 2),
    "normalised pixels": ("response norm", "x", "float16", 1),
    "their gradient": ("response norm, backward", "dy", "float16", 1),
}


@pytest.mark.parametrize(("title", "name", "other", "count"), CONVERSIONS.values(), ids=CONVERSIONS)
def test_only_what_has_another_dtype_is_converted(title, name, other, count, cuda_calls):
    """On a GPU each conversion is a launch."""
    import cupy

    launches, call = [], CALLS[title]
    for dtype in ("float32", other):
        arrays = call.arrays(cupy, "float32")
        arrays[name] = arrays[name].astype(dtype)
        with cuda_calls() as calls:
            call(arrays)
        launches.append(calls["kernel_launch"])
    assert launches[1] - launches[0] == count
