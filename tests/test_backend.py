from __future__ import annotations

import itertools
import logging
import math
import os
import platform
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest
from helpers import to_numpy
from hypothesis import given
from hypothesis import strategies as st
from strategies import normal
from threadpoolctl import threadpool_info
from tolerances import assert_close

import xpcnn
from xpcnn import backend
from xpcnn.backend import (
    Device,
    array_module,
    device_of,
    for_chunks,
    for_rows,
    generator,
    single_threaded_blas,
    spans,
    to_device,
    workspace,
)
from xpcnn.errors import ArgumentError, DeviceError


@pytest.fixture
def three_threads(monkeypatch):
    monkeypatch.setattr(backend, "_count", 3)


def name_of(xp) -> str:
    return "cpu" if xp is np else "cuda:0"


# --- which module -----------------------------------------------------------------------------------------------


def test_array_module_is_read_from_the_arrays(xp):
    a, b = xp.zeros(1), xp.ones((2, 2), "int32")
    assert array_module(a) is xp
    assert array_module(a, b, None) is xp
    assert array_module(None, x=b) is xp
    assert array_module() is np
    assert array_module(None, x=None) is np
    assert xpcnn.array_module(a) is xp


def test_other_objects_are_refused():
    for value, kind in (([1.0], "list"), (3.0, "float"), (np.float32(1), "float32"), ("x", "str")):
        with pytest.raises(DeviceError, match=rf"x is neither .* received {kind}\. Convert it with numpy\.asarray"):
            array_module(np.zeros(1), x=value)
    with pytest.raises(DeviceError, match=r"argument 1 is neither"):
        array_module(np.zeros(1), [2])


@pytest.mark.cupy
def test_two_modules_are_refused_with_the_place_of_each():
    import cupy

    with pytest.raises(
        DeviceError,
        match=r"on one device; received x on cpu, weight on cuda:0\. Move .*xpcnn\.to_device.*net\.to\(device\)",
    ):
        array_module(x=np.zeros(1), weight=cupy.zeros(1), bias=None)
    with pytest.raises(DeviceError, match=r"argument 0 on cuda:0, argument 1 on cpu"):
        array_module(cupy.zeros(1), np.zeros(1))


# --- devices ----------------------------------------------------------------------------------------------------


def test_device_names():
    assert str(Device("cpu")) == "cpu"
    assert repr(Device("cpu")) == 'Device("cpu")'
    assert Device(Device("cpu")) == Device("cpu") == "cpu"
    assert Device("cpu") != "cuda:0"
    assert Device("cpu") != 3
    assert len({Device("cpu"), Device("cpu")}) == 1
    assert Device("cpu").xp is np
    with Device("cpu") as device, device:
        assert device == "cpu"


@pytest.mark.parametrize("name", ["gpu", "cpu:0", "cuda:x", "cuda:-1", "", "CUDA:0", "cuda:0:1", "auto:0"])
def test_wrong_device_names_are_refused(name):
    with pytest.raises(DeviceError, match=r'a device is "cpu", "cuda", "cuda:N" or "auto"; received'):
        Device(name)


def test_a_gpu_that_is_not_there(monkeypatch, caplog):
    monkeypatch.setattr(backend, "gpu_problem", lambda: "CuPy finds no CUDA device")
    monkeypatch.setattr(backend, "_said", set())
    with pytest.raises(
        DeviceError,
        match=r'device "cuda:1" cannot be used: CuPy finds no CUDA device\. Use device="cpu" or device="auto"',
    ):
        Device("cuda:1")
    with caplog.at_level(logging.WARNING, logger="xpcnn"):
        for _ in range(3):
            assert Device("auto") == "cpu"
    assert [record.getMessage() for record in caplog.records] == [
        "xpcnn: running on the CPU with NumPy: CuPy finds no CUDA device."
    ]


