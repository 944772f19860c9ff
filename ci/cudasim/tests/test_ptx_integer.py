"""PTX instructions on integers and bits against Python's integers."""

import numpy as np
import pytest
from ptx import evaluate, pairs

EDGES = {
    "i2": [0, 1, -1, 2, 7, -8, 255, 2**15 - 1, -(2**15)],
    "u2": [0, 1, 2, 7, 255, 2**15, 2**16 - 1],
    "i4": [0, 1, -1, 3, -7, 31, 32, 33, 65535, -65536, 2**31 - 1, -(2**31)],
    "u4": [0, 1, 3, 31, 32, 33, 255, 65535, 2**31, 2**31 + 5, 2**32 - 1],
    "i8": [0, 1, -1, 5, 63, 64, -(2**40), 2**40 + 3, 2**63 - 1, -(2**63)],
    "u8": [0, 1, 5, 63, 64, 2**40 + 3, 2**63, 2**64 - 1],
}
PTX = {"i2": "s16", "u2": "u16", "i4": "s32", "u4": "u32", "i8": "s64", "u8": "u64"}
BITS = {name: 8 * int(name[1]) for name in EDGES}


def wrap(value, dtype):
    """Return an integer modulo 2^bits, in the range of dtype."""
    bits = 8 * np.dtype(dtype).itemsize
    value &= (1 << bits) - 1
    return value - (1 << bits) if np.dtype(dtype).kind == "i" and value >> (bits - 1) else value


def unsigned(value, bits):
    return value & ((1 << bits) - 1)


def truncated(x, y):
    quotient = abs(x) // abs(y)
    return quotient if (x < 0) == (y < 0) else -quotient


def check(instructions, reference, *inputs, result):
    found = evaluate(instructions, *inputs, result=result)
    rows = zip(*[x.tolist() for x in inputs], strict=True)
    expected = [wrap(int(reference(*row)), result) for row in rows]
    wrong = [
        (row, a, b) for row, a, b in zip(zip(*inputs, strict=True), found.tolist(), expected, strict=True) if a != b
    ]
    assert not wrong, f"{instructions}: operands, found, expected: {wrong[:5]}"


TWO = {
    "add.{t} %d, %a, %b;": lambda x, y: x + y,
    "sub.{t} %d, %a, %b;": lambda x, y: x - y,
    "mul.lo.{t} %d, %a, %b;": lambda x, y: x * y,
    "min.{t} %d, %a, %b;": min,
    "max.{t} %d, %a, %b;": max,
    "and.b{n} %d, %a, %b;": lambda x, y: x & y,
    "or.b{n} %d, %a, %b;": lambda x, y: x | y,
    "xor.b{n} %d, %a, %b;": lambda x, y: x ^ y,
    "setp.lt.{t} %p, %a, %b; selp.b{n} %d, 1, 0, %p;": lambda x, y: x < y,
    "setp.ge.{t} %p, %a, %b; selp.b{n} %d, 1, 0, %p;": lambda x, y: x >= y,
    "setp.ne.{t} %p|%q, %a, %b; selp.b{n} %d, 5, 6, %q;": lambda x, y: 5 if x == y else 6,
    "@!%p mov.b{n} %d, %a; setp.eq.{t} %p, %a, %b; @%p mov.b{n} %d, 9;": lambda x, y: 9 if x == y else x,
}


@pytest.mark.parametrize("dtype", EDGES)
@pytest.mark.parametrize("text", TWO)
def test_two_operands(text, dtype):
    instructions = text.format(t=PTX[dtype], n=BITS[dtype])
    check(instructions, TWO[text], *pairs(EDGES[dtype], dtype), result=dtype)


@pytest.mark.parametrize("dtype", EDGES)
def test_mul_hi(dtype):
    x, y = pairs(EDGES[dtype], dtype)
    check(f"mul.hi.{PTX[dtype]} %d, %a, %b;", lambda a, b: a * b >> BITS[dtype], x, y, result=dtype)


