"""PTX instructions on floating point: each result is the exact one, rounded once, as IEEE 754 asks."""

from fractions import Fraction

import cupy as cp
import numpy as np
import pytest
from ptx import evaluate, pairs

TINY, NORMAL = 2.0**-149, 2.0**-126  # the smallest subnormal and normal float32
FLOATS = [0.0, -0.0, 1.0, -1.5, 1 / 3, -(2.0**24), 1e20, -3e38, TINY, -5 * TINY, NORMAL, 1 + 2.0**-23, 7e-9]
FORMATS = {"f4": ("f32", 23, -126, 127), "f8": ("f64", 52, -1022, 1023), "f2": ("f16", 10, -14, 15)}
BF16 = ("bf16", 7, -126, 127)


def rounded(exact, form, mode="rn"):
    """Return the number of a format that is nearest to a fraction, or next to it, as a float."""
    _, bits, low, high = form
    if exact == 0:
        return 0.0
    size = abs(exact)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if Fraction(2) ** exponent > size:
        exponent -= 1
    unit = Fraction(2) ** (max(exponent, low) - bits)
    whole, rest = divmod(size, unit)
    half = rest / unit - Fraction(1, 2)
    up = {
        "rn": half > 0 or (half == 0 and whole % 2 == 1),
        "rz": False,
        "rp": rest > 0 and exact > 0,
        "rm": rest > 0 and exact < 0,
    }[mode]
    value = (whole + up) * unit
    largest = (2 - Fraction(2) ** -bits) * Fraction(2) ** high
    if value > largest:
        value = float("inf") if mode in ("rn", "rp" if exact > 0 else "rm") else largest
    return float(value) if exact > 0 else -float(value)


def same(found, expected, what):
    """Assert that numbers are equal; NaN is equal to NaN, and -0 to 0."""
    np.testing.assert_array_equal(found, np.array(expected).astype(found.dtype), err_msg=what)


def fractions(x):
    return [Fraction(float(v)) for v in x]


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("mode", ["rn", "rz", "rp", "rm"])
def test_add_mul_fma_div_sqrt_are_rounded_once(mode, dtype):
    form = FORMATS[dtype]
    t = form[0]
    x, y = pairs(FLOATS, dtype)
    z = np.resize(np.array([1.0, -1e-30, 3.0, -(2.0**24) - 2], dtype), len(x))
    a, b, c = fractions(x), fractions(y), fractions(z)

    def each(function):
        return [rounded(value, form, mode) for value in function]

    same(
        evaluate(f"add.{mode}.{t} %d, %a, %b;", x, y, result=dtype),
        each(p + q for p, q in zip(a, b, strict=True)),
        "add",
    )
    same(
        evaluate(f"sub.{mode}.{t} %d, %a, %b;", x, y, result=dtype),
        each(p - q for p, q in zip(a, b, strict=True)),
        "sub",
    )
    same(
        evaluate(f"mul.{mode}.{t} %d, %a, %b;", x, y, result=dtype),
        each(p * q for p, q in zip(a, b, strict=True)),
        "mul",
    )
    fma = evaluate(f"fma.{mode}.{t} %d, %a, %b, %c;", x, y, z, result=dtype)
    same(fma, each(p * q + r for p, q, r in zip(a, b, c, strict=True)), "fma")
    some = [k for k in range(len(b)) if b[k]]
    divided = evaluate(f"div.{mode}.{t} %d, %a, %b;", x[some], y[some], result=dtype)
    same(divided, each(a[k] / b[k] for k in some), "div")


def test_sqrt_and_rcp():
    x = np.array([0.25, 2, 1e10, 7e-20, 3], "f4")
    same(evaluate("sqrt.rn.f32 %d, %a;", x, result="f4"), np.sqrt(x.astype("f8")), "sqrt")
    same(evaluate("rcp.rn.f32 %d, %a;", x, result="f4"), 1 / x.astype("f8"), "rcp")
    np.testing.assert_allclose(evaluate("rsqrt.approx.f32 %d, %a;", x, result="f4"), x.astype("f8") ** -0.5, rtol=1e-6)
    np.testing.assert_allclose(evaluate("ex2.approx.f32 %d, %a;", x[[0, 1, 4]], result="f4"), 2 ** x[[0, 1, 4]], 1e-6)
    np.testing.assert_allclose(evaluate("lg2.approx.f32 %d, %a;", x, result="f4"), np.log2(x), rtol=1e-6)
    np.testing.assert_allclose(evaluate("sin.approx.f32 %d, %a;", x[:2], result="f4"), np.sin(x[:2]), rtol=1e-6)
    np.testing.assert_allclose(evaluate("cos.approx.f32 %d, %a;", x[:2], result="f4"), np.cos(x[:2]), rtol=1e-6)
    np.testing.assert_allclose(evaluate("tanh.approx.f32 %d, %a;", x[:2], result="f4"), np.tanh(x[:2]), rtol=1e-6)


