"""Data-parallel training: several processes share every batch and add up their gradients while backward still runs.

Each process (MPI calls its number the rank) has the whole network and takes a contiguous share of every global batch.
The gradient of its share counts by what the share is of the batch, so the sum over the ranks is the gradient of the
whole batch, and every rank makes the same update. Gradients lie in one flat buffer in the order of the layers; backward
is done with its end first. The buffer is summed in a few buckets, each begun as soon as backward has left it (Li et
al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", 2020).

Notation: P ranks, N images of the global batch.
"""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import numpy as np

from ..backend import Array, device_of, to_device, to_numpy
from ..errors import XpcnnError
from ..layers import Layer, Sequential
from ..layers.base import Buffer, Train
from .communicator import Communicator, Pending, common, part_of
from .memory import flattened
from .sync_norm import synchronised

__all__ = ["Exchange"]

BUCKETS = 4


class Exchange:
    """Makes the gradients of a network those of all ranks: `body` is what goes forward and backward.

    `body` has the layers of the network and, before each that has parameters, a `Passed` that tells when backward has
    left it. Only layers of (nested) Sequentials are told apart: a network that is one layer is summed when it is done.

    Args:
        net: the network.
        body: the network itself, or the same layers in another form.
        ranks: all who take part.
        sync_batch_norm: whether batch norm uses the statistics of all ranks.
        buckets: into how many sums the gradients are cut.

    Attributes:
        images: how many images of the current piece of a batch are here, and how many on all ranks.
        pads: whether a rank without images takes one that counts nothing: in batch norm the others wait for it.
    """

    def __init__(
        self, net: Layer, body: Layer, ranks: Communicator, sync_batch_norm: bool = False, buckets: int = BUCKETS
    ) -> None:
        self.net = net
        self.ranks = ranks
        self.images = (0, 0)
        self.pads = sync_batch_norm
        layers, starts = self._layers(synchronised(body, self) if sync_batch_norm else body)
        self.body = Sequential(*layers)
        self.buckets = _cut(starts, net.flat().data.size, buckets)
        self._open = False
        self._left: list[slice] = []
        self._pending: list[Pending] = []

    def _layers(self, body: Layer) -> tuple[list[Layer], list[int]]:
        """Return the layers in order, a `Passed` before those with parameters, and where these begin in the buffer."""
        flat = self.net.flat()
        where = {id(p): start for p, start in zip(flat.parameters.values(), flat.starts, strict=False)}
        layers: list[Layer] = []
        starts: list[int] = []
        known: set[int] = set()
        for layer in flattened(body):
            own = {where[id(p)] for p in layer.parameters().values()}
            if own - known:  # a layer that came before is done when backward gets there
                starts.append(min(own - known))
                layers.append(Passed(self, starts[-1]))
            known |= own
            layers.append(layer)
        if starts != sorted(starts):  # the buffer has another order
            return list(flattened(body)), []
        return layers, starts

    def begin(self, batch: int, index: int, count: int, complete: bool) -> None:
        """Get ready for piece `index` of `count`, into which every rank cuts its share of a batch of so many images.

        `complete` says that this batch is the last before an update.
        """
        least, more = divmod(batch, self.ranks.size)  # images of a rank; so many ranks have one more
        of = [stop - start for start, stop in (part_of(n, index, count) for n in (least, least + 1))]
        first, last = self.ranks.share(batch)
        self.images = (of[last - first - least], (self.ranks.size - more) * of[0] + more * of[1])
        if complete and index == count - 1:
            self._open, self._left = True, list(self.buckets)

    def passed(self, start: int) -> None:
        """Begin the sums of all buckets from `start` of the buffer on, whose gradients are complete."""
        if not self._open:
            return
        flat = self.net.flat()
        while self._left and self._left[-1].start >= start:
            bucket = self._left.pop()
            inside = (
                p
                for p, at in zip(flat.parameters.values(), flat.starts, strict=False)
                if bucket.start <= at < bucket.stop
            )
            if any(p.trainable for p in inside):
                self._pending.append(self.ranks.start_sum(flat.grad[bucket]))
        for pending in self._pending:
            pending.test()

    def finish(self) -> None:
        """Return when the gradients are those of all ranks."""
        self.passed(0)
        for pending in self._pending:
            pending.wait()
        self._pending.clear()
        self._open = False

    def spread(self) -> None:
        """Give all ranks the weights and running statistics of rank 0."""
        own = self.net.state_dict()
        given = self.ranks.broadcast({} if self.ranks.rank else {name: to_numpy(a) for name, a in own.items()})
        if self.ranks.rank:
            self.net.load_state_dict(given)

    def level(self) -> None:
        """Replace running statistics by their mean over the ranks; what is equal everywhere stays so to the bit."""
        buffers = [v for _, layer in self.net.walk() for v in vars(layer).values() if isinstance(v, Buffer)]
        if not buffers:
            return
        mine = np.concatenate([to_numpy(buffer.data).ravel() for buffer in buffers])
        first = self.ranks.broadcast(mine)
        difference = mine - first
        self.ranks.sum(difference)
        mean = first + difference / self.ranks.size
        for buffer in buffers:
            part, mean = mean[: buffer.data.size], mean[buffer.data.size :]
            part = part.reshape(buffer.data.shape).astype(buffer.data.dtype, copy=False)
            buffer.data[...] = to_device(part, device_of(buffer.data))

    def check(self, where: str) -> None:
        """Raise on all ranks unless they have the same weights.

        Raises:
            XpcnnError: naming a rank whose weights differ from those of rank 0.
        """
        weights = to_numpy(self.net.flat().data)
        found = self.ranks.gather(hashlib.blake2b(weights.view(np.uint8).data, digest_size=16).digest())
        other = next((rank for rank, digest in enumerate(found) if digest != found[0]), None)
        if other is not None:
            raise common(
                XpcnnError(
                    f"after {where} the weights of rank {other} are not those of rank 0: something changes them on "
                    "some ranks only. Look for a callback that does, or random numbers that differ from rank to rank."
                )
            )


def _cut(starts: list[int], total: int, pieces: int) -> list[slice]:
    """Cut range(total) at some of `starts` into about `pieces` equal parts."""
    cuts = {0}
    for i in range(1, pieces):
        cuts |= {min(starts, key=lambda start: abs(start - i * total / pieces), default=0)}
    return [slice(first, last) for first, last in itertools.pairwise([*sorted(cuts), total]) if first < last]


class Passed(Layer):
    """The identity; tells the exchange that backward has left all layers behind it."""

    def __init__(self, exchange: Exchange, start: int) -> None:
        self.exchange = exchange
        self.start = start

    def forward(self, x: Array, train: Train) -> tuple[Array, Any]:
        """See Layer."""
        return x, ()

    def backward(self, dy: Array, ctx: Any, need_dx: bool = True) -> Array | None:
        """See Layer."""
        self.exchange.passed(self.start)
        return dy if need_dx else None
