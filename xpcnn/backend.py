"""NumPy or CuPy: the only module that knows which.

Everything else asks here: which module an array belongs to, where it is, how it gets somewhere else, who computes
(threads, BLAS) and which scratch memory may be reused.
"""

from __future__ import annotations

import contextvars
import ctypes
import hashlib
import logging
import math
import os
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from queue import SimpleQueue
from types import ModuleType
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from .errors import ArgumentError, DataError, DeviceError

__all__ = [
    "Array",
    "Device",
    "array_module",
    "as_array",
    "device_of",
    "erf",
    "for_chunks",
    "for_rows",
    "generator",
    "gpu_problem",
    "lanes",
    "matmul",
    "memory_info",
    "peak_memory",
    "set_threads",
    "single_threaded_blas",
    "spans",
    "synchronize",
    "threads",
    "to_device",
    "to_numpy",
    "workspace",
]

Array = Any  # numpy.ndarray or cupy.ndarray
Shape = tuple[int, ...]

log = logging.getLogger("xpcnn")

# --- which module -----------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _cupy() -> ModuleType:
    import cupy

    module: ModuleType = cupy
    return module


def _is_cupy(array: object) -> bool:
    return type(array) is not np.ndarray and type(array).__module__.partition(".")[0] == "cupy"


def array_module(*arrays: Array | None, **named: Array | None) -> ModuleType:
    """Return numpy or cupy, whichever the arrays belong to (None is skipped).

    Raises:
        DeviceError: if NumPy and CuPy arrays meet. Arguments given by keyword are called by that name.
    """
    given = (*arrays, *named.values()) if named else arrays
    for array in given:
        if type(array) is not np.ndarray and array is not None:
            break
    else:  # the usual case, asked some hundred times a step
        return np
    found: ModuleType | None = None
    for array in given:
        if array is None:
            continue
        module = np if isinstance(array, np.ndarray) else _cupy() if _is_cupy(array) else None
        if module is None or (found is not None and module is not found):
            raise _mixed(arrays, named)
        found = module
    return np if found is None else found


def _mixed(arrays: Sequence[Array | None], named: dict[str, Array | None]) -> DeviceError:
    labelled = [(f"argument {i}", a) for i, a in enumerate(arrays)] + list(named.items())
    for name, array in labelled:
        if array is not None and not isinstance(array, np.ndarray) and not _is_cupy(array):
            return DeviceError(
                f"{name} is neither a numpy.ndarray nor a cupy.ndarray: received {type(array).__name__}. "
                "Convert it with numpy.asarray first."
            )
    places = [f"{name} on {device_of(array)}" for name, array in labelled if array is not None]
    return DeviceError(
        f"all arrays must be on one device; received {', '.join(places)}. "
        "Move arrays with xpcnn.to_device(array, device) and networks with net.to(device)."
    )


def as_array(x: Any) -> Any:
    """Return an array of another library as a NumPy or CuPy array of the same memory.

    Args:
        x: whatever has DLPack (torch, JAX), `__cuda_array_interface__`, `__array_interface__` or `__array__`, the last
            of which may copy. NumPy and CuPy arrays, and what is no array (None, a list), are returned as they are.

    Raises:
        DataError: if it cannot be shared: a torch tensor that requires grad or is sparse, bfloat16, another device.
    """
    if isinstance(x, np.ndarray) or _is_cupy(x):
        return x
    try:
        if hasattr(x, "__dlpack_device__"):  # whose kind 2 is CUDA
            return (_cupy() if x.__dlpack_device__()[0] == 2 else np).from_dlpack(x)
        if hasattr(x, "__cuda_array_interface__"):
            return _cupy().asarray(x)
        return np.asarray(x) if hasattr(x, "__array_interface__") or hasattr(x, "__array__") else x
    except Exception as error:  # each library raises its own
        raise DataError(
            f"cannot use this {type(x).__name__} ({error}): give x.detach() if it requires grad, x.to_dense() if it is "
            "sparse, x.float() or x.astype('float32') if bfloat16, x.cpu() or jax.device_get(x) if out of CuPy's reach."
        ) from error


