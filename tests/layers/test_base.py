from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
from helpers import to_numpy
from references import batch_last
from strategies import normal
from tolerances import assert_close

import xpcnn
from xpcnn import init
from xpcnn.errors import ArgumentError, DeviceError, ShapeError, StateDictError
from xpcnn.layers import (
    AvgPool2d,
    BatchNorm1d,
    BatchNorm2d,
    Concat,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    Layer,
    LpPool2d,
    MaxPool2d,
    ReLU,
    Residual,
    Sequential,
    Step,
    config,
    from_config,
    register,
)
from xpcnn.optim import SGD


def net_of(**build) -> Sequential:
    net = Sequential(Conv2d(3, 3, padding=1), BatchNorm2d(), ReLU(), head=Sequential(Flatten(), Dense(2)))
    net.build((2, 4, 4), **build)
    return net


def images(n: int = 3, dtype: str = "float32") -> np.ndarray:
    return normal(1, n, 2, 4, 4, dtype=dtype)


# --- arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Conv2d(0, 3), r"out_channels must be a positive int; received 0"),
        (lambda: Conv2d(2.0, 3), r"out_channels must be a positive int; received 2\.0"),
        (lambda: Conv2d(True, 3), r"out_channels must be a positive int; received True"),
        (lambda: Conv2d(2, 0), r"kernel_size must be an int >= 1 or a pair of them; received 0"),
        (lambda: Conv2d(2, (3, 3, 3)), r"kernel_size must .*received \(3, 3, 3\)"),
        (lambda: Conv2d(2, "3"), r"kernel_size must .*received '3'"),
        (lambda: Conv2d(2, 3, stride=0), r"stride must be an int >= 1"),
        (lambda: Conv2d(2, 3, dilation=0), r"dilation must be an int >= 1"),
        (lambda: Conv2d(2, 3, padding="full"), r'"same" or "valid"; received \'full\''),
        (lambda: Conv2d(2, 3, padding=(1, 2, 3)), r"padding must be"),
        (lambda: Conv2d(2, 3, padding=None), r"padding must be .*received None"),
        (lambda: Conv2d(2, 3, groups=0), r"groups must be a positive int; received 0"),
        (lambda: Conv2d(3, 3, groups=2), r"out_channels must be divisible by groups; received 3 and 2"),
        (lambda: Dense(-1), r"out_features must be a positive int; received -1"),
        (lambda: MaxPool2d(2, padding=2), r"at most half the kernel size; received padding=2 and kernel_size=2"),
        (lambda: AvgPool2d((4, 1), padding=1), r"at most half the kernel size"),
        (lambda: MaxPool2d(2, stride=-1), r"stride must be an int >= 1"),
        (lambda: MaxPool2d(2, padding="same"), r"padding must be an int >= 0"),
        (lambda: LpPool2d(2, 0.5), r"p of LpPool2d must be at least 1; received 0\.5"),
        (lambda: LpPool2d(2, math.nan), r"p of LpPool2d must be at least 1; received nan"),
        (lambda: BatchNorm2d(eps=0.0), r"eps > 0 and momentum from 0 to 1; received eps=0\.0, momentum=0\.1"),
        (lambda: BatchNorm1d(momentum=1.5), r"received eps=1e-05, momentum=1\.5"),
        (lambda: Dropout(1.5), r"must lie between 0 and 1; received 1\.5"),
        (lambda: Dropout(-0.1), r"must lie between 0 and 1; received -0\.1"),
        (lambda: xpcnn.GELU("erf"), r'must be "none" or "tanh"; received \'erf\''),
        (lambda: xpcnn.Softplus(beta=0.0), r"beta of Softplus must be positive; received 0\.0"),
        (lambda: Residual(Dense(2), shortcut_name="forward"), r'"downsample" or "shortcut"; received \'forward\''),
        (lambda: xpcnn.Clip(1.0, 1.0), r"Clip expects low < high; received 1\.0 and 1\.0"),
        (lambda: xpcnn.PadChannels(0, -1), r"numbers of channels >= 0; received 0 and -1"),
        (lambda: xpcnn.LocalResponseNorm(0), r"size must be a positive int; received 0"),
        (lambda: xpcnn.AdaptiveAvgPool2d(0), r"output_size must be an int >= 1"),
        (
            lambda: Conv2d(2, 3, init="best").build((1, 3, 3)),
            r"init must be an Initializer or one of he_normal, .*'best'",
        ),
    ],
)
def test_impossible_arguments_are_refused(make, text):
    with pytest.raises(ArgumentError, match=text):
        make()


