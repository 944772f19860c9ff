"""What the numbers should be: naive loops and textbook formulas in float64.

Written from the definitions, not from xpcnn, in the layout everybody knows: images (N, C, H, W), labels (N,).
`tests/outside/test_torch.py` compares this file with torch, so that the judge is judged too.

Notation: N batch, C input channels, H W input size, O output channels, KH KW kernel, OH OW output size, G groups,
D features, K classes. `pads` is always (top, bottom, left, right).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Pair = tuple[int, int]
Pads = tuple[int, int, int, int]


def batch_last(x: np.ndarray) -> np.ndarray:
    """(N, C, H, W) -> (C, H, W, N), and (N, D) -> (D, N)."""
    return np.ascontiguousarray(np.moveaxis(x, 0, -1))


def batch_first(x: np.ndarray) -> np.ndarray:
    """(C, H, W, N) -> (N, C, H, W), and (D, N) -> (N, D)."""
    return np.ascontiguousarray(np.moveaxis(x, -1, 0))


# --- sliding windows --------------------------------------------------------------------------------------------


def sides(padding: object, size: Pair, kernel: Pair, stride: Pair = (1, 1), dilation: Pair = (1, 1)) -> Pads:
    """Return (top, bottom, left, right) for any way of writing padding."""
    if padding == "valid":
        return 0, 0, 0, 0
    if padding == "same":
        result = []
        for n, k, s, d in zip(size, kernel, stride, dilation, strict=True):
            outputs = math.ceil(n / s)
            total = max((outputs - 1) * s + d * (k - 1) + 1 - n, 0)
            result += [total // 2, total - total // 2]
        return tuple(result)
    if isinstance(padding, int):
        return (padding,) * 4
    if len(padding) == 2:
        return padding[0], padding[0], padding[1], padding[1]
    return tuple(padding)


def output_length(n: int, kernel: int, stride: int, before: int, after: int, dilation: int, ceil_mode: bool) -> int:
    """How many windows fit along one axis; with ceil_mode the last must start in the input or the padding before it."""
    steps = (n + before + after - dilation * (kernel - 1) - 1) / stride
    count = (math.ceil(steps) if ceil_mode else math.floor(steps)) + 1
    if ceil_mode and (count - 1) * stride >= n + before:
        count -= 1
    return count


def output_size(size: Pair, kernel: Pair, stride: Pair, pads: Pads, dilation: Pair = (1, 1), ceil_mode=False) -> Pair:
    return (
        output_length(size[0], kernel[0], stride[0], pads[0], pads[1], dilation[0], ceil_mode),
        output_length(size[1], kernel[1], stride[1], pads[2], pads[3], dilation[1], ceil_mode),
    )


def taps(
    size: Pair, kernel: Pair, stride: Pair, pads: Pads, dilation: Pair = (1, 1), ceil_mode: bool = False
) -> Iterator[tuple[int, int, list[tuple[int, int, int, int]]]]:
    """For every output pixel: (oh, ow, [(i, j, row, column) of each kernel tap that lies on the image])."""
    oh_count, ow_count = output_size(size, kernel, stride, pads, dilation, ceil_mode)
    for oh in range(oh_count):
        for ow in range(ow_count):
            inside = []
            for i in range(kernel[0]):
                for j in range(kernel[1]):
                    row = oh * stride[0] - pads[0] + i * dilation[0]
                    column = ow * stride[1] - pads[2] + j * dilation[1]
                    if 0 <= row < size[0] and 0 <= column < size[1]:
                        inside.append((i, j, row, column))
            yield oh, ow, inside


# --- convolution ------------------------------------------------------------------------------------------------


def conv2d(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    stride: Pair = (1, 1),
    pads: Pads = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Floats:
    """y[n, o, oh, ow] = bias[o] + the sum over c, i, j of weight[o, c, i, j] * x[n, c of o's group, row, column]."""
    x, weight = np.float64(x), np.float64(weight)
    y = np.zeros((len(x), len(weight), *output_size(x.shape[2:], weight.shape[2:], stride, pads, dilation)))
    for oh, ow, inside in taps(x.shape[2:], weight.shape[2:], stride, pads, dilation):
        for o, c in _groups(weight, groups):
            for i, j, row, column in inside:
                y[:, o, oh, ow] += x[:, c, row, column] @ weight[o, :, i, j].T
    return y if bias is None else y + np.float64(bias)[:, None, None]


def _groups(weight: np.ndarray, groups: int) -> list[tuple[slice, slice]]:
    """The output channels of each group and the input channels they see."""
    filters, channels = len(weight) // groups, weight.shape[1]
    return [(slice(g * filters, (g + 1) * filters), slice(g * channels, (g + 1) * channels)) for g in range(groups)]


def conv2d_gradients(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    stride: Pair = (1, 1),
    pads: Pads = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> tuple[Floats, Floats, Floats]:
    """(dx, dweight, dbias): every product of the forward sum hands its share to both of its factors."""
    dy, x, weight = np.float64(dy), np.float64(x), np.float64(weight)
    dx, dweight = np.zeros_like(x), np.zeros_like(weight)
    for oh, ow, inside in taps(x.shape[2:], weight.shape[2:], stride, pads, dilation):
        for o, c in _groups(weight, groups):
            for i, j, row, column in inside:
                dx[:, c, row, column] += dy[:, o, oh, ow] @ weight[o, :, i, j]
                dweight[o, :, i, j] += dy[:, o, oh, ow].T @ x[:, c, row, column]
    return dx, dweight, dy.sum(axis=(0, 2, 3))


# --- pooling ----------------------------------------------------------------------------------------------------


def max_pool2d(
    x: np.ndarray, kernel: Pair, stride: Pair, pads: Pads, dilation: Pair = (1, 1), ceil_mode: bool = False
) -> Floats:
    """The largest pixel of each window; padding is no pixel."""
    y = np.zeros((*x.shape[:2], *output_size(x.shape[2:], kernel, stride, pads, dilation, ceil_mode)))
    for oh, ow, inside in taps(x.shape[2:], kernel, stride, pads, dilation, ceil_mode):
        y[:, :, oh, ow] = np.max([x[:, :, row, column] for _, _, row, column in inside], axis=0)
    return y


def max_pool2d_gradient(
    dy: np.ndarray,
    x: np.ndarray,
    kernel: Pair,
    stride: Pair,
    pads: Pads,
    dilation: Pair = (1, 1),
    ceil_mode: bool = False,
) -> Floats:
    """Each gradient goes to the first largest pixel of its window, in row-major order."""
    dx = np.zeros(x.shape)
    for oh, ow, inside in taps(x.shape[2:], kernel, stride, pads, dilation, ceil_mode):
        for n, c in np.ndindex(*x.shape[:2]):
            winner = inside[0]
            for candidate in inside:
                if x[n, c, candidate[2], candidate[3]] > x[n, c, winner[2], winner[3]]:
                    winner = candidate
            dx[n, c, winner[2], winner[3]] += dy[n, c, oh, ow]
    return dx


def _shares(
    size: Pair, kernel: Pair, stride: Pair, pads: Pads, ceil_mode: bool, count_include_pad: bool
) -> Iterator[tuple[int, int, list[tuple[int, int, int, int]], int]]:
    """The windows of an average and what each is divided by: padding may count, what lies beyond it never does."""
    for oh, ow, inside in taps(size, kernel, stride, pads, ceil_mode=ceil_mode):
        if count_include_pad:
            rows = min(oh * stride[0] - pads[0] + kernel[0], size[0] + pads[1]) - (oh * stride[0] - pads[0])
            columns = min(ow * stride[1] - pads[2] + kernel[1], size[1] + pads[3]) - (ow * stride[1] - pads[2])
            yield oh, ow, inside, rows * columns
        else:
            yield oh, ow, inside, len(inside)


def avg_pool2d(
    x: np.ndarray, kernel: Pair, stride: Pair, pads: Pads, ceil_mode: bool = False, count_include_pad: bool = True
) -> Floats:
    y = np.zeros((*x.shape[:2], *output_size(x.shape[2:], kernel, stride, pads, ceil_mode=ceil_mode)))
    for oh, ow, inside, divisor in _shares(x.shape[2:], kernel, stride, pads, ceil_mode, count_include_pad):
        for _, _, row, column in inside:
            y[:, :, oh, ow] += np.float64(x[:, :, row, column]) / divisor
    return y


def avg_pool2d_gradient(
    dy: np.ndarray,
    size: Pair,
    kernel: Pair,
    stride: Pair,
    pads: Pads,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Floats:
    dx = np.zeros((*dy.shape[:2], *size))
    for oh, ow, inside, divisor in _shares(size, kernel, stride, pads, ceil_mode, count_include_pad):
        for _, _, row, column in inside:
            dx[:, :, row, column] += dy[:, :, oh, ow] / divisor
    return dx


def lp_pool2d(
    x: np.ndarray, p: float, kernel: Pair, stride: Pair, pads: Pads, ceil_mode: bool = False, mean: bool = False
) -> Floats:
    """(sum of |x|**p over the window) ** (1/p); with `mean` the sum is divided by KH*KW."""
    y = np.zeros((*x.shape[:2], *output_size(x.shape[2:], kernel, stride, pads, ceil_mode=ceil_mode)))
    for oh, ow, inside in taps(x.shape[2:], kernel, stride, pads, ceil_mode=ceil_mode):
        window = np.abs(np.float64([x[:, :, row, column] for _, _, row, column in inside]))
        if math.isinf(p):
            y[:, :, oh, ow] = window.max(axis=0)
        else:
            total = (window**p).sum(axis=0) / (kernel[0] * kernel[1] if mean else 1)
            y[:, :, oh, ow] = total ** (1 / p)
    return y


def _adaptive(x: np.ndarray, size: Pair, reduce: Callable[..., Floats]) -> Floats:
    """Bin i of n along an axis of length m runs from floor(i*m/n) to ceil((i+1)*m/n)."""
    height, width = x.shape[2:]
    y = np.zeros((*x.shape[:2], *size))
    for i in range(size[0]):
        for j in range(size[1]):
            rows = slice(math.floor(i * height / size[0]), math.ceil((i + 1) * height / size[0]))
            columns = slice(math.floor(j * width / size[1]), math.ceil((j + 1) * width / size[1]))
            y[:, :, i, j] = reduce(np.float64(x[:, :, rows, columns]), axis=(2, 3))
    return y


def adaptive_avg_pool2d(x: np.ndarray, size: Pair) -> Floats:
    return _adaptive(x, size, np.mean)


def adaptive_max_pool2d(x: np.ndarray, size: Pair) -> Floats:
    return _adaptive(x, size, np.max)


# --- normalisation ----------------------------------------------------------------------------------------------


def batch_norm(
    x: np.ndarray,
    weight: ArrayLike,
    bias: ArrayLike,
    running_mean: ArrayLike,
    running_var: ArrayLike,
    train: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Floats, Floats, Floats]:
    """(y, running mean, running variance) for x (N, C, ...): the batch's biased variance normalises, the unbiased one
    is remembered."""
    x = np.float64(x)
    y = np.zeros_like(x)
    means, variances = np.float64(running_mean).copy(), np.float64(running_var).copy()
    for c in range(x.shape[1]):
        values = x[:, c]
        mean, variance = means[c], variances[c]
        if train:
            mean, variance = values.mean(), ((values - values.mean()) ** 2).mean()
            unbiased = variance * values.size / (values.size - 1)
            means[c] = (1 - momentum) * means[c] + momentum * mean
            variances[c] = (1 - momentum) * variances[c] + momentum * unbiased
        y[:, c] = (values - mean) / math.sqrt(variance + eps) * np.float64(weight)[c] + np.float64(bias)[c]
    return y, means, variances


def local_response_norm(x: np.ndarray, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Floats:
    """x / (k + alpha/size * sum of squares over `size` neighbouring channels) ** beta, missing channels being zero."""
    x = np.float64(x)
    y = np.zeros_like(x)
    for c in range(x.shape[1]):
        first, last = max(c - size // 2, 0), min(c + (size - 1) // 2, x.shape[1] - 1)
        total = sum(x[:, other] ** 2 for other in range(first, last + 1))
        y[:, c] = x[:, c] / (k + alpha / size * total) ** beta
    return y


def pad_channels(x: np.ndarray, before: int, after: int) -> Floats:
    y = np.zeros((len(x), before + x.shape[1] + after, *x.shape[2:]))
    for n, c in np.ndindex(*x.shape[:2]):
        y[n, before + c] = x[n, c]
    return y


# --- activations, elementwise on float64 ------------------------------------------------------------------------


def _each(function: Callable[[float], float]) -> Callable[[np.ndarray], Floats]:
    return lambda x: np.array([function(float(v)) for v in np.ravel(x)]).reshape(np.shape(x))


def sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v)) if v >= 0 else math.exp(v) / (1 + math.exp(v))


SELU_ALPHA, SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946

relu = _each(lambda v: max(v, 0.0))
leaky_relu = _each(lambda v: v if v > 0 else 0.01 * v)
elu = _each(lambda v: v if v > 0 else math.expm1(v))
selu = _each(lambda v: SELU_SCALE * (v if v > 0 else SELU_ALPHA * math.expm1(v)))
gelu = _each(lambda v: v * 0.5 * math.erfc(-v / math.sqrt(2)))
gelu_tanh = _each(lambda v: 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))))
silu = _each(lambda v: v * sigmoid(v))
logistic = _each(sigmoid)
tanh = _each(math.tanh)


