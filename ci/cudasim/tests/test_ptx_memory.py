"""PTX instructions on memory: state spaces, vectors, atomics, addresses of variables."""

import cudasim
import cupy as cp
import numpy as np
import pytest
from ptx import evaluate, kernel


def test_vectors_and_subwords():
    run = kernel(
        """.visible .entry k(.param .u64 from, .param .u64 to) {
  .reg .b64 %p<2>; .reg .f32 %f<4>; .reg .b16 %h<4>; .reg .b32 %r<2>;
  ld.param.u64 %p0, [from]; ld.param.u64 %p1, [to];
  ld.global.v4.f32 {%f0, %f1, %f2, %f3}, [%p0];
  st.global.v4.f32 [%p1], {%f3, %f2, %f1, %f0};
  ld.global.v2.u8 {%h0, %h1}, [%p0+14];
  ld.global.s8 %r0, [%p0+15];
  st.global.v2.u16 [%p1+16], {%h0, %h1};
  st.global.s32 [%p1+20], %r0;
  ret;
}"""
    )
    x = np.array([1.5, 2.5, 3.5, -4.5], "f4")
    out = cp.zeros(6, "i4")
    run((1,), (1,), (cp.asarray(x), out))
    expected = x.view("u1")[14:16]
    assert out[:4].get().view("f4").tolist() == x[::-1].tolist()
    assert out[4:5].get().view("u2").tolist() == expected.tolist()
    assert out[5].get() == expected.view("i1")[1]


def test_elements_that_are_not_wanted():
    text = "mov.b64 %l0, {%a, 7}; mov.b64 {%d, _}, %l0;"
    assert evaluate(text, np.array([5, 6], "u4"), result="u4").tolist() == [5, 6]


ATOMICS = {
    "add.u32": (lambda old, x: old + x, "u4"),
    "add.f32": (lambda old, x: old + x, "f4"),
    "add.f64": (lambda old, x: old + x, "f8"),
    "add.noftz.f16": (lambda old, x: np.float16(old + x), "f2"),
    "min.s32": (min, "i4"),
    "max.u64": (max, "u8"),
    "and.b32": (lambda old, x: old & x, "u4"),
    "or.b32": (lambda old, x: old | x, "u4"),
    "xor.b64": (lambda old, x: old ^ x, "u8"),
    "exch.b32": (lambda old, x: x, "u4"),
    "inc.u32": (lambda old, x: 0 if old >= x else old + 1, "u4"),
    "dec.u32": (lambda old, x: x if old == 0 or old > x else old - 1, "u4"),
}


@pytest.mark.parametrize("op", ATOMICS)
def test_atomics_take_threads_in_order(op):
    function, dtype = ATOMICS[op]
    x = np.array([3, 9, 1, 7, 5, 9, 2], dtype)
    place = f".global .align 8 .b{8 * x.itemsize} cell = 4;" if dtype[0] != "f" else ".global .align 8 .b64 cell;"
    found = evaluate(f"atom.global.{op} %d, [cell], %a;", x, result=dtype, more=place)
    old = np.array(4 if dtype[0] != "f" else 0, dtype)[()]
    for value, before in zip(x.tolist(), found.tolist(), strict=True):
        assert before == old
        old = function(old, value)


def test_compare_and_swap():
    x = np.array([4, 4, 5], "u4")
    found = evaluate("atom.global.cas.b32 %d, [cell], %a, 5;", x, result="u4", more=".global .b32 cell = 4;")
    assert found.tolist() == [4, 5, 5]