HALVES = [0.0, -0.0, 1.0, -1.5, 0.333, 2048, 65504, -65504, 2.0**-24, -3 * 2.0**-24, 2.0**-14, 1 + 2.0**-10, 0.1]


@pytest.mark.parametrize("op", ["add", "sub", "mul", "fma"])
def test_float16_is_rounded_once(op):
    x, y = pairs(HALVES, "f2")
    a, b = fractions(x), fractions(y)
    z = np.resize(np.array([-1.0, 2.0**-24, 0.5], "f2"), len(x))
    exact = {
        "add": [p + q for p, q in zip(a, b, strict=True)],
        "sub": [p - q for p, q in zip(a, b, strict=True)],
        "mul": [p * q for p, q in zip(a, b, strict=True)],
        "fma": [p * q + r for p, q, r in zip(a, b, fractions(z), strict=True)],
    }[op]
    operands = "%a, %b, %c" if op == "fma" else "%a, %b"
    found = evaluate(f"{op}.rn.f16 %d, {operands};", x, y, z, result="f2")
    with np.errstate(over="ignore"):
        same(found, [rounded(value, FORMATS["f2"]) for value in exact], op)


def to_bf16(x):
    """Return the bits of numbers that bfloat16 holds exactly."""
    bits = np.array(x, "f4").view("u4")
    assert not (bits & 0xFFFF).any()
    return (bits >> 16).astype("u2")


def test_bfloat16_fma_is_rounded_once():
    # 1.0078125 * 129 = 130.0078125 lies, with bits to spare, between two bfloat16; the third case is a tie that only
    # a term of 2^-70 decides
    x, y = [1.0078125, 1.5, 1.0078125, 1.0078125], [129.0, 2.0, 129.0 / 128, 129.0 / 128]
    z = [1.0, -0.25, 2.0**-70, -(2.0**-70)]
    exact = [Fraction(a) * Fraction(b) + Fraction(c) for a, b, c in zip(x, y, z, strict=True)]
    found = evaluate("fma.rn.bf16 %d, %a, %b, %c;", to_bf16(x), to_bf16(y), to_bf16(z), result="u2")
    expected = to_bf16([rounded(value, BF16) for value in exact])
    assert found.tolist() == expected.tolist()


def test_bfloat16_fma_is_decided_by_the_last_term():
    # (1 + 2^-7)(1 + 2^-2) = 1.25 + 2^-7 + 2^-9 needs no more; 1.5 * (1 + 2^-7) = 1.5 + 2^-7 + 2^-8 is a tie
    tie = [1.5] * 3, [1 + 2.0**-7] * 3, [0.0, 2.0**-100, -(2.0**-100)]
    exact = [Fraction(a) * Fraction(b) + Fraction(c) for a, b, c in zip(*tie, strict=True)]
    expected = to_bf16([rounded(value, BF16) for value in exact])
    assert len(set(expected.tolist())) == 2, "the last term must matter"
    found = evaluate("fma.rn.bf16 %d, %a, %b, %c;", *map(to_bf16, tie), result="u2")
    assert found.tolist() == expected.tolist()


def test_pairs_of_halves():
    x = np.array([[1.5, -2.0], [65504, 0.25]], "f2").view("u4").ravel()
    y = np.array([[0.5, 3.0], [65504, 4.0]], "f2").view("u4").ravel()
    found = evaluate("add.rn.f16x2 %d, %a, %b;", x, y, result="u4").view("f2").reshape(2, 2)
    assert found.tolist() == [[2.0, 1.0], [float("inf"), 4.25]]
    found = evaluate("fma.rn.f16x2 %d, %a, %b, %b;", x, y, result="u4").view("f2").reshape(2, 2)
    assert found.tolist() == [[1.25, -3.0], [float("inf"), 5.0]]
    found = evaluate("neg.f16x2 %d, %a;", x, result="u4").view("f2").reshape(2, 2)
    assert found.tolist() == [[-1.5, 2.0], [-65504, -0.25]]


