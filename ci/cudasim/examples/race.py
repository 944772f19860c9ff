"""Two ordering bugs that CUDASIM_ASYNC=1 shows. Usage: CUDASIM_ASYNC=1 ./with-cuda-sim python examples/race.py"""

import cupy as cp
import numpy as np

n = 1000
pinned = np.frombuffer(cp.cuda.alloc_pinned_memory(4 * n), "f4", n)
stream = cp.cuda.Stream(non_blocking=True)
x = cp.zeros(n, "f4")
cp.cuda.Device().synchronize()

pinned[:] = 1
x.set(pinned, stream=stream)
pinned[:] = 5  # bug: the pinned buffer is overwritten before the copy is known to have finished
stream.synchronize()
print("overwritten too early ->", x[:3].get())

pinned[:] = 1
x.set(pinned, stream=stream)
stream.record().synchronize()
pinned[:] = 5
print("with a wait ->", x[:3].get())

with stream:
    y = x * 3
z = y + 1  # bug: the default stream does not wait for the non-blocking one
print("wait_event missing ->", z[:3].get())

with stream:
    y = x * 3
cp.cuda.Stream.null.wait_event(stream.record())
z = y + 1
print("with wait_event ->", z[:3].get())
