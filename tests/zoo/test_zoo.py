"""The zoo: costs and names as published, both stems, options, weights from files, and a training step each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xpcnn
from xpcnn import batch_last, zoo
from xpcnn.errors import ArgumentError, StateDictError
from xpcnn.formats import write_weights
from xpcnn.functional.loss import softmax_cross_entropy
from xpcnn.layers import AuxiliaryHead, Builder, Dropout, Layer, Parameter, auxiliaries, config, from_config

# --- costs and names --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planner(Builder):
    """Sets a network up without numbers: parameters are views of one zero. Counts MACs outside side classifiers."""

    macs: list[int] = field(default_factory=list)
    aside: bool = False

    def child(self, name, layer, input_shape):
        inner = replace(self, aside=self.aside or name == "_head")
        shape = Builder.child(inner, name, layer, input_shape)
        if not inner.aside:
            self.macs.append(layer.macs(input_shape, shape))
        return shape

    def parameter(self, layer, name, shape, how, fan_in=1, fan_out=1):
        setattr(layer, name, Parameter(np.broadcast_to(np.float32(0), shape)))


def plan(net: Layer, shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Give a network its shapes; return its MACs and its output shape."""
    planner = Planner(0, np.dtype(np.float32))
    output = net.setup(shape, planner)
    return sum(planner.macs), output


