"""Loads every kernel that CuPy's compiled modules carry. Usage: ./with-cuda-sim python examples/check_embedded.py"""

import ctypes
import time

import cudasim
import cupy  # noqa: F401  (its modules register their kernels)

start, count = time.time(), ctypes.c_int()
broken = cudasim._lib.cudasim_check_embedded(ctypes.byref(count))
print(f"{broken} of {count.value} embedded kernels cannot run ({time.time() - start:.1f} s)")