def test_arguments_are_kept_under_their_names():
    layer = Conv2d(4, (3, 2), stride=2, padding=[1, 0], dilation=1, groups=2, bias=False, init="he_normal")
    assert (layer.out_channels, layer.kernel_size, layer.stride, layer.padding) == (4, (3, 2), 2, (1, 0))
    assert (layer.dilation, layer.groups, layer.bias, layer.init) == (1, 2, False, "he_normal")
    assert repr(layer) == "Conv2d(4, (3, 2), stride=2, padding=(1, 0), groups=2, bias=False, init='he_normal')"


def test_defaults_are_those_of_torch():
    assert repr(Conv2d(2, 3)) == "Conv2d(2, 3)"
    assert (BatchNorm2d().eps, BatchNorm2d().momentum, BatchNorm2d().affine) == (1e-5, 0.1, True)
    lrn = xpcnn.LocalResponseNorm(5)
    assert (lrn.alpha, lrn.beta, lrn.k) == (1e-4, 0.75, 1.0)
    assert xpcnn.LeakyReLU().negative_slope == 0.01
    assert (xpcnn.Softplus().beta, xpcnn.Softplus().threshold) == (1.0, 20.0)
    assert Dropout().p == 0.5
    assert AvgPool2d(2).count_include_pad is True
    assert MaxPool2d(3).stride is None


# --- building ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (0, 4, 4), (2, -1, 4), (2.0, 4, 4), "abc"])
def test_build_refuses_what_is_no_shape(shape):
    with pytest.raises(ShapeError, match=r"build expects a shape such as \(C, H, W\) of positive ints; received"):
        Conv2d(2, 1).build(shape)


@pytest.mark.parametrize("dtype", ["int32", "complex64", "bool", "uint8"])
def test_build_refuses_what_is_no_float(dtype):
    with pytest.raises(ArgumentError, match=rf"dtype must be float16, float32 or float64; received '{dtype}'"):
        Conv2d(2, 1).build((1, 2, 2), dtype=dtype)


def test_build_refuses_another_size_where_parameters_depend_on_it():
    net = net_of()
    with pytest.raises(ShapeError, match=r"layer 'head\.1' expects the input that fits its weight of shape \(2, 48\)"):
        net.build((2, 5, 5))
    with pytest.raises(ShapeError, match=r"layer '0' expects .*weight of shape \(3, 2, 3, 3\)"):
        net.build((1, 4, 4))
    convolutions = Sequential(Conv2d(3, 3, padding=1), BatchNorm2d())
    convolutions.build((2, 4, 4))
    before = convolutions["0"].weight.data.copy()
    assert convolutions.build((2, 7, 5), seed=1) == (3, 7, 5)
    np.testing.assert_array_equal(convolutions["0"].weight.data, before)


def test_dtype_and_device_of_a_network(xp):
    name = "cpu" if xp is np else "cuda:0"
    net = net_of(dtype="float64", device=name)
    assert net.dtype == np.float64
    assert net.device == name
    assert net.xp is xp
    assert net["head.1"].xp is xp
    assert all(v.dtype == "float64" for v in net.state_dict().values())
    assert (ReLU().dtype, ReLU().device, ReLU().xp) == (np.float32, "cpu", np)


