"""What the simulator cannot show. docs/cudasim.md says each of these; here it is checked that it is so.

Where one of these tests fails, the simulator has learnt something: then the page has to be changed.
"""

import cudasim
import cupy as cp
import numpy as np
from processes import output, run
from ptx import evaluate

without_race_check = cudasim.race_check(False)  # with it all of these are found: test_race.py


@without_race_check
def test_a_missing_syncthreads_is_not_seen():
    code = r"""extern "C" __global__ void reversed(const int *x, int *y) {
      __shared__ int s[128];
      s[threadIdx.x] = x[threadIdx.x];  // bug: no __syncthreads() here
      y[threadIdx.x] = s[127 - threadIdx.x];
    }"""
    x, y = cp.arange(128, dtype="i4"), cp.zeros(128, "i4")
    cp.RawKernel(code, "reversed")((1,), (128,), (x, y))
    assert y.get().tolist() == list(range(127, -1, -1))


@without_race_check
def test_a_missing_syncwarp_is_not_seen():
    code = r"""extern "C" __global__ void rotated(int *y) {
      __shared__ volatile int s[32];
      s[threadIdx.x] = threadIdx.x;  // bug: no __syncwarp() here
      y[threadIdx.x] = s[(threadIdx.x + 1) % 32];
    }"""
    y = cp.zeros(32, "i4")
    cp.RawKernel(code, "rotated")((1,), (32,), (y,))
    assert y.get().tolist() == [(k + 1) % 32 for k in range(32)]


@without_race_check
def test_a_race_between_blocks_is_not_seen():
    code = 'extern "C" __global__ void last(int *y) { *y = blockIdx.x; }'  # bug: all blocks write to one place
    y = cp.zeros(1, "i4")
    cp.RawKernel(code, "last")((100,), (1,), (y,))
    assert y.get()[0] == 99  # always


@without_race_check
def test_lost_updates_are_seen():
    # read, add, write back: all threads of a block read before the first of them writes
    code = 'extern "C" __global__ void lose(int *y) { *y += 1; }'
    y = cp.zeros(1, "i4")
    cp.RawKernel(code, "lose")((3,), (64,), (y,))
    assert y.get()[0] == 3


def test_atomics_come_in_the_order_of_threads_and_blocks():
    code = 'extern "C" __global__ void ticket(int *n, int *y) { y[blockIdx.x * 64 + threadIdx.x] = atomicAdd(n, 1); }'
    n, y = cp.zeros(1, "i4"), cp.zeros(256, "i4")
    cp.RawKernel(code, "ticket")((4,), (64,), (n, y))
    assert y.get().tolist() == list(range(256))


def test_blocks_that_wait_for_each_other_are_stopped():
    program = r"""
code = '''extern "C" __global__ void meet(volatile int *n) {
  atomicAdd((int *)n, 1);
  while (*n < 2) {}
}'''
cp.RawKernel(code, "meet")((2,), (1,), (cp.zeros(1, "i4"),))
print(cudasim.last_error())
"""
    done = run(program, CUDASIM_MAX_INS="100000", CUDASIM_QUIET="1")
    assert done.stdout.startswith("kernel meet: stopped after 1000")
    assert done.stdout.endswith("thread-instructions (CUDASIM_MAX_INS)\n")


def test_an_index_out_of_range_inside_the_pools_chunk_is_not_seen():
    code = 'extern "C" __global__ void beyond(float *x) { x[4] = 1; }'
    beyond = cp.RawKernel(code, "beyond")
    x = cp.zeros(4, "f4")  # the pool gives 512 bytes
    beyond((1,), (1,), (x,))
    assert x.get().tolist() == [0] * 4
    program = f"cudasim.strict_memory()\ncp.RawKernel({code!r}, 'beyond')((1,), (1,), (cp.zeros(4, 'f4'),))\n"
    assert "invalid write of 4 bytes" in output(program + "print(cudasim.last_error()); cudasim.clear_error()")


