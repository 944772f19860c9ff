"""Kernels that users write: elementwise, reduction, raw CUDA C++ by way of NVRTC, and fusion."""

import cupy as cp
import numpy as np
from comparing import MATRIX, OTHER, rng
from numpy.lib.stride_tricks import sliding_window_view


def test_elementwise_kernel():
    k = cp.ElementwiseKernel("T x, T y, float32 a", "T z", "z = a * x + y", "axpy")
    np.testing.assert_allclose(k(cp.asarray(MATRIX), cp.asarray(OTHER), 2.0).get(), 2 * MATRIX + OTHER, rtol=1e-6)


def test_elementwise_raw_index():
    k = cp.ElementwiseKernel("raw T x, int32 n", "T z", "z = x[n - 1 - i]", "rev")
    np.testing.assert_array_equal(k(cp.arange(10), 10, size=10).get(), np.arange(9, -1, -1))


def test_reduction_kernel():
    k = cp.ReductionKernel("T x", "T y", "x * x", "a + b", "y = sqrt(a)", "0", "l2")
    np.testing.assert_allclose(k(cp.asarray(MATRIX), axis=1).get(), np.sqrt((MATRIX * MATRIX).sum(1)), rtol=1e-5)


def test_raw_kernel():
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


def test_raw_kernel_shared_sync():
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


def test_raw_kernel_warp_shuffle():
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


def test_raw_kernel_divergent_loop():
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


def test_raw_kernel_template_2d_grid():
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
        np.testing.assert_allclose(
            y.get(), np.einsum("ijab,ab->ij", sliding_window_view(x, (3, 3)), w), rtol=1e-3, atol=1e-4
        )


def test_raw_kernel_atomic_and_global_var():
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


def test_raw_kernel_half():
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


def test_compile_error_is_real():
    try:
        cp.RawKernel('extern "C" __global__ void f(float*x){ x[0] = undefined_name; }', "f").compile()
    except cp.cuda.compiler.CompileException as e:
        assert "undefined_name" in str(e)
    else:
        raise AssertionError


def test_fuse():
    @cp.fuse()
    def f(x, y):
        return cp.maximum(x, 0) * y + cp.exp(-x)

    np.testing.assert_allclose(
        f(cp.asarray(MATRIX), cp.asarray(OTHER)).get(), np.maximum(MATRIX, 0) * OTHER + np.exp(-MATRIX), rtol=1e-5
    )


def test_fuse_reduction():
    @cp.fuse()
    def f(x):
        return cp.sum(x * x, axis=1)

    np.testing.assert_allclose(f(cp.asarray(MATRIX)).get(), (MATRIX * MATRIX).sum(1), rtol=1e-5)


def test_add_at():
    for dt in ("f4", "f8", "i4"):
        a = cp.zeros(5, dt)
        cp.add.at(a, cp.asarray([0, 1, 1, 4]), cp.asarray([1, 2, 3, 4], dtype=dt))
        assert a.get().tolist() == [1, 5, 0, 0, 4]


def test_add_at_multi():
    a = np.zeros((3, 4), "f4")
    b = cp.zeros((3, 4), "f4")
    i = np.array([0, 0, 2])
    j = np.array([1, 1, 3])
    np.add.at(a, (i, j), 2)
    cp.add.at(b, (cp.asarray(i), cp.asarray(j)), 2)
    np.testing.assert_array_equal(a, b.get())


def test_add_at_half():
    a = cp.zeros(4, "f2")
    cp.add.at(a, cp.asarray([1, 1, 2]), cp.asarray([1, 2, 3], dtype="f2"))
    assert a.get().tolist() == [0, 3, 3, 0]


def test_maximum_at():
    a = cp.zeros(4, "f4")
    cp.maximum.at(a, cp.asarray([1, 1, 2]), cp.asarray([1, 5, 3], dtype="f4"))
    assert a.get().tolist() == [0, 5, 3, 0]
