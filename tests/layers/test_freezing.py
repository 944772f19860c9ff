"""Frozen layers keep nothing for backward that nobody needs, compute no gradient of theirs, and do not change."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import to_numpy
from references import batch_last
from strategies import normal
from tolerances import assert_close

from xpcnn import SGD, layers
from xpcnn.layers import (
    BatchNorm2d,
    Concat,
    Conv2d,
    Dense,
    DenseConcat,
    Dropout,
    Flatten,
    MaxPool2d,
    ReLU,
    Residual,
    Sequential,
    Step,
)
from xpcnn.training.memory import memory_of

LEAF = Step(seed=1, number=2, need_dx=False)


def body() -> Sequential:
    return Sequential(
        Conv2d(4, 3, padding=1),
        BatchNorm2d(),
        ReLU(),
        Residual(Sequential(Conv2d(4, 3, padding=1, bias=False), BatchNorm2d()), None, ReLU()),
        MaxPool2d(2),
        DenseConcat(Sequential(BatchNorm2d(), ReLU(), Conv2d(2, 1))),
        Concat(a=Conv2d(3, 1), b=Sequential(MaxPool2d(3, 1, 1), Conv2d(3, 1), ReLU())),
    )


def net_on(xp) -> Sequential:
    """Shapes: (2, 6, 6) -> features (6, 3, 3) -> middle (5, 3, 3) -> head (3,)."""
    middle = Sequential(Conv2d(5, 3, padding=1), BatchNorm2d(), ReLU(), Conv2d(5, 1))
    net = Sequential(features=body(), middle=middle, head=Sequential(Flatten(), Dense(3)))
    net.build((2, 6, 6), dtype="float64", device="cpu" if xp is np else "cuda:0")
    for i, (name, array) in enumerate(net.state_dict().items()):  # no statistics of 0 and 1
        array[...] = xp.asarray(normal(i, *array.shape)) ** 2 + 0.5 if "running" in name else array
    return net


def images(xp, count: int = 4):
    return xp.asarray(batch_last(normal(7, count, 2, 6, 6)))


def kept(net, ctx) -> int:
    """Bytes of what a forward pass keeps beside the network's own arrays."""
    flat = net.flat()
    own = set(memory_of([flat.data, flat.grad, *net.state_dict().values()]))
    return sum(size for piece, size in memory_of(ctx).items() if piece not in own)


def bits(net) -> dict[str, bytes]:
    return {name: to_numpy(array).tobytes() for name, array in net.state_dict().items()}


def train(net, steps: int = 3) -> None:
    optimizer = SGD(0.1, 0.9, weight_decay=0.1)
    x = images(net.xp)
    for number in range(steps):
        y, ctx = net.forward(x, Step(0, number, need_dx=False))
        net.backward(y, ctx, need_dx=False)
        optimizer.step(net)


def test_a_frozen_beginning_keeps_nothing(xp):
    net, x = net_on(xp), images(xp)
    y, ctx = net.forward(x, LEAF)
    whole = kept(net, ctx)
    net.freeze("features")
    net.freeze("middle")
    y, ctx = net.forward(x, LEAF)
    assert kept(net, ctx) == 5 * 3 * 3 * 4 * 8, "the input of the dense layer"
    assert whole > 10 * kept(net, ctx)
    net.freeze()
    y, ctx = net.forward(x, LEAF)
    assert kept(net, ctx) == 0
    assert net.backward(y, ctx, need_dx=False) is None


def test_a_frozen_middle_keeps_what_its_nonlinearities_need(xp):
    net = Sequential(
        Conv2d(3, 3, padding=1),
        Conv2d(5, 3, padding=1),
        BatchNorm2d(),
        Conv2d(4, 1),
        BatchNorm2d(),
        ReLU(),
        Conv2d(2, 1),
    )
    net.build((2, 6, 6), dtype="float64", device="cpu" if xp is np else "cuda:0")
    for path in "1234":
        net.freeze(path)
    _, ctx = net.forward(images(xp), LEAF)
    one = 6 * 6 * 4 * 8  # a channel
    assert kept(net, ctx) == 2 * one + 4 * one, "the inputs of the first and last layer; the latter is ReLU's output"


