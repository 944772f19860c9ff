"""The replacement of cuBLAS, by way of CuPy's own bindings, against NumPy."""

import cupy as cp
import numpy as np
import pytest
from cupy.cuda import cublas, device

LETTERS = {"s": "f4", "d": "f8", "c": "c8", "z": "c16"}
NONE, TRANSPOSED, ADJOINT = cublas.CUBLAS_OP_N, cublas.CUBLAS_OP_T, cublas.CUBLAS_OP_C


@pytest.fixture
def handle():
    return device.get_cublas_handle()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def numbers(rng, shape, dtype):
    """Return a Fortran-ordered array, as cuBLAS wants it."""
    x = rng.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        x = x + 1j * rng.standard_normal(shape)
    return np.asfortranarray(x.astype(dtype))


def op(x, how):
    return {NONE: x, TRANSPOSED: x.T, ADJOINT: x.conj().T}[how]


def scalar(value, dtype):
    return np.array(value, dtype)


def close(found, expected):
    tolerance = 1e-4 if expected.dtype.char in "fF" else 1e-12
    np.testing.assert_allclose(cp.asnumpy(found), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("letter", LETTERS)
@pytest.mark.parametrize("how_b", [NONE, TRANSPOSED, ADJOINT])
@pytest.mark.parametrize("how_a", [NONE, TRANSPOSED, ADJOINT])
def test_gemm(handle, rng, how_a, how_b, letter):
    dtype = LETTERS[letter]
    m, n, k = 4, 3, 5
    a = numbers(rng, (m, k) if how_a == NONE else (k, m), dtype)
    b = numbers(rng, (k, n) if how_b == NONE else (n, k), dtype)
    c = numbers(rng, (m, n), dtype)
    alpha, beta = scalar(1.5, dtype), scalar(-0.5, dtype)
    x, y, z = cp.asarray(a, order="F"), cp.asarray(b, order="F"), cp.asarray(c, order="F")
    gemm = getattr(cublas, letter + "gemm")
    gemm(handle, how_a, how_b, m, n, k, alpha.ctypes.data, x.data.ptr, len(a), y.data.ptr, len(b), beta.ctypes.data,
         z.data.ptr, m)  # fmt: skip
    close(z, alpha * (op(a, how_a) @ op(b, how_b)) + beta * c)


def test_gemm_with_beta_zero_does_not_read_c(handle):
    x = cp.ones((2, 2), "f4")
    out = cp.full((2, 2), cp.nan, "f4")
    one, zero = scalar(1, "f4"), scalar(0, "f4")
    p = x.data.ptr
    cublas.sgemm(handle, 0, 0, 2, 2, 2, one.ctypes.data, p, 2, p, 2, zero.ctypes.data, out.data.ptr, 2)
    assert out.get().tolist() == [[2, 2], [2, 2]]


def test_gemm_beyond_the_end_of_a_matrix_is_caught(handle, capfd):
    with cp.cuda.using_allocator(None):
        small, large = cp.ones(9, "f4"), cp.ones(16, "f4")
    one = scalar(1, "f4").ctypes.data
    s, p = small.data.ptr, large.data.ptr
    for a, b, c in ((s, p, p), (p, s, p), (p, p, s)):
        with pytest.raises(cublas.CUBLASError, match="CUBLAS_STATUS_EXECUTION_FAILED"):
            cublas.sgemm(handle, 0, 0, 4, 4, 4, one, a, 4, b, 4, one, c, 4)
    assert "cuBLAS was given 16 elements" in capfd.readouterr().err


def test_leading_dimensions_are_checked(handle):
    x = cp.ones(16, "f4").data.ptr
    one = scalar(1, "f4").ctypes.data
    with pytest.raises(cublas.CUBLASError, match="CUBLAS_STATUS_INVALID_VALUE"):
        cublas.sgemm(handle, 0, 0, 4, 4, 4, one, x, 3, x, 4, one, x, 4)


def test_half_precision_is_summed_in_float32():
    a = cp.full((2, 4096), 0.1, "f2")
    found = (a @ a.T).get()[0, 0]
    assert found == np.float16(4096 * np.float64(np.float16(0.1)) ** 2)  # in float16 the sum would stop at 32


def test_bytes_are_summed_as_32_bit_integers(handle, rng):
    a, b = (np.asfortranarray(rng.integers(-128, 128, (4, 4), dtype="i1")) for _ in range(2))
    c = np.asfortranarray(rng.integers(-(2**31), 2**31, (4, 4), dtype="i4"))
    x, y, z = (cp.asarray(v, order="F") for v in (a, b, c))
    alpha, beta = scalar(3, "i4"), scalar(-1, "i4")
    i8, i32, compute_i32, default = 3, 10, 72, -1  # CUDA_R_8I, CUDA_R_32I, CUBLAS_COMPUTE_32I, CUBLAS_GEMM_DEFAULT
    cublas.gemmEx(handle, 0, 0, 4, 4, 4, alpha.ctypes.data, x.data.ptr, i8, 4, y.data.ptr, i8, 4, beta.ctypes.data,
                  z.data.ptr, i32, 4, compute_i32, default)  # fmt: skip
    expected = 3 * (a.astype("i8") @ b.astype("i8")) - c.astype("i8")
    assert z.get().tolist() == expected.astype("i4").tolist()


@pytest.mark.parametrize("step", [1, 2, -1, -2])
@pytest.mark.parametrize("letter", ["s", "d"])
def test_vectors_with_steps(handle, rng, letter, step):
    dtype = LETTERS[letter]
    n = 5
    x, y = numbers(rng, 2 * n, dtype), numbers(rng, 2 * n, dtype)

    def seen(v):
        used = v[: (n - 1) * abs(step) + 1 : abs(step)]
        return used[::-1] if step < 0 else used

    p, q = cp.asarray(x), cp.asarray(y)
    alpha, out = scalar(2.5, dtype), np.zeros((), dtype)
    getattr(cublas, letter + "dot")(handle, n, p.data.ptr, step, q.data.ptr, step, out.ctypes.data)
    close(out, np.asarray(seen(x) @ seen(y)))
    getattr(cublas, letter + "axpy")(handle, n, alpha.ctypes.data, p.data.ptr, step, q.data.ptr, 1)
    y[:n] += alpha * seen(x)
    close(q, y)


def test_axpy_backwards_stays_inside_its_vector(handle):
    with cp.cuda.using_allocator(None):
        x, y = cp.arange(4, dtype="f4"), cp.zeros(4, "f4")
    cublas.saxpy(handle, 4, scalar(1, "f4").ctypes.data, x.data.ptr, -1, y.data.ptr, 1)
    assert y.get().tolist() == [3, 2, 1, 0]


@pytest.mark.parametrize("letter", LETTERS)
@pytest.mark.parametrize("how", [NONE, TRANSPOSED, ADJOINT])
def test_gemv(handle, rng, how, letter):
    dtype = LETTERS[letter]
    a = numbers(rng, (4, 3), dtype)
    x, y = numbers(rng, 3 if how == NONE else 4, dtype), numbers(rng, 4 if how == NONE else 3, dtype)
    alpha, beta = scalar(1.5, dtype), scalar(0.25, dtype)
    p, q, r = cp.asarray(a, order="F"), cp.asarray(x), cp.asarray(y)
    getattr(cublas, letter + "gemv")(handle, how, 4, 3, alpha.ctypes.data, p.data.ptr, 4, q.data.ptr, 1,
                                     beta.ctypes.data, r.data.ptr, 1)  # fmt: skip
    close(r, alpha * (op(a, how) @ x) + beta * y)


@pytest.mark.parametrize("letter", LETTERS)
def test_sums_and_extremes(handle, rng, letter):
    dtype = LETTERS[letter]
    x = numbers(rng, 9, dtype)
    p = cp.asarray(x)
    real = x.real.dtype
    size = np.abs(x) if real == x.dtype else np.abs(x.real) + np.abs(x.imag)
    norm, total, at = np.zeros((), real), np.zeros((), real), np.zeros((), "i4")
    names = {"c": ("scnrm2", "scasum"), "z": ("dznrm2", "dzasum")}
    nrm2, asum = names.get(letter, (letter + "nrm2", letter + "asum"))
    getattr(cublas, nrm2)(handle, 9, p.data.ptr, 1, norm.ctypes.data)
    getattr(cublas, asum)(handle, 9, p.data.ptr, 1, total.ctypes.data)
    close(norm, np.asarray(np.linalg.norm(x)))
    close(total, size.sum())
    getattr(cublas, f"i{letter}amax")(handle, 9, p.data.ptr, 1, at.ctypes.data)
    assert at == size.argmax() + 1
    getattr(cublas, f"i{letter}amin")(handle, 9, p.data.ptr, 1, at.ctypes.data)
    assert at == size.argmin() + 1


@pytest.mark.parametrize("letter", LETTERS)
def test_geam_dgmm_and_syrk(handle, rng, letter):
    dtype = LETTERS[letter]
    a, b, d = numbers(rng, (3, 4), dtype), numbers(rng, (4, 3), dtype), numbers(rng, 3, dtype)
    alpha, beta = scalar(2, dtype), scalar(-1, dtype)
    p, q, r = cp.asarray(a, order="F"), cp.asarray(b, order="F"), cp.asarray(d)
    out = cp.zeros((3, 4), dtype, order="F")
    getattr(cublas, letter + "geam")(handle, NONE, TRANSPOSED, 3, 4, alpha.ctypes.data, p.data.ptr, 3,
                                     beta.ctypes.data, q.data.ptr, 4, out.data.ptr, 3)  # fmt: skip
    close(out, 2 * a - b.T)
    getattr(cublas, letter + "dgmm")(handle, 0, 3, 4, p.data.ptr, 3, r.data.ptr, 1, out.data.ptr, 3)
    close(out, d[:, None] * a)
    square = cp.zeros((3, 3), dtype, order="F")
    zero = scalar(0, dtype)
    getattr(cublas, letter + "syrk")(handle, 0, NONE, 3, 4, alpha.ctypes.data, p.data.ptr, 3, zero.ctypes.data,
                                     square.data.ptr, 3)  # fmt: skip
    close(square, np.tril(2 * a @ a.T))
