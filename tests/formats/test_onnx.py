"""ONNX: gradients of the operators, export of every layer and network, reading, training, saving, hostile files."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import sys
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
import pytest
from helpers import to_numpy
from layers.table import ROWS
from onnx import TensorProto, helper, numpy_helper
from strategies import normal
from tolerances import TOLERANCES, assert_close
from toys import CLASSES, norm_net, place, quarters, small_classifier

import xpcnn
from xpcnn import ArgumentError, Classifier, FileFormatError, MissingExtraError, ShapeError, Step, batch_last, zoo
from xpcnn import layers as L
from xpcnn.formats.onnx import Graph, load, save
from xpcnn.formats.onnx.graph import constant
from xpcnn.formats.onnx.load import read
from xpcnn.formats.onnx.ops import OPS
from xpcnn.functional.loss import mse_loss
from xpcnn.inspection import occlusion
from xpcnn.layers import config, from_config
from xpcnn.training.metrics import one_hot

STEP = Step(seed=3, number=7)

# --- gradients --------------------------------------------------------------------------------------------------

IMAGE = (2, 3, 5, 4)


def x_of(*shape: int, seed: int = 0, low: float = -2.0, high: float = 2.0) -> np.ndarray:
    """Numbers between low and high of which no two are close, so that differences cross no tie and no kink."""
    count = math.prod(shape)
    values = low + (high - low) * (np.arange(count) + 0.37) / count
    return np.random.default_rng(seed).permutation(values).reshape(shape)


def sizes(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


X = x_of(*IMAGE)
POSITIVE = x_of(*IMAGE, low=0.2)
C = x_of(3, seed=1)

# (operator, differentiable inputs, other inputs by position, attributes)
GRADIENTS: list[tuple[str, list[np.ndarray], dict[int, Any], dict[str, Any]]] = [
    *((op, [X], {}, {}) for op in (
        "Identity", "Relu", "LeakyRelu", "ThresholdedRelu", "Elu", "Selu", "Celu", "Sigmoid", "HardSigmoid",
        "HardSwish", "Swish", "Mish", "Gelu", "Tanh", "Softplus", "Softsign", "Erf", "Exp", "Neg", "Abs", "Softmax",
        "LogSoftmax",
        "Flatten", "GlobalAveragePool", "GlobalMaxPool",
    )),
    *((op, [POSITIVE], {}, {}) for op in ("Log", "Sqrt", "Reciprocal")),
    ("LeakyRelu", [X], {}, {"alpha": 0.3}),
    ("HardSigmoid", [X * 3], {}, {"alpha": 0.3, "beta": 0.4}),
    ("HardSwish", [X * 3], {}, {}),
    ("Celu", [X], {}, {"alpha": 2.5}),
    ("Swish", [X], {}, {"alpha": 1.7}),
    ("Gelu", [X], {}, {"approximate": "tanh"}),
    ("Softmax", [X], {}, {"axis": 1}),
    ("LogSoftmax", [x_of(3, 4)], {}, {"axis": 1}),
    ("Cast", [X], {}, {"to": "float64"}),
    ("CastLike", [X], {1: np.zeros(1)}, {}),
    ("Clip", [X], {1: np.array(-1.0), 2: np.array(0.5)}, {}),
    ("Clip", [X], {1: np.array(-1.0)}, {}),
    ("Dropout", [X], {1: np.array(0.4)}, {}),
    *((op, [X, x_of(3, 1, 4, seed=1)], {}, {}) for op in ("Add", "Sub", "Mul", "Sum", "Mean", "Max", "Min")),
    ("Sum", [X, X + 0.01, C[:, None, None]], {}, {}),
    ("Max", [X, x_of(*IMAGE, seed=4), C[:, None, None]], {}, {}),
    ("Div", [X, x_of(1, 4, seed=1, low=0.5)], {}, {}),
    ("Pow", [POSITIVE, x_of(3, 1, 4, seed=1)], {}, {}),
    ("Pow", [X], {1: np.array(2.0)}, {}),
    ("Pow", [x_of(3, 4)], {0: np.array(1.7)}, {}),
    ("Mul", [X], {1: np.array(0.3)}, {}),
    ("Sub", [X], {0: np.array(0.3)}, {}),
    ("Where", [X, x_of(3, 1, 4, seed=1)], {0: x_of(2, 1, 5, 1) > 0}, {}),
    ("PRelu", [X, x_of(3, 1, 1, seed=1)], {}, {}),
    ("Reshape", [X], {1: sizes(0, -1)}, {}),
    ("Reshape", [X], {1: sizes(5, 3, -1)}, {}),
    ("Flatten", [X], {}, {"axis": 2}),
    ("Squeeze", [x_of(2, 1, 3, 1)], {1: sizes(-1)}, {}),
    ("Squeeze", [x_of(2, 1, 3, 1)], {}, {}),
    ("Unsqueeze", [x_of(2, 3)], {1: sizes(0, -1)}, {}),
    ("Transpose", [X], {}, {"perm": (0, 2, 3, 1)}),
    ("Transpose", [X], {}, {}),
    ("Concat", [X, x_of(2, 1, 5, 4, seed=1)], {}, {"axis": 1}),
    ("Concat", [X, x_of(2, 3, 5, 2, seed=1)], {}, {"axis": -1}),
    ("Concat", [X, x_of(1, 3, 5, 4, seed=1)], {}, {"axis": 0}),
    ("Split", [X], {1: sizes(1, 4)}, {"axis": 2}),
    ("Slice", [X], {1: sizes(1, -1), 2: sizes(3, -9), 3: sizes(1, 3), 4: sizes(1, -2)}, {}),
    ("Gather", [X], {1: np.array([[0, 2], [-1, 2]])}, {"axis": 1}),
    ("Gather", [X], {1: np.array(1)}, {"axis": 3}),
    ("Pad", [X], {1: sizes(0, 1, 0, 2, 0, 0, 3, -1), 2: np.array(0.5)}, {}),
    *(("Pad", [X], {1: sizes(0, 0, 2, 1, 0, 0, 3, 2)}, {"mode": mode}) for mode in ("reflect", "edge", "wrap")),
    ("Expand", [x_of(2, 1, 4)], {1: sizes(3, 1, 5, 1)}, {}),
    ("Tile", [x_of(2, 3)], {1: sizes(2, 3)}, {}),
    *((f"Reduce{kind}", [POSITIVE], {1: sizes(1, -1)}, {"keepdims": 0}) for kind in
        ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp")),
    ("ReduceSum", [X], {}, {"noop_with_empty_axes": 1}),
    ("ReduceMean", [X], {}, {}),
    ("ReduceProd", [np.array([[1.5, 0.0, 2.0], [0.0, 0.0, 3.0]])], {1: sizes(1)}, {}),
    ("Conv", [X, x_of(4, 3, 3, 2, seed=1), x_of(4, seed=2)], {}, {"pads": (1, 0, 2, 1), "strides": (2, 1)}),
    ("Conv", [X, x_of(6, 1, 2, 3, seed=1)], {}, {"group": 3, "auto_pad": "SAME_LOWER", "dilations": (2, 1)}),
    ("Conv", [x_of(2, 3, 6), x_of(2, 3, 3, seed=1), x_of(2, seed=2)], {}, {"pads": (1, 2), "strides": (2,)}),
    ("MaxPool", [X], {}, {"kernel_shape": (3, 2), "strides": (2, 2), "ceil_mode": 1}),
    ("MaxPool", [x_of(2, 3, 7)], {}, {"kernel_shape": (3,), "auto_pad": "SAME_UPPER", "strides": (2,)}),
    ("AveragePool", [X], {}, {"kernel_shape": (3, 2), "pads": (1, 0, 1, 1), "count_include_pad": 1}),
    ("AveragePool", [X], {}, {"kernel_shape": (3, 2), "pads": (1, 0, 1, 1), "ceil_mode": 1, "strides": (2, 2)}),
    ("LpPool", [X], {}, {"kernel_shape": (2, 2), "p": 3}),
    ("GlobalMaxPool", [x_of(2, 3, 5)], {}, {}),
    ("Gemm", [x_of(2, 3), x_of(3, 4, seed=1), x_of(4, seed=2)], {}, {"alpha": 0.7, "beta": 1.3}),
    ("Gemm", [x_of(3, 2), x_of(4, 3, seed=1), x_of(2, 1, seed=2)], {}, {"transA": 1, "transB": 1}),
    ("MatMul", [x_of(2, 3), x_of(3, 4, seed=1)], {}, {}),
    ("MatMul", [X, x_of(3, 4, 2, seed=1)], {}, {}),
    ("MatMul", [x_of(4), x_of(2, 4, 3, seed=1)], {}, {}),
    ("MatMul", [x_of(2, 4, 3), x_of(3, seed=1)], {}, {}),
    ("BatchNormalization", [X, C, x_of(3, seed=2)], {3: C, 4: C * C + 0.5}, {}),
    ("InstanceNormalization", [X, C, x_of(3, seed=2)], {}, {}),
    ("GroupNormalization", [x_of(2, 4, 3, 2), x_of(4, seed=1), x_of(4, seed=2)], {}, {"num_groups": 2}),
    ("LayerNormalization", [X, x_of(5, 4, seed=1), x_of(5, 4, seed=2)], {}, {"axis": 2}),
    ("LayerNormalization", [X, x_of(4, seed=1)], {}, {}),
    ("LRN", [x_of(2, 5, 3, 2)], {}, {"size": 3, "alpha": 0.5}),
    ("LRN", [x_of(2, 5, 3, 2)], {}, {"size": 4, "alpha": 0.5}),
]  # fmt: skip


def test_every_differentiable_operator_is_in_the_table():
    assert {row[0] for row in GRADIENTS} == {op for op, row in OPS.items() if row.backward is not None}


def one_node(op: str, values: list[np.ndarray], others: dict[int, Any], attributes: dict[str, Any]) -> Graph:
    count = len(values) + len(others)
    names = [f"c{i}" if i in others else f"x{i}" for i in range(count)]
    outputs = ["y", "z"] if op == "Split" else ["y"]
    node = (op, "node", names, outputs, tuple(attributes.items()))
    constants = [constant(f"c{i}", np.asarray(value)) for i, value in others.items() if not fixed(op, i)]
    return Graph([n for n in names if n[0] == "x" or fixed(op, int(n[1:]))], outputs, [node], constants)


def fixed(op: str, position: int) -> bool:
    """Running statistics are arrays on the device, though not differentiated."""
    return op == "BatchNormalization" and position > 2


@pytest.mark.parametrize("inference", [False, True], ids=["training", "inference"])
@pytest.mark.parametrize("row", GRADIENTS, ids=lambda row: f"{row[0]}-{len(row[1])}-{row[3]}")
def test_gradients_against_central_differences(row, inference, xp, readonly):
    op, arrays, others, attributes = row
    if inference and op not in ("BatchNormalization", "Dropout"):
        return  # the same as in training
    graph = one_node(op, arrays, others, attributes)
    positions = iter(arrays)
    feed = {
        name: (xp.asarray(others[int(name[1:])]).copy() if fixed(op, int(name[1:])) else xp.asarray(next(positions)))
        for name in graph.inputs
    }
    step = Step(3, 7, recompute=True, inference=inference)
    outputs, tape = graph.run(feed, step)
    weights = [xp.asarray(normal(i, *y.shape)) for i, y in enumerate(outputs)]
    gradients = graph.differentiate(dict(zip(graph.outputs, weights, strict=True)), tape)

    def loss(name, value):
        results, _ = graph.run({**feed, name: value}, step)
        return sum(float((y * w).sum()) for y, w in zip(results, weights, strict=True))

    relative, absolute = TOLERANCES["gradient", "float64"]
    for name in [n for n in graph.inputs if n[0] == "x"]:
        value, gradient = to_numpy(feed[name]), to_numpy(gradients[name])
        assert gradient.shape == value.shape
        points = [np.unravel_index(i, value.shape) for i in range(value.size)]
        for point in points if xp is np else points[:: max(1, len(points) // 4)]:
            moved = [value.copy(), value.copy()]
            moved[0][point] += 1e-6
            moved[1][point] -= 1e-6
            up, down = (loss(name, xp.asarray(readonly(m))) for m in moved)
            numeric = (up - down) / 2e-6
            assert abs(numeric - gradient[point]) <= absolute + relative * max(abs(numeric), 1.0), (name, point)


def test_a_root_has_no_slope_at_zero():
    graph = one_node("Pow", [np.zeros(3)], {1: np.array(0.5)}, {})
    _, tape = graph.run({"x0": np.array([0.0, 4.0, 1.0])}, STEP)
    np.testing.assert_allclose(graph.differentiate({"y": np.ones(3)}, tape)["x0"], [0.0, 0.25, 0.5])


# --- export of every layer --------------------------------------------------------------------------------------


def state_of(net: L.Layer) -> dict[str, np.ndarray]:
    return {name: to_numpy(array) for name, array in net.state_dict().items()}


def gradients_of(net: L.Layer, x: Any, dy: Any, step: Step) -> tuple[Any, Any, dict[str, np.ndarray]]:
    y, ctx = net.forward(x, step)
    dx = net.backward(dy, ctx)
    return y, dx, {name: to_numpy(p.grad) for name, p in net.parameters().items()}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_layer_that_is_written_and_read_is_the_same(row, xp, tmp_path):
    layer = row.built("float32", device=place(xp))
    save(layer, tmp_path / "net.onnx", row.input_shape)
    twin = load(tmp_path / "net.onnx")
    twin.build(row.input_shape)
    twin.to(place(xp))
    assert twin.input_shape == row.input_shape
    assert twin.output_shape == row.output_shape
    if "without parameters" not in row.name:  # ONNX's batch norm always has scale and shift
        assert {n: a.shape for n, a in twin.state_dict().items()} == {n: a.shape for n, a in layer.state_dict().items()}
        assert twin.parameters().keys() == layer.parameters().keys()
    assert twin.macs(row.input_shape, row.output_shape) == row.macs or not row.macs

    images = xp.asarray(row.images(3, "float32"))
    assert_close(twin(images), layer(images), "forward", "float32")

    layer.to(dtype="float64")
    twin.to(dtype="float64")
    x = batch_last(xp.asarray(row.images(3)))
    dy = batch_last(xp.asarray(normal(1, 3, *row.output_shape)))
    # the mask of a dropout depends on the name of the layer, which has none here; p = 1 does not exist in ONNX
    step = Step(inference=True) if row.name.startswith("Dropout") else STEP
    ours, theirs = gradients_of(layer, x, dy, step), gradients_of(twin, x, dy, step)
    close = ("forward", "float32") if "p 3, mean" in row.name else ("torch", "float64")  # 4 ** (1 / 3) in float32
    assert_close(theirs[0], ours[0], *close)
    assert_close(theirs[1], ours[1], *close)
    for name, gradient in ours[2].items():
        assert_close(theirs[2][name], gradient, "torch", "float64")
    for name, array in state_of(layer).items():
        assert_close(twin.state_dict()[name], array, "torch", "float64")


def test_a_graph_is_written_again(tmp_path):
    """Operators that no layer of ours writes, among them constants that follow from the shape of the input."""
    nodes = [
        N("Shape", ["x"], ["s"], start=0, end=2), N("ConstantOfShape", ["s"], ["o"], value=tensor(1.5)),
        N("Unsqueeze", ["o", "axes"], ["p"]), N("Cast", ["x"], ["i"], to=TensorProto.INT32),
        N("Cast", ["i"], ["f"], to=TensorProto.FLOAT), N("Where", ["mask", "f", "x"], ["v"]),
        N("Add", ["v", "p"], ["a"]), N("Split", ["a"], ["", "b", "c"], axis=1, num_outputs=3),
        N("Concat", ["c", "b"], ["d"], axis=1), N("HardSwish", ["d"], ["y"]),
    ]  # fmt: skip
    weights = {"axes": sizes(2, 3), "mask": np.arange(4) % 2 == 0}
    net = network_of(model_of(nodes, weights), tmp_path)
    values = np.where(weights["mask"], np.trunc(XF), XF) + 1.5
    values = values[:, [2, 1]]
    assert_close(net(XF), values * np.clip(values / 6 + 0.5, 0, 1), "forward", "float32")
    save(net, tmp_path / "again.onnx")
    np.testing.assert_array_equal(load(tmp_path / "again.onnx")(XF), net(XF))


def tensor(value: float) -> Any:
    return numpy_helper.from_array(np.array([value], np.float32))


def test_the_side_classifier_is_left_out(tmp_path):
    net = L.Sequential(L.Flatten(), L.AuxiliaryHead(L.Dense(2)), L.Dense(3))
    net.build((1, 2, 2))
    save(net, tmp_path / "n.onnx")
    assert load(tmp_path / "n.onnx").state_dict().keys() == {"2.weight", "2.bias"}


def test_a_power_that_is_no_integer(tmp_path, rng):
    for mean in (False, True):
        net = L.LpPool2d(2, p=2.5, mean=mean)
        net.build((2, 4, 6))
        save(net, tmp_path / "n.onnx")
        x = rng.normal(size=(3, 2, 4, 6)).astype(np.float32)
        assert_close(load(tmp_path / "n.onnx")(x), net(x), "forward", "float32")


def test_padding_that_counts_and_windows_beyond_it(tmp_path, rng):
    net = L.AvgPool2d(3, stride=2, padding=1, ceil_mode=True)
    net.build((2, 6, 8))
    save(net, tmp_path / "n.onnx")
    x = rng.normal(size=(3, 2, 6, 8)).astype(np.float32)
    assert_close(load(tmp_path / "n.onnx")(x), net(x), "forward", "float32")


def test_export_refuses(tmp_path):
    class Strange(L.Layer):
        pass

    with pytest.raises(ArgumentError, match="the network has not been built, so there is nothing to export"):
        save(L.Dense(3), tmp_path / "n.onnx")
    with pytest.raises(ArgumentError, match="the network has not been built"):
        save(L.Dense(3), tmp_path / "n.onnx", (4,))
    with pytest.raises(ArgumentError, match="Strange at '1' cannot be exported: the layers of xpcnn can"):
        save(L.Sequential(L.ReLU(), Strange()), tmp_path / "n.onnx", (4,))
    assert not list(tmp_path.iterdir())


def test_what_the_file_says(tmp_path):
    net = norm_net()
    net.build((1, 8, 8))
    save(net, tmp_path / "n.onnx")
    model = onnx.load(tmp_path / "n.onnx")
    assert model.opset_import[0].version == 18
    dims = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
            for v in (*model.graph.input, *model.graph.output)}  # fmt: skip
    assert dims == {"input": ["N", 1, 8, 8], "output": ["N", 3]}
    assert {t.name for t in model.graph.initializer} == set(net.state_dict())
    assert {t.data_type for t in model.graph.initializer} == {TensorProto.FLOAT}


@pytest.mark.parametrize("channels", [1, 3])
def test_the_normalisation_of_a_classifier_comes_first(tmp_path, channels):
    clf = small_classifier(norm_net(), classes=CLASSES, normalize="data", ema=0.5)
    images, labels = quarters(30, dtype="float32", channels=channels)
    clf.fit((images, labels), epochs=2, verbose=False)
    save(clf, tmp_path / "clf.onnx")
    twin = load(tmp_path / "clf.onnx")
    assert twin.parameters().keys() == clf.net.parameters().keys()
    logits = twin(images)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities, clf.predict_proba(images), rtol=1e-5, atol=1e-6)


# --- the zoo ----------------------------------------------------------------------------------------------------

QUICK = ("lenet", "simple_convnet", "keras_style", "mri", "resnet20")


def zoo_net(name: str) -> tuple[L.Layer, tuple[int, int, int]]:
    """A network of the zoo for small images, with running statistics that are not those it starts with."""
    forms = zoo.entry(name).forms
    stem = "cifar" if len(forms) > 1 else None
    net, shape = (
        zoo.build(name, classes=10, stem=stem),
        forms[stem].input_shape if stem else zoo.entry(name).input_shape,
    )
    net.build(shape)
    for i, (key, array) in enumerate(net.state_dict().items()):
        if "running" in key:
            array[...] = normal(i, *array.shape) * 0.1 + (1.0 if key.endswith("var") else 0.0)
    return net, shape


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in zoo.names()]
)
def test_a_network_of_the_zoo_that_is_written_and_read_is_the_same(name, tmp_path):
    net, shape = zoo_net(name)
    save(net, tmp_path / "net.onnx")
    twin = load(tmp_path / "net.onnx")
    left_out = net.state_dict().keys() - twin.state_dict().keys()  # side classifiers
    assert not twin.state_dict().keys() - net.state_dict().keys()
    assert all("aux" in key.lower() for key in left_out)

    images = normal(0, 2, *shape, dtype="float32")
    logits = net(images)
    np.testing.assert_allclose(twin(images), logits, rtol=0, atol=1e-6 * np.abs(logits).max())

    net.to(dtype="float64")
    twin.build(shape)
    twin.to(dtype="float64")
    x, dy = batch_last(images.astype("float64")), batch_last(normal(1, *logits.shape))
    ours, theirs = gradients_of(net, x, dy, STEP), gradients_of(twin, x, dy, STEP)
    for a, b in [*zip(ours[:2], theirs[:2], strict=True), *((ours[2][n], theirs[2][n]) for n in theirs[2])]:
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-9 * np.abs(a).max())


# --- training and saving ----------------------------------------------------------------------------------------


@pytest.fixture
def small_file(tmp_path):
    net = L.Sequential(
        L.Conv2d(4, 3), L.BatchNorm2d(), L.ReLU(), L.Residual(L.Conv2d(4, 1)), L.MaxPool2d(2), L.Flatten(),
        L.Dropout(0.2), L.Dense(3),
    )  # fmt: skip
    net.build((1, 8, 8))
    save(net, tmp_path / "small.onnx")
    return tmp_path / "small.onnx"


def test_fine_tuning_lowers_the_loss(small_file, xp):
    images, labels = quarters(48)
    clf = small_classifier(load(small_file), classes=CLASSES, device=place(xp))
    clf.fit((images[:12], labels[:12]), epochs=1, verbose=False)
    before = clf.evaluate(images, labels).loss
    clf.fit((images, labels), epochs=4 if xp is np else 1, verbose=False)
    assert clf.evaluate(images, labels).loss < before


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_graph_is_saved_like_any_network(small_file, tmp_path, suffix, monkeypatch):
    images, labels = quarters(24)
    clf = small_classifier(load(small_file), classes=CLASSES)
    clf.fit((images, labels), epochs=1, verbose=False)
    clf.save(tmp_path / f"model{suffix}")
    monkeypatch.setitem(sys.modules, "onnx", None)  # not needed any more
    twin = xpcnn.load(tmp_path / f"model{suffix}")
    assert isinstance(twin.net, Graph)
    np.testing.assert_array_equal(twin.predict_proba(images), clf.predict_proba(images))
    twin.fit((images, labels), epochs=1, verbose=False)


def test_configuration_survives_json(small_file):
    net = load(small_file)
    twin = from_config(json.loads(json.dumps(config(net))))
    twin.build((1, 8, 8))
    assert {n: a.shape for n, a in twin.state_dict().items()} == {n: a.shape for n, a in net.state_dict().items()}
    twin.load_state_dict(net.state_dict())
    images = normal(0, 2, 1, 8, 8, dtype="float32")
    np.testing.assert_array_equal(twin(images), net(images))
    assert repr(twin) == "Graph(10 nodes, 8 parameters)"


def test_infinities_survive_json():
    values = np.array([np.inf, -np.inf, 1.5])
    graph = Graph(["x"], ["y"], [("Concat", "n", ["x", "c"], ["y"], (("axis", 0),))], [constant("c", values)])
    twin = from_config(json.loads(json.dumps(config(graph))))
    np.testing.assert_array_equal(twin.numbers["c"], values)


def test_a_frozen_graph_keeps_nothing_and_learns_nothing(small_file):
    net = load(small_file)
    net.build((1, 8, 8))
    net.freeze("*")
    before = {n: a.copy() for n, a in net.state_dict().items()}
    x = batch_last(normal(0, 4, 1, 8, 8, dtype="float32"))
    _, ctx = net.forward(x, Step(0, 0, need_dx=False))
    assert all(entry is None for entry in ctx[0])
    y, ctx = net.forward(x, Step(0, 0, need_dx=True))
    assert net.backward(np.ones_like(y), ctx).shape == x.shape
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_frozen_layers_before_the_trained_ones_keep_nothing(small_file):
    net = load(small_file)
    net.build((1, 8, 8))
    net.freeze("[0-6].*")
    x = batch_last(normal(0, 4, 1, 8, 8, dtype="float32"))
    y, ctx = net.forward(x, Step(0, 0, need_dx=False))
    kept = [node.op for node, entry in zip(net.parsed, ctx[0], strict=True) if entry is not None]
    assert kept == ["Gemm", "Identity"]
    assert net.backward(np.ones_like(y), ctx, need_dx=False) is None
    grads = {name for name, p in net.parameters().items() if p.grad.any()}
    assert grads == {"7.weight", "7.bias"}
    with pytest.raises(ArgumentError, match=r"forward pass ran with Step\(need_dx=False\) and kept nothing for it"):
        net.backward(np.ones_like(y), ctx, need_dx=True)


def test_a_graph_as_part_of_a_network(small_file, tmp_path):
    for output in ("5", "5:0"):  # the Flatten: a node and its value
        trunk = load(small_file, output=output)
        net = L.Sequential(trunk=trunk, head=L.Dense(5))
        assert net.build((1, 8, 8)) == (5,)
        assert "trunk.0.weight" in net.parameters()
        assert net["head"].weight.data.shape == (5, 36)
        save(net, tmp_path / "again.onnx")
        images = normal(0, 2, 1, 8, 8, dtype="float32")
        assert_close(load(tmp_path / "again.onnx")(images), net(images), "forward", "float32")
    with pytest.raises(FileFormatError, match=r"small\.onnx: there is no value and no node called 'nothing' in it"):
        load(small_file, output="nothing")


def test_recomputed_steps_are_the_same(small_file):
    net = load(small_file)
    net.build((1, 8, 8))
    twin = L.Recompute(copy.deepcopy(net))
    x = batch_last(normal(0, 4, 1, 8, 8, dtype="float32"))
    y, ctx = net.forward(x, STEP)
    z, other = twin.forward(x, STEP)
    np.testing.assert_array_equal(y, z)
    np.testing.assert_array_equal(net.backward(np.ones_like(y), ctx), twin.backward(np.ones_like(y), other))
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, twin.state_dict()[name])


def test_memory_stays_batch_last(tmp_path, xp):
    """CuPy's results are in the order of the axes; what the fused kernels take is contiguous."""
    net = L.Sequential(
        L.Conv2d(4, 3), L.BatchNorm2d(), L.SiLU(), L.Residual(L.Conv2d(4, 1)), L.Concat(L.Conv2d(2, 1), L.Identity()),
        L.Clip(0.0, 6.0), L.MaxPool2d(2), L.LocalResponseNorm(2), L.Softplus(2.0), L.Flatten(), L.Dense(3),
    )  # fmt: skip
    net.build((1, 8, 8))
    save(net, tmp_path / "n.onnx")
    x = xp.asarray(batch_last(normal(0, 3, 1, 8, 8, dtype="float32")))
    for node in load(tmp_path / "n.onnx").parsed:
        y, _ = load(tmp_path / "n.onnx", output=node.outputs[0]).to(place(xp)).forward(x, False)
        assert y.flags.c_contiguous or node.op == "Slice", str(node)


