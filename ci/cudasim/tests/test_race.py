"""The race check: what it finds, what it leaves alone, and what escapes it."""

import contextlib
import re

import cudasim
import cupy as cp
import numpy as np
import pytest
from processes import output
from ptx import kernel

CUDAError = cp.cuda.runtime.CUDARuntimeError


@pytest.fixture(autouse=True)
def checked():
    with cudasim.race_check():
        yield


def fault():
    """Return what stopped a kernel since the last call, or ""."""
    with contextlib.suppress(CUDAError):
        cp.cuda.Device().synchronize()
    found = cudasim.last_error()
    cudasim.clear_error()
    return found


def race(body, grid=1, threads=64):
    """Run a kernel and return the race that was found, or "".

    In the body, t and n are the index and the number of threads, s is shared and y global memory; both are int[1024], y
    is zero.
    """
    code = f"""extern "C" __global__ void k(int *y) {{
      __shared__ int s[1024];
      const int t = threadIdx.x, n = blockDim.x;
      {body}
      __syncthreads();
      if (n == 777) y[t] = s[t];  // never; but so nothing that is written to s may be left out
    }}"""
    cp.RawKernel(code, "k")((grid,), (threads,), (cp.zeros(1024, "i4"),))
    return fault()


HAZARDS = {
    "no barrier": ("read-after-write", "s[t] = t; y[t] = s[n - 1 - t];"),
    "none after the reads": ("write-after-read", "s[t] = t; __syncthreads(); int v = s[n - 1 - t]; s[t] = v;"),
    "two threads for one place": ("write-after-write", "s[t / 2] = t;"),
    "a tree without barriers": (
        "read-after-write",
        "s[t] = t; __syncthreads(); for (int h = n / 2; h > 0; h /= 2) if (t < h) s[t] += s[t + h]; *y = s[0];",
    ),
    "a tree that counts on warps in step": (
        "read-after-write",
        "volatile int *v = s; v[t] = t; __syncthreads(); if (t < 32) { v[t] += v[t + 32]; v[t] += v[t + 16]; }",
    ),
    "the barrier of a warp for a block": ("read-after-write", "s[t] = t; __syncwarp(); y[t] = s[n - 1 - t];"),
    "the barrier of other lanes": (
        "read-after-write",
        "s[t] = t; __syncwarp(t % 32 < 16 ? 0xffff : 0xffff0000); y[t] = s[t ^ 16];",
    ),
    "a shuffle for a barrier": (
        "read-after-write",
        "s[t] = t; y[t] = __shfl_xor_sync(0xffffffff, t, 1); y[t] += s[t ^ 1];",
    ),
    "a vote for a barrier": ("read-after-write", "s[t] = t; if (__any_sync(0xffffffff, *y < t)) y[t] = s[t ^ 1];"),
    "a fence for a barrier": ("read-after-write", "s[t] = t; __threadfence_block(); y[t] = s[t ^ 1];"),
    "set to zero by one, counted by all": ("write-after-write", "if (t == 0) s[0] = 0; atomicAdd(s, 1);"),
    "counted, and read too early": (
        "read-after-write",
        "if (t == 0) s[0] = 0; __syncthreads(); atomicAdd(s, 1); y[t] = s[0];",
    ),
    "read, and counted too early": (
        "write-after-read",
        "if (t == 0) s[0] = 0; __syncthreads(); y[t] = s[0]; atomicAdd(s, 1);",
    ),
    "bytes": ("read-after-write", "char *c = (char *)s; c[t] = t; y[t] = c[t ^ 1];"),
    "part of a vector": (
        "read-after-write",
        "((int4 *)s)[t] = make_int4(t, t, t, t); y[t] = ((long long *)s)[2 * (t ^ 1) + 1];",
    ),
    "the next turn of a loop": (
        "write-after-read",
        "for (int k = 0; k < 3; k++) { s[t] = t + k; __syncthreads(); y[t] += s[n - 1 - t]; }",
    ),
    "a buffer that is not doubled": (
        "write-after-read",
        "for (int k = 0; k < 3; k++) { if (t < 32) s[t] = k; __syncthreads(); if (t >= 32) y[t] += s[t - 32]; }",
    ),
}


@pytest.mark.parametrize(("kind", "body"), HAZARDS.values(), ids=HAZARDS)
def test_hazards_in_shared_memory(kind, body):
    found = race(body)
    assert found.startswith(f"kernel k: {kind} hazard at byte "), found
    assert "of shared memory: nothing puts these in an order: thread " in found


