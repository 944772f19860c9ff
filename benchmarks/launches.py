"""What one training step asks of the GPU: kernel launches, copies and waits, counted on the simulated device.

    ci/cudasim/with-cuda-sim python benchmarks/launches.py [batch size]

The counts do not depend on the machine. The first steps, which compile kernels and make workspaces, are not counted.
"""

from __future__ import annotations

import contextlib
import sys

import numpy as np

from xpcnn import SGD, Adagrad, Adam, Step, batch_last, softmax_cross_entropy
from xpcnn.backend import Uploader
from xpcnn.zoo import keras_style, lenet, mri, simple_convnet

WORKLOADS = {
    "A  mri, Adam": (mri, (1, 200, 200), Adam(1e-3)),
    "B  lenet, SGD": (lenet, (1, 28, 28), SGD(0.005, weight_decay=1e-4)),
    "D  simple_convnet, Adam": (simple_convnet, (1, 28, 28), Adam(1e-3)),
    "E  keras_style, Adagrad": (keras_style, (1, 28, 28), Adagrad(1e-2)),
}
COLUMNS = {
    "kernels": ("kernel_launch",),
    "gemms": ("gemm",),
    "memsets": ("memset",),
    "to device": ("h2d",),
    "to host": ("d2h",),
    "on device": ("d2d",),
    "waits": ("device_sync", "stream_sync", "event_sync"),
    "mallocs": ("malloc",),
}


def count_step(make, shape, optimizer, batch):
    """Return the counters of the third training step."""
    import cudasim

    rng = np.random.default_rng(0)
    net = make()
    (classes,) = net.build(shape, device="cuda:0")
    uploader = Uploader("cuda:0")
    for number in range(3):
        images = rng.random((batch, *shape), dtype=np.float32)
        labels = rng.integers(0, classes, batch)
        with cudasim.count() as counts:
            x, t = uploader.put(images, labels)
            logits, ctx = net.forward(batch_last(x), Step(0, number, need_dx=False))
            _, dlogits = softmax_cross_entropy(logits, t)
            net.backward(dlogits, ctx, need_dx=False)
            optimizer.step(net)
    return counts.as_dict()


def main() -> None:
    with contextlib.suppress(ImportError):
        import cupy  # noqa: F401  (under with-cuda-sim this switches the simulator on)
    if "cudasim" not in sys.modules:
        sys.exit("launches are counted on the simulated device: ci/cudasim/with-cuda-sim python benchmarks/launches.py")
    batch = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    print(f"one training step, batch {batch}")
    print(f"{'':26}" + "".join(f"{name:>11}" for name in COLUMNS))
    for name, workload in WORKLOADS.items():
        counts = count_step(*workload, batch)
        print(f"{name:26}" + "".join(f"{sum(counts[k] for k in keys):11,}" for keys in COLUMNS.values()))


if __name__ == "__main__":
    main()
