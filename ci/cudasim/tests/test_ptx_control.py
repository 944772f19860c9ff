"""PTX instructions that steer threads: branches, calls, barriers, and what lanes of a warp do together."""

import subprocess
import sys

import cudasim
import cupy as cp
import numpy as np
import pytest
from ptx import evaluate, kernel

LANES = np.arange(32, dtype="u4")


def test_branch_table():
    text = """{ bra.uni START;
TABLE: .branchtargets ZERO, ONE, TWO;
START: rem.u32 %w0, %a, 3; brx.idx %w0, TABLE;
ZERO: mov.u32 %d, 10; bra DONE;
ONE: mov.u32 %d, 20; bra DONE;
TWO: mov.u32 %d, 30;
DONE: add.u32 %d, %d, 1; }"""
    assert evaluate(text, LANES, result="u4").tolist() == [11 + 10 * (k % 3) for k in range(32)]


CALLS = """.func (.param .b32 result) square(.param .b32 x) {
  .reg .b32 %r<2>; ld.param.u32 %r0, [x]; setp_is_not_here: mul.lo.u32 %r1, %r0, %r0; st.param.u32 [result], %r1; ret;
}
.func (.param .b32 result) early(.param .b32 x) {
  .reg .b32 %r; .reg .pred %q; .param .b32 in; .param .b32 out;
  ld.param.u32 %r, [x]; st.param.u32 [result], 7; setp.gt.u32 %q, %r, 3; @%q ret;
  st.param.b32 [in], %r; call (out), square, (in); ld.param.u32 %r, [out]; st.param.u32 [result], %r; ret;
}"""


def test_calls_are_inlined_and_may_return_early():
    text = (
        "{ .param .b32 in; .param .b32 out; st.param.b32 [in], %a; call (out), early, (in); ld.param.b32 %d, [out]; }"
    )
    assert evaluate(text, LANES, result="u4", more=CALLS).tolist() == [0, 1, 4, 9] + [7] * 28


def test_calls_with_a_guard():
    text = """{ .param .b32 in; .param .b32 out; st.param.b32 [in], %a; st.param.b32 [out], 5;
  setp.lt.u32 %p, %a, 2; @!%p call (out), square, (in); ld.param.b32 %d, [out]; }"""
    assert evaluate(text, LANES, result="u4", more=CALLS).tolist() == [5, 5] + [k * k for k in range(2, 32)]


def test_recursion_is_refused():
    more = ".func f() { call f; ret; }"
    assert "recursion" in refused("call f;", more)


def refused(instructions, more=""):
    """Return why a kernel cannot run."""
    with pytest.raises(cp.cuda.driver.CUDADriverError, match="CUDA_ERROR_NOT_SUPPORTED"):
        evaluate(instructions, LANES, result="u4", more=more)
    told = cudasim.last_error()
    cudasim.clear_error()
    return told


SHUFFLES = {
    "up.b32 %d|%p, %a, 3, 0": lambda k: k - 3 if k >= 3 else k,
    "down.b32 %d|%p, %a, 3, 31": lambda k: k + 3 if k < 29 else k,
    "bfly.b32 %d|%p, %a, 5, 31": lambda k: k ^ 5,
    "idx.b32 %d|%p, %a, 9, 31": lambda k: 9,
    "down.b32 %d|%p, %a, 1, 6175": lambda k: k + 1 if k % 8 < 7 else k,  # segments of eight lanes: 0x181f
}


@pytest.mark.parametrize("text", SHUFFLES)
def test_shuffle(text):
    expected = [SHUFFLES[text](k) for k in range(32)]
    assert evaluate(f"shfl.sync.{text}, -1;", LANES, result="u4").tolist() == expected


def test_shuffle_says_who_was_out_of_range():
    text = "shfl.sync.down.b32 %w0|%p, %a, 3, 31, -1; selp.u32 %d, 1, 0, %p;"
    assert evaluate(text, LANES, result="u4").tolist() == [1] * 29 + [0] * 3


def test_votes():
    odd = "and.b32 %w0, %a, 1; setp.ne.u32 %p, %w0, 0;"
    assert evaluate(f"{odd} vote.sync.ballot.b32 %d, %p, -1;", LANES, result="u4").tolist() == [0xAAAAAAAA] * 32
    assert evaluate(f"{odd} vote.sync.any.pred %q, %p, -1; selp.u32 %d, 1, 0, %q;", LANES, result="u4").all()
    assert not evaluate(f"{odd} vote.sync.all.pred %q, %p, -1; selp.u32 %d, 1, 0, %q;", LANES, result="u4").any()
    assert not evaluate(f"{odd} vote.sync.uni.pred %q, %p, -1; selp.u32 %d, 1, 0, %q;", LANES, result="u4").any()


