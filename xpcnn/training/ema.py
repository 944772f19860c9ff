"""`EMA`: a moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..backend import Array, array_module, for_rows, workspace
from ..errors import ArgumentError
from ..optim import FlatState

__all__ = ["EMA"]


class EMA:
    """Exponential moving average of the weights: average = decay * average + (1 - decay) * weights.

    `update(net)` after each step; inside `with ema.swap(net):` the network has the averaged weights. Polyak and
    Juditsky (1992).
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0.0 <= decay < 1.0:
            raise ArgumentError(f"decay of EMA must be at least 0.0 and below 1.0; received {decay!r}.")
        self.decay = decay
        self._memory = FlatState(("average",))

    def update(self, net: Any) -> None:
        """Take the network's present weights into the average; the first time they are the average."""
        flat = net.flat()
        self._memory.attach(flat, flat.data)
        average, weights, weight = self._memory.arrays["average"], flat.data, 1.0 - self.decay
        xp = array_module(weights)

        def work(rows: slice) -> None:
            step = xp.subtract(
                weights[rows], average[rows], out=workspace(xp, "average", weights[rows].shape, weights.dtype)
            )
            step *= weight
            average[rows] += step

        for_rows(average, work, 4)

    @contextmanager
    def swap(self, net: Any) -> Iterator[None]:
        """Lend the network the averaged weights."""
        flat = net.flat()
        self._memory.attach(flat, flat.data)
        own = flat.data.copy()
        flat.data[...] = self._memory.arrays["average"]
        try:
            yield
        finally:
            flat.data[...] = own

    def state_dict(self) -> dict[str, Array]:
        """Return the average as "average/parameter name"; empty before the first update."""
        return self._memory.state_dict()

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Take the average of another run."""
        self._memory.load(state, "EMA")