@lru_cache(maxsize=1)
def gpu_problem() -> str | None:
    """Return None if CuPy can use a CUDA device, else why it cannot, in one line."""
    try:
        cupy = _cupy()
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
            return 'CuPy is not installed (pip install "xpcnn[cuda13]" or "xpcnn[cuda12]")'
        return f"CuPy cannot be imported: {str(error).strip().splitlines()[0]}"
    try:
        count = int(cupy.cuda.runtime.getDeviceCount())
    except Exception as error:  # CuPy raises its own error types for a missing driver
        return f"CuPy finds no usable CUDA driver: {str(error).strip().splitlines()[0]}"
    return None if count else "CuPy finds no CUDA device"


# --- devices ----------------------------------------------------------------------------------------------------


class Device:
    """A place for arrays: `Device("cpu")`, `Device("cuda:0")`, or `Device("auto")` for the first GPU if there is one.

    `with device:` makes a GPU the current one. "auto" without a GPU is the CPU, and says so once.

    Raises:
        DeviceError: for a name that is no device, or a GPU that is not there.
    """

    def __init__(self, name: str | Device) -> None:
        text = str(name)
        kind, _, index = text.partition(":")
        if text == "auto":
            problem = gpu_problem()
            if problem is not None:
                _say_once(f"running on the CPU with NumPy: {problem}.")
            kind = "cpu" if problem is not None else "cuda"
        elif kind not in ("cpu", "cuda") or (kind == "cpu" and index) or (index and not index.isdecimal()):
            raise DeviceError(f'a device is "cpu", "cuda", "cuda:N" or "auto"; received {text!r}.')
        self.kind = kind
        self.index = int(index or 0)
        if kind == "cuda":
            problem = gpu_problem()
            if problem is None and self.index >= (count := _cupy().cuda.runtime.getDeviceCount()):
                problem = f"this machine has {count} CUDA device(s), numbered from 0"
            if problem is not None:
                raise DeviceError(f'device "{self}" cannot be used: {problem}. Use device="cpu" or device="auto".')

    @property
    def xp(self) -> ModuleType:
        """The array module of this device."""
        return np if self.kind == "cpu" else _cupy()

    def __str__(self) -> str:
        return "cpu" if self.kind == "cpu" else f"cuda:{self.index}"

    def __repr__(self) -> str:
        return f'Device("{self}")'

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other) if isinstance(other, (Device, str)) else NotImplemented

    def __hash__(self) -> int:
        return hash(str(self))

    def _context(self) -> Any:
        return nullcontext() if self.kind == "cpu" else _cupy().cuda.Device(self.index)

    def __enter__(self) -> Device:
        stack = getattr(_local, "devices", None)
        if stack is None:
            stack = _local.devices = []
        stack.append(self._context())
        stack[-1].__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        _local.devices.pop().__exit__(*exc)


_local = threading.local()
_said: set[str] = set()


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        log.warning("xpcnn: %s", message)


def device_of(array: Array) -> Device:
    """Return where an array is."""
    if isinstance(array, np.ndarray):
        return Device("cpu")
    array_module(array)
    return Device(f"cuda:{array.device.id}")


def to_device(array: Array, device: str | Device) -> Array:
    """Return the array on `device`, itself if it is already there."""
    target = Device(device)
    if target.kind == "cpu":
        return to_numpy(array)
    if _is_cupy(array) and array.device.id == target.index:
        return array
    with target:
        return _cupy().asarray(array)


def to_numpy(array: Array) -> np.ndarray:
    """Return the array in host memory, itself if it is already there (waits for a GPU)."""
    return _cupy().asnumpy(found) if _is_cupy(found := as_array(array)) else np.asarray(found)


def synchronize(device: str | Device) -> None:
    """Wait until the device has done everything asked of it."""
    target = Device(device)
    if target.kind == "cuda":
        with target:
            _cupy().cuda.get_current_stream().synchronize()


@dataclass(frozen=True)
class MemoryInfo:
    """Bytes of memory: used by arrays, reserved by the pool (GPU) or resident (CPU), and present in all."""

    used: int
    reserved: int
    total: int


