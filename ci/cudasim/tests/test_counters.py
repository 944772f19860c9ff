"""Counters and logs."""

import cudasim
import cupy as cp
import numpy as np
from comparing import MATRIX, OTHER
from processes import run


def test_counters_step():
    a = cp.asarray(MATRIX)
    w = cp.asarray(OTHER)
    (a @ w.T)
    a * 2
    with cudasim.count(log=True) as c:
        y = a @ w.T
        z = y * 2
    assert c["gemm"] == 1 and c["kernel_launch"] == 1 and c["d2h"] == 0 and c["stream_sync"] == 0, (c.as_dict(), c.log)
    with cudasim.count() as c:
        z.get()
    assert c["d2h"] == 1 and c["h2d"] == 0 and c["d2h_bytes"] == 100
    with cudasim.count() as c:
        cp.asarray(MATRIX)
    assert c["h2d"] == 1
    with cudasim.count() as c:
        float(z.sum())
    assert c["d2h"] == 1


def test_sliding_window_view_syncs():
    # a fact about real CuPy 14.2 that the counters show: the checks in sliding_window_view copy to the host
    x = cp.asarray(MATRIX)
    with cudasim.count() as c:
        cp.lib.stride_tricks.sliding_window_view(x, (2, 2))
    assert c["d2h"] == 2 and c["h2d"] == 1, c.as_dict()


def test_logs_may_be_nested():
    x = cp.asarray(MATRIX)
    with cudasim.count(log=True) as outer:
        x + 1
        with cudasim.count(log=True) as inner:
            x.get()
        x + 1
    assert [line.split()[0] for line in outer.log] == ["launch", "memcpy", "stream_sync", "launch"]
    assert [line.split()[0] for line in inner.log] == ["memcpy", "stream_sync"]
    with cudasim.count(log=True) as after:
        pass
    assert after.log == []


def test_counts_can_be_read_inside_and_after():
    x = cp.asarray(MATRIX)
    with cudasim.count() as calls:
        x.get()
        assert calls["d2h"] == 1
        x.get()
    x.get()
    assert calls["d2h"] == calls.as_dict()["d2h"] == 2
    assert calls["d2h_bytes"] == 2 * MATRIX.nbytes


def test_a_copy_of_rows_is_one_copy():
    host = np.arange(12, dtype="f4").reshape(3, 4)
    x = cp.zeros((3, 8), "f4")
    with cudasim.count(log=True) as calls:
        cp.cuda.runtime.memcpy2D(x.data.ptr, 32, host.ctypes.data, 16, 16, 3, cp.cuda.runtime.memcpyHostToDevice)
    assert (calls["h2d"], calls["h2d_bytes"], calls.log) == (1, 48, ["memcpy h2d 48"])
    np.testing.assert_array_equal(x.get()[:, :4], host)
    assert not x.get()[:, 4:].any()


def test_instructions_are_the_same_in_each_run():
    x = cp.arange(1000)
    x + 1
    seen = []
    for _ in range(3):
        before = cudasim.instructions()
        x + 1
        seen.append(cudasim.instructions() - before)
    assert seen[0] > 1000
    assert len(set(seen)) == 1


def test_trace_and_report():
    done = run("cp.arange(3).get()", CUDASIM_TRACE="1", CUDASIM_REPORT="1")
    lines = done.stderr.splitlines()
    assert lines[0].startswith("cudasim: launch cupy_arange__int_int_int64 grid 1,1,1 block 3,1,1")
    assert lines[1:3] == ["cudasim: memcpy d2h 24", "cudasim: stream_sync"]
    assert lines[-1].startswith("cudasim: {'kernel_launch': 1, 'd2h': 1, 'd2h_bytes': 24")
