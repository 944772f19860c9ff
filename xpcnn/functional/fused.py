"""CUDA kernels for passes that a GPU would otherwise make one array operation at a time.

Each has the name of the function that uses it, stands there beside the generic body and gives the same numbers: the
tests compare the two. A function takes its kernel where `takes(its arrays)`; inside `with disabled():` nobody does.

Arrays are batch-last and contiguous. Sums are in float32 or wider, and in an order that does not depend on the device,
so a run repeats bit for bit. Neighbouring threads always work on neighbouring elements of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from ..backend import Array, array_module
from .geometry import Window

_enabled = ContextVar("fused kernels are used", default=True)
INDEX_LIMIT = 2**31  # elements from which indices take 64 bits, whose divisions are slow
THREADS = 256  # per block
BLOCKS = 1024  # enough to fill any GPU of today
NULL = np.uintp(0)
C_TYPES = {
    "float16": "__half", "float32": "float", "float64": "double",
    "int8": "signed char", "int16": "short", "int32": "int", "int64": "long long",
    "uint8": "unsigned char", "uint16": "unsigned short", "uint32": "unsigned int", "uint64": "unsigned long long",
}  # fmt: skip


@contextmanager
def disabled() -> Iterator[None]:
    """Let every function run its generic body, on CuPy too."""
    token = _enabled.set(False)
    try:
        yield
    finally:
        _enabled.reset(token)


def takes(array: Array, *others: Array | None) -> bool:
    """Whether kernels work on these arrays: CuPy's, contiguous and not empty (None is skipped)."""
    if isinstance(array, np.ndarray) or not _enabled.get():
        return False
    return all(a is None or (a.flags.c_contiguous and a.size > 0) for a in (array, *others))


@cache
def _elementwise(
    xp: ModuleType, name: str, inputs: str, outputs: str, body: str, index: str = "uint32"
) -> Callable[..., Any]:
    """Make a kernel that runs `body` for every i. F is float where T is float16, else T; I is the type of indices."""
    types = f"""
        template<class T> struct Wide {{typedef T type;}};
        template<> struct Wide<float16> {{typedef float type;}};
        typedef {C_TYPES[index]} I;
    """
    wide = "typedef typename Wide<T>::type F;" if "T " in outputs else ""
    kernel: Callable[..., Any] = xp.ElementwiseKernel(
        inputs.replace("I ", f"{index} "), outputs, body, f"xpcnn_{name}", preamble=types, loop_prep=wide
    )
    return kernel


@cache
def _kernel(xp: ModuleType, name: str, code: str, **types: np.dtype[Any]) -> Callable[..., None]:
    """Make a kernel of whole blocks from CUDA source, in which X=dtype and so on name element types."""
    names = "".join(f"typedef {C_TYPES[dtype.name]} {letter};\n" for letter, dtype in types.items())
    head = f"#include <cuda_fp16.h>\n{names}constexpr int THREADS = {THREADS};\n"  # -D would rename what headers use
    kernel: Callable[..., None] = xp.RawKernel(head + code, name)
    return kernel


def _index(*sizes: int) -> str:
    """Return the type of indices into arrays of these sizes."""
    return "uint32" if max(sizes) < INDEX_LIMIT else "int64"


# --- elementwise ------------------------------------------------------------------------------------------------


def bias_relu(x: Array, bias: Array, y: Array) -> None:
    """y[...] = max(x + bias, 0); bias is broadcast, and y may be x."""
    body = "const T z = x + (T)bias; y = z < (T)0 ? (T)0 : z;"  # NaN stays NaN
    _elementwise(array_module(y), "bias_relu", "T x, B bias", "T y", body)(x, bias, y)


def relu_backward(dy: Array, y: Array) -> Array:
    """Return dy where y > 0, else 0."""
    return _elementwise(array_module(dy), "relu_backward", "T dy, T y", "T dx", "dx = y > (T)0 ? dy : (T)0;")(dy, y)