def test_a_network_moves_and_computes_the_same(xp):
    name = "cpu" if xp is np else "cuda:0"
    net = net_of()
    expected = net(images())
    assert net.to(name) is net
    assert net.device == name
    assert_close(net(xp.asarray(images())), expected, "sum of products")
    net.to("cpu")
    np.testing.assert_array_equal(net(images()), expected)


def test_a_network_changes_its_dtype():
    net = net_of()
    expected = net(images())
    net.to(dtype="float64")
    assert net.dtype == np.float64
    assert net["1"].running_mean.data.dtype == np.float64
    np.testing.assert_allclose(net(images()), expected, rtol=1e-5, atol=1e-6)
    y, ctx = net.forward(batch_last(images(dtype="float64")), True)
    net.backward(np.ones_like(y), ctx)
    assert net.flat().grad.dtype == np.float64


@pytest.mark.cupy
def test_arrays_on_another_device_are_refused():
    net = net_of(device="cuda:0")
    with pytest.raises(DeviceError, match=r"x on cpu, weight on cuda:0.*xpcnn\.to_device"):
        net(images())


def test_calling_turns_both_ways():
    net = net_of()
    y = net(images())
    assert y.shape == (3, 2)
    np.testing.assert_array_equal(y.T, net.forward(batch_last(images()), False)[0])
    assert Conv2d(3, 1).build((2, 4, 4)) == (3, 4, 4)


def test_integer_images_are_cast():
    net = net_of()
    pixels = np.arange(96, dtype=np.uint8).reshape(3, 2, 4, 4)
    np.testing.assert_array_equal(net(pixels), net(pixels.astype("float32")))


# --- layers by path, freezing -----------------------------------------------------------------------------------


def test_layers_by_path():
    net = net_of()
    assert isinstance(net["head"], Sequential)
    assert isinstance(net["head.1"], Dense)
    assert net[0] is net["0"]
    assert [path for path, _ in net.leaves()] == ["0", "1", "2", "head.0", "head.1"]
    with pytest.raises(ArgumentError, match=r"no layer at 'tail'; known paths: 0, 1, 2, head, head\.0, head\.1"):
        net["tail"]


def test_freezing_by_pattern_and_prefix():
    net = net_of()

    def frozen() -> list[str]:
        return [name for name, p in net.parameters().items() if not p.trainable]

    net.freeze("head")
    assert frozen() == ["head.1.weight", "head.1.bias"]
    net.unfreeze("head.1.bias")
    assert frozen() == ["head.1.weight"]
    net.unfreeze()
    assert frozen() == []
    net.freeze("*.bias")
    assert frozen() == ["0.bias", "1.bias", "head.1.bias"]
    net.freeze()
    assert not net.has_trainable
    net.unfreeze("[01].*")
    assert frozen() == ["head.1.weight", "head.1.bias"]
    with pytest.raises(ArgumentError, match=r"no parameter matches 'body\.\*'; known: 0\.weight, .*head\.1\.bias"):
        net.freeze("body.*")
    net.unfreeze()
    net.freeze("1")
    assert frozen() == ["1.weight", "1.bias"], "a prefix is a whole path, not the beginning of a number"


def test_freezing_survives_a_move():
    net = net_of()
    net.freeze("0")
    net.to(dtype="float64")
    assert [name for name, p in net.parameters().items() if not p.trainable] == ["0.weight", "0.bias"]


def arrays_in(ctx) -> list[np.ndarray]:
    if isinstance(ctx, np.ndarray):
        return [ctx]
    return [a for part in ctx for a in arrays_in(part)] if isinstance(ctx, (list, tuple)) else []


@pytest.mark.parametrize(("layer", "shape"), [(Conv2d(3, 3), (2, 5, 5)), (Dense(3), (6,))])
def test_a_frozen_weight_keeps_no_input(layer, shape):
    layer.build(shape, dtype="float64")
    x = batch_last(normal(1, 2, *shape))
    y, ctx = layer.forward(x, True)
    assert any(a is x for a in arrays_in(ctx))
    expected = layer.backward(np.ones_like(y), ctx)
    layer.freeze("weight")
    y, ctx = layer.forward(x, True)
    assert arrays_in(ctx) == []
    np.testing.assert_array_equal(layer.backward(np.ones_like(y), ctx), expected)


