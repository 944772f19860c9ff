"""Compares cupy (under cudasim) with numpy over the operations a small CNN framework needs."""

import os
import sys
import time
import traceback

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import cudasim

cudasim.install()
import cupy as cp
import cupyx
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view as np_swv

rng = np.random.RandomState(0)
TESTS = []
OK = object()


def case(f):
    TESTS.append((f.__name__, f))
    return f


def both(name, f, *arrs, tol=1e-5):
    """f(xp, *arrays) under both; same shape, dtype, values."""

    def run():
        a = f(np, *[x.copy() if isinstance(x, np.ndarray) else x for x in arrs])
        b = f(cp, *[cp.asarray(x) if isinstance(x, np.ndarray) else x for x in arrs])
        aa = a if isinstance(a, (tuple, list)) else (a,)
        bb = b if isinstance(b, (tuple, list)) else (b,)
        assert len(aa) == len(bb)
        for x, y in zip(aa, bb, strict=True):
            assert isinstance(y, cp.ndarray), type(y)
            y = y.get()
            x = np.asarray(x)
            assert x.shape == y.shape, (x.shape, y.shape)
            assert x.dtype == y.dtype, (x.dtype, y.dtype)
            t = 2e-2 if x.dtype == np.float16 else tol
            if x.dtype.kind in "fc":
                np.testing.assert_allclose(y, x, rtol=t, atol=t)
            else:
                np.testing.assert_array_equal(y, x)

    TESTS.append((name, run))


X = rng.randn(4, 3, 8, 8).astype("f4")
A = rng.randn(5, 7).astype("f4")
B = rng.randn(5, 7).astype("f4")
P = np.abs(A) + 0.1
D = rng.randn(6, 5)
J = rng.randint(-50, 50, (4, 9)).astype("i4")
H = rng.randn(4, 6).astype("f2")
# creation
both("zeros", lambda xp: xp.zeros((3, 4), "f4"))
both("ones", lambda xp: xp.ones((3, 4)))
both("full", lambda xp: xp.full((2, 3), 2.5, "f4"))
both("full_int", lambda xp: xp.full(3, 7))
both("arange", lambda xp: xp.arange(10))
both("arange_step", lambda xp: xp.arange(1, 9, 0.5, dtype="f4"))
both("linspace", lambda xp: xp.linspace(0, 1, 7))
both("eye", lambda xp: xp.eye(4, dtype="f4"))
both("identity_onehot", lambda xp, i: xp.eye(10, dtype="f4")[i], np.array([3, 1, 9]))
both("asarray_list", lambda xp: xp.asarray([[1, 2], [3, 4]], dtype="f4"))
both("ascontiguousarray", lambda xp, x: xp.ascontiguousarray(x.transpose(0, 2, 3, 1)), X)
both("zeros_like", lambda xp, x: xp.zeros_like(x), X)
both("empty_fill", lambda xp: _fill(xp.empty((3, 3), "f4")))


def _fill(a):
    a.fill(3)
    return a


both("astype", lambda xp, a: a.astype("f8"), A)
both("astype_int", lambda xp, a: (a * 10).astype("i4"), A)
both("astype_half", lambda xp, a: a.astype("f2"), A)
both("copy", lambda xp, a: a.copy(), A)
# ufuncs
for n in ["add", "subtract", "multiply", "divide", "maximum", "minimum", "power", "arctan2", "fmod", "hypot"]:
    both(n, lambda xp, a, b, n=n: getattr(xp, n)(xp.abs(a) if n == "power" else a, b), A, B)
for n in [
    "exp",
    "tanh",
    "sin",
    "cos",
    "arctan",
    "sqrt",
    "log",
    "log1p",
    "expm1",
    "square",
    "abs",
    "sign",
    "floor",
    "ceil",
    "rint",
    "negative",
    "reciprocal",
    "cbrt",
    "exp2",
    "log2",
    "log10",
    "sinh",
]:
    both(n, lambda xp, a, n=n: getattr(xp, n)(a), P)
    both(n + "_f64", lambda xp, a, n=n: getattr(xp, n)(a), P.astype("f8"), tol=1e-12)
