"""ONNX against others: what we write runs in onnxruntime, and what torch writes runs and trains here."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from layers.table import ROWS
from references import batch_last
from strategies import normal

from xpcnn import ArgumentError, Step, zoo
from xpcnn import layers as L
from xpcnn.formats.onnx import load, save
from xpcnn.layers import Layer

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install onnxruntime)")
pytestmark = pytest.mark.outside

TOLERANCE = 1e-4  # of the largest logit


def runtime(path: Any, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": images})[0]


def assert_like(actual: np.ndarray, expected: np.ndarray, relative: float = TOLERANCE) -> None:
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=relative * max(1.0, float(np.abs(expected).max())))


# --- ours in onnxruntime ----------------------------------------------------------------------------------------

EXTRA = {
    "a power that is no integer": (L.LpPool2d(2, p=2.5), (2, 4, 6)),
    "a power that is no integer, mean": (L.LpPool2d(2, p=2.5, mean=True), (2, 4, 6)),
    "p infinite, ceil": (L.LpPool2d(3, p=float("inf"), stride=2, ceil_mode=True), (2, 6, 8)),
    "p 2, padded, ceil": (L.LpPool2d(3, stride=2, padding=1, ceil_mode=True), (2, 6, 8)),
    "average, padded, ceil": (L.AvgPool2d(3, stride=2, padding=1, ceil_mode=True), (2, 6, 8)),
    "average, ceil": (L.AvgPool2d((2, 3), stride=(3, 2), ceil_mode=True), (2, 6, 8)),
    "average of real pixels, padded, ceil": (
        L.AvgPool2d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
        (2, 6, 8),
    ),
    "max, padded, ceil, dilated": (L.MaxPool2d(2, stride=2, padding=1, dilation=2, ceil_mode=True), (2, 6, 8)),
    "bins that overlap": (L.AdaptiveAvgPool2d((3, 5)), (2, 4, 3)),
    "largest of bins that overlap": (L.AdaptiveMaxPool2d((3, 5)), (2, 4, 3)),
    "softplus with a low threshold": (L.Softplus(beta=0.5, threshold=0.3), (2, 3, 3)),
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_layer(row, tmp_path):
    layer = row.built("float32")
    save(layer, tmp_path / "net.onnx", row.input_shape)
    images = row.images(3, "float32")
    assert_like(runtime(tmp_path / "net.onnx", images), layer(images))


@pytest.mark.parametrize("name", EXTRA)
def test_more_forms_of_layers(name, tmp_path):
    layer, shape = EXTRA[name]
    layer.build(shape)
    save(layer, tmp_path / "net.onnx")
    images = normal(0, 3, *shape, dtype="float32")
    assert_like(runtime(tmp_path / "net.onnx", images), layer(images))
    assert_like(load(tmp_path / "net.onnx")(images), layer(images), 1e-6)


def forms() -> list[Any]:
    """Every network of the zoo in every form; the ImageNet forms of most are marked slow."""
    quick = ("alexnet", "resnet18", "mobilenet_v2", "squeezenet1_1", "googlenet", "densenet121")
    return [
        pytest.param(name, stem, marks=[pytest.mark.slow] if stem == "imagenet" and name not in quick else [])
        for name in zoo.names()
        for stem in zoo.entry(name).forms
    ]


@pytest.mark.parametrize(("name", "stem"), forms())
def test_the_zoo(name, stem, tmp_path):
    form = zoo.entry(name).forms[stem]
    net = zoo.build(name, classes=10, stem=None if stem == "own" else stem)
    net.build(form.input_shape)
    for i, (key, array) in enumerate(net.state_dict().items()):
        if "running" in key:
            array[...] = normal(i, *array.shape) * 0.1 + (1.0 if key.endswith("var") else 0.0)
    images = normal(0, 2, *form.input_shape, dtype="float32")
    logits = net(images)
    save(net, tmp_path / "net.onnx")
    assert_like(runtime(tmp_path / "net.onnx", images), logits)
    twin = load(tmp_path / "net.onnx")
    assert_like(twin(images), logits, 1e-6)
    save(twin, tmp_path / "twin.onnx", form.input_shape)
    assert_like(runtime(tmp_path / "twin.onnx", images), logits)


# --- torch's here -----------------------------------------------------------------------------------------------


def torch_nets() -> dict[str, Callable[[], Any]]:
    """Networks whose export uses as many operators as possible, for images (3, 16, 16)."""
    from torch import nn
    from torch.nn import functional as F

    class Squeeze(nn.Module):  # squeeze and excitation
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

        def forward(self, x: Any) -> Any:
            return x * F.hardsigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))

    class Shuffle(nn.Module):
        def forward(self, x: Any) -> Any:
            n, c, h, w = x.shape
            a, b = x.chunk(2, dim=1)
            x = F.pad(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w), (1, 0, 2, 1))
            return x[:, :, 3:, 1:] + F.relu6(a + b).repeat(1, 2, 1, 1)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.qkv = nn.LayerNorm(8), nn.Linear(8, 24)
            self.scale = nn.Parameter(0.5 * np_tensor(8))

        def forward(self, x: Any) -> Any:
            n, c, h, w = x.shape
            tokens = x.reshape(n, c, h * w).transpose(1, 2)
            q, k, v = self.qkv(self.norm(tokens)).split(8, dim=2)
            out = F.softmax(q @ k.transpose(1, 2) * 0.25, dim=-1) @ v * self.scale
            return (tokens + out).transpose(1, 2).reshape(n, c, h, w)

    def norm(channels: int) -> Any:
        layer = nn.BatchNorm2d(channels)
        layer.running_mean.normal_(0, 0.1)
        layer.running_var.uniform_(0.5, 2.0)
        return layer

    def head(channels: int) -> list[Any]:
        return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.0), nn.Linear(channels, 5)]

    return {
        "plain": lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), norm(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(8, 8, 3, groups=8), nn.PReLU(8), nn.AvgPool2d(2, ceil_mode=True), nn.Flatten(), nn.Linear(8, 5),
        ),
        "activations": lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 1), nn.Hardswish(), nn.Conv2d(8, 8, 1), nn.GELU(),
            nn.Conv2d(8, 8, 1), nn.Mish(), nn.Conv2d(8, 8, 1), nn.ELU(), nn.LeakyReLU(), nn.Softplus(), nn.CELU(2.0),
            nn.SELU(), nn.Tanh(), nn.Sigmoid(), *head(8),
        ),
        "squeeze, shuffle": lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), norm(8), nn.ReLU(), Squeeze(8), Shuffle(), nn.MaxPool2d(2),
            nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True), *head(8), nn.LogSoftmax(1),
        ),
        "attention": lambda: nn.Sequential(nn.Conv2d(3, 8, 4, 4), Attention(), nn.GELU(), Attention(), *head(8)),
    }  # fmt: skip


def np_tensor(count: int) -> Any:
    import torch

    return torch.from_numpy(normal(5, count, dtype="float32"))


CASES = [
    (name, opset, training)
    for name, opsets in {"plain": (7, 9, 11, 13, 18), "activations": (14, 18, 20), "squeeze, shuffle": (11, 14, 18),
                         "attention": (12, 17)}.items()
    for opset in opsets
    for training in (False, True)
]  # fmt: skip


@pytest.mark.parametrize(("name", "opset", "training"), CASES)
@pytest.mark.filterwarnings("ignore")  # torch has many words on its exporter
def test_networks_that_torch_exports(name, opset, training, tmp_path):
    """Logits and, for one training step, gradients; exported with the batch axis fixed at 2 and free."""
    torch = pytest.importorskip("torch", reason="torch is not installed (pip install torch)")
    torch.manual_seed(0)
    net = torch_nets()[name]()
    net.train(training)
    mode = torch.onnx.TrainingMode.PRESERVE if training else torch.onnx.TrainingMode.EVAL
    example = torch.from_numpy(normal(0, 2, 3, 16, 16, dtype="float32"))
    free = {"dynamic_axes": {"input": {0: "N"}}} if opset % 2 else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (example,), str(tmp_path / "net.onnx"), dynamo=False, opset_version=opset, input_names=["input"],
            training=mode, do_constant_folding=not training, **free,
        )  # fmt: skip
    ours = load(tmp_path / "net.onnx")
    assert ours.input_shape == (3, 16, 16)
    images = normal(1, 3, 3, 16, 16)

    net.eval()
    with torch.no_grad():
        assert_like(ours(images.astype("float32")), net(torch.from_numpy(images).float()).numpy(), 1e-5)

    net.double().train(training)
    ours.build((3, 16, 16))
    ours.to(dtype="float64")
    x = torch.from_numpy(images).requires_grad_()
    expected = net(x)
    dy = normal(2, *expected.shape)
    expected.backward(torch.from_numpy(dy))
    y, ctx = ours.forward(batch_last(images), Step(0, 0, inference=not training))
    dx = ours.backward(batch_last(dy), ctx)
    relative = 1e-7 if training else 1e-6  # constants in the file are float32, and torch folds some
    assert_like(np.moveaxis(y, -1, 0), expected.detach().numpy(), relative)
    assert_like(np.moveaxis(dx, -1, 0), x.grad.numpy(), relative)
    theirs = dict(net.named_parameters())
    same = [
        key for key in ours.parameters() if key in theirs and ours.parameters()[key].data.shape == theirs[key].shape
    ]
    assert len(same) >= (len(theirs) - 6 if training else 1)
    for key in same:
        assert_like(ours.parameters()[key].grad, theirs[key].grad.numpy(), relative)
    if training:
        for key, value in net.state_dict().items():
            if "running" in key:
                assert_like(ours.state_dict()[key], value.numpy(), relative)


def test_layers_that_nobody_knows(tmp_path):
    class Strange(Layer):
        pass

    with pytest.raises(ArgumentError, match="Strange at 'the top' cannot be exported"):
        save(Strange(), tmp_path / "net.onnx", (3,))