@pytest.mark.parametrize("dtype", ["i2", "u2", "i4", "u4"])
def test_mul_and_mad_wide(dtype):
    x, y = pairs(EDGES[dtype], dtype)
    wide = f"{dtype[0]}{2 * int(dtype[1])}"
    check(f"mul.wide.{PTX[dtype]} %d, %a, %b;", lambda a, b: a * b, x, y, result=wide)
    z = np.resize(np.array(EDGES[wide], wide), len(x))
    check(f"mad.wide.{PTX[dtype]} %d, %a, %b, %c;", lambda a, b, c: a * b + c, x, y, z, result=wide)


@pytest.mark.parametrize("dtype", ["i4", "u4", "i8", "u8"])
def test_mad_lo_and_hi(dtype):
    x, y = pairs(EDGES[dtype], dtype)
    z = np.resize(np.array(EDGES[dtype], dtype), len(x))
    check(f"mad.lo.{PTX[dtype]} %d, %a, %b, %c;", lambda a, b, c: a * b + c, x, y, z, result=dtype)
    check(f"mad.hi.{PTX[dtype]} %d, %a, %b, %c;", lambda a, b, c: (a * b >> BITS[dtype]) + c, x, y, z, result=dtype)


@pytest.mark.parametrize("dtype", EDGES)
def test_div_and_rem(dtype):
    x, y = pairs(EDGES[dtype], dtype)
    all_ones = -1
    check(f"div.{PTX[dtype]} %d, %a, %b;", lambda a, b: truncated(a, b) if b else all_ones, x, y, result=dtype)
    check(f"rem.{PTX[dtype]} %d, %a, %b;", lambda a, b: a - b * truncated(a, b) if b else a, x, y, result=dtype)


@pytest.mark.parametrize("dtype", ["u4", "i4"])
def test_24_bit_products(dtype):
    def low24(value):
        value &= 0xFFFFFF
        return value - (1 << 24) if dtype == "i4" and value >> 23 else value

    x, y = pairs(EDGES[dtype], dtype)
    t = PTX[dtype]
    check(f"mul24.lo.{t} %d, %a, %b;", lambda a, b: low24(a) * low24(b), x, y, result=dtype)
    check(f"mul24.hi.{t} %d, %a, %b;", lambda a, b: low24(a) * low24(b) >> 16, x, y, result=dtype)
    check(f"mad24.lo.{t} %d, %a, %b, 7;", lambda a, b: low24(a) * low24(b) + 7, x, y, result=dtype)


@pytest.mark.parametrize("dtype", ["i2", "i4", "i8"])
def test_abs_and_neg(dtype):
    x = np.array(EDGES[dtype], dtype)
    check(f"abs.{PTX[dtype]} %d, %a;", abs, x, result=dtype)
    check(f"neg.{PTX[dtype]} %d, %a;", lambda a: -a, x, result=dtype)


@pytest.mark.parametrize("dtype", ["u2", "u4", "u8"])
def test_not_cnot_and_shl(dtype):
    x = np.array(EDGES[dtype], dtype)
    n = BITS[dtype]
    check(f"not.b{n} %d, %a;", lambda a: ~a, x, result=dtype)
    check(f"cnot.b{n} %d, %a;", lambda a: a == 0, x, result=dtype)
    amounts = np.array([0, 1, n - 1, n, n + 1, 200, 2**32 - 1], "u4")
    a, b = (g.ravel() for g in np.meshgrid(x, amounts, indexing="ij"))
    check(f"shl.b{n} %d, %a, %b;", lambda p, q: p << q if q < n else 0, a, b, result=dtype)


@pytest.mark.parametrize("dtype", EDGES)
def test_shr(dtype):
    n = BITS[dtype]
    amounts = np.array([0, 1, n - 1, n, n + 1, 200, 2**32 - 1], "u4")
    a, b = (g.ravel() for g in np.meshgrid(np.array(EDGES[dtype], dtype), amounts, indexing="ij"))
    check(f"shr.{PTX[dtype]} %d, %a, %b;", lambda p, q: p >> min(q, n), a, b, result=dtype)