both("where", lambda xp, a, b: xp.where(a > 0, a, b), A, B)
both("clip", lambda xp, a: xp.clip(a, -0.5, 0.5), A)
both("broadcast", lambda xp, a, b: a[:, None, :] + b[None], A, B)
both("scalar_promotion", lambda xp, a: a * 2.0 + 1, A)
both("int_div", lambda xp, i: i // 7, J)
both("int_mod", lambda xp, i: i % 7, J)
both("int_truediv", lambda xp, i: i / 3, J)
both("bool_ops", lambda xp, a, b: (a > 0) & ~(b > 0) | (a == b), A, B)
both("isnan", lambda xp: xp.isnan(xp.array([1, float("nan"), float("inf")])))
both("inplace", lambda xp, a: _inpl(a), A)
both("shift", lambda xp, i: (i << 2) >> 1, J)
both("half_ops", lambda xp, h: h * h + h / 3, H)
both("complex", lambda xp, d: (d + 1j * d) * xp.exp(1j * d), D)
both("uint8_wrap", lambda xp: xp.arange(300).astype("u1") + xp.uint8(3))
both("i8_mul", lambda xp: xp.arange(2**40, 2**40 + 5) * 3)


def _inpl(a):
    a += 1
    a *= 2
    a -= a.mean(dtype="f4")
    return a


# indexing
both("basic_slice", lambda xp, x: x[1:3, ::2, ::-1, 2] + 0, X)
both("fancy", lambda xp, x, i: x[i], X, np.array([2, 0, 3]))
both("fancy2", lambda xp, x, i, j: x[:, i, j], X, np.array([2, 0, 1]), np.array([5, 6, 7]))
both("bool_mask", lambda xp, a: a[a > 0], A)
both("setitem", lambda xp, a: _set(a), A)
both("setitem_fancy", lambda xp, a, i: _setf(a, i), A, np.array([0, 3]))
both("setitem_mask", lambda xp, a: _setm(a), A)
both("take", lambda xp, a, i: xp.take(a, i, axis=1), A, np.array([0, 6, 2]))
both("take_along_axis", lambda xp, a: xp.take_along_axis(a, a.argmax(axis=1)[:, None], axis=1), A)
both("put_along", lambda xp, a: _pa(xp, a), A)
both("nonzero", lambda xp, a: xp.nonzero(a > 0.3), A)


def _set(a):
    a[1:3, 2] = 5
    a[:, -1] = a[:, 0]
    return a


def _setf(a, i):
    a[i, i] = 9
    return a


def _setm(a):
    a[a < 0] = 0
    return a


def _pa(xp, a):
    xp.put_along_axis(a, a.argmax(axis=1)[:, None], 0, axis=1) if xp is np else a.__setitem__(
        (cp.arange(a.shape[0]), a.argmax(axis=1)), 0
    )
    return a


# shape
both("reshape_T", lambda xp, x: x.transpose(1, 0, 2, 3).reshape(3, -1), X)
both("pad", lambda xp, x: xp.pad(x, ((0, 0), (0, 0), (1, 1), (2, 2))), X)
both("pad_const", lambda xp, x: xp.pad(x, 1, constant_values=-1), A)
both("pad_edge", lambda xp, x: xp.pad(x, 1, mode="edge"), A)
both("concatenate", lambda xp, a, b: xp.concatenate([a, b], axis=1), A, B)
both("stack", lambda xp, a, b: xp.stack([a, b]), A, B)
both("split", lambda xp, x: xp.split(x, 2), X)
both("repeat", lambda xp, a: xp.repeat(a, 3, axis=0), A)
both("tile", lambda xp, a: xp.tile(a, (2, 3)), A)
both("flip", lambda xp, a: xp.flip(a, 1), A)
both("rot90", lambda xp, a: xp.rot90(a), A)
both("roll", lambda xp, a: xp.roll(a, 2, axis=1), A)
both("squeeze_expand", lambda xp, a: xp.expand_dims(a, 1).squeeze(), A)
both("moveaxis", lambda xp, x: xp.ascontiguousarray(xp.moveaxis(x, 1, -1)), X)
both("swapaxes", lambda xp, x: xp.ascontiguousarray(x.swapaxes(0, 3)), X)
both("broadcast_to", lambda xp, a: xp.broadcast_to(a, (3, 5, 7)) + 0, A)
both("meshgrid", lambda xp: xp.meshgrid(xp.arange(3), xp.arange(4)))
both(
    "sliding_window_view",
    lambda xp, x: (
        (xp.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3)))[:, :, ::2, ::2]
        .transpose(0, 2, 3, 1, 4, 5)
        .reshape(4 * 9, -1)
    ),
    X,
)


