"""What goes wrong on the device: bad addresses, bad launches, too little memory."""

import cudasim
import cupy as cp
import numpy as np
import pytest
from processes import output

CUDAError = cp.cuda.runtime.CUDARuntimeError
WRITE = cp.RawKernel('extern "C" __global__ void put(float *x, long long at) { x[at] = 1; }', "put")


def test_a_numpy_pointer_in_a_kernel_is_caught():
    host = np.zeros(64, "f4")
    WRITE((1,), (1,), (np.uint64(host.ctypes.data), np.int64(0)))
    with pytest.raises(CUDAError, match="cudaErrorIllegalAddress"):
        cp.cuda.Device().synchronize()
    cudasim.clear_error()
    assert (host == 0).all()


def test_an_index_out_of_range_is_caught_and_named():
    x = cp.zeros(4, "f4")
    WRITE((1,), (1,), (x, np.int64(10**9)))
    with pytest.raises(CUDAError, match="cudaErrorIllegalAddress"):
        x.get()
    told = cudasim.last_error()
    assert "kernel put: invalid write of 4 bytes" in told
    assert "thread 0 of block (0,0,0): st.global" in told
    cudasim.clear_error()


def test_a_fault_is_sticky():
    x = cp.zeros(4, "f4")
    WRITE((1,), (1,), (x, np.int64(10**9)))
    for call in (lambda: x + 1, cp.cuda.Device().synchronize, lambda: x.get()):
        with pytest.raises((CUDAError, cp.cuda.driver.CUDADriverError), match=r"ILLEGAL_ADDRESS|IllegalAddress"):
            call()
    cudasim.clear_error()
    assert x.get().tolist() == [0] * 4


@pytest.mark.parametrize(
    ("grid", "block", "shared", "error"),
    [
        ((1,), (2048,), 0, "CUDA_ERROR_INVALID_VALUE"),
        ((1,), (1, 1, 65), 0, "CUDA_ERROR_INVALID_VALUE"),
        ((1, 70000), (1,), 0, "CUDA_ERROR_INVALID_VALUE"),
        ((1,), (1,), 50000, "CUDA_ERROR_INVALID_VALUE"),
    ],
)
def test_launches_beyond_the_limits(grid, block, shared, error):
    with pytest.raises(cp.cuda.driver.CUDADriverError, match=error):
        WRITE(grid, block, (cp.zeros(1, "f4"), np.int64(0)), shared_mem=shared)


def test_too_many_threads_for_the_kernel():
    code = 'extern "C" __global__ void __launch_bounds__(64) few(float *x) { x[threadIdx.x] = 1; }'
    few = cp.RawKernel(code, "few")
    with pytest.raises(cp.cuda.driver.CUDADriverError, match="CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"):
        few((1,), (128,), (cp.zeros(128, "f4"),))


def test_copies_beyond_the_end():
    with cp.cuda.using_allocator(None):
        x = cp.zeros(4, "f4")
    host = np.zeros(100, "f4")
    with pytest.raises(CUDAError, match="cudaErrorInvalidValue"):
        cp.cuda.runtime.memcpy(x.data.ptr, host.ctypes.data, 20, cp.cuda.runtime.memcpyHostToDevice)
    with pytest.raises(CUDAError, match="cudaErrorInvalidValue"):
        cp.cuda.runtime.memset(x.data.ptr + 4, 0, 16)
    with pytest.raises(CUDAError, match="cudaErrorInvalidValue"):
        cp.cuda.runtime.memcpy(host.ctypes.data, x.data.ptr, 16, cp.cuda.runtime.memcpyHostToDevice)
    assert x.get().tolist() == [0] * 4


def test_out_of_memory():
    with pytest.raises(cp.cuda.memory.OutOfMemoryError):
        cp.empty(10**11, "f4")
    with pytest.raises(CUDAError, match="cudaErrorMemoryAllocation"):
        cp.cuda.runtime.malloc(2**64 - 1)


def test_the_memory_that_a_setting_gives():
    program = """
sizes = [2**20] * 3 + [1000]
kept = []
for size in sizes:
    try:
        kept.append(cp.cuda.runtime.malloc(size))
    except cp.cuda.runtime.CUDARuntimeError as e:
        print(size, str(e)[:25])
print(cp.cuda.Device().mem_info)
"""
    found = output(program, CUDASIM_MEM=str(2**21 + 1024))
    assert found == f"{2**20} cudaErrorMemoryAllocation\n(24, {2**21 + 1024})\n"


def test_memory_pool():
    pool = cp.get_default_memory_pool()
    x = cp.zeros(1000)
    used = pool.used_bytes()
    assert used >= 8000
    del x
    assert pool.used_bytes() < used
    pool.free_all_blocks()
    free, total = cp.cuda.Device().mem_info
    assert free <= total


def test_fresh_memory_is_not_zero():
    with cp.cuda.using_allocator(None):
        assert np.isnan(cp.empty(5, "f4").get()).all()
    assert output("print(cp.empty(2, 'u4').get())", CUDASIM_POISON="0x11") == f"[{0x11111111} {0x11111111}]\n"