def test_batches_too_small_for_batch_norm(tmp_path):
    net = L.Sequential(L.Conv2d(2, 3), L.BatchNorm2d())
    net.build((1, 3, 3))
    save(net, tmp_path / "n.onnx")
    with pytest.raises(ArgumentError, match="node '1': batch normalisation needs more than one value per channel"):
        load(tmp_path / "n.onnx").forward(np.zeros((1, 3, 3, 1), np.float32), True)


def test_a_step_on_the_device_waits_for_nothing(small_file, cuda_calls):
    from xpcnn import SGD, softmax_cross_entropy
    from xpcnn.data.uploader import Uploader

    net, optimizer = load(small_file), SGD(0.1)
    net.build((1, 8, 8))
    net.to("cuda:0")
    images, labels = quarters(6, dtype="float32")
    x, t = Uploader("cuda:0").put(np.ascontiguousarray(images.transpose(1, 2, 3, 0)), labels)
    for number in range(3):
        with cuda_calls(log=True) as calls:
            logits, ctx = net.forward(x, Step(0, number, need_dx=False))
            _, dlogits = softmax_cross_entropy(logits, t)
            net.backward(dlogits, ctx, need_dx=False)
            optimizer.step(net)
    for what in ("h2d", "d2h", "device_sync", "stream_sync", "event_sync"):
        assert calls[what] == 0, calls.log


