"""Training steps on CuPy: nothing waits for the device, nothing is copied but the batch, and NumPy agrees.

The counts come from ci/cudasim; with CUDASIM_ASYNC=1 the simulated device also does nothing before something waits for
it, so that a missing wait or a pinned buffer that is overwritten too early changes the numbers.
"""

from __future__ import annotations

import numpy as np
import pytest
from tolerances import assert_close

from xpcnn import Adagrad, Adam, Step, batch_last, softmax_cross_entropy
from xpcnn.backend import Uploader
from xpcnn.data import ArrayDataset, Loader
from xpcnn.zoo import keras_style, mri, simple_convnet

# system: network, input shape, optimizer
SYSTEMS = {
    "A": (lambda: mri(width=64), (1, 200, 200), lambda: Adam(1e-3)),  # the simulator is slow: 64 instead of 512
    "D": (simple_convnet, (1, 28, 28), lambda: Adam(1e-3)),
    "E": (keras_style, (1, 28, 28), lambda: Adagrad(1e-3)),
}
SMALL = {"A": (1, 24, 24), "D": (1, 14, 14), "E": (1, 14, 14)}
WAITS = ("d2h", "device_sync", "stream_sync", "event_sync")


def train_step(net, optimizer, images, labels, number):
    """One step by hand; returns the loss, which stays on the device."""
    logits, ctx = net.forward(batch_last(images), Step(seed=0, number=number, need_dx=False))
    loss, dlogits = softmax_cross_entropy(logits, labels)
    net.backward(dlogits, ctx, need_dx=False)
    optimizer.step(net)
    return loss


def batch(rng, shape, size):
    return rng.random((size, *shape), dtype=np.float32), rng.integers(0, 4, size)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_step_waits_for_nothing_and_copies_only_the_batch(system, rng, cuda_calls):
    make, shape, make_optimizer = SYSTEMS[system]
    net, optimizer = make(), make_optimizer()
    net.build(shape, device="cuda:0")
    uploader = Uploader("cuda:0")
    batches = [batch(rng, shape, 2) for _ in range(3)]
    for number, (images, labels) in enumerate(batches[:2]):  # kernels are compiled, state and workspaces made
        train_step(net, optimizer, *uploader.put(images, labels), number)

    images, labels = batches[2]
    with cuda_calls(log=True) as calls:
        loss = train_step(net, optimizer, *uploader.put(images, labels), 2)
    assert {name: calls[name] for name in WAITS} == dict.fromkeys(WAITS, 0), calls.log
    assert calls["h2d"] == 2, calls.log
    assert calls["h2d_bytes"] == images.nbytes + labels.nbytes
    assert np.isfinite(loss.get())


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