# --- batch norm -------------------------------------------------------------------------------------------------


def norm(xp, **options) -> BatchNorm2d:
    layer = BatchNorm2d(**options)
    layer.build((2, 3, 3), dtype="float64", device="cpu" if xp is np else "cuda:0")
    return layer


def test_running_statistics_are_unbiased_and_move_by_momentum(xp):
    layer, x = norm(xp, momentum=0.25), batch_last(normal(1, 4, 2, 3, 3)) * 3 + 2
    mean, var = np.zeros(2), np.ones(2)
    for _ in range(3):
        layer.forward(xp.asarray(x), True)
        mean = 0.75 * mean + 0.25 * x.mean(axis=(1, 2, 3))
        var = 0.75 * var + 0.25 * x.var(axis=(1, 2, 3), ddof=1)
    assert_close(layer.running_mean.data, mean, "forward")
    assert_close(layer.running_var.data, var, "forward")


def test_recomputation_and_inference_leave_running_statistics(xp):
    layer, x = norm(xp), xp.asarray(batch_last(normal(1, 4, 2, 3, 3)))
    for train in (False, Step(recompute=True), Step(inference=True)):
        layer.forward(x, train)
        np.testing.assert_array_equal(to_numpy(layer.running_mean.data), 0.0)
        np.testing.assert_array_equal(to_numpy(layer.running_var.data), 1.0)


def test_frozen_batch_norm_stays_in_inference_mode(xp):
    layer, x = norm(xp), xp.asarray(batch_last(normal(1, 4, 2, 3, 3)) * 5)
    layer.freeze()
    y, ctx = layer.forward(x, True)
    np.testing.assert_array_equal(to_numpy(y), to_numpy(layer.forward(x, False)[0]))
    np.testing.assert_array_equal(to_numpy(layer.running_mean.data), 0.0)
    dx = layer.backward(xp.ones_like(y), ctx)
    assert_close(dx, np.full(x.shape, 1 / math.sqrt(1 + 1e-5)), "forward")
    layer.unfreeze("bias")
    layer.forward(x, True)
    assert to_numpy(layer.running_mean.data).any(), "half frozen is in training mode"


@pytest.mark.parametrize("layer", [BatchNorm2d(), BatchNorm1d()])
def test_batch_norm_of_one_value_is_refused(layer):
    shape = (3, 1, 1) if isinstance(layer, BatchNorm2d) else (3,)
    layer.build(shape)
    x = np.zeros((*shape, 1), "float32")
    with pytest.raises(ArgumentError, match=r"needs more than one value per channel in training.*drop_last=True"):
        layer.forward(x, True)
    assert layer.forward(x, False)[0].shape == x.shape


# --- dropout ----------------------------------------------------------------------------------------------------


def test_dropout_mask_is_that_of_the_step(xp):
    layer = Sequential(ReLU(), Dropout(0.3))
    layer.build((50, 4, 4))
    x = xp.ones((50, 4, 4, 5), "float32")

    def mask(train) -> np.ndarray:
        y, ctx = layer.forward(x, train)
        dx = layer.backward(xp.ones_like(y), ctx)
        np.testing.assert_array_equal(to_numpy(dx), to_numpy(y))
        assert set(np.unique(to_numpy(y))) == {np.float32(0), np.float32(1 / 0.7)}
        return to_numpy(y) > 0

    first = mask(Step(1, 2))
    np.testing.assert_array_equal(first, mask(Step(1, 2)))
    np.testing.assert_array_equal(first, mask(Step(1, 2, recompute=True)))
    host = Sequential(ReLU(), Dropout(0.3))
    host.build((50, 4, 4))
    np.testing.assert_array_equal(first, host.forward(np.ones(x.shape, "float32"), Step(1, 2))[0] > 0)
    for other in (Step(1, 3), Step(2, 2), True):
        agreement = (first == mask(other)).mean()
        assert abs(agreement - (0.49 + 0.09)) < 0.05
    assert not np.array_equal(mask(True), mask(True))
    assert abs(first.mean() - 0.7) < 0.04


