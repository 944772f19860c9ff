from __future__ import annotations

import math

import numpy as np
import pytest
import references
from helpers import to_numpy
from strategies import normal
from tolerances import assert_close

from xpcnn import backend
from xpcnn.errors import ArgumentError, StateDictError
from xpcnn.layers import BatchNorm1d, Dense, Flatten, ReLU, Sequential
from xpcnn.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop
from xpcnn.training import EMA

# name -> (optimizer, textbook formula with the same settings)
SETTINGS = {
    "SGD": (lambda: SGD(0.1), (references.sgd, {"lr": 0.1})),
    "SGD, decay": (lambda: SGD(0.1, weight_decay=0.02), (references.sgd, {"lr": 0.1, "weight_decay": 0.02})),
    "SGD, momentum": (lambda: SGD(0.1, 0.9), (references.sgd, {"lr": 0.1, "momentum": 0.9})),
    "SGD, Nesterov, decay": (
        lambda: SGD(0.1, 0.8, nesterov=True, weight_decay=0.1),
        (references.sgd, {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
    ),
    "Adagrad": (lambda: Adagrad(0.1), (references.adagrad, {"lr": 0.1})),
    "Adagrad, all": (
        lambda: Adagrad(0.1, lr_decay=0.05, weight_decay=0.1, initial_accumulator_value=0.3, eps=1e-3),
        (references.adagrad, {"lr": 0.1, "lr_decay": 0.05, "weight_decay": 0.1, "start": 0.3, "eps": 1e-3}),
    ),
    "RMSprop": (lambda: RMSprop(0.01), (references.rmsprop, {"lr": 0.01})),
    "RMSprop, momentum": (lambda: RMSprop(0.01, momentum=0.9), (references.rmsprop, {"lr": 0.01, "momentum": 0.9})),
    "RMSprop, centered": (lambda: RMSprop(0.01, centered=True), (references.rmsprop, {"lr": 0.01, "centered": True})),
    "RMSprop, all": (
        lambda: RMSprop(0.02, alpha=0.9, eps=1e-4, momentum=0.5, centered=True, weight_decay=0.1),
        (
            references.rmsprop,
            {"lr": 0.02, "alpha": 0.9, "eps": 1e-4, "momentum": 0.5, "centered": True, "weight_decay": 0.1},
        ),
    ),
    "Adam": (lambda: Adam(0.01), (references.adam, {"lr": 0.01})),
    "Adam, all": (
        lambda: Adam(0.02, (0.8, 0.95), 1e-4, weight_decay=0.1),
        (references.adam, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1}),
    ),
    "AdamW": (lambda: AdamW(0.01), (references.adam, {"lr": 0.01, "weight_decay": 0.01, "decoupled": True})),
    "AdamW, all": (
        lambda: AdamW(0.02, (0.8, 0.95), 1e-4, weight_decay=0.3),
        (
            references.adam,
            {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.3, "decoupled": True},
        ),
    ),
}
every = pytest.mark.parametrize("name", SETTINGS)


def net_on(xp, dtype: str = "float64", **build) -> Sequential:
    net = Sequential(Dense(4), ReLU(), Dense(3))
    net.build((5,), dtype=dtype, device="cpu" if xp is np else "cuda:0", **build)
    return net


def gradients(net, steps: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """For each step a gradient by parameter name."""
    return [
        {
            name: normal(1000 * seed + 100 * step + i, *p.data.shape)
            for i, (name, p) in enumerate(net.parameters().items())
        }
        for step in range(steps)
    ]


def give(net, gradient: dict[str, np.ndarray]) -> None:
    for name, p in net.parameters().items():
        p.grad += net.xp.asarray(gradient[name], dtype=p.grad.dtype)


def weights(net) -> dict[str, np.ndarray]:
    return {name: to_numpy(p.data).copy() for name, p in net.parameters().items()}


def train(net, optimizer, steps) -> dict[str, np.ndarray]:
    for gradient in steps:
        give(net, gradient)
        optimizer.step(net)
    return weights(net)


@every
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_ten_steps_equal_the_textbook(xp, name, dtype):
    make, (formula, options) = SETTINGS[name]
    net = net_on(xp, dtype)
    before, steps = weights(net), gradients(net, 10)
    for parameter, value in train(net, make(), steps).items():
        given = [g[parameter].astype(dtype) for g in steps]
        assert value.dtype == dtype
        assert_close(value, formula(before[parameter], given, **options), "update")
    assert not to_numpy(net.flat().grad).any(), "the gradients are cleared"


@every
def test_blocks_and_threads_change_nothing(name, monkeypatch):
    make, _ = SETTINGS[name]
    nets = [net_on(np) for _ in range(2)]
    steps = gradients(nets[0], 3)
    expected = train(nets[0], make(), steps)
    monkeypatch.setattr(backend, "BLOCK", 7)
    monkeypatch.setattr(backend, "INLINE_WORK", 0)
    monkeypatch.setattr(backend, "_count", 3)
    for parameter, value in train(nets[1], make(), steps).items():
        np.testing.assert_array_equal(value, expected[parameter])


@every
def test_frozen_parameters_stay_even_under_weight_decay(xp, name):
    make, (formula, options) = SETTINGS[name]
    net = net_on(xp)
    before, steps = weights(net), gradients(net, 3)
    net.freeze("0.weight")
    net.freeze("2.bias")
    after = train(net, make(), steps)
    for parameter, value in after.items():
        if parameter in ("0.weight", "2.bias"):
            np.testing.assert_array_equal(value, before[parameter])
        else:
            assert_close(value, formula(before[parameter], [g[parameter] for g in steps], **options), "update")


@every
def test_a_parameter_unfrozen_late_begins_at_its_first_update(xp, name):
    make, (formula, options) = SETTINGS[name]
    net = net_on(xp)
    before, steps, optimizer = weights(net), gradients(net, 9), make()
    frozen = {"0.weight": range(4), "0.bias": (), "2.weight": range(2), "2.bias": range(4, 7)}
    for number, gradient in enumerate(steps):
        net.unfreeze()
        for parameter, p in net.parameters().items():
            if number in frozen[parameter]:
                net.freeze(parameter)
            p.accumulate(xp.asarray(gradient[parameter]))
        optimizer.step(net)
    for parameter, value in weights(net).items():
        seen = [g[parameter] for number, g in enumerate(steps) if number not in frozen[parameter]]
        assert_close(value, formula(before[parameter], seen, **options), "update")
    state = optimizer.state_dict()
    assert int(state["steps"]) == 9
    assert {n: int(state[f"missed/{n}"]) for n in frozen if f"missed/{n}" in state} == {
        "0.weight": 4,
        "2.weight": 2,
        "2.bias": 3,
    }


@every
def test_groups_have_learning_rates_and_weight_decays_of_their_own(xp, name):
    make, (formula, options) = SETTINGS[name]
    settings = make().settings()
    del settings["optimizer"]
    groups = {"*.bias": {"weight_decay": 0.0}, "2": {"lr": 0.3, "weight_decay": 0.07}}
    net, kind = net_on(xp), type(make())
    before, steps = weights(net), gradients(net, 6)
    optimizer = kind(**settings | {"groups": groups})
    train(net, optimizer, steps[:3])
    state, again = optimizer.state_dict(), kind(**settings | {"groups": groups})
    again.load_state_dict(state)
    own = {
        "0.weight": {},
        "0.bias": {"weight_decay": 0.0},
        "2.weight": {"lr": 0.3, "weight_decay": 0.07},
        "2.bias": {"weight_decay": 0.0},
    }
    for parameter, value in train(net, again, steps[3:]).items():
        expected = formula(before[parameter], [g[parameter] for g in steps], **options | own[parameter])
        assert_close(value, expected, "update")


def test_a_schedule_multiplies_every_learning_rate(xp):
    net, optimizer = net_on(xp), SGD(0.1, groups={"2": {"lr": 0.01}})
    before, (gradient,) = weights(net), gradients(net, 1)
    give(net, gradient)
    optimizer.step(net, 0.5)
    for name, value in weights(net).items():
        assert_close(value, before[name] - (0.005 if name[0] == "2" else 0.05) * gradient[name], "update")


def test_neighbours_on_equal_terms_are_updated_together():
    """Fine-tuning must not cost one call per parameter."""
    sizes = []

    class Spy(SGD):
        def update(self, w, g, state, scratch, terms):
            sizes.append((w.size, terms))
            super().update(w, g, state, scratch, terms)

    net = net_on(np)
    optimizer = Spy(0.1, groups={"0": {"lr": 0.01}})
    optimizer.step(net)
    assert sizes == [(24, (0.01, 0.0, 1)), (15, (0.1, 0.0, 1))]
    sizes.clear()
    net.freeze("0.bias")
    optimizer.step(net)
    assert sizes == [(20, (0.01, 0.0, 2)), (15, (0.1, 0.0, 2))]
    sizes.clear()
    net.unfreeze()
    optimizer.step(net)
    assert sizes == [(20, (0.01, 0.0, 3)), (4, (0.01, 0.0, 2)), (15, (0.1, 0.0, 3))]


def test_a_group_without_parameters_is_refused_at_the_first_step():
    net, optimizer = net_on(np), Adam(groups={"0": {"lr": 0.1}, "features.*": {"lr": 1e-4}})
    for _ in range(2):
        with pytest.raises(ArgumentError, match=r"no parameter matches 'features\.\*'; known: 0\.weight, .*2\.bias"):
            optimizer.step(net)


@every
def test_a_replaced_layer_starts_anew_and_the_others_go_on(xp, name):
    make, (formula, options) = SETTINGS[name]
    net, optimizer = net_on(xp), make()
    steps = gradients(net, 4)
    body = weights(net)
    train(net, optimizer, steps[:2])
    setattr(net, "2", Dense(3))
    net.build((5,), seed=1)
    head = weights(net)
    for parameter, value in train(net, optimizer, steps[2:]).items():
        before, seen = (body, steps) if parameter[0] == "0" else (head, steps[2:])
        assert_close(value, formula(before[parameter], [g[parameter] for g in seen], **options), "update")


@every
def test_state_goes_round_bit_for_bit(xp, name):
    """Five steps, save, load into another optimizer and net, five more: as ten steps in one go."""
    make, _ = SETTINGS[name]
    whole, first, second = (net_on(xp) for _ in range(3))
    steps = gradients(whole, 10)
    expected = train(whole, make(), steps)
    one, two = make(), make()
    train(first, one, steps[:5])
    assert two.state_dict().keys() == {"steps"}
    state = {key: to_numpy(value).copy() for key, value in one.state_dict().items()}
    assert int(state["steps"]) == 5
    assert {key.partition("/")[2] for key in state if "/" in key} in (set(), set(net_on(np).parameters()))
    second.load_state_dict(first.state_dict())
    two.load_state_dict(state)
    assert two.state_dict().keys() == state.keys()
    for parameter, value in train(second, two, steps[5:]).items():
        np.testing.assert_array_equal(value, expected[parameter])


@every
def test_a_network_may_move_between_steps(xp, name):
    make, _ = SETTINGS[name]
    stays, moves = net_on(np), net_on(np)
    steps = gradients(stays, 6)
    expected, optimizer = train(stays, make(), steps), make()
    train(moves, optimizer, steps[:3])
    moves.to("cpu" if xp is np else "cuda:0")
    for parameter, value in train(moves, optimizer, steps[3:]).items():
        assert_close(value, expected[parameter], "update")


def test_looking_at_a_part_does_not_reset_the_state():
    """Asking a child for its flat buffers makes new ones; momentum must survive that."""
    one, two = net_on(np), net_on(np)
    steps, optimizer = gradients(one, 4), SGD(0.1, 0.9)
    expected = train(one, SGD(0.1, 0.9), steps)
    train(two, optimizer, steps[:2])
    two["2"].flat()
    for parameter, value in train(two, optimizer, steps[2:]).items():
        assert_close(value, expected[parameter], "update")


def test_gradients_given_twice_are_one_gradient_twice_as_large(xp):
    one, two = net_on(xp), net_on(xp)
    (gradient,) = gradients(one, 1)
    give(one, gradient)
    give(one, gradient)
    SGD(0.1).step(one)
    give(two, {name: 2 * g for name, g in gradient.items()})
    SGD(0.1).step(two)
    for name, value in weights(one).items():
        assert_close(value, weights(two)[name], "update")


def test_learning_rate_of_one_step_and_assigned(xp):
    net, optimizer = net_on(xp), SGD(0.1)
    (gradient,) = gradients(net, 1)
    for lr in (0.1, 0.5, 0.0):
        before = weights(net)
        give(net, gradient)
        if lr == 0.5:
            optimizer.lr = lr
        optimizer.step(net, 0.0 if lr == 0.0 else 1.0)
        for name, value in weights(net).items():
            assert_close(value, before[name] - lr * gradient[name], "update")


# --- clipping ---------------------------------------------------------------------------------------------------


def joint_norm(gradient: dict[str, np.ndarray]) -> float:
    return math.sqrt(sum(float((g**2).sum()) for g in gradient.values()))


@pytest.mark.parametrize("limit", [0.5, 1e3])
def test_clipping_by_norm(xp, limit):
    net = net_on(xp)
    (gradient,) = gradients(net, 1)
    before, factor = weights(net), min(1.0, limit / (joint_norm(gradient) + 1e-6))
    after = train(net, SGD(1.0, clip_norm=limit), [gradient])
    for name, value in after.items():
        assert_close(value, before[name] - factor * gradient[name], "update")


def test_clipping_by_norm_counts_trained_parameters_only(xp):
    net = net_on(xp)
    net.freeze("0")
    (gradient,) = gradients(net, 1)
    before = weights(net)
    factor = 0.1 / (joint_norm({k: g for k, g in gradient.items() if k.startswith("2")}) + 1e-6)
    for name, value in train(net, SGD(1.0, clip_norm=0.1), [gradient]).items():
        expected = before[name] - (factor * gradient[name] if name.startswith("2") else 0)
        assert_close(value, expected, "update")
    net.freeze()
    train(net, SGD(1.0, clip_norm=0.1), [gradient])


def test_clipping_by_value_comes_second(xp):
    net = net_on(xp)
    (gradient,) = gradients(net, 1)
    before = weights(net)
    factor = 2.0 / (joint_norm(gradient) + 1e-6)
    for name, value in train(net, SGD(1.0, clip_norm=2.0, clip_value=0.3), [gradient]).items():
        assert_close(value, before[name] - np.clip(factor * gradient[name], -0.3, 0.3), "update")


# --- moving average ---------------------------------------------------------------------------------------------


def test_moving_average_and_swap(xp):
    net, ema = net_on(xp), EMA(0.75)
    steps = gradients(net, 4)
    average = None
    for gradient in steps:
        train(net, SGD(0.1), [gradient])
        ema.update(net)
        now = weights(net)
        average = now if average is None else {k: 0.75 * average[k] + 0.25 * now[k] for k in now}
    own = weights(net)
    with ema.swap(net):
        for name, value in weights(net).items():
            assert_close(value, average[name], "update")
    for name, value in weights(net).items():
        np.testing.assert_array_equal(value, own[name])


def test_moving_average_gives_the_weights_back_after_an_error():
    net, ema = net_on(np), EMA(0.5)
    ema.update(net)
    train(net, SGD(0.1), gradients(net, 1))
    own = weights(net)

    def fail():
        with ema.swap(net):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    for name, value in weights(net).items():
        np.testing.assert_array_equal(value, own[name])


def test_moving_average_of_nothing_lends_nothing():
    net = net_on(np)
    before = weights(net)
    with EMA().swap(net):
        for name, value in weights(net).items():
            np.testing.assert_array_equal(value, before[name])


def test_moving_average_follows_a_network_that_moves(xp):
    net, ema = net_on(np), EMA(0.5)
    ema.update(net)
    before = weights(net)
    net.to("cpu" if xp is np else "cuda:0")
    train(net, SGD(0.1), gradients(net, 1))
    after = weights(net)
    ema.update(net)
    with ema.swap(net):
        for name, value in weights(net).items():
            assert_close(value, (before[name] + after[name]) / 2, "update")


def test_moving_average_of_a_replaced_layer_starts_with_its_weights(xp):
    net, ema = net_on(xp), EMA(0.5)
    ema.update(net)
    before = weights(net)
    setattr(net, "2", Dense(7))
    net.build((5,), seed=1)
    head = weights(net)
    train(net, SGD(0.1), gradients(net, 1))
    after = weights(net)
    ema.update(net)
    with ema.swap(net):
        for name, value in weights(net).items():
            start = before[name] if name[0] == "0" else head[name]
            expected = (start + after[name]) / 2 if name[0] == "0" else after[name]
            assert_close(value, expected, "update")


def test_moving_average_goes_round(xp):
    one, two, ema, again = net_on(xp), net_on(np), EMA(0.5), EMA(0.5)
    assert ema.state_dict() == {}
    ema.update(one)
    train(one, SGD(0.1), gradients(one, 1))
    ema.update(one)
    state = {key: to_numpy(value).copy() for key, value in ema.state_dict().items()}
    assert set(state) == {f"average/{name}" for name in one.parameters()}
    again.load_state_dict(state)
    with again.swap(two), ema.swap(one):
        for name, value in weights(two).items():
            np.testing.assert_array_equal(value, weights(one)[name])
    with pytest.raises(StateDictError, match=r"EMA keeps average; received velocity"):
        EMA().load_state_dict({"velocity/0.weight": np.zeros(1)})


# --- settings and errors ----------------------------------------------------------------------------------------


def test_defaults_are_those_of_torch():
    assert SGD().lr == 1e-3
    assert (Adagrad().lr, Adagrad().eps, Adagrad().initial_accumulator_value) == (1e-2, 1e-10, 0.0)
    assert (RMSprop().lr, RMSprop().alpha, RMSprop().eps) == (1e-2, 0.99, 1e-8)
    assert (Adam().lr, Adam().betas, Adam().eps, Adam().weight_decay) == (1e-3, (0.9, 0.999), 1e-8, 0.0)
    assert (AdamW().lr, AdamW().betas, AdamW().weight_decay) == (1e-3, (0.9, 0.999), 1e-2)


@every
def test_settings_make_the_same_optimizer_again(name):
    optimizer = SETTINGS[name][0]()
    optimizer.groups = {"*.bias": {"lr": 0.5}}
    settings = optimizer.settings()
    kind = {c.__name__: c for c in (SGD, Adagrad, RMSprop, Adam, AdamW)}[settings.pop("optimizer")]
    assert kind is type(optimizer)
    assert kind(**settings).settings() == optimizer.settings()
    assert repr(optimizer).startswith(f"{kind.__name__}(lr={optimizer.lr!r}")
    assert repr(optimizer).endswith("groups={'*.bias': {'lr': 0.5}})")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: SGD(-0.1), r"lr of SGD must be at least 0\.0 and below inf; received -0\.1"),
        (lambda: SGD(math.nan), r"lr of SGD .*received nan"),
        (lambda: SGD(math.inf), r"lr of SGD .*received inf"),
        (lambda: SGD(0.1, momentum=1.0), r"momentum of SGD must be at least 0\.0 and below 1\.0; received 1\.0"),
        (lambda: SGD(0.1, nesterov=True), r"nesterov=True needs a momentum above 0"),
        (lambda: SGD(0.1, weight_decay=-1.0), r"weight_decay of SGD"),
        (lambda: SGD(0.1, clip_norm=0.0), r"clip_norm must be positive or None; received 0\.0"),
        (lambda: SGD(0.1, clip_value=-1), r"clip_value must be positive or None; received -1"),
        (lambda: Adagrad(lr_decay=-1.0), r"lr_decay of Adagrad"),
        (lambda: Adagrad(initial_accumulator_value=-1.0), r"initial_accumulator_value of Adagrad"),
        (lambda: Adagrad(eps=-1.0), r"eps of Adagrad"),
        (lambda: RMSprop(alpha=1.0), r"alpha of RMSprop"),
        (lambda: RMSprop(momentum=-0.5), r"momentum of RMSprop"),
        (lambda: Adam(betas=(1.0, 0.9)), r"betas\[0\] of Adam must be at least 0\.0 and below 1\.0; received 1\.0"),
        (lambda: AdamW(betas=(0.9, -0.1)), r"betas\[1\] of AdamW"),
        (lambda: Adam(eps=-1e-8), r"eps of Adam"),
        (lambda: EMA(1.0), r"decay of EMA"),
        (
            lambda: SGD(groups={"0": {"lr": -1.0}}),
            r"lr of the group '0' must be at least 0\.0 and below inf; received -1",
        ),
        (lambda: Adam(groups={"0": {"weight_decay": math.nan}}), r"weight_decay of the group '0' .*received nan"),
        (
            lambda: Adam(groups={"0": {"betas": 0.9}}),
            r"the group '0' must say \{.lr.: \.{3}, .weight_decay.: \.{3}\} or one of them; received \{'betas': 0\.9\}",
        ),
        (lambda: AdamW(groups={"0": {}}), r"the group '0' must say .*received \{\}"),
        (lambda: RMSprop(groups={"0": 0.1}), r"the group '0' must say .*received 0\.1"),
    ],
)
def test_impossible_settings_are_refused(make, text):
    with pytest.raises(ArgumentError, match=text):
        make()


