"""Training steps on CuPy: nothing waits for the device, nothing is copied but the batch, and NumPy agrees.

No memory is taken from the driver once the pool is warm, and the next batch is copied while a step computes.

The counts come from ci/cudasim; with CUDASIM_ASYNC=1 the simulated device also does nothing before something waits for
it, so that a missing wait or a pinned buffer that is overwritten too early changes the numbers.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tolerances import assert_close

from xpcnn import (
    SGD,
    Adagrad,
    Adam,
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    Dense,
    GlobalAvgPool2d,
    LossScale,
    ReLU,
    Residual,
    Sequential,
    Step,
    batch_last,
    softmax_cross_entropy,
)
from xpcnn.backend import memory_info
from xpcnn.data import ArrayDataset, Loader
from xpcnn.data.uploader import Uploader
from xpcnn.zoo import keras_style, mri, simple_convnet

ROOT = Path(__file__).parent.parent


def residual():
    body = Sequential(Conv2d(8, 3, stride=2, padding=1, bias=False), BatchNorm2d(), ReLU(), Conv2d(8, 1), BatchNorm2d())
    shortcut = Sequential(Conv2d(8, 1, stride=2, bias=False), BatchNorm2d())
    head = AvgPool2d(2), GlobalAvgPool2d(), Dense(4)
    return Sequential(Conv2d(4, 3, padding=1), ReLU(), Residual(body, shortcut, ReLU()), *head)


# system: network, input shape, optimizer
SYSTEMS = {
    "A": (lambda: mri(width=64), (1, 200, 200), lambda: Adam(1e-3)),  # the simulator is slow: 64 instead of 512
    "D": (simple_convnet, (1, 28, 28), lambda: Adam(1e-3)),
    "E": (keras_style, (1, 28, 28), lambda: Adagrad(1e-3)),
    "residual": (residual, (3, 16, 16), lambda: SGD(1e-2, momentum=0.9, weight_decay=1e-4, clip_norm=1.0)),
}
SMALL = {"A": (1, 24, 24), "D": (1, 14, 14), "E": (1, 14, 14), "residual": (3, 8, 8)}
# kernels that a step launches; generic bodies would launch two to four times as many
LAUNCHES = {"A": 48, "D": 24, "E": 36, "residual": 77}
WAITS = ("d2h", "device_sync", "stream_sync", "event_sync")


def train_step(net, optimizer, images, labels, number, scale=None):
    """One step by hand, with a loss scale in mixed precision; returns the loss, which stays on the device."""
    x = batch_last(images) if scale is None else batch_last(images).astype("float16")
    outputs, ctx = net.forward(x, Step(seed=0, number=number, need_dx=False))
    loss, dlogits = softmax_cross_entropy(outputs.astype("float32", copy=False), labels)
    net.backward(dlogits if scale is None else scale.apply(dlogits, x.dtype), ctx, need_dx=False)
    optimizer.step(net, scale=scale)
    return loss


def batch(rng, shape, size):
    return rng.random((size, *shape), dtype=np.float32), rng.integers(0, 4, size)


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "mixed"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_step_waits_for_nothing_and_copies_only_the_batch(system, mixed, rng, cuda_calls):
    make, shape, make_optimizer = SYSTEMS[system]
    net, optimizer, scale = make(), make_optimizer(), LossScale() if mixed else None
    net.build(shape, device="cuda:0")
    uploader = Uploader("cuda:0")
    gc.collect()  # networks of other tests, which refer to themselves, shall not give memory back in the middle
    batches = [batch(rng, shape, 2) for _ in range(4)]
    for number, (images, labels) in enumerate(batches[:3]):  # kernels are compiled, pinned buffers and state made
        train_step(net, optimizer, *uploader.put(images, labels), number, scale)

    reserved = memory_info("cuda:0").reserved
    images, labels = batches[3]
    with cuda_calls(log=True) as calls:
        loss = train_step(net, optimizer, *uploader.put(images, labels), 3, scale)
    assert {name: calls[name] for name in WAITS} == dict.fromkeys(WAITS, 0), calls.log
    assert calls["h2d"] == 2, calls.log
    assert calls["h2d_bytes"] == images.nbytes + labels.nbytes
    assert calls["malloc"] == calls["free"] == calls["host_alloc"] == 0, calls.log
    assert memory_info("cuda:0").reserved == reserved
    assert mixed or calls["kernel_launch"] <= LAUNCHES[system], calls.log
    assert np.isfinite(loss.get())


@pytest.mark.usefixtures("cuda_calls")  # of the simulated device
def test_the_roofline_counts_every_launch_of_a_step():
    """It puts counters in the place of kernels and products; what it counts is what really happens."""
    run = subprocess.run(
        [sys.executable, "benchmarks/roofline.py", "--only", "W3"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in run.stdout.splitlines() if "| W3" in line]
    real = json.loads((ROOT / "benchmarks" / "results" / "launches.json").read_text())["W3 simple b100"]
    launches = str(real["kernels"] + real["gemms"] + real["memsets"])
    assert [row[:4] for row in rows] == [
        ["W3 simple b100", "float32", launches, str(real["gemms"])],
        ["W3 simple b100", "mixed", rows[1][2], str(real["gemms"])],
    ]
    assert float(rows[1][4]) < float(rows[0][4])  # GB moved


@pytest.mark.cupy
@pytest.mark.cuda_async
@pytest.mark.parametrize("system", SYSTEMS)
def test_ten_steps_with_prefetch_agree_with_numpy(system, rng):
    make, _, make_optimizer = SYSTEMS[system]
    shape = SMALL[system]
    images, labels = batch(rng, shape, 40)
    weights, losses = {}, {}
    for device in ("cpu", "cuda:0"):
        net, optimizer = make(), make_optimizer()
        net.build(shape, device=device)
        loader = Loader(ArrayDataset(images, labels), batch_size=8, seed=3, workers=2, device=device)
        total, number = 0.0, 0
        for _epoch in range(2):
            for x, t in loader:
                total = total + train_step(net, optimizer, x, t, number)
                number += 1
        assert number == 10
        weights[device], losses[device] = net.state_dict(), total
    assert_close(losses["cuda:0"], np.float32(losses["cpu"]), "sum of products")
    for name, expected in weights["cpu"].items():
        assert_close(weights["cuda:0"][name], expected, "sum of products")


@pytest.mark.cuda_async
def test_the_next_batch_is_copied_while_a_step_computes(rng, cuda_calls):
    import cudasim

    uploader = Uploader("cuda:0")
    first, second = rng.random((2, 1000), dtype=np.float32)
    (x,) = uploader.put(first)
    take = uploader.send(second)
    y = x * 2  # the step: under CUDASIM_ASYNC=1 it runs when somebody waits for it
    before = cudasim.instructions()
    uploader._stream.synchronize()
    assert cudasim.instructions() == before, "the copy waited for work that was queued after it"
    (there,) = take()
    np.testing.assert_array_equal((there + y).get(), second + first * 2)
