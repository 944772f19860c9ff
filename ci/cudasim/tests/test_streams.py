"""Streams and events. What CUDASIM_ASYNC=1 changes is in test_late.py."""

import cupy as cp
import pytest
from comparing import MATRIX


def test_streams_events():
    s = cp.cuda.Stream(non_blocking=True)
    e0, e1 = cp.cuda.Event(), cp.cuda.Event()
    with s:
        e0.record()
        y = cp.asarray(MATRIX) * 2
        e1.record()
    e1.synchronize()
    s.synchronize()
    assert cp.cuda.get_elapsed_time(e0, e1) >= 0
    assert (y.get() == MATRIX * 2).all()
    cp.cuda.Stream.null.wait_event(e1)
    assert s.done


def test_handles_that_are_none():
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="cudaErrorInvalidResourceHandle"):
        cp.cuda.runtime.streamSynchronize(12345)
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="cudaErrorInvalidResourceHandle"):
        cp.cuda.runtime.eventSynchronize(12345)
    x = cp.zeros(3)
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="cudaErrorInvalidResourceHandle"):
        cp.cuda.runtime.memsetAsync(x.data.ptr, 0, 8, 12345)


def test_elapsed_time_needs_records_and_timing():
    recorded, never = cp.cuda.Event(), cp.cuda.Event()
    recorded.record()
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="cudaErrorInvalidResourceHandle"):
        cp.cuda.get_elapsed_time(recorded, never)
    untimed = cp.cuda.Event(disable_timing=True)
    untimed.record()
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="cudaErrorInvalidResourceHandle"):
        cp.cuda.get_elapsed_time(recorded, untimed)
