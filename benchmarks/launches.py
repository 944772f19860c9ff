"""What one training step asks of the GPU: kernel launches, copies and waits, counted on the simulated device.

    ci/cudasim/with-cuda-sim python benchmarks/launches.py [--batch 2] [--mixed] [--only NAME]

The counts do not depend on the machine or, but for very large batches, on the batch size. The first steps, which
compile kernels and make workspaces, are not counted. "generic" is what the array operations of the generic bodies would
launch without the kernels of xpcnn/functional/fused.py.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from xpcnn import SGD, Adagrad, Adam, LossScale, Step, batch_last, softmax_cross_entropy
from xpcnn.backend import Uploader
from xpcnn.functional import fused
from xpcnn.inspection.bench import densenet40, resnet18, vgg16_bn
from xpcnn.zoo import keras_style, lenet, mri, simple_convnet

SGD_MOMENTUM = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
WORKLOADS = {
    "A  mri, Adam": (mri, (1, 200, 200), lambda: Adam(1e-3)),
    "B  lenet, SGD": (lenet, (1, 28, 28), lambda: SGD(0.005, weight_decay=1e-4)),
    "D  simple_convnet, Adam": (simple_convnet, (1, 28, 28), lambda: Adam(1e-3)),
    "E  keras_style, Adagrad": (keras_style, (1, 28, 28), lambda: Adagrad(1e-2)),
    "VGG16-BN, momentum": (vgg16_bn, (3, 32, 32), lambda: SGD(**SGD_MOMENTUM)),
    "ResNet-18, momentum": (resnet18, (3, 32, 32), lambda: SGD(**SGD_MOMENTUM)),
    "DenseNet-BC-40, momentum": (densenet40, (3, 32, 32), lambda: SGD(**SGD_MOMENTUM)),
}
COLUMNS = {
    "gemms": ("gemm",),
    "memsets": ("memset",),
    "to device": ("h2d",),
    "to host": ("d2h",),
    "on device": ("d2d",),
    "waits": ("device_sync", "stream_sync", "event_sync"),
    "mallocs": ("malloc",),
}


def stepper(
    make: Callable[[], Any], shape: tuple[int, ...], optimizer: Any, mixed: bool
) -> Callable[[np.ndarray, np.ndarray, int], None]:
    """Return a function that does one training step with host arrays: images, labels, number of the step."""
    net, scale = make(), LossScale() if mixed else None
    net.build(shape, device="cuda:0")
    uploader = Uploader("cuda:0")

    def step(images: np.ndarray, labels: np.ndarray, number: int) -> None:
        x, t = uploader.put(images, labels)
        x = batch_last(x) if scale is None else batch_last(x).astype("float16")
        outputs, ctx = net.forward(x, Step(0, number, need_dx=False))
        _, dlogits = softmax_cross_entropy(outputs.astype("float32", copy=False), t)
        net.backward(dlogits if scale is None else scale.apply(dlogits, "float16"), ctx, need_dx=False)
        optimizer.step(net, scale=scale)

    return step


def count_step(
    make: Callable[[], Any], shape: tuple[int, ...], optimizer: Callable[[], Any], batch: int, mixed: bool
) -> dict[str, int]:
    """Return the counters of the third training step."""
    import cudasim

    rng = np.random.default_rng(0)
    step = stepper(make, shape, optimizer(), mixed)
    for number in range(3):
        images, labels = rng.random((batch, *shape), dtype=np.float32), rng.integers(0, 4, batch)
        with cudasim.count() as counts:
            step(images, labels, number)
    found: dict[str, int] = counts.as_dict()
    return found


def needs_simulator() -> None:
    """Leave with a hint unless CuPy runs on the simulated device."""
    with contextlib.suppress(ImportError):
        import cupy  # noqa: F401  (under with-cuda-sim this switches the simulator on)
    if "cudasim" not in sys.modules:
        sys.exit(f"this is counted on the simulated device: ci/cudasim/with-cuda-sim python {sys.argv[0]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--mixed", action="store_true", help="float16 arithmetic with a loss scale")
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    arguments = parser.parse_args()
    needs_simulator()
    print(f"one training step, batch {arguments.batch}{', mixed precision' if arguments.mixed else ''}")
    print(f"{'':26}{'kernels':>11}{'generic':>11}" + "".join(f"{name:>11}" for name in COLUMNS))
    for name, workload in WORKLOADS.items():
        if arguments.only.lower() not in name.lower():
            continue
        counts = count_step(*workload, arguments.batch, arguments.mixed)
        with fused.disabled():
            generic = count_step(*workload, arguments.batch, arguments.mixed)["kernel_launch"]
        row = [counts["kernel_launch"], generic, *(sum(counts[k] for k in keys) for keys in COLUMNS.values())]
        print(f"{name:26}" + "".join(f"{number:11,}" for number in row), flush=True)


if __name__ == "__main__":
    main()