def test_the_state_of_another_optimizer_or_network_is_refused():
    net = net_on(np)
    adam = Adam()
    train(net, adam, gradients(net, 1))
    with pytest.raises(StateDictError, match=r"RMSprop keeps square; received m, v"):
        RMSprop().load_state_dict(adam.state_dict())
    with pytest.raises(StateDictError, match=r"SGD keeps no arrays; received m, v"):
        SGD().load_state_dict(adam.state_dict())
    with pytest.raises(StateDictError, match=r"has an entry 'steps'; received none"):
        Adam().load_state_dict({})
    other = Sequential(Flatten(), Dense(7))
    other.build((5,), dtype="float64")
    optimizer = Adam()
    optimizer.load_state_dict(adam.state_dict())
    for _ in range(2):
        with pytest.raises(StateDictError, match=r"does not fit the network: expected m/1\.weight of shape \(7, 5\)"):
            optimizer.step(other)


def test_a_fresh_state_makes_a_used_optimizer_fresh():
    one, two = net_on(np), net_on(np)
    steps, used = gradients(one, 3), Adam(0.1)
    expected = train(one, Adam(0.1), steps)
    train(net_on(np), used, steps)
    used.load_state_dict(Adam(0.1).state_dict())
    for parameter, value in train(two, used, steps).items():
        np.testing.assert_array_equal(value, expected[parameter])