def test_an_index_out_of_range_of_a_shared_array_is_seen_only_outside_of_all_shared_memory():
    code = r"""extern "C" __global__ void mixed(int *y, int at, int zero) {
      __shared__ int first[4], second[4];
      first[threadIdx.x] = 5;
      second[threadIdx.x] = 7;
      __syncthreads();
      y[threadIdx.x] = first[at] + zero * second[at & 3];  // both are used, so both are there
    }"""
    mixed, y = cp.RawKernel(code, "mixed"), cp.zeros(4, "i4")
    seen = []
    for at in (-4, 4):  # the second array lies on one side of the first, and nothing on the other
        mixed((1,), (4,), (y, np.int32(at), np.int32(0)))
        seen.append("invalid read" in cudasim.last_error())
        cudasim.clear_error()
    assert sorted(seen) == [False, True]
    assert y.get().tolist() == [7] * 4


def test_local_memory_of_another_thread_is_not_told_from_ones_own():
    text = "{ .local .align 8 .b32 mine[4]; st.local.u32 [mine], %a; bar.sync 0; ld.local.u32 %d, [mine+16]; }"
    found = evaluate(text, np.arange(4, dtype="u4"), result="u4")
    assert found[:3].tolist() == [1, 2, 3]


def test_registers_and_local_memory_start_as_zero_but_shared_memory_does_not():
    assert evaluate("{ .reg .b32 %fresh; mov.u32 %d, %fresh; }", np.zeros(3, "u4"), result="u4").tolist() == [0] * 3
    text = "{ .local .align 8 .b32 mine[4]; ld.local.u32 %d, [mine]; }"
    assert evaluate(text, np.zeros(3, "u4"), result="u4").tolist() == [0] * 3
    found = evaluate("ld.shared.u32 %d, [s];", np.zeros(3, "u4"), result="u4", more=".shared .align 4 .b32 s[1];")
    assert found.tolist() == [0xA5A5A5A5] * 3


def test_a_shuffle_from_a_lane_that_takes_no_part_gives_the_own_value():
    text = "setp.lt.u32 %p, %a, 8; mov.u32 %d, 99; @%p shfl.sync.idx.b32 %d, %a, 20, 31, 255;"
    found = evaluate(text, np.arange(32, dtype="u4"), result="u4")
    assert found.tolist() == list(range(8)) + [99] * 24


def test_approximate_instructions_are_exact():
    x = np.linspace(0.1, 3, 200, dtype="f4")
    for op, function in (("ex2", np.exp2), ("rcp", np.reciprocal), ("sqrt", np.sqrt)):
        found = evaluate(f"{op}.approx.f32 %d, %a;", x, result="f4")
        np.testing.assert_array_equal(found, function(x.astype("f8")).astype("f4"))


def test_tf32_is_not_modelled():
    program = "a = cp.full((2, 2), 1 + 2.0**-20, 'f4')\nprint((a @ cp.eye(2, dtype='f4') == a).all())"
    assert output(program, CUPY_TF32="1") == "True\n"  # with 10 bits of mantissa 2^-20 would be lost


def test_the_memory_of_another_device_can_be_used_without_leave():
    program = """
with cp.cuda.Device(1):
    x = cp.ones(3, "f4")
    pointer = x.data.ptr
code = 'extern "C" __global__ void twice(float *x) { x[threadIdx.x] *= 2; }'
cp.RawKernel(code, "twice")((1,), (3,), (np.uint64(pointer),))  # on device 0, with no peer access
print(x.get())
"""
    assert output(program, CUDASIM_DEVICES="2") == "[2. 2. 2.]\n"


def test_every_kernel_seems_to_need_32_registers():
    wide = "\n".join(f"double r{k} = x[{k}] * {k}.5;" for k in range(120))
    total = " + ".join(f"r{k} * r{(k + 7) % 120}" for k in range(120))
    code = f'extern "C" __global__ void wide(double *x) {{ {wide} __syncthreads(); x[0] = {total}; }}'
    assert cp.RawKernel(code, "wide").num_regs == 32