def dropout_forward(x: Array, threshold: int, salts: tuple[int, int], scale: float) -> tuple[Array, Array]:
    """Return (y, mask): an element is kept, times scale, where the hash of its position is at least the threshold."""
    body = """
        unsigned int h = (unsigned int)i;
        for (int turn = 0; turn < 2; ++turn) {  // the mixer of dropout.py
            h ^= turn ? salt2 : salt1;
            h = (h ^ h >> 16) * 0x21F0AAADu;
            h = (h ^ h >> 15) * 0xD35A2D97u;
            h ^= h >> 15;
        }
        mask = h >= threshold;
        y = mask ? (T)((F)x * (F)scale) : (T)0;
    """
    inputs = "T x, uint32 threshold, uint32 salt1, uint32 salt2, float64 scale"
    kernel = _elementwise(array_module(x), "dropout_forward", inputs, "T y, bool mask", body)
    y, mask = kernel(x, threshold, *salts, scale)
    return y, mask


def dropout_backward(dy: Array, mask: Array, scale: float) -> Array:
    """Return dy * scale where mask, else 0."""
    body = "dx = mask ? (T)((F)dy * (F)scale) : (T)0;"
    kernel = _elementwise(array_module(dy), "dropout_backward", "T dy, bool mask, float64 scale", "T dx", body)
    return kernel(dy, mask, scale)


# --- sliding windows --------------------------------------------------------------------------------------------

GEOMETRY = (
    "I N, int32 H, int32 W, int32 OH, int32 OW, int32 KH, int32 KW, int32 SH, int32 SW, int32 DH, int32 DW, "
    "int32 top, int32 left"
)


def _geometry(window: Window, batch: int) -> tuple[int, ...]:
    """Return the arguments that GEOMETRY names."""
    pads = window.pads[0], window.pads[2]
    sizes = (window.input, window.output, window.kernel, window.stride, window.dilation, pads)
    return (batch, *(n for pair in sizes for n in pair))