def test_reasons_why_there_is_no_gpu(monkeypatch):
    def failing(error):
        def import_cupy():
            raise error

        return import_cupy

    problem = backend.gpu_problem.__wrapped__
    monkeypatch.setattr(backend, "_cupy", failing(ModuleNotFoundError("no", name="cupy")))
    assert problem() == 'CuPy is not installed (pip install "xpcnn[cuda13]" or "xpcnn[cuda12]")'
    monkeypatch.setattr(backend, "_cupy", failing(ImportError("\nlibcuda.so: missing\nmore")))
    assert problem() == "CuPy cannot be imported: libcuda.so: missing"

    class Runtime:
        def __init__(self, answer):
            self.answer = answer

        def getDeviceCount(self):
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

    class Module:
        def __init__(self, answer):
            self.cuda = type("cuda", (), {"runtime": Runtime(answer)})

    for answer, text in (
        (RuntimeError("no driver\nat all"), "CuPy finds no usable CUDA driver: no driver"),
        (0, "CuPy finds no CUDA device"),
        (2, None),
    ):
        monkeypatch.setattr(backend, "_cupy", lambda answer=answer: Module(answer))
        assert problem() == text


@pytest.mark.cupy
def test_devices_of_cupy():
    import cupy

    count = cupy.cuda.runtime.getDeviceCount()
    assert Device("auto") == Device("cuda") == Device("cuda:0") == "cuda:0"
    assert Device("cuda").xp is cupy
    with pytest.raises(DeviceError, match=rf"this machine has {count} CUDA device\(s\), numbered from 0"):
        Device("cuda:99")
    with Device("cuda:0"):
        assert device_of(cupy.zeros(1)) == "cuda:0"


def test_arrays_move_and_stay(xp):
    host = normal(1, 3, 4)
    there = to_device(host, name_of(xp))
    assert array_module(there) is xp
    assert device_of(there) == name_of(xp)
    assert to_device(there, name_of(xp)) is there
    back = to_device(there, "cpu")
    assert isinstance(back, np.ndarray)
    np.testing.assert_array_equal(back, host)
    np.testing.assert_array_equal(backend.to_numpy(there), host)
    assert backend.to_numpy(host) is host
    backend.synchronize(name_of(xp))


def test_memory_info(xp):
    kept = xp.zeros(1 << 16)
    info = backend.memory_info(name_of(xp))
    assert kept.nbytes <= info.used <= info.total
    assert 0 < info.reserved <= info.total


# --- random numbers ---------------------------------------------------------------------------------------------


def test_generators_are_reproducible():
    for keys in ((0,), (3, "order"), (3, "augment", 5, 7), (2**70, "x", 2**40)):
        np.testing.assert_array_equal(generator(*keys).random(5), generator(*keys).random(5))
    first = generator(1, "0.weight").standard_normal(3)
    np.testing.assert_allclose(first, generator(1, "0.weight").standard_normal(3), rtol=0)


def test_generators_of_other_keys_are_different():
    keys = [
        (0,),
        (1,),
        (1, 0),
        (1, 0, 0),
        (0, 1),
        (1, 2),
        (2, 1),
        (1, "a"),
        (1, "a", 0),
        (1, "b"),
        (1, "a", "b"),
        (1, "b", "a"),
        (1, "ab"),
        (1, 2**32),
        (1, 0, 1),
        (2**32 + 1,),
    ]
    draws = {keys: generator(*keys).integers(2**63) for keys in keys}
    same = [(a, b) for a, b in itertools.combinations(draws, 2) if draws[a] == draws[b]]
    assert same == []


def test_generators_of_neighbouring_keys_are_independent():
    draws = np.array([generator(1, "sample", epoch, i).random() for epoch in range(10) for i in range(200)])
    assert abs(draws.mean() - 0.5) < 5 * math.sqrt(1 / 12 / draws.size)
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 5 / math.sqrt(draws.size)


# --- chunks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 3, 50])
@pytest.mark.parametrize("work", [1, 10**9])
@pytest.mark.usefixtures("three_threads")
def test_every_chunk_is_done_once(count, work):
    done: list[int] = []
    for_chunks(count, work, done.append)
    assert sorted(done) == list(range(count))


@pytest.mark.usefixtures("three_threads")
def test_little_work_is_done_here_and_much_work_by_several():
    here = threading.get_ident()
    by: list[int] = []
    for_chunks(9, 10, lambda i: by.append(threading.get_ident()))
    assert set(by) == {here}
    together = threading.Barrier(3, timeout=10)
    by.clear()

    def work(i: int) -> None:
        together.wait()  # comes to an end only if three threads are inside at once
        by.append(threading.get_ident())

    for_chunks(3, 10**9, work)
    assert here in by
    assert len(set(by)) == 3


@pytest.mark.usefixtures("three_threads")
def test_one_thread_means_this_thread(monkeypatch):
    monkeypatch.setattr(backend, "_count", 1)
    by: list[int] = []
    for_chunks(9, 10**9, lambda i: by.append(threading.get_ident()))
    assert set(by) == {threading.get_ident()}