@pytest.mark.parametrize("mode", ["clamp", "wrap"])
def test_funnel_shift(mode):
    low, by = pairs(EDGES["u4"], "u4")
    high = np.resize(np.array(EDGES["u4"][::-1], "u4"), len(low))

    def amount(n):
        return n & 31 if mode == "wrap" else min(n, 32)

    def whole(a, b):
        return b << 32 | a

    check(f"shf.r.{mode}.b32 %d, %a, %b, %c;", lambda a, b, n: whole(a, b) >> amount(n), low, high, by, result="u4")
    check(
        f"shf.l.{mode}.b32 %d, %a, %b, %c;", lambda a, b, n: whole(a, b) << amount(n) >> 32, low, high, by, result="u4"
    )


def fields(dtype):
    n = BITS[dtype]
    places = np.array([0, 1, 5, n - 1, n, 255], "u4")
    grids = np.meshgrid(np.array(EDGES[dtype], dtype), places, places, indexing="ij")
    return [np.ascontiguousarray(g.ravel()) for g in grids]


@pytest.mark.parametrize("dtype", ["i4", "u4", "i8", "u8"])
def test_bit_field_extract(dtype):
    n = BITS[dtype]

    def reference(value, start, length):
        if length == 0:
            return 0
        sign = -1 if dtype[0] == "i" and unsigned(value, n) >> min(start + length - 1, n - 1) & 1 else 0
        extended = unsigned(value, n) | sign << n  # the sign beyond the top bit, for ever
        field = unsigned(extended >> start, length)
        return field | sign << min(length, max(n - start, 0)) if sign else field

    check(f"bfe.{PTX[dtype]} %d, %a, %b, %c;", reference, *fields(dtype), result=dtype)


@pytest.mark.parametrize("dtype", ["u4", "u8"])
def test_bit_field_insert(dtype):
    n = BITS[dtype]
    value, start, length = fields(dtype)

    def reference(f, v, at, size):
        mask = unsigned(((1 << size) - 1) << at, n)
        return v & ~mask | f << at & mask

    field = np.full_like(value, 0b1011001)
    check(f"bfi.b{n} %d, %a, %b, %c, %e;", reference, field, value, start, length, result=dtype)


@pytest.mark.parametrize("dtype", ["u4", "u8"])
def test_counting_bits(dtype):
    n, x = BITS[dtype], np.array(EDGES[dtype], dtype)
    check(f"popc.b{n} %d, %a;", lambda a: bin(a).count("1"), x, result="u4")
    check(f"clz.b{n} %d, %a;", lambda a: n - a.bit_length(), x, result="u4")
    check(f"brev.b{n} %d, %a;", lambda a: int(format(a, f"0{n}b")[::-1], 2), x, result=dtype)
    check(f"bfind.u{n} %d, %a;", lambda a: a.bit_length() - 1, x, result="i4")
    check(f"bfind.shiftamt.u{n} %d, %a;", lambda a: n - a.bit_length() if a else -1, x, result="i4")
    signed = x.view(f"i{dtype[1]}")
    check(f"bfind.s{n} %d, %a;", lambda a: (~a if a < 0 else a).bit_length() - 1, signed, result="i4")


def permuted(mode, low, high, selector):
    data = [(high << 32 | low) >> 8 * k & 255 for k in range(8)]
    k = selector & 3
    index = {
        "": lambda j: selector >> 4 * j & 15,
        ".f4e": lambda j: (k + j) % 8,
        ".b4e": lambda j: (k - j) % 8,
        ".rc8": lambda j: k,
        ".ecl": lambda j: max(k, j),
        ".ecr": lambda j: min(k, j),
        ".rc16": lambda j: (k & 1) * 2 + (j & 1),
    }[mode]
    result = 0
    for j in range(4):
        byte = data[index(j) & 7]
        if index(j) & 8:
            byte = 255 if byte & 128 else 0
        result |= byte << 8 * j
    return result