def _im2col(xp, x):
    n, c = x.shape[:2]
    s = x.strides
    v = xp.lib.stride_tricks.as_strided(x, (n, c, 3, 3, 6, 6), (s[0], s[1], s[2], s[3], s[2], s[3]))
    return xp.ascontiguousarray(v.transpose(0, 4, 5, 1, 2, 3)).reshape(n * 36, -1)


both("as_strided_im2col", _im2col, X)
# reductions
for n in ["sum", "mean", "max", "min", "argmax", "argmin", "prod", "std", "var"]:
    both(n, lambda xp, a, n=n: getattr(xp, n)(a), A)
    both(n + "_axis", lambda xp, x, n=n: getattr(xp, n)(x, axis=(2 if n.startswith("arg") else (0, 2, 3))), X)
    both(
        n + "_big", lambda xp, x, n=n: getattr(xp, n)(x, axis=0), (rng.randn(1000, 5) * 0.1 + 1).astype("f4"), tol=1e-3
    )
both("sum_keepdims", lambda xp, a: a.sum(axis=1, keepdims=True), A)
both("sum_int", lambda xp, i: i.sum(axis=0), J)
both("sum_bool", lambda xp, a: (a > 0).sum(), A)
both("any_all", lambda xp, a: (xp.any(a > 0, axis=0), xp.all(a > 0, axis=1)), A)
both("cumsum", lambda xp, a: xp.cumsum(a, axis=1), A)
both("cumsum_flat", lambda xp: xp.cumsum(xp.arange(3000)))
both("sum_half", lambda xp, h: h.sum(axis=0), H)
both("count_nonzero", lambda xp, a: xp.asarray(xp.count_nonzero(a > 0)), A)
both("amax_nan", lambda xp: xp.max(xp.array([1.0, float("nan"), 2.0])))
both("logsumexp", lambda xp, a: xp.log(xp.exp(a - a.max(1, keepdims=True)).sum(1)), A)
both(
    "softmax",
    lambda xp, a: xp.exp(a - a.max(1, keepdims=True)) / xp.exp(a - a.max(1, keepdims=True)).sum(1, keepdims=True),
    A,
)
both("bincount", lambda xp, i: xp.bincount(i), np.array([1, 1, 4, 0]))
both("unique", lambda xp, i: xp.unique(i), np.array([3, 1, 3, 2]))
both("sort", lambda xp, a: xp.sort(a, axis=1), A)
both("argsort", lambda xp, a: xp.argsort(a, axis=1), A)
both("partition_topk", lambda xp, a: xp.argsort(-a, axis=1)[:, :3], A)
both("median", lambda xp, a: xp.median(a, axis=1), A)
both("searchsorted", lambda xp, a: xp.searchsorted(xp.arange(10.0), a), np.array([2.5, 7.1]))
both("linalg_norm", lambda xp, a: xp.linalg.norm(a), A)
both("allclose", lambda xp, a: xp.asarray(xp.allclose(a, a)), A)
# linear algebra
both("matmul_f32", lambda xp, a, b: a @ b.T, A, B, tol=1e-4)
both("matmul_f64", lambda xp, d: d.T @ d, D, tol=1e-12)
both("matmul_f16", lambda xp, h: h @ h.T, H)
both("matmul_batched", lambda xp, x: x @ x.transpose(0, 1, 3, 2), X, tol=1e-4)
both("dot_vec", lambda xp, a: a[0].dot(a[1]), A)
both("dot_mv", lambda xp, a: a.dot(a[0]), A, tol=1e-4)
both("tensordot", lambda xp, x: xp.tensordot(x, x, axes=([2, 3], [2, 3])), X, tol=1e-3)
both("einsum", lambda xp, x: xp.einsum("nchw,kchw->nk", x, x), X, tol=1e-3)
both("einsum_diag", lambda xp, a: xp.einsum("ij,ij->i", a, a), A, tol=1e-4)
both("outer", lambda xp, a: xp.outer(a[0], a[1]), A)
both("matmul_int", lambda xp, i: i @ i.T, J)
both("inner", lambda xp, a: xp.inner(a, a), A, tol=1e-4)
both("matmul_noncontig", lambda xp, x: x[:, 0, ::2, ::2] @ x[:, 1, 1::2, 1::2], X, tol=1e-4)
both("matmul_broadcast", lambda xp, x, w: x.reshape(4, 3, 64) @ w, X, rng.randn(64, 5).astype("f4"), tol=1e-4)
both("matmul_large", lambda xp, a: a @ a.T, rng.randn(130, 300).astype("f4"), tol=1e-3)
both("trace", lambda xp, d: xp.trace(d), D)
both("diag_tril", lambda xp, d: (xp.diag(d), xp.tril(d)), D)