def test_the_message_names_place_threads_and_instructions():
    pattern = (
        r"kernel k: read-after-write hazard at byte 20 of shared memory: nothing puts these in an order: "
        r"thread 40 of block \(2,0,0\) at \[.*st\.shared\.u32 .*\], and "
        r"thread 3 of block \(2,0,0\) at \[.*ld\.shared\.u32 .*\]"
    )
    found = race("if (blockIdx.x < 2) return; if (t == 40) s[*y + 5] = 1; if (t == 3) y[t] = s[5];", grid=3)
    assert re.fullmatch(pattern, found), found


GLOBAL_HAZARDS = {
    "blocks that write to one place": ("write-after-write", "*y = blockIdx.x;"),
    "a block that reads what another wrote": ("read-after-write", "y[t + n * blockIdx.x] = 1; y[t + 512] = y[t];"),
    "updates that get lost": ("write-after-read", "*y += 1;"),
    "a shift in place": ("write-after-read", "y[t] = y[t + 1];"),
    "a counter and no fence": (
        "read-after-write",
        "if (t) return; y[8 + blockIdx.x] = 7; if (atomicAdd(y, 1) == 1) y[1] = y[8] + y[9];",
    ),
    "a fence too early": (
        "read-after-write",
        "if (t) return; __threadfence(); y[8 + blockIdx.x] = 7; if (atomicAdd(y, 1) == 1) y[1] = y[8] + y[9];",
    ),
    "a fence and no counter": (
        "read-after-write",
        "if (t) return; y[8 + blockIdx.x] = 7; __threadfence(); if (blockIdx.x) y[1] = y[8] + y[9];",
    ),
}


@pytest.mark.parametrize(("kind", "body"), GLOBAL_HAZARDS.values(), ids=GLOBAL_HAZARDS)
def test_hazards_in_global_memory(kind, body):
    found = race(body, grid=2)
    assert found.startswith(f"kernel k: {kind} hazard at address 0x"), found


def test_an_output_that_overlaps_the_input():
    x = cp.arange(100, dtype="i4")
    cp.ElementwiseKernel("T x", "T y", "y = x", "shift")(x[:-1], x[1:])
    assert "kernel shift: write-after-read hazard" in fault()


CORRECT = {
    "a tree": """s[t] = t;
        for (int h = n / 2; h > 0; h /= 2) { __syncthreads(); if (t < h) s[t] += s[t + h]; }
        if (t == 0) atomicAdd(y, s[0]);""",
    "a tree that ends in a warp": """s[t] = t; __syncthreads();
        if (t < 32) for (int h = 32; h > 0; h /= 2) { int v = s[t + h]; __syncwarp(); s[t] += v; __syncwarp(); }
        if (t == 0) atomicAdd(y, s[0]);""",
    "trees of half warps": """s[t] = t; const unsigned half = t & 16 ? 0xffff0000 : 0xffff;
        for (int h = 8; h > 0; h /= 2) { __syncwarp(half); int v = s[t ^ h]; __syncwarp(half); s[t] += v; }""",
    "shuffles, and one value of each warp": """int v = t;
        for (int h = 16; h > 0; h /= 2) v += __shfl_down_sync(0xffffffff, v, h);
        if (t % 32 == 0) s[t / 32] = v;
        __syncthreads();
        if (t < n / 32) atomicAdd(y, s[t]);""",
    "read before a shuffle, written after it": """s[t] = t; __syncwarp();
        int v = s[t]; v += __shfl_up_sync(0xffffffff, v, 1); s[(t & ~31) | ((t + 1) & 31)] = v;""",
    "a doubled buffer": """for (int k = 0; k < 5; k++) {
          int *b = s + k % 2 * n; b[t] = t + k; __syncthreads(); atomicAdd(y + t, b[n - 1 - t]);
        }""",
    "each thread its own": "s[t] = t; s[t] += 1; s[t + n] = s[t]; s[t] = 0;",
    "each thread its own byte": "char *c = (char *)s; c[t] = t; s[t + n] = c[t];",
    "atomics": """if (t < 8) s[t] = 0; __syncthreads();
        atomicAdd(&s[t % 8], 1); atomicMax(&s[t % 8], 3); __syncthreads();
        if (t < 8) atomicAdd(&y[t], s[t]);""",
    "an addition by compare and swap": """if (t == 0) s[0] = 0; __syncthreads();
        for (int *a : {s, y}) {
          int old = *a, seen;
          do { seen = old; old = atomicCAS(a, seen, seen + 1); } while (old != seen);
        }
        __syncthreads(); s[t + 1] = s[0];""",
    "a flag that many set": """if (t == 0) s[0] = 0; __syncthreads(); if (t > 9) s[0] = *y = 1; __syncthreads();
        if (s[0]) atomicAdd(y + 1, 1);""",
    "a barrier that votes": "s[t] = t; int all = __syncthreads_and(t < 99); atomicAdd(y + t, all + s[n - 1 - t]);",
    "threads that leave early": "if (t >= 48) return; s[t] = t; __syncthreads(); atomicAdd(y + t, s[47 - t]);",
    "a flag and fences": """if (t == 0) s[1] = 0; __syncthreads();
        if (t < 32) { s[2] = 7; __threadfence_block(); atomicExch(&s[1], 1); }
        if (t == 40 && atomicAdd(&s[1], 0)) { __threadfence_block(); s[3] = s[2]; }""",
    "the last block adds up": """if (t == 0) { y[8 + blockIdx.x] = 7; __threadfence(); s[0] = atomicAdd(y, 1); }
        __syncthreads();
        if (s[0] == gridDim.x - 1 && t < gridDim.x) y[16 + t] = y[8 + t];""",
    "the same, written by all": """y[64 + blockIdx.x * n + t] = t; __threadfence(); __syncthreads();
        if (t == 0) s[0] = atomicAdd(y, 1); __syncthreads();
        if (s[0] == gridDim.x - 1) for (int k = 0; k < gridDim.x; k++) s[t + 1] += y[64 + k * n + n - 1 - t];""",
    "a lock": """if (t == 0) { while (atomicCAS(y, 0, 1)) {} y[1] += 1; __threadfence(); atomicExch(y, 0); }""",
    "a volatile flag": """if (t == 0) {
          if (blockIdx.x == 1 && *(volatile int *)y) { __threadfence(); y[2] = y[1]; }
          if (blockIdx.x == 0) { y[1] = 5; __threadfence(); *(volatile int *)y = 1; }
        }""",
}  # fmt: skip


