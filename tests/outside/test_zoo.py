"""The zoo against torch: logits, running statistics and, for one training step, the gradient of every parameter.

`module(layer)` builds torch's equivalent of any network made of our layers, so torch alone is needed. Where torchvision
is installed too, the state dicts of our networks go into its own models, strictly, and these must agree as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from references import batch_last
from strategies import normal

from xpcnn import layers as L
from xpcnn import zoo
from xpcnn.functional.loss import softmax_cross_entropy

torch = pytest.importorskip("torch", reason="torch is not installed (pip install torch)")
nn, F = torch.nn, torch.nn.functional
pytestmark = pytest.mark.outside

RELATIVE = 1e-9

# --- torch's equivalent of our layers ---------------------------------------------------------------------------


class Branches(nn.Module):
    """Several modules on one input; `meet` makes one tensor of the outputs."""

    def __init__(self, modules: list[Any], meet: Callable[[list[Any]], Any]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(modules)
        self.meet = meet

    def forward(self, x: Any) -> Any:
        return self.meet([branch(x) for branch in self.branches])


class Aside(nn.Module):
    """A side classifier: keeps its logits in training and hands its input on."""

    def __init__(self, head: Any, weight: float) -> None:
        super().__init__()
        self.head, self.weight = head, weight

    def forward(self, x: Any) -> Any:
        if self.training:
            self.logits = self.head(x)
        return x


class PadChannels(nn.Module):
    def __init__(self, layer: L.PadChannels) -> None:
        super().__init__()
        self.channels = (0, 0, 0, 0, layer.before, layer.after)

    def forward(self, x: Any) -> Any:
        return F.pad(x, self.channels)


def normalised(layer: L.BatchNorm2d) -> Any:
    return nn.BatchNorm2d(len(layer.weight.data), layer.eps, layer.momentum)


def convolution(layer: L.Conv2d) -> Any:
    outputs, inputs = layer.weight.data.shape[:2]
    options = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation", "groups")}
    return nn.Conv2d(inputs * layer.groups, outputs, bias=layer.bias is not False, **options)


LEAVES: dict[type[L.Layer], Callable[[Any], Any]] = {
    L.Conv2d: convolution,
    L.BatchNorm2d: normalised,
    L.Dense: lambda layer: nn.Linear(*layer.weight.data.shape[::-1], bias=layer.bias is not False),
    L.ReLU: lambda layer: nn.ReLU(),
    L.Clip: lambda layer: nn.Hardtanh(layer.low, layer.high),
    L.MaxPool2d: lambda layer: nn.MaxPool2d(
        layer.kernel_size, layer.stride, layer.padding, layer.dilation, ceil_mode=layer.ceil_mode
    ),
    L.AvgPool2d: lambda layer: nn.AvgPool2d(
        layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode, layer.count_include_pad
    ),
    L.AdaptiveAvgPool2d: lambda layer: nn.AdaptiveAvgPool2d(layer.output_size),
    L.GlobalAvgPool2d: lambda layer: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    L.Flatten: lambda layer: nn.Flatten(),
    L.Dropout: lambda layer: nn.Dropout(layer.p),
    L.Identity: lambda layer: nn.Identity(),
    L.PadChannels: PadChannels,
}


def module(layer: L.Layer, leaves: dict[int, Any]) -> Any:
    """Return torch's module for a built layer; `leaves` collects {id of our leaf: its module}."""
    if isinstance(layer, L.Sequential):
        return nn.Sequential(*(module(child, leaves) for _, child in layer.children()))
    if isinstance(layer, L.Concat):
        return Branches([module(child, leaves) for _, child in layer.children()], lambda parts: torch.cat(parts, 1))
    if isinstance(layer, L.Residual):
        two = Branches([module(layer.body, leaves), module(layer.shortcut, leaves)], sum)
        return nn.Sequential(two, module(layer.activation, leaves))
    if isinstance(layer, L.DenseConcat):
        return Branches([nn.Identity(), module(layer.body, leaves)], lambda parts: torch.cat(parts, 1))
    if isinstance(layer, L.AuxiliaryHead):
        return Aside(module(layer.head, leaves), layer.weight)
    leaves[id(layer)] = made = LEAVES[type(layer)](layer).double()
    return made


def twin(net: L.Layer) -> tuple[Any, dict[str, Any]]:
    """Return a torch module with the same weights, and its parameters and buffers under our names."""
    leaves: dict[int, Any] = {}
    made = module(net, leaves)
    named = {}
    for path, layer in net.leaves():
        theirs = leaves[id(layer)]
        for name, value in [*theirs.named_parameters(), *theirs.named_buffers()]:
            if name != "num_batches_tracked":
                named[f"{path}.{name}" if path else name] = value
    state = net.state_dict()
    assert named.keys() == state.keys()
    with torch.no_grad():
        for name, value in named.items():
            value.copy_(torch.tensor(state[name]))
    return made, named


# --- comparison -------------------------------------------------------------------------------------------------


def randomised(net: L.Layer, shape: tuple[int, ...]) -> L.Layer:
    """Build in float64 without dropout; no weight of a batch norm is 1 and no bias 0."""
    for _, layer in net.leaves():
        if isinstance(layer, L.Dropout):
            layer.p = 0.0
    net.build(shape, dtype="float64")
    rng = np.random.default_rng(0)
    for name, value in net.state_dict().items():
        if value.ndim == 1:
            value += (
                rng.uniform(-0.1, 0.1, value.shape)
                if name.endswith(("bias", "mean"))
                else rng.uniform(0, 0.2, value.shape)
            )
    return net


