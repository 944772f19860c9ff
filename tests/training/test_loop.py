"""The training loop: what a step does, accumulation, schedules, and that nothing in it waits for the device."""

from __future__ import annotations

import numpy as np
import pytest
from tolerances import assert_close
from toys import CLASSES, norm_net, place, quarters, small_net

from xpcnn import EMA, SGD, Adam, AuxiliaryHead, Conv2d, Dense, Flatten, ReLU, Sequential, Step, softmax_cross_entropy
from xpcnn.data import ArrayDataset, Loader
from xpcnn.schedule import Cosine, Exponential, OneCycle
from xpcnn.training import Callback, Fit, History, LearningRateLog, evaluate_batches, train_epoch
from xpcnn.training.inputs import Entrance


def make_fit(net, device="cpu", epochs=1, count=24, batch_size=6, **options):
    images, labels = quarters(count)
    net.build((1, 8, 8), seed=1, device=device)
    loader = Loader(ArrayDataset(images, labels, CLASSES), batch_size, seed=2, device=device)
    fit = Fit(
        classifier=None,
        net=net,
        optimizer=options.pop("optimizer", None) or SGD(0.1),
        loss=softmax_cross_entropy,
        enter=Entrance(net.dtype, (0.5,), (0.25,)),
        loader=loader,
        validate=None,
        history=History(),
        callbacks=options.pop("callbacks", []),
        epochs=epochs,
        **options,
    )
    fit.epoch = 1
    return fit


def state(net):
    return {name: array.copy() for name, array in net.state_dict().items()}