def test_dropout_at_inference_is_the_identity(xp):
    layer, x = Dropout(0.5), xp.asarray(normal(1, 6, 3))
    np.testing.assert_array_equal(to_numpy(layer.forward(x, False)[0]), to_numpy(x))
    y, ctx = layer.forward(x, Step(inference=True))
    np.testing.assert_array_equal(to_numpy(y), to_numpy(x))
    np.testing.assert_array_equal(to_numpy(layer.backward(x, ctx)), to_numpy(x))


def test_many_steps_draw_many_masks():
    layer = Dropout(0.5)
    layer.build((64,))
    x = np.ones((64, 1), "float32")
    masks = {layer.forward(x, Step(seed, number))[0].tobytes() for seed in range(20) for number in range(500)}
    assert len(masks) == 10_000


# --- state dict -------------------------------------------------------------------------------------------------


def test_state_dict_holds_the_arrays_themselves():
    net = net_of()
    state = net.state_dict()
    assert list(state) == [
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
        "head.1.weight",
        "head.1.bias",
    ]
    state["0.bias"][...] = 7
    assert (net["0"].bias.data == 7).all()


def test_load_state_dict_copies_and_casts(xp):
    net = net_of()
    state = {name: xp.asarray(value, dtype="float64") + 1 for name, value in net.state_dict().items()}
    flat = net.flat()
    net.load_state_dict(state)
    assert net.dtype == np.float32
    assert net.flat() is flat
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, to_numpy(state[name]).astype("float32"))


def test_a_state_dict_that_does_not_fit_changes_nothing():
    net = net_of()
    before = {name: value.copy() for name, value in net.state_dict().items()}
    good = {name: value + 1 for name, value in before.items()}
    bad = {name: value for name, value in good.items() if name != "1.bias"} | {"extra": np.zeros(1)}
    bad["head.1.weight"] = np.zeros((2, 49))
    with pytest.raises(StateDictError) as error:
        net.load_state_dict(bad)
    assert "missing: 1.bias" in str(error.value)
    assert "unexpected: extra" in str(error.value)
    assert "head.1.weight has shape (2, 49), expected (2, 48)" in str(error.value)
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    with pytest.raises(StateDictError, match=r"head\.1\.weight has shape"):
        net.load_state_dict(bad, strict=False)
    del bad["head.1.weight"]
    net.load_state_dict(bad, strict=False)
    np.testing.assert_array_equal(net["0"].bias.data, good["0.bias"])
    np.testing.assert_array_equal(net["1"].bias.data, before["1.bias"])


def test_num_batches_tracked_is_accepted():
    net = net_of()
    net.load_state_dict(net.state_dict() | {"1.num_batches_tracked": np.array(5)})


# --- flat buffers -----------------------------------------------------------------------------------------------


def test_parameters_are_views_of_one_array(xp):
    net = net_of(device="cpu" if xp is np else "cuda:0")
    flat = net.flat()
    assert flat.data.size == sum(p.data.size for p in net.parameters().values())
    flat.data.fill(3.0)
    flat.grad.fill(4.0)
    for p in net.parameters().values():
        assert (to_numpy(p.data) == 3).all()
        assert (to_numpy(p.grad) == 4).all()
        assert p.data.flags.c_contiguous
    assert net.flat() is flat


def test_runs_are_the_trainable_stretches():
    net = net_of()
    flat = net.flat()

    def runs() -> list[slice]:
        return [run for run, _ in flat.runs(lambda name: None)]

    assert runs() == [slice(0, flat.data.size)]
    net.freeze("1")
    sizes = [p.data.size for p in net.parameters().values()]
    start, stop = sum(sizes[:2]), sum(sizes[:4])
    assert runs() == [slice(0, start), slice(stop, flat.data.size)]
    net.freeze()
    assert runs() == []