# --- reading ----------------------------------------------------------------------------------------------------


def model_of(
    nodes: list[Any],
    weights: dict[str, np.ndarray] | None = None,
    shape: tuple[Any, ...] = ("N", 3, 5, 4),
    opset: int = 18,
    outputs: tuple[str, ...] = ("y",),
    kind: int = TensorProto.FLOAT,
) -> Any:
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", kind, shape)],
        [info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    inferred = onnx.shape_inference.infer_shapes(model)
    for output in inferred.graph.output:
        output.type.tensor_type.shape.SetInParent()  # a file without the shapes of its outputs is not valid
    return inferred


def network_of(model: Any, tmp_path: Any, **options: Any) -> Graph:
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return load(path, **options)


XF = X.astype(np.float32)
CF = C.astype(np.float32)
N = helper.make_node
OLD = {
    "Squeeze 11": (11, [N("Squeeze", ["x"], ["y"], axes=[0])], {}, (1, 3, 4), lambda x: x[0]),
    "Unsqueeze 11": (11, [N("Unsqueeze", ["x"], ["y"], axes=[1])], {}, (2, 3), lambda x: x[:, None]),
    "ReduceMean 13": (13, [N("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)], {}, IMAGE,
                      lambda x: x.mean(axis=(2, 3))),
    "Slice 9": (9, [N("Slice", ["x"], ["y"], starts=[1], ends=[99], axes=[2])], {}, IMAGE, lambda x: x[:, :, 1:]),
    "Pad 10": (10, [N("Pad", ["x"], ["y"], pads=[0, 0, 1, 0, 0, 0, 0, 2], value=1.5)], {}, IMAGE,
               lambda x: np.pad(x, ((0, 0), (0, 0), (1, 0), (0, 2)), constant_values=1.5)),
    "Clip 6": (6, [N("Clip", ["x"], ["y"], min=-0.5, max=1.0)], {}, IMAGE, lambda x: np.clip(x, -0.5, 1.0)),
    "Clip 6 above": (6, [N("Clip", ["x"], ["y"], max=1.0)], {}, IMAGE, lambda x: np.minimum(x, 1.0)),
    "Dropout 6": (6, [N("Dropout", ["x"], ["y"], ratio=0.3, is_test=0)], {}, IMAGE, lambda x: x),
    "Dropout 12": (12, [N("Dropout", ["x", "r", "t"], ["y"])], {"r": np.float32(0.3), "t": np.array(True)}, IMAGE,
                   lambda x: x),
    "BatchNormalization 7": (7, [N("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], spatial=1)],
                             {"s": CF, "b": CF + 1, "m": CF, "v": CF * CF + 1}, IMAGE,
                             lambda x: (x - C[:, None, None]) / np.sqrt(C * C + 1 + 1e-5)[:, None, None]
                             * C[:, None, None] + C[:, None, None] + 1),
    "BatchNormalization in training mode": (
        14, [N("BatchNormalization", ["x", "s", "b", "m", "v"], ["y", "rm", "rv"], training_mode=1)],
        {"s": np.ones(3, np.float32), "b": np.zeros(3, np.float32), "m": CF, "v": CF * CF + 1}, IMAGE,
        lambda x: (x - C[:, None, None]) / np.sqrt(C * C + 1 + 1e-5)[:, None, None]),
    "Softmax 11": (11, [N("Softmax", ["x"], ["y"], axis=1)], {}, (2, 3, 4),
                   lambda x: np.exp(x) / np.exp(x).sum(axis=(1, 2), keepdims=True)),
    "Add 6 with axis": (6, [N("Add", ["x", "b"], ["y"], broadcast=1, axis=1)], {"b": CF}, IMAGE,
                        lambda x: x + C[:, None, None]),
    "Mul 6 without axis": (6, [N("Mul", ["x", "b"], ["y"], broadcast=1)], {"b": CF[:1]}, IMAGE, lambda x: x * C[0]),
    "PRelu 6": (6, [N("PRelu", ["x", "b"], ["y"])], {"b": CF}, IMAGE,
                lambda x: np.where(x > 0, x, x * C[:, None, None])),
    "Split 11": (11, [N("Split", ["x"], ["y", "z"], axis=1, split=[2, 1])], {}, IMAGE, lambda x: x[:, :2]),
    "Gemm 6": (6, [N("Gemm", ["x", "w", "b"], ["y"], broadcast=1)], {"w": np.outer(CF, CF[:2]), "b": CF[:2]}, (2, 3),
               lambda x: x @ np.outer(C, C[:2]) + C[:2]),
    "Constant": (13, [N("Constant", [], ["c"], value_floats=[1.0, 2.0, 3.0, 4.0]), N("Mul", ["x", "c"], ["y"])],
                 {}, IMAGE, lambda x: x * [1, 2, 3, 4]),
    "folded": (13, [N("Transpose", ["w"], ["v"]), N("MatMul", ["x", "v"], ["y"])],
               {"w": np.outer(CF[:2], CF)}, (2, 3), lambda x: x @ np.outer(C, C[:2])),
    "view by shape": (13, [N("Shape", ["x"], ["s"]), N("Gather", ["s", "zero"], ["n"], axis=0),
                           N("Unsqueeze", ["n", "first"], ["m"]), N("Concat", ["m", "rest"], ["t"], axis=0),
                           N("Reshape", ["x", "t"], ["y"])],
                      {"zero": np.array(0), "first": sizes(0), "rest": sizes(-1)}, IMAGE, lambda x: x.reshape(2, 60)),
}  # fmt: skip


@pytest.mark.parametrize("name", OLD)
def test_older_forms_of_operators(name, tmp_path, xp):
    opset, nodes, weights, shape, expected = OLD[name]
    net = network_of(model_of(nodes, weights, shape, opset), tmp_path)
    net.to(place(xp))
    x = x_of(*shape).astype(np.float32)
    y, _ = net.run({"x": xp.asarray(x)}, None)
    assert_close(y[0], expected(x.astype(np.float64)), "forward", "float32")
    if "r" in weights or name.startswith("Dropout"):  # training is for the caller to say
        dropped, _ = net.run({"x": xp.asarray(x)}, STEP)
        assert 0 < int((to_numpy(dropped[0]) == 0).sum()) < x.size


def test_a_batch_axis_that_the_file_fixes_is_free(tmp_path):
    nodes = [N("Reshape", ["x", "s"], ["f"]), N("Gemm", ["f", "w"], ["y"])]
    weights = {"s": sizes(1, 60), "w": normal(0, 60, 4, dtype="float32")}
    net = network_of(model_of(nodes, weights, (1, 3, 5, 4)), tmp_path)
    assert net.input_shape == (3, 5, 4)
    assert net.build((3, 5, 4)) == (4,)
    assert_close(net(XF), XF.reshape(2, 60) @ weights["w"], "forward", "float32")


def test_a_graph_that_loses_the_batch_axis(tmp_path):
    nodes = [N("ReduceMean", ["x"], ["y"], keepdims=0)]
    with pytest.raises(
        ShapeError, match=r"expects a graph that keeps the batch axis; received an output of shape \(\)"
    ):
        network_of(model_of(nodes), tmp_path).build((3, 5, 4))


def test_an_input_that_does_not_fit_names_the_node(tmp_path):
    nodes = [N("Conv", ["x", "w"], ["y"], name="first")]
    net = network_of(model_of(nodes, {"w": np.zeros((2, 3, 2, 2), np.float32)}), tmp_path)
    with pytest.raises(ShapeError, match=r"node 'first' \(Conv\): a weight of shape \(2, 3, 2, 2\) in 1 group"):
        net.build((4, 5, 4))
    nodes = [N("MatMul", ["x", "w"], ["y"], name="m")]
    net = network_of(model_of(nodes, {"w": np.zeros((3, 2), np.float32)}, ("N", "D")), tmp_path)
    with pytest.raises(ShapeError, match=r"node 'm' \(MatMul\) does not fit its inputs of shape \(2, 4\), \(3, 2\)"):
        net.build((4,))


def test_the_softmax_at_the_end_can_be_left_out(tmp_path):
    nodes = [N("Gemm", ["x", "w"], ["l"]), N("Softmax", ["l"], ["y"], axis=1)]
    weights = {"w": normal(0, 3, 4, dtype="float32")}
    x = normal(1, 2, 3, dtype="float32")
    for opset in (11, 18):
        model = model_of(nodes, weights, ("N", 3), opset)
        logits = x @ weights["w"]
        assert_close(network_of(model, tmp_path, logits=True)(x), logits, "forward", "float32")
        softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        whole = network_of(model, tmp_path)
        assert_close(whole(x), softmax, "forward", "float32")
        with pytest.raises(ArgumentError, match=r"ends with Softmax, .*an ONNX file: onnx.load\(path, logits=True\)"):
            Classifier(whole)


@pytest.mark.parametrize("opset", [11, 18])
def test_a_softmax_at_the_end_is_not_applied_twice(tmp_path, opset):
    nodes = [N("Conv", ["x", "w"], ["c"]), N("GlobalAveragePool", ["c"], ["g"]), N("Flatten", ["g"], ["f"]),
             N("Softmax", ["f"], ["y"], axis=1)]  # fmt: skip
    model = model_of(nodes, {"w": normal(0, 3, 2, 3, 3, dtype="float32")}, ("N", 2, 6, 6), opset)
    whole, logits = network_of(model, tmp_path), network_of(model, tmp_path, logits=True)
    x = normal(1, 2, 2, 6, 6, dtype="float32")
    ours = Classifier(whole, loss=lambda y, t: mse_loss(y, one_hot(t, 3).T), device="cpu")
    ours.build((2, 6, 6))
    ours.save(tmp_path / "model.safetensors")
    read = xpcnn.load(tmp_path / "model.safetensors", "cpu")  # a loss of one's own has no name in the file
    theirs = Classifier(logits, device="cpu")
    theirs.build((2, 6, 6))
    for classifier in (ours, read):
        assert_close(classifier.predict_proba(x), theirs.predict_proba(x), "forward", "float32")
        assert_close(occlusion(classifier, x).maps, occlusion(theirs, x).maps, "forward", "float32")


def test_what_is_trained_and_what_it_is_called(tmp_path):
    nodes = [
        N("Sub", ["x", "mean"], ["a"]), N("Mul", ["a", "scale"], ["b"]),
        N("Conv", ["b", "/conv 1/W"], ["c"]), N("Add", ["c", "_bias"], ["d"]), N("Mul", ["d", "two"], ["e"]),
        N("MatMul", ["e", "forward"], ["f"]), N("Conv", ["f", "onnx::Conv_1"], ["y"]),
    ]  # fmt: skip
    weights = {
        "mean": CF[:, None, None], "scale": CF[:, None, None] + 3, "/conv 1/W": np.ones((2, 3, 1, 1), np.float32),
        "_bias": np.ones((2, 1, 1), np.float32), "two": np.float32(2), "forward": np.ones((4, 4), np.float32),
        "onnx::Conv_1": np.ones((1, 2, 1, 1), np.float32),
    }  # fmt: skip
    net = network_of(model_of(nodes, weights), tmp_path)
    assert list(net.parameters()) == ["conv.1.W", "bias", "forward_2", "onnx.Conv_1"]
    assert set(net.state_dict()) - set(net.parameters()) == {"mean", "scale"}
    expected = (XF - weights["mean"]) * weights["scale"]
    expected = (expected.sum(axis=1, keepdims=True) + 1) * 2
    expected = np.repeat(expected.sum(axis=3, keepdims=True), 4, axis=3) * 2
    assert_close(net(XF), expected, "forward", "float32")


def test_numbers_are_the_decimals_that_were_meant(tmp_path):
    nodes = [N("BatchNormalization", ["x", "s", "b", "m", "v"], ["a"], epsilon=1e-5), N("Mul", ["a", "t"], ["y"])]
    weights = {"s": CF, "b": CF, "m": CF, "v": CF * CF, "t": np.float32(0.1)}
    net = network_of(model_of(nodes, weights), tmp_path)
    assert net.parsed[0].attributes == {"epsilon": 1e-5}
    net.to(dtype="float64")
    arrays = {n: a.astype(np.float64)[:, None, None] for n, a in weights.items() if n != "t"}
    expected = ((X - arrays["m"]) / np.sqrt(arrays["v"] + 1e-5) * arrays["s"] + arrays["b"]) * 0.1
    assert_close(net(X), expected, "forward", "float64")


def test_casts_follow_the_dtype_of_the_network(tmp_path):
    nodes = [N("Cast", ["x"], ["a"], to=TensorProto.INT32), N("Cast", ["a"], ["y"], to=TensorProto.FLOAT)]
    net = network_of(model_of(nodes), tmp_path)
    for dtype in ("float32", "float64"):
        y, ctx = net.forward(batch_last(X.astype(dtype)), True)
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, np.trunc(batch_last(X)))
        assert not net.backward(y, ctx).any()  # steps have no slope


# --- refused ----------------------------------------------------------------------------------------------------


def test_unknown_operators_are_all_named(tmp_path):
    nodes = [
        N("Einsum", ["x"], ["a"], name="mix", equation="ijkl->ijkl"), N("NonZero", ["a"], ["b"]),
        N("Einsum", ["a"], ["y"], name="again", equation="ijkl->ijkl"),
        N("FusedConv", ["a"], ["z"], name="fused", domain="com.microsoft"),
    ]  # fmt: skip
    expected = (
        r"model\.onnx: it uses operators that are not known here: Einsum \(node 'mix', 'again'\); "
        r"NonZero \(node 'b'\); com\.microsoft\.FusedConv \(node 'fused'\)\."
    )
    with pytest.raises(FileFormatError, match=expected):
        network_of(model_of(nodes), tmp_path)


def external() -> Any:
    model = model_of([N("Add", ["x", "w"], ["y"])], {"w": CF})
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return model


def with_tensor(**fields: Any) -> Any:
    model = model_of([N("Add", ["x", "w"], ["y"])])
    model.graph.initializer.append(TensorProto(name="w", data_type=TensorProto.FLOAT, **fields))
    return model


def folding(op: str, count: int, **attributes: Any) -> Any:
    """A file of a few bytes that would make a huge constant."""
    weights = {"s": np.array([10**6] * count, np.int64), "one": np.ones((1,) * count, np.float32)}
    inputs = ["s"] if op == "ConstantOfShape" else ["one", "s"]
    return model_of([N(op, inputs, ["c"], **attributes), N("Add", ["x", "c"], ["y"])], weights)


def sparse() -> Any:
    model = model_of([N("Add", ["x", "w"], ["y"])], {"w": CF})
    values = numpy_helper.from_array(CF[:1], "w")
    model.graph.sparse_initializer.append(
        onnx.SparseTensorProto(values=values, indices=numpy_helper.from_array(sizes(0)), dims=[3])
    )
    return model


def doubling() -> Any:
    nodes = [N("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], axis=0) for i in range(40)]
    nodes += [N("Concat", ["x", "c40"], ["y"], axis=0)]
    return model_of(nodes, {"c0": np.ones(4, np.float32)}, ("N",))


def table_product() -> Any:
    weights = {"a": np.ones((10**5, 1), np.float32), "b": np.ones((1, 10**5), np.float32)}
    return model_of([N("MatMul", ["a", "b"], ["c"]), N("Add", ["x", "c"], ["y"])], weights, ("N", 10**5))


HOSTILE = {
    "external data": (external, "keeps its weights in another file, which is not followed"),
    "sparse data": (sparse, "has sparse weights, which are not supported"),
    "short tensor": (lambda: with_tensor(dims=[5], raw_data=b"1234"), r"not a valid ONNX model|tensor 'w' is broken"),
    "huge tensor": (lambda: with_tensor(dims=[10**12], raw_data=b"1234"), r"not a valid ONNX model|'w' is broken"),
    "negative tensor": (lambda: with_tensor(dims=[-1], raw_data=b"1234"), r"not a valid ONNX model|'w' is broken"),
    "huge input": (lambda: model_of([N("Relu", ["x"], ["y"])], shape=("N", 3, 10**6, 10**6)), "has 3,000,000,000,000"),
    "huge padding": (
        lambda: model_of([N("Pad", ["x", "p"], ["y"])], {"p": sizes(0, 0, 0, 0, 0, 0, 10**6, 10**6)}),
        "elements, more than",
    ),
    "ConstantOfShape": (lambda: folding("ConstantOfShape", 3), "elements"),
    "Expand": (lambda: folding("Expand", 3), "elements"),
    "Tile": (lambda: folding("Tile", 3), "elements"),
    "doubling": (doubling, "elements"),
    "product": (table_product, "elements"),
    "no such value": (lambda: model_of([N("Relu", ["q"], ["y"])]), "not a valid ONNX model"),
    "cycle": (lambda: model_of([N("Relu", ["y"], ["z"]), N("Relu", ["z"], ["y"])]), "not a valid ONNX model"),
    "no output": (lambda: model_of([N("Relu", ["x"], ["q"])]), "not a valid ONNX model"),
    "two inputs": (
        lambda: helper.make_model(helper.make_graph(
            [N("Add", ["x", "z"], ["y"])], "g",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xz"],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        ), ir_version=8),
        "a classifier has one input; this graph has 2: x, z",
    ),
    "opset 3": (lambda: model_of([N("Relu", ["x"], ["y"])], opset=3), "written for opset 3; 6 and newer are read"),
    "type": (
        lambda: model_of([N("Cast", ["x"], ["y"], to=TensorProto.BFLOAT16)], kind=TensorProto.BFLOAT16),
        "uses the element type BFLOAT16, which is not known here",
    ),
    "text": (
        lambda: model_of([N("Constant", [], ["c"], value_string="a"), N("Concat", ["x", "c"], ["y"], axis=0)]),
        "its constant 'c' is text|not a valid ONNX model",
    ),
    "spatial": (
        lambda: model_of(
            [N("BatchNormalization", ["x", *"sbmv"], ["y"], spatial=0)], dict.fromkeys("sbmv", CF), opset=7
        ),
        r"normalises every pixel by itself \(spatial=0\)",
    ),
    "second output": (
        lambda: model_of([N("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 2]), N("Cast", ["i"], ["z"], to=1)],
                         outputs=("z",)),
        "second output that is used, which a classifier's has not",
    ),
    "indices from data": (
        lambda: model_of([N("ArgMax", ["x"], ["i"], axis=1), N("Gather", ["w", "i"], ["y"])], {"w": CF}),
        "its input 1 must follow from shapes and constants alone",
    ),
    "index outside": (
        lambda: model_of([N("Gather", ["w", "i"], ["c"]), N("Mul", ["x", "c"], ["y"])], {"w": CF, "i": np.array(7)}),
        "index 7 is outside an axis of length 3|not a valid ONNX model",
    ),
    "shapes that do not fit": (
        lambda: model_of([N("Add", ["a", "b"], ["c"]), N("Mul", ["x", "c"], ["y"])], {"a": CF, "b": CF[:2]}),
        "does not fit its inputs|not a valid ONNX model",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_models_are_refused_with_the_name_of_the_file(name, tmp_path):
    import tracemalloc

    make, message = HOSTILE[name]
    content = make().SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(FileFormatError, match=rf"model\.onnx.*({message})"):
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_truncated_and_foreign_files(small_file, tmp_path):
    whole = small_file.read_bytes()
    path = tmp_path / "broken.onnx"
    contents = [b"", b"text", b"\xff" * 64, whole[: len(whole) // 2], whole[:-1], b"\x0a\xff\xff\xff\xff\x0f" + whole]
    contents += [whole[:i] + bytes([whole[i] ^ 0x80]) + whole[i + 1 :] for i in range(0, 400, 7)]
    for content in contents:
        path.write_bytes(content)
        with contextlib.suppress(FileFormatError):  # and nothing else; some changes are harmless
            load(path)

    path.write_bytes(whole[:-1])
    with pytest.raises(FileFormatError, match=r"broken\.onnx is not a whole ONNX file .* It may be truncated"):
        load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.onnx")


def test_files_that_are_too_large(tmp_path):
    path = tmp_path / "large.onnx"
    with path.open("wb") as file:
        file.truncate((1 << 31) + 1)  # a hole: no bytes on the disk
    with pytest.raises(FileFormatError, match=r"large\.onnx has 2,147,483,649 bytes; an ONNX file has at most"):
        load(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"nodes": [("Nonsense", "n", ["x"], ["y"], [])]},
            r"node 'n' \(Nonsense\) is of an unknown operator; known are",
        ),
        ({"nodes": [("Relu", "n", ["z"], ["y"], [])]}, "node 'n' .* uses 'z', which no node before it makes"),
        ({"nodes": []}, "no node makes the output 'y'"),
        ({"nodes": [("Relu", "n")]}, "does not describe a graph"),
        ({"nodes": [], "constants": [("c", "object", [1], [1])]}, "constants of the types bool, int8"),
        ({"nodes": [], "constants": [("c", "int64", [10**9], [1])]}, "does not describe a graph"),
        ({"nodes": [], "outputs": ["x"], "trained": [("forward", [1])]}, "cannot have a parameter named 'forward'"),
        ({"nodes": [], "outputs": ["x"], "fixed": [("nodes", [1])]}, "cannot have a parameter named 'nodes'"),
        ({"nodes": [], "outputs": ["x", "x"]}, r"a network has one input and one output"),
    ],
)
def test_hostile_configurations(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        from_config({"layer": "Graph", "arguments": {"inputs": ["x"], "outputs": ["y"], **arguments}}).build((3,))


def test_without_the_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "onnx.shape_inference", raising=False)
    with pytest.raises(MissingExtraError, match=r'reading ONNX files needs onnx, .* pip install "xpcnn\[onnx\]"'):
        load(tmp_path / "n.onnx")
    with pytest.raises(MissingExtraError, match="writing ONNX files needs onnx"):
        save(norm_net(), tmp_path / "n.onnx")


def test_read_keeps_what_the_operator_defines():
    """Not as a network: batch normalisation in training mode as ONNX defines it, by the population variance."""
    node = N("BatchNormalization", ["x", "s", "b", "m", "v"], ["y", "rm", "rv"], training_mode=1, momentum=0.8)
    weights = {"s": np.ones(3, np.float32), "b": np.zeros(3, np.float32), "m": CF, "v": CF * CF}
    graph = read(onnx, model_of([node], weights, outputs=("y", "rm", "rv")))
    (y, mean, var), _ = graph.run({"x": XF}, None)
    axes = (0, 2, 3)
    assert_close(mean, CF * 0.8 + XF.mean(axis=axes) * 0.2, "forward", "float32")
    assert_close(var, CF * CF * 0.8 + XF.var(axis=axes) * 0.2, "forward", "float32")
    assert_close(y.mean(axis=axes), np.zeros(3), "forward", "float32")
