"""How fast the interpreter is. Usage: ./with-cuda-sim python examples/bench.py"""

import time

start = time.time()
import cudasim
import cupy as cp

print(f"install and import cupy {time.time() - start:.2f} s")


def measure(name, function):
    function()
    instructions, start = cudasim.instructions(), time.time()
    function()
    seconds, instructions = time.time() - start, cudasim.instructions() - instructions
    print(
        f"{name:28s} {seconds * 1e3:.1f} ms  {instructions / 1e6:.1f} M thread-instructions  "
        f"{instructions / seconds / 1e6:.0f} M/s"
    )


x = cp.random.rand(32, 8, 26, 26).astype("f4")
n, c, h, w = x.strides
windows = cp.lib.stride_tricks.as_strided(x, (32, 24, 24, 8, 3, 3), (n, h, w, c, h, w))
columns = cp.random.rand(18432, 72).astype("f4")
weight = cp.random.rand(72, 16).astype("f4")
keys = cp.random.rand(10000).astype("f4")

measure("relu 173k", lambda: cp.maximum(x, 0))
measure("exp 173k", lambda: cp.exp(x))
measure("sum all 173k", lambda: x.sum())
measure("sum axis (0, 2, 3)", lambda: x.sum(axis=(0, 2, 3)))
measure("max axis 1", lambda: x.reshape(-1, 4).max(axis=1))
measure("im2col copy 1.3M", lambda: cp.ascontiguousarray(windows))
measure("matmul 18432x72x16", lambda: columns @ weight)
measure("1000 small launches", lambda: [weight + 1 for _ in range(1000)])
measure("sort 10k (thrust)", lambda: cp.sort(keys))