@pytest.mark.usefixtures("three_threads")
def test_loops_of_several_threads_at_once():
    results = [np.zeros(40, int) for _ in range(6)]

    def caller(result: np.ndarray) -> None:
        def add(i: int) -> None:
            result[i] += 1

        for _ in range(30):
            for_chunks(len(result), 10**9, add)

    callers = [threading.Thread(target=caller, args=(result,)) for result in results]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(timeout=60)
        assert not thread.is_alive()
    for result in results:
        np.testing.assert_array_equal(result, 30)


@pytest.mark.usefixtures("three_threads")
def test_loops_inside_loops():
    counts = np.zeros((6, 7), int)

    def outer(i: int) -> None:
        def inner(j: int) -> None:
            counts[i, j] += 1

        for_chunks(7, 10**9, inner)

    for _ in range(20):
        for_chunks(6, 10**9, outer)
    np.testing.assert_array_equal(counts, 20)


@pytest.mark.parametrize("work", [1, 10**9])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.usefixtures("three_threads")
def test_an_exception_in_a_chunk_is_raised_here(work, error):
    def fail(i: int) -> None:
        if i == 4:
            raise error("chunk 4")

    for _ in range(5):
        with pytest.raises(error, match="chunk 4"):
            for_chunks(20, work, fail)
    done: list[int] = []
    for_chunks(20, work, done.append)
    assert sorted(done) == list(range(20)), "the workers live on"


@given(total=st.integers(0, 200), pieces=st.integers(-1, 250))
def test_spans_cut_evenly_without_gaps(total, pieces):
    result = spans(total, pieces)
    assert [b for _, b in result][:-1] == [a for a, _ in result][1:]
    assert result[0][0] == 0
    assert result[-1][1] == total
    lengths = [b - a for a, b in result]
    assert max(lengths) - min(lengths) <= 1
    if total:
        assert min(lengths) >= 1
        assert len(result) == max(1, min(pieces, total))


def test_a_loop_that_is_over_keeps_nothing(monkeypatch):
    """A thread that waits for the next loop must not hold the arrays of the last one."""
    monkeypatch.setattr(backend, "_count", 2)
    barrier, array = threading.Barrier(2), np.ones(3)
    gone = weakref.ref(array)

    def work(index, array=array):
        barrier.wait(timeout=30)  # both threads take part

    for_chunks(2, backend.INLINE_WORK, work)
    del work, array
    deadline = time.monotonic() + 10
    while gone() is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("rows", [1, 5, 100])
