"""Batches on their way to the device: copied while the device computes."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..backend import Array, Device

SLOTS = 3  # batches under way at once


class Uploader:
    """Sends host arrays to a device without making anybody wait.

    On a GPU an array is copied into pinned memory, then asynchronously to the device on a stream of its own; the
    stream that computes waits for the copy by an event, the host does not. A ring of `slots` pinned buffers lets that
    many batches be under way. On the CPU `put` returns the arrays as they are.
    """

    def __init__(self, device: str | Device, slots: int = SLOTS) -> None:
        self.device = Device(device)
        self._ring: deque[_Slot] = deque()
        self._slots = slots
        if self.device.kind == "cuda":
            with self.device:
                self._stream = self.device.xp.cuda.Stream(non_blocking=True)

    def put(self, *arrays: np.ndarray) -> tuple[Array, ...]:
        """Return the arrays on the device, ready for work on the current stream."""
        return self.send(*arrays)()

    def send(self, *arrays: np.ndarray) -> Callable[[], tuple[Array, ...]]:
        """Start the copy; the function returned gives the arrays and makes the current stream wait for them.

        Work queued between the two runs at the same time as the copy.
        """
        if self.device.kind == "cpu":
            return lambda: arrays
        cupy: Any = self.device.xp
        with self.device:
            slot = self._ring.popleft() if len(self._ring) == self._slots else _Slot(cupy)
            slot.wait()
            compute = cupy.cuda.get_current_stream()
            # The pool may hand out memory whose last reader is still running on the compute stream.
            self._stream.wait_event(compute.record())
            results = []
            for array, staged in zip(arrays, slot.stage(arrays), strict=True):
                result = cupy.empty(array.shape, array.dtype)
                result.data.copy_from_host_async(staged.ctypes.data, array.nbytes, self._stream)
                results.append(result)
            slot.event = self._stream.record()
            done, slot.arrays = slot.event, results  # not freed while the copy may be under way
            self._ring.append(slot)

        def take() -> tuple[Array, ...]:
            with self.device:
                cupy.cuda.get_current_stream().wait_event(done)
            return tuple(results)

        return take


class _Slot:
    """A pinned buffer and the event that says its copy is done."""

    def __init__(self, cupy: Any) -> None:
        self.cupy = cupy
        self.event: Any = None
        self.arrays: list[Array] = []
        self.memory: Any = None
        self.size = 0

    def wait(self) -> None:
        """Wait until the buffer may be overwritten: no wait at all unless the device is several batches behind."""
        if self.event is not None and not self.event.done:
            self.event.synchronize()

    def stage(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        starts = list(itertools.accumulate((-(-a.nbytes // 256) * 256 for a in arrays), initial=0))
        if starts[-1] > self.size:
            self.size = starts[-1]
            self.memory = self.cupy.cuda.alloc_pinned_memory(self.size)
        staged = []
        for array, start in zip(arrays, starts, strict=False):
            view = np.frombuffer(self.memory, array.dtype, array.size, offset=start).reshape(array.shape)
            np.copyto(view, array)
            staged.append(view)
        return staged
