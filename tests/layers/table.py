"""One row per layer and way of using it. `test_table.py` runs every check over every row.

References take images in the usual layout, x (N, C, H, W) or (N, D), and the state dict, and are written from the
definitions (`references.py`), never by calling xpcnn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import references as ref

from xpcnn import layers as L

State = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Row:
    """What a layer must do for inputs of one shape."""

    name: str
    make: Callable[[], L.Layer]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    reference: Callable[[np.ndarray, State], np.ndarray]  # at inference
    training: Callable[[np.ndarray, State], np.ndarray] | None = None  # in training, if different
    state: dict[str, tuple[int, ...]] = field(default_factory=dict)
    macs: int = 0
    elementwise: bool = False
    random: bool = False  # training draws random numbers
    wrong: tuple[tuple[tuple[int, ...], str], ...] = ()  # input shapes that are refused, and the text

    def built(self, dtype: str = "float64", seed: int = 0, device: str = "cpu") -> L.Layer:
        """The layer with parameters and running statistics that are all different from each other."""
        layer = self.make()
        layer.build(self.input_shape, seed=seed, dtype=dtype)
        rng = np.random.default_rng(seed)
        state = {}
        for name, value in layer.state_dict().items():
            shift = 1.0 if name.endswith(("running_var", "norm.weight")) else 0.0
            values = rng.uniform(0.2, 1.0, value.shape) * (1.0 if shift else rng.choice([-1.0, 1.0], value.shape))
            state[name] = (values + shift).astype(dtype)
        if state:
            layer.load_state_dict(state)
        return layer.to(device)

    def images(self, n: int = 3, dtype: str = "float64", seed: int = 0) -> np.ndarray:
        """Images (N, ...) from -3 to 3 of which no two elements are equal and none is zero."""
        count = n * math.prod(self.input_shape)
        values = 6.0 * (np.arange(count) + 0.37) / count - 3.0
        return np.random.default_rng(seed).permutation(values).reshape(n, *self.input_shape).astype(dtype)


NOT_IMAGE = (((12,), r"an image of shape \(C, H, W\) for {}; received shape \(12,\)\. Put it before Flatten"),)
TOO_SMALL = r"more than the padded input of .* Use a smaller kernel, more padding or larger images"


def not_image(kind: str) -> tuple[tuple[tuple[int, ...], str], ...]:
    return tuple((shape, text.format(kind)) for shape, text in NOT_IMAGE)


def conv(name, arguments, shape, output, macs, prefix="", wrong=()):
    """A Conv2d row from its keyword arguments."""
    kernel, stride, dilation = (
        (value, value) if isinstance(value, int) else value
        for value in (arguments["kernel_size"], arguments.get("stride", 1), arguments.get("dilation", 1))
    )
    groups, bias = arguments.get("groups", 1), arguments.get("bias", True)
    pads = ref.sides(arguments.get("padding", 0), shape[1:], kernel, stride, dilation)

    def reference(x, state):
        return ref.conv2d(x, state["weight"], state.get("bias"), stride, pads, dilation, groups)

    state = {"weight": (output[0], shape[0] // groups, *kernel)} | ({"bias": output[:1]} if bias else {})
    wrong = (*not_image("Conv2d"), *wrong)
    return Row(
        f"Conv2d {name}", lambda: L.Conv2d(**arguments), shape, output, reference, None, state, macs, wrong=wrong
    )


CONVOLUTIONS = [
    conv("3x3 same", {"out_channels": 4, "kernel_size": 3, "padding": "same"}, (2, 5, 6), (4, 5, 6), 4 * 30 * 18),
    conv(
        "valid",
        {"out_channels": 3, "kernel_size": (2, 3), "padding": "valid"},
        (2, 4, 5),
        (3, 3, 3),
        3 * 9 * 12,
        wrong=[((2, 1, 5), r"the kernel \(2, 3\).*" + TOO_SMALL)],
    ),
    conv("as large as the image", {"out_channels": 3, "kernel_size": (4, 3)}, (2, 4, 3), (3, 1, 1), 3 * 24),
    conv(
        "stride 2", {"out_channels": 4, "kernel_size": 3, "stride": 2, "padding": 1}, (3, 6, 5), (4, 3, 3), 4 * 9 * 27
    ),
    conv(
        "stride above kernel", {"out_channels": 2, "kernel_size": 2, "stride": (3, 4)}, (2, 6, 7), (2, 2, 2), 2 * 4 * 8
    ),
    conv("per side", {"out_channels": 2, "kernel_size": 3, "padding": (0, 2, 1, 0)}, (2, 4, 5), (2, 4, 4), 2 * 16 * 18),
    conv("dilated", {"out_channels": 2, "kernel_size": 2, "dilation": (2, 3)}, (2, 5, 6), (2, 3, 3), 2 * 9 * 8),
    conv(
        "grouped",
        {"out_channels": 4, "kernel_size": 3, "padding": 1, "groups": 2},
        (4, 3, 4),
        (4, 3, 4),
        4 * 12 * 18,
        wrong=[((3, 3, 4), r"number of input channels divisible by groups=2; received 3 channels")],
    ),
    conv(
        "depthwise", {"out_channels": 3, "kernel_size": 3, "padding": 1, "groups": 3}, (3, 4, 4), (3, 4, 4), 3 * 16 * 9
    ),
    conv("1x1 without bias", {"out_channels": 5, "kernel_size": 1, "bias": False}, (3, 3, 4), (5, 3, 4), 5 * 12 * 3),
    conv("narrowing", {"out_channels": 1, "kernel_size": 3, "padding": 1}, (8, 4, 4), (1, 4, 4), 16 * 72),
    conv("widening", {"out_channels": 16, "kernel_size": 3, "padding": 1}, (1, 4, 4), (16, 4, 4), 16 * 16 * 9),
]


def pool(name, make, function, shape, output, kernel, stride=None, padding=0, **options):
    """A pooling row; `function` is the reference."""

    def reference(x, state):
        return function(
            x, kernel=kernel, stride=stride or kernel, pads=ref.sides(padding, x.shape[2:], kernel), **options
        )

    kind = type(make()).__name__
    wrong = (*not_image(kind), ((2, 1, 1), TOO_SMALL)) if padding == 0 else not_image(kind)
    return Row(f"{kind} {name}", make, shape, output, reference, wrong=wrong)


POOLINGS = [
    pool("2", lambda: L.MaxPool2d(2), ref.max_pool2d, (3, 5, 4), (3, 2, 2), (2, 2)),
    pool(
        "3, stride 2, padding 1, ceil",
        lambda: L.MaxPool2d(3, 2, 1, ceil_mode=True),
        ref.max_pool2d,
        (2, 6, 5),
        (2, 4, 3),
        (3, 3),
        (2, 2),
        1,
        ceil_mode=True,
    ),
    pool(
        "dilated",
        lambda: L.MaxPool2d((2, 3), stride=1, padding=(1, 0), dilation=(2, 1)),
        ref.max_pool2d,
        (2, 5, 4),
        (2, 5, 2),
        (2, 3),
        (1, 1),
        (1, 0),
        dilation=(2, 1),
    ),
    pool("2", lambda: L.AvgPool2d(2), ref.avg_pool2d, (3, 4, 5), (3, 2, 2), (2, 2)),
    pool(
        "padded, without counting",
        lambda: L.AvgPool2d((3, 2), 2, (1, 0), count_include_pad=False),
        ref.avg_pool2d,
        (2, 5, 6),
        (2, 3, 3),
        (3, 2),
        (2, 2),
        (1, 0),
        count_include_pad=False,
    ),
    pool(
        "padded, ceil",
        lambda: L.AvgPool2d(3, 2, 1, ceil_mode=True),
        ref.avg_pool2d,
        (2, 6, 5),
        (2, 4, 3),
        (3, 3),
        (2, 2),
        1,
        ceil_mode=True,
    ),
    pool("p 2", lambda: L.LpPool2d(2), partial(ref.lp_pool2d, p=2.0), (2, 4, 5), (2, 2, 2), (2, 2)),
    pool(
        "p 3, mean, padded",
        lambda: L.LpPool2d(3, 3, stride=2, padding=1, mean=True),
        partial(ref.lp_pool2d, p=3.0),
        (2, 5, 5),
        (2, 3, 3),
        (3, 3),
        (2, 2),
        1,
        mean=True,
    ),
    pool(
        "p infinite", lambda: L.LpPool2d(2, math.inf), partial(ref.lp_pool2d, p=math.inf), (2, 4, 4), (2, 2, 2), (2, 2)
    ),
    Row(
        "GlobalAvgPool2d",
        L.GlobalAvgPool2d,
        (3, 4, 5),
        (3,),
        lambda x, state: x.mean(axis=(2, 3)),
        wrong=not_image("GlobalAvgPool2d"),
    ),
    Row(
        "GlobalMaxPool2d",
        L.GlobalMaxPool2d,
        (3, 4, 5),
        (3,),
        lambda x, state: x.max(axis=(2, 3)),
        wrong=not_image("GlobalMaxPool2d"),
    ),
    Row(
        "AdaptiveAvgPool2d",
        lambda: L.AdaptiveAvgPool2d((2, 3)),
        (2, 5, 4),
        (2, 2, 3),
        lambda x, state: ref.adaptive_avg_pool2d(x, (2, 3)),
        wrong=not_image("AdaptiveAvgPool2d"),
    ),
    Row(
        "AdaptiveMaxPool2d",
        lambda: L.AdaptiveMaxPool2d(3),
        (2, 5, 4),
        (2, 3, 3),
        lambda x, state: ref.adaptive_max_pool2d(x, (3, 3)),
        wrong=not_image("AdaptiveMaxPool2d"),
    ),
]


def batch_norm(x, state, train, prefix="", eps=1e-5):
    """Batch norm from the entries of a state dict."""
    channels = x.shape[1]
    weight, bias = state.get(prefix + "weight", np.ones(channels)), state.get(prefix + "bias", np.zeros(channels))
    return ref.batch_norm(
        x, weight, bias, state[prefix + "running_mean"], state[prefix + "running_var"], train, eps=eps
    )[0]


def norm_state(channels, prefix="", affine=True):
    names = ("weight", "bias", "running_mean", "running_var") if affine else ("running_mean", "running_var")
    return {prefix + name: (channels,) for name in names}


NORMALISATIONS = [
    Row(
        "BatchNorm2d",
        L.BatchNorm2d,
        (3, 4, 2),
        (3, 4, 2),
        partial(batch_norm, train=False),
        partial(batch_norm, train=True),
        norm_state(3),
        wrong=(((3,), r"an input of shape \(C, H, W\) for BatchNorm2d; received shape \(3,\)"),),
    ),
    Row(
        "BatchNorm2d without parameters",
        lambda: L.BatchNorm2d(eps=0.1, affine=False),
        (2, 3, 3),
        (2, 3, 3),
        partial(batch_norm, train=False, eps=0.1),
        partial(batch_norm, train=True, eps=0.1),
        norm_state(2, affine=False),
    ),
    Row(
        "BatchNorm1d",
        L.BatchNorm1d,
        (5,),
        (5,),
        partial(batch_norm, train=False),
        partial(batch_norm, train=True),
        norm_state(5),
        wrong=(((3, 4, 4), r"an input of shape \(D,\) for BatchNorm1d; received shape \(3, 4, 4\)"),),
    ),
    Row(
        "LocalResponseNorm",
        lambda: L.LocalResponseNorm(3, alpha=0.5, beta=0.6, k=1.5),
        (5, 3, 2),
        (5, 3, 2),
        lambda x, state: ref.local_response_norm(x, 3, 0.5, 0.6, 1.5),
        wrong=not_image("LocalResponseNorm"),
    ),
    Row(
        "LocalResponseNorm even",
        lambda: L.LocalResponseNorm(4, alpha=1.0),
        (5, 2, 2),
        (5, 2, 2),
        lambda x, state: ref.local_response_norm(x, 4, 1.0),
    ),
]


def activation(make, function, shape=(3, 4, 5), elementwise=True, name=""):
    kind = name or type(make()).__name__
    return Row(kind, make, shape, shape, lambda x, state: function(x), elementwise=elementwise)


ACTIVATIONS = [
    activation(L.ReLU, ref.relu),
    activation(L.LeakyReLU, ref.leaky_relu),
    activation(lambda: L.Clip(-1.0, 2.0), partial(ref.clip, low=-1.0, high=2.0), name="Clip"),
    activation(lambda: L.Clip(-math.inf, 1.0), partial(ref.clip, low=-math.inf, high=1.0), name="Clip, above only"),
    activation(lambda: L.LeakyReLU(0.3), lambda x: np.where(x > 0, x, 0.3 * x), name="LeakyReLU 0.3"),
    activation(L.ELU, ref.elu),
    activation(lambda: L.ELU(0.5), lambda x: np.where(x > 0, x, 0.5 * np.expm1(x)), name="ELU 0.5"),
    activation(L.SELU, ref.selu),
    activation(L.GELU, ref.gelu),
    activation(lambda: L.GELU("tanh"), ref.gelu_tanh, name="GELU tanh"),
    activation(L.SiLU, ref.silu),
    activation(L.Sigmoid, ref.logistic),
    activation(L.Tanh, ref.tanh),
    activation(L.Softplus, ref.softplus),
    activation(lambda: L.Softplus(2.0, 5.0), partial(ref.softplus, beta=2.0, threshold=5.0), name="Softplus 2"),
    activation(L.Softmax, ref.softmax, (4,), elementwise=False),
    activation(L.Softmax, ref.softmax, (3, 2, 4), elementwise=False, name="Softmax of images"),
    activation(L.LogSoftmax, ref.log_softmax, (4,), elementwise=False),
    activation(L.ReLU, ref.relu, (7,), name="ReLU of features"),
]


def dense(x, state, prefix=""):
    y = x @ np.float64(state[prefix + "weight"]).T
    return y + state[prefix + "bias"] if prefix + "bias" in state else y


DENSE = [
    Row(
        "Dense",
        lambda: L.Dense(4),
        (6,),
        (4,),
        dense,
        state={"weight": (4, 6), "bias": (4,)},
        macs=24,
        wrong=(
            ((2, 3, 1), r"features of shape \(D,\) for Dense; received shape \(2, 3, 1\)\. Put a Flatten before it"),
        ),
    ),
    Row("Dense without bias", lambda: L.Dense(1, bias=False), (3,), (1,), dense, state={"weight": (1, 3)}, macs=3),
    Row("Flatten", L.Flatten, (3, 4, 5), (60,), lambda x, state: x.reshape(len(x), -1), elementwise=True),
    Row("Flatten of features", L.Flatten, (6,), (6,), lambda x, state: x, elementwise=True),
    Row("Identity", L.Identity, (2, 3, 4), (2, 3, 4), lambda x, state: x, elementwise=True),
    Row(
        "PadChannels",
        lambda: L.PadChannels(2, 1),
        (3, 4, 2),
        (6, 4, 2),
        lambda x, state: ref.pad_channels(x, 2, 1),
        wrong=not_image("PadChannels"),
    ),
    Row("Dropout", lambda: L.Dropout(0.4), (4, 5, 6), (4, 5, 6), lambda x, state: x, elementwise=True, random=True),
    Row("Dropout 0", lambda: L.Dropout(0.0), (12,), (12,), lambda x, state: x, elementwise=True),
    Row(
        "Dropout 1",
        lambda: L.Dropout(1.0),
        (12,),
        (12,),
        lambda x, state: x,
        lambda x, state: 0 * x,
        elementwise=True,
    ),
]


def conv_same(x, state, prefix=""):
    """A 3x3 convolution with padding 1, or a 1x1 one, from the entries of a state dict."""
    weight = state[prefix + "weight"]
    pads = (weight.shape[2] // 2,) * 4
    return ref.conv2d(x, weight, state.get(prefix + "bias"), pads=pads)


def small_net(x, state, train):
    x = ref.relu(batch_norm(conv_same(x, state, "0."), state, train, "1."))
    x = ref.max_pool2d(x, (2, 2), (2, 2), (0, 0, 0, 0))
    return dense(x.reshape(len(x), -1), state, "5.")


def inception(x, state):
    return np.concatenate([conv_same(x, state, "0."), ref.relu(conv_same(x, state, "1.0."))], axis=1)


def named_branches(x, state):
    return np.concatenate([conv_same(x, state, "left."), x], axis=1)


def residual(x, state):
    body = conv_same(ref.relu(conv_same(x, state, "conv1.")), state, "conv2.")
    return ref.relu(body + conv_same(x, state, "downsample."))


CONTAINERS = [
    Row(
        "Sequential",
        lambda: L.Sequential(
            L.Conv2d(3, 3, padding=1), L.BatchNorm2d(), L.ReLU(), L.MaxPool2d(2), L.Flatten(), L.Dense(4)
        ),
        (2, 4, 5),
        (4,),
        partial(small_net, train=False),
        partial(small_net, train=True),
        {"0.weight": (3, 2, 3, 3), "0.bias": (3,)} | norm_state(3, "1.") | {"5.weight": (4, 12), "5.bias": (4,)},
        wrong=(
            ((2, 1, 1), r"layer '3': the kernel \(2, 2\)"),
            ((8,), r"layer '0' expects an image of shape \(C, H, W\) for Conv2d; received shape \(8,\)"),
        ),
    ),
    Row(
        "Sequential by name, nested",
        lambda: L.Sequential(first=L.Dense(4), rest=L.Sequential(L.Tanh(), out=L.Dense(2))),
        (3,),
        (2,),
        lambda x, state: dense(np.tanh(dense(x, state, "first.")), state, "rest.out."),
        state={"first.weight": (4, 3), "first.bias": (4,), "rest.out.weight": (2, 4), "rest.out.bias": (2,)},
    ),
    Row(
        "Recompute",
        lambda: L.Recompute(
            L.Sequential(L.Conv2d(3, 3, padding=1), L.BatchNorm2d(), L.ReLU(), L.MaxPool2d(2), L.Flatten(), L.Dense(4))
        ),
        (2, 4, 5),
        (4,),
        partial(small_net, train=False),
        partial(small_net, train=True),
        {"0.weight": (3, 2, 3, 3), "0.bias": (3,)} | norm_state(3, "1.") | {"5.weight": (4, 12), "5.bias": (4,)},
    ),
    Row("Sequential of nothing", L.Sequential, (2, 3, 3), (2, 3, 3), lambda x, state: x, elementwise=True),
    Row(
        "Concat",
        lambda: L.Concat(L.Conv2d(2, 1), L.Sequential(L.Conv2d(3, 3, padding=1), L.ReLU())),
        (2, 3, 4),
        (5, 3, 4),
        inception,
        state={"0.weight": (2, 2, 1, 1), "0.bias": (2,), "1.0.weight": (3, 2, 3, 3), "1.0.bias": (3,)},
    ),
    Row(
        "Concat by name",
        lambda: L.Concat(left=L.Conv2d(2, 3, padding=1), right=L.Identity()),
        (2, 3, 4),
        (4, 3, 4),
        named_branches,
        state={"left.weight": (2, 2, 3, 3), "left.bias": (2,)},
    ),
    Row(
        "Residual, identity",
        lambda: L.Residual(L.Sequential(conv1=L.Conv2d(2, 3, padding=1), relu=L.Tanh())),
        (2, 3, 4),
        (2, 3, 4),
        lambda x, state: x + np.tanh(conv_same(x, state, "conv1.")),
        state={"conv1.weight": (2, 2, 3, 3), "conv1.bias": (2,)},
    ),
    Row(
        "Residual, projection",
        lambda: L.Residual(
            L.Sequential(conv1=L.Conv2d(3, 3, padding=1), relu=L.ReLU(), conv2=L.Conv2d(4, 1, bias=False)),
            L.Conv2d(4, 1),
            L.ReLU(),
        ),
        (2, 3, 3),
        (4, 3, 3),
        residual,
        state={
            "conv1.weight": (3, 2, 3, 3),
            "conv1.bias": (3,),
            "conv2.weight": (4, 3, 1, 1),
            "downsample.weight": (4, 2, 1, 1),
            "downsample.bias": (4,),
        },
    ),
    Row(
        "Residual, shortcut by another name",
        lambda: L.Residual(L.Conv2d(2, 3, padding=1), L.Conv2d(2, 1, bias=False), shortcut_name="shortcut"),
        (2, 3, 4),
        (2, 3, 4),
        lambda x, state: conv_same(x, state) + conv_same(x, state, "shortcut."),
        state={"weight": (2, 2, 3, 3), "bias": (2,), "shortcut.weight": (2, 2, 1, 1)},
    ),
    Row(
        "DenseConcat",
        lambda: L.DenseConcat(L.Sequential(norm=L.BatchNorm2d(), conv=L.Conv2d(2, 3, padding=1, bias=False))),
        (3, 4, 3),
        (5, 4, 3),
        lambda x, state: np.concatenate([x, conv_same(batch_norm(x, state, False, "norm."), state, "conv.")], axis=1),
        lambda x, state: np.concatenate([x, conv_same(batch_norm(x, state, True, "norm."), state, "conv.")], axis=1),
        norm_state(3, "norm.") | {"conv.weight": (2, 3, 3, 3)},
    ),
    Row(
        "Sequential with one layer twice",
        lambda: (lambda twice: L.Sequential(twice, L.Tanh(), twice))(L.Dense(3)),
        (3,),
        (3,),
        lambda x, state: dense(np.tanh(dense(x, state, "0.")), state, "0."),
        state={"0.weight": (3, 3), "0.bias": (3,)},
    ),
]

ROWS = [*CONVOLUTIONS, *POOLINGS, *NORMALISATIONS, *ACTIVATIONS, *DENSE, *CONTAINERS]
