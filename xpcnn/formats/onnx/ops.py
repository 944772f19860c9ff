"""The ONNX operators that occur in CNN classifiers, forward and backward: one row of `OPS` each.

Arrays have ONNX's axes (N, C, H, W), but are views of batch-last memory (C, H, W, N): `inner` and `outer` go from one
to the other without a copy, which is how the functions of `xpcnn.functional` are called from here.

A *host* value is a NumPy array that the graph computes from shapes and constants alone: sizes, axes, indices. It never
sees the device, and operators whose inputs are all host values run in NumPy.

Only the newest form of each operator is here: the reader turns the attributes of older ones into inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np

from ... import backend
from ...backend import Array, array_module
from ...errors import ArgumentError, ShapeError
from ...functional import activation as act
from ...functional import pool as pools
from ...functional.conv import bias_gradient, conv2d_backward, conv2d_forward
from ...functional.dense import dense_backward, dense_forward
from ...functional.dropout import dropout_backward, dropout_forward, mask_key
from ...functional.geometry import Window, make_window
from ...functional.merge import add, concatenate
from ...functional.norm import (
    batch_norm_backward,
    batch_norm_forward,
    batch_norm_frozen_backward,
    batch_norm_inference,
    local_response_norm_backward,
    local_response_norm_forward,
    update_statistics,
)
from ...layers import Step

__all__ = ["OPS", "Call", "Op", "inner", "number", "outer"]

Needs = Sequence[bool]
Forward = Callable[..., tuple[Any, Any]]  # (call, *inputs) -> (output or tuple of outputs, what backward needs)
Backward = Callable[..., Sequence[Any]]  # (call, needs, kept, *dy) -> gradient of each input, None where not needed


@dataclass(frozen=True)
class Call:
    """One node in one forward pass, as its operator sees it."""

    name: str
    attributes: dict[str, Any]
    outputs: int
    needs: Needs  # which inputs need a gradient
    step: Step | None
    dtype: Any  # of the network
    key: int  # of the node's dropout mask
    trains: bool = True  # whether the node has no parameters, or one of them is trained

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute of the node."""
        return self.attributes.get(name, default)


@dataclass(frozen=True)
class Op:
    """An operator.

    Args:
        forward: (call, *inputs) -> (output or tuple of outputs, what backward needs).
        backward: (call, needs, kept, *dy) -> the gradient of each input; None if there is none (comparisons, rounding).
        host: positions of the inputs that must be host values.
        trained: positions of the inputs that are parameters where they are constant.
        scalars: whether a host value of one element may come as a Python number.
        shape_only: the output is a host value whatever the inputs are.
        folds: whether it is computed once, when a file is read, if its inputs are constants.
        since: the opset that has it in this form, if that is above 18.
    """

    forward: Forward
    backward: Backward | None = None
    host: tuple[int, ...] = ()
    trained: tuple[int, ...] = ()
    scalars: bool = False
    shape_only: bool = False
    folds: bool = True
    since: int = 0


# --- axes -------------------------------------------------------------------------------------------------------


def inner(x: Array) -> Array:
    """Return the view (C, ..., N) of x (N, C, ...)."""
    return x.transpose(*range(1, x.ndim), 0) if x.ndim > 1 else x


def outer(y: Array) -> Array:
    """Return the view (N, C, ...) of y (C, ..., N)."""
    return y.transpose(y.ndim - 1, *range(y.ndim - 1)) if y.ndim > 1 else y


def ints(value: Any) -> tuple[int, ...]:
    """Return a host value as Python ints."""
    return tuple(int(v) for v in np.asarray(value).reshape(-1))


def positive_axes(axes: Any, rank: int) -> tuple[int, ...]:
    """Return axes counted from the front; raise if one is not there."""
    result = tuple(a + rank if a < 0 else a for a in ints(axes))
    if any(not 0 <= a < rank for a in result) or len(set(result)) != len(result):
        raise ShapeError(f"axes {ints(axes)} do not fit an array of {rank} axes.")
    return result


def along(axis: int, where: Any) -> tuple[Any, ...]:
    """Return an index that applies `where` to one axis."""
    return (*[slice(None)] * axis, where)


