"""Requests of the same moment become one forward pass.

One thread takes images from a queue, at most `most` at a time, and hands each result to the one who asked. It waits a
moment for company before it begins; while it computes, the next images gather by themselves.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

import numpy as np

__all__ = ["Batcher", "QueueFullError"]


class QueueFullError(Exception):
    """So many images are waiting that one more would wait too long."""


class Batcher:
    """A queue and the thread that empties it.

    Args:
        run: takes 1 to `most` images and returns one result for each, in their order. Only this thread calls it.
        most: images in one call of `run`.
        wait: seconds to wait for more images after the first has come.
        limit: images that may be waiting.
    """

    def __init__(
        self, run: Callable[[list[np.ndarray]], Iterable[Any]], most: int, wait: float = 0.002, limit: int = 64
    ) -> None:
        self.run = run
        self.most, self.wait, self.limit = most, wait, limit
        self._waiting: deque[tuple[np.ndarray, Future[Any]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="xpcnn-serve-batches", daemon=True)
        self._thread.start()

    def submit(self, image: np.ndarray) -> Future[Any]:
        """Queue an image; the future gets its result, or the error of the pass it was in. It may be cancelled.

        Raises:
            QueueFullError: if `limit` images are waiting, or the queue is closed.
        """
        future: Future[Any] = Future()
        with self._changed:
            if self._closed or len(self._waiting) >= self.limit:
                raise QueueFullError
            self._waiting.append((image, future))
            self._changed.notify()
        return future

    @property
    def waiting(self) -> int:
        """How many images wait for their pass."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether images are taken and computed."""
        return self._thread.is_alive() and not self._closed

    def close(self) -> None:
        """Take no more images, compute those that wait, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while (jobs := self._next()) is not None:
            if not jobs:
                continue
            try:
                results = self.run([image for image, _ in jobs])
                answers = list(zip(jobs, results, strict=True))  # an answer too few must not reach anybody
            except BaseException as error:
                for _, future in jobs:
                    future.set_exception(error)
            else:
                for (_, future), result in answers:
                    future.set_result(result)
            del jobs  # or the last pass's images would stay until the next

    def _next(self) -> list[tuple[np.ndarray, Future[Any]]] | None:
        """Wait for images and take them, without those nobody waits for any more; None when it is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return None
            end = time.monotonic() + self.wait
            while len(self._waiting) < self.most and not self._closed and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
            jobs: list[tuple[np.ndarray, Future[Any]]] = []
            while self._waiting and len(jobs) < self.most:
                job = self._waiting.popleft()
                if job[1].set_running_or_notify_cancel():
                    jobs.append(job)
            return jobs