def test_runs_end_where_the_terms_differ():
    net = net_of()
    flat = net.flat()
    net.freeze("head.1.weight")
    bias = {name: name.endswith("bias") for name in net.parameters()}
    starts = dict(zip(bias, flat.starts, strict=False))
    found = flat.runs(bias.get)
    assert [terms for _, terms in found] == [False, True, False, True, True]
    assert [run.start for run, _ in found] == [starts[n] for n in ("0.weight", "0.bias", "1.weight", "1.bias")] + [
        starts["head.1.bias"]
    ]
    assert found[-1][0].stop == flat.data.size


def test_a_part_of_a_network_may_be_a_network():
    net = net_of()
    before = {name: value.copy() for name, value in net.state_dict().items()}
    part = net["head"].flat()
    assert part.data.size == 98
    whole = net.flat()
    assert whole.data.size == sum(p.data.size for p in net.parameters().values())
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    whole.data.fill(0.5)
    assert all((p.data == 0.5).all() for p in net.parameters().values())


def test_a_network_without_parameters_has_empty_buffers():
    assert ReLU().flat().data.size == 0
    assert ReLU().flat().runs(len) == []


# --- configuration ----------------------------------------------------------------------------------------------


def test_initializers_go_through_configuration():
    net = Sequential(
        Conv2d(2, 3, init=init.Normal(0.3), bias_init="ones"),
        Flatten(),
        Dense(3, init=init.VarianceScaling(2.0, "out")),
    )
    again = from_config(json.loads(json.dumps(config(net))))
    assert again["0"].init == init.Normal(0.3)
    assert again["2"].init == init.VarianceScaling(2.0, "out")
    for one in (net, again):
        one.build((1, 4, 4), seed=3)
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, again.state_dict()[name])
    assert (again["0"].bias.data == 1).all()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({}, r"not that of a network"),
        ([], r"not that of a network"),
        ("Conv2d", r"not that of a network"),
        ({"layer": "os.system", "arguments": {}}, r"unknown layer 'os\.system'; known are .*Conv2d"),
        ({"layer": "Layer", "arguments": {}}, r"unknown layer 'Layer'"),
        ({"layer": ["Conv2d"], "arguments": {}}, r"unknown layer"),
        ({"layer": "ReLU"}, r"ReLU"),
        ({"layer": "Dense", "arguments": {"size": 3}}, r"gives Dense arguments it does not take"),
        ({"layer": "Dense", "arguments": {}}, r"gives Dense arguments it does not take"),
        ({"layer": "Dense", "arguments": {"out_features": "many"}}, r"out_features must be a positive int"),
        ({"layer": "Sequential", "arguments": {"0": {"again": 0}}}, r"refers to layer 0, which is not there"),
        ({"layer": "Sequential", "arguments": {"0": {"again": 7}}}, r"refers to layer 7, which is not there"),
        ({"layer": "Sequential", "arguments": {"0": {"again": "x"}}}, r"refers to layer 'x'"),
        ({"layer": "Sequential", "arguments": {"0": 5}}, r"expects layers; received 5"),
        (
            {"layer": "Dense", "arguments": {"out_features": 3, "init": {"init": "Pickle"}}},
            r"unknown initializer 'Pickle'",
        ),
        ({"layer": "Dense", "arguments": {"out_features": 3, "init": {"init": "Normal", "x": 1}}}, r"Normal"),
        ({"layer": "Conv2d", "arguments": {"out_channels": 3, "kernel_size": {"a": 1}}}, r"."),
    ],
)
def test_a_broken_description_is_refused(data, text):
    with pytest.raises(ArgumentError, match=text):
        from_config(data)


def test_only_registered_classes_can_be_described():
    class Mine(Layer):
        def __init__(self, size: int = 1) -> None:
            self.size = size

    with pytest.raises(
        ArgumentError, match=r"Mine cannot be written to a file: decorate the class with xpcnn\.register"
    ):
        config(Sequential(Mine()))
    with pytest.raises(ArgumentError, match=r"a layer class named ReLU is registered already"):
        register(type("ReLU", (Layer,), {}))