def reduced(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Sum a gradient over the axes along which an array of `shape` was broadcast."""
    extra = gradient.ndim - len(shape)
    gone = [i + extra for i, n in enumerate(shape) if n == 1 and gradient.shape[i + extra] != 1]
    axes = (*range(extra), *gone)
    return gradient.sum(axis=axes).reshape(shape) if axes else gradient


def aligned(values: Sequence[Any]) -> list[Any]:
    """Return views (C, ..., N) that broadcast as the values do; numbers as they are.

    CuPy's results are in the order of the axes, not of the inputs' memory: this keeps them batch-last.
    """
    rank = max((v.ndim for v in values if hasattr(v, "ndim")), default=0)
    return [inner(v.reshape((1,) * (rank - v.ndim) + v.shape)) if hasattr(v, "ndim") else v for v in values]


def unaligned(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Return the gradient of a value of `shape` from that of its aligned view."""
    missing = gradient.ndim - len(shape)
    first, *rest = (*(1,) * missing, *shape) or (1,)
    gradient = outer(reduced(gradient, (*rest, first)) if gradient.ndim else gradient)
    return gradient.reshape(shape) if missing else gradient


def shape_of(x: Any) -> tuple[int, ...]:
    """Return the shape of an array, () for a number."""
    return tuple(x.shape) if hasattr(x, "shape") else ()


def module(*values: Any) -> ModuleType:
    """Return the array module of those values that are arrays."""
    return array_module(*(v for v in values if hasattr(v, "shape")))


def number(value: Any) -> Any:
    """Return a host value of one element as a Python number, floats as the shortest decimal that stands for them.

    Files hold float32: what was meant is 0.1, not 0.10000000149.
    """
    element = np.asarray(value).reshape(-1)[0]
    return float(str(element)) if element.dtype.kind == "f" else element.item()


# --- one array in, one out --------------------------------------------------------------------------------------


def unary(f: Callable[..., Array], by_x: Any = None, by_y: Any = None, since: int = 0) -> Op:
    """An elementwise operator: y = f(x, call), dx = by_x(dy, x, call) or by_y(dy, y, call)."""

    def forward(call: Call, x: Array) -> tuple[Array, Any]:
        x = inner(x)
        y = f(x, call)
        return outer(y), (x if by_x else y)

    def backward(call: Call, needs: Needs, kept: Array, dy: Array) -> list[Array]:
        return [outer((by_x or by_y)(inner(dy), kept, call))]

    return Op(forward, backward if by_x or by_y else None, since=since)


def _xp(name: str) -> Callable[..., Array]:
    return lambda x, c: getattr(array_module(x), name)(x)


def _hard_sigmoid(x: Array, alpha: float, beta: float) -> Array:
    return array_module(x).clip(x * alpha + beta, 0.0, 1.0)


def _d_hard_sigmoid(dy: Array, y: Array, alpha: float) -> Array:
    return dy * ((y > 0) & (y < 1)) * alpha


def _gelu(c: Call) -> str:
    return "gelu_tanh" if c.get("approximate", "none") == "tanh" else "gelu"


def _swish(dy: Array, x: Array, alpha: float) -> Array:
    s = act.sigmoid_forward(x * alpha)
    return dy * s * (1.0 + alpha * x * (1.0 - s))


def _mish(dy: Array, x: Array) -> Array:
    t = array_module(x).tanh(act.softplus_forward(x, 1.0, math.inf))
    return dy * (t + x * (1.0 - t * t) * act.sigmoid_forward(x))


def _celu(x: Array, alpha: float) -> Array:
    xp = array_module(x)
    return xp.maximum(x, 0.0) + alpha * xp.expm1(xp.minimum(x, 0.0) * (1.0 / alpha))


def _selu(c: Call) -> tuple[float, float]:
    return c.get("alpha", act.SELU_ALPHA), c.get("gamma", act.SELU_SCALE)


UNARY = {
    "Identity": unary(lambda x, c: x, by_y=lambda dy, y, c: dy),
    "Relu": unary(lambda x, c: act.relu_forward(x), by_y=lambda dy, y, c: act.relu_backward(dy, y)),
    "LeakyRelu": unary(
        lambda x, c: act.leaky_relu_forward(x, c.get("alpha", 0.01)),
        by_x=lambda dy, x, c: act.leaky_relu_backward(dy, x, c.get("alpha", 0.01)),
    ),
    "ThresholdedRelu": unary(
        lambda x, c: x * (x > c.get("alpha", 1.0)), by_x=lambda dy, x, c: dy * (x > c.get("alpha", 1.0))
    ),
    "Elu": unary(
        lambda x, c: act.elu_forward(x, c.get("alpha", 1.0)),
        by_x=lambda dy, x, c: act.elu_backward(dy, x, c.get("alpha", 1.0)),
    ),
    "Selu": unary(lambda x, c: act.elu_forward(x, *_selu(c)), by_x=lambda dy, x, c: act.elu_backward(dy, x, *_selu(c))),
    "Celu": unary(
        lambda x, c: _celu(x, c.get("alpha", 1.0)),
        by_x=lambda dy, x, c: dy * array_module(x).exp(array_module(x).minimum(x, 0.0) * (1.0 / c.get("alpha", 1.0))),
    ),
    "Sigmoid": unary(lambda x, c: act.sigmoid_forward(x), by_y=lambda dy, y, c: act.sigmoid_backward(dy, y)),
    "HardSigmoid": unary(
        lambda x, c: _hard_sigmoid(x, c.get("alpha", 0.2), c.get("beta", 0.5)),
        by_y=lambda dy, y, c: _d_hard_sigmoid(dy, y, c.get("alpha", 0.2)),
    ),
    "HardSwish": unary(
        lambda x, c: x * _hard_sigmoid(x, 1 / 6, 0.5),
        by_x=lambda dy, x, c: (
            dy * _hard_sigmoid(x, 1 / 6, 0.5) + x * _d_hard_sigmoid(dy, _hard_sigmoid(x, 1 / 6, 0.5), 1 / 6)
        ),
    ),
    "Swish": unary(
        lambda x, c: x * act.sigmoid_forward(x * c.get("alpha", 1.0)),
        by_x=lambda dy, x, c: _swish(dy, x, c.get("alpha", 1.0)),
        since=24,
    ),
    "Mish": unary(
        lambda x, c: x * array_module(x).tanh(act.softplus_forward(x, 1.0, math.inf)),
        by_x=lambda dy, x, c: _mish(dy, x),
    ),
    "Gelu": unary(
        lambda x, c: getattr(act, f"{_gelu(c)}_forward")(x),
        by_x=lambda dy, x, c: getattr(act, f"{_gelu(c)}_backward")(dy, x),
        since=20,
    ),
    "Tanh": unary(lambda x, c: act.tanh_forward(x), by_y=lambda dy, y, c: act.tanh_backward(dy, y)),
    "Softplus": unary(
        lambda x, c: act.softplus_forward(x, 1.0, math.inf),
        by_x=lambda dy, x, c: act.softplus_backward(dy, x, 1.0, math.inf),
    ),
    "Softsign": unary(
        lambda x, c: x / (1.0 + array_module(x).abs(x)),
        by_x=lambda dy, x, c: dy / (1.0 + array_module(x).abs(x)) ** 2,
    ),
    "Erf": unary(
        lambda x, c: backend.erf(x),
        by_x=lambda dy, x, c: dy * array_module(x).exp(-x * x) * (2.0 / math.sqrt(math.pi)),
    ),
    "Exp": unary(_xp("exp"), by_y=lambda dy, y, c: dy * y),
    "Log": unary(_xp("log"), by_x=lambda dy, x, c: dy / x),
    "Sqrt": unary(_xp("sqrt"), by_y=lambda dy, y, c: dy * 0.5 / y),
    "Neg": unary(lambda x, c: -x, by_y=lambda dy, y, c: -dy),
    "Abs": unary(_xp("abs"), by_x=lambda dy, x, c: dy * array_module(x).sign(x)),
    "Reciprocal": unary(lambda x, c: 1.0 / x, by_y=lambda dy, y, c: -dy * y * y),
    "Sign": unary(_xp("sign")),
    "Floor": unary(_xp("floor")),
    "Ceil": unary(_xp("ceil")),
    "Round": unary(_xp("rint")),
    "Not": unary(_xp("logical_not")),
}


def cast(call: Call, x: Array, like: Array | None = None) -> tuple[Array, Any]:
    """Cast to the type that `to` names, or to that of a second input."""
    to = call.dtype if call.get("to") == "network" else call.get("to") if like is None else like.dtype
    y = outer(inner(x).astype(to, copy=False))
    return y, x.dtype if y.dtype.kind == "f" else None


def cast_backward(call: Call, needs: Needs, dtype: Any, dy: Array) -> list[Any]:
    return [None if dtype is None else outer(inner(dy).astype(dtype, copy=False)), None]


def clip(call: Call, x: Array, low: Any = None, high: Any = None) -> tuple[Array, Any]:
    """As the layer Clip: no gradient at the bounds themselves, as for ReLU at 0."""
    y = inner(x)
    below, above = (None if b is None else number(b) for b in (low, high))
    if x.dtype.kind == "f":
        limits = -math.inf if below is None else below, math.inf if above is None else above
        y = act.clip_forward(y, *limits)
        return outer(y), (y, *limits)
    xp = array_module(x)
    y = y if below is None else xp.maximum(y, below)
    return outer(y if above is None else xp.minimum(y, above)), None


def clip_backward(call: Call, needs: Needs, kept: Any, dy: Array) -> list[Any]:
    return [outer(act.clip_backward(inner(dy), *kept)), None, None]


def softmax(forward: Callable[[Array], Array], backward: Callable[[Array, Array], Array]) -> Op:
    """Softmax and its logarithm along an axis."""

    def run(call: Call, x: Array) -> tuple[Array, Any]:
        (axis,) = positive_axes(call.get("axis", -1), x.ndim)
        place = (axis - 1) % x.ndim
        xp = array_module(x)
        y = forward(xp.moveaxis(inner(x), place, 0))
        return outer(xp.moveaxis(y, 0, place)), (y, place)

    def gradient(call: Call, needs: Needs, kept: Any, dy: Array) -> list[Array]:
        y, place = kept
        xp = array_module(y)
        return [outer(xp.moveaxis(backward(xp.moveaxis(inner(dy), place, 0), y), 0, place))]

    return Op(run, gradient)


def dropout(call: Call, x: Array, ratio: Any = None, training: Any = None) -> tuple[Any, Any]:
    """As the layer Dropout; the mask depends on the step and on the node's name."""
    xp, p = array_module(x), 0.5 if ratio is None else number(ratio)
    if call.step is None or call.step.inference or p == 0.0:
        y, mask = x, None
    else:
        key = mask_key(call.key, call.step.seed, call.step.number)
        y, mask = dropout_forward(inner(x), p, key)
        y = outer(y)
    if call.outputs == 1:
        return y, (mask, p)
    return (y, xp.ones(x.shape, bool) if mask is None else outer(mask)), (mask, p)


def dropout_gradient(call: Call, needs: Needs, kept: Any, dy: Array, *rest: Any) -> list[Any]:
    mask, p = kept
    return [dy if mask is None else outer(dropout_backward(inner(dy), mask, p)), None, None]


# --- several arrays, elementwise --------------------------------------------------------------------------------


def broadcast(f: Callable[..., tuple[Array, Any]], g: Callable[..., Sequence[Any]] | None = None) -> Op:
    """An operator on arrays that are broadcast.

    It is y, kept = f(call, xp, *values), and g(call, xp, needs, kept, dy) are the gradients before they are summed to
    the shapes of the values. All are batch-last here.
    """

    def forward(call: Call, *values: Any) -> tuple[Array, Any]:
        y, kept = f(call, module(*values), *aligned(values))
        return outer(y), (kept, [shape_of(v) for v in values])

    def backward(call: Call, needs: Needs, kept: Any, dy: Array) -> list[Any]:
        assert g is not None
        inside, shapes = kept
        gradients = g(call, array_module(dy), needs, inside, inner(dy))
        return [unaligned(d, shape) if need else None for need, d, shape in zip(needs, gradients, shapes, strict=True)]

    return Op(forward, None if g is None else backward, scalars=True)


def binary(f: Callable[..., Array], by_a: Any = None, by_b: Any = None) -> Op:
    """y = f(xp, a, b), and the derivatives by a and by b times dy: by_a(xp, dy, a, b), by_b(xp, dy, a, b)."""

    def forward(call: Call, xp: ModuleType, a: Any, b: Any) -> tuple[Array, Any]:
        return f(xp, a, b), (a, b)

    def backward(call: Call, xp: ModuleType, needs: Needs, kept: Any, dy: Array) -> list[Any]:
        return [d(xp, dy, *kept) if need else None for need, d in zip(needs, (by_a, by_b), strict=True)]

    return broadcast(forward, backward if by_a else None)


def _divide(xp: ModuleType, a: Any, b: Any) -> Array:
    if all(np.issubdtype(v.dtype, np.integer) for v in (a, b) if hasattr(v, "dtype")):  # C's: towards zero
        return a // b + ((a % b != 0) & ((a < 0) != (b < 0)))
    return a / b


def _power(xp: ModuleType, a: Any, b: Any) -> Array:
    y = xp.power(a, b)
    return y if not hasattr(a, "dtype") else y.astype(a.dtype, copy=False)


def _power_by_base(xp: ModuleType, dy: Array, a: Any, b: Any) -> Array:
    # the slope of a root is infinite at 0: taken as 0, the subgradient of a norm
    return dy * b * xp.where((a == 0) & (b < 1), a * 0.0, xp.power(xp.where(a == 0, a * 0.0 + (b < 1), a), b - 1))


def _power_by_exponent(xp: ModuleType, dy: Array, a: Any, b: Any) -> Array:
    log = xp.log(xp.where(a > 0, a, a * 0.0 + 1.0)) if hasattr(a, "dtype") else math.log(a) if a > 0 else 0.0
    return dy * xp.power(a, b) * log


def _modulo(call: Call, xp: ModuleType, a: Any, b: Any) -> tuple[Array, Any]:
    return (xp.fmod if call.get("fmod", 0) else xp.mod)(a, b), None


def _compare(name: str) -> Op:
    return binary(lambda xp, a, b: getattr(xp, name)(a, b))


BINARY = {
    "Sub": binary(lambda xp, a, b: a - b, lambda xp, dy, a, b: dy, lambda xp, dy, a, b: -dy),
    "Mul": binary(lambda xp, a, b: a * b, lambda xp, dy, a, b: dy * b, lambda xp, dy, a, b: dy * a),
    "Div": binary(_divide, lambda xp, dy, a, b: dy / b, lambda xp, dy, a, b: -dy * a / (b * b)),
    "Pow": binary(_power, _power_by_base, _power_by_exponent),
    "Mod": broadcast(_modulo),
    "Equal": _compare("equal"),
    "Greater": _compare("greater"),
    "GreaterOrEqual": _compare("greater_equal"),
    "Less": _compare("less"),
    "LessOrEqual": _compare("less_equal"),
    "And": _compare("logical_and"),
    "Or": _compare("logical_or"),
    "Xor": _compare("logical_xor"),
}


def total(call: Call, xp: ModuleType, *values: Any) -> tuple[Array, Any]:
    """Add and Sum."""
    y = values[0]
    for v in values[1:]:
        same = shape_of(y) == shape_of(v) != () and y.dtype == v.dtype
        y = add(y, v) if same else y + v
    return y, len(values)


def total_backward(call: Call, xp: ModuleType, needs: Needs, count: int, dy: Array) -> list[Array]:
    return [dy] * count


def mean(call: Call, xp: ModuleType, *values: Any) -> tuple[Array, Any]:
    return total(call, xp, *values)[0] * (1.0 / len(values)), len(values)


def mean_backward(call: Call, xp: ModuleType, needs: Needs, count: int, dy: Array) -> list[Array]:
    return [dy * (1.0 / count)] * count


def extreme(name: str) -> Op:
    """Max and Min of several arrays; equal ones share the gradient."""

    def forward(call: Call, xp: ModuleType, *values: Any) -> tuple[Array, Any]:
        y = values[0]
        for v in values[1:]:
            y = getattr(xp, name)(y, v)
        return y, (values, y)

    def backward(call: Call, xp: ModuleType, needs: Needs, kept: Any, dy: Array) -> list[Array]:
        values, y = kept
        wins = [(v == y).astype(dy.dtype) for v in values]
        share = dy / sum(wins[1:], wins[0])
        return [share * win for win in wins]

    return broadcast(forward, backward)


def where(call: Call, xp: ModuleType, condition: Array, a: Any, b: Any) -> tuple[Array, Any]:
    return xp.where(condition, a, b), condition


def where_backward(call: Call, xp: ModuleType, needs: Needs, condition: Array, dy: Array) -> list[Any]:
    return [None, dy * condition, dy * ~condition]


def prelu(call: Call, xp: ModuleType, x: Array, slope: Any) -> tuple[Array, Any]:
    return xp.where(x > 0, x, x * slope), (x, slope)


def prelu_backward(call: Call, xp: ModuleType, needs: Needs, kept: Any, dy: Array) -> list[Any]:
    x, slope = kept
    return [xp.where(x > 0, dy, dy * slope), dy * xp.minimum(x, 0.0)]


# --- shapes and indices -----------------------------------------------------------------------------------------


def reshaped(x: Array, shape: tuple[int, ...]) -> Array:
    """Reshape; where the batch axis stays as it is, memory does too."""
    if x.ndim and shape and x.shape[0] == shape[0] and x.shape[0]:
        return outer(inner(x).reshape(*shape[1:], shape[0]))
    return x.reshape(shape)


def reshape(call: Call, x: Array, shape: Any) -> tuple[Array, Any]:
    sizes = list(ints(shape))
    if not call.get("allowzero", 0):
        sizes = [x.shape[i] if n == 0 else n for i, n in enumerate(sizes)]
    if -1 in sizes:
        rest = math.prod(n for n in sizes if n != -1)
        if sizes.count(-1) > 1 or rest == 0 or x.size % rest:
            raise ShapeError(f"an array of shape {x.shape} cannot become {tuple(sizes)}.")
        sizes[sizes.index(-1)] = x.size // rest
    return reshaped(x, tuple(sizes)), x.shape


def reshape_backward(call: Call, needs: Needs, shape: Any, dy: Array) -> list[Any]:
    return [reshaped(dy, shape), None]


def flatten(call: Call, x: Array) -> tuple[Array, Any]:
    axis = call.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return reshaped(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))), x.shape