def clip(x: np.ndarray, low: float, high: float) -> Floats:
    return _each(lambda v: low if v < low else high if v > high else v)(x)


def softplus(x: np.ndarray, beta: float = 1.0, threshold: float = 20.0) -> Floats:
    return _each(lambda v: v if v * beta > threshold else math.log1p(math.exp(v * beta)) / beta)(x)


def softmax(x: np.ndarray) -> Floats:
    """Over axis 1: (N, K) or (N, C, H, W)."""
    powers = np.exp(np.float64(x) - np.max(x, axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def log_softmax(x: np.ndarray) -> Floats:
    shifted = np.float64(x) - np.max(x, axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


# --- losses -----------------------------------------------------------------------------------------------------


def softmax_cross_entropy(
    logits: np.ndarray,
    t: np.ndarray,
    class_weights: np.ndarray | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
) -> float:
    """Mean loss of logits (N, K) and labels (N,) or probabilities (N, K).

    With integer labels the mean is weighted by the weight of each label; with probabilities it is over N.
    """
    samples, classes = logits.shape
    weights = np.ones(classes) if class_weights is None else np.float64(class_weights)
    log_p = log_softmax(logits)
    total = divisor = 0.0
    for n in range(samples):
        if t.ndim == 2:
            q, share = np.float64(t[n]), 1.0
        elif ignore_index is not None and t[n] == ignore_index:
            continue
        else:
            q, share = np.eye(classes)[t[n]], weights[t[n]]
        q = (1 - label_smoothing) * q + label_smoothing / classes
        total -= sum(weights[k] * q[k] * log_p[n, k] for k in range(classes))
        divisor += share
    return float(total / divisor)


def mse(y: np.ndarray, target: np.ndarray) -> float:
    return float(((np.float64(y) - np.float64(target)) ** 2).sum() / y.size)


# --- derivatives ------------------------------------------------------------------------------------------------


def numerical_gradient(f: Callable[[np.ndarray], ArrayLike], x: np.ndarray, dy: ArrayLike = 1.0, eps=1e-6) -> Floats:
    """Central differences of the sum of dy * f(x), element by element.

    Differences are taken before the sum, so that outputs which do not depend on an element add no rounding.
    """
    x = np.array(x, dtype=np.float64)
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        kept = x[index]
        x[index] = kept + eps
        high = np.array(f(x))
        x[index] = kept - eps
        low = np.array(f(x))
        x[index] = kept
        gradient[index] = np.sum(dy * (high - low)) / (2 * eps)
    return gradient


# --- optimizers: w after one step for each gradient in a list -----------------------------------------------------


def sgd(
    w: np.ndarray,
    gradients: Sequence[np.ndarray],
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> Floats:
    w, velocity = np.float64(w), None
    for gradient in gradients:
        g = gradient + weight_decay * w
        velocity = g if velocity is None else momentum * velocity + g
        w = w - lr * (g + momentum * velocity if nesterov else velocity if momentum else g)
    return w


def adagrad(
    w: np.ndarray,
    gradients: Sequence[np.ndarray],
    lr: float,
    lr_decay: float = 0.0,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    start: float = 0.0,
) -> Floats:
    w, squares = np.float64(w), np.full(np.shape(w), start)
    for step, gradient in enumerate(gradients):
        g = gradient + weight_decay * w
        squares = squares + g**2
        w = w - lr / (1 + step * lr_decay) * g / (np.sqrt(squares) + eps)
    return w


def rmsprop(
    w: np.ndarray,
    gradients: Sequence[np.ndarray],
    lr: float,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
) -> Floats:
    w = np.float64(w)
    squares, means, velocity = np.zeros(w.shape), np.zeros(w.shape), np.zeros(w.shape)
    for gradient in gradients:
        g = gradient + weight_decay * w
        squares = alpha * squares + (1 - alpha) * g**2
        means = alpha * means + (1 - alpha) * g
        step = g / (np.sqrt(squares - means**2 if centered else squares) + eps)
        velocity = momentum * velocity + step
        w = w - lr * velocity
    return w


def adam(
    w: np.ndarray,
    gradients: Sequence[np.ndarray],
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
) -> Floats:
    """Adam; with `decoupled` weight decay, AdamW."""
    w = np.float64(w)
    m, v = np.zeros(w.shape), np.zeros(w.shape)
    for step, gradient in enumerate(gradients, 1):
        if decoupled:
            w = w * (1 - lr * weight_decay)
        g = gradient if decoupled else gradient + weight_decay * w
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        m_hat, v_hat = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
        w = w - lr * m_hat / (np.sqrt(v_hat) + eps)
    return w