# kernels
@case
def elementwise_kernel():
    k = cp.ElementwiseKernel("T x, T y, float32 a", "T z", "z = a * x + y", "axpy")
    np.testing.assert_allclose(k(cp.asarray(A), cp.asarray(B), 2.0).get(), 2 * A + B, rtol=1e-6)


@case
def elementwise_raw_index():
    k = cp.ElementwiseKernel("raw T x, int32 n", "T z", "z = x[n - 1 - i]", "rev")
    np.testing.assert_array_equal(k(cp.arange(10), 10, size=10).get(), np.arange(9, -1, -1))


@case
def reduction_kernel():
    k = cp.ReductionKernel("T x", "T y", "x * x", "a + b", "y = sqrt(a)", "0", "l2")
    np.testing.assert_allclose(k(cp.asarray(A), axis=1).get(), np.sqrt((A * A).sum(1)), rtol=1e-5)


@case
def raw_kernel():
    k = cp.RawKernel(
        r"""
extern "C" __global__ void f(const float *x, float *y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = x[i] * 2.f + i;
}""",
        "f",
    )
    x = cp.arange(1000, dtype="f4")
    y = cp.empty_like(x)
    k((8,), (128,), (x, y, np.int32(1000)))
    np.testing.assert_array_equal(y.get(), np.arange(1000, dtype="f4") * 3)


@case
def raw_kernel_shared_sync():
    k = cp.RawKernel(
        r"""
extern "C" __global__ void s(const float *x, float *y) {
  extern __shared__ float b[];
  int t = threadIdx.x;
  b[t] = x[blockIdx.x * blockDim.x + t];
  __syncthreads();
  for (int o = blockDim.x / 2; o > 0; o >>= 1) {
    if (t < o) b[t] += b[t + o];
    __syncthreads();
  }
  if (t == 0) y[blockIdx.x] = b[0];
}""",
        "s",
    )
    x = cp.arange(1024, dtype="f4")
    y = cp.zeros(4, "f4")
    k((4,), (256,), (x, y), shared_mem=1024)
    np.testing.assert_allclose(y.get(), np.arange(1024, dtype="f4").reshape(4, 256).sum(1))


@case
def raw_kernel_warp_shuffle():
    k = cp.RawKernel(
        r"""
extern "C" __global__ void w(const int *x, int *y) {
  int v = x[threadIdx.x];
  for (int o = 16; o > 0; o >>= 1) v += __shfl_down_sync(0xffffffffu, v, o);
  unsigned b = __ballot_sync(0xffffffffu, threadIdx.x & 1);
  if ((threadIdx.x & 31) == 0) {
    y[threadIdx.x / 32] = v;
    y[2 + threadIdx.x / 32] = __popc(b);
  }
}""",
        "w",
    )
    x = cp.arange(64, dtype="i4")
    y = cp.zeros(4, "i4")
    k((1,), (64,), (x, y))
    assert y.get().tolist() == [496, 1520, 16, 16], y