@pytest.mark.usefixtures("three_threads")
def test_rows_are_done_once_each(xp, rows, monkeypatch):
    monkeypatch.setattr(backend, "BLOCK", 20)
    monkeypatch.setattr(backend, "INLINE_WORK", 0)
    a = xp.zeros((rows, 7))
    calls = []

    def work(r: slice) -> None:
        calls.append(r)
        a[r] += 1

    for_rows(a, work)
    assert (to_numpy(a) == 1).all()
    pieces = -(-rows * 7 // 20)
    assert len(calls) == (1 if xp is not np else min(rows, -(-pieces // 3) * 3))  # as many for each of three threads


# --- freed memory -----------------------------------------------------------------------------------------------

FAULTS = """
import resource
import numpy as np
import xpcnn

{first}
for number in range(30):
    if number == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(1 << 19, np.float32) for _ in range(8)]
    del arrays
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's memory is told to stay")
@pytest.mark.parametrize("first", ["xpcnn.threads()", "xpcnn.set_threads(2)"])
def test_freed_memory_stays_with_the_process(first):
    def faults(**environment: str) -> int:
        command = [sys.executable, "-c", FAULTS.format(first=first)]
        variables = {**os.environ, **environment}
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
        return int(done.stdout)

    given_back = faults(XPCNN_KEEP_MEMORY="0")
    assert given_back > 20 * 8 * (1 << 21) // 4096 // 2, "pages are asked for again, else there is nothing to gain"
    assert faults(XPCNN_KEEP_MEMORY="") < given_back / 20


# --- threads and BLAS -------------------------------------------------------------------------------------------


def test_number_of_threads(monkeypatch):
    monkeypatch.setattr(backend, "_count", 0)
    monkeypatch.setenv("XPCNN_THREADS", "5")
    assert backend.threads() == 5
    backend.set_threads(2)
    assert xpcnn.threads() == 2
    monkeypatch.setattr(backend, "_count", 0)
    monkeypatch.delenv("XPCNN_THREADS")
    assert backend.threads() >= 1
    with pytest.raises(ArgumentError, match=r"at least 1 thread and 0 lanes; received 0 and 0"):
        backend.set_threads(0)


def test_number_of_lanes(monkeypatch):
    monkeypatch.setattr(backend, "_count", 0)
    monkeypatch.setattr(backend, "_lanes", 0)
    monkeypatch.setenv("XPCNN_LANES", "6")
    assert (backend.lanes(), backend.threads() >= 1) == (6, True)
    backend.set_threads(3)
    assert backend.lanes() == 3  # as many as threads, unless somebody says otherwise
    backend.set_threads(3, lanes=4)
    assert (backend.threads(), backend.lanes()) == (3, 4)


def test_fixed_lanes_give_the_same_bits_for_any_number_of_threads(monkeypatch):
    monkeypatch.setattr(backend, "_count", backend.threads())
    monkeypatch.setattr(backend, "_lanes", 0)
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((16, 3, 24, 24), dtype=np.float32), rng.integers(0, 4, 16)

    def train(threads: int, lanes: int) -> tuple[bytes, ...]:
        backend.set_threads(threads, lanes)
        net = xpcnn.Sequential(
            *(xpcnn.Conv2d(24, 3, padding=1), xpcnn.BatchNorm2d(), xpcnn.ReLU(), xpcnn.MaxPool2d(2)),
            *(
                xpcnn.Conv2d(32, 3, 2),
                xpcnn.ReLU(),
                xpcnn.Flatten(),
                xpcnn.Dense(64),
                xpcnn.Dropout(0.3),
                xpcnn.Dense(4),
            ),
        )
        classifier = xpcnn.Classifier(net, 4, device="cpu")
        classifier.fit(x, t, epochs=2, batch_size=16, verbose=False)
        return tuple(array.tobytes() for array in (*net.state_dict().values(), classifier.predict_proba(x)))

    runs = {(threads, lanes): train(threads, lanes) for threads in (1, 2, 3) for lanes in (4, 0)}
    assert runs[1, 4] == runs[2, 4] == runs[3, 4]
    assert runs[1, 0] != runs[3, 0]  # the check can fail: as many lanes as threads cut the sums elsewhere


def blas_threads() -> list[int]:
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


def test_single_threaded_blas_is_reentrant_and_restores():
    before = blas_threads()
    assert before, "NumPy's BLAS is seen by threadpoolctl"
    with single_threaded_blas():
        assert set(blas_threads()) == {1}
        with single_threaded_blas():
            assert set(blas_threads()) == {1}
        assert set(blas_threads()) == {1}
    assert blas_threads() == before
    with pytest.raises(KeyError), single_threaded_blas():
        raise KeyError
    assert blas_threads() == before


def test_single_threaded_blas_of_several_threads_overlapping():
    before = blas_threads()
    inside, leave = threading.Barrier(3, timeout=10), threading.Event()
    seen: list[set[int]] = []

    def hold(first: bool) -> None:
        with single_threaded_blas():
            inside.wait()
            if not first:
                leave.wait(10)
                seen.append(set(blas_threads()))

    threads = [threading.Thread(target=hold, args=(first,)) for first in (True, False)]
    for thread in threads:
        thread.start()
    inside.wait()
    threads[0].join()
    one_left = set(blas_threads())
    leave.set()
    threads[1].join()
    assert one_left == {1}, "the other thread is still inside"
    assert seen == [{1}]
    assert blas_threads() == before


@pytest.mark.usefixtures("three_threads")
def test_blas_is_held_to_one_thread_inside_parallel_chunks():
    before = blas_threads()
    seen: list[set[int]] = []
    for_chunks(6, 10**9, lambda i: seen.append(set(blas_threads())))
    assert seen == [{1}] * 6
    assert blas_threads() == before


# --- workspace --------------------------------------------------------------------------------------------------


def test_workspace_is_used_again(xp):
    a = workspace(xp, "test", (3, 4), "float32")
    assert a.shape == (3, 4)
    assert a.dtype == "float32"
    assert a.flags.c_contiguous
    if xp is np:
        assert np.shares_memory(a, workspace(np, "test", (2, 5), np.float32))
        assert not np.shares_memory(a, workspace(np, "other", (3, 4), np.float32))
        assert not np.shares_memory(a, workspace(np, "test", (3, 4), np.float64))
        larger = workspace(np, "test", (5, 5), np.float32)
        assert np.shares_memory(larger, workspace(np, "test", (25,), np.float32))
    assert workspace(xp, "test", (0, 3), "float32").shape == (0, 3)
    assert workspace(xp, "test", (), "float32").shape == ()


def test_each_thread_has_its_own_workspace():
    mine = workspace(np, "test", (8,), np.float32)
    theirs: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: theirs.append(workspace(np, "test", (8,), np.float32)))
    thread.start()
    thread.join()
    assert not np.shares_memory(mine, theirs[0])


# --- products ---------------------------------------------------------------------------------------------------

PRODUCTS = [
    (1, 1, 1),
    (3, 4, 5),
    (4, 3, 1200),
    (2, 9, 1201),
    (1, 30, 2000),
    (8, 9, 997),
    (5, 2, 6000),
    (1200, 4, 3),
    (6000, 5, 2),
]


@pytest.mark.parametrize(("m", "k", "n"), PRODUCTS)
@pytest.mark.parametrize("small", [1_000_000, 7_000])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_matmul_and_its_transposed_kind_are_plain_products(xp, m, k, n, small, dtype, monkeypatch):
    monkeypatch.setattr(backend, "SMALL_PRODUCT", small)
    a, b, c = normal(1, m, k, dtype=dtype), normal(2, k, n, dtype=dtype), normal(3, m, n, dtype=dtype)
    wide = [np.float64(v) for v in (a, b, c)]
    a, b, c = (xp.asarray(v) for v in (a, b, c))
    out = xp.empty((m, n), dtype)
    assert backend.matmul(a, b, out) is out
    assert_close(out, wide[0] @ wide[1], "forward")
    out = xp.empty((m, k), dtype)
    assert backend.matmul_transposed(c, b, out) is out
    assert_close(out, wide[2] @ wide[1].T, "forward")


@pytest.mark.parametrize(("m", "k", "n"), PRODUCTS)
def test_matmul_of_views(m, k, n, monkeypatch):
    """Rows of wider arrays, as chunks of columns are, and arrays that are not contiguous along the columns."""
    monkeypatch.setattr(backend, "SMALL_PRODUCT", 7_000)
    wide_b, wide_out = normal(1, k, n + 7), np.zeros((m, n + 5))
    a = normal(2, k, m).T
    backend.matmul(a, wide_b[:, 3 : n + 3], wide_out[:, 2 : n + 2])
    assert_close(wide_out[:, 2 : n + 2], a @ wide_b[:, 3 : n + 3], "forward")
    assert not wide_out[:, :2].any()
    assert not wide_out[:, n + 2 :].any()
    b = np.asfortranarray(wide_b)
    out = np.zeros((m, n + 7))
    backend.matmul(a, b, out)
    assert_close(out, a @ wide_b, "forward")
    c, out = np.asfortranarray(normal(3, m, n + 7)), np.zeros((m, k))
    backend.matmul_transposed(c, wide_b, out)
    assert_close(out, c @ wide_b.T, "forward")
    backend.matmul_transposed(np.ascontiguousarray(c)[:, 3 : n + 3], wide_b[:, 3 : n + 3], out)
    assert_close(out, c[:, 3 : n + 3] @ wide_b[:, 3 : n + 3].T, "forward")


@pytest.mark.parametrize("cut", [slice(None), slice(1, None, 2)], ids=["whole", "cut"])
def test_strided_views_are_windows_of_the_same_memory(xp, cut):
    array = xp.asarray(normal(1, 4, 6))[cut]
    step, item = array.strides
    view = backend.strided(array, (len(array), 5, 2), (step, item, item))
    np.testing.assert_array_equal(to_numpy(view[..., 1]), to_numpy(array[:, 1:]))
    view[0, 0, 1] = 7.0
    assert float(array[0, 1]) == 7.0


@pytest.mark.usefixtures("three_threads")
def test_numpy_errstate_holds_in_the_threads():
    array = np.full(4, 3e38, np.float32)

    def overflow(index: int) -> None:
        threading.Event().wait(0.01)  # long enough for another thread to take the next
        array * array

    with np.errstate(over="ignore"):
        for_chunks(6, 10**9, overflow)
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        for_chunks(6, 10**9, overflow)