@pytest.mark.parametrize("op", ["min", "max"])
def test_min_and_max(op):
    x, y = pairs([1.0, -2.0, 0.0, -0.0, np.nan, np.inf], "f4")
    plain = evaluate(f"{op}.f32 %d, %a, %b;", x, y, result="f4")
    same(plain, (np.fmin if op == "min" else np.fmax)(x, y), op)
    zeros = (x == 0) & (y == 0)
    either = np.signbit(x) | np.signbit(y) if op == "min" else np.signbit(x) & np.signbit(y)
    assert np.signbit(plain[zeros]).tolist() == either[zeros].tolist()  # -0 is less than 0
    strict = evaluate(f"{op}.NaN.f32 %d, %a, %b;", x, y, result="f4")
    same(strict, (np.minimum if op == "min" else np.maximum)(x, y), f"{op}.NaN")
    same(evaluate(f"{op}.f32 %d, %a, %b, 0f3F000000;", x, y, result="f4"), f_three(op, x, y), f"{op} of three")


def f_three(op, x, y):
    function = np.fmin if op == "min" else np.fmax
    return function(function(x, y), np.float32(0.5))


SUBNORMALS = np.array([TINY, -TINY, 100 * TINY, -NORMAL / 2], "f4")


@pytest.mark.parametrize(
    ("flushed", "kept"),
    [
        ("add.ftz.f32 %d, %a, 0f80000000;", "add.f32 %d, %a, 0f80000000;"),
        ("mul.ftz.f32 %d, %a, 0f3F800000;", "mul.f32 %d, %a, 0f3F800000;"),
        ("min.ftz.f32 %d, %a, %a;", "min.f32 %d, %a, %a;"),
        ("max.ftz.NaN.f32 %d, %a, %a;", "max.NaN.f32 %d, %a, %a;"),
        ("abs.ftz.f32 %d, %a; copysign.f32 %d, %a, %d;", "abs.f32 %d, %a; copysign.f32 %d, %a, %d;"),
        ("neg.ftz.f32 %d, %a; neg.ftz.f32 %d, %d;", "neg.f32 %d, %a; neg.f32 %d, %d;"),
        ("cvt.ftz.f64.f32 %l0, %a; cvt.rn.f32.f64 %d, %l0;", "cvt.f64.f32 %l0, %a; cvt.rn.f32.f64 %d, %l0;"),
    ],
)
def test_ftz_makes_subnormals_zero_with_their_sign(flushed, kept):
    same(evaluate(kept, SUBNORMALS, result="f4"), SUBNORMALS, kept)
    found = evaluate(flushed, SUBNORMALS, result="f4")
    assert found.tolist() == [0.0] * 4
    assert np.signbit(found).tolist() == np.signbit(SUBNORMALS).tolist()


def test_cupy_compiles_with_ftz():
    assert (cp.asarray(SUBNORMALS) * 1).get().tolist() == [0.0] * 4


def test_saturation():
    x = np.array([-1.0, 0.25, 2.0, np.nan, np.inf], "f4")
    assert evaluate("add.sat.f32 %d, %a, 0f00000000;", x, result="f4").tolist() == [0.0, 0.25, 1.0, 0.0, 1.0]
    assert evaluate("cvt.sat.f32.f32 %d, %a;", x, result="f4").tolist() == [0.0, 0.25, 1.0, 0.0, 1.0]
    wide = np.array([-1, 127, 128, 300, -300], "i4")
    assert evaluate("cvt.sat.s8.s32 %d, %a;", wide, result="i4").tolist() == [-1, 127, 127, 127, -128]
    assert evaluate("cvt.sat.u8.s32 %d, %a;", wide, result="u4").tolist() == [0, 127, 128, 255, 0]


