"""What the processes of a parallel training say to each other: through MPI, on GPUs through NCCL.

Notation: P ranks; a rank is the number of a process.
"""

from __future__ import annotations

import importlib
import os
import pickle
import platform
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import ModuleType
from typing import Any, NoReturn, TypeVar

import numpy as np

from .. import backend
from ..backend import Array, Device, array_module, device_of, to_device, to_numpy
from ..errors import ArgumentError, MissingExtraError, XpcnnError
from .metrics import Totals

__all__ = ["Communicator", "MPICommunicator", "common", "communicator", "is_common", "launched", "part_of"]

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)
POLLS = 200  # looks at what is under way before the processor is left to others for a moment
NAP = 1e-4  # seconds
GRACE = 0.2  # seconds in which mpiexec passes on what a rank has said: it drops the rest when all are ended
LAUNCHERS = ("PMI", "OMPI_COMM_WORLD")  # what the variables begin with by which MPICH and Open MPI tell rank and size

_yield = getattr(os, "sched_yield", lambda: time.sleep(0))


def launched() -> tuple[int, int]:
    """Return the rank of this process among those that mpiexec has started, and their number; (0, 1) for one by itself.

    Only the environment is asked; that of MPICH's, Intel MPI's and Open MPI's mpiexec is known.
    """
    for name in LAUNCHERS:
        rank, size = (os.environ.get(f"{name}_{what}", "") for what in ("RANK", "SIZE"))
        if rank.isdecimal() and size.isdecimal():
            return int(rank), int(size)
    return 0, 1


def communicator(parallel: str | Communicator | None) -> Communicator:
    """Return what `Classifier(parallel=...)` stands for: None is this process alone, "mpi" all that mpiexec started.

    Raises:
        ArgumentError: for anything else.
        MissingExtraError: for "mpi" without mpi4py or an MPI library.
    """
    if isinstance(parallel, Communicator):
        return parallel
    if parallel not in (None, "mpi"):
        raise ArgumentError(f'parallel must be None or "mpi"; received {parallel!r}.')
    return _alone if parallel is None else _world()


class Pending:
    """A sum that is under way; this one is done."""

    def test(self) -> bool:
        """Say whether it is done, and let it go on: MPI does that while it is asked."""
        return True

    def wait(self) -> None:
        """Return when the array holds the sum; on a GPU, when work queued from now on will see it."""


class Communicator:
    """What ranks say to each other. This class is a process by itself, rank 0 of 1.

    All ranks must call the methods that talk (`start_sum`, `gather`, `broadcast` and what is made of them) in the same
    order.
    """

    rank = 0
    size = 1

    def __deepcopy__(self, memo: dict[int, Any]) -> Communicator:
        return self  # the others are not copied either

    def start_sum(self, array: Array) -> Pending:
        """Begin to replace a contiguous array, of either backend, by its sum over the ranks."""
        return Pending()

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in their order, on every rank. It may be anything that pickles."""
        return [value]

    def broadcast(self, value: T) -> T:
        """Return the value that rank 0 has given."""
        return value

    def abort(self, code: int = 1) -> NoReturn:
        """End all ranks at once, with an exit code."""
        raise SystemExit(code)

    def place(self, device: str | Device) -> Device:
        """Return the device of this rank."""
        return Device(device)

    # --- made of these ---

    def sum(self, array: Array) -> None:
        """Replace an array by its sum over the ranks."""
        self.start_sum(array).wait()

    def share(self, count: int) -> tuple[int, int]:
        """Return this rank's contiguous part (first, last) of range(count).

        Parts differ by one at most, the larger ones first: rank 0 never has less than another.
        """
        first, last = (-(-rank * count // self.size) for rank in (self.rank, self.rank + 1))
        return first, last

    def over(self, totals: Totals) -> Totals:
        """Return totals summed over the ranks, in host memory and in their order (waits for a GPU)."""
        if self.size == 1:
            return totals
        parts = self.gather((totals.count, float(totals.loss), int(totals.correct)))
        whole = Totals(np, sum(count for count, _, _ in parts))
        whole.loss += sum(loss for _, loss, _ in parts)
        whole.correct += sum(correct for _, _, correct in parts)
        return whole

    def signal(self, number: int | None) -> int | None:
        """Return the signal that any rank has received, SIGTERM before SIGINT."""
        if self.size == 1:
            return number
        kinds = (signal.SIGTERM, signal.SIGINT)
        received = np.array([number == kind for kind in kinds], np.int64)
        self.sum(received)
        return next((int(kind) for kind, count in zip(kinds, received, strict=True) if count), None)

    # --- errors ---

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Do something on every rank; where it goes wrong on any, raise the error of the first of them on all."""
        problem: Exception | None = None
        try:
            yield
        except Exception as error:
            problem = error
        found = self.gather(None if problem is None else _described(problem))
        guilty = next((rank for rank, one in enumerate(found) if one is not None), None)
        if guilty is None:
            return
        if problem is None or guilty != self.rank:
            kind, text = found[guilty] or (XpcnnError, "")
            problem = kind(text)
        if guilty and len(problem.args) == 1:
            problem.args = (f"rank {guilty}: {problem}",)
        raise common(problem)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """End all ranks if this one fails by itself: the others would wait for it for ever."""
        try:
            yield
        except BaseException as error:
            self.end_all(error)
            raise

    def end_all(self, error: BaseException) -> None:
        """Say what went wrong on this rank and end all, unless there is one only or all know of the error."""
        if self.size == 1 or is_common(error):
            return
        time.sleep(3 * GRACE * min(self.rank, 10))  # often all ranks fail at once: let the first speak for them
        if isinstance(error, (XpcnnError, OSError)):
            text = str(error)
        else:
            text = "".join(traceback.format_exception(error)).rstrip()
        interrupted = isinstance(error, KeyboardInterrupt)
        text = "was interrupted, which ends all" if interrupted else f"failed, which ends all: {text}"
        print(f"rank {self.rank} of {self.size} {text}", file=sys.stderr, flush=True)
        self.abort(130 if interrupted else 1)