@case
def raw_kernel_divergent_loop():
    k = cp.RawKernel(
        r"""
extern "C" __global__ void c(const int *x, int *y) {
  int i = threadIdx.x, n = 0;
  long long v = x[i];
  while (v != 1 && n < 1000) {
    if (v & 1)
      v = 3 * v + 1;
    else
      v /= 2;
    ++n;
  }
  y[i] = n;
}""",
        "c",
    )
    x = cp.arange(1, 101, dtype="i4")
    y = cp.zeros(100, "i4")
    k((1,), (100,), (x, y))

    def c(v):
        n = 0
        while v != 1:
            v = 3 * v + 1 if v & 1 else v // 2
            n += 1
        return n

    assert y.get().tolist() == [c(v) for v in range(1, 101)]


@case
def raw_kernel_template_2d_grid():
    m = cp.RawModule(
        code=r"""
template <typename T, int K>
__global__ void conv(const T *x, const T *w, T *y, int W, int O) {
  int i = blockIdx.y * blockDim.y + threadIdx.y, j = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < O && j < O) {
    T s = 0;
    for (int a = 0; a < K; a++)
      for (int b = 0; b < K; b++) s += x[(i + a) * W + j + b] * w[a * K + b];
    y[i * O + j] = s;
  }
}""",
        options=("-std=c++17",),
        name_expressions=["conv<float,3>", "conv<double,3>"],
    )
    for dt in "fd":
        x = rng.randn(20, 20).astype(dt)
        w = rng.randn(3, 3).astype(dt)
        y = cp.zeros((18, 18), dt)
        m.get_function("conv<float,3>" if dt == "f" else "conv<double,3>")(
            (3, 3), (8, 8), (cp.asarray(x), cp.asarray(w), y, np.int32(20), np.int32(18))
        )
        np.testing.assert_allclose(y.get(), np.einsum("ijab,ab->ij", np_swv(x, (3, 3)), w), rtol=1e-3, atol=1e-4)


@case
def raw_kernel_atomic_and_global_var():
    m = cp.RawModule(
        code=r"""
__constant__ float c[4];
extern "C" __global__ void g(float *y, int *n) {
  atomicAdd(y, c[threadIdx.x & 3]);
  atomicAdd(n, 1);
  atomicMax(n + 1, (int)threadIdx.x);
  atomicCAS(n + 2, 0, 7);
}"""
    )
    c = cp.ndarray(4, "f4", m.get_global("c"))
    c[...] = cp.asarray([1, 2, 3, 4], dtype="f4")
    y = cp.zeros(1, "f4")
    n = cp.zeros(3, "i4")
    m.get_function("g")((2,), (64,), (y, n))
    assert y.get()[0] == 320 and n.get().tolist() == [128, 63, 7], (y, n)