def memory_info(device: str | Device) -> MemoryInfo:
    """Return how much memory of the device is used; on a GPU the pool keeps more reserved than arrays use."""
    target = Device(device)
    if target.kind == "cuda":
        with target:
            pool = _cupy().get_default_memory_pool()
            total = int(_cupy().cuda.runtime.memGetInfo()[1])
            return MemoryInfo(int(pool.used_bytes()), int(pool.total_bytes()), total)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    resident = 0
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm") as file:
            resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return MemoryInfo(resident, resident, total)


# --- random numbers ---------------------------------------------------------------------------------------------


def key_of(text: str) -> int:
    """Return a 64-bit number for a string, the same on every machine and run."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def generator(seed: int, *keys: int | str) -> np.random.Generator:
    """Return a NumPy generator for (seed, *keys); other keys give independent streams."""
    # hashed, because SeedSequence pads with zeros: (1,) and (1, 0) would be one stream
    words = [k if isinstance(k, str) else int(k) for k in (seed, *keys)]
    digest = hashlib.sha256(repr(words).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


# --- threads and BLAS -------------------------------------------------------------------------------------------

INLINE_WORK = 200_000  # elements of work below which threads cost more than they bring
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
_count = 0
_lanes = 0


def threads() -> int:
    """Return how many threads compute (environment XPCNN_THREADS, else the cores this process may use)."""
    if not _count:
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        set_threads(int(os.environ.get("XPCNN_THREADS") or available), int(os.environ.get("XPCNN_LANES") or 0))
    return _count


def _keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next arrays, unless the environment has XPCNN_KEEP_MEMORY=0.

    glibc gives large blocks back to the system, and taking them again, page by page, is up to a seventh of a step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and os.environ.get("XPCNN_KEEP_MEMORY") != "0":
        for option, size in ((M_TRIM_THRESHOLD, 2**31 - 1), (M_MMAP_THRESHOLD, 1 << 28)):
            mallopt(option, size)  # larger blocks go back at once: what is in pieces cannot


def lanes() -> int:
    """Return into how many equal parts work is cut. Sums are cut there too, so their last bits depend on it."""
    count = threads()
    return _lanes or count


def set_threads(count: int, lanes: int = 0) -> None:
    """Set how many threads compute, for the whole process.

    Args:
        count: threads.
        lanes: into how many parts work is cut (environment XPCNN_LANES); 0 for as many as there are threads, which is
            fastest. With a fixed number, training and prediction give the same bits for any number of threads.
    """
    global _count, _lanes
    if count < 1 or lanes < 0:
        raise ArgumentError(f"there must be at least 1 thread and 0 lanes; received {count} and {lanes}.")
    _count, _lanes = count, lanes
    _keep_freed_memory()


class _Job:
    """One parallel loop: threads take the next index until none is left."""

    def __init__(self, count: int, function: Callable[[int], None]) -> None:
        self.indices = iter(range(count))
        self.function = function
        self.left = count
        self.error: BaseException | None = None
        self.lock, self.done = threading.Lock(), threading.Lock()
        self.done.acquire()  # until the last call has returned
        self.context = contextvars.copy_context()  # numpy.errstate and the like hold in every thread

    def work(self) -> None:
        for index in self.indices:
            try:
                if self.error is None:
                    self.function(index)
            except BaseException as error:
                self.error = error
            with self.lock:
                self.left -= 1
                if not self.left:
                    self.done.release()


_jobs: SimpleQueue[_Job] = SimpleQueue()
_workers: list[threading.Thread] = []
_workers_lock = threading.Lock()


def _serve() -> None:
    _local.worker = True
    if any(getattr(library, "threading_layer", "") == "openmp" for library in _blas_libraries()):
        _set_blas_threads([1] * len(_blas_libraries()))  # OpenMP counts per calling thread
    while True:
        job = _jobs.get()
        job.context.copy().run(job.work)
        del job  # and with it the arrays of the loop


def _start_workers(count: int) -> None:
    with _workers_lock:
        while len(_workers) < count:
            _workers.append(threading.Thread(target=_serve, name=f"xpcnn-worker-{len(_workers)}", daemon=True))
            _workers[-1].start()


def _forget_workers() -> None:
    """Threads do not survive a fork: the child starts its own."""
    global _jobs
    _jobs = SimpleQueue()
    _workers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)


def for_chunks(count: int, work: int, function: Callable[[int], None]) -> None:
    """Call `function(i)` for i in range(count): inline if there is little work, else over threads.

    Chunks must be independent of each other; which thread takes which is not fixed. The caller takes part, so that
    loops started by several threads at once, or from inside a chunk, always come to an end.

    Args:
        count: number of chunks.
        work: about how many array elements are touched in all.
        function: does one chunk. Its first exception ends the loop and is raised here.
    """
    helpers = min(threads(), count) - 1
    if helpers < 1 or work < INLINE_WORK or getattr(_local, "worker", False):
        for index in range(count):
            function(index)
        return
    _start_workers(helpers)
    job = _Job(count, function)
    with _blas_limit:
        for _ in range(helpers):
            _jobs.put(job)
        job.work()
        job.done.acquire()
    if job.error is not None:
        raise job.error


def spans(total: int, pieces: int) -> list[tuple[int, int]]:
    """Cut range(total) into at most `pieces` contiguous, almost equal, non-empty ranges."""
    pieces = max(1, min(pieces, total))
    return [(i * total // pieces, (i + 1) * total // pieces) for i in range(pieces)]


BLOCK = 1 << 18  # elements per block of rows: several passes stay in the cache, and calls cost little beside them


def pieces(size: int, passes: int = 1, block: int = 0) -> int:
    """Into how many pieces of at most `block` elements to cut work, as many for each lane; 1 if there is little."""
    return -(-size // ((block or BLOCK) * lanes())) * lanes() if passes * size >= INLINE_WORK else 1


def for_rows(array: Array, function: Callable[[slice], None], passes: int = 1) -> None:
    """Call function(rows) over blocks of the first axis that fit the cache; on a GPU once, over all.

    Args:
        array: whose first axis is cut and whose size says how much work there is.
        function: does rows `slice` of whatever arrays it works on.
        passes: how often an element is touched, about.
    """
    if passes * array.size < INLINE_WORK or _is_cupy(array):
        function(slice(0, array.shape[0]))
        return
    blocks = spans(array.shape[0], pieces(array.size, passes))
    for_chunks(len(blocks), passes * array.size, lambda i: function(slice(*blocks[i])))


@lru_cache(maxsize=1)
def _blas_libraries() -> list[Any]:
    return list(ThreadpoolController().select(user_api="blas").lib_controllers)


def _set_blas_threads(numbers: list[int]) -> None:
    for library, number in zip(_blas_libraries(), numbers, strict=True):
        library.set_num_threads(number)
        # threadpoolctl 3.8 lets only the thread that set the number first set it again, until it gives that right up
        getattr(library, "clear_controlling_thread", bool)()


class _BlasLimit:
    """Holds BLAS to one thread while anybody asks for it: an idle BLAS thread spins and would starve ours."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.before: list[int] = []

    def __enter__(self) -> None:
        with self.lock:
            if not self.users:
                self.before = [library.get_num_threads() for library in _blas_libraries()]
                _set_blas_threads([1] * len(self.before))
            self.users += 1

    def __exit__(self, *exc: object) -> None:
        with self.lock:
            self.users -= 1
            if not self.users:
                _set_blas_threads(self.before)