def im2col(x: Array, window: Window, columns: slice, groups: int, mirrored: bool) -> Array:
    """Return a range of the columns (G, C/G*KH*KW, OH*OW*N) of x (C, H, W, N); with `mirrored` taps run backwards.

    One thread writes what one column has of one channel.
    """
    xp = array_module(x)
    count = columns.stop - columns.start
    col = xp.empty((groups, x.shape[0] // groups * window.taps, count), x.dtype)
    body = """
        const I column = (I)i % count, channel = (I)i / count;
        const I pixel = (first + column) / N, n = (first + column) % N;
        const int h0 = (int)(pixel / OW) * SH - top, w0 = (int)(pixel % OW) * SW - left;
        I target = channel * (I)(KH * KW) * count + column;
        for (int a = 0; a < KH; ++a) {
            for (int b = 0; b < KW; ++b) {
                const int h = h0 + (mirrored ? KH - 1 - a : a) * DH, w = w0 + (mirrored ? KW - 1 - b : b) * DW;
                const bool inside = h >= 0 && h < H && w >= 0 && w < W;
                col[target] = inside ? x[((channel * H + h) * W + w) * N + n] : (T)0;
                target += count;
            }
        }
    """
    inputs = f"raw T x, {GEOMETRY}, I first, I count, bool mirrored"
    kernel = _elementwise(xp, "im2col", inputs, "raw T col", body, _index(x.size, col.size, columns.stop))
    kernel(x, *_geometry(window, x.shape[3]), columns.start, count, mirrored, col, size=x.shape[0] * count)
    return col


def col2im(dcol: Array, window: Window, rows: tuple[int, int], dx: Array) -> None:
    """Add up dcol (G, C/G*KH*KW, n), the columns of some output rows, where they came from in dx (C, H, W, N).

    The call for the rows from 0 on sets dx, later ones add to it. One thread gathers one element of dx.
    """
    body = """
        const I n = (I)i % N, w = (I)i / N % W, h = (I)i / N / W % H, channel = (I)i / N / W / H;
        F sum = first ? (F)dx[i] : 0;
        for (int a = 0; a < KH; ++a) {
            const int y = (int)h + top - a * DH, oh = y / SH - first;
            if (y < 0 || y % SH || oh < 0 || oh >= OH) continue;
            for (int b = 0; b < KW; ++b) {
                const int x = (int)w + left - b * DW, ow = x / SW;
                if (x < 0 || x % SW || ow >= OW) continue;
                sum += (F)dcol[((((channel * KH + a) * KW + b) * OH + oh) * OW + ow) * N + n];
            }
        }
        dx[i] = (T)sum;
    """
    inputs, index = f"raw T dcol, {GEOMETRY}, int32 first", _index(dcol.size, dx.size)
    kernel = _elementwise(array_module(dx), "col2im", inputs, "raw T dx", body, index)
    band = Window(
        window.input, (rows[1] - rows[0], window.output[1]), window.kernel, window.stride, window.dilation, window.pads
    )
    kernel(dcol, *_geometry(band, dx.shape[3]), rows[0], dx, size=dx.size)


def max_pool2d_forward(x: Array, window: Window) -> Array:
    """Return the largest element of every window. One thread reads one window."""
    xp = array_module(x)
    y = xp.empty((x.shape[0], *window.output, x.shape[3]), x.dtype)
    body = """
        const I n = (I)i % N, ow = (I)i / N % OW, oh = (I)i / N / OW % OH, channel = (I)i / N / OW / OH;
        F best = -__int_as_float(0x7f800000);  // minus infinity
        for (int a = 0; a < KH; ++a) {
            const int h = (int)oh * SH - top + a * DH;
            for (int b = 0; b < KW; ++b) {
                const int w = (int)ow * SW - left + b * DW;
                if (h < 0 || h >= H || w < 0 || w >= W) continue;
                const F value = x[((channel * H + h) * W + w) * N + n];
                if (value > best || value != value) best = value;  // NaN wins
            }
        }
        y[i] = (T)best;
    """
    kernel = _elementwise(xp, "max_pool2d_forward", f"raw T x, {GEOMETRY}", "raw T y", body, _index(x.size, y.size))
    kernel(x, *_geometry(window, x.shape[3]), y, size=y.size)
    return y


def max_pool2d_backward(dy: Array, x: Array, y: Array, window: Window) -> Array:
    """Return dx: each gradient goes to the first largest element of its window.

    One thread looks, for one element of dx, at the windows it is in: whether it is the maximum and no tap before is.
    """
    xp = array_module(dy)
    dx = xp.empty(x.shape, dy.dtype)
    body = """
        const I n = (I)i % N, w = (I)i / N % W, h = (I)i / N / W % H, channel = (I)i / N / W / H;
        const T own = x[i];
        F sum = 0;
        for (int a = 0; a < KH; ++a) {
            const int row = (int)h + top - a * DH, oh = row / SH;
            if (row < 0 || row % SH || oh >= OH) continue;
            for (int b = 0; b < KW; ++b) {
                const int column = (int)w + left - b * DW, ow = column / SW;
                if (column < 0 || column % SW || ow >= OW) continue;
                const I output = ((channel * OH + oh) * OW + ow) * N + n;
                bool wins = y[output] == own;
                for (int k = 0; wins && k < a * KW + b; ++k) {
                    const int p = (int)h + (k / KW - a) * DH, q = (int)w + (k % KW - b) * DW;
                    if (p < 0 || p >= H || q < 0 || q >= W) continue;
                    wins = x[((channel * H + p) * W + q) * N + n] != own;
                }
                if (wins) sum += (F)dy[output];
            }
        }
        dx[i] = (T)sum;
    """
    inputs, index = f"raw T dy, raw T x, raw T y, {GEOMETRY}", _index(x.size, y.size)
    kernel = _elementwise(xp, "max_pool2d_backward", inputs, "raw T dx", body, index)
    kernel(dy, x, y, *_geometry(window, x.shape[3]), dx, size=dx.size)
    return dx


# --- batch norm -------------------------------------------------------------------------------------------------

# Rows are channels, (C, M). A channel is cut into parts, and each part has a block: block = channel * parts + part.
# The first kernel leaves the sums of each part; the second lets every thread put the few parts of its channel together.
_PARTS = """
struct Part {
    long long channel, start, stop;
    __device__ Part(long long length, int parts, int part) {
        channel = blockIdx.x / parts;
        start = channel * length + length * part / parts;
        stop = channel * length + length * (part + 1) / parts;
    }
};
"""

_NORM_FORWARD = (
    _PARTS
    + """
struct Moments {  // of n numbers; m2 is the sum of (x - mean)**2
    W n, mean, m2;
    __device__ void add(W x) {  // Welford (1962)
        n += 1;
        const W before = x - mean;
        mean += before / n;
        m2 += before * (x - mean);
    }
    __device__ void merge(const Moments& other) {  // Chan, Golub and LeVeque (1979)
        const W total = n + other.n;
        if (total == 0) return;
        const W apart = other.mean - mean;
        mean += apart * (other.n / total);
        m2 += other.m2 + apart * apart * (n * other.n / total);
        n = total;
    }
};

extern "C" __global__ void statistics(const X* x, Moments* sums, long long length, int parts) {
    __shared__ Moments cell[THREADS];
    const Part part(length, parts, blockIdx.x % parts);
    Moments own = {0, 0, 0};
    for (long long k = part.start + threadIdx.x; k < part.stop; k += THREADS) own.add((W)x[k]);
    cell[threadIdx.x] = own;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) cell[threadIdx.x].merge(cell[threadIdx.x + half]);
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = cell[0];
}

extern "C" __global__ void normalise(
    const X* x, const Moments* sums, const P* weight, const Q* bias, X* y, W* mean, W* var,
    long long length, int parts, W eps, bool relu
) {
    const Part part(length, parts, blockIdx.x % parts);
    const long long c = part.channel;
    Moments all = {0, 0, 0};
    for (int p = 0; p < parts; ++p) all.merge(sums[c * parts + p]);
    const W scale = (weight ? (W)weight[c] : (W)1) / sqrt(all.m2 / all.n + eps);
    const W shift = bias ? (W)bias[c] : (W)0;
    for (long long k = part.start + threadIdx.x; k < part.stop; k += THREADS) {
        const W z = ((W)x[k] - all.mean) * scale + shift;
        y[k] = (X)(relu && z < 0 ? (W)0 : z);
    }
    if (blockIdx.x % parts == 0 && threadIdx.x == 0) {
        mean[c] = all.mean;
        var[c] = all.m2 / all.n;
    }
}
"""
)

_NORM_BACKWARD = (
    _PARTS
    + """
struct Sums { W d, dx; };  // of dy, and of dy * (x - mean)

extern "C" __global__ void gradient_sums(
    const X* dy, const X* x, const X* y, const S* mean, Sums* sums, long long length, int parts
) {
    __shared__ Sums cell[THREADS];
    const Part part(length, parts, blockIdx.x % parts);
    const W centre = mean[part.channel];
    Sums own = {0, 0};
    for (long long k = part.start + threadIdx.x; k < part.stop; k += THREADS) {
        const W d = y && !((W)y[k] > 0) ? (W)0 : (W)dy[k];
        own.d += d;
        own.dx += d * ((W)x[k] - centre);
    }
    cell[threadIdx.x] = own;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) {
            cell[threadIdx.x].d += cell[threadIdx.x + half].d;
            cell[threadIdx.x].dx += cell[threadIdx.x + half].dx;
        }
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = cell[0];
}

extern "C" __global__ void gradients(
    const X* dy, const X* x, const X* y, const S* mean, const S* var, const P* weight, const Sums* sums,
    X* dx, W* dweight, W* dbias, long long length, int parts, W eps, bool batch_statistics
) {
    const Part part(length, parts, blockIdx.x % parts);
    const long long c = part.channel;
    Sums all = {0, 0};
    for (int p = 0; p < parts; ++p) {
        all.d += sums[c * parts + p].d;
        all.dx += sums[c * parts + p].dx;
    }
    const W centre = mean[c], rstd = 1 / sqrt((W)var[c] + eps), scale = weight ? rstd * (W)weight[c] : rstd;
    const W share = batch_statistics ? scale / length : (W)0;  // by way of mean and variance
    for (long long k = part.start + threadIdx.x; k < part.stop; k += THREADS) {
        const W d = y && !((W)y[k] > 0) ? (W)0 : (W)dy[k];
        dx[k] = (X)(d * scale - share * (all.d + ((W)x[k] - centre) * rstd * rstd * all.dx));
    }
    if (blockIdx.x % parts == 0 && threadIdx.x == 0) {
        dweight[c] = all.dx * rstd;
        dbias[c] = all.d;
    }
}
"""
)


def _parts(channels: int, length: int) -> int:
    """Return into how many parts a channel is cut: enough blocks in all, and enough elements for each."""
    return max(1, min(BLOCKS // channels, length // (4 * THREADS), 64))


def batch_norm_forward(
    x: Array, weight: Array | None, bias: Array | None, eps: float, relu: bool
) -> tuple[Array, Array, Array]:
    """Return (y, mean (C,), var (C,)) in two launches."""
    xp = array_module(x)
    wide = xp.promote_types(x.dtype, xp.float32)
    channels, length = x.shape[0], x.size // x.shape[0]
    parts = _parts(channels, length)
    grid, y = (channels * parts,), xp.empty(x.shape, x.dtype)
    sums, (mean, var) = xp.empty((channels, parts, 3), wide), xp.empty((2, channels), wide)
    types = {"X": x.dtype, "W": wide}
    types |= {letter: wide if a is None else a.dtype for letter, a in (("P", weight), ("Q", bias))}
    _kernel(xp, "statistics", _NORM_FORWARD, **types)(grid, (THREADS,), (x, sums, length, np.int32(parts)))
    affine = NULL if weight is None else weight, NULL if bias is None else bias
    arguments = (x, sums, *affine, y, mean, var, length, np.int32(parts), wide.type(eps), relu)
    _kernel(xp, "normalise", _NORM_FORWARD, **types)(grid, (THREADS,), arguments)
    return y, mean, var


def batch_norm_backward(
    dy: Array,
    x: Array,
    mean: Array,
    var: Array,
    weight: Array | None,
    eps: float,
    batch_statistics: bool,
    y: Array | None,
) -> tuple[Array, Array, Array]:
    """Return (dx, dweight (C,), dbias (C,)) in two launches."""
    xp = array_module(x)
    wide = xp.promote_types(x.dtype, xp.float32)
    channels, length = x.shape[0], x.size // x.shape[0]
    parts = _parts(channels, length)
    grid, dx = (channels * parts,), xp.empty(x.shape, dy.dtype)
    sums, (dweight, dbias) = xp.empty((channels, parts, 2), wide), xp.empty((2, channels), wide)
    types = {"X": x.dtype, "W": wide, "S": mean.dtype, "P": wide if weight is None else weight.dtype}
    kept = NULL if y is None else y
    size = length, np.int32(parts)
    _kernel(xp, "gradient_sums", _NORM_BACKWARD, **types)(grid, (THREADS,), (dy, x, kept, mean, sums, *size))
    arrays = (dy, x, kept, mean, var, NULL if weight is None else weight, sums, dx, dweight, dbias)
    arguments = (*arrays, *size, wide.type(eps), batch_statistics)
    _kernel(xp, "gradients", _NORM_BACKWARD, **types)(grid, (THREADS,), arguments)
    return dx, dweight, dbias


def batch_norm_inference(
    x: Array, mean: Array, var: Array, weight: Array | None, bias: Array | None, eps: float, relu: bool
) -> Array:
    """Return y by fixed statistics, in one launch."""
    body = """
        const F scale = (scaled ? (F)weight : (F)1) / sqrt((F)var + (F)eps);
        const F z = ((F)x - (F)mean) * scale + (shifted ? (F)bias : (F)0);
        y = (T)(relu && z < 0 ? (F)0 : z);
    """
    inputs = "T x, S mean, S var, P weight, Q bias, bool scaled, bool shifted, float64 eps, bool relu"
    kernel = _elementwise(array_module(x), "batch_norm_inference", inputs, "T y", body)
    affine = (mean if weight is None else weight, mean if bias is None else bias)
    rows = (x.reshape(len(x), -1), *(a.reshape(-1, 1) for a in (mean, var, *affine)))
    y = kernel(*rows, weight is not None, bias is not None, eps, relu)
    return y.reshape(x.shape)


def update_statistics(
    running_mean: Array, running_var: Array, mean: Array, var: Array, momentum: float, correction: float
) -> None:
    """Move running statistics towards those of a batch, in place."""
    body = """
        running_mean += (R)(momentum * ((double)mean - (double)running_mean));
        running_var += (R)(momentum * (correction * (double)var - (double)running_var));
    """
    inputs = "S mean, S var, float64 momentum, float64 correction"
    kernel = _elementwise(array_module(mean), "update_statistics", inputs, "R running_mean, R running_var", body)
    kernel(mean, var, momentum, correction, running_mean, running_var)


# --- loss -------------------------------------------------------------------------------------------------------

# A block takes 32 samples; the 8 threads of a sample share its classes, which lie N elements apart.
_CROSS_ENTROPY = """
__device__ W over_classes(W value, bool largest) {  // sum or maximum over the threads of a sample
    __shared__ W cell[8][32];
    __syncthreads();
    cell[threadIdx.y][threadIdx.x] = value;
    __syncthreads();
    W result = cell[0][threadIdx.x];
    for (int k = 1; k < 8; ++k) {
        const W other = cell[k][threadIdx.x];
        result = largest ? (other > result || other != other ? other : result) : result + other;
    }
    return result;
}

extern "C" __global__ void cross_entropy(
    const X* logits, const L* labels, X* gradient, W* losses, long long classes, long long batch, W on, W even, W share
) {
    const long long n = blockIdx.x * 32LL + threadIdx.x, end = n < batch ? classes : 0;
    const long long label = n < batch ? (long long)labels[n] : -1;
    W peak = -__int_as_float(0x7f800000);  // minus infinity
    for (long long k = threadIdx.y; k < end; k += 8) {
        const W z = logits[k * batch + n];
        if (z > peak || z != z) peak = z;
    }
    peak = over_classes(peak, true);
    W total = 0;
    for (long long k = threadIdx.y; k < end; k += 8) total += exp((W)logits[k * batch + n] - peak);
    const W log_total = log(over_classes(total, false));
    const W mass = even * classes + (label >= 0 && label < classes ? on : (W)0);
    W loss = 0;
    for (long long k = threadIdx.y; k < end; k += 8) {
        const W log_p = (W)logits[k * batch + n] - peak - log_total, target = even + (k == label ? on : (W)0);
        if (target != 0) loss -= target * log_p * share;
        gradient[k * batch + n] = (X)((exp(log_p) * mass - target) * share);
    }
    loss = over_classes(loss, false);
    if (end && threadIdx.y == 0) losses[n] = loss;
}
"""


def softmax_cross_entropy(logits: Array, t: Array, label_smoothing: float) -> tuple[Array, Array]:
    """Return (loss (), dlogits (K, N)) for integer labels (N,), in two launches."""
    xp = array_module(logits)
    wide = xp.promote_types(logits.dtype, xp.float32)
    classes, batch = logits.shape
    gradient, losses = xp.empty(logits.shape, logits.dtype), xp.empty(batch, wide)
    weights = [wide.type(v) for v in (1.0 - label_smoothing, label_smoothing / classes, 1.0 / batch)]
    kernel = _kernel(xp, "cross_entropy", _CROSS_ENTROPY, X=logits.dtype, W=wide, L=t.dtype)
    kernel((-(-batch // 32),), (32, 8), (logits, t, gradient, losses, classes, batch, *weights))
    return losses.sum(), gradient


# --- optimizers -------------------------------------------------------------------------------------------------


def update(
    code: str,
    w: Array,
    g: Array,
    states: dict[str, Array],
    constants: dict[str, float],
    step: int,
    skipped: Array | int = 0,
    finite: Array | bool = True,
) -> None:
    """Run an optimizer's code for every element of w, g and the states, in place for w and states, in one launch.

    Args:
        code: CUDA statements on w, g, the states and the constants by name, and `step`.
        skipped: how many of the steps do not count.
        finite: leave w and the states as they are if false.
    """
    names = ("w", "g", *states)
    load = "".join(f"F {name} = (F){name}_;" for name in names)
    scalars = "".join(f"const F {name} = (F){name}_;" for name in constants)
    store = "".join(f"{name}_ = (T){name};" for name in names if name != "g")
    body = f"""
        if (finite) {{
            {load} {scalars}
            const F step = step_ - skipped;
            {code}
            {store}
        }}
    """
    inputs = "T g_, int64 step_, int64 skipped, bool finite" + "".join(f", float64 {name}_" for name in constants)
    outputs = ", ".join(f"T {name}_" for name in names if name != "g")
    kernel = _elementwise(array_module(w), "update", inputs, outputs, body)
    kernel(g, step, skipped, finite, *constants.values(), w, *states.values())


_UNSCALE = """
extern "C" __global__ void unscale(T* gradient, const float* scale, bool* finite, long long length) {
    const long long start = length * blockIdx.x / gridDim.x, stop = length * (blockIdx.x + 1) / gridDim.x;
    bool own = true;
    for (long long k = start + threadIdx.x; k < stop; k += THREADS) {
        const T g = gradient[k] / (T)*scale;
        gradient[k] = g;
        own = own && g - g == (T)0;  // no NaN, no infinity
    }
    const bool all = __syncthreads_and(own);
    if (threadIdx.x == 0) finite[blockIdx.x] = all;
}
"""


def unscale(gradient: Array, scale: Array) -> Array:
    """Divide a flat gradient by the scale () in place; return whether every element is finite (), in two launches."""
    xp = array_module(gradient)
    blocks = max(1, min(BLOCKS, gradient.size // (4 * THREADS)))
    finite = xp.empty(blocks, np.bool_)
    kernel = _kernel(xp, "unscale", _UNSCALE, T=gradient.dtype)
    kernel((blocks,), (THREADS,), (gradient, scale, finite, gradient.size))
    return finite.all()


def adjust_scale(finite: Array, growth_steps: int, scale: Array, good: Array, skipped: Array) -> None:
    """Halve the scale after a gradient that was not finite, double it after so many good ones; all (), in place."""
    body = """
        good = finite ? good + 1 : 0;
        skipped += finite ? 0 : 1;
        scale *= !finite ? 0.5f : good == growth_steps ? 2.0f : 1.0f;
        good %= growth_steps;
    """
    outputs = "float32 scale, int64 good, int64 skipped"
    kernel = _elementwise(array_module(scale), "adjust_scale", "bool finite, int64 growth_steps", outputs, body)
    kernel(finite, growth_steps, scale, good, skipped)