def squeeze(call: Call, x: Array, axes: Any = None) -> tuple[Array, Any]:
    gone = {i for i, n in enumerate(x.shape) if n == 1} if axes is None else set(positive_axes(axes, x.ndim))
    if any(x.shape[i] != 1 for i in gone):
        raise ShapeError(f"axes {sorted(gone)} of an array of shape {x.shape} should have length 1.")
    return reshaped(x, tuple(n for i, n in enumerate(x.shape) if i not in gone)), x.shape


def unsqueeze(call: Call, x: Array, axes: Any) -> tuple[Array, Any]:
    rank = x.ndim + len(ints(axes))
    new, sizes = set(positive_axes(axes, rank)), iter(x.shape)
    return reshaped(x, tuple(1 if i in new else next(sizes) for i in range(rank))), x.shape


def transpose(call: Call, x: Array) -> tuple[Array, Any]:
    order = positive_axes(call.get("perm", range(x.ndim)[::-1]), x.ndim)
    return x.transpose(order), tuple(int(i) for i in np.argsort(order))


def transpose_backward(call: Call, needs: Needs, order: Any, dy: Array) -> list[Array]:
    return [dy.transpose(order)]


def joined(arrays: Sequence[Array], axis: int) -> Array:
    """Concatenate, in batch-last memory."""
    views = [inner(a) for a in arrays]
    place = (axis - 1) % arrays[0].ndim
    same = all(v.dtype == views[0].dtype for v in views) and len({v.shape[1:] for v in views}) == 1
    return outer(concatenate(views) if place == 0 and same else array_module(*views).concatenate(views, axis=place))