_blas_limit = _BlasLimit()


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """While inside, BLAS uses one thread (for the whole process; nested and concurrent uses are counted)."""
    with _blas_limit:
        yield


# --- memory that is used again ----------------------------------------------------------------------------------


_scratch: weakref.WeakKeyDictionary[threading.Thread, dict[Any, np.ndarray]] = weakref.WeakKeyDictionary()
_scratch_lock = threading.Lock()


def workspace(xp: ModuleType, name: str, shape: Shape, dtype: Any) -> Array:
    """Return uninitialised scratch memory of this thread; asking again by the same name gives the same memory.

    Never hand it to a caller or keep it. On a GPU the memory pool does the same job, in the order of the stream.
    """
    if xp is not np:
        return xp.empty(shape, dtype)
    buffers = getattr(_local, "buffers", None)
    if buffers is None:
        with _scratch_lock:
            buffers = _local.buffers = _scratch[threading.current_thread()] = {}
    dtype = np.dtype(dtype)
    size = math.prod(shape)
    buffer = buffers.get((name, dtype))
    if buffer is None or buffer.size < size:
        buffer = buffers[name, dtype] = np.empty(size, dtype)
    return buffer[:size].reshape(shape)


def _scratch_to_come() -> int:
    """Bytes by which scratch memory used by several threads will grow until all threads have the largest of each."""
    sizes: dict[Any, list[int]] = {}
    for buffers in list(_scratch.values()):
        for key, buffer in list(buffers.items()):
            sizes.setdefault(key, []).append(buffer.nbytes)
    return sum(max(threads() * max(own) - sum(own), 0) for own in sizes.values() if len(own) > 1)


