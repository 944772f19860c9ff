"""Batches of a data set, in an order that depends on (seed, epoch) alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import cast

import numpy as np

from .. import backend
from ..errors import ArgumentError, DataError
from .datasets import Dataset, check_labels, gather, stack
from .transforms import Transform, by_kind
from .uploader import Uploader

__all__ = ["Loader"]

Batch = tuple[backend.Array, backend.Array]


class Loader:
    """Gives batches (x (N, C, H, W), t (N,)) of a data set.

    Args:
        dataset: any data set.
        batch_size: N; the last batch of an epoch may be smaller.
        shuffle: a new order every epoch; False keeps the order of the data set.
        seed: the order depends on (seed, epoch), the randomness of a sample's transform on (seed, epoch, sample):
            neither on the number of workers nor on where an epoch is begun.
        transform: `f(image, rng) -> image`, a batch transform such as `Mixup`, or a `Compose` of both.
        workers: threads that prepare batches ahead; 0 prepares each batch when it is asked for.
        device: where the batches go. On a GPU the next batch is copied there while the current one is worked on.
        drop_last: leave out a last batch that is not full.
        prefetch: how many batches are prepared ahead (with workers; at least one for each).
        share: f(N) -> (first, last), which images of a batch to give, where several processes share it. The labels are
            those of the whole batch. Randomness does not depend on it; a batch transform sees the whole batch.

    Images are uint8, which the network divides by 255, or float32. Labels are int64, or float32 (N, K) from a batch
    transform.

    `for x, t in loader` runs epoch 0 the first time, epoch 1 the second time and so on; `loader.epoch(e)` runs a chosen
    one.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        transform: Transform | None = None,
        workers: int = 0,
        device: str | backend.Device = "cpu",
        drop_last: bool = False,
        prefetch: int = 2,
        share: Callable[[int], tuple[int, int]] | None = None,
    ) -> None:
        options = (("batch_size", batch_size, 1), ("seed", seed, 0), ("workers", workers, 0), ("prefetch", prefetch, 1))
        for name, value, least in options:
            if not isinstance(value, (int, np.integer)) or value < least:
                raise ArgumentError(f"{name} must be an int of at least {least}; received {value!r}.")
        if transform is not None and not callable(transform):
            raise ArgumentError(f"transform must be callable as f(image, rng); received {transform!r}.")
        self.labels = check_labels(dataset.labels, len(dataset), len(dataset.classes))
        if drop_last and batch_size > len(dataset):
            raise DataError(
                f"batch_size {batch_size} with drop_last=True leaves no batch of {len(dataset)} images. "
                "Lower batch_size or use drop_last=False."
            )
        self.dataset = dataset
        self.batch_size = int(batch_size)
        self.shuffle = shuffle
        self.seed = seed
        self.transform = transform
        self.workers = int(workers)
        self.device = backend.Device(device)
        self.drop_last = drop_last
        self.prefetch = int(prefetch)
        self.share = share
        self._per_image, self._per_batch = by_kind(transform)
        self._uploader = Uploader(self.device)
        self._next_epoch = 0

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        epoch = self._next_epoch
        self._next_epoch += 1
        return self.epoch(epoch)

    def order(self, epoch: int) -> np.ndarray:
        """Return the sample indices of an epoch, int64 (number of samples,), in the order they are used."""
        if not self.shuffle:
            return np.arange(len(self.dataset))
        return backend.generator(self.seed, "order", epoch).permutation(len(self.dataset))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Return an iterator over the batches of one epoch, beginning with batch `start`.

        Closing the iterator, or dropping it, ends its threads. An error while a batch is prepared is raised when that
        batch is asked for, whichever thread it happened in.
        """
        if epoch < 0 or not 0 <= start <= len(self):
            raise ArgumentError(
                f"epoch must be at least 0 and start in 0..{len(self)}; received epoch {epoch}, start {start}."
            )
        return self._run(epoch, start)

    def _run(self, epoch: int, start: int) -> Iterator[Batch]:
        order = self.order(epoch)
        prepared = (self._threaded if self.workers else self._inline)(order, epoch, start)
        try:
            if self.device.kind == "cpu":
                yield from prepared
                return
            ahead: Callable[[], tuple[backend.Array, ...]] | None = None
            for x, t in prepared:
                following = self._uploader.send(x, t)
                if ahead is not None:
                    yield cast(Batch, ahead())
                ahead = following
            if ahead is not None:
                yield cast(Batch, ahead())
        finally:
            prepared.close()

    def _inline(self, order: np.ndarray, epoch: int, start: int) -> Generator[Batch, None, None]:
        for number in range(start, len(self)):
            yield self._prepare(order, epoch, number)

    def _threaded(self, order: np.ndarray, epoch: int, start: int) -> Generator[Batch, None, None]:
        numbers = iter(range(start, len(self)))
        waiting: deque[Future[Batch]] = deque()
        pool = ThreadPoolExecutor(self.workers, "xpcnn-loader")
        try:
            for number in numbers:
                waiting.append(pool.submit(self._prepare, order, epoch, number))
                if len(waiting) > max(self.workers, self.prefetch):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, order: np.ndarray, epoch: int, number: int) -> Batch:
        """Return one batch in host memory."""
        chosen = order[number * self.batch_size : (number + 1) * self.batch_size]
        t = self.labels[chosen]
        own = slice(*((0, len(chosen)) if self.share is None else self.share(len(chosen))))
        if not self._per_batch:
            chosen, own = chosen[own], slice(None)
        if not len(chosen):
            return np.zeros((0, *self.dataset.shape), np.uint8), t
        x = gather(self.dataset, chosen)
        if x.shape[1:] != tuple(self.dataset.shape):
            raise DataError(
                f"the data set says that its images have shape {tuple(self.dataset.shape)}; it gives {x.shape[1:]} for "
                f"sample {chosen[0]}. Images are (C, H, W), all of one size."
            )
        if self._per_image:
            x = stack([self._augment(image, epoch, int(i)) for image, i in zip(x, chosen, strict=True)], chosen)
        random = backend.generator(self.seed, "batch", epoch, number) if self._per_batch else None
        for transform in self._per_batch:
            x, t = transform(x, t, random)
        if x.dtype != np.uint8 and x.dtype.kind != "f":
            who = "the data set gives" if not (self._per_image or self._per_batch) else "the transform gives"
            raise DataError(
                f"images must be uint8 (0..255, divided by 255 in the network) or floats; {who} {x.dtype}. "
                "Use image.astype(np.uint8) or image.astype(np.float32)."
            )
        return x[own], t

    def _augment(self, image: np.ndarray, epoch: int, index: int) -> np.ndarray:
        random = backend.generator(self.seed, "augment", epoch, index)
        for transform in self._per_image:
            image = transform(image, random)
        return image
