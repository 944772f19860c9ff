"""`for_inference`: the same outputs on both backends, less work, no training, threads, files."""

from __future__ import annotations

import copy
import threading
import tracemalloc

import numpy as np
import pytest
from helpers import readonly, to_numpy
from layers.table import ROWS
from strategies import normal
from tolerances import assert_close
from toys import norm_net, quarters, small_classifier

import xpcnn
from xpcnn import ArgumentError, ShapeError, Step, backend, batch_last, inference, zoo
from xpcnn import layers as L
from xpcnn.formats.onnx import Graph
from xpcnn.functional import winograd
from xpcnn.inference import Inference
from xpcnn.layers import config, from_config
from xpcnn.plan import Plan

NORMS = (L.BatchNorm1d, L.BatchNorm2d)


def randomise(net, seed=0):
    """Give batch norm statistics and parameters as training leaves them, none of them 0 or 1."""
    rng = np.random.default_rng(seed)
    for _, layer in net.walk():
        if isinstance(layer, NORMS):
            shape, xp = layer.running_mean.data.shape, net.xp
            layer.running_mean.data[...] = xp.asarray(rng.normal(0.0, 0.3, shape))
            layer.running_var.data[...] = xp.asarray(rng.uniform(0.5, 2.0, shape))
            if layer.affine:
                layer.weight.data[...] = xp.asarray(rng.uniform(0.5, 1.5, shape))
                layer.bias.data[...] = xp.asarray(rng.normal(0.0, 0.3, shape))
    return net


def built(net, shape, dtype="float64", device="cpu"):
    net.build(shape, seed=1, dtype=dtype, device=device)
    return randomise(net)


def norms_of(net):
    return [layer for _, layer in net.walk() if isinstance(layer, NORMS)]


def images(shape, count=5, dtype="float64", xp=np):
    return readonly(xp.asarray(normal(3, count, *shape, dtype=dtype)))


# --- outputs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", zoo.names())
def test_every_network_of_the_zoo_has_the_same_outputs(name):
    forms = zoo.entry(name).forms
    stem = "cifar" if "cifar" in forms else None
    shape = zoo.entry(name).form(stem).input_shape
    net = built(zoo.build(name, classes=10, stem=stem), shape)
    x = images(shape, 2)
    assert_close(net.for_inference()(x), net(x), "forward")
    net.to(dtype="float32")
    folded, x = net.for_inference(), images(shape, 4, "float32")
    for part in (x[:1], x):  # one image, and a share for each thread
        assert_close(folded(part), net(part), "forward")
    concatenated = name.startswith("densenet")  # batch norm comes before the convolution there
    assert concatenated or not norms_of(folded)


def conv_norm(width, *arguments, **options):
    return [L.Conv2d(width, *arguments, **options), L.BatchNorm2d()]


def branches():
    """Branches that share an input, want zeros around it or not, pool with padding, or do nothing."""
    pool = L.Sequential(L.MaxPool2d(3, 1, 1), *conv_norm(3, 1))
    return L.Concat(L.Identity(), L.Sequential(*conv_norm(4, 3, padding=1), L.ReLU()), pool, L.Identity())


def dense_block():
    before = [L.BatchNorm2d(), L.ReLU()]
    body = L.Sequential(*before, *conv_norm(6, 1, bias=False), L.ReLU(), L.Conv2d(3, 3, padding=1), L.Dropout())
    return L.Sequential(L.DenseConcat(body), L.DenseConcat(L.Conv2d(2, 3, padding=1)), L.BatchNorm2d(), L.ReLU())


def residual():
    body = L.Sequential(*conv_norm(5, 3, padding=1), L.ReLU(), L.Dropout(), *conv_norm(3, 3, padding=1))
    return L.Sequential(L.Residual(body, None, L.ReLU()), L.Residual(L.Conv2d(3, 1), L.Identity(), L.Tanh()))