def digest(net: Layer) -> str:
    """Names and shapes of the state dict in sixteen letters."""
    lines = sorted(f"{name} {'x'.join(map(str, value.shape))}" for name, value in net.state_dict().items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


# torchvision 0.29.2: the parameters of the model with its side classifiers, and its published thousand million
# operations ("_ops" of the weights); the digest of its state dict was made by the function above, without
# `num_batches_tracked`
TORCHVISION = [
    ("alexnet", 61_100_840, 0.714, "9b204a0e6319caba"),
    ("vgg11", 132_863_336, 7.609, "839b1d4e93d78d88"),
    ("vgg13", 133_047_848, 11.308, "16c588a61614aa27"),
    ("vgg16", 138_357_544, 15.47, "e36b43eb356035da"),
    ("vgg19", 143_667_240, 19.632, "fafd9d516f77ba55"),
    ("vgg11_bn", 132_868_840, 7.609, "203f490cecc83114"),
    ("vgg13_bn", 133_053_736, 11.308, "94d052915fa90248"),
    ("vgg16_bn", 138_365_992, 15.47, "af4eeac57cb50d67"),
    ("vgg19_bn", 143_678_248, 19.632, "32f61b09653e739d"),
    ("googlenet", 13_004_888, 1.498, "8602570acd8b879d"),
    ("inception_v3", 27_161_264, 5.713, "7230e9811d9a430f"),
    ("resnet18", 11_689_512, 1.814, "bd0b28d3209a171d"),
    ("resnet34", 21_797_672, 3.664, "3527dbbb4ac82262"),
    ("resnet50", 25_557_032, 4.089, "a506be68cf630f4c"),
    ("resnet101", 44_549_160, 7.801, "b7894632184dafb1"),
    ("resnet152", 60_192_808, 11.514, "e13c31ea628f8ac7"),
    ("densenet121", 7_978_856, 2.834, "9de4aad2d5fb03ee"),
    ("densenet161", 28_681_000, 7.728, "b02a66be70121357"),
    ("densenet169", 14_149_480, 3.36, "b335f57fc820a526"),
    ("densenet201", 20_013_928, 4.291, "68d604ef7a9345d1"),
    ("squeezenet1_0", 1_248_424, 0.819, "cd23a9be2e193de5"),
    ("squeezenet1_1", 1_235_496, 0.349, "a462856ef96ade94"),
    ("mobilenet_v2", 3_504_872, 0.301, "1f27e3d93ac9d0ff"),
]


@pytest.mark.parametrize(("name", "parameters", "operations", "names"), TORCHVISION)
def test_costs_and_names_are_those_of_torchvision(name, parameters, operations, names):
    entry = zoo.entry(name)
    net = zoo.build(name)
    macs, output = plan(net, entry.input_shape)
    assert output == (1000,)
    assert entry.parameters == parameters
    assert round(macs / 1e9, 3) == operations
    assert digest(net) == names


def test_googlenet_without_its_side_classifiers_has_the_published_size():
    net = zoo.build("googlenet", auxiliary=False)
    plan(net, (3, 224, 224))
    assert sum(p.data.size for p in net.parameters().values()) == 6_624_904


# table 6 of the paper, in millions; the digest is that of Idelbayev's file resnet20-12fca82f.th without "module."
@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_residual_networks_for_cifar_have_the_size_in_the_paper(depth, millions):
    assert round(zoo.entry(f"resnet{depth}").parameters / 1e6, 1 if depth == 110 else 2) == millions
    if depth == 20:
        net = zoo.build("resnet20")
        plan(net, (3, 32, 32))
        assert digest(net) == "2f02f12dc35a77b6"


FORMS = [(name, stem) for name in zoo.names() for stem in zoo.entry(name).forms]


@pytest.mark.parametrize(("name", "stem"), FORMS)
def test_every_form_costs_what_its_entry_says(name, stem):
    form = zoo.entry(name).forms[stem]
    net = zoo.build(name, stem=None if stem == "own" else stem)
    macs, output = plan(net, form.input_shape)
    assert output == (form.classes,)
    assert sum(p.data.size for p in net.parameters().values()) == form.parameters
    assert macs == form.macs
    assert config(from_config(config(net))) == config(net)


def test_entries():
    assert len(zoo.names()) == 32
    entry = zoo.entry("ResNet18")
    assert (entry.year, entry.mode, entry.input_shape, entry.classes) == (2015, "RGB", (3, 224, 224), 1000)
    assert entry.form("cifar") is entry.forms["cifar"]
    assert (entry.parameters, entry.macs) == (entry.form().parameters, entry.form().macs)
    assert "Residual Learning" in entry.paper
    assert zoo.entry("resnet20").input_shape == zoo.entry("resnet18").form("cifar").input_shape == (3, 32, 32)


def test_shortcut_b_has_convolutions():
    net = zoo.build("resnet20", shortcut="B")
    plan(net, (3, 32, 32))
    added = {name: value.shape for name, value in net.state_dict().items() if "shortcut" in name}
    assert {name: shape for name, shape in added.items() if len(shape) > 1} == {
        "layer2.0.shortcut.0.weight": (32, 16, 1, 1),
        "layer3.0.shortcut.0.weight": (64, 32, 1, 1),
    }
    assert len(added) == 10


def test_weights_start_as_the_papers_say():
    net = zoo.build("resnet18", stem="cifar")
    net.build((3, 32, 32))
    state = net.state_dict()
    assert np.isclose(state["layer3.0.conv1.weight"].std(), np.sqrt(2 / (256 * 9)), rtol=0.02)  # He, by fan out
    assert np.isclose(state["layer3.0.downsample.0.weight"].std(), np.sqrt(2 / 256), rtol=0.02)
    net = zoo.build("vgg11", stem="cifar")
    net.build((3, 32, 32))
    assert np.isclose(net.state_dict()["classifier.0.weight"].std(), 0.01, rtol=0.02)
    assert not net.state_dict()["features.0.bias"].any()


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("lenet", {"stem": "cifar"}, "stem must be left out for this network; received 'cifar'"),
        ("lenet", {"stem": "own"}, "stem must be left out for this network; received 'own'"),
        ("resnet20", {"stem": "imagenet"}, "stem must be \"cifar\" for this network; received 'imagenet'"),
        ("resnet18", {"stem": "mnist"}, 'stem must be "imagenet" or "cifar" for this network; received \'mnist\''),
        ("resnet20", {"shortcut": "C"}, 'shortcut must be "A" or "B"; received \'C\''),
        ("resnet20", {"depth": 20}, "resnet20: .*unexpected keyword .*'depth'; its options are shortcut"),
        ("googlenet", {"aux": 1}, "googlenet: .*unexpected keyword .*'aux'; its options are auxiliary, dropout"),
        ("resnet18", {"dropout": 0.1}, "resnet18: .*unexpected keyword .*'dropout'; it has no options"),
    ],
)
def test_impossible_choices_are_refused(name, options, text):
    with pytest.raises(ArgumentError, match=text):
        zoo.build(name, **options)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: zoo.resnet(20), "depth of resnet must be one of 18, 34, 50, 101, 152; received 20"),
        (lambda: zoo.cifar_resnet(18), "depth of cifar_resnet must be 6 n \\+ 2, such as 20 or 56; received 18"),
        (lambda: zoo.cifar_resnet(2), "depth of cifar_resnet must be 6 n \\+ 2"),
        (lambda: zoo.vgg(12), "depth of vgg must be one of 11, 13, 16, 19; received 12"),
        (lambda: zoo.densenet(40), "depth of densenet must be one of 121, 161, 169, 201; received 40"),
        (lambda: zoo.squeezenet("1_0"), 'version of squeezenet must be "1.0" or "1.1"; received \'1_0\''),
        (lambda: zoo.alexnet(stem="small"), 'stem must be "imagenet" or "cifar"; received \'small\''),
    ],
)
def test_impossible_networks_are_refused(make, text):
    with pytest.raises(ArgumentError, match=text):
        make()


# --- weights from files -----------------------------------------------------------------------------------------