def test_match_reduce_elect_activemask():
    thirds = (LANES % 3).astype("u4")
    expected = [sum(1 << k for k in range(32) if k % 3 == lane % 3) for lane in range(32)]
    assert evaluate("match.any.sync.b32 %d, %a, -1;", thirds, result="u4").tolist() == expected
    assert evaluate("match.all.sync.b32 %d|%p, %a, -1;", thirds, result="u4").tolist() == [0] * 32
    assert evaluate("match.all.sync.b32 %d|%p, %b, -1;", thirds, thirds * 0, result="u4").tolist() == [2**32 - 1] * 32
    signed = LANES.astype("i4") - 16
    for op, value in (("add.s32", signed.sum()), ("min.s32", -16), ("max.s32", 15)):
        assert evaluate(f"redux.sync.{op} %d, %a, -1;", signed, result="i4").tolist() == [value] * 32
    for op, value in (("and.b32", 0), ("or.b32", 31), ("xor.b32", 0)):
        assert evaluate(f"redux.sync.{op} %d, %a, -1;", LANES, result="u4").tolist() == [value] * 32
    found = evaluate("elect.sync %d|%p, -1; @%p add.u32 %d, %d, 100;", LANES, result="u4")
    assert found.tolist() == [100] + [0] * 31
    found = evaluate("setp.lt.u32 %p, %a, 4; mov.u32 %d, 0; @%p activemask.b32 %d;", LANES, result="u4")
    assert found.tolist() == [15] * 4 + [0] * 28


def test_lanes_that_have_exited_are_not_waited_for():
    # lanes 16 to 31 come late, and leave without taking part in the shuffle
    run = kernel(
        """.visible .entry k(.param .u64 to) {
  .reg .b64 %p<2>; .reg .b32 %t, %v; .reg .pred %q;
  ld.param.u64 %p0, [to]; mov.u32 %t, %tid.x; mad.wide.u32 %p1, %t, 4, %p0;
  setp.gt.u32 %q, %t, 15; @%q bra LEAVE;
  shfl.sync.idx.b32 %v, %t, 3, 31, -1; st.global.u32 [%p1], %v; ret;
LEAVE: st.global.u32 [%p1], 99; exit;
}"""
    )
    out = cp.zeros(32, "u4")
    run((1,), (32,), (out,))
    assert out.get().tolist() == [3] * 16 + [99] * 16


def test_lanes_that_take_two_ways_meet_in_one_instruction():
    text = """{ setp.lt.u32 %p, %a, 7; @%p bra SMALL; mul.lo.u32 %w0, %a, 2; bra MEET;
SMALL: mul.lo.u32 %w0, %a, 3;
MEET: shfl.sync.bfly.b32 %d, %w0, 1, 31, -1; }"""
    values = [3 * k if k < 7 else 2 * k for k in range(32)]
    assert evaluate(text, LANES, result="u4").tolist() == [values[k ^ 1] for k in range(32)]


def test_barriers_that_reduce():
    threads = np.arange(96, dtype="u4")
    odd = "and.b32 %w0, %a, 1; setp.ne.u32 %p, %w0, 0;"
    assert evaluate(f"{odd} barrier.red.popc.u32 %d, 0, %p;", threads, result="u4").tolist() == [48] * 96
    found = evaluate(f"{odd} barrier.red.or.pred %q, 0, %p; selp.u32 %d, 1, 0, %q;", threads, result="u4")
    assert found.tolist() == [1] * 96
    found = evaluate(f"{odd} barrier.red.and.pred %q, 0, !%p; selp.u32 %d, 1, 0, %q;", threads, result="u4")
    assert found.tolist() == [0] * 96


def test_barriers_with_a_number_from_a_register():
    # each of two warps has a barrier of its own: the threads of the other are not counted
    text = """shr.u32 %w0, %a, 5; add.u32 %w0, %w0, 1; setp.lt.u32 %p, %a, 32;
  barrier.red.popc.u32 %d, %w0, 32, %p;"""
    found = evaluate(text, np.arange(64, dtype="u4"), result="u4")
    assert found.tolist() == [32] * 32 + [0] * 32


def test_threads_that_can_never_meet():
    text = "setp.lt.u32 %p, %a, 9; @%p bar.sync 1; @!%p bar.sync 2; mov.u32 %d, 0;"
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="cudaErrorLaunchFailure"):
        evaluate(text, LANES, result="u4")
    told = cudasim.last_error()
    cudasim.clear_error()
    assert "kernel k: threads can never meet:" in told
    assert "[9 threads wait at: @%p bar.sync 1]" in told
    assert "[23 threads wait at: @!%p bar.sync 2]" in told