def test_a_registered_class_goes_round(monkeypatch):
    from xpcnn.layers import base

    monkeypatch.setattr(base, "_CLASSES", dict(base._CLASSES))

    @register
    class Scale(Layer):
        """x times a trained number; see CONTRIBUTING."""

        def __init__(self, start: float = 1.0) -> None:
            self.start = start
            self.weight = None

        def setup(self, input_shape, new):
            new.parameter(self, "weight", (1,), init.Constant(self.start))
            return input_shape

        def forward(self, x, train):
            return x * self.weight.data, x if train else None

        def backward(self, dy, ctx, need_dx=True):
            self.weight.accumulate((dy * ctx).sum().reshape(1))
            return dy * self.weight.data if need_dx else None

    net = Sequential(Scale(2.0), Scale())
    again = from_config(json.loads(json.dumps(config(net))))
    again.build((3,), dtype="float64")
    assert list(again.parameters()) == ["0.weight", "1.weight"]
    assert again["0"].weight.data == [2.0]
    from xpcnn.inspection import gradcheck

    assert gradcheck(again, normal(1, 4, 3)).passed


def test_a_layer_that_defines_nothing_says_so():
    class Empty(Layer):
        pass

    with pytest.raises(TypeError, match=r"Empty does not define forward"):
        Empty().forward(np.zeros(1), False)
    with pytest.raises(TypeError, match=r"Empty does not define backward"):
        Empty().backward(np.zeros(1), None)
    assert Empty().build((2, 3)) == (2, 3)
    assert Empty().macs((1,), (1,)) == 0


def test_two_networks_may_share_a_layer():
    shared = Dense(3)
    one, two = Sequential(shared, Dense(2)), Sequential(Dense(4), shared)
    one.build((4,), dtype="float64")
    two.build((5,), dtype="float64")
    weight = shared.weight.data.copy()
    for net in (one, two, one):
        net.flat().data[...] += 1.0
    np.testing.assert_allclose(shared.weight.data, weight + 3.0)


def test_parameters_say_what_they_are():
    net = net_of()
    assert repr(net["0"].weight) == "Parameter(shape=(3, 2, 3, 3), dtype=float32, trainable=True)"
    assert repr(net["1"].running_mean) == "Buffer(shape=(3,), dtype=float32)"


def test_containers_are_layers_to_each_other():
    net = Concat(a=Residual(Conv2d(2, 1)), b=Sequential(Conv2d(1, 1)))
    assert net.build((2, 3, 3)) == (3, 3, 3)


def test_a_deep_copy_trains_on_its_own(xp):
    net = Sequential(Dense(2), Dense(1))
    net.build((3,), device="cpu" if xp is np else "cuda:0")
    net.freeze("0")
    twin = copy.deepcopy(net)
    before = {name: to_numpy(array).copy() for name, array in net.state_dict().items()}
    twin.parameters()["1.weight"].grad[...] = 1.0
    SGD(0.5).step(twin)
    np.testing.assert_allclose(to_numpy(twin.state_dict()["1.weight"]), before["1.weight"] - 0.5)
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(to_numpy(array), before[name])
    assert [p.trainable for p in twin.parameters().values()] == [False, False, True, True]


def test_a_new_head_is_trained_with_the_rest():
    net = Sequential(body=Dense(3), head=Dense(2))
    net.build((4,))
    SGD(0.5).step(net)
    net.head = Dense(5)
    assert net.build((4,)) == (5,)
    before = {name: array.copy() for name, array in net.state_dict().items()}
    for parameter in net.parameters().values():
        parameter.grad[...] = 1.0
    SGD(0.5).step(net)
    for name, array in net.state_dict().items():
        np.testing.assert_allclose(array, before[name] - 0.5, rtol=1e-6)
