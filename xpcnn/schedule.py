"""Learning-rate schedules: a factor of the optimizer's own learning rate, as a function of time.

`schedule(t, total)` is the factor at time t of `total`. Time counts epochs or optimizer steps from 0, as
`schedule.every` says. Schedules are frozen dataclasses; anything with `every` and such a call will do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .errors import ArgumentError

__all__ = ["Constant", "Cosine", "Exponential", "LinearWarmup", "OneCycle", "Schedule", "StepDecay"]


@dataclass(frozen=True)
class Schedule:
    """Base class. `every` is "epoch" or "step"."""

    every: str = field(default="epoch", kw_only=True)

    def __post_init__(self) -> None:
        if self.every not in ("epoch", "step"):
            raise ArgumentError(f'every must be "epoch" or "step"; received {self.every!r}.')

    def __call__(self, t: int, total: int) -> float:
        """Return the factor at time t of total."""
        return 1.0


@dataclass(frozen=True)
class Constant(Schedule):
    """Always 1."""


@dataclass(frozen=True)
class StepDecay(Schedule):
    """Times `gamma` after each `size` epochs (or steps)."""

    size: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 1:
            raise ArgumentError(f"size of StepDecay must be at least 1; received {self.size!r}.")

    def __call__(self, t: int, total: int) -> float:
        """Return the factor at time t of total."""
        return self.gamma ** (t // self.size)


@dataclass(frozen=True)
class Exponential(Schedule):
    """Times `gamma` after each epoch (or step)."""

    gamma: float

    def __call__(self, t: int, total: int) -> float:
        """Return the factor at time t of total."""
        return float(self.gamma**t)


@dataclass(frozen=True)
class Cosine(Schedule):
    """From 1 down to `final` along half a cosine. Loshchilov and Hutter, "SGDR" (2017), without restarts."""

    final: float = 0.0

    def __call__(self, t: int, total: int) -> float:
        """Return the factor at time t of total."""
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * min(t / max(total, 1), 1.0)))


@dataclass(frozen=True)
class LinearWarmup(Schedule):
    """From 1 / length up to 1 over `length` epochs (or steps), then `after`, whose time begins there."""

    length: int
    after: Schedule = Constant()  # frozen, so it can be shared

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 1:
            raise ArgumentError(f"length of LinearWarmup must be at least 1; received {self.length!r}.")

    def __call__(self, t: int, total: int) -> float:
        """Return the factor at time t of total."""
        if t < self.length:
            return (t + 1) / self.length
        return self.after(t - self.length, max(total - self.length, 1))


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Up from 1 / start to 1 along a cosine in the first `rise` of the time, then down to 1 / (start * end).

    Smith and Topin, "Super-Convergence" (2018). The optimizer's learning rate is the peak. Counts steps by default.
    """

    rise: float = 0.3
    start: float = 25.0
    end: float = 1e4
    every: str = field(default="step", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.rise < 1.0 or self.start < 1.0 or self.end < 1.0:
            raise ArgumentError(
                "OneCycle expects rise between 0 and 1, start and end at least 1; "
                f"received rise={self.rise}, start={self.start}, end={self.end}."
            )

    def __call__(self, t: int, total: int) -> float:
        """Return the factor at time t of total."""
        low, bottom = 1.0 / self.start, 1.0 / (self.start * self.end)
        peak = max(self.rise * total - 1.0, 0.0)
        last = max(total - 1.0, peak + 1e-9)
        if t < peak:
            return low + (1.0 - low) * 0.5 * (1.0 - math.cos(math.pi * t / peak))
        return bottom + (1.0 - bottom) * 0.5 * (1.0 + math.cos(math.pi * min((t - peak) / (last - peak), 1.0)))