@contextmanager
def peak_memory(device: str | Device) -> Iterator[Callable[[], int]]:
    """Count the memory that arrays take from here on; the function given says how many bytes it was at most.

    On a GPU it is what a memory pool of its own has taken from the device. On the CPU tracemalloc counts, for the whole
    process, and scratch memory is given back first, so that it counts like everything else. Chance decides which thread
    does what; in time each will have the scratch memory that any of them needed, and that is what counts.
    """
    target = Device(device)
    if target.kind == "cuda":
        pool = _cupy().cuda.MemoryPool()
        with target, _cupy().cuda.using_allocator(pool.malloc):
            yield lambda: int(pool.total_bytes())
        return
    with _scratch_lock:
        for buffers in _scratch.values():
            buffers.clear()
    _ones_of.clear()
    tracing = tracemalloc.is_tracing()
    if not tracing:
        tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        yield lambda: tracemalloc.get_traced_memory()[1] - before + _scratch_to_come()
    finally:
        if not tracing:
            tracemalloc.stop()


# --- products ---------------------------------------------------------------------------------------------------

SMALL_PRODUCT = 1_000_000  # M*N*K up to which OpenBLAS uses its small-matrix kernels
NARROWEST = 96  # columns below which these are no longer faster; for a product with a transposed matrix
NARROWEST_TRANSPOSED = 800