@pytest.mark.parametrize("mode", ["", ".f4e", ".b4e", ".rc8", ".ecl", ".ecr", ".rc16"])
def test_permute_bytes(mode):
    selector = np.array([0x3210, 0x7654, 0x0123, 0xFEDC, 0x89AB, 0, 1, 2, 3], "u4")
    low, high = np.full(9, 0x83_22_F1_04, "u4"), np.full(9, 0x17_96_05_E8, "u4")
    check(f"prmt.b32{mode} %d, %a, %b, %c;", lambda x, y, s: permuted(mode, x, y, s), low, high, selector, result="u4")


@pytest.mark.parametrize("table", [0x00, 0x01, 0x80, 0x96, 0xE8, 0xCA, 0xFF])
def test_any_function_of_three_bits(table):
    def reference(x, y, z):
        return sum((table >> ((x >> k & 1) << 2 | (y >> k & 1) << 1 | z >> k & 1) & 1) << k for k in range(32))

    x, y = pairs(EDGES["u4"], "u4")
    z = np.resize(np.array([0x0F0F1234, 0xFFFF0000], "u4"), len(x))
    check(f"lop3.b32 %d, %a, %b, %c, {table};", reference, x, y, z, result="u4")


@pytest.mark.parametrize("dtype", ["i4", "u4"])
def test_sum_of_absolute_differences(dtype):
    x, y = pairs(EDGES[dtype], dtype)
    z = np.resize(np.array([0, 5, 2**31 - 1], dtype), len(x))
    check(f"sad.{PTX[dtype]} %d, %a, %b, %c;", lambda a, b, c: abs(a - b) + c, x, y, z, result=dtype)


@pytest.mark.parametrize("types", ["u32.u32", "s32.s32", "s32.u32", "u32.s32"])
def test_dot_product_of_bytes(types):
    def parts(value, kind):
        found = [unsigned(value, 32) >> 8 * k & 255 for k in range(4)]
        return [p - 256 if kind[0] == "s" and p > 127 else p for p in found]

    first, second = types.split(".")
    x, y = pairs([0, 0x01020304, 0xFF80FF7F, 0x80808080, 0xFFFFFFFF], "u4")
    z = np.full(len(x), 2**31 - 1, "i4")
    check(
        f"dp4a.{types} %d, %a, %b, %c;",
        lambda a, b, c: c + sum(p * q for p, q in zip(parts(a, first), parts(b, second), strict=True)),
        x,
        y,
        z,
        result="i4",
    )


def test_carry_chains_make_128_bits():
    x, y = pairs([0, 1, 2**63, 2**64 - 1, 2**40], "u8")
    # high word of (x, y) + (y, x), and of (0, x) - (0, y): the borrow
    add = "add.cc.u64 %l0, %b, %a; addc.u64 %d, %a, %b;"
    check(add, lambda a, b: ((a << 64 | b) + (b << 64 | a)) >> 64, x, y, result="u8")
    check("sub.cc.u64 %l0, %a, %b; subc.u64 %d, 0, 0;", lambda a, b: -1 if a < b else 0, x, y, result="u8")
    multiply = "mad.lo.cc.u64 %l0, %a, %b, %a; madc.hi.u64 %d, %a, %b, %b;"
    check(multiply, lambda a, b: (a * b + a + (b << 64)) >> 64, x, y, result="u8")


@pytest.mark.parametrize("how", ["and", "or", "xor"])
def test_setp_with_a_second_predicate(how):
    x, y = pairs([-1, 0, 1], "i4")
    combine = {"and": lambda p, q: p and q, "or": lambda p, q: p or q, "xor": lambda p, q: p != q}[how]
    text = f"setp.gt.s32 %q, %a, 0; setp.lt.{how}.s32 %p, %a, %b, !%q; selp.s32 %d, 1, 0, %p;"
    check(text, lambda a, b: combine(a < b, not a > 0), x, y, result="i4")


def test_set_and_slct():
    x, y = pairs([-3, 0, 3], "i4")
    check("set.lt.u32.s32 %d, %a, %b;", lambda a, b: -1 if a < b else 0, x, y, result="i4")
    check("slct.s32.s32 %d, 10, 20, %a;", lambda a: 10 if a >= 0 else 20, x, result="i4")
    assert evaluate("set.lt.f32.s32 %d, %a, %b;", x, y, result="f4").tolist() == (x < y).tolist()