def test_state_is_named_by_parameter():
    net, optimizer = Sequential(Dense(2), BatchNorm1d()), SGD(0.1, 0.9)
    net.build((3,), dtype="float64")
    train(net, optimizer, gradients(net, 1))
    state = optimizer.state_dict()
    assert set(state) == {"steps"} | {f"velocity/{name}" for name in net.parameters()}
    assert state["velocity/0.weight"].shape == (2, 3)


def test_a_network_without_parameters_can_be_stepped():
    net = Sequential(ReLU())
    net.build((3,))
    Adam().step(net)


def test_the_base_class_says_what_is_missing():
    net = net_on(np)
    with pytest.raises(TypeError, match=r"Optimizer does not define update"):
        Optimizer((), 0.1, 0.0, None, None).step(net)


def test_float16_clipping_is_summed_in_float32(xp):
    net = Sequential(Dense(100, bias=False))
    net.build((100,), dtype="float16", device="cpu" if xp is np else "cuda:0")
    before = weights(net)["0.weight"].astype("float64")
    net.flat().grad.fill(16.0)  # sum of squares 2,560,000, beyond float16; norm 1,600
    SGD(1.0, clip_norm=16.0).step(net)
    np.testing.assert_allclose(weights(net)["0.weight"], before - 0.16, atol=1e-3)
