"""Element by element: arithmetic, functions, promotion of types."""

import pytest
from comparing import DOUBLES, HALVES, INTEGERS, MATRIX, OTHER, POSITIVE, Comparisons

comparisons = Comparisons()
add = comparisons.add

for n in ["add", "subtract", "multiply", "divide", "maximum", "minimum", "power", "arctan2", "fmod", "hypot"]:
    add(n, lambda xp, a, b, n=n: getattr(xp, n)(xp.abs(a) if n == "power" else a, b), MATRIX, OTHER)
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
    add(n, lambda xp, a, n=n: getattr(xp, n)(a), POSITIVE)
    add(n + "_f64", lambda xp, a, n=n: getattr(xp, n)(a), POSITIVE.astype("f8"), tol=1e-12)
add("where", lambda xp, a, b: xp.where(a > 0, a, b), MATRIX, OTHER)
add("clip", lambda xp, a: xp.clip(a, -0.5, 0.5), MATRIX)
add("broadcast", lambda xp, a, b: a[:, None, :] + b[None], MATRIX, OTHER)
add("scalar_promotion", lambda xp, a: a * 2.0 + 1, MATRIX)
add("int_div", lambda xp, i: i // 7, INTEGERS)
add("int_mod", lambda xp, i: i % 7, INTEGERS)
add("int_truediv", lambda xp, i: i / 3, INTEGERS)
add("bool_ops", lambda xp, a, b: (a > 0) & ~(b > 0) | (a == b), MATRIX, OTHER)
add("isnan", lambda xp: xp.isnan(xp.array([1, float("nan"), float("inf")])))
add("inplace", lambda xp, a: _inpl(a), MATRIX)
add("shift", lambda xp, i: (i << 2) >> 1, INTEGERS)
add("half_ops", lambda xp, h: h * h + h / 3, HALVES)
add("complex", lambda xp, d: (d + 1j * d) * xp.exp(1j * d), DOUBLES)
add("uint8_wrap", lambda xp: xp.arange(300).astype("u1") + xp.uint8(3))
add("i8_mul", lambda xp: xp.arange(2**40, 2**40 + 5) * 3)


def _inpl(a):
    a += 1
    a *= 2
    a -= a.mean(dtype="f4")
    return a


@pytest.mark.parametrize("case", comparisons, ids=str)
def test_agrees_with_numpy(case):
    case.check()