def test_special_registers():
    run = kernel(
        """.visible .entry k(.param .u64 to) {
  .reg .b64 %p<2>; .reg .b32 %r<8>;
  ld.param.u64 %p0, [to];
  mad.lo.u32 %r0, %tid.z, 3, %tid.y; mad.lo.u32 %r0, %r0, 2, %tid.x;
  mad.lo.u32 %r1, %ctaid.z, 3, %ctaid.y; mad.lo.u32 %r1, %r1, 2, %ctaid.x;
  mad.lo.u32 %r2, %r1, 24, %r0; mul.lo.u32 %r2, %r2, 2; mad.wide.u32 %p1, %r2, 4, %p0;
  mul.lo.u32 %r3, %ntid.x, %ntid.y; mul.lo.u32 %r3, %r3, %ntid.z; mad.lo.u32 %r3, %r3, %nctaid.y, %r1;
  mad.lo.u32 %r4, %laneid, 100, %warpid;
  st.global.v2.u32 [%p1], {%r3, %r4}; ret;
}"""
    )
    out = cp.zeros((12, 24, 2), "u4")
    run((2, 3, 2), (2, 3, 4), (out,))
    found = out.get()
    assert found[..., 0].tolist() == [[24 * 3 + block] * 24 for block in range(12)]
    assert found[0, :, 1].tolist() == [100 * lane for lane in range(24)]


def test_printf():
    program = """
import cudasim
cudasim.install()
import cupy as cp
code = r'''extern "C" __global__ void p(float x) {
  printf("%d %5.2f|%s|%lld %u%%\\n", -3, x, "text", 1LL << 40, 7u);
}'''
cp.RawKernel(code, "p")((1,), (2,), (cp.float32(1.5),))
cp.cuda.Device().synchronize()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "-3  1.50|text|1099511627776 7%\n" * 2


def test_assert_and_trap():
    for text, error in (("trap;", "cudaErrorLaunchFailure"), ("call __assertfail;", "cudaErrorAssert")):
        with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match=error):
            evaluate(text + " mov.u32 %d, 0;", LANES, result="u4", more=".extern .func __assertfail;")
        cudasim.clear_error()


REFUSED = {
    "frobnicate.u32 %d, %a;": "unsupported instruction: frobnicate.u32 %d, %a",
    "add.strange.u32 %d, %a, %a;": "unsupported modifier .strange: add.strange.u32 %d, %a, %a",
    "cvt.rn.relu.f16.f32 %h0, %a;": "unsupported modifier .relu",
    "cvt.rn.satfinite.f16.f32 %h0, %a;": "unsupported modifier .satfinite",
    "cvt.rna.tf32.f32 %d, %a;": "unsupported modifier .rna",
    "fma.rn.relu.f16 %h0, %h1, %h2, %h3;": "unsupported modifier .relu",
    "add.sat.s32 %d, %a, %a;": "unsupported instruction: add.sat.s32",
    "mad.hi.sat.s32 %d, %a, %a, %a;": "unsupported instruction: mad.hi.sat.s32",
    "min.relu.s16x2 %d, %a, %a;": "unsupported modifier .relu",
    "atom.global.and.f32 %d, [%l0], %a;": "unsupported instruction: atom.global.and.f32",
    "atom.global.cas.b32 %d, [%l0], %a;": "unsupported instruction: atom.global.cas.b32",
    "ld.global.v8.b32 {%w0, %w1, %w2, %w3, %w4, %w5, %w6, %w7}, [%l0];": "unsupported modifier .v8",
    "ld.global.b32 {%w0, %w1, %w2, %w3, %w4, %w5, %w6, %w7}, [%l0];": "unsupported vector of 8",
    "ld.global.v4.b32 {%w0, %w1, %w2}, [%l0];": "unsupported instruction: ld.global.v4.b32",
    "mov.b64 {%w0, %w1, %w2}, %l0;": "unsupported instruction: mov.b64",
    "set.num.u32.s32 %d, %a, %a;": "unsupported instruction: set.num.u32.s32",
    "setp.num.s32 %p, %a, %a;": "unsupported instruction: setp.num.s32",
    "bar.arrive 0, 64;": "unsupported modifier .arrive",
    "mov.f32 %d, 1.5;": None,
    "mov.u32 %d, 1.5;": "unsupported literal 1.5",
    "mov.u32 %d, %nothing;": "unknown register %nothing",
    "mov.u32 %d, nothing;": "unknown symbol nothing",
    "bra NOWHERE;": "unknown label NOWHERE",
    "add.u32 %d, %a;": "too few operands: add.u32 %d, %a",
    "call nobody;": "unsupported: call of nobody",
    "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%w0}, {%w1}, {%w2}, {%w3};": "unsupported instruction: mma",
    "cp.async.ca.shared.global [%l0], [%l1], 16;": "unsupported instruction: cp.async",
    "tex.1d.v4.f32.s32 {%w0, %w1, %w2, %w3}, [t, {%w4}];": "unsupported instruction: tex",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_not_known_is_refused(text):
    if REFUSED[text] is None:
        assert evaluate(text, LANES, result="f4").tolist() == [1.5] * 32
    else:
        assert f"kernel k: {REFUSED[text]}" in refused(text)