_alone = Communicator()


def part_of(count: int, index: int, parts: int) -> tuple[int, int]:
    """Return the ends of part `index` of range(count) cut into `parts` almost equal ones, some perhaps empty."""
    return index * count // parts, (index + 1) * count // parts


def common(error: E) -> E:
    """Mark an error as raised on every rank alike: nobody waits for anybody."""
    error.on_all_ranks = True  # type: ignore[attr-defined]
    return error


def is_common(error: BaseException) -> bool:
    """Say whether an error was marked by `common`."""
    return getattr(error, "on_all_ranks", False)


def _described(error: Exception) -> tuple[type[Exception], str]:
    """Return class and text of an error, in a form that other processes can read."""
    try:
        type(error)(str(error))
        return type(error), str(error)
    except TypeError:  # its constructor wants something else
        return XpcnnError, str(error)


# --- MPI --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _world() -> MPICommunicator:
    return MPICommunicator()


class MPICommunicator(Communicator):
    """All processes that mpiexec has started, through mpi4py (extra "mpi").

    Sums are taken in an order that MPI chooses by the number of ranks, their places and the size of the array: the same
    start gives the same bits. Arrays on GPUs are summed by NCCL where CuPy finds it and each rank has a GPU of its own
    (not run on GPUs yet), else by way of host memory.

    It changes the process: the threads of xpcnn become this rank's part of the cores, unless XPCNN_THREADS or
    `set_threads` says how many; ranks other than 0 log errors only; and an exception that nobody catches ends all.

    Args:
        world: an mpi4py communicator, MPI.COMM_WORLD if None.

    Raises:
        MissingExtraError: without mpi4py or an MPI library.
        ArgumentError: if mpiexec is of another MPI library, so that each process believes to be alone.
    """

    def __init__(self, world: Any = None) -> None:
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError):  # RuntimeError: there is mpi4py, but no MPI library
            raise common(MissingExtraError("mpi4py with an MPI library", "mpi", 'parallel="mpi"')) from None
        self._mpi = MPI
        self._comm = (MPI.COMM_WORLD if world is None else world).Dup()
        self.rank: int = self._comm.Get_rank()
        self.size: int = self._comm.Get_size()
        if self.size == 1 < launched()[1]:
            raise common(
                ArgumentError(
                    f"mpiexec has started {launched()[1]} processes, but mpi4py sees 1: they belong to different MPI "
                    f"libraries. mpi4py uses {MPI.Get_library_version().splitlines()[0]}; call the mpiexec of that one."
                )
            )
        self._machine = self._comm.Split_type(MPI.COMM_TYPE_SHARED)  # the ranks on this one
        self._nccl: _NCCL | None = None
        self._nccl_asked = False
        if self.size > 1:
            self._divide_cores()
            sys.excepthook = self._excepthook
            if self.rank:
                backend.log.setLevel("ERROR")

    def _divide_cores(self) -> None:
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(os.cpu_count() or 1)]
        sharing = self._machine.allgather(cores).count(cores)  # mpiexec may have bound each rank to cores of its own
        if not os.environ.get("XPCNN_THREADS") and backend.threads() == len(cores):
            backend.set_threads(max(1, len(cores) // sharing), int(os.environ.get("XPCNN_LANES") or 0))

    def _excepthook(self, kind: type[BaseException], error: BaseException, trace: Any) -> None:
        self.end_all(error)
        if not self.rank:
            sys.__excepthook__(kind, error, trace)

    def start_sum(self, array: Array) -> Pending:
        """See Communicator."""
        if self.size == 1:
            return Pending()
        if not isinstance(array, np.ndarray) and (nccl := self._nccl_of(array)) is not None:
            return nccl.start_sum(array)
        host = to_numpy(array)
        if host.dtype == np.float16:  # which MPI does not know
            host = host.astype(np.float32)
        request = self._comm.Iallreduce(self._mpi.IN_PLACE, host)

        def back() -> None:
            if host is not array:
                array[...] = to_device(host.astype(array.dtype, copy=False), device_of(array))

        return _Request(request, back)

    def gather(self, value: T) -> list[T]:
        """See Communicator."""
        own = np.frombuffer(pickle.dumps(value), np.uint8)
        sizes = np.empty(self.size, np.int64)
        _wait(self._comm.Iallgather(np.array([own.size]), sizes))
        whole = np.empty(int(sizes.sum()), np.uint8)
        _wait(self._comm.Iallgatherv(own, [whole, sizes]))
        return [pickle.loads(part.data) for part in np.split(whole, sizes.cumsum()[:-1])]

    def broadcast(self, value: T) -> T:
        """See Communicator."""
        own = np.frombuffer(b"" if self.rank else pickle.dumps(value), np.uint8).copy()
        size = np.array([own.size])
        _wait(self._comm.Ibcast(size))
        whole = np.empty(int(size[0]), np.uint8) if self.rank else own
        _wait(self._comm.Ibcast(whole))
        given: T = pickle.loads(whole.data) if self.rank else value
        return given

    def abort(self, code: int = 1) -> NoReturn:
        """See Communicator."""
        sys.stdout.flush()
        time.sleep(GRACE)
        self._mpi.COMM_WORLD.Abort(code)
        raise SystemExit(code)

    def place(self, device: str | Device) -> Device:
        """See Communicator; "auto" and "cuda" deal the GPUs of a machine out to the ranks on it."""
        place = Device(device)
        if place.kind == "cpu" or str(device) not in ("auto", "cuda"):
            return place
        return Device(f"cuda:{self._machine.Get_rank() % place.xp.cuda.runtime.getDeviceCount()}")

    def _nccl_of(self, array: Array) -> _NCCL | None:
        """Return NCCL for the device of an array; None if it cannot be used. All ranks ask at the same time."""
        if not self._nccl_asked:
            self._nccl_asked = True
            bindings, place = _nccl_bindings(array_module(array)), (platform.node(), device_of(array).index)
            asked = self.gather((bindings is not None, place))
            if all(there for there, _ in asked) and len({place for _, place in asked}) == self.size:
                key = self.broadcast(bindings.get_unique_id() if not self.rank else None)
                with device_of(array):
                    self._nccl = _NCCL(bindings, array_module(array), self.size, key, self.rank)
        return self._nccl


def _wait(request: Any) -> None:
    """Wait for MPI without taking a core from the ranks that are waited for, as request.Wait() would."""
    polls = 0
    while not request.Test():
        polls += 1
        if polls < POLLS:
            _yield()
        else:
            time.sleep(NAP)


class _Request(Pending):
    """A sum by MPI."""

    def __init__(self, request: Any, back: Callable[[], None]) -> None:
        self.request = request
        self.back = back

    def test(self) -> bool:
        return bool(self.request.Test())

    def wait(self) -> None:
        _wait(self.request)
        self.back()


def _nccl_bindings(xp: ModuleType) -> Any:
    """Return CuPy's bindings of NCCL, None without the library."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy's, that the library is missing: then there is another way
        bindings = importlib.import_module(f"{xp.__name__}.cuda.nccl")
    return bindings if bindings.available else None


class _NCCL:
    """Sums on GPUs by NCCL, on a stream of their own. Not run on GPUs yet.

    Args:
        nccl: CuPy's bindings.
        xp: cupy.
        size, key, rank: of the group; the key comes from rank 0.
    """

    def __init__(self, nccl: Any, xp: Any, size: int, key: Any, rank: int) -> None:
        self.nccl = nccl
        self.xp = xp
        self.group = nccl.NcclCommunicator(size, key, rank)
        self.stream = xp.cuda.Stream(non_blocking=True)

    def start_sum(self, array: Array) -> Pending:
        kinds = {"float16": "NCCL_FLOAT16", "float32": "NCCL_FLOAT32", "float64": "NCCL_FLOAT64", "int64": "NCCL_INT64"}
        kind, pointer = getattr(self.nccl, kinds[str(array.dtype)]), array.data.ptr
        with device_of(array):
            self.stream.wait_event(self.xp.cuda.get_current_stream().record())  # what is summed has been computed
            self.group.allReduce(pointer, pointer, array.size, kind, self.nccl.NCCL_SUM, self.stream.ptr)
            return _OnStream(self.xp, array, self.stream.record())


class _OnStream(Pending):
    """A sum on another stream; the host does not wait for it."""

    def __init__(self, xp: Any, array: Array, done: Any) -> None:
        self.xp = xp
        self.array = array  # not freed before
        self.done = done

    def wait(self) -> None:
        with device_of(self.array):
            self.xp.cuda.get_current_stream().wait_event(self.done)
