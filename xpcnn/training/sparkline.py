"""A curve as a line of text: ▇▅▃▂▁."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["Trend", "sparkline"]

BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float]) -> str:
    """Return one character a value, from the lowest to the highest; what is not finite is a blank."""
    finite = [value for value in values if math.isfinite(value)]
    low = min(finite, default=0.0)
    step = (max(finite, default=0.0) - low) / (len(BLOCKS) - 1) or 1.0
    return "".join(BLOCKS[round((value - low) / step)] if math.isfinite(value) else " " for value in values)


class Trend:
    """A curve that goes on for ever in bounded space: when it is full, neighbours are averaged in pairs.

    Args:
        width: most values it shows.
    """

    def __init__(self, width: int = 24) -> None:
        self.width = width
        self.values: list[float] = []
        self._each = 1  # readings in a value
        self._waiting: list[float] = []

    def add(self, value: float) -> None:
        """Append a reading."""
        self._waiting.append(value)
        if len(self._waiting) == self._each:
            self.values.append(sum(self._waiting) / self._each)
            self._waiting = []
        if len(self.values) > self.width:
            last = self.values[-1:] if len(self.values) % 2 else []
            pairs = zip(self.values[::2], self.values[1::2], strict=False)
            self.values = [(first + second) / 2 for first, second in pairs]
            self._waiting = last * self._each
            self._each *= 2

    def __str__(self) -> str:
        return sparkline(self.values)