def saved(tmp_path: Path, name: str, prefix: str = "", **options: Any) -> tuple[Path, dict[str, np.ndarray]]:
    """Write the weights of a network of the zoo with random running means."""
    net = zoo.build(name, **options)
    net.build(zoo.entry(name).form(options.get("stem")).input_shape, seed=7)
    state = net.state_dict()
    write_weights(tmp_path / "weights.safetensors", {prefix + key: value for key, value in state.items()})
    return tmp_path / "weights.safetensors", state


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_are_loaded(tmp_path, prefix):
    path, state = saved(tmp_path, "resnet20", prefix)
    net = zoo.build("resnet20", weights=path)
    assert net.input_shape == (3, 32, 32)
    for key, value in net.state_dict().items():
        assert np.array_equal(value, state[key])


def test_weights_for_other_classes_are_refused_with_what_to_do(tmp_path):
    path, _ = saved(tmp_path, "resnet20", classes=100)
    text = (
        r"weights.safetensors tells 100 classes apart, and the network 10 \(linear.weight\): "
        r"build it with classes=100, then call xpcnn.new_head\(net, 10\)"
    )
    with pytest.raises(StateDictError, match=text):
        zoo.build("resnet20", weights=path)
    net = zoo.build("resnet20", 100, path)
    xpcnn.new_head(net, 10)
    assert net.build((3, 32, 32)) == (10,)


def test_weights_of_another_network_are_refused(tmp_path):
    path, _ = saved(tmp_path, "resnet20")
    with pytest.raises(StateDictError, match=r"weights\.safetensors: .*missing: layer1\.3"):
        zoo.build("resnet32", weights=path)


# --- a training step --------------------------------------------------------------------------------------------

SIZES = {"alexnet": 32, "vgg11_bn": 32, "inception_v3": 32}  # pixels that leave something to pool; 16 for the others
LIGHT = ["resnet20", "squeezenet1_1"]
HEAVY = ["alexnet", "vgg11_bn", "googlenet", "inception_v3", "resnet18", "resnet50", "densenet121", "mobilenet_v2"]


def check_a_step(name: str, xp: Any) -> None:
    """All parameters get a gradient, and a small step along it lowers the loss as far as it promises."""
    net = zoo.build(name, classes=3, stem="cifar", **({"hidden": 32} if name.startswith(("vgg", "alexnet")) else {}))
    for _, layer in net.leaves():
        if isinstance(layer, Dropout):
            layer.p = 0.0
    size = SIZES.get(name, 16)
    net.build((3, size, size), dtype="float64")
    net.to("cpu" if xp is np else "cuda:0")
    x = batch_last(xp.asarray(np.random.default_rng(3).standard_normal((2, 3, size, size))))
    t = xp.asarray([2, 0])
    before, slope = step(net, x, t)
    unused = [key for key, p in net.parameters().items() if not bool(xp.any(p.grad != 0))]
    assert not unused
    rate = 1e-6 * before / slope
    for parameter in net.parameters().values():
        parameter.data -= rate * parameter.grad
    after, _ = step(net, x, t)
    assert np.isclose((before - after) / (rate * slope), 1.0, rtol=1e-2)


def step(net: Layer, x: Any, t: Any) -> tuple[float, float]:
    """Return the loss, side classifiers included, and the squared length of its gradient, which is left in the net."""
    net.flat().grad[...] = 0
    logits, ctx = net.forward(x, True)
    total, dlogits = softmax_cross_entropy(logits, t)
    weights = [layer.weight for _, layer in net.walk() if isinstance(layer, AuxiliaryHead)]
    for side, weight in zip(auxiliaries(ctx), weights, strict=True):
        loss, side.gradient = softmax_cross_entropy(side.logits, t)
        total = total + weight * loss
    net.backward(dlogits, ctx, need_dx=False)
    return float(total), float((net.flat().grad ** 2).sum())


@pytest.mark.parametrize("name", LIGHT)
def test_a_step_of_a_light_network(name, xp):
    check_a_step(name, xp)


@pytest.mark.parametrize("name", HEAVY)
def test_a_step_of_a_heavy_network(name):
    check_a_step(name, np)


@pytest.mark.slow
@pytest.mark.parametrize("name", HEAVY)
def test_a_step_of_a_heavy_network_on_either_backend(name, xp):
    check_a_step(name, xp)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet", "vgg16", "googlenet", "inception_v3", "resnet152", "densenet121"])
def test_a_prediction_at_full_size(name, rng):
    shape = zoo.entry(name).input_shape
    net = zoo.build(name)
    assert net.build(shape) == (1000,)
    y = net(rng.standard_normal((1, *shape), dtype=np.float32))
    assert y.shape == (1, 1000)
    assert np.isfinite(y).all()
