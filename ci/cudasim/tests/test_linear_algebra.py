"""Products of arrays: cuBLAS here is a library of plain loops."""

import pytest
from comparing import DOUBLES, HALVES, IMAGES, INTEGERS, MATRIX, OTHER, Comparisons, rng

comparisons = Comparisons()
add = comparisons.add

add("matmul_f32", lambda xp, a, b: a @ b.T, MATRIX, OTHER, tol=1e-4)
add("matmul_f64", lambda xp, d: d.T @ d, DOUBLES, tol=1e-12)
add("matmul_f16", lambda xp, h: h @ h.T, HALVES)
add("matmul_batched", lambda xp, x: x @ x.transpose(0, 1, 3, 2), IMAGES, tol=1e-4)
add("dot_vec", lambda xp, a: a[0].dot(a[1]), MATRIX)
add("dot_mv", lambda xp, a: a.dot(a[0]), MATRIX, tol=1e-4)
add("tensordot", lambda xp, x: xp.tensordot(x, x, axes=([2, 3], [2, 3])), IMAGES, tol=1e-3)
add("einsum", lambda xp, x: xp.einsum("nchw,kchw->nk", x, x), IMAGES, tol=1e-3)
add("einsum_diag", lambda xp, a: xp.einsum("ij,ij->i", a, a), MATRIX, tol=1e-4)
add("outer", lambda xp, a: xp.outer(a[0], a[1]), MATRIX)
add("matmul_int", lambda xp, i: i @ i.T, INTEGERS)
add("inner", lambda xp, a: xp.inner(a, a), MATRIX, tol=1e-4)
add("matmul_noncontig", lambda xp, x: x[:, 0, ::2, ::2] @ x[:, 1, 1::2, 1::2], IMAGES, tol=1e-4)
add("matmul_broadcast", lambda xp, x, w: x.reshape(4, 3, 64) @ w, IMAGES, rng.randn(64, 5).astype("f4"), tol=1e-4)
add("matmul_large", lambda xp, a: a @ a.T, rng.randn(130, 300).astype("f4"), tol=1e-3)
add("trace", lambda xp, d: xp.trace(d), DOUBLES)
add("diag_tril", lambda xp, d: (xp.diag(d), xp.tril(d)), DOUBLES)


@pytest.mark.parametrize("case", comparisons, ids=str)
def test_agrees_with_numpy(case):
    case.check()
