"""Counters of device calls, and the log of launches, copies and waits."""

from __future__ import annotations

from typing import Any

from cudasim import library


def counters() -> dict[str, int]:
    """Return the calls of this process so far, by name."""
    lib = library.get()
    return {
        lib.cudasim_counter_name(k).decode(): lib.cudasim_counter_value(k) for k in range(lib.cudasim_counter_count())
    }


def reset() -> None:
    """Set all counters to zero."""
    library.get().cudasim_counter_reset()


def instructions() -> int:
    """Return the thread-instructions run so far: a measure of kernel work that is the same in each run."""
    return library.get().cudasim_instructions()


class count:
    """Count what happens inside a `with`: c["d2h"], c.as_dict(), and c.log if asked for.

    It counts the whole process, all threads together. Blocks may be nested.
    """

    def __init__(self, log: bool = False) -> None:
        self._wants_log = log
        self.log: list[str] = []
        self._counts: dict[str, int] | None = None

    def __enter__(self) -> count:
        if self._wants_log:
            self._first_line = library.get().cudasim_log_start()
        self._before = counters()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._counts = self._since()
        if self._wants_log:
            lib = library.get()
            self.log = [lib.cudasim_log_get(k).decode() for k in range(self._first_line, lib.cudasim_log_size())]
            lib.cudasim_log_end()

    def _since(self) -> dict[str, int]:
        return {name: value - self._before[name] for name, value in counters().items()}

    def __getitem__(self, name: str) -> int:
        return self.as_dict()[name]

    def as_dict(self) -> dict[str, int]:
        """Return all counts; inside the `with`, those up to now."""
        return dict(self._since() if self._counts is None else self._counts)
