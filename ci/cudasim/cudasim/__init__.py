"""cudasim: run an unmodified CuPy wheel on a machine without a GPU.

Call install() before cupy is imported, or run under with-cuda-sim, which does so.
"""

from __future__ import annotations

from cudasim.counting import count, counters, instructions, reset
from cudasim.patching import check_embedded, clear_error, install, is_active, last_error, race_check, strict_memory

__all__ = [
    "check_embedded",
    "clear_error",
    "count",
    "counters",
    "install",
    "instructions",
    "is_active",
    "last_error",
    "race_check",
    "reset",
    "strict_memory",
]