@case
def raw_kernel_half():
    k = cp.RawKernel(
        r"""#include <cuda_fp16.h>
extern "C" __global__ void h(const __half *x, __half *y, float *z) {
  int i = threadIdx.x;
  __half a = x[i];
  y[i] = __hfma(a, a, __float2half(1.f));
  z[i] = __half2float(hexp(a));
  __half2 p = __halves2half2(a, a);
  p = __hadd2(p, p);
  y[i] = __hadd(y[i], __low2half(p));
}""",
        "h",
    )
    x = rng.randn(32).astype("f2")
    y = cp.zeros(32, "f2")
    z = cp.zeros(32, "f4")
    k((1,), (32,), (cp.asarray(x), y, z))
    np.testing.assert_allclose(y.get().astype("f4"), x.astype("f4") ** 2 + 1 + 2 * x.astype("f4"), rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(z.get(), np.exp(x.astype("f4")), rtol=1e-2)


@case
def compile_error_is_real():
    try:
        cp.RawKernel('extern "C" __global__ void f(float*x){ x[0] = undefined_name; }', "f").compile()
    except cp.cuda.compiler.CompileException as e:
        assert "undefined_name" in str(e)
    else:
        raise AssertionError


@case
def fuse():
    @cp.fuse()
    def f(x, y):
        return cp.maximum(x, 0) * y + cp.exp(-x)

    np.testing.assert_allclose(f(cp.asarray(A), cp.asarray(B)).get(), np.maximum(A, 0) * B + np.exp(-A), rtol=1e-5)


@case
def fuse_reduction():
    @cp.fuse()
    def f(x):
        return cp.sum(x * x, axis=1)

    np.testing.assert_allclose(f(cp.asarray(A)).get(), (A * A).sum(1), rtol=1e-5)


@case
def scatter_add():
    for dt in ("f4", "f8", "i4"):
        a = cp.zeros(5, dt)
        cupyx.scatter_add(a, cp.asarray([0, 1, 1, 4]), cp.asarray([1, 2, 3, 4], dtype=dt))
        assert a.get().tolist() == [1, 5, 0, 0, 4]


@case
def add_at_multi():
    a = np.zeros((3, 4), "f4")
    b = cp.zeros((3, 4), "f4")
    i = np.array([0, 0, 2])
    j = np.array([1, 1, 3])
    np.add.at(a, (i, j), 2)
    cp.add.at(b, (cp.asarray(i), cp.asarray(j)), 2)
    np.testing.assert_array_equal(a, b.get())


@case
def add_at_half():
    a = cp.zeros(4, "f2")
    cupyx.scatter_add(a, cp.asarray([1, 1, 2]), cp.asarray([1, 2, 3], dtype="f2"))
    assert a.get().tolist() == [0, 3, 3, 0]


@case
def maximum_at():
    a = cp.zeros(4, "f4")
    cp.maximum.at(a, cp.asarray([1, 1, 2]), cp.asarray([1, 5, 3], dtype="f4"))
    assert a.get().tolist() == [0, 5, 3, 0]


# host / device
@case
def get_asnumpy_out():
    x = cp.asarray(A)
    assert (cp.asnumpy(x) == A).all()
    o = np.empty_like(A)
    x.get(out=o)
    assert (o == A).all()
    v = cp.asarray(X)[:, 1, ::2]
    assert (v.get() == X[:, 1, ::2]).all()


@case
def asarray_noncontig():
    assert (cp.asarray(X.transpose(3, 1, 0, 2)).get() == X.transpose(3, 1, 0, 2)).all()


@case
def mixing_raises():
    for f in (
        lambda: cp.asarray(A) + A,
        lambda: A + cp.asarray(A),
        lambda: cp.dot(cp.asarray(A), A.T),
        lambda: np.asarray(cp.asarray(A)),
        lambda: cp.concatenate([cp.asarray(A), A]),
    ):
        try:
            f()
        except (TypeError, ValueError):
            pass
        else:
            raise AssertionError("no error")


@case
def numpy_pointer_in_kernel_is_caught():
    k = cp.RawKernel('extern "C" __global__ void bad(float* x){ x[threadIdx.x] = 1; }', "bad")
    h = np.zeros(64, "f4")
    k((1,), (4,), (np.uint64(h.ctypes.data),))
    try:
        cp.cuda.Device().synchronize()
    except cp.cuda.runtime.CUDARuntimeError as e:
        assert "IllegalAddress" in str(e)
    else:
        raise AssertionError
    finally:
        cudasim.clear_error()
    assert (h == 0).all()


@case
def out_of_range_is_caught():
    k = cp.RawKernel('extern "C" __global__ void oob(float* x, long long n){ x[n] = 1; }', "oob")
    x = cp.zeros(4, "f4")
    k((1,), (1,), (x, np.int64(10**9)))
    try:
        x.get()
    except cp.cuda.runtime.CUDARuntimeError as e:
        assert "IllegalAddress" in str(e)
    else:
        raise AssertionError
    finally:
        cudasim.clear_error()


@case
def bad_launch_raises():
    k = cp.RawKernel('extern "C" __global__ void ok(float* x){ }', "ok")
    try:
        k((1,), (2048,), (cp.zeros(1, "f4"),))
    except cp.cuda.driver.CUDADriverError:
        pass
    else:
        raise AssertionError


@case
def out_of_memory():
    try:
        cp.empty(10**11, "f4")
    except cp.cuda.memory.OutOfMemoryError:
        pass
    else:
        raise AssertionError


@case
def streams_events():
    s = cp.cuda.Stream(non_blocking=True)
    e0, e1 = cp.cuda.Event(), cp.cuda.Event()
    with s:
        e0.record()
        y = cp.asarray(A) * 2
        e1.record()
    e1.synchronize()
    s.synchronize()
    assert cp.cuda.get_elapsed_time(e0, e1) >= 0
    assert (y.get() == A * 2).all()
    cp.cuda.Stream.null.wait_event(e1)
    assert s.done


@case
def pinned_memory():
    m = cp.cuda.alloc_pinned_memory(A.nbytes)
    h = np.frombuffer(m, "f4", A.size).reshape(A.shape)
    h[...] = A
    x = cp.empty(A.shape, "f4")
    x.set(h, stream=cp.cuda.Stream.null)
    assert (x.get() == A).all()
    z = cupyx.zeros_pinned((3, 3))
    assert z.sum() == 0


@case
def memory_pool():
    p = cp.get_default_memory_pool()
    x = cp.zeros(1000)
    u = p.used_bytes()
    assert u >= 8000
    del x
    assert p.used_bytes() < u
    p.free_all_blocks()
    f, t = cp.cuda.Device().mem_info
    assert f <= t
    with cp.cuda.using_allocator(None):
        cp.zeros(5)


@case
def random_state():
    r = cp.random.RandomState(3)
    u = r.uniform(-1, 1, (2000,)).get()
    n = r.normal(2, 3, (4000,)).get()
    i = r.randint(0, 10, 500).get()
    assert abs(u.mean()) < 0.1 and abs(n.mean() - 2) < 0.3 and abs(n.std() - 3) < 0.3 and i.min() >= 0 and i.max() == 9
    a = cp.random.RandomState(3).uniform(-1, 1, (2000,)).get()
    assert (a == u).all()


@case
def random_module():
    cp.random.seed(1)
    cp.random.rand(3, 3)
    cp.random.randn(5)
    p = cp.random.permutation(20).get()
    assert sorted(p.tolist()) == list(range(20))
    cp.random.random_sample((3,))
    b = cp.random.binomial(1, 0.5, 1000).get()
    assert 350 < b.sum() < 650


@case
def random_choice_shuffle():
    cp.random.choice(5, 3)
    a = cp.arange(10)
    cp.random.shuffle(a)
    assert sorted(a.get().tolist()) == list(range(10))


@case
def random_default_rng():
    g = cp.random.default_rng(1)
    u = g.random(1000).get()
    assert 0.4 < u.mean() < 0.6
    n = g.standard_normal(1000).get()
    assert abs(n.mean()) < 0.2
    i = g.integers(0, 5, 100).get()
    assert set(i.tolist()) <= set(range(5))


@case
def npz_roundtrip():
    import io

    f = io.BytesIO()
    cp.savez(f, a=cp.asarray(A))
    f.seek(0)
    assert (cp.load(f)["a"].get() == A).all()


@case
def dlpack_and_interface():
    x = cp.asarray(A)
    assert (cp.from_dlpack(x).get() == A).all()
    assert x.__cuda_array_interface__["data"][0] == x.data.ptr
    assert cp.get_array_module(x) is cp


@case
def scalar_conversion():
    x = cp.asarray(3.5)
    assert float(x) == 3.5 and x.item() == 3.5 and int(cp.asarray(3)) == 3 and bool(cp.asarray(True))


@case
def array_function_protocol():
    assert isinstance(np.concatenate([cp.asarray(A), cp.asarray(B)]), cp.ndarray) and isinstance(
        np.exp(cp.asarray(A)), cp.ndarray
    )


@case
def counters_step():
    a = cp.asarray(A)
    w = cp.asarray(B)
    (a @ w.T)
    a * 2
    with cudasim.count(log=True) as c:
        y = a @ w.T
        z = y * 2
    assert c["gemm"] == 1 and c["kernel_launch"] == 1 and c["d2h"] == 0 and c["stream_sync"] == 0, (c.as_dict(), c.log)
    with cudasim.count() as c:
        z.get()
    assert c["d2h"] == 1 and c["h2d"] == 0 and c["d2h_bytes"] == 100
    with cudasim.count() as c:
        cp.asarray(A)
    assert c["h2d"] == 1
    with cudasim.count() as c:
        float(z.sum())
    assert c["d2h"] == 1


@case
def sliding_window_view_syncs():
    # a fact about real CuPy 14.2 that the counters show: the checks in sliding_window_view copy to the host
    x = cp.asarray(A)
    with cudasim.count() as c:
        cp.lib.stride_tricks.sliding_window_view(x, (2, 2))
    assert c["d2h"] == 2 and c["h2d"] == 1, c.as_dict()


@case
def training_step():
    def step(xp, x, t, w1, w2):
        n = x.shape[0]
        m = v = None
        col = _im2col(xp, x).reshape(-1, 27)
        z = col @ w1
        a = xp.maximum(z, 0).reshape(n, 6, 6, 8)
        p = a.reshape(n, 3, 2, 3, 2, 8).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 4)
        k = p.argmax(1)
        f = xp.take_along_axis(p, k[:, None], 1).reshape(n, -1)
        y = f @ w2
        e = xp.exp(y - y.max(1, keepdims=True))
        q = e / e.sum(1, keepdims=True)
        loss = -xp.log(q[xp.arange(n), t]).mean()
        dy = q.copy()
        dy[xp.arange(n), t] -= 1
        dy /= n
        dw2 = f.T @ dy
        df = (dy @ w2.T).reshape(-1)
        dp = xp.zeros_like(p)
        dp[xp.arange(p.shape[0]), k] = df
        da = dp.reshape(n, 3, 3, 8, 2, 2).transpose(0, 1, 4, 2, 5, 3).reshape(-1, 8)
        dz = da * (z > 0)
        dw1 = col.T @ dz
        out = []
        for w, g in ((w1, dw1), (w2, dw2)):
            m = 0.1 * g
            v = 0.001 * g * g
            out.append(w - 0.001 * (m / 0.1) / (xp.sqrt(v / 0.001) + 1e-8))
        return loss, out

    x = X
    t = np.array([1, 0, 3, 2])
    w1 = (rng.randn(27, 8) * 0.1).astype("f4")
    w2 = (rng.randn(72, 10) * 0.1).astype("f4")
    l0, o0 = step(np, x, t, w1, w2)
    dv = [cp.asarray(v) for v in (x, t, w1, w2)]
    step(cp, *dv)
    with cudasim.count() as c:
        l1, o1 = step(cp, *dv)
    assert c["d2h"] == 0 and c["h2d"] == 0 and c["device_sync"] == 0, c.as_dict()
    seen = ", ".join(
        f"{c[k]} {k}" for k in ("kernel_launch", "gemm", "h2d", "d2h", "d2d", "stream_sync", "device_sync")
    )
    print(f"   (one CNN step: {seen})")
    np.testing.assert_allclose(l0, l1.get(), rtol=1e-5)
    for a, b in zip(o0, o1, strict=True):
        np.testing.assert_allclose(a, b.get(), rtol=1e-3, atol=2e-4)


if __name__ == "__main__":
    os.environ.setdefault("CUDASIM_QUIET", "1" if "-v" not in sys.argv else "")
    flt = [a for a in sys.argv[1:] if a != "-v"]
    t0 = time.time()
    ok = bad = 0
    fails = []
    for name, f in TESTS:
        if flt and not any(x in name for x in flt):
            continue
        try:
            f()
            ok += 1
        except BaseException as e:
            bad += 1
            fails.append(name)
            print("FAIL", name, type(e).__name__, str(e)[:300].replace("\n", " | "))
            if "-v" in sys.argv:
                traceback.print_exc()
            cudasim.clear_error()
    print(f"{ok} passed, {bad} failed in {time.time() - t0:.1f} s; {cudasim.instructions()} device thread-instructions")
    print({k: v for k, v in cudasim.counters().items() if v})
    print("failed:", fails)
    sys.exit(bool(bad))