@pytest.mark.parametrize(
    ("mode", "function"), [("rni", np.rint), ("rzi", np.trunc), ("rmi", np.floor), ("rpi", np.ceil)]
)
def test_float_to_integer(mode, function):
    x = np.array([0.5, 1.5, -0.5, -1.5, 2.4999, 1e20, -1e20, np.inf, -np.inf, np.nan, 2.0**31], "f8")
    whole = function(x)
    for t, dtype, other in (("s32", "i4", "f64"), ("u32", "u4", "f64")):
        info = np.iinfo(dtype)
        expected = [
            (-(2**31) if dtype == "i4" else 2**31) if np.isnan(v) else int(min(max(v, info.min), info.max))
            for v in whole
        ]
        assert evaluate(f"cvt.{mode}.{t}.{other} %d, %a;", x, result=dtype).tolist() == expected
    same(evaluate(f"cvt.{mode}.f64.f64 %d, %a;", x, result="f8"), whole, mode)
    assert evaluate(f"cvt.{mode}.s32.f32 %d, %a;", np.array([np.nan, -0.7], "f4"), result="i4")[0] == 0


@pytest.mark.parametrize("mode", ["rn", "rz", "rp", "rm"])
def test_conversions_are_rounded_once(mode):
    whole = np.array([0, 1, -1, 2**24 + 1, -(2**24) - 3, 2**53 + 1, 2**63 - 1, -(2**62) - 7, 65519, 2049], "i8")
    exact = [Fraction(int(v)) for v in whole]
    for t, dtype in (("f32", "f4"), ("f64", "f8"), ("f16", "f2")):
        found = evaluate(f"cvt.{mode}.{t}.s64 %d, %a;", whole, result=dtype)
        with np.errstate(over="ignore"):
            same(found, [rounded(v, FORMATS[dtype], mode) for v in exact], f"s64 to {t}")
    doubles = np.array([1 / 3, -1e-8, 65520, 1 + 2.0**-11, -1e-40, 3.4e38, 2.0**-25, 6e-8], "f8")
    exact = fractions(doubles)
    for t, dtype in (("f32", "f4"), ("f16", "f2")):
        found = evaluate(f"cvt.{mode}.{t}.f64 %d, %a;", doubles, result=dtype)
        with np.errstate(over="ignore", under="ignore"):
            same(found, [rounded(v, FORMATS[dtype], mode) for v in exact], f"f64 to {t}")


def test_small_floats_to_float32_and_back():
    everything = np.arange(65536, dtype="u4").reshape(64, 1024)
    for codes in everything[::7]:
        half = codes.astype("u2")
        found = evaluate("cvt.f32.f16 %d, %a;", half, result="f4")
        np.testing.assert_array_equal(found, half.view("f2").astype("f4"))
        again = evaluate("cvt.rn.f16.f32 %d, %a;", found, result="f2")
        np.testing.assert_array_equal(again, half.view("f2"))
    x = np.array([1.0, 1.00390625, -3.14159], "f4")
    bits = evaluate("cvt.rn.bf16x2.f32 %d, %a, %b;", x, x[::-1].copy(), result="u4")
    assert [hex(v) for v in bits] == ["0x3f80c049", "0x3f803f80", "0xc0493f80"]


@pytest.mark.parametrize(
    "name", ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"]
)
def test_comparisons_with_nan(name):
    x, y = pairs([1.0, 2.0, -0.0, 0.0, np.nan], "f4")
    unordered = np.isnan(x) | np.isnan(y)
    functions = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater}
    functions["ge"] = np.greater_equal
    if name in ("num", "nan"):
        expected = unordered == (name == "nan")
    else:
        ordered = functions[name[:2]](x, y) & ~unordered
        expected = ordered | unordered if name.endswith("u") else ordered
    for t, dtype in (("f32", "f4"), ("f64", "f8"), ("f16", "f2")):
        found = evaluate(
            f"setp.{name}.{t} %p, %a, %b; selp.s32 %d, 1, 0, %p;", x.astype(dtype), y.astype(dtype), result="i4"
        )
        assert found.astype(bool).tolist() == expected.tolist(), t


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("finite", [1, 1, 1, 0, 0]),
        ("infinite", [0, 0, 0, 1, 0]),
        ("number", [1, 1, 1, 1, 0]),
        ("notanumber", [0, 0, 0, 0, 1]),
        ("normal", [1, 0, 0, 0, 0]),
        ("subnormal", [0, 1, 0, 0, 0]),
    ],
)
def test_testp(name, expected):
    x = np.array([1.0, TINY, 0.0, -np.inf, np.nan], "f4")
    assert evaluate(f"testp.{name}.f32 %p, %a; selp.s32 %d, 1, 0, %p;", x, result="i4").tolist() == expected