# name: network, input shape, batch norms that cannot be folded
STRUCTURES = {
    "bias": (lambda: L.Sequential(*conv_norm(6, 3), L.ReLU()), (3, 7, 6), 0),
    "no bias": (lambda: L.Sequential(*conv_norm(6, 3, bias=False), L.ReLU()), (3, 7, 6), 0),
    "depthwise": (lambda: L.Sequential(*conv_norm(3, 3, 2, 1, groups=3), L.Clip(0.0, 6.0)), (3, 7, 6), 0),
    "grouped": (lambda: L.Sequential(*conv_norm(8, (3, 2), groups=2, padding=(1, 0, 2, 1))), (4, 7, 6), 0),
    "not affine": (lambda: L.Sequential(L.Conv2d(4, 3, dilation=2), L.BatchNorm2d(affine=False)), (2, 8, 7), 0),
    "dense": (lambda: L.Sequential(L.Flatten(), L.Dense(5), L.Dropout(), L.BatchNorm1d(), L.ReLU()), (2, 3, 3), 0),
    "before": (lambda: L.Sequential(L.BatchNorm2d(), L.ReLU(), L.Conv2d(4, 3, padding=1)), (3, 6, 5), 1),
    "norm twice": (lambda: L.Sequential(*conv_norm(4, 3), L.BatchNorm2d()), (3, 6, 5), 1),
    "padded twice": (lambda: L.Sequential(*conv_norm(4, 3, padding=1), *conv_norm(4, 5, padding=2)), (3, 6, 5), 0),
    "flattened and padded": (
        lambda: L.Sequential(
            L.ReLU(), L.Concat(L.Flatten(), L.Sequential(L.Conv2d(2, 3, padding=1), L.Flatten()), L.Flatten())
        ),
        (3, 4, 5), 0,
    ),
    "padded and flattened": (
        lambda: L.Sequential(L.ReLU(), L.Concat(L.Sequential(L.Conv2d(2, 3, padding=1), L.Flatten()), L.Flatten())),
        (3, 4, 5), 0,
    ),
    "branches": (lambda: L.Sequential(*conv_norm(3, 3), branches(), L.Conv2d(4, 3, padding=1)), (3, 7, 8), 0),
    "nested branches": (lambda: L.Sequential(L.Concat(branches(), L.Identity()), L.Conv2d(2, 1)), (3, 5, 4), 0),
    "dense block": (dense_block, (3, 6, 5), 2),
    "residual": (residual, (3, 6, 5), 0),
    "side classifier": (
        lambda: L.Sequential(
            L.Conv2d(4, 3), L.AuxiliaryHead(L.Sequential(L.GlobalAvgPool2d(), L.Dense(2))), L.GlobalAvgPool2d(),
            L.Dense(2),
        ),
        (3, 6, 5), 0,
    ),
    "recomputed": (lambda: L.Sequential(L.Recompute(L.Sequential(*conv_norm(4, 3), L.ReLU())), L.ReLU()), (3, 6, 5), 0),
    "nothing": (lambda: L.Sequential(L.Dropout(), L.Identity()), (3, 4, 5), 0),
    "one layer": (lambda: L.Conv2d(4, 3, padding="same"), (3, 4, 5), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_outputs_are_the_same_and_batch_norm_is_gone(xp, name, dtype):
    make, shape, left = STRUCTURES[name]
    net = built(make(), shape, dtype, "cpu" if xp is np else "cuda:0")
    x = images(shape, 3, dtype, xp)
    folded = net.for_inference()
    assert_close(folded(x), net(x), "forward")
    y, ctx = folded.forward(batch_last(x), False)
    assert ctx is None
    assert_close(xp.moveaxis(y, -1, 0), net(x), "forward")
    assert len(norms_of(folded)) == left
    kinds = {type(layer) for _, layer in folded.walk()}
    assert not kinds & {L.Dropout, L.AuxiliaryHead, L.Recompute}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize(("count", "lanes"), [(1, 3), (5, 1), (5, 2)])
def test_every_layer_agrees_with_its_definition(row, count, lanes, monkeypatch):
    monkeypatch.setattr("xpcnn.plan.LONG", 0)
    layer, x = row.built(), row.images(count)
    expected = row.reference(x, layer.state_dict())
    assert_close(L.Sequential(L.Identity(), layer).for_inference()(x), expected, "forward") if layer.state_dict() else 0
    plan, y = Plan(layer, (*row.input_shape, count), x.dtype, lanes, {}), np.empty((*row.output_shape, count))
    for _ in range(2):  # the second time in memory that has been used
        plan.run(np.moveaxis(readonly(x), 0, -1), y)
        assert_close(np.moveaxis(y, -1, 0), expected, "forward")


def test_a_layer_used_twice_stays_one_unless_what_follows_differs():
    conv, norm = L.Conv2d(3, 3, padding=1), L.BatchNorm2d()
    net = built(L.Sequential(conv, norm, L.ReLU(), conv, norm, conv, L.BatchNorm2d(), conv), (3, 5, 5))
    folded = net.for_inference()
    x = images((3, 5, 5))
    assert_close(folded(x), net(x), "forward")
    chain = dict(folded.body.children())
    assert chain["0"] is chain["3"]
    assert len({id(layer) for _, layer in folded.leaves() if isinstance(layer, L.Conv2d)}) == 3


def test_the_users_own_containers_and_layers_are_kept():
    class Gate(L.Layer):
        def __init__(self, inner):
            self.inner = inner

        def setup(self, input_shape, new):
            return new.child("inner", self.inner, input_shape)

        def forward(self, x, train):
            y, _ = self.inner.forward(x, train)
            return x * y, None

    class Sure(L.Layer):
        """What knows itself what it is at prediction."""

        def forward(self, x, train):
            return x + 0.0, None

        def folded(self):
            return L.Identity()

    net = built(L.Sequential(Gate(L.Sequential(*conv_norm(3, 3, padding=1), Sure()))), (3, 5, 4))
    folded = net.for_inference()
    x = images((3, 5, 4))
    assert_close(folded(x), net(x), "forward")
    assert type(folded["0"]) is Gate
    assert [type(layer) for _, layer in folded["0"].inner.children()] == [L.Conv2d]


@pytest.mark.parametrize("size", [(8, 8), (9, 7)])
@pytest.mark.parametrize("padding", [1, (2, 1, 0, 2)])
def test_wide_convolutions_of_several_images_take_winograds_way(size, padding, monkeypatch):
    shape, taken = (128, *size), []
    monkeypatch.setattr(winograd, "convolve", lambda *a, f=winograd.convolve: taken.append(a) or f(*a))
    net = built(L.Sequential(*conv_norm(128, 3, padding=padding), L.ReLU(), L.Conv2d(130, 3)), shape, "float32")
    folded, x = net.for_inference(), images(shape, 14, "float32")
    assert_close(folded(x[:1]), net(x[:1]), "forward")
    assert not taken
    expected = net(x)
    taken.clear()
    assert_close(folded(x), expected, "forward")
    assert taken


@pytest.mark.cupy
@pytest.mark.parametrize(
    ("make", "shape", "saved"),
    [
        (norm_net, (1, 8, 8), 1),
        (lambda: L.Sequential(*conv_norm(4, 3, bias=False), L.ReLU()), (3, 6, 5), 0),  # the bias takes its place
        (lambda: zoo.build("vgg11_bn", classes=10, stem="cifar"), (3, 32, 32), 8),
    ],
)
def test_a_convolution_with_bias_takes_one_kernel_fewer(make, shape, saved, cuda_calls):
    net = built(make(), shape, "float32", "cuda:0")
    folded, x = net.for_inference(), images(shape, 2, "float32", net.xp)
    launches = []
    for network in (net, folded):
        network(x)
        with cuda_calls() as calls:
            y = network(x)
        launches.append(calls["kernel_launch"])
    assert_close(y, net(x), "forward")
    assert launches[0] - launches[1] == saved


def test_float16_runs_without_plans():
    net = built(L.Sequential(*conv_norm(6, 3), L.ReLU(), L.GlobalAvgPool2d(), L.Dense(3)), (3, 7, 6), "float32")
    x = images((3, 7, 6), 4, "float32")
    expected = net(x)
    half = net.for_inference().forward(batch_last(x).astype("float16"), False)[0].T
    assert half.dtype == np.float16
    assert_close(half, expected, "mixed precision")
    y = net.to(dtype="float16").for_inference()(x)
    assert y.dtype == np.float16
    assert_close(y, expected, "mixed precision")


def test_other_inputs():
    net = built(L.Sequential(*conv_norm(6, 3), L.ReLU(), L.GlobalAvgPool2d()), (3, 7, 6), "float32")
    folded, x = net.for_inference(), images((3, 9, 8), 4, "float32")
    assert_close(folded(x), net(x), "forward")  # of another size than it was built for
    assert_close(folded(x[:, :, ::2, ::-1].astype("float64")), net(x[:, :, ::2, ::-1]), "forward")
    pixels = (np.abs(x) * 60).astype(np.uint8)
    assert_close(folded(pixels), net(pixels), "forward")
    assert folded(x[:0]).shape == net(x[:0]).shape == (0, 6)
    with pytest.raises(ShapeError, match=r"layer '0' expects the input that fits its weight of shape \(6, 3, 3, 3\)"):
        folded(x[:, :2])
    with pytest.raises(ShapeError, match="dtype float32 and received an input of dtype float64"):
        folded.forward(batch_last(x).astype("float64"), False)


def test_a_network_without_weights_takes_the_dtype_of_its_input():
    net = L.Sequential(L.Dropout(), L.MaxPool2d(2))
    net.build((3, 6, 4))
    for dtype in ("float16", "float32", "float64"):
        y = net.for_inference()(images((3, 6, 4), 2, dtype))
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, net(images((3, 6, 4), 2, dtype)))


def test_very_wide_rows_are_left_to_the_layer(monkeypatch):
    net = built(L.Sequential(*conv_norm(6, 3), L.ReLU(), L.Conv2d(2, 3)), (3, 7, 6))
    x = images((3, 7, 6))
    expected = net(x)
    monkeypatch.setattr("xpcnn.plan.CHUNK", 16)
    assert_close(net.for_inference()(x), expected, "forward")


def test_what_is_too_large_goes_through_in_turns(monkeypatch):
    net = built(L.Sequential(*conv_norm(6, 3), L.ReLU()), (3, 7, 6))
    x = images((3, 7, 6), 11)
    expected = net(x)
    monkeypatch.setattr(inference, "LARGEST", 3 * 6 * 5 * 4 * 8)  # three images
    for small in (inference.SMALL, 0):
        monkeypatch.setattr(inference, "SMALL", small)
        folded = net.for_inference()
        assert_close(folded(x), expected, "forward")
        assert max(count for _, count, _ in folded._plans) <= 3


# --- the network that it came from ------------------------------------------------------------------------------


def test_the_network_stays_as_it_was_and_shares_what_did_not_change():
    net = built(L.Sequential(*conv_norm(4, 3), L.ReLU(), L.Flatten(), L.Dense(3)), (2, 5, 5))
    before = {name: array.copy() for name, array in net.state_dict().items()}
    owners = {p.owner for p in net.parameters().values()}
    folded = net.for_inference()
    folded(images((2, 5, 5)))
    assert {p.owner for p in net.parameters().values()} == owners
    assert net.has_trainable
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    assert folded.state_dict().keys() == {"0.weight", "0.bias", "4.weight", "4.bias"}
    assert np.shares_memory(folded.state_dict()["4.weight"], net.state_dict()["4.weight"])
    assert not np.shares_memory(folded.state_dict()["0.weight"], net.state_dict()["0.weight"])
    assert not folded.has_trainable
    assert folded.input_shape == (2, 5, 5)
    again = folded.for_inference()
    assert isinstance(again.body, L.Sequential)
    np.testing.assert_array_equal(again(images((2, 5, 5))), folded(images((2, 5, 5))))


def test_it_must_have_been_built():
    with pytest.raises(ArgumentError, match=r"has not been built: call net\.build\(input_shape\), or train it, first"):
        norm_net().for_inference()


def test_it_cannot_be_trained():
    net = built(norm_net(), (1, 8, 8))
    folded = net.for_inference()
    for train in (True, Step()):
        with pytest.raises(ArgumentError, match=r"cannot be trained.* Train the network it was made from, then call"):
            folded.forward(batch_last(images((1, 8, 8))), train)
    with pytest.raises(ArgumentError, match="cannot be trained"):
        folded.unfreeze()
    folded.freeze()
    assert not folded.has_trainable


def test_gradients_of_the_input_are_those_at_prediction():
    net = built(norm_net(), (1, 8, 8))
    x, step = batch_last(images((1, 8, 8))), Step(inference=True)
    found = []
    for network in (net, net.for_inference()):
        y, ctx = network.forward(x, step)
        found.append(network.backward(np.ones_like(y), ctx))
    assert_close(found[1], found[0], "forward")


# --- plans ------------------------------------------------------------------------------------------------------


@pytest.fixture
def one_thread():
    before = backend.threads()
    backend.set_threads(1)
    yield
    backend.set_threads(before)


@pytest.mark.parametrize("count", [1, 12])
def test_a_call_takes_no_memory_but_for_its_output(count, one_thread):
    net = built(zoo.build("vgg11_bn", classes=10, stem="cifar"), (3, 32, 32), "float32")
    folded, x = net.for_inference(), images((3, 32, 32), count, "float32")
    peaks = {}
    for name, network in (("net", net), ("folded", folded)):
        for _ in range(2):
            network(x)
        tracemalloc.start()
        network(x)
        peaks[name] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    largest = count * 64 * 32 * 32 * 4
    assert peaks["net"] > largest
    assert peaks["folded"] < 200_000  # some of NumPy's buffers of 8,192 elements


def test_outputs_are_the_callers():
    folded = built(norm_net(), (1, 8, 8)).for_inference()
    x = images((1, 8, 8), 4)
    first = folded(x)
    kept = first.copy()
    folded(x[::-1])
    np.testing.assert_array_equal(first, kept)
    assert not any(np.shares_memory(first, p.output.view()) for plans in folded._plans.values() for p in plans)


@pytest.mark.parametrize("small", [0, inference.SMALL])
def test_threads_may_predict_at_the_same_time(small, monkeypatch):
    monkeypatch.setattr(inference, "SMALL", small)  # below, a call is shared by layers, else by images
    monkeypatch.setattr("xpcnn.plan.LONG", 0)
    folded = built(residual(), (3, 6, 5), "float32").for_inference()
    batches = [images((3, 6, 5), 7, "float32") + i for i in range(8)]
    expected = [folded(x) for x in batches]
    faults, gate = [], threading.Barrier(8)

    def predict(i):
        gate.wait()
        faults.extend(i for _ in range(30) if not np.array_equal(folded(batches[i]), expected[i]))

    threads = [threading.Thread(target=predict, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert sum(map(len, folded._plans.values())) <= 8 * (1 if small else backend.lanes())


def test_the_number_of_threads_does_not_change_the_bits(monkeypatch):
    monkeypatch.setattr(inference, "SMALL", 0)
    monkeypatch.setattr("xpcnn.plan.LONG", 0)
    folded = built(residual(), (3, 6, 5), "float32").for_inference()
    x, results, before = images((3, 6, 5), 13, "float32"), [], backend.threads()
    try:
        for count in (1, 2, 3):
            backend.set_threads(count, lanes=4)
            results.append(np.concatenate([folded(x), folded(x[:1])]))
    finally:
        backend.set_threads(before)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_only_so_many_plans_are_kept(monkeypatch):
    folded = built(norm_net(), (1, 8, 8)).for_inference()
    folded(images((1, 8, 8), 1))
    (plan,) = next(iter(folded._plans.values()))
    monkeypatch.setattr(inference, "KEPT", 6 * plan.bytes)
    for count in (1, 2, 3, 2):
        folded(images((1, 8, 8), count))
    assert [count for _, count, _ in folded._plans] == [1, 3, 2]  # least recently used first
    folded(images((1, 8, 8), 4))
    assert [count for _, count, _ in folded._plans] == [2, 4]
    folded(images((1, 8, 8), 7))
    assert [count for _, count, _ in folded._plans] == [7]  # the one at hand always


def test_a_failing_call_leaves_no_broken_plan(monkeypatch):
    folded = built(norm_net(), (1, 8, 8)).for_inference()
    x = images((1, 8, 8), 2)
    expected = folded(x)

    def fail(self, x, y):
        raise FloatingPointError("on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(Plan, "run", fail)
        with pytest.raises(FloatingPointError, match="on purpose"):
            folded(x)
    assert sum(map(len, folded._plans.values())) == 0
    np.testing.assert_array_equal(folded(x), expected)


def test_new_weights_are_used():
    shape = (128, 4, 4)
    nets = [L.Sequential(*conv_norm(128, 3, padding=1), L.ReLU(), L.BatchNorm2d()) for _ in range(2)]
    folded = []
    for seed, net in enumerate(nets):
        net.build(shape, seed=seed)
        folded.append(randomise(net, seed).for_inference())
    x = images(shape, 16, "float32")
    before, expected = folded[0](x), folded[1](x)
    assert not np.array_equal(before, expected)
    folded[0].load_state_dict(folded[1].state_dict())
    np.testing.assert_array_equal(folded[0](x), expected)
    wide = folded[0].to(dtype="float64")
    assert wide.dtype == wide(x).dtype == np.float64
    assert_close(wide(x), expected, "forward", "float32")


def test_a_copy_is_a_network_of_its_own():
    folded = built(norm_net(), (1, 8, 8)).for_inference()
    x = images((1, 8, 8), 3)
    expected = folded(x)
    twin = copy.deepcopy(folded)
    for array in twin.state_dict().values():
        array[...] = 0.0
    np.testing.assert_array_equal(twin(x), np.zeros_like(expected))
    np.testing.assert_array_equal(folded(x), expected)


# --- files ------------------------------------------------------------------------------------------------------


def test_the_architecture_goes_into_a_file():
    folded = built(norm_net(), (1, 8, 8)).for_inference()
    again = from_config(config(folded))
    assert isinstance(again, Inference)
    again.build((1, 8, 8), dtype="float64")
    again.load_state_dict(folded.state_dict())
    x = images((1, 8, 8), 3)
    np.testing.assert_array_equal(again(x), folded(x))


def test_classifiers(tmp_path):
    x, t = quarters(60)
    classifier = small_classifier(norm_net(), ema=0.9, normalize="data", classes=["a", "b", "c"])
    with pytest.raises(ArgumentError, match="has not been trained"):
        classifier.for_inference()
    classifier.fit(x, t, epochs=3, verbose=False)
    fast = classifier.for_inference()
    expected = classifier.predict_proba(x)
    for part in (x[:1], x):
        assert_close(fast.predict_proba(part), expected[: len(part)], "forward")
    np.testing.assert_array_equal(fast.predict(x), classifier.predict(x))
    assert fast.evaluate(x, t).accuracy == classifier.evaluate(x, t).accuracy
    fast.save(tmp_path / "fast.safetensors")
    loaded = xpcnn.load(tmp_path / "fast.safetensors", device="cpu")
    assert isinstance(loaded.net, Inference)
    np.testing.assert_array_equal(loaded.predict_proba(x), fast.predict_proba(x))
    assert fast.summary().macs == classifier.summary().macs
    with pytest.raises(ArgumentError, match="cannot be trained"):
        fast.fit(x, t, epochs=1, verbose=False)
    classifier.fit(x, t, epochs=2, verbose=False)  # the average and the weights move on, the copy does not
    assert_close(fast.predict_proba(x), expected, "forward")


def test_onnx_files_hold_the_folded_network(tmp_path):
    from xpcnn.formats import onnx

    net = built(zoo.build("resnet20"), (3, 32, 32), "float32")
    folded, x = net.for_inference(), images((3, 32, 32), 2, "float32")
    onnx.save(folded, tmp_path / "net.onnx")
    again = onnx.load(tmp_path / "net.onnx")
    ops = [node.op for node in again.parsed]
    assert "BatchNormalization" not in ops
    assert ops.count("Conv") == 19
    assert again.state_dict().keys() == folded.state_dict().keys()
    assert_close(again(x), net(x), "forward")


def graph(nodes, trained, fixed, outputs=("y",)):
    """A Graph with numbers in it, built for (3, 5, 4)."""
    result = Graph(["x"], outputs, nodes, (), trained, fixed)
    result.build((3, 5, 4), dtype="float64")
    result.load_state_dict({name: normal(len(name), *a.shape) ** 2 + 0.1 for name, a in result.state_dict().items()})
    return result


NORM = ("BatchNormalization", "norm", ("c", "scale", "shift", "mean", "var"), ("n",), (("epsilon", 1e-3),))
STATE = [("w", (4, 3, 3, 3)), ("scale", (4,)), ("shift", (4,))], [("mean", (4,)), ("var", (4,))]


@pytest.mark.parametrize("bias", [(), ("b",)])
def test_graphs_are_folded_too(bias):
    nodes = [
        ("Identity", "i", ("x",), ("x2",), ()),
        ("Conv", "conv", ("x2", "w", *bias), ("c",), (("pads", (1, 1, 1, 1)),)),
        NORM,
        ("Dropout", "drop", ("n",), ("d",), ()),
        ("Relu", "relu", ("d",), ("r",), ()),
        ("Add", "add", ("r", "d"), ("y",), ()),
    ]
    net = graph(nodes, [*STATE[0], *((name, (4,)) for name in bias)], STATE[1])
    folded, x = net.for_inference(), images((3, 5, 4))
    assert_close(folded(x), net(x), "forward")
    assert [node.op for node in folded.body.parsed] == ["Conv", "Relu", "Add"]
    assert folded.state_dict().keys() == {"w", "shift"}
    assert net.state_dict().keys() == {"w", "scale", "shift", "mean", "var", *bias}


OTHER = ("BatchNormalization", "other", ("c", "scale2", "shift2", "mean", "var"), ("m",), ())


@pytest.mark.parametrize(
    "rest",
    [
        [NORM, ("Add", "add", ("n", "c"), ("y",), ())],  # the convolution's output is read elsewhere
        [NORM, ("Conv", "again", ("x", "w"), ("e",), ()), ("Add", "add", ("n", "e"), ("y",), ())],  # its weight is
        [NORM, ("Add", "add", ("n", "shift4"), ("y",), ()), ("Identity", "end", ("shift",), ("unused",), ())],
    ],
)
def test_what_others_read_is_not_folded(rest):
    nodes = [("Conv", "conv", ("x", "w"), ("c",), ()), *rest]
    net = graph(nodes, [*STATE[0], ("shift4", (1, 4, 1, 1))], STATE[1], ("y",) if len(rest) < 4 else ("y", "unused"))
    folded, x = net.for_inference(), images((3, 5, 4))
    assert_close(folded(x), net(x), "forward")
    folds = rest[-1][0] == "Identity"  # nobody reads what that makes
    assert ("BatchNormalization" in [node.op for node in folded.body.parsed]) != folds


def test_numbers_stay_on_their_device(xp):
    net = built(norm_net(), (1, 8, 8), "float32", "cpu" if xp is np else "cuda:0")
    folded = net.for_inference()
    assert {type(array) for array in folded.state_dict().values()} == {xp.ndarray}
    assert str(folded.device) == ("cpu" if xp is np else "cuda:0")
    there = copy.deepcopy(folded).to("cpu")
    x = images((1, 8, 8), 3, "float32")
    assert_close(there(x), to_numpy(net(xp.asarray(x))), "forward")