def test_an_epoch_is_the_loop_one_would_write_by_hand():
    net, twin = norm_net(), norm_net()
    fit = make_fit(net, seed=5)
    train_epoch(fit)

    twin.build((1, 8, 8), seed=1)
    optimizer, losses = SGD(0.1), []
    for number, (x, t) in enumerate(Loader(fit.loader.dataset, 6, seed=2).epoch(0)):
        logits, ctx = twin.forward(fit.enter(x), Step(5, number, need_dx=False))
        loss, dlogits = softmax_cross_entropy(logits, t)
        twin.backward(dlogits, ctx, need_dx=False)
        optimizer.step(twin)
        losses.append(float(loss))
    for name, array in twin.state_dict().items():
        np.testing.assert_array_equal(net.state_dict()[name], array)
    assert fit.totals.read()["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    assert not net.flat().grad.any()


def test_accumulation_is_one_update_with_the_mean_of_the_batches():
    """Without batch norm, accumulating equal batches is the same as one large batch."""
    net, twin = small_net(), small_net()
    train_epoch(make_fit(net, batch_size=4, accumulate=3))
    train_epoch(make_fit(twin, batch_size=12))
    for name, array in twin.state_dict().items():
        assert_close(net.state_dict()[name], array, "sum of products")


def test_the_last_group_of_an_accumulation_may_be_smaller():
    updates = []

    class Recorder(SGD):
        def step(self, net, *arguments):
            updates.append(net.flat().grad.copy())
            super().step(net, *arguments)

    fit = make_fit(small_net(), batch_size=6, count=24, accumulate=3, optimizer=Recorder(0.0))
    train_epoch(fit)
    single = []

    class Single(SGD):
        def step(self, net, *arguments):
            single.append(net.flat().grad.copy())
            super().step(net, *arguments)

    train_epoch(make_fit(small_net(), batch_size=6, count=24, optimizer=Single(0.0)))
    assert len(updates) == 2
    assert_close(updates[0], np.mean(single[:3], axis=0), "sum of products")
    assert_close(updates[1], single[3], "sum of products")


def test_schedule_by_epoch_and_by_step():
    rates = []
    fit = make_fit(small_net(), optimizer=SGD(0.5), schedule=Exponential(0.9), epochs=4)
    for fit.epoch in (1, 2, 3):
        train_epoch(fit)
        rates.append(fit.lr)
    assert rates == pytest.approx([0.5, 0.45, 0.405])
    assert fit.optimizer.lr == 0.5

    log = LearningRateLog()
    fit = make_fit(small_net(), optimizer=SGD(0.5), schedule=Cosine(every="step"), epochs=2, callbacks=[log])
    for fit.epoch in (1, 2):
        train_epoch(fit)
    assert log.rates == pytest.approx([0.5 * 0.5 * (1 + np.cos(np.pi * t / 8)) for t in range(8)])
    assert log.state_dict()["rates"].tolist() == log.rates


def test_schedule_counts_updates_when_accumulating():
    log = LearningRateLog()
    schedule = OneCycle()
    fit = make_fit(small_net(), batch_size=4, accumulate=2, schedule=schedule, callbacks=[log], epochs=1)
    train_epoch(fit)
    assert log.rates == pytest.approx([0.1 * schedule(t // 2, 3) for t in range(6)])


def test_ema_follows_every_update():
    ema = EMA(0.5)
    fit = make_fit(small_net(), ema=ema)
    expected = None

    class Follow(Callback):
        def on_step_end(self, fit):
            nonlocal expected
            weights = fit.net.flat().data.copy()
            expected = weights if expected is None else 0.5 * expected + 0.5 * weights

    fit.callbacks = [Follow()]
    train_epoch(fit)
    with ema.swap(fit.net):
        assert_close(fit.net.flat().data, expected, "sum of products")


def test_auxiliary_heads_learn():
    side = Sequential(Flatten(), Dense(3))
    net = Sequential(Conv2d(4, 3), ReLU(), AuxiliaryHead(side), Flatten(), Dense(3))
    fit = make_fit(net)
    before = state(net)
    train_epoch(fit)
    changed = {name for name, array in net.state_dict().items() if (array != before[name]).any()}
    assert changed == set(before)
    assert any(name.startswith("2.") for name in before)


def test_the_order_of_events():
    events = []

    class Log(Callback):
        def on_loss(self, fit):
            events.append(("loss", fit.batch, fit.net.flat().grad.any()))

        def on_step_end(self, fit):
            events.append(("end", fit.batch, fit.net.flat().grad.any()))

    train_epoch(make_fit(small_net(), count=12, batch_size=6, callbacks=[Log()]))
    assert events == [("loss", 1, False), ("end", 1, False), ("loss", 2, False), ("end", 2, False)]


def test_evaluation_is_by_image_and_changes_nothing():
    net = norm_net()
    fit = make_fit(net)
    before = state(net)
    loader = Loader(fit.loader.dataset, 7, shuffle=False)
    loss, confusion = evaluate_batches(net, loader, fit.enter, softmax_cross_entropy)
    images, labels = quarters(24)
    logits, _ = net.forward(fit.enter(images), False)
    assert loss == pytest.approx(float(softmax_cross_entropy(logits, labels)[0]), rel=1e-6)
    assert confusion.sum() == 24
    assert confusion.trace() == (logits.argmax(axis=0) == labels).sum()
    for name, array in before.items():
        np.testing.assert_array_equal(net.state_dict()[name], array)


# --- both backends ----------------------------------------------------------------------------------------------


def test_ten_steps_agree_with_numpy(xp):
    nets = {}
    for device in ("cpu", place(xp)):
        net = nets[device] = small_net(dropout=0.3)
        fit = make_fit(net, device, count=60, optimizer=Adam(1e-2))
        train_epoch(fit)
        assert len(fit.loader) == 10
    for name, expected in nets["cpu"].state_dict().items():
        assert_close(nets[place(xp)].state_dict()[name], expected, "sum of products")


def test_steps_wait_for_nothing_and_copy_only_the_batches(cuda_calls):
    fit = make_fit(norm_net(), "cuda:0", count=24, accumulate=2, optimizer=Adam(1e-3), ema=EMA(0.9))
    train_epoch(fit)  # kernels are compiled, state is made
    with cuda_calls(log=True) as calls:
        train_epoch(fit)
    waits = {name: calls[name] for name in ("d2h", "device_sync", "stream_sync", "event_sync")}
    assert waits == dict.fromkeys(waits, 0), calls.log
    assert calls["h2d"] == 2 * 4, calls.log
    assert calls["h2d_bytes"] == 24 * (64 + 8)