@pytest.mark.parametrize("frozen", ["features", "middle", "features.5", "features.3.0.weight"])
def test_state_stays_to_the_last_bit(xp, frozen):
    net = net_on(xp)
    net.freeze(frozen)
    before = bits(net)
    names = [name for name in before if name == frozen or name.startswith(frozen + ".")]
    train(net)
    after = bits(net)
    assert names
    assert [name for name in after if after[name] == before[name]] == names


@pytest.mark.parametrize("frozen", ["features", "middle"])
def test_gradients_of_the_rest_are_those_of_the_network_in_its_second_mode(xp, frozen):
    """Frozen batch norm is a fixed map, so the others learn as behind `Step(inference=True)` of that part."""
    net, twin, x = net_on(xp), net_on(xp), images(xp)
    net.freeze(frozen)
    y, ctx = net.forward(x, Step(need_dx=True))
    dx = net.backward(xp.ones_like(y), ctx)

    between, contexts = x, {}
    for name, part in twin.children():
        between, contexts[name] = part.forward(between, Step(inference=name == frozen))
    assert_close(y, to_numpy(between), "forward")
    gradient = xp.ones_like(y)
    for name, part in reversed(list(twin.children())):
        gradient = part.backward(gradient, contexts[name])
    assert_close(dx, to_numpy(gradient), "forward")
    for name, p in net.parameters().items():
        if p.trainable:
            assert_close(p.grad, to_numpy(twin.parameters()[name].grad), "forward")
        else:
            assert not to_numpy(p.grad).any()


def test_no_product_is_made_for_a_frozen_weight(monkeypatch):
    """Counted: products for weights, sums for biases, and gradients passed on."""
    made: dict[str, int] = {}

    def count(module, name, of):
        original = getattr(module, name)

        def spy(*arguments, **options):
            result = original(*arguments, **options)
            for kind in of(result):
                made[kind] = made.get(kind, 0) + 1
            return result

        monkeypatch.setattr(module, name, spy)

    def results(pair):
        return [kind for kind, value in zip(("dx", "dw"), pair, strict=True) if value is not None]

    count(layers.conv, "conv2d_backward", results)
    count(layers.dense, "dense_backward", results)
    count(layers.conv, "bias_gradient", lambda _: ["db"])
    count(layers.dense, "bias_gradient", lambda _: ["db"])

    def products(*frozen):
        net = net_on(np)
        for pattern in frozen:
            net.freeze(pattern)
        made.clear()
        y, ctx = net.forward(images(np), LEAF)
        net.backward(y, ctx, need_dx=False)
        return dict(made)

    # features: 5 convolutions, one without bias; the first passes nothing on. middle: 2. head: 1 dense
    assert products() == {"dx": 7, "dw": 8, "db": 7}
    assert products("features") == {"dx": 2, "dw": 3, "db": 3}
    assert products("features", "middle") == {"dw": 1, "db": 1}
    assert products("middle") == {"dx": 7, "dw": 6, "db": 5}
    assert products("head", "middle") == {"dx": 7, "dw": 5, "db": 4}
    assert products("*.bias") == {"dx": 7, "dw": 8}
    assert products("*") == {}