def test_state_spaces_and_generic_addresses():
    more = ".global .b32 g = 11; .const .b32 c = 22; .shared .align 4 .b32 s[4];"
    text = """{ .local .align 4 .b32 mine[2];
  st.shared.u32 [s+8], 33; bar.sync 0; st.local.u32 [mine+4], %a;
  mov.u64 %l0, s; cvta.shared.u64 %l0, %l0; ld.u32 %w0, [%l0+8];
  mov.u64 %l1, mine; cvta.local.u64 %l1, %l1; ld.u32 %w1, [%l1+4];
  ld.global.u32 %w2, [g]; ld.const.u32 %w3, [c];
  isspacep.shared %p, %l0; selp.u32 %w4, 1000, 0, %p;
  isspacep.local %p, %l1; selp.u32 %w5, 10000, 0, %p;
  isspacep.global %p, %l1; selp.u32 %w6, 100000, 0, %p;
  cvta.to.shared.u64 %l2, %l0; mov.u64 %l3, s; sub.u64 %l2, %l2, %l3; cvt.u32.u64 %w7, %l2;
  add.u32 %d, %w0, %w1; add.u32 %d, %d, %w2; add.u32 %d, %d, %w3; add.u32 %d, %d, %w4;
  add.u32 %d, %d, %w5; add.u32 %d, %d, %w6; add.u32 %d, %d, %w7; }"""
    found = evaluate(text, np.array([100, 200], "u4"), result="u4", more=more)
    assert found.tolist() == [11 + 22 + 33 + 11000 + 100, 11 + 22 + 33 + 11000 + 200]


def test_initial_values():
    more = """.global .align 8 .b64 target = 77;
.global .align 8 .u64 pointer = target;
.global .align 8 .u64 offset = generic(target)+0;
.global .align 1 .b8 bytes[8] = {0xFF(target), 0xFF00(target), 0xFF0000(target), 0xFF000000(target),
  0xFF00000000(target), 0xFF0000000000(target), 0xFF000000000000(target), 0xFF00000000000000(target)};
.global .align 4 .f32 floats[3] = {0f3FC00000, 2.5, 1};"""
    text = """ld.global.u64 %l0, [pointer]; ld.u64 %l1, [%l0]; ld.global.u64 %l2, [offset]; ld.u64 %l2, [%l2];
  ld.global.u8 %w0, [bytes]; and.b64 %l3, %l0, 255; cvt.u32.u64 %w1, %l3; sub.u32 %w0, %w0, %w1;
  ld.global.u8 %w2, [bytes+2]; shr.u64 %l4, %l0, 16; and.b64 %l4, %l4, 255; cvt.u32.u64 %w3, %l4; sub.u32 %w2, %w2, %w3;
  or.b32 %w0, %w0, %w2; add.u64 %l1, %l1, %l2; cvt.u64.u32 %l5, %w0; add.u64 %l1, %l1, %l5;
  cvt.u64.u32 %d, %a; add.u64 %d, %d, %l1;"""
    assert evaluate(text, np.array([1000], "u4"), result="u8", more=more).tolist() == [1154]
    text = "ld.global.f32 %w0, [floats]; ld.global.f32 %w1, [floats+4]; add.f32 %d, %w0, %w1;"
    assert evaluate(text, np.array([0], "u4"), result="f4", more=more).tolist() == [4.0]


def read_at(address, bits=32):
    """Run a kernel that reads at an address; return what it says of a fault."""
    x = np.array([address], "u8")
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError) as error:
        evaluate(f"ld.u{bits} %d, [%a];", x, result="u4")
    told = cudasim.last_error()
    cudasim.clear_error()
    return str(error.value), told


@pytest.mark.parametrize("address", [0, 4, -4, -16, 2**63, 2**47])
def test_addresses_that_belong_to_nobody(address):
    error, told = read_at(np.array(address, "i8" if address < 0 else "u8").astype("u8"))
    assert "cudaErrorIllegalAddress" in error
    assert "kernel k: invalid read of 4 bytes" in told
    assert "by thread 0 of block (0,0,0): ld.u32" in told


def test_the_end_of_an_allocation_is_known_to_the_byte():
    with cp.cuda.using_allocator(None):
        x = cp.zeros(1, "u4")
    assert "cudaErrorIllegalAddress" in read_at(x.data.ptr + 4)[0]
    assert "cudaErrorIllegalAddress" in read_at(x.data.ptr, bits=64)[0]


def test_freed_memory_is_nobodys():
    with cp.cuda.using_allocator(None):
        pointer = cp.zeros(4).data.ptr  # and free at once
    assert "cudaErrorIllegalAddress" in read_at(pointer)[0]


def test_misaligned_addresses():
    x = cp.zeros(4, "u4")
    error, told = read_at(x.data.ptr + 2)
    assert "cudaErrorMisalignedAddress" in error
    assert "misaligned address" in told