def matrix_workspace(xp: ModuleType, name: str, shape: Shape, dtype: Any) -> Array:
    """Return scratch matrices (..., M, N) like `workspace`, on the CPU with rows an odd number of cache lines apart.

    Rows a power of two apart share cache sets: OpenBLAS then takes up to twice as long.
    """
    if xp is not np:
        return workspace(xp, name, shape, dtype)
    width = (-(-shape[-1] // 16) | 1) * 16
    return workspace(xp, name, (*shape[:-1], width), dtype)[..., : shape[-1]]


def _small_products(rows: int, depth: int, columns: int, narrowest: int) -> int:
    """Into how many equal pieces to cut the columns, so that each is a small product; 1 if the whole is best."""
    most = SMALL_PRODUCT // max(rows * depth, 1)
    if columns <= most or most < narrowest:
        return 1
    fewest = -(-columns // most)
    return next((pieces for pieces in range(fewest, 2 * fewest) if columns % pieces == 0), 1)


def product(a: Array, b: Array, out: Array) -> Array:
    """`out[...] = a @ b` for (stacks of) matrices; float16 is summed in float32 on both backends."""
    xp = array_module(a, b)
    if xp is np and a.dtype == np.float16:  # which BLAS does not have
        np.copyto(out, np.matmul(a.astype(np.float32), b.astype(np.float32)))
        return out
    return xp.matmul(a, b, out=out)


def matmul(a: Array, b: Array, out: Array) -> Array:
    """`out[...] = a @ b` for matrices (M, K) and (K, N).

    OpenBLAS is up to three times slower than it could be for few rows and many columns (or the other way round). There
    the columns are cut into pieces small enough for its small-matrix kernels and multiplied as one batch.
    """
    if not isinstance(a, np.ndarray) or a.dtype == np.float16:
        return product(a, b, out)
    (m, k), n = a.shape, b.shape[1]
    if m > n > 1:
        matmul(b.T, a.T, out.T)
        return out
    pieces = _small_products(m, k, n, NARROWEST)
    if pieces > 1:
        parts = b.reshape(k, pieces, -1).transpose(1, 0, 2)
        np.matmul(a, parts, out=out.reshape(m, pieces, -1).transpose(1, 0, 2))
        return out
    return np.matmul(a, b, out=out)


def strided(array: Array, shape: Shape, strides: Shape) -> Array:
    """Return the view of an array's memory with this shape and these strides, in bytes."""
    if isinstance(array, np.ndarray) and array.flags.c_contiguous:
        return np.ndarray(shape, array.dtype, array, strides=strides)  # NumPy's as_strided takes four times as long
    return array_module(array).lib.stride_tricks.as_strided(array, shape, strides)


def row_dot(a: Array, b: Array, out: Array) -> None:
    """`out[...] = (a * b).sum(axis=1)` for matrices."""
    if isinstance(a, np.ndarray):
        np.vecdot(a, b, out=out)
    else:
        (a * b).sum(axis=1, out=out)


_ones_of: dict[np.dtype[Any], np.ndarray] = {}


def _ones(dtype: np.dtype[Any], count: int) -> np.ndarray:
    ones = _ones_of.get(dtype)
    if ones is None or len(ones) < count:
        ones = _ones_of[dtype] = np.ones(count, dtype)
    return ones[:count]


def row_sum(a: Array, out: Array) -> None:
    """`out[...] = a.sum(axis=1)` for a matrix; on the CPU a product with ones, which BLAS does faster than a sum."""
    if isinstance(a, np.ndarray):
        np.matmul(a, _ones(a.dtype, a.shape[1]), out=out)
    else:
        a.sum(axis=1, out=out)


def matmul_transposed(a: Array, b: Array, out: Array) -> Array:
    """`out[...] = a @ b.T` for matrices (M, N) and (K, N): the weight-gradient product, long in N."""
    xp = array_module(a, b)
    if xp is np and a.dtype != np.float16 and a.strides[1] == a.itemsize and b.strides[1] == b.itemsize:
        (m, n), k = a.shape, b.shape[0]
        pieces = _small_products(m, k, n, NARROWEST_TRANSPOSED)
        if pieces > 1:
            partial = workspace(np, "matmul_transposed", (pieces, m, k), out.dtype)
            parts = b.reshape(k, pieces, -1).transpose(1, 2, 0)
            np.matmul(a.reshape(m, pieces, -1).transpose(1, 0, 2), parts, out=partial)
            return np.sum(partial, axis=0, out=out)
    return product(a, b.T, out)


# --- a function NumPy lacks -------------------------------------------------------------------------------------

# Chebyshev coefficients of log(erfc(x) / t) + x**2 on t = 2 / (2 + x) from 2 / 8.5 to 1, computed with 40 digits.
_ERF_COEFFICIENTS = (
    -0.5079501830118499886, 0.50933361144766905708, 0.0035876189383853206548, -0.005073383484756079729,
    -7.3703986687742539565e-6, 0.00011846801681802468124, -6.1019444914271654917e-6, -3.1576607596044153709e-6,
    4.5488419507432361488e-7, 6.4920559895051318527e-8, -2.2550583291304382447e-8, 1.5763345863022963548e-10,
    8.0075603144447584201e-10, -1.0454450348387595854e-10, -1.5932142229121728201e-11, 5.9537948985984596365e-12,
    -2.3877707180619153537e-13, -1.8052103136034329212e-13, 3.4376222335940123963e-14, 1.2512165391668043539e-15,
    -1.344660074331366727e-15, 1.5774933608178847132e-16, 1.8735896872832649801e-17, -7.3579639134409161986e-18,
)  # fmt: skip


def erf(x: Array) -> Array:
    """Return the error function of every element, to the precision of the dtype.

    NumPy has none: erfc(|x|) = t exp(-x**2 + P(t)), P by Clenshaw's recurrence. CuPy's own is one launch.
    """
    if _is_cupy(x):
        import cupyx.scipy.special

        return cupyx.scipy.special.erf(x)
    size = np.minimum(np.abs(x), 6.5)
    t = 2.0 / (2.0 + size)
    low = 2.0 / 8.5
    v = (t - low) * (4.0 / (1.0 - low)) - 2.0  # twice the Chebyshev variable
    first, second = np.zeros_like(size), np.zeros_like(size)
    for coefficient in _ERF_COEFFICIENTS[:0:-1]:
        first, second = v * first - second + coefficient, first
    series = 0.5 * v * first - second + _ERF_COEFFICIENTS[0]
    return np.copysign(1.0 - t * np.exp(series - size * size), x)
