"""Mixed precision: float16 arithmetic, float32 weights, and a loss scale that leaves out what overflows."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
from helpers import to_numpy
from strategies import normal
from tolerances import TOLERANCES, assert_close
from toys import place, quarters, small_classifier

import xpcnn
from xpcnn import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    ArgumentError,
    AuxiliaryHead,
    AvgPool2d,
    BatchNorm2d,
    Classifier,
    Concat,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    LossScale,
    MaxPool2d,
    ReLU,
    Residual,
    RMSprop,
    Sequential,
    ShapeError,
    StateDictError,
    Step,
    backend,
    batch_last,
    softmax_cross_entropy,
)
from xpcnn.data import mnist
from xpcnn.functional import fused

TRAIN, TEST = quarters(90), quarters(30, seed=1)


def net_of_everything(classes=3):
    block = Residual(Sequential(Conv2d(6, 3, padding=1, bias=False), BatchNorm2d()), activation=ReLU())
    wide = Concat(Conv2d(4, 1), Sequential(Conv2d(2, 3, padding=1, groups=2), ReLU()))
    return Sequential(
        *(Conv2d(6, 3, padding="same"), BatchNorm2d(), ReLU(), block, wide, MaxPool2d(2)),
        AuxiliaryHead(Sequential(Flatten(), Dense(classes))),
        *(Conv2d(8, 3, stride=2, padding=1), ReLU(), AvgPool2d(2), Dropout(0.2), GlobalAvgPool2d(), Dense(classes)),
    )


def gradients(net, x, t, scale=None):
    """Return (logits, gradient by name) of one training step."""
    outputs, ctx = net.forward(x, Step(seed=0, number=3, need_dx=False))
    logits = outputs.astype("float32")
    _, dlogits = softmax_cross_entropy(logits, t)
    for head in xpcnn.layers.auxiliaries(ctx):
        side = softmax_cross_entropy(head.logits.astype("float32"), t)[1]
        head.gradient = side if scale is None else scale.apply(side, x.dtype)
    net.backward(dlogits if scale is None else scale.apply(dlogits, x.dtype), ctx, need_dx=False)
    return outputs, {name: to_numpy(p.grad).copy() for name, p in net.parameters().items()}


def test_a_step_is_close_to_float32_and_float16_throughout(xp):
    net = net_of_everything()
    net.build((2, 8, 8), device=place(xp))
    x, t = xp.asarray(batch_last(normal(1, 5, 2, 8, 8, dtype="float32"))), xp.asarray(np.arange(5) % 3)
    exact, expected = gradients(net, x, t)
    net.flat().grad.fill(0)
    scale = LossScale(2.0**10)
    half, found = gradients(net, x.astype("float16"), t, scale)
    assert half.dtype == "float16"
    assert_close(half, to_numpy(exact), "mixed precision")
    finite, _ = scale.unscale(net.flat().grad)
    assert bool(finite)
    for name, parameter in net.parameters().items():
        assert parameter.data.dtype == parameter.grad.dtype == found[name].dtype == "float32"
        assert_close(to_numpy(parameter.grad).astype("float16"), expected[name], "mixed precision")


def test_only_float16_goes_into_float32(xp):
    for layer, shape in ((Conv2d(2, 3), (1, 4, 4)), (Dense(2), (3,))):
        layer.build(shape, device=place(xp))
        layer.forward(xp.ones((*shape, 1), "float16"), False)
        with pytest.raises(ShapeError, match="parameters of dtype float32 and received an input of dtype float64"):
            layer.forward(xp.ones((*shape, 1), "float64"), False)
        layer.to(dtype="float64")
        with pytest.raises(ShapeError, match="parameters of dtype float64 and received an input of dtype float16"):
            layer.forward(xp.ones((*shape, 1), "float16"), False)


def test_products_of_float16_are_summed_in_float32(xp):
    a, b = xp.full((2, 5000), 0.25, "float16"), xp.full((5000, 3), 0.25, "float16")
    out = xp.empty((2, 3), "float16")
    for product in (backend.product(a, b, out), backend.matmul(a, b, out), backend.matmul_transposed(a, b.T, out)):
        assert (product == 312.5).all()  # adding 1/16 to 256 changes nothing in float16


# --- the loss scale ---------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "SGD": lambda: SGD(0.1),
    "momentum": lambda: SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "Adagrad": lambda: Adagrad(0.1, lr_decay=0.5),
    "RMSprop": lambda: RMSprop(0.1, momentum=0.9, centered=True),
    "Adam": lambda: Adam(0.1, weight_decay=0.01, clip_norm=1.0),
    "AdamW": lambda: AdamW(0.1),
}


def dense(xp):
    net = Sequential(Dense(3), Dense(2))
    net.build((4,), device=place(xp))
    return net


def step(net, optimizer, seed, scale=None, fault=None):
    """One update by random gradients, which carry the scale; `fault` is put among them."""
    flat = net.flat()
    gradient = net.xp.asarray(normal(seed, flat.grad.size, dtype="float32"))
    flat.grad[...] = gradient if scale is None else scale.apply(gradient, "float32")
    if fault is not None:
        flat.grad[7] = fault
    optimizer.step(net, scale=scale)
    assert not flat.grad.any()


def kept(net, optimizer):
    state = {name: array for name, array in optimizer.state_dict().items() if "/" in name}
    return {name: to_numpy(array).copy() for name, array in {**net.state_dict(), **state}.items()}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("context", [nullcontext, fused.disabled], ids=["kernels", "generic"])
def test_a_gradient_that_is_not_finite_leaves_everything_as_it_was(xp, name, context):
    with context():
        net, optimizer, scale = dense(xp), OPTIMIZERS[name](), LossScale()
        plain, reference = dense(xp), OPTIMIZERS[name]()
        for seed in range(3):
            for fault in (np.inf, -np.inf, np.nan)[seed:]:
                if seed:
                    before, size = kept(net, optimizer), float(scale.scale)
                    step(net, optimizer, 99, scale, fault)
                    after = kept(net, optimizer)
                    assert before.keys() == after.keys()
                    assert all((before[key] == after[key]).all() for key in before)
                    assert float(scale.scale) == size / 2
            step(net, optimizer, seed, scale)
            step(plain, reference, seed)
        assert int(scale.skipped) == 3
        expected = kept(plain, reference)
        for key, array in kept(net, optimizer).items():  # as if the faulty steps had never been
            assert_close(array, expected[key], "update")


def test_clipping_sees_gradients_without_the_scale(xp):
    for limit in ({"clip_norm": 0.5}, {"clip_value": 0.1}):
        net, plain, scale = dense(xp), dense(xp), LossScale()
        step(net, SGD(1.0, **limit), 1, scale)
        step(plain, SGD(1.0, **limit), 1)
        assert_close(net.flat().data, to_numpy(plain.flat().data), "update")


@pytest.mark.parametrize("context", [nullcontext, fused.disabled], ids=["kernels", "generic"])
def test_the_scale_halves_at_once_and_doubles_after_good_steps(xp, context):
    scale, sizes = LossScale(16.0, growth_steps=3), []
    with context():
        for fault in (0, 0, 0, np.nan, 0, 0, np.inf, 0, 0, 0, 0):
            gradient = xp.asarray(np.array([1.0, fault, 2.0], np.float32))
            before = float(scale.scale)
            scale.unscale(gradient)
            assert float(gradient[2]) == 2.0 / before
            sizes.append(float(scale.scale))
    assert sizes == [16, 16, 32, 16, 16, 16, 8, 8, 8, 16, 16]
    assert (int(scale.good), int(scale.skipped)) == (1, 2)


def test_the_kernel_looks_at_every_element(xp):
    for size in (1, 257, 300_000):
        for where in (0, size // 2, size - 1):
            gradient = xp.ones(size, "float32")
            assert bool(LossScale().unscale(gradient)[0])
            gradient[where] = np.nan
            assert not bool(LossScale().unscale(gradient)[0])


def test_the_state_of_a_scale_goes_round(xp):
    scale = LossScale(64.0, growth_steps=5)
    for fault in (0.0, np.inf, 0.0):
        scale.unscale(xp.asarray(np.array([fault], np.float32)))
    twin = LossScale(growth_steps=5)
    twin.load_state_dict(scale.state_dict())
    for name, value in {"scale": 32.0, "good": 1, "skipped": 1}.items():
        assert float(twin.state_dict()[name]) == value
    twin.unscale(xp.ones(3, "float32"))
    assert int(twin.good) == 2
    with pytest.raises(StateDictError, match="a loss scale has entries scale, good, skipped; received scale"):
        twin.load_state_dict({"scale": scale.scale})
    with pytest.raises(ArgumentError, match="LossScale expects start > 0 and growth_steps >= 1; received start=0"):
        LossScale(0)


# --- Classifier -------------------------------------------------------------------------------------------------


def test_a_classifier_in_mixed_precision(xp, tmp_path):
    def fitted(dtype, **options):
        clf = small_classifier(net_of_everything(), dtype=dtype, device=place(xp), optimizer=SGD(0.1, momentum=0.9))
        clf.fit(TRAIN, epochs=2, batch_size=15, verbose=False, **options)
        return clf

    clf = fitted("mixed_float16")
    assert clf.net.dtype == "float32"
    assert float(clf.scale.scale) > 0
    exact = fitted("float32")
    relative, absolute = TOLERANCES["mixed precision", "float16"]
    np.testing.assert_allclose(clf.history["loss"], exact.history["loss"], rtol=relative, atol=absolute)
    probabilities = clf.predict_proba(TEST[0])
    assert probabilities.dtype == "float32"
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-5)
    assert clf.evaluate(TEST).loss == pytest.approx(-np.log(probabilities[np.arange(30), TEST[1]]).mean(), rel=1e-3)

    clf.save(tmp_path / "model.safetensors")
    loaded = xpcnn.load(tmp_path / "model.safetensors", device=place(xp))
    assert loaded.net.dtype == "float32"
    np.testing.assert_allclose(loaded.predict_proba(TEST[0]), probabilities, rtol=relative, atol=absolute)


def test_micro_batches_in_mixed_precision():
    losses = []
    for options in ({}, {"micro_batch": 4}, {"accumulate": 2}):
        clf = small_classifier(dtype="mixed_float16")
        clf.fit(TRAIN, epochs=2, batch_size=15, verbose=False, **options)
        losses.append(clf.history["loss"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-2)
    assert losses[2][1] < losses[2][0]


def test_overflow_at_the_start_only_costs_steps():
    clf = small_classifier(dtype="mixed_float16")
    clf.scale = LossScale(2.0**24)
    clf.fit(TRAIN, epochs=6, batch_size=15, verbose=False)
    assert int(clf.scale.skipped) >= 5
    assert float(clf.scale.scale) == 2.0 ** (24 - int(clf.scale.skipped))
    assert clf.score(TEST) == 1.0


def test_a_network_in_another_dtype_is_refused():
    net = Sequential(Flatten(), Dense(3))
    net.build((1, 8, 8), dtype="float64")
    with pytest.raises(
        ArgumentError, match=r'dtype="mixed_float16" needs a network built in float32; this one is float64'
    ):
        small_classifier(net, dtype="mixed_float16").fit(TRAIN, verbose=False)


def test_digits_are_learned_as_well_as_in_float32():
    digits, _ = mnist()
    order = np.random.default_rng(0).permutation(len(digits))[:4000]
    x, y = np.stack([digits[i][0] for i in order]), digits.labels[order]
    accuracy = {}
    for dtype in ("float32", "mixed_float16"):
        net = Sequential(Conv2d(8, 5, stride=2), ReLU(), MaxPool2d(2), Flatten(), Dense(10))
        clf = Classifier(net, optimizer=Adam(3e-3), device="cpu", dtype=dtype)
        clf.fit(x[:2500], y[:2500], epochs=4, batch_size=50, verbose=False)
        accuracy[dtype] = clf.score(x[2500:], y[2500:])
    assert accuracy["float32"] > 0.9
    assert abs(accuracy["mixed_float16"] - accuracy["float32"]) <= 0.01
