"""Transfer learning: a body that has learned some digits helps with others; weights go into nets with other heads."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import to_numpy
from toys import place

from xpcnn import (
    SGD,
    Adam,
    AuxiliaryHead,
    BatchNorm2d,
    Classifier,
    Conv2d,
    Dense,
    Flatten,
    GlobalAvgPool2d,
    MaxPool2d,
    ReLU,
    Sequential,
    load_pretrained,
    new_head,
)
from xpcnn.data import mnist
from xpcnn.errors import ArgumentError, StateDictError


def digits(classes, each: int):
    """The first images of some digits, halved in size, with labels from 0."""
    dataset, _ = mnist()
    chosen = np.concatenate([np.flatnonzero(dataset.labels == digit)[:each] for digit in classes])
    labels = np.array([list(classes).index(digit) for digit in dataset.labels[chosen]])
    return np.stack([dataset[i][0][:, ::2, ::2] for i in chosen]), labels


def net_for(classes: int) -> Sequential:
    features = Sequential(
        Conv2d(6, 3, init="he_normal"), BatchNorm2d(), ReLU(), MaxPool2d(2), Conv2d(8, 3, init="he_normal"), ReLU()
    )
    return Sequential(features=features, flatten=Flatten(), fc=Dense(classes))


def bits(net) -> dict[str, bytes]:
    return {name: to_numpy(array).tobytes() for name, array in net.state_dict().items()}


def test_a_body_that_knows_some_digits_learns_others(xp):
    x, t = digits(range(5), 24)
    net = net_for(5)
    first = Classifier(net, optimizer=Adam(3e-3), device=place(xp), normalize="data", seed=1)
    first.fit(x, t, epochs=3, batch_size=20, verbose=False)
    learned = bits(net)

    net.freeze("features")
    assert new_head(net, 3) == "fc"
    x, t = digits((6, 7, 8), 24)
    second = Classifier(
        net,
        classes=["six", "seven", "eight"],
        optimizer=Adam(1e-2),
        device=place(xp),
        normalize=(first.mean, first.std),
    )
    second.fit(x, t, epochs=3, batch_size=18, verbose=False)
    after = bits(net)
    assert {name for name in learned if after[name] != learned[name]} == {"fc.weight", "fc.bias"}
    assert second.history.epochs == 3
    assert second.score(x, t) > 0.9
    assert set(second.predict(x)) == {"six", "seven", "eight"}


def test_the_whole_network_goes_on_learning_at_rates_of_its_own(xp):
    x, t = digits(range(4), 10)
    net = net_for(4)
    Classifier(net, optimizer=SGD(0.05), device=place(xp)).fit(x, t, epochs=1, verbose=False)
    learned = {name: to_numpy(p.data).copy() for name, p in net.parameters().items()}
    head = new_head(net, 2)
    net.freeze("*.bias")
    optimizer = SGD(0.0, groups={"features.0": {"lr": 0.01}, head: {"lr": 0.1}})
    x, t = digits((8, 9), 10)
    Classifier(net, optimizer=optimizer, device=place(xp)).fit(x, t, epochs=1, verbose=False)
    now = {name: to_numpy(p.data) for name, p in net.parameters().items()}
    changed = {name for name in learned if not name.startswith(head) and (now[name] != learned[name]).any()}
    assert changed == {"features.0.weight"}
    assert now["fc.weight"].shape == (2, 128)


# --- new heads --------------------------------------------------------------------------------------------------


def test_a_new_head_is_like_the_old_one():
    net = net_for(5)
    net.replace("fc", Dense(5, bias=False, init="zeros"))
    assert new_head(net, 7) == "fc"
    assert repr(net["fc"]) == "Dense(7, bias=False, init='zeros')"
    assert net.build((1, 14, 14)) == (7,)


def test_a_convolution_may_be_the_head():
    net = Sequential(Conv2d(4, 3), Sequential(ReLU(), Conv2d(5, 1, bias=False)), GlobalAvgPool2d())
    net.build((1, 6, 6))
    assert new_head(net, 2) == "1.1"
    assert repr(net["1.1"]) == "Conv2d(2, 1, bias=False)"
    assert net.build((1, 6, 6)) == (2,)


def test_side_classifiers_get_new_heads_too():
    side = AuxiliaryHead(Sequential(flatten=Flatten(), fc1=Dense(4), fc2=Dense(5)))
    net = Sequential(conv=Conv2d(2, 3), aux=side, flatten=Flatten(), fc=Dense(5), late=AuxiliaryHead(Dense(5)))
    assert new_head(net, 3) == "fc"
    net.build((1, 4, 4))
    shapes = {name: p.data.shape for name, p in net.parameters().items() if name.endswith("weight")}
    assert {name: shape[0] for name, shape in shapes.items()} == {
        "conv.weight": 2,
        "aux.fc1.weight": 4,
        "aux.fc2.weight": 3,
        "fc.weight": 3,
        "late.weight": 3,
    }


def test_a_network_without_a_head_is_refused():
    with pytest.raises(ArgumentError, match=r"a head is the last Dense or Conv2d of a network, and there is none"):
        new_head(Sequential(ReLU(), BatchNorm2d()), 3)


# --- weights of others ------------------------------------------------------------------------------------------


def weights_of(classes: int) -> dict[str, np.ndarray]:
    net = net_for(classes)
    net.build((1, 14, 14), seed=5)
    return net.state_dict()


def test_weights_for_other_classes_are_taken_but_for_the_head(xp):
    net = net_for(3)
    net.build((1, 14, 14), device=place(xp))
    before, given = bits(net), weights_of(5)
    assert load_pretrained(net, {f"module.{name}": array for name, array in given.items()}) == ["fc.weight", "fc.bias"]
    for name, value in bits(net).items():
        assert value == (before[name] if name.startswith("fc") else given[name].tobytes())


def test_weights_for_the_same_classes_are_taken_whole():
    net, given = net_for(5), weights_of(5)
    net.build((1, 14, 14))
    assert load_pretrained(net, given) == []
    assert bits(net) == {name: array.tobytes() for name, array in given.items()}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"features.0.weight": np.zeros((7, 1, 3, 3))}, r"features\.0\.weight has shape \(7, 1, 3, 3\)"),
        ({"fc.weight": np.zeros((5, 71))}, r"fc\.weight has shape \(5, 71\), expected \(3, 128\)"),
        ({"fc.weight": np.zeros(5)}, r"fc\.weight has shape \(5,\), expected \(3, 128\)"),
        ({"extra.weight": np.zeros(5)}, r"unexpected: extra\.weight"),
    ],
)
def test_whatever_else_does_not_fit_is_an_error(change, text):
    net = net_for(3)
    net.build((1, 14, 14))
    before = bits(net)
    with pytest.raises(StateDictError, match=text):
        load_pretrained(net, weights_of(5) | change)
    assert bits(net) == before
    with pytest.raises(StateDictError, match=r"missing: .*fc\.bias, fc\.weight"):
        load_pretrained(net, {name: array for name, array in weights_of(5).items() if name[:2] != "fc"})