def concat(call: Call, *arrays: Array) -> tuple[Array, Any]:
    (axis,) = positive_axes(call.get("axis"), arrays[0].ndim)
    return joined(arrays, axis), (axis, [a.shape[axis] for a in arrays])


def concat_backward(call: Call, needs: Needs, kept: Any, dy: Array) -> list[Any]:
    axis, sizes = kept
    starts = np.cumsum([0, *sizes]).tolist()
    return [
        dy[along(axis, slice(start, start + size))] if need else None
        for need, start, size in zip(needs, starts, sizes, strict=False)
    ]


def split(call: Call, x: Array, sizes: Any = None) -> tuple[tuple[Array, ...], Any]:
    (axis,) = positive_axes(call.get("axis", 0), x.ndim)
    length, count = x.shape[axis], call.outputs
    part = -(-length // count)
    lengths = [max(0, min(part, length - i * part)) for i in range(count)] if sizes is None else list(ints(sizes))
    if sum(lengths) != length or len(lengths) != count or min(lengths) < 0:
        raise ShapeError(f"parts of {lengths} do not make {count} outputs from an axis of length {length}.")
    starts = np.cumsum([0, *lengths]).tolist()
    parts = tuple(x[along(axis, slice(start, start + n))] for start, n in zip(starts, lengths, strict=False))
    return parts, (axis, [p.shape for p in parts])


def split_backward(call: Call, needs: Needs, kept: Any, *dy: Array | None) -> list[Any]:
    axis, shapes = kept
    known = next(d for d in dy if d is not None)
    xp = array_module(known)
    parts = [xp.zeros(s, known.dtype) if d is None else d for s, d in zip(shapes, dy, strict=True)]
    return [joined(parts, axis), None]


def slice_(call: Call, x: Array, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> tuple[Array, Any]:
    where: list[slice] = [slice(None)] * x.ndim
    first, last = ints(starts), ints(ends)
    chosen = positive_axes(range(len(first)) if axes is None else axes, x.ndim)
    for axis, start, end, step in zip(
        chosen, first, last, (1,) * len(first) if steps is None else ints(steps), strict=True
    ):
        n = x.shape[axis]
        start, end = (v + n if v < 0 else v for v in (start, end))
        if step > 0:
            where[axis] = slice(min(max(start, 0), n), min(max(end, 0), n), step)
        else:  # -1 is "before the first" here; Python's slice says None
            end = min(max(end, -1), n - 1)
            where[axis] = slice(min(max(start, -1), n - 1), None if end < 0 else end, step) if n else slice(0)
    return x[tuple(where)], (x.shape, tuple(where))


def slice_backward(call: Call, needs: Needs, kept: Any, dy: Array) -> list[Any]:
    shape, where = kept
    dx = outer(array_module(dy).zeros((*shape[1:], shape[0]), dy.dtype))
    dx[where] = dy
    return [dx, None, None, None, None]


def runs(indices: Sequence[int], length: int) -> list[slice]:
    """Cut indices into ascending runs: a gather is then a few slices, on any device, and its gradient too."""
    found: list[slice] = []
    for i in indices:
        if not -length <= i < length:
            raise ShapeError(f"index {i} is outside an axis of length {length}.")
        i %= length
        if found and found[-1].stop == i:
            found[-1] = slice(found[-1].start, i + 1)
        else:
            found.append(slice(i, i + 1))
    return found


def take(x: Array, indices: Sequence[int], axis: int) -> Array:
    parts = [x[along(axis, run)] for run in runs(indices, x.shape[axis])]
    return parts[0] if len(parts) == 1 else joined(parts, axis) if parts else x[along(axis, slice(0))]


def take_backward(dy: Array, indices: Sequence[int], axis: int, shape: tuple[int, ...]) -> Array:
    dx = outer(array_module(dy).zeros((*shape[1:], shape[0]), dy.dtype))
    start = 0
    for run in runs(indices, shape[axis]):
        count = run.stop - run.start
        target = dx[along(axis, run)]
        target += dy[along(axis, slice(start, start + count))]
        start += count
    return dx


def gather(call: Call, x: Array, indices: Any) -> tuple[Array, Any]:
    (axis,) = positive_axes(call.get("axis", 0), x.ndim)
    wanted = ints(indices)
    y = take(x, wanted, axis)
    return reshaped(y, (*x.shape[:axis], *np.shape(indices), *x.shape[axis + 1 :])), (wanted, axis, x.shape, y.shape)


def gather_backward(call: Call, needs: Needs, kept: Any, dy: Array) -> list[Any]:
    wanted, axis, shape, taken = kept
    return [take_backward(reshaped(dy, taken), wanted, axis, shape), None]


def pad_indices(mode: str, length: int, before: int, after: int) -> list[int]:
    """Return which elements an axis consists of after padding with its own elements."""
    if mode == "reflect" and length > 1:
        period = 2 * length - 2
        return [period - j if (j := i % period) >= length else j for i in range(-before, length + after)]
    if mode == "wrap":
        return [i % length for i in range(-before, length + after)]
    return [min(max(i, 0), length - 1) for i in range(-before, length + after)]


def pad(call: Call, x: Array, pads: Any, value: Any = None, axes: Any = None) -> tuple[Array, Any]:
    mode = call.get("mode", "constant")
    chosen = tuple(range(x.ndim)) if axes is None else positive_axes(axes, x.ndim)
    amounts = ints(pads)
    if len(amounts) != 2 * len(chosen) or mode not in ("constant", "reflect", "edge", "wrap"):
        raise ShapeError(f"pads {amounts} in mode {mode!r} do not fit {len(chosen)} axes.")
    sides = {a: (amounts[i], amounts[i + len(chosen)]) for i, a in enumerate(chosen)}
    if mode != "constant":
        taken = []
        for axis, (before, after) in sides.items():
            if before or after:
                indices = pad_indices(mode, x.shape[axis], before, after)
                taken.append((indices, axis, x.shape))
                x = take(x, indices, axis)
        return x, taken
    shape = tuple(n + sum(sides.get(a, (0, 0))) for a, n in enumerate(x.shape))
    there, here = [], []
    for a, n in enumerate(x.shape):
        before, after = sides.get(a, (0, 0))
        here.append(slice(max(-before, 0), n - max(-after, 0)))
        there.append(slice(max(before, 0), shape[a] - max(after, 0)))
    fill = 0 if value is None else number(value)
    y = outer(array_module(x).full((*shape[1:], shape[0]), fill, x.dtype))
    y[tuple(there)] = x[tuple(here)]
    return y, (x.shape, tuple(there), tuple(here))


def pad_backward(call: Call, needs: Needs, kept: Any, dy: Array) -> list[Any]:
    if isinstance(kept, list):
        for indices, axis, shape in reversed(kept):
            dy = take_backward(dy, indices, axis, shape)
        return [dy, None, None, None]
    shape, there, here = kept
    dx = outer(array_module(dy).zeros((*shape[1:], shape[0]), dy.dtype))
    dx[here] = dy[there]
    return [dx, None, None, None]


def expand(call: Call, x: Array, shape: Any) -> tuple[Array, Any]:
    return array_module(x).broadcast_to(x, np.broadcast_shapes(x.shape, ints(shape))), x.shape


def expand_backward(call: Call, needs: Needs, shape: Any, dy: Array) -> list[Any]:
    return [reduced(dy, shape), None]


def tile(call: Call, x: Array, repeats: Any) -> tuple[Array, Any]:
    return array_module(x).tile(x, ints(repeats)), (x.shape, ints(repeats))


def tile_backward(call: Call, needs: Needs, kept: Any, dy: Array) -> list[Any]:
    shape, repeats = kept
    pairs = [n for pair in zip(repeats, shape, strict=True) for n in pair]
    return [dy.reshape(pairs).sum(axis=tuple(range(0, len(pairs), 2))), None]


def shape_op(call: Call, x: Any) -> tuple[Array, Any]:
    return np.array(shape_of(x)[call.get("start", 0) : call.get("end")], np.int64), None


def size_op(call: Call, x: Any) -> tuple[Array, Any]:
    return np.array(math.prod(shape_of(x)), np.int64), None


def constant_of_shape(call: Call, shape: Any) -> tuple[Array, Any]:
    dtype, value = call.get("value", ("float32", 0.0))
    return np.full(ints(shape), float(value) if isinstance(value, str) else value, dtype), None


def range_op(call: Call, start: Any, limit: Any, delta: Any) -> tuple[Array, Any]:
    first, last, step = (np.asarray(v) for v in (start, limit, delta))
    return np.arange(first.item(), last.item(), step.item(), dtype=first.dtype), None


# --- sums over axes ---------------------------------------------------------------------------------------------


def reduction(forward: Callable[..., Array], backward: Callable[..., Array]) -> Op:
    """A Reduce operator: y = forward(xp, x, axes) with axes kept, dx = backward(xp, dy, x, y, axes)."""

    def run(call: Call, x: Array, axes: Any = None) -> tuple[Array, Any]:
        chosen = () if axes is None else positive_axes(axes, x.ndim)
        if not chosen and not call.get("noop_with_empty_axes", 0):
            chosen = tuple(range(x.ndim))
        inside, places = inner(x), tuple((a - 1) % x.ndim for a in chosen)
        y = forward(array_module(x), inside, places).astype(x.dtype, copy=False)
        gone = () if call.get("keepdims", 1) else chosen
        return outer(y)[tuple(0 if i in gone else slice(None) for i in range(x.ndim))], (inside, y, places, gone)

    def gradient(call: Call, needs: Needs, kept: Any, dy: Array) -> list[Any]:
        x, y, places, gone = kept
        xp = array_module(x)
        dy = inner(dy[tuple(None if i in gone else slice(None) for i in range(x.ndim))])
        return [outer(xp.broadcast_to(backward(xp, dy, x, y, places), x.shape)), None]

    return Op(run, gradient, host=(1,))


def _share(xp: ModuleType, dy: Array, x: Array, y: Array, axes: tuple[int, ...]) -> Array:
    wins = (x == y).astype(dy.dtype)
    return dy * wins / wins.sum(axis=axes, keepdims=True)


def _log_sum_exp(xp: ModuleType, x: Array, axes: tuple[int, ...]) -> Array:
    largest = x.max(axis=axes, keepdims=True)
    finite = xp.where(xp.isfinite(largest), largest, xp.zeros_like(largest))
    return finite + xp.log(xp.exp(x - finite).sum(axis=axes, keepdims=True))


def _others(xp: ModuleType, dy: Array, x: Array, y: Array, axes: tuple[int, ...]) -> Array:
    """dy times the product of all elements but one's own, zeros or not."""
    moved = xp.moveaxis(x, axes, range(x.ndim - len(axes), x.ndim))
    rows = moved.reshape(*moved.shape[: x.ndim - len(axes)], -1)
    before, after = xp.ones_like(rows), xp.ones_like(rows)
    before[..., 1:] = xp.cumprod(rows[..., :-1], axis=-1)
    after[..., :-1] = xp.cumprod(rows[..., :0:-1], axis=-1)[..., ::-1]
    products = (before * after).reshape(moved.shape)
    return dy * xp.moveaxis(products, range(x.ndim - len(axes), x.ndim), axes)


def _norm(xp: ModuleType, x: Array, axes: tuple[int, ...]) -> Array:
    return xp.sqrt((x * x).sum(axis=axes, keepdims=True))


def _count(x: Array, axes: tuple[int, ...]) -> int:
    return math.prod(x.shape[a] for a in axes)


REDUCTIONS = {
    "ReduceSum": reduction(lambda xp, x, axes: x.sum(axis=axes, keepdims=True), lambda xp, dy, x, y, axes: dy),
    "ReduceMean": reduction(
        lambda xp, x, axes: x.mean(axis=axes, keepdims=True), lambda xp, dy, x, y, axes: dy * (1.0 / _count(x, axes))
    ),
    "ReduceMax": reduction(lambda xp, x, axes: x.max(axis=axes, keepdims=True), _share),
    "ReduceMin": reduction(lambda xp, x, axes: x.min(axis=axes, keepdims=True), _share),
    "ReduceProd": reduction(lambda xp, x, axes: x.prod(axis=axes, keepdims=True), _others),
    "ReduceL1": reduction(
        lambda xp, x, axes: xp.abs(x).sum(axis=axes, keepdims=True), lambda xp, dy, x, y, axes: dy * xp.sign(x)
    ),
    "ReduceL2": reduction(_norm, lambda xp, dy, x, y, axes: dy * x / xp.where(y == 0, xp.ones_like(y), y)),
    "ReduceSumSquare": reduction(
        lambda xp, x, axes: (x * x).sum(axis=axes, keepdims=True), lambda xp, dy, x, y, axes: dy * 2.0 * x
    ),
    "ReduceLogSum": reduction(
        lambda xp, x, axes: xp.log(x.sum(axis=axes, keepdims=True)), lambda xp, dy, x, y, axes: dy / xp.exp(y)
    ),
    "ReduceLogSumExp": reduction(_log_sum_exp, lambda xp, dy, x, y, axes: dy * xp.exp(x - y)),
}


def arg_extreme(name: str) -> Op:
    """ArgMax and ArgMin."""

    def forward(call: Call, x: Array) -> tuple[Array, Any]:
        xp = array_module(x)
        (axis,) = positive_axes(call.get("axis", 0), x.ndim)
        last = call.get("select_last_index", 0)
        y = getattr(xp, name)(xp.flip(x, axis) if last else x, axis=axis)
        y = (x.shape[axis] - 1 - y if last else y).astype(np.int64)
        return xp.expand_dims(y, axis) if call.get("keepdims", 1) else y, None

    return Op(forward)


# --- convolution and pooling ------------------------------------------------------------------------------------


def image(x: Array) -> Array:
    """Return (C, H, W, N) of images (N, C, H, W), or of signals (N, C, L) as images of width 1."""
    if x.ndim not in (3, 4):
        raise ShapeError(
            f"images (N, C, H, W) or signals (N, C, L) are expected; received an array of shape {x.shape}."
        )
    return inner(x) if x.ndim == 4 else inner(x)[:, :, None]


def from_image(y: Array, rank: int) -> Array:
    return outer(y if rank == 4 else y[:, :, 0])


def window_of(call: Call, x: Array, kernel: Sequence[int]) -> Window:
    """Resolve the attributes of a convolution or pooling for an input (C, H, W, N)."""
    flat = len(kernel) == 1

    def two(name: str, default: int) -> tuple[int, int]:
        values = call.get(name) or (default,) * len(kernel)
        if len(values) != len(kernel) or min(values) < 1:
            raise ShapeError(f"{name} {list(values)} does not fit a kernel of {list(kernel)}.")
        return (values[0], 1) if flat else (values[0], values[1])

    size, shape = (x.shape[1], x.shape[2]), (kernel[0], 1) if flat else (kernel[0], kernel[1])
    stride, dilation = two("strides", 1), two("dilations", 1)
    mode = call.get("auto_pad") or "NOTSET"
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        sides = []
        for n, k, s, d in zip(size, shape, stride, dilation, strict=True):
            needed = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            small, large = needed // 2, needed - needed // 2
            sides += [small, large] if mode == "SAME_UPPER" else [large, small]
        top, bottom, left, right = sides
    else:
        pads = (mode == "NOTSET" and call.get("pads")) or (0,) * 2 * len(kernel)
        if len(pads) != 2 * len(kernel) or min(pads) < 0:
            raise ShapeError(f"pads {list(pads)} do not fit a kernel of {list(kernel)}.")
        top, left, bottom, right = (pads[0], 0, pads[1], 0) if flat else pads
    return make_window(size, shape, stride, (top, bottom, left, right), dilation, bool(call.get("ceil_mode", 0)))


def conv(call: Call, x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, Any]:
    images, groups = image(x), call.get("group", 1)
    if weight.ndim != x.ndim or weight.shape[1] * groups != x.shape[1] or weight.shape[0] % groups:
        raise ShapeError(f"a weight of shape {weight.shape} in {groups} group(s) does not fit an input {x.shape}.")
    window = window_of(call, images, weight.shape[2:])
    kernel = weight if weight.ndim == 4 else weight[..., None]
    y = conv2d_forward(images, kernel, bias, window, groups)
    return from_image(y, x.ndim), (images if call.needs[1] else None, weight, window, groups)


def conv_backward(call: Call, needs: Needs, kept: Any, dy: Array) -> list[Any]:
    x, weight, window, groups = kept
    kernel = weight if weight.ndim == 4 else weight[..., None]
    gradient = image(dy)
    dx, dw = conv2d_backward(gradient, x, kernel, window, groups, needs[0], needs[1])
    dx = None if dx is None else from_image(dx, weight.ndim)
    dw = None if dw is None else dw.reshape(weight.shape)
    return [dx, dw, bias_gradient(gradient) if len(needs) > 2 and needs[2] else None]


def kernel_of(call: Call) -> Sequence[int]:
    kernel: Sequence[int] = call.get("kernel_shape", ())
    if len(kernel) not in (1, 2):
        raise ShapeError(f"poolings have one or two axes here; received kernel_shape {list(kernel)}.")
    return kernel


def max_pool(call: Call, x: Array) -> tuple[Array, Any]:
    images = image(x)
    window = window_of(call, images, kernel_of(call))
    y = pools.max_pool2d_forward(images, window)
    return from_image(y, x.ndim), (images, y, window)


def max_pool_backward(call: Call, needs: Needs, kept: Any, dy: Array) -> list[Array]:
    return [from_image(pools.max_pool2d_backward(image(dy), *kept), dy.ndim)]


def average_pool(call: Call, x: Array) -> tuple[Array, Any]:
    images = image(x)
    window = window_of(call, images, kernel_of(call))
    if window.dilation != (1, 1):
        raise ShapeError("AveragePool with dilations is not computed here.")
    include = bool(call.get("count_include_pad", 0))
    return from_image(pools.avg_pool2d_forward(images, window, include), x.ndim), (window, include)


def average_pool_backward(call: Call, needs: Needs, kept: Any, dy: Array) -> list[Array]:
    return [from_image(pools.avg_pool2d_backward(image(dy), *kept), dy.ndim)]


def lp_pool(call: Call, x: Array) -> tuple[Array, Any]:
    images = image(x)
    window, p = window_of(call, images, kernel_of(call)), float(call.get("p", 2))
    y = pools.lp_pool2d_forward(images, window, p)
    return from_image(y, x.ndim), (images, y, window, p)


def lp_pool_backward(call: Call, needs: Needs, kept: Any, dy: Array) -> list[Array]:
    return [from_image(pools.lp_pool2d_backward(image(dy), *kept), dy.ndim)]


def _as_column(x: Array) -> Array:
    """(C, H*W, 1, N) of (N, C, H, W), or of any other number of axes after C."""
    return inner(x).reshape(x.shape[1], -1, 1, x.shape[0])


def global_pool(forward: Callable[..., Array], backward: Callable[..., Array]) -> Op:
    """The mean or the largest element of each channel, axes kept."""

    def run(call: Call, x: Array) -> tuple[Array, Any]:
        column = _as_column(x)
        y = forward(column, (1, 1))
        return outer(y.reshape(x.shape[1], *[1] * (x.ndim - 2), x.shape[0])), (column, y, x.shape)

    def gradient(call: Call, needs: Needs, kept: Any, dy: Array) -> list[Array]:
        column, y, shape = kept
        return [outer(backward(_as_column(dy), column, y).reshape(*shape[1:], shape[0]))]

    return Op(run, gradient)


# --- products ---------------------------------------------------------------------------------------------------


def gemm(call: Call, a: Array, b: Array, c: Any = None) -> tuple[Array, Any]:
    """alpha * a @ b + beta * c, a and b transposed if asked for: the dense layer on (D, N)."""
    if a.ndim != 2 or b.ndim != 2:
        raise ShapeError(f"Gemm multiplies matrices; received shapes {a.shape} and {b.shape}.")
    x = a if call.get("transA", 0) else a.T
    weight = b if call.get("transB", 0) else b.T
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    y = dense_forward(x, weight, None)
    if alpha != 1.0:
        y *= alpha
    if c is not None:
        shift = inner(c.reshape((1,) * (2 - c.ndim) + c.shape))
        y += shift if beta == 1.0 else shift * beta
    return outer(y), (x if call.needs[1] else None, weight, shape_of(c))


def gemm_backward(call: Call, needs: Needs, kept: Any, dy: Array) -> list[Any]:
    x, weight, shape = kept
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    dx, dw = dense_backward((dy if alpha == 1.0 else dy * alpha).T, x, weight, needs[0], needs[1])
    da = dx if dx is None or call.get("transA", 0) else dx.T
    db = dw if dw is None or call.get("transB", 0) else dw.T
    return [da, db, unaligned(inner(dy) * beta, shape) if len(needs) > 2 and needs[2] else None]


def matmul(call: Call, a: Array, b: Array) -> tuple[Array, Any]:
    y = dense_forward(a.T, b.T, None).T if a.ndim == b.ndim == 2 else array_module(a, b).matmul(a, b)
    return y, (a, b)


def matmul_backward(call: Call, needs: Needs, kept: Any, dy: Array) -> list[Any]:
    a, b = kept
    if a.ndim == b.ndim == 2:
        dx, dw = dense_backward(dy.T, a.T, b.T, needs[0], needs[1])
        return [None if dx is None else dx.T, None if dw is None else dw.T]
    xp = array_module(a)
    left, right = (a[None] if a.ndim == 1 else a), (b[:, None] if b.ndim == 1 else b)
    dy = xp.expand_dims(dy, -2) if a.ndim == 1 else dy
    dy = xp.expand_dims(dy, -1) if b.ndim == 1 else dy
    da = reduced(xp.matmul(dy, xp.swapaxes(right, -1, -2)), left.shape).reshape(a.shape) if needs[0] else None
    db = reduced(xp.matmul(xp.swapaxes(left, -1, -2), dy), right.shape).reshape(b.shape) if needs[1] else None
    return [da, db]


# --- normalisation ----------------------------------------------------------------------------------------------


def batch_norm(call: Call, x: Array, scale: Array, bias: Array, mean: Array, var: Array) -> tuple[Any, Any]:
    """As the layers BatchNorm1d and BatchNorm2d: in training by the batch, unless scale and bias are frozen.

    With `training_mode` it is the operator as ONNX defines it, whose further outputs are new running statistics by the
    population variance.
    """
    images, eps = inner(x), call.get("epsilon", 1e-5)
    as_defined = call.get("training_mode", 0)
    step = call.step
    if not as_defined and (step is None or step.inference or not call.trains):
        y = batch_norm_inference(images, mean, var, scale, bias, eps)
        return outer(y), (images if any(call.needs[1:3]) else None, mean, var, scale, False)
    count = images.size // images.shape[0]
    if count < 2:
        raise ArgumentError(
            f"node {call.name!r}: batch normalisation needs more than one value per channel in training; received an "
            f"input of shape {x.shape}. Use a larger batch, or drop_last=True if it is the last one of an epoch."
        )
    y, batch_mean, batch_var = batch_norm_forward(images, scale, bias, eps)
    old = call.get("momentum", 0.9)
    kept = (images, batch_mean, batch_var, scale, True)
    if as_defined:
        new = [m * old + b * (1.0 - old) for m, b in ((mean, batch_mean), (var, batch_var))]
        return (outer(y), *new)[: call.outputs] if call.outputs > 1 else outer(y), kept
    if step is not None and not step.recompute:
        update_statistics(mean, var, batch_mean, batch_var, 1.0 - old, count)
    return outer(y), kept


def batch_norm_gradient(call: Call, needs: Needs, kept: Any, dy: Array, *rest: Any) -> list[Any]:
    x, mean, var, scale, by_batch = kept
    if x is None:
        return [outer(batch_norm_frozen_backward(inner(dy), var, scale, call.get("epsilon", 1e-5))), *[None] * 4]
    dx, dscale, dbias = batch_norm_backward(inner(dy), x, mean, var, scale, call.get("epsilon", 1e-5), by_batch)
    return [outer(dx), dscale, dbias, None, None]


def standardised(x: Array, axes: tuple[int, ...], eps: float) -> tuple[Array, Array, Array]:
    """Return (x - mean) / sqrt(var + eps) over some axes, the mean, and 1 / sqrt(var + eps)."""
    xp = array_module(x)
    mean = x.mean(axis=axes, keepdims=True)
    centred = x - mean
    rstd = 1.0 / xp.sqrt((centred * centred).mean(axis=axes, keepdims=True) + eps)
    return centred * rstd, mean, rstd


def standardised_backward(dy: Array, z: Array, rstd: Array, axes: tuple[int, ...]) -> Array:
    return rstd * (dy - dy.mean(axis=axes, keepdims=True) - z * (dy * z).mean(axis=axes, keepdims=True))


def channel_norm(groups_of: Callable[[Call, int], int]) -> Op:
    """Normalise each image over groups of channels, then scale and shift each channel."""

    def forward(call: Call, x: Array, scale: Array, bias: Array) -> tuple[Array, Any]:
        rows = inner(x).reshape(groups_of(call, x.shape[1]), -1, x.shape[0])
        z, _, rstd = standardised(rows, (1,), call.get("epsilon", 1e-5))
        z = z.reshape(x.shape[1], -1, x.shape[0])
        y = z * scale[:, None, None] + bias[:, None, None]
        return outer(y.reshape(*x.shape[1:], x.shape[0])), (z, rstd, scale, rows.shape)

    def backward(call: Call, needs: Needs, kept: Any, dy: Array) -> list[Array]:
        z, rstd, scale, groups = kept
        rows = inner(dy).reshape(z.shape)
        dz = (rows * scale[:, None, None]).reshape(groups)
        dx = standardised_backward(dz, z.reshape(groups), rstd, (1,))
        return [outer(dx.reshape(*dy.shape[1:], dy.shape[0])), (rows * z).sum(axis=(1, 2)), rows.sum(axis=(1, 2))]

    return Op(forward, backward, trained=(1, 2), folds=False)


def layer_norm(call: Call, x: Array, scale: Array, bias: Array | None = None) -> tuple[Any, Any]:
    (first,) = positive_axes(call.get("axis", -1), x.ndim)
    places = tuple((a - 1) % x.ndim for a in range(first, x.ndim))
    inside, factor, *shift = aligned([x, scale] if bias is None else [x, scale, bias])
    z, mean, rstd = standardised(inside, places, call.get("epsilon", 1e-5))
    y = outer(z * factor + shift[0] if shift else z * factor)
    kept = (z, rstd, places, factor, (x.shape, scale.shape, shape_of(bias)))
    return y if call.outputs == 1 else (y, outer(mean), outer(rstd))[: call.outputs], kept


def layer_norm_backward(call: Call, needs: Needs, kept: Any, dy: Array, *rest: Any) -> list[Array]:
    z, rstd, places, factor, shapes = kept
    dy = inner(dy)
    gradients = standardised_backward(dy * factor, z, rstd, places), dy * z, dy
    return [unaligned(d, shape) for d, shape in zip(gradients, shapes, strict=True)]


def lrn(call: Call, x: Array) -> tuple[Array, Any]:
    # an even window reaches further forward in ONNX and further back in torch: channels run backwards
    images, size = inner(x)[::-1], call.get("size")
    constants = call.get("alpha", 1e-4), call.get("beta", 0.75)
    y, scale = local_response_norm_forward(images, size, *constants, call.get("bias", 1.0))
    return outer(y[::-1]), (images, y, scale, size, *constants)


def lrn_backward(call: Call, needs: Needs, kept: Any, dy: Array) -> list[Array]:
    return [outer(local_response_norm_backward(inner(dy)[::-1], *kept)[::-1])]


# --- the table --------------------------------------------------------------------------------------------------

OPS: dict[str, Op] = {
    **UNARY,
    **BINARY,
    **REDUCTIONS,
    "Add": broadcast(total, total_backward),
    "Sum": broadcast(total, total_backward),
    "Mean": broadcast(mean, mean_backward),
    "Max": extreme("maximum"),
    "Min": extreme("minimum"),
    "Where": replace(broadcast(where, where_backward), scalars=False),
    "Cast": Op(cast, cast_backward),
    "CastLike": Op(cast, cast_backward),
    "Clip": Op(clip, clip_backward, host=(1, 2)),
    "PRelu": replace(broadcast(prelu, prelu_backward), trained=(1,)),
    "Softmax": softmax(act.softmax_forward, act.softmax_backward),
    "LogSoftmax": softmax(act.log_softmax_forward, act.log_softmax_backward),
    "Dropout": Op(dropout, dropout_gradient, host=(1, 2)),
    "Reshape": Op(reshape, reshape_backward, host=(1,)),
    "Flatten": Op(flatten, reshape_backward),
    "Squeeze": Op(squeeze, reshape_backward, host=(1,)),
    "Unsqueeze": Op(unsqueeze, reshape_backward, host=(1,)),
    "Transpose": Op(transpose, transpose_backward),
    "Concat": Op(concat, concat_backward),
    "Split": Op(split, split_backward, host=(1,)),
    "Slice": Op(slice_, slice_backward, host=(1, 2, 3, 4)),
    "Gather": Op(gather, gather_backward, host=(1,)),
    "Pad": Op(pad, pad_backward, host=(1, 2, 3)),
    "Expand": Op(expand, expand_backward, host=(1,)),
    "Tile": Op(tile, tile_backward, host=(1,)),
    "Shape": Op(shape_op, shape_only=True),
    "Size": Op(size_op, shape_only=True),
    "ConstantOfShape": Op(constant_of_shape, host=(0,)),
    "Range": Op(range_op, host=(0, 1, 2)),
    "ArgMax": arg_extreme("argmax"),
    "ArgMin": arg_extreme("argmin"),
    "Conv": Op(conv, conv_backward, trained=(1, 2), folds=False),
    "MaxPool": Op(max_pool, max_pool_backward, folds=False),
    "AveragePool": Op(average_pool, average_pool_backward, folds=False),
    "LpPool": Op(lp_pool, lp_pool_backward, folds=False),
    "GlobalMaxPool": global_pool(pools.adaptive_max_pool2d_forward, pools.adaptive_max_pool2d_backward),
    "GlobalAveragePool": global_pool(
        pools.adaptive_avg_pool2d_forward, lambda dy, x, y: pools.adaptive_avg_pool2d_backward(dy, x.shape[1:3])
    ),
    "Gemm": Op(gemm, gemm_backward, trained=(0, 1, 2)),
    "MatMul": Op(matmul, matmul_backward, trained=(0, 1)),
    "BatchNormalization": Op(batch_norm, batch_norm_gradient, trained=(1, 2), folds=False),
    "InstanceNormalization": channel_norm(lambda call, channels: channels),
    "GroupNormalization": replace(channel_norm(lambda call, channels: call.get("num_groups")), since=21),
    "LayerNormalization": Op(layer_norm, layer_norm_backward, trained=(1, 2), folds=False),
    "LRN": Op(lrn, lrn_backward, folds=False),
}