@pytest.mark.parametrize("body", CORRECT.values(), ids=CORRECT)
def test_correct_kernels(body):
    assert race(body, grid=3) == ""


def test_barriers_of_some_threads():
    """Barrier 1 is for threads 0 to 63, barrier 2 for those from 32 on; 0 to 31 have something to hand over."""
    first = 'if (t < 32) s[t] = t; if (t < 64) asm volatile("bar.sync 1, 64;" ::: "memory");'
    second = 'if (t >= 32) asm volatile("bar.sync 2, 64;" ::: "memory");'
    read = "y[t] = s[t % 32];"
    assert race(f"{first} if (32 <= t && t < 64) {read}", threads=96) == ""
    assert "thread 64 of" in race(f"{first} if (t >= 32) {read}", threads=96)
    assert race(f"{first} {second} if (t >= 64) {read}", threads=96) == ""  # 32 to 63 have seen it, and pass it on
    assert "write-after-read" in race(f"{first} if (32 <= t && t < 64) {read} {second} s[t] = 0;", threads=96)


@pytest.mark.parametrize(("store", "load"), [(".release.gpu", ".acquire.gpu"), (".relaxed.gpu",) * 2, ("", "")])
def test_release_and_acquire(store, load):
    """Block 0 writes to y[1] and sets the flag y[0]; block 1 looks at the flag and reads y[1]."""
    hand_over = kernel(f"""
.visible .entry k(.param .u64 p) {{
  .reg .u64 %p; .reg .u32 %block, %flag, %value; .reg .pred %second;
  ld.param.u64 %p, [p];
  mov.u32 %block, %ctaid.x;
  setp.eq.u32 %second, %block, 1;
  @%second bra reader;
  st.global.u32 [%p+4], 5;
  st{store}.global.u32 [%p], 1;
  ret;
reader:
  ld{load}.global.u32 %flag, [%p];
  ld.global.u32 %value, [%p+4];
  st.global.u32 [%p+8], %value;
  ret;
}}""")
    hand_over((2,), (1,), (cp.zeros(3, "i4"),))
    found = fault()
    if store == ".release.gpu":
        assert found == ""
    else:  # relaxed ones agree on the flag alone, weak ones on nothing
        assert "read-after-write" in found
        assert ("st.global.u32 [%p+4], 5" in found) == (store != "")


def test_blocks_of_many_warps_and_dimensions():
    code = r"""extern "C" __global__ void transpose(const int *x, int *y) {
      __shared__ int s[32][33];
      s[threadIdx.y][threadIdx.x] = x[threadIdx.y * 32 + threadIdx.x];
      __syncthreads();
      y[threadIdx.y * 32 + threadIdx.x] = s[threadIdx.x][threadIdx.y];
    }"""
    x, y = cp.arange(1024, dtype="i4").reshape(32, 32), cp.zeros((32, 32), "i4")
    cp.RawKernel(code, "transpose")((1,), (32, 32), (x, y))
    assert (y == x.T).all()
    cp.RawKernel(code.replace("__syncthreads()", "__syncwarp()"), "transpose")((1,), (32, 32), (x, y))
    assert "read-after-write" in fault()


