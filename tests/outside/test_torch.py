"""xpcnn against torch: forward and every gradient in float64, losses, ten steps of every optimizer, schedules.

The naive loops of `references.py` are compared with torch too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import references
from references import batch_first, batch_last
from strategies import normal
from tolerances import TOLERANCES, assert_close

import xpcnn
from xpcnn import layers as L
from xpcnn import schedule

torch = pytest.importorskip("torch", reason="torch is not installed (pip install torch)")
nn, F = torch.nn, torch.nn.functional
pytestmark = pytest.mark.outside


def tensor(a: np.ndarray, grad: bool = False) -> Any:
    return torch.tensor(np.array(a), requires_grad=grad)


def assert_torch(actual: Any, expected: Any) -> None:
    assert_close(np.asarray(actual), expected.detach().numpy(), "torch", "float64")


# --- layers -----------------------------------------------------------------------------------------------------

# name -> (ours, torch's, input shape (N, ...))
PAIRS: dict[str, tuple[Callable[[], L.Layer], Callable[[], Any], tuple[int, ...]]] = {}


def conv(shape: tuple[int, ...], filters: int, kernel: Any, **options: Any) -> None:
    name = f"Conv2d {shape} {filters} {kernel} {options}"
    PAIRS[name] = (
        lambda: L.Conv2d(filters, kernel, **options),
        lambda: nn.Conv2d(shape[1], filters, kernel, **options),
        shape,
    )


conv((3, 2, 7, 6), 4, 3)
conv((1, 3, 5, 5), 2, 5)
conv((2, 3, 8, 9), 5, (3, 2), stride=(2, 3), padding=(1, 0))
conv((2, 3, 8, 9), 4, 3, padding="same")
conv((2, 3, 8, 9), 4, (4, 2), padding="same", dilation=(1, 3))
conv((2, 3, 8, 9), 4, 3, padding="valid", bias=False)
conv((2, 4, 9, 8), 6, 3, padding=2, dilation=2, groups=2)
conv((2, 4, 9, 8), 6, 3, stride=2, padding=1, groups=2)
conv((2, 5, 6, 6), 5, 3, padding=1, groups=5)
conv((2, 5, 6, 6), 10, 3, stride=2, padding=1, groups=5)
conv((2, 7, 5, 4), 9, 1)
conv((2, 7, 5, 4), 3, 1, stride=2)
conv((2, 1, 12, 12), 20, 5)
conv((2, 24, 10, 10), 2, 3, padding=1)
conv((4, 8, 30, 31), 12, 3, padding=1)
conv((2, 2, 9, 9), 3, 2, stride=4)


def pool(ours: Any, theirs: Any, shape: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    name = f"{ours.__name__} {shape} {arguments} {options}"
    PAIRS[name] = (lambda: ours(*arguments, **options), lambda: theirs(*arguments, **options), shape)


for shape in ((2, 3, 8, 8), (1, 2, 7, 9)):
    pool(L.MaxPool2d, nn.MaxPool2d, shape, 2)
    pool(L.MaxPool2d, nn.MaxPool2d, shape, 3, 2, 1)
    pool(L.MaxPool2d, nn.MaxPool2d, shape, 3, 2, 1, ceil_mode=True)
    pool(L.MaxPool2d, nn.MaxPool2d, shape, (3, 2), (1, 3), (1, 0))
    pool(L.MaxPool2d, nn.MaxPool2d, shape, (2, 3), 2, 1, dilation=(3, 2), ceil_mode=True)
    pool(L.MaxPool2d, nn.MaxPool2d, shape, 2, 3, 1, ceil_mode=True)
    pool(L.AvgPool2d, nn.AvgPool2d, shape, 2)
    pool(L.AvgPool2d, nn.AvgPool2d, shape, 3, 2, 1)
    pool(L.AvgPool2d, nn.AvgPool2d, shape, 3, 2, 1, ceil_mode=True)
    pool(L.AvgPool2d, nn.AvgPool2d, shape, 3, 2, 1, ceil_mode=True, count_include_pad=False)
    pool(L.AvgPool2d, nn.AvgPool2d, shape, (3, 2), (1, 3), (1, 0), count_include_pad=False)
    pool(L.AvgPool2d, nn.AvgPool2d, shape, 2, 3, 1, ceil_mode=True)
    pool(L.AvgPool2d, nn.AvgPool2d, shape, (1, 4), (2, 3), (0, 2), ceil_mode=True)
    for size in (1, 3, (2, 5), (9, 1)):
        pool(L.AdaptiveAvgPool2d, nn.AdaptiveAvgPool2d, shape, size)
        pool(L.AdaptiveMaxPool2d, nn.AdaptiveMaxPool2d, shape, size)
    PAIRS[f"GlobalAvgPool2d {shape}"] = (
        L.GlobalAvgPool2d,
        lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        shape,
    )
    PAIRS[f"GlobalMaxPool2d {shape}"] = (
        L.GlobalMaxPool2d,
        lambda: nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten()),
        shape,
    )
    for size in (1, 2, 3, 4, 5):
        pool(L.LocalResponseNorm, nn.LocalResponseNorm, (2, 5, 3, 3), size, alpha=0.7, beta=0.6, k=1.2)
    PAIRS[f"BatchNorm2d {shape}"] = (L.BatchNorm2d, lambda c=shape[1]: nn.BatchNorm2d(c), shape)
    PAIRS[f"BatchNorm2d {shape} options"] = (
        lambda: L.BatchNorm2d(0.01, 0.3, affine=False),
        lambda c=shape[1]: nn.BatchNorm2d(c, 0.01, 0.3, affine=False),
        shape,
    )
    PAIRS[f"Flatten {shape}"] = (L.Flatten, nn.Flatten, shape)
PAIRS["BatchNorm1d"] = (L.BatchNorm1d, lambda: nn.BatchNorm1d(6), (5, 6))
PAIRS["Dense"] = (lambda: L.Dense(4), lambda: nn.Linear(6, 4), (5, 6))
PAIRS["Dense without bias"] = (lambda: L.Dense(4, bias=False), lambda: nn.Linear(6, 4, bias=False), (1, 6))
# torch's LPPool2d takes powers of x, not of |x|: the same for even p
PAIRS["LpPool2d 2"] = (lambda: L.LpPool2d(3, 2, stride=2), lambda: nn.LPPool2d(2, 3, 2), (2, 3, 8, 7))
PAIRS["LpPool2d 4"] = (lambda: L.LpPool2d((2, 3), 4), lambda: nn.LPPool2d(4, (2, 3)), (2, 3, 8, 7))

ACTIVATIONS = {
    "ReLU": (L.ReLU, nn.ReLU),
    "LeakyReLU": (L.LeakyReLU, nn.LeakyReLU),
    "LeakyReLU 0.3": (lambda: L.LeakyReLU(0.3), lambda: nn.LeakyReLU(0.3)),
    "ELU": (L.ELU, nn.ELU),
    "ELU 0.5": (lambda: L.ELU(0.5), lambda: nn.ELU(0.5)),
    "SELU": (L.SELU, nn.SELU),
    "GELU": (L.GELU, nn.GELU),
    "GELU tanh": (lambda: L.GELU("tanh"), lambda: nn.GELU("tanh")),
    "SiLU": (L.SiLU, nn.SiLU),
    "Sigmoid": (L.Sigmoid, nn.Sigmoid),
    "Tanh": (L.Tanh, nn.Tanh),
    "Softplus": (L.Softplus, nn.Softplus),
    "Softplus 2, 3": (lambda: L.Softplus(2.0, 3.0), lambda: nn.Softplus(2.0, 3.0)),
    "Softmax": (L.Softmax, lambda: nn.Softmax(1)),
    "LogSoftmax": (L.LogSoftmax, lambda: nn.LogSoftmax(1)),
}
for name, (ours, theirs) in ACTIVATIONS.items():
    PAIRS[name] = (ours, theirs, (3, 4, 5, 2))
    PAIRS[f"{name} of features"] = (ours, theirs, (6, 5))


def twins(name: str) -> tuple[L.Layer, Any, np.ndarray]:
    """The two layers with the same random parameters and statistics, and an input."""
    make, make_torch, shape = PAIRS[name]
    ours, theirs = make(), make_torch().double()
    ours.build(shape[1:], dtype="float64")
    state = {key: normal(i, *value.shape) for i, (key, value) in enumerate(ours.state_dict().items())}
    for key in state:
        if key.endswith("running_var"):
            state[key] = state[key] ** 2 + 0.5
    if state:
        ours.load_state_dict(state)
        theirs.load_state_dict({k: tensor(v) for k, v in state.items()}, strict=False)
    x = 3 * normal(99, *shape)
    return ours, theirs, x


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("train", [True, False])
def test_forward_and_every_gradient(name, train):
    ours, theirs, x = twins(name)
    theirs.train(train)
    x_torch = tensor(x, grad=True)
    expected = theirs(x_torch)
    y, ctx = ours.forward(batch_last(x), L.Step(inference=not train))
    assert_torch(batch_first(y), expected)
    dy = normal(98, *expected.shape)
    expected.backward(tensor(dy))
    assert_torch(batch_first(ours.backward(batch_last(dy), ctx)), x_torch.grad)
    for key, parameter in theirs.named_parameters():
        assert_torch(ours.parameters()[key].grad, parameter.grad)
    for key, buffer in theirs.named_buffers():
        if not key.endswith("num_batches_tracked"):
            assert_torch(ours.state_dict()[key], buffer)


@pytest.mark.parametrize("name", ["Dense", "BatchNorm1d", next(iter(PAIRS))])
def test_state_dicts_are_exchanged(name):
    ours, theirs, x = twins(name)
    state = {k: v.numpy() for k, v in make_random(theirs).state_dict().items()}
    ours.load_state_dict(state)
    theirs.eval()
    assert_torch(ours(x), theirs(tensor(x)))


def make_random(module: Any) -> Any:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


def test_a_whole_network():
    ours = L.Sequential(
        L.Conv2d(6, 3, padding=1, bias=False),
        L.BatchNorm2d(),
        L.ReLU(),
        L.MaxPool2d(2),
        L.Conv2d(4, 3),
        L.Tanh(),
        L.Flatten(),
        L.Dense(5),
    )
    theirs = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 4, 3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(36, 5),
    ).double()
    ours.build((2, 10, 10), dtype="float64")
    ours.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    optimizer, reference = xpcnn.Adam(0.01), torch.optim.Adam(theirs.parameters(), 0.01)
    for step in range(5):
        x, t = normal(step, 8, 2, 10, 10), np.arange(8) % 5
        logits, ctx = ours.forward(batch_last(x), True)
        loss, dlogits = xpcnn.softmax_cross_entropy(logits, t)
        ours.backward(dlogits, ctx, need_dx=False)
        optimizer.step(ours)
        expected = F.cross_entropy(theirs(tensor(x)), tensor(t))
        reference.zero_grad()
        expected.backward()
        reference.step()
        assert math.isclose(float(loss), expected.item(), rel_tol=1e-9)
    for key, value in theirs.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert_torch(ours.state_dict()[key], value)


def test_ties_of_max_pooling_go_where_torch_sends_them():
    x = np.random.default_rng(1).integers(0, 3, (2, 3, 9, 8)).astype("float64")
    for options in ({"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": (2, 3), "stride": 1, "dilation": 2}):
        ours, theirs = L.MaxPool2d(**options), nn.MaxPool2d(**options)
        x_torch = tensor(x, grad=True)
        expected = theirs(x_torch)
        dy = normal(1, *expected.shape)
        expected.backward(tensor(dy))
        _, ctx = ours.forward(batch_last(x), True)
        assert_torch(batch_first(ours.backward(batch_last(dy), ctx)), x_torch.grad)


def test_public_conv2d():
    x, weight, bias = normal(1, 2, 4, 9, 8), normal(2, 6, 2, 3, 3), normal(3, 6)
    options = {"stride": 2, "padding": (1, 2), "dilation": (2, 1), "groups": 2}
    expected = F.conv2d(*(tensor(a) for a in (x, weight, bias)), **options)
    assert_torch(xpcnn.conv2d(x, weight, bias, **options), expected)


def test_parameter_names_and_initial_bounds():
    ours, theirs = L.Conv2d(8, 3, groups=2), nn.Conv2d(4, 8, 3, groups=2)
    ours.build((4, 5, 5))
    assert {k: tuple(v.shape) for k, v in ours.state_dict().items()} == {
        k: tuple(v.shape) for k, v in theirs.state_dict().items()
    }
    bound = 1 / math.sqrt(2 * 9)
    for layer in (dict(theirs.named_parameters()), {k: tensor(p.data) for k, p in ours.parameters().items()}):
        assert 0.9 * bound < layer["weight"].abs().max() <= bound
        assert 0.3 * bound < layer["bias"].abs().max() <= bound


# --- losses -----------------------------------------------------------------------------------------------------

WEIGHTS = np.array([0.5, 2.0, 1.0, 0.1, 3.0])
LABELS = np.array([0, 1, 2, 4, 2, 0, 1])


@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("soft", "ignore_index"), [(True, None), (False, None), (False, 1), (False, -1)])
def test_softmax_cross_entropy(class_weights, label_smoothing, ignore_index, soft):
    logits, t = 3 * normal(1, 7, 5), LABELS.copy()
    if ignore_index == -1:
        t[[0, 3]] = -1
    if soft:
        t = references.softmax(normal(2, 7, 5))
    logits_torch = tensor(logits, grad=True)
    expected = F.cross_entropy(
        logits_torch,
        tensor(t),
        weight=None if class_weights is None else tensor(class_weights),
        label_smoothing=label_smoothing,
        ignore_index=-100 if ignore_index is None else ignore_index,
    )
    expected.backward()
    loss, dlogits = xpcnn.softmax_cross_entropy(logits.T, t, class_weights, label_smoothing, ignore_index)
    assert_torch(loss, expected)
    assert_torch(dlogits.T, logits_torch.grad)
    reference = references.softmax_cross_entropy(logits, t, class_weights, label_smoothing, ignore_index)
    assert math.isclose(reference, expected.item(), rel_tol=1e-12)


def test_softmax_cross_entropy_of_a_class_ruled_out():
    logits = np.array([[0.0, -np.inf, 1.0], [2.0, 0.5, -np.inf]])
    logits_torch = tensor(logits, grad=True)
    expected = F.cross_entropy(logits_torch, tensor(np.array([0, 1])))
    expected.backward()
    loss, dlogits = xpcnn.softmax_cross_entropy(logits.T, np.array([0, 1]))
    assert_torch(loss, expected)
    assert_torch(dlogits.T, logits_torch.grad)


def test_mse():
    y, target = normal(1, 4, 3), normal(2, 4, 3)
    y_torch = tensor(y, grad=True)
    expected = F.mse_loss(y_torch, tensor(target))
    expected.backward()
    loss, dy = xpcnn.mse_loss(y.T, target)
    assert_torch(loss, expected)
    assert_torch(dy.T, y_torch.grad)


# --- optimizers and schedules -----------------------------------------------------------------------------------

OPTIMIZERS = {
    "SGD": (lambda: xpcnn.SGD(0.1), lambda p: torch.optim.SGD(p, 0.1)),
    "SGD default": (xpcnn.SGD, lambda p: torch.optim.SGD(p)),
    "SGD momentum decay": (
        lambda: xpcnn.SGD(0.1, 0.9, weight_decay=0.05),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.05),
    ),
    "SGD Nesterov": (
        lambda: xpcnn.SGD(0.1, 0.8, nesterov=True, weight_decay=0.05),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.8, nesterov=True, weight_decay=0.05),
    ),
    "Adagrad default": (xpcnn.Adagrad, torch.optim.Adagrad),
    "Adagrad": (
        lambda: xpcnn.Adagrad(0.1, lr_decay=0.1, weight_decay=0.1, initial_accumulator_value=0.2),
        lambda p: torch.optim.Adagrad(p, 0.1, lr_decay=0.1, weight_decay=0.1, initial_accumulator_value=0.2),
    ),
    "RMSprop default": (xpcnn.RMSprop, torch.optim.RMSprop),
    "RMSprop": (
        lambda: xpcnn.RMSprop(0.02, 0.9, 1e-6, momentum=0.5, centered=True, weight_decay=0.1),
        lambda p: torch.optim.RMSprop(p, 0.02, 0.9, 1e-6, momentum=0.5, centered=True, weight_decay=0.1),
    ),
    "Adam default": (xpcnn.Adam, torch.optim.Adam),
    "Adam": (
        lambda: xpcnn.Adam(0.02, (0.8, 0.95), 1e-5, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, 0.02, (0.8, 0.95), 1e-5, weight_decay=0.1),
    ),
    "AdamW default": (xpcnn.AdamW, torch.optim.AdamW),
    "AdamW": (
        lambda: xpcnn.AdamW(0.02, (0.8, 0.95), 1e-5, weight_decay=0.3),
        lambda p: torch.optim.AdamW(p, 0.02, (0.8, 0.95), 1e-5, weight_decay=0.3),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_groups_and_parameters_that_are_frozen_for_a_while(name):
    """A frozen parameter is one without gradient in torch: it counts its own steps, and so do we."""
    ours, theirs = OPTIMIZERS[name]
    net = L.Sequential(L.Dense(4), L.Dense(3))
    net.build((5,), dtype="float64")
    tensors = {k: tensor(p.data, grad=True) for k, p in net.parameters().items()}
    optimizer, defaults = ours(), theirs([tensor(np.zeros(1), grad=True)]).defaults
    settings = optimizer.settings() | {"groups": {"*.bias": {"weight_decay": 0.0}, "0": {"lr": 0.03}}}
    optimizer = type(optimizer)(**{k: v for k, v in settings.items() if k != "optimizer"})
    own = {"0.weight": {"lr": 0.03}, "0.bias": {"weight_decay": 0.0}, "1.weight": {}, "1.bias": {"weight_decay": 0.0}}
    reference = theirs([{"params": [tensors[key]], **defaults, **own[key]} for key in tensors])
    frozen = {"0.weight": range(4), "1.bias": range(3, 6)}
    for step in range(10):
        net.unfreeze()
        for i, (key, parameter) in enumerate(net.parameters().items()):
            gradient = normal(100 * step + i, *parameter.data.shape)
            tensors[key].grad = None if step in frozen.get(key, ()) else tensor(gradient)
            if step in frozen.get(key, ()):
                net.freeze(key)
            parameter.accumulate(gradient)
        optimizer.step(net, 0.9**step)
        for group in reference.param_groups:
            group["lr"] = group.setdefault("first", group["lr"]) * 0.9**step
        reference.step()
    relative, absolute = TOLERANCES["update", "float64"]
    for key, parameter in net.parameters().items():
        expected = tensors[key].detach().numpy()
        np.testing.assert_allclose(parameter.data, expected, rtol=relative, atol=absolute, err_msg=key)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 1.0])
def test_ten_steps_of_every_optimizer(name, clip):
    ours, theirs = OPTIMIZERS[name]
    net = L.Sequential(L.Dense(4), L.Dense(3))
    net.build((5,), dtype="float64")
    tensors = {k: tensor(p.data, grad=True) for k, p in net.parameters().items()}
    optimizer, reference = ours(), theirs(list(tensors.values()))
    optimizer.clip_norm = clip
    for step in range(10):
        for i, (key, parameter) in enumerate(net.parameters().items()):
            gradient = normal(100 * step + i, *parameter.data.shape)
            parameter.grad[...] = gradient
            tensors[key].grad = tensor(gradient)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(list(tensors.values()), clip)
        optimizer.step(net)
        reference.step()
    relative, absolute = TOLERANCES["update", "float64"]
    for key, parameter in net.parameters().items():
        expected = tensors[key].detach().numpy()
        np.testing.assert_allclose(parameter.data, expected, rtol=relative, atol=absolute, err_msg=key)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (schedule.StepDecay(3, 0.5), lambda o, n: torch.optim.lr_scheduler.StepLR(o, 3, 0.5)),
        (schedule.Exponential(0.9), lambda o, n: torch.optim.lr_scheduler.ExponentialLR(o, 0.9)),
        (schedule.Cosine(0.1), lambda o, n: torch.optim.lr_scheduler.CosineAnnealingLR(o, n, 0.1)),
        (schedule.OneCycle(), lambda o, n: torch.optim.lr_scheduler.OneCycleLR(o, 1.0, n)),
        (
            schedule.OneCycle(0.4, 10.0, 100.0),
            lambda o, n: torch.optim.lr_scheduler.OneCycleLR(
                o, 1.0, n, pct_start=0.4, div_factor=10.0, final_div_factor=100.0
            ),
        ),
    ],
    ids=lambda value: repr(value) if isinstance(value, schedule.Schedule) else "",
)
@pytest.mark.parametrize("total", [5, 12, 100])
def test_schedules(ours, theirs, total):
    optimizer = torch.optim.SGD([tensor(np.zeros(1), grad=True)], lr=1.0)
    scheduler = theirs(optimizer, total)
    for t in range(total):
        assert math.isclose(ours(t, total), optimizer.param_groups[0]["lr"], rel_tol=1e-9, abs_tol=1e-12)
        optimizer.step()
        if t + 1 < total:
            scheduler.step()


# --- the judge is judged ----------------------------------------------------------------------------------------


def test_naive_convolution():
    x, weight, bias = normal(1, 2, 4, 8, 7), normal(2, 6, 2, 3, 2), normal(3, 6)
    x_torch, w_torch, b_torch = (tensor(a, grad=True) for a in (x, weight, bias))
    expected = F.conv2d(F.pad(x_torch, (0, 1, 2, 1)), w_torch, b_torch, (2, 1), 0, (1, 2), 2)
    options = ((2, 1), (2, 1, 0, 1), (1, 2), 2)
    assert_torch(references.conv2d(x, weight, bias, *options), expected)
    dy = normal(4, *expected.shape)
    expected.backward(tensor(dy))
    for actual, wanted in zip(
        references.conv2d_gradients(dy, x, weight, *options), (x_torch, w_torch, b_torch), strict=True
    ):
        assert_torch(actual, wanted.grad)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (1, 0)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (2, 3), (5, 4)])
@pytest.mark.parametrize("size", [(6, 7), (8, 5)])
def test_naive_pooling(ceil_mode, padding, stride, size):
    kernel, pads = (3, 2), (padding[0], padding[0], padding[1], padding[1])
    x = np.random.default_rng(1).integers(-9, 9, (2, 3, *size)).astype("float64")
    x_torch = tensor(x, grad=True)
    expected = F.max_pool2d(x_torch, kernel, stride, padding, ceil_mode=ceil_mode)
    assert_torch(references.max_pool2d(x, kernel, stride, pads, ceil_mode=ceil_mode), expected)
    dy = normal(1, *expected.shape)
    expected.backward(tensor(dy))
    assert_torch(references.max_pool2d_gradient(dy, x, kernel, stride, pads, ceil_mode=ceil_mode), x_torch.grad)
    for include in (True, False):
        x_torch = tensor(x, grad=True)
        expected = F.avg_pool2d(x_torch, kernel, stride, padding, ceil_mode, include)
        assert_torch(references.avg_pool2d(x, kernel, stride, pads, ceil_mode, include), expected)
        expected.backward(tensor(dy))
        actual = references.avg_pool2d_gradient(dy, size, kernel, stride, pads, ceil_mode, include)
        assert_torch(actual, x_torch.grad)


def test_the_other_naive_references():
    x = normal(1, 3, 5, 6, 4)
    assert_torch(references.local_response_norm(x, 4, 0.5), F.local_response_norm(tensor(x), 4, 0.5))
    assert_torch(references.adaptive_avg_pool2d(x, (4, 3)), F.adaptive_avg_pool2d(tensor(x), (4, 3)))
    assert_torch(references.adaptive_max_pool2d(x, (4, 3)), F.adaptive_max_pool2d(tensor(x), (4, 3)))
    assert_torch(
        references.lp_pool2d(abs(x), 3.0, (2, 2), (2, 2), (0, 0, 0, 0)), F.lp_pool2d(tensor(abs(x)), 3.0, (2, 2))
    )
    module = nn.BatchNorm2d(5).double()
    y = module(tensor(x))
    ones, zeros = np.ones(5), np.zeros(5)
    ours = references.batch_norm(x, ones, zeros, zeros, ones, True)
    for actual, expected in zip(ours, (y, module.running_mean, module.running_var), strict=True):
        assert_torch(actual, expected)
    for name in ("relu", "leaky_relu", "elu", "selu", "gelu", "silu", "softplus"):
        assert_torch(getattr(references, name)(3 * x), getattr(F, name)(tensor(3 * x)))
    assert_torch(references.gelu_tanh(x), F.gelu(tensor(x), approximate="tanh"))
    assert_torch(references.log_softmax(x), F.log_softmax(tensor(x), 1))