def difference(actual: np.ndarray, expected: Any, scale: float = 0.0) -> float:
    """Return the largest difference relative to the largest element, or to `scale` if that is larger."""
    expected = expected.detach().numpy()
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), scale))


def our_step(net: L.Layer, x: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """One forward and backward pass; returns logits (N, K) and those of the side classifiers."""
    logits, ctx = net.forward(batch_last(x), True)
    sides = L.auxiliaries(ctx)
    for side in sides:
        side.gradient = softmax_cross_entropy(side.logits, t)[1]
    net.backward(softmax_cross_entropy(logits, t)[1], ctx, need_dx=False)
    return logits.T, [side.logits.T for side in sides]


def compare(net: L.Layer, theirs: Any, named: dict[str, Any], sides: list[Any], shape: tuple[int, ...]) -> None:
    """Compare all that one inference and one training step compute: logits, running statistics, every gradient.

    Args:
        theirs: a torch module; `named` are its parameters and buffers under our names.
        sides: its side classifiers, which keep their `logits`.
    """
    x, t = normal(1, 2, *shape), np.array([1, 0])
    found = {"inference": difference(net(x), theirs.eval()(torch.tensor(x)))}
    logits, side_logits = our_step(net, x, t)
    expected = theirs.train()(torch.tensor(x))
    expected = getattr(expected, "logits", expected)
    loss = F.cross_entropy(expected, torch.tensor(t))
    found["logits"] = difference(logits, expected)
    weights = [layer.weight for _, layer in net.walk() if isinstance(layer, L.AuxiliaryHead)]
    for i, (ours, weight, side) in enumerate(zip(side_logits, weights, sides, strict=True)):
        found[f"logits of side classifier {i}"] = difference(ours, side.logits)
        loss = loss + weight * F.cross_entropy(side.logits, torch.tensor(t))
    loss.backward()

    state, parameters = net.state_dict(), net.parameters()
    gradients = {name: named[name].grad for name in parameters}
    scale: dict[str, float] = {}  # a bias in front of a batch norm has no gradient but rounding: its layer's weight has
    for name, gradient in gradients.items():
        layer = name.rpartition(".")[0]
        scale[layer] = max(scale.get(layer, 0.0), float(gradient.abs().max()))
    for name, value in named.items():
        if name in parameters:
            label = f"gradient of {name}"
            found[label] = difference(parameters[name].grad, gradients[name], scale[name.rpartition(".")[0]])
        else:
            found[name] = difference(state[name], value)
    worst = max(found, key=found.__getitem__)
    print(f"{len(found)} arrays, largest relative difference {found[worst]:.1e} ({worst})")
    assert found[worst] <= RELATIVE, worst


# images that are large enough for the last maps to have more than one pixel; Inception's side classifier needs all 299
SMALL = {"vgg": (3, 32, 32), "alexnet": (3, 63, 70), "inception_v3": (3, 299, 299)}
HIDDEN = 48  # width of AlexNet's and VGG's dense layers here, instead of 4096


def network(name: str, stem: str) -> tuple[L.Layer, tuple[int, ...]]:
    """Return a network of the zoo for three classes with random weights, and its input shape."""
    entry = zoo.entry(name)
    shape = entry.forms[stem].input_shape
    if stem == "imagenet":
        shape = next((size for start, size in SMALL.items() if name.startswith(start)), (3, 64, 64))
    hidden = {"hidden": HIDDEN} if name.startswith(("vgg", "alexnet")) else {}
    net = zoo.build(name, classes=3, stem=None if stem == "own" else stem, **hidden)
    return randomised(net, shape), shape


CASES = [
    pytest.param(
        name, stem, marks=pytest.mark.slow if name == "inception_v3" and stem == "imagenet" else (), id=f"{name}-{stem}"
    )
    for name in zoo.names()
    for stem in zoo.entry(name).forms
]


@pytest.mark.parametrize(("name", "stem"), CASES)
def test_logits_and_every_gradient(name, stem):
    net, shape = network(name, stem)
    theirs, named = twin(net)
    compare(net, theirs, named, [m for m in theirs.modules() if isinstance(m, Aside)], shape)


def test_shortcut_b():
    net = randomised(zoo.build("resnet20", shortcut="B"), (3, 32, 32))
    theirs, named = twin(net)
    compare(net, theirs, named, [], (3, 32, 32))


TORCHVISION = [case for case in CASES if "imagenet" in case.values]


@pytest.mark.parametrize(("name", "stem"), TORCHVISION)
def test_torchvision_takes_our_state_dict_and_agrees(name, stem):
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed: its own models go unchecked")
    net, shape = network(name, stem)
    options = {"aux_logits": True, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    theirs = torchvision.models.get_model(name, weights=None, num_classes=3, **options)
    for path, layer in list(theirs.named_modules()):
        if isinstance(layer, nn.Linear) and 4096 in (layer.in_features, layer.out_features):
            sizes = (HIDDEN if size == 4096 else size for size in (layer.in_features, layer.out_features))
            theirs.classifier[int(path.rpartition(".")[2])] = nn.Linear(*sizes)
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    theirs.double().load_state_dict({k: torch.tensor(v) for k, v in net.state_dict().items()}, strict=True)
    sides = [layer for path, layer in theirs.named_modules() if path in ("aux1", "aux2", "AuxLogits")]
    for side in sides:
        side.register_forward_hook(lambda layer, x, y: setattr(layer, "logits", y))
    named = dict([*theirs.named_parameters(), *theirs.named_buffers()])
    named = {name: value for name, value in named.items() if not name.endswith("num_batches_tracked")}
    assert named.keys() == net.state_dict().keys()
    compare(net, theirs, named, sides, shape)
