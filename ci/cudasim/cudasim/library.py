"""libcudasim.so: where it is, and the types of its functions."""

from __future__ import annotations

import ctypes
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "lib"
# CuPy opens these by name; loaded before, they are found in place of the real ones
REPLACED = ("libcuda.so.1", "libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10")

_RESULTS = {
    "cudasim_counter_name": ctypes.c_char_p,
    "cudasim_counter_value": ctypes.c_uint64,
    "cudasim_instructions": ctypes.c_uint64,
    "cudasim_log_get": ctypes.c_char_p,
    "cudasim_last_message": ctypes.c_char_p,
}
_loaded: list[ctypes.CDLL] = []  # the first is libcudasim.so; all stay loaded


def load() -> None:
    """Load the simulator and the libraries that it replaces."""
    for name in ("libcudasim.so", *REPLACED):
        if not (FOLDER / name).exists():
            raise RuntimeError(f"{FOLDER / name} is missing; build it: {FOLDER.parent.parent / 'build.sh'} PYTHON")
        _loaded.append(ctypes.CDLL(str(FOLDER / name), mode=ctypes.DEFAULT_MODE))
    for name, result in _RESULTS.items():
        getattr(_loaded[0], name).restype = result
    _loaded[0].cudasim_patch.argtypes = [ctypes.c_char_p, ctypes.c_uint64]


def is_loaded() -> bool:
    return bool(_loaded)


def get() -> ctypes.CDLL:
    """Return libcudasim.so."""
    if not _loaded:
        raise RuntimeError("cudasim is not installed in this process: call cudasim.install() before cupy is imported")
    return _loaded[0]