def test_dynamic_shared_memory():
    code = r"""extern "C" __global__ void k(int *y) {
      extern __shared__ int s[];
      s[threadIdx.x] = 1;
      y[threadIdx.x] = s[threadIdx.x ^ 1];
    }"""
    cp.RawKernel(code, "k")((1,), (64,), (cp.zeros(64, "i4"),), shared_mem=256)
    assert "of shared memory" in fault()


def test_a_race_stops_the_kernel_and_is_sticky():
    y = cp.zeros(1, "i4")
    cp.RawKernel('extern "C" __global__ void k(int *y) { *y = threadIdx.x; }', "k")((1,), (2,), (y,))
    for _ in range(2):
        with pytest.raises(CUDAError, match="cudaErrorLaunchFailure"):
            cp.cuda.Device().synchronize()
    cudasim.clear_error()
    assert y.get()[0] == 0


def test_cupy_itself():
    rng = np.random.RandomState(0)
    for dtype in ("f4", "i8"):
        x = (100 * rng.randn(40, 130)).astype(dtype)
        for name in ("sum", "argmax", "cumsum", "sort", "argsort"):
            for axis in (None, 0, 1):
                found, expected = getattr(cp, name)(cp.asarray(x), axis=axis), getattr(np, name)(x, axis=axis)
                if name != "argsort" or dtype == "f4":  # of equal numbers either may come first
                    np.testing.assert_allclose(found.get(), expected, rtol=1e-4, atol=1e-2)
        np.testing.assert_array_equal(cp.unique(cp.asarray(x)).get(), np.unique(x))
        np.testing.assert_array_equal(cp.stack(cp.nonzero(cp.asarray(x) > 9)).get(), np.stack(np.nonzero(x > 9)))


def test_where_it_is_switched_on():
    show = """
def found():
    cp.RawKernel('extern "C" __global__ void k(int *y) { *y = threadIdx.x; }', "k")((1,), (2,), (cp.zeros(1, "i4"),))
    told = cudasim.last_error()
    cudasim.clear_error()
    return told != ""
print(found())
with cudasim.race_check():
    print(found())
    with cudasim.race_check(False):
        print(found())
print(found())
"""
    assert output(show).split() == ["False", "True", "False", "False"]
    assert output(show, CUDASIM_RACECHECK="1", CUDASIM_QUIET="1").split() == ["True", "True", "False", "True"]


# --- what escapes it; docs/cudasim.md says so


def test_only_what_runs_is_checked():
    body = "s[t] = t; if (n > 64) __syncthreads(); y[t] = s[(t + 1) % n];"
    assert race(body, threads=1) == ""  # one thread races with nobody
    assert race(body, threads=96) == ""
    assert "read-after-write" in race(body, threads=64)


def test_same_values_escape():
    assert race("s[0] = n;", threads=64) == ""
    assert "write-after-write" in race("s[0] = t;", threads=64)


def test_a_fence_for_another_flag_escapes():
    # what is handed over by one counter is not told from what is handed over by another
    body = "if (t) return; y[8] += 1; __threadfence(); atomicAdd(y + 1 + blockIdx.x, 1);"
    assert race("if (t == 0) y[8] += 1;", grid=2) != ""
    assert race(f"if (t == 0) atomicAdd(y + 1 + blockIdx.x, 1); {body}", grid=2) == ""


def test_a_third_reader_escapes():
    """Of threads 0, 32 and 64 reading, the first two are remembered: a writer who waits for those two gets through."""
    body = """if (t % 32 == 0 && t < 96) y[t] = ((volatile int *)s)[n];
      if (t / 32 != {}) asm volatile("bar.sync 1, 96;" ::: "memory");
      if (t == 97) s[n] = 1;"""
    assert race(body.format(2), threads=128) == ""
    assert "write-after-read" in race(body.format(1), threads=128)


# --- what is called a race, though hardware may get away with it


def test_a_value_that_all_write_and_read():
    assert "read-after-write" in race("s[0] = n; y[t] = ((volatile int *)s)[0];")


def test_lanes_that_count_on_running_in_step():
    x = cp.asarray(np.random.RandomState(0).permutation(20000).astype("f4"))
    with pytest.raises((cp.cuda.driver.CUDADriverError, CUDAError), match=r"LAUNCH_FAILED|LaunchFailure"):
        cp.partition(x, 100).get()  # CuPy sorts by warps, without __syncwarp()
    assert "kernel partition_kernel: read-after-write hazard" in fault()
