from __future__ import annotations

import numpy as np
import pytest
from helpers import to_numpy
from references import batch_last
from strategies import normal
from tolerances import assert_close

from xpcnn import init
from xpcnn.errors import ArgumentError, ShapeError
from xpcnn.inspection import gradcheck
from xpcnn.layers import (
    AuxiliaryHead,
    BatchNorm1d,
    BatchNorm2d,
    Concat,
    Conv2d,
    Dense,
    DenseConcat,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Layer,
    MaxPool2d,
    Recompute,
    ReLU,
    Residual,
    Sequential,
    Step,
    Tanh,
    auxiliaries,
    config,
    from_config,
)
from xpcnn.layers.containers import as_written


def images(n: int = 2, channels: int = 2, dtype: str = "float64") -> np.ndarray:
    return batch_last(normal(1, n, channels, 4, 4, dtype=dtype))


class Spy(Layer):
    """The identity, which notes how it is called."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    def forward(self, x, train):
        self.calls.append(train)
        return x, "kept" if train else None

    def backward(self, dy, ctx, need_dx=True):
        self.calls.append(("backward", ctx, need_dx))
        return dy if need_dx else None


# --- names ------------------------------------------------------------------------------------------------------


def test_two_parameters_of_one_name_are_refused():
    with pytest.raises(ArgumentError, match=r"two parameters are called 'weight'.*Concat\(left=\.\.\., right=\.\.\.\)"):
        Residual(Conv2d(2, 1), activation=BatchNorm2d()).build((2, 4, 4))
    with pytest.raises(ArgumentError, match=r"two parameters are called 'head\.0\.weight'"):
        Sequential(head=DenseConcat(Sequential(Concat(_a=Conv2d(1, 1), _b=Conv2d(1, 1))))).build((2, 4, 4))


@pytest.mark.parametrize(
    ("net", "names"),
    [
        (Concat(left=Conv2d(2, 1), right=Conv2d(3, 1)), ("left", "right")),
        (Concat(Conv2d(2, 1), Conv2d(3, 1)), ("0", "1")),
    ],
)
def test_branches_keep_all_their_parameters(net, names):
    assert net.build((2, 4, 4)) == (5, 4, 4)
    assert list(net.state_dict()) == [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]


def test_names_of_torchvision():
    block = Residual(
        Sequential(conv1=Conv2d(2, 3, padding=1, bias=False), bn1=BatchNorm2d(), relu=ReLU()),
        Sequential(Conv2d(2, 1, bias=False), BatchNorm2d()),
        ReLU(),
    )
    net = Sequential(conv1=Conv2d(2, 3, padding=1), layer1=Sequential(block), fc=Sequential(Flatten(), Dense(2)))
    net.build((1, 4, 4))
    assert list(net.parameters()) == [
        "conv1.weight",
        "conv1.bias",
        "layer1.0.conv1.weight",
        "layer1.0.bn1.weight",
        "layer1.0.bn1.bias",
        "layer1.0.downsample.0.weight",
        "layer1.0.downsample.1.weight",
        "layer1.0.downsample.1.bias",
        "fc.1.weight",
        "fc.1.bias",
    ]


def test_children_must_be_layers_with_free_names():
    with pytest.raises(ArgumentError, match=r"Sequential expects layers; received 3 of type int"):
        Sequential(ReLU(), 3)
    with pytest.raises(ArgumentError, match=r"Concat expects layers; received <class .*ReLU'> of type type"):
        Concat(ReLU)
    with pytest.raises(ArgumentError, match=r"Sequential cannot have a child named 'forward': the name is taken"):
        Sequential(forward=ReLU())


def test_length_children_and_representation():
    net = Sequential(Conv2d(2, 3), act=ReLU())
    assert len(net) == 2
    assert [name for name, _ in net.children()] == ["0", "act"]
    assert repr(net).splitlines() == ["Sequential(", "  0: Conv2d(2, 3)", "  act: ReLU()", ")"]
    assert "  0: Sequential(\n    0: ReLU()" in repr(Sequential(Sequential(ReLU())))


# --- shapes -----------------------------------------------------------------------------------------------------


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match=r"equal height and width.*output shapes \[\(2, 4, 4\), \(2, 2, 2\)\]"):
        Concat(Conv2d(2, 1), MaxPool2d(2)).build((2, 4, 4))
    with pytest.raises(ShapeError, match=r"branches"):
        Concat().build((2, 4, 4))
    with pytest.raises(ShapeError, match=r"of one shape; received \(3, 4, 4\) and \(2, 4, 4\).*1x1 Conv2d"):
        Residual(Conv2d(3, 1)).build((2, 4, 4))
    with pytest.raises(ShapeError, match=r"keeps height and width; received \(2, 4, 4\) to \(3, 2, 2\)"):
        DenseConcat(Conv2d(3, 3)).build((2, 4, 4))


def test_errors_name_the_layer_by_its_path():
    net = Sequential(features=Sequential(Conv2d(2, 3), Conv2d(2, 3)), head=Dense(3))
    with pytest.raises(ShapeError, match=r"layer 'features\.1': the kernel \(3, 3\)"):
        net.build((1, 4, 4))
    net = Sequential(features=Sequential(Conv2d(2, 3)), head=Dense(3))
    with pytest.raises(ShapeError, match=r"layer 'head' expects features of shape \(D,\).*Put a Flatten before it"):
        net.build((1, 4, 4))


def test_what_is_no_layer_is_refused_at_the_latest_by_build():
    with pytest.raises(ArgumentError, match=r"block: expected a layer; received 3\."):
        Sequential(block=Residual(3)).build((2, 4, 4))
    with pytest.raises(ArgumentError, match=r"expected a layer; received <class"):
        DenseConcat(ReLU).build((2, 4, 4))


# --- what is computed and kept, and what not ---------------------------------------------------------------------


def kept_by(ctx) -> list[Layer]:
    """The layers of a Sequential that keep something."""
    return [layer for layer, _ in ctx[1]]


def test_dx_that_was_given_up_cannot_be_had():
    net = Sequential(ReLU(), Conv2d(2, 1))
    net.build((2, 4, 4), dtype="float64")
    y, ctx = net.forward(images(), Step(need_dx=False))
    with pytest.raises(ArgumentError, match=r"cannot return dx: the forward pass ran with Step\(need_dx=False\)"):
        net.backward(np.ones_like(y), ctx)


@pytest.mark.parametrize("train", [True, False], ids=["train", "inference"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_layers_computed_together_give_the_bits_of_layers_apart(train, dtype, xp):
    net = Sequential(
        *(
            Conv2d(4, 3, padding=1),
            ReLU(),
            MaxPool2d(2, padding=1),
        ),  # here the ReLU moves behind the pooling, later it joins
        *(Conv2d(5, 3), BatchNorm2d(), ReLU(), MaxPool2d(2, 1)),
        *(Conv2d(8, 2, init="he_normal"), ReLU(), Conv2d(16, 1, init="he_normal"), BatchNorm2d(), ReLU(), ReLU()),
        *(Flatten(), Dense(6), BatchNorm1d(), ReLU(), Dense(3)),
    )
    net.build((2, 12, 10), dtype=dtype, device="cpu" if xp is np else "cuda:0")
    x = xp.asarray(batch_last(normal(1, 4, 2, 12, 10, dtype=dtype)))
    step = Step(inference=not train, recompute=True)
    results = []
    for apart in (False, True):
        token = as_written.set(apart)
        try:
            y, ctx = net.forward(x, step)
            dx = net.backward(xp.cos(y), ctx)
        finally:
            as_written.reset(token)
        assert len(ctx[1]) == (18 if apart else 15)
        gradients = [p.grad.copy() for p in net.parameters().values()]
        net.flat().grad.fill(0)
        results.append([to_numpy(array) for array in (y, dx, *gradients)])
    for together, separately in zip(*results, strict=True):
        assert np.abs(separately).max() > 0
        np.testing.assert_array_equal(together, separately)


def test_backward_stops_at_the_first_layer_that_learns():
    first, second, third = Spy(), Spy(), Spy()
    net = Sequential(first, second, Conv2d(2, 1), third, Conv2d(2, 1))
    net.build((2, 4, 4), dtype="float64")
    y, ctx = net.forward(images(), Step(number=1, need_dx=False))
    assert net.backward(np.ones_like(y), ctx, need_dx=False) is None
    assert kept_by(ctx) == [net["2"], third, net["4"]]
    assert first.calls == second.calls == [Step(number=1, need_dx=False)]
    assert third.calls == [Step(number=1), ("backward", "kept", True)]
    y, ctx = net.forward(images(), True)
    assert net.backward(np.ones_like(y), ctx).shape == y.shape
    assert first.calls[-1] == ("backward", "kept", True)


def test_a_frozen_beginning_keeps_nothing():
    net = Sequential(Conv2d(2, 3, padding=1), ReLU(), Sequential(Conv2d(2, 1), Spy()), Conv2d(2, 1))
    net.build((2, 4, 4), dtype="float64")
    net.freeze("0")
    net.freeze("2.*")
    y, ctx = net.forward(images(), Step(need_dx=False))
    assert kept_by(ctx) == [net["3"]]
    net.backward(np.ones_like(y), ctx, need_dx=False)
    names = [name for name, p in net.parameters().items() if p.grad.any()]
    assert names == ["3.weight", "3.bias"]
    net.freeze()
    y, ctx = net.forward(images(), Step(need_dx=False))
    assert kept_by(ctx) == []
    assert net.backward(np.ones_like(y), ctx, need_dx=False) is None


def test_layers_in_the_middle_that_do_not_learn_pass_the_gradient_on():
    net = Sequential(Conv2d(2, 1), Conv2d(3, 1), Conv2d(2, 1))
    net.build((2, 4, 4), dtype="float64")
    y, ctx = net.forward(images(), True)
    net.backward(np.ones_like(y), ctx, need_dx=False)
    expected = {name: p.grad.copy() for name, p in net.parameters().items()}
    for p in net.parameters().values():
        p.grad[...] = 0
    net.freeze("1")
    y, ctx = net.forward(images(), Step(need_dx=False))
    net.backward(np.ones_like(y), ctx, need_dx=False)
    for name, p in net.parameters().items():
        np.testing.assert_array_equal(p.grad, 0 if name.startswith("1.") else expected[name])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Concat(MaxPool2d(1), a=Conv2d(2, 1), b=Sequential(MaxPool2d(1), Conv2d(1, 1))),
        lambda: Residual(Sequential(ReLU(), Conv2d(2, 1))),
        lambda: Residual(Tanh(), Conv2d(2, 1), ReLU()),
        lambda: DenseConcat(Sequential(ReLU(), Conv2d(2, 1))),
        lambda: Residual(Sequential(BatchNorm2d(), ReLU())),
    ],
)
def test_containers_at_the_very_beginning_need_no_dx(make):
    """The gradients are the same whether or not dx is promised to be unwanted."""
    net = Sequential(make(), ReLU(), Conv2d(1, 1))
    net.build((2, 4, 4), dtype="float64")
    results = []
    for need_dx in (True, False):
        for p in net.parameters().values():
            p.grad[...] = 0
        y, ctx = net.forward(images(), Step(need_dx=need_dx))
        dx = net.backward(np.ones_like(y), ctx, need_dx)
        assert (dx is None) != need_dx
        results.append({name: p.grad.copy() for name, p in net.parameters().items()})
    for name, gradient in results[0].items():
        assert gradient.any()
        assert_close(results[1][name], gradient, "forward")


def test_one_step_reaches_all_children():
    spies = [Spy() for _ in range(6)]
    net = Sequential(
        spies[0], Concat(spies[1]), Residual(spies[2], spies[3], spies[4]), DenseConcat(Sequential(spies[5]))
    )
    net.build((2, 4, 4))
    step = Step(5, 6)
    net.forward(images(), step)
    assert [spy.calls for spy in spies] == [[step]] * 6
    net.forward(images(), True)
    assert len({spy.calls[1] for spy in spies}) == 1, "one fresh step for all"
    net.forward(images(), False)
    assert all(spy.calls[2] is False for spy in spies)


def test_a_layer_used_twice_adds_both_gradients():
    shared = Conv2d(2, 3, padding=1)
    net = Sequential(shared, Tanh(), shared, Flatten(), Dense(2))
    net.build((2, 4, 4), dtype="float64")
    assert list(net.parameters()) == ["0.weight", "0.bias", "4.weight", "4.bias"]
    assert gradcheck(net, np.moveaxis(images(), -1, 0)).passed
    again = from_config(config(net))
    again.build((2, 4, 4), dtype="float64")
    assert again["0"] is dict(again.children())["2"]
    again.load_state_dict(net.state_dict())
    np.testing.assert_array_equal(net.forward(images(), False)[0], again.forward(images(), False)[0])


def test_a_layer_used_twice_must_fit_both_times():
    shared = Conv2d(2, 1)
    with pytest.raises(ShapeError, match=r"layer '1' expects .*weight of shape \(2, 3, 1, 1\)"):
        Sequential(shared, shared).build((3, 4, 4))


# --- auxiliary heads --------------------------------------------------------------------------------------------


def auxiliary_net() -> Sequential:
    head = Sequential(fc=Sequential(GlobalAvgPool2d(), Dense(3)))
    net = Sequential(
        Conv2d(2, 3, padding=1), aux=AuxiliaryHead(head, weight=0.25), rest=Sequential(Flatten(), Dense(3))
    )
    net.build((2, 4, 4), dtype="float64")
    return net


def test_auxiliary_head_is_the_identity_at_inference():
    net = auxiliary_net()
    assert "aux.fc.1.weight" in net.parameters()
    y, ctx = net.forward(images(), False)
    assert ctx is None
    y_train, ctx = net.forward(images(), True)
    np.testing.assert_array_equal(y, y_train)
    assert len(auxiliaries(ctx)) == 1
    assert auxiliaries(ctx)[0].logits.shape == (3, 2)
    y_step, ctx = net.forward(images(), Step(inference=True))
    np.testing.assert_array_equal(y, y_step)
    assert auxiliaries(ctx) == []
    assert net.backward(np.ones_like(y), ctx).shape == images().shape


def test_auxiliary_gradient_is_weighted_and_joins_the_trunk(xp):
    """Against a plain net with the same weights, in which both losses are added by hand."""
    net = auxiliary_net().to("cpu" if xp is np else "cuda:0")
    x, dy, side = (xp.asarray(a) for a in (images(), normal(2, 3, 2), normal(3, 3, 2)))

    def run(main, auxiliary):
        for p in net.parameters().values():
            p.grad[...] = 0
        _, ctx = net.forward(x, True)
        if auxiliary is not None:
            auxiliaries(ctx)[0].gradient = auxiliary
        dx = net.backward(main, ctx)
        return {"dx": to_numpy(dx).copy()} | {name: to_numpy(p.grad).copy() for name, p in net.parameters().items()}

    trunk, head, both = run(dy, None), run(0 * dy, side), run(dy, side)
    assert not trunk["aux.fc.1.weight"].any()
    assert head["aux.fc.1.weight"].any()
    assert head["0.weight"].any()
    for name, value in both.items():
        assert_close(value, trunk[name] + head[name], "forward")
    features = net["0"].forward(x, False)[0].mean(axis=(1, 2))
    assert_close(both["aux.fc.1.weight"], 0.25 * to_numpy(side @ features.T), "forward")


def test_auxiliary_heads_are_found_in_order_through_all_containers():
    def head(k):
        return AuxiliaryHead(Sequential(GlobalAvgPool2d(), Dense(k)))

    net = Sequential(
        first=head(2),
        mid=Residual(Sequential(head=head(3)), Sequential(head=head(4))),
        last=Concat(x=head(5), y=ReLU()),
    )
    net.build((2, 4, 4), dtype="float64")
    _, ctx = net.forward(images(), True)
    assert [len(a.logits) for a in auxiliaries(ctx)] == [2, 3, 4, 5]
    assert auxiliaries(None) == []


def test_auxiliary_head_goes_through_configuration():
    net = auxiliary_net()
    again = from_config(config(net))
    assert again.aux.weight == 0.25
    again.build((2, 4, 4), dtype="float64")
    assert again.state_dict().keys() == net.state_dict().keys()


# --- initial values and dropout by path --------------------------------------------------------------------------


def test_equal_layers_start_differently_and_by_name():
    net = Sequential(Conv2d(2, 3, padding=1), Conv2d(2, 3, padding=1))
    net.build((2, 4, 4), seed=1)
    weights = [p.data for name, p in net.parameters().items() if name.endswith("weight")]
    assert not np.array_equal(*weights)
    other = Sequential(ReLU(), Conv2d(2, 3, padding=1), Dropout(), Conv2d(9, 1))
    other.build((2, 4, 4), seed=1)
    np.testing.assert_array_equal(other.parameters()["1.weight"].data, weights[1])


def test_initial_weights_are_equal_on_both_backends(xp):
    net = Sequential(Conv2d(2, 3), BatchNorm2d(), Flatten(), Dense(3, init=init.Orthogonal()))
    net.build((2, 4, 4), seed=5, device="cpu" if xp is np else "cuda:0")
    host = from_config(config(net))
    host.build((2, 4, 4), seed=5)
    assert str(net.device) == ("cpu" if xp is np else "cuda:0")
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(to_numpy(value), host.state_dict()[name])


def test_dropouts_of_one_net_draw_different_masks():
    net = Sequential(Dropout(0.5), Dropout(0.5))
    net.build((1000,))
    ones = np.ones((1000, 2), "float32")
    y, _ = net.forward(ones, Step(1, 2))
    assert abs((y == 4.0).mean() - 0.25) < 0.06


# --- recomputation ----------------------------------------------------------------------------------------------


def test_recompute_refuses_auxiliary_heads():
    net = Sequential(Recompute(Sequential(Conv2d(2, 3), AuxiliaryHead(Flatten()))))
    with pytest.raises(ShapeError, match=r"a body without AuxiliaryHead in Recompute; received one with it"):
        net.build((1, 5, 5))


def test_recompute_keeps_the_input_alone_and_changes_no_bit(xp):
    def make(wrap):
        body = Sequential(
            Conv2d(4, 3, padding=1), BatchNorm2d(), ReLU(), Dropout(0.4), Sequential(Conv2d(3, 1), BatchNorm2d())
        )
        net = Sequential(Conv2d(3, 1), wrap(body), Flatten(), Dense(2))
        net.build((2, 6, 5), device="cpu" if xp is np else "cuda:0")
        return net

    plain, saving = make(Identical), make(Recompute)
    x = xp.asarray(np.random.default_rng(0).standard_normal((2, 6, 5, 4)), dtype=xp.float32)
    contexts = []
    for net in (plain, saving):
        y, ctx = net.forward(x, Step(3, 7))
        contexts.append(ctx)
        net.backward(xp.ones_like(y), ctx)
    kept, step = contexts[1][1][1][1]  # of the second layer
    assert kept.shape == (3, 6, 5, 4)
    assert step == Step(3, 7, recompute=True)
    for (name, one), (other_name, other) in zip(plain.state_dict().items(), saving.state_dict().items(), strict=True):
        assert name == other_name
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))
    for one, other in zip(plain.parameters().values(), saving.parameters().values(), strict=True):
        assert float(abs(one.grad).sum()) > 0
        np.testing.assert_array_equal(to_numpy(one.grad), to_numpy(other.grad))


class Identical(Sequential):
    """Wraps a layer as `Recompute` does, adding nothing to the names."""

    def __init__(self, body):
        super().__init__(_body=body)