def test_frozen_batch_norm_keeps_its_input_only_while_something_is_learned(xp):
    layer, x = BatchNorm2d(), images(xp)
    layer.build((2, 6, 6), dtype="float64", device="cpu" if xp is np else "cuda:0")
    expected = {}
    for frozen, step in (((), Step(inference=True)), (("weight", "bias"), Step())):
        for name in frozen:
            layer.freeze(name)
        for relu in (False, True):
            y, ctx = layer.forward(x, step, relu=relu)
            assert (id(x) in memory_of(ctx)) == (not frozen)
            dx = to_numpy(layer.backward(y, ctx))
            np.testing.assert_array_equal(dx, expected.setdefault(relu, dx))
            assert layer.backward(y, ctx, need_dx=False) is None


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_half_frozen_batch_norm_trains_the_other_half(xp, frozen):
    """Batch statistics and running means go on: the layer still learns."""
    layer, x = BatchNorm2d(), images(xp)
    layer.build((2, 6, 6), dtype="float64", device="cpu" if xp is np else "cuda:0")
    layer.freeze(frozen)
    y, ctx = layer.forward(x, True)
    assert_close(y.mean(axis=(1, 2, 3)), np.zeros(2), "forward")
    layer.backward(x, ctx)
    gradients = {name: to_numpy(p.grad).any() for name, p in layer.parameters().items()}
    assert gradients == {"weight": frozen == "bias", "bias": frozen == "weight"}
    assert to_numpy(layer.running_mean.data).any()


def test_dropout_in_a_frozen_part_still_drops(xp):
    """As in torch: freezing is about parameters; only batch norm changes its mode with them."""
    net = Sequential(Dense(50), Dropout(0.5), Dense(2))
    net.build((3,), device="cpu" if xp is np else "cuda:0")
    net.freeze("0")
    x = xp.ones((3, 2), "float32")
    one, two, three = (net.forward(x, Step(0, number, need_dx=False))[0] for number in (1, 2, 1))
    assert (to_numpy(one) != to_numpy(two)).any()
    np.testing.assert_array_equal(to_numpy(one), to_numpy(three))


# --- another layer in its place ---------------------------------------------------------------------------------


def test_a_layer_is_replaced_by_path(xp):
    net = net_on(xp)
    before = bits(net)
    net.freeze("features")
    net.replace("head.1", Dense(5))
    net.replace("features.6.b.1", Conv2d(3, 1, bias=False))
    assert net.build((2, 6, 6), seed=4) == (5,)
    after = bits(net)
    assert {name for name in before if after.get(name) != before[name]} == {
        "head.1.weight",
        "head.1.bias",
        "features.6.b.1.weight",
        "features.6.b.1.bias",
    }
    assert "features.6.b.1.bias" not in after
    assert {p.data.dtype.name for p in net.parameters().values()} == {"float64"}
    assert net.parameters()["features.6.b.1.weight"].trainable, "what is new is trained"
    assert not net.parameters()["features.6.a.weight"].trainable
    again = net_on(xp)
    again.replace("head.1", Dense(5))
    again.build((2, 6, 6), seed=4)
    assert bits(again)["head.1.weight"] == after["head.1.weight"], "from seed and name alone"
    train(net)


def test_a_layer_used_twice_is_replaced_twice():
    shared = Dense(3)
    net = Sequential(shared, ReLU(), shared)
    net.replace(0, Dense(3, bias=False))
    assert [layer.bias for _, layer in net.children() if isinstance(layer, Dense)] == [False, False]
    assert len(net.leaves()) == 2


def test_residual_branches_are_replaced():
    net = Sequential(Residual(Sequential(conv=Conv2d(2, 1)), Conv2d(2, 1)))
    net.replace("0.downsample", Conv2d(3, 1))
    net.replace("0.conv", Conv2d(3, 1))
    assert net.build((1, 2, 2)) == (3, 2, 2)


def test_a_replacement_must_be_a_layer_in_a_place_that_exists():
    net = net_on(np)
    with pytest.raises(layers.base.ArgumentError, match=r"no layer at 'fc'; known paths: features, features\.0"):
        net.replace("fc", Dense(5))
    with pytest.raises(layers.base.ArgumentError, match=r"replace expects a layer such as Dense\(5\); received 5"):
        net.replace("head.1", 5)


def test_before_it_is_built_the_new_layer_says_so():
    net = net_on(np)
    net.replace("head.1", Dense(5))
    with pytest.raises(
        layers.base.ShapeError, match=r"Dense\(5\) has no parameters yet: call net\.build\(input_shape\)"
    ):
        net.forward(images(np), False)
