"""Data-parallel training: buckets and shares with ranks in threads, whole trainings in processes that MPI starts."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import parallel_runs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_close
from toys import norm_net, place, quarters, small_classifier, small_net

import xpcnn
from xpcnn import (
    SGD,
    Adam,
    ArgumentError,
    AuxiliaryHead,
    BatchNorm1d,
    BatchNorm2d,
    Conv2d,
    Dense,
    Flatten,
    MaxPool2d,
    MissingExtraError,
    Recompute,
    ReLU,
    Residual,
    Sequential,
    XpcnnError,
    zoo,
)
from xpcnn.data import ArrayDataset, Loader, Mixup, RandomAffine
from xpcnn.files import locked
from xpcnn.layers import Layer, Step, auxiliaries, config
from xpcnn.layers.base import Buffer
from xpcnn.training import Callback, CSVLog, LossScale
from xpcnn.training import communicator as communicator_module
from xpcnn.training.communicator import Communicator, Pending, communicator, is_common, launched, part_of
from xpcnn.training.metrics import Totals
from xpcnn.training.parallel import Exchange
from xpcnn.training.resume import checkpoints_in
from xpcnn.training.sync_norm import SyncBatchNorm

ROOT = Path(__file__).resolve().parents[2]
DATA = quarters(43)

# --- ranks in threads -------------------------------------------------------------------------------------------


class Table:
    """Where ranks in threads lay down what they say."""

    def __init__(self, size):
        self.slots = [None] * size
        self.barrier = threading.Barrier(size, timeout=30)


class InThreads(Communicator):
    """Ranks that are threads of one process; they really sum, on either backend, what was in the array at the start."""

    def __init__(self, table, rank):
        self.table, self.rank, self.size = table, rank, len(table.slots)

    def gather(self, value):
        self.table.slots[self.rank] = value
        self.table.barrier.wait()
        found = list(self.table.slots)
        self.table.barrier.wait()
        return found

    def broadcast(self, value):
        return self.gather(value)[0]

    def end_all(self, error):
        if not isinstance(error, threading.BrokenBarrierError):  # another rank has aborted
            super().end_all(error)

    def start_sum(self, array):
        return _Later(self, array, array.copy())


class _Later(Pending):
    def __init__(self, ranks, array, copy):
        self.ranks, self.array, self.copy = ranks, array, copy

    def wait(self):
        parts = self.ranks.gather(self.copy)
        self.array[...] = sum(parts[1:], parts[0])


def in_threads(size, function):
    """Return [function(communicator) of each rank]; raises the first error of any."""
    table, results, errors = Table(size), [None] * size, []

    def work(rank):
        try:
            results[rank] = function(InThreads(table, rank))
        except threading.BrokenBarrierError:  # another one has failed
            pass
        except BaseException as error:
            errors.append(error)
            table.barrier.abort()

    workers = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
    return results


def weights(clf):
    return {name: xpcnn.to_numpy(array).copy() for name, array in clf.net.state_dict().items()}


def assert_same_weights(result, expected, operation="sum of products"):
    assert result.keys() == expected.keys()
    for name, array in expected.items():
        assert_close(result[name], array, operation)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_threads_train_the_same_weights_as_one_process(xp, size):
    def train(ranks):
        clf = small_classifier(device=place(xp), dtype="float64", parallel=ranks, class_weights=[1.0, 2.0, 0.5])
        clf.fit(DATA, epochs=2, batch_size=9, micro_batch=2, validation=0.2, verbose=False)
        return weights(clf), clf.history

    expected, history = train(None)
    for result, own in in_threads(size, train):
        assert_same_weights(result, expected)
        assert own["epoch"] == [1, 2]
        for name in ("loss", "val_loss", "accuracy", "val_accuracy"):
            assert own[name] == pytest.approx(history[name], abs=1e-12), name


def test_threads_with_synchronised_batch_norm(xp):
    def train(ranks):
        clf = small_classifier(
            parallel_runs.deep_net(), device=place(xp), dtype="float64", parallel=ranks, sync_batch_norm=True
        )
        clf.fit(quarters(21), epochs=2, batch_size=9, verbose=False)
        return weights(clf)

    expected = train(None)
    for result in in_threads(4, train):  # the last batch has 3 images
        assert_same_weights(result, expected)


def test_batch_norm_per_rank_ends_in_one_network(xp):
    """Statistics of the shares differ; what is evaluated and saved does not."""

    def train(ranks):
        clf = small_classifier(norm_net(), device=place(xp), parallel=ranks)
        clf.fit(DATA, epochs=1, batch_size=20, verbose=False)
        return weights(clf)

    first, second = in_threads(2, train)
    assert first["1.running_mean"].any()
    for name, array in first.items():
        assert second[name].tobytes() == array.tobytes(), name


def test_no_two_pieces_have_the_same_dropout_mask():
    class Notes(Callback):
        def __init__(self):
            self.numbers = []

        def on_loss(self, fit):
            self.numbers.append(fit.step.number)

    def train(ranks):
        notes = Notes()
        clf = small_classifier(small_net(dropout=0.5), parallel=ranks)
        clf.fit(DATA, epochs=2, batch_size=9, micro_batch=2, verbose=False, callbacks=[notes])
        return notes.numbers

    assert len(train(None)) == 2 * (4 * 5 + 4)
    numbers = [number for own in in_threads(3, train) for number in own]
    assert len(numbers) == len(set(numbers)) >= 2 * (4 * 6 + 4)


def test_mixed_precision_skips_the_same_steps_on_all_ranks(xp):
    def train(ranks):
        clf = small_classifier(device=place(xp), parallel=ranks, dtype="mixed_float16", optimizer=Adam(1e-2))
        clf.scale = LossScale(start=2.0**30, growth_steps=3)
        clf.fit(quarters(24), epochs=2, batch_size=6, verbose=False)
        return weights(clf), int(clf.scale.skipped), float(clf.scale.scale)

    (first, skipped, scale), *others = in_threads(2, train)
    assert skipped > 1
    for result, *more in others:
        assert more == [skipped, scale]
        for name, array in first.items():
            assert result[name].tobytes() == array.tobytes(), name


def test_less_memory_is_what_rank_0_finds():
    def train(ranks):
        clf = small_classifier(
            Sequential(*(Conv2d(8, 3, padding=1) for _ in range(6)), Flatten(), Dense(3)), parallel=ranks
        )
        clf.fit(DATA, epochs=1, batch_size=20, memory_limit="160KB", verbose=False)
        return clf.memory, weights(clf)

    (memory, first), (other, second) = in_threads(2, train)
    assert memory == other
    assert memory.batch_size == 10  # of each rank
    assert memory.recompute or memory.micro_batch < 10
    assert_same_weights(first, second)


# --- buckets ----------------------------------------------------------------------------------------------------


class Notes(Communicator):
    """One of two ranks, which notes what is asked of it and takes the other to have the same."""

    size = 2

    def __init__(self, log):
        self.log = log

    def start_sum(self, array):
        self.log.append(f"sum of {array.size}")
        array *= 2.0
        return Pending()

    def gather(self, value):
        return [value, value]


class Watched(Dense):
    """A dense layer that notes when backward gets to it."""

    log: list

    def backward(self, dy, ctx, need_dx=True):
        self.log.append(f"backward of {self.out_features}")
        return super().backward(dy, ctx, need_dx)


def watched(log, *units):
    layers = []
    for number in units:
        layers += [Watched(number), ReLU()]
        layers[-2].log = log
    net = Sequential(Sequential(*layers[:4]), *layers[4:-1])
    net.build((10,))
    return net


def step(exchange, net, log, complete=True, pieces=1):
    log.clear()
    for index in range(pieces):
        exchange.begin(8, index, pieces, complete)
        y, ctx = exchange.body.forward(np.ones((10, 4), np.float32), Step(need_dx=False))
        exchange.body.backward(np.ones_like(y), ctx, need_dx=False)
    log.append("end")
    if complete:
        exchange.finish()
    return list(log)


def test_buckets_are_begun_while_backward_runs():
    log = []
    net = watched(log, 20, 21, 22, 3)  # 220, 441, 484 and 69 numbers
    exchange = Exchange(net, net, Notes(log), buckets=3)
    assert [(b.start, b.stop) for b in exchange.buckets] == [(0, 220), (220, 661), (661, 1214)]
    assert step(exchange, net, log) == [
        "backward of 3",
        "backward of 22",
        "sum of 553",
        "backward of 21",
        "sum of 441",
        "backward of 20",
        "end",
        "sum of 220",
    ]


@pytest.mark.parametrize(
    ("buckets", "sizes"), [(1, [1214]), (2, [553, 661]), (4, [69, 484, 441, 220]), (9, [69, 484, 441, 220])]
)
def test_buckets_are_about_equal_and_end_at_layers(buckets, sizes):
    log = []
    net = watched(log, 20, 21, 22, 3)
    found = step(Exchange(net, net, Notes(log), buckets=buckets), net, log)
    assert [line for line in found if "sum" in line] == [f"sum of {size}" for size in sizes]


def test_only_the_last_piece_of_an_update_is_summed():
    log = []
    net = watched(log, 20, 21, 3)
    exchange = Exchange(net, net, Notes(log), buckets=2)
    assert not any("sum" in line for line in step(exchange, net, log, complete=False, pieces=3))
    found = step(exchange, net, log, pieces=3)
    assert found.index("sum of 507") == 8  # in the third backward pass, before its last layer
    assert found[-1] == "sum of 220"


def test_frozen_layers_are_not_summed():
    log = []
    net = watched(log, 20, 21, 22, 3)
    net.freeze("0.0")
    net.freeze("1")
    exchange = Exchange(net, net, Notes(log))
    assert [line for line in step(exchange, net, log) if "sum" in line] == ["sum of 69", "sum of 441"]


def test_a_layer_that_is_used_twice_is_summed_when_its_first_use_is_done():
    log = []
    twice = Watched(10)
    twice.log = log
    net = Sequential(twice, ReLU(), Watched(10), twice, Dense(2))
    net["2"].log = log
    net.build((10,))
    found = step(Exchange(net, net, Notes(log), buckets=3), net, log)
    assert found == [*["backward of 10"] * 2, "sum of 132", "backward of 10", "end", "sum of 110"]


@pytest.mark.parametrize("shared", [False, True])
def test_a_network_in_one_piece_is_summed_when_it_is_done(shared):
    log = []
    inner = watched(log, 10, 10)
    net = Residual(inner, shortcut=inner["0.0"] if shared else None)
    net.build((10,))
    exchange = Exchange(net, net, Notes(log))
    assert step(exchange, net, log)[-2:] == ["end", "sum of 220"]


def test_a_body_that_recomputes_is_told_apart_too():
    log = []
    net = watched(log, 20, 21, 22, 3)
    body = Sequential(Recompute(net["0"]), net["1"], net["2"], net["3"])
    found = step(Exchange(net, body, Notes(log), buckets=3), net, log)
    assert found[:4] == ["backward of 3", "backward of 22", "sum of 553", "backward of 21"]
    assert found[-3:] == ["backward of 20", "end", "sum of 661"]


def with_side_classifier():
    head = AuxiliaryHead(Sequential(Flatten(), Dense(10)))
    return Sequential(
        Conv2d(4, 3), BatchNorm2d(), ReLU(), head, Conv2d(4, 3), MaxPool2d(2), ReLU(), Flatten(), Dense(10)
    )


@pytest.mark.parametrize("make", [with_side_classifier, partial(zoo.build, "resnet20")], ids=["side", "resnet20"])
@pytest.mark.parametrize("sync", [False, True])
def test_the_body_computes_what_the_network_does(make, sync, rng):
    """To the bit, unless batch norm is synchronised: here with nobody."""
    net = make()
    net.build((3, 16, 16), dtype="float64")
    exchange = Exchange(net, net, Communicator(), sync)
    exchange.begin(4, 0, 1, True)
    x, results = rng.standard_normal((3, 16, 16, 4)), []
    for body in (net, exchange.body):
        y, ctx = body.forward(x, Step(0, 1, need_dx=False))
        for head in auxiliaries(ctx):
            head.gradient = np.cos(head.logits)
        body.backward(np.cos(y), ctx, need_dx=False)
        results.append((y, net.flat().grad.copy()))
        net.flat().grad[...] = 0.0
    for expected, found in zip(*results, strict=True):
        if sync:
            assert_close(found, expected, "sum of products")
        else:
            assert found.tobytes() == expected.tobytes()
    exchange.finish()


def test_the_network_itself_is_not_changed():
    net = parallel_runs.deep_net()
    net.build((1, 8, 8))
    before, names, flat = config(net), list(net.state_dict()), net.flat()
    exchange = Exchange(net, net, Notes([]), sync_batch_norm=True)
    assert (config(net), list(net.state_dict())) == (before, names)
    assert net.flat() is flat
    assert {id(p) for p in exchange.body.parameters().values()} == {id(p) for p in net.parameters().values()}


# --- batch norm over all ranks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shares", [(4, 4), (1, 7), (5, 0, 3), (8, 0, 0, 0)])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dimensions", [1, 3])
def test_synchronised_batch_norm_is_that_of_the_whole_batch(xp, rng, shares, relu, affine, dimensions):
    shape = (3, 2, 5)[:dimensions]
    x, dy = (xp.asarray(rng.standard_normal((*shape, 8)) + 2.0) for _ in range(2))
    kind = BatchNorm2d if dimensions == 3 else BatchNorm1d

    def made():
        norm = kind(affine=affine)
        norm.build(shape, dtype="float64", device=place(xp))
        if affine:
            norm.weight.data[...] = xp.asarray([0.5, -2.0, 1.5])
        return norm

    norm = made()
    y, ctx = norm.forward(x, True, relu=relu)
    dx = norm.backward(dy, ctx)
    ends = np.cumsum([0, *shares])

    def work(ranks):
        mine = made()
        layer = SyncBatchNorm(mine, SimpleNamespace(ranks=ranks, images=(shares[ranks.rank], 8)))
        own = slice(ends[ranks.rank], ends[ranks.rank + 1])
        empty = not shares[ranks.rank]
        here = xp.full((*shape, 1), 7.0) if empty else xp.ascontiguousarray(x[..., own])
        back = xp.zeros((*shape, 1)) if empty else xp.ascontiguousarray(dy[..., own])
        y, ctx = layer.forward(here, True, relu=relu)
        dx = layer.backward(back, ctx)
        if empty:
            assert not xp.any(dx)
        grads = {name: p.grad for name, p in mine.parameters().items()}
        return (y, dx), empty, grads, mine.state_dict()

    found = in_threads(len(shares), work)
    parts = [results for results, empty, _, _ in found if not empty]
    assert_close(xp.concatenate([y for y, _ in parts], axis=-1), y, "sum of products")
    assert_close(xp.concatenate([dx for _, dx in parts], axis=-1), dx, "sum of products")
    for name, p in norm.parameters().items():
        assert_close(sum(grads[name] for _, _, grads, _ in found), p.grad, "sum of products")
    for _, _, _, state in found:
        for name in ("running_mean", "running_var"):
            assert_close(state[name], norm.state_dict()[name], "sum of products")


def test_synchronised_batch_norm_otherwise_does_as_the_layer():
    norm = BatchNorm2d()
    norm.build((2, 3, 3))
    layer = SyncBatchNorm(norm, SimpleNamespace(ranks=Communicator(), images=(4, 4)))
    x = np.random.default_rng(0).standard_normal((2, 3, 3, 4), np.float32)
    assert layer.forward(x, False)[1] is None
    assert np.array_equal(layer.forward(x, False)[0], norm.forward(x, False)[0])
    before = norm.running_mean.data.copy()
    y, ctx = layer.forward(x, Step(recompute=True))
    assert np.array_equal(norm.running_mean.data, before)
    assert layer.backward(y, ctx, need_dx=False) is None
    norm.freeze()
    y, ctx = layer.forward(x, True)
    dx = layer.backward(y, ctx)
    assert np.array_equal(dx, norm.backward(*norm.forward(x, True)))


def test_one_value_per_channel_is_too_few_for_all_ranks_together():
    norm = BatchNorm1d()
    norm.build((2,))
    layer = SyncBatchNorm(norm, SimpleNamespace(ranks=Communicator(), images=(1, 1)))
    with pytest.raises(ArgumentError, match=r"BatchNorm1d needs more than one value .* all ranks together have 1\."):
        layer.forward(np.ones((2, 1), np.float32), True)


def test_layers_with_statistics_of_their_own_cannot_be_synchronised():
    class Counts(Layer):
        def setup(self, input_shape, new):
            new.buffer(self, "seen", (1,), 0.0)
            return input_shape

        def forward(self, x, train):
            return x, ()

        def backward(self, dy, ctx, need_dx=True):
            return dy

    net = Sequential(Counts(), Dense(2))
    net.build((3,))
    assert isinstance(net["0"].seen, Buffer)
    with pytest.raises(ArgumentError, match="is for BatchNorm1d and BatchNorm2d; the network has a Counts with"):
        Exchange(net, net, Notes([]), sync_batch_norm=True)


def test_running_statistics_become_their_mean_and_equal_ones_stay(xp):
    def work(ranks):
        net = norm_net()
        net.build((1, 8, 8), device=place(xp))
        mean, var = net["1"].running_mean.data, net["1"].running_var.data
        mean[...] = xp.asarray([0.1, 0.2, 0.3, 0.4]) + ranks.rank
        var[...] = 0.1
        Exchange(net, net, ranks).level()
        return xpcnn.to_numpy(mean), xpcnn.to_numpy(var)

    for mean, var in in_threads(3, work):
        np.testing.assert_allclose(mean, [1.1, 1.2, 1.3, 1.4], rtol=1e-6)
        assert np.array_equal(var, np.full(4, 0.1, np.float32))


# --- shares -----------------------------------------------------------------------------------------------------


@given(count=st.integers(0, 200), size=st.integers(1, 40))
def test_shares_are_contiguous_and_differ_by_one_at_most(count, size):
    ranks = [Communicator() for _ in range(size)]
    for rank, one in enumerate(ranks):
        one.rank, one.size = rank, size
    shares = [one.share(count) for one in ranks]
    assert [first for first, _ in shares] == [0, *(last for _, last in shares[:-1])]
    assert shares[-1][1] == count
    sizes = [last - first for first, last in shares]
    assert max(sizes) - min(sizes) <= 1
    assert sizes[0] == max(sizes)


@given(count=st.integers(0, 50), parts=st.integers(1, 60))
def test_parts_are_contiguous_and_almost_equal(count, parts):
    ends = [part_of(count, index, parts) for index in range(parts)]
    assert [first for first, _ in ends] == [0, *(last for _, last in ends[:-1])]
    assert ends[-1][1] == count
    assert {last - first for first, last in ends} <= {count // parts, count // parts + 1}


@given(batch=st.integers(1, 60), size=st.integers(1, 9), pieces=st.integers(1, 7))
def test_an_exchange_knows_how_many_images_all_have(batch, size, pieces):
    net = Dense(2)
    net.build((3,))
    for index in range(pieces):
        counts = []
        for rank in range(size):
            ranks = Communicator()
            ranks.rank, ranks.size = rank, size
            exchange = Exchange(net, net, ranks)
            exchange.begin(batch, index, pieces, False)
            first, last = ranks.share(batch)
            start, stop = part_of(last - first, index, pieces)
            assert exchange.images[0] == stop - start
            counts.append(exchange.images)
        assert {everywhere for _, everywhere in counts} == {sum(here for here, _ in counts)}


@pytest.mark.parametrize("transform", [None, RandomAffine(20), Mixup(0.3, 3)], ids=["none", "per image", "per batch"])
@pytest.mark.parametrize("workers", [0, 2])
def test_shares_of_a_loader_make_up_the_batch(transform, workers):
    dataset = ArrayDataset(*quarters(23))

    def batches(share):
        return list(Loader(dataset, 5, seed=4, transform=transform, workers=workers, share=share).epoch(2))

    whole = batches(None)
    ranks = [Communicator() for _ in range(4)]
    for rank, one in enumerate(ranks):
        one.rank, one.size = rank, 4
    for (x, t), *parts in zip(whole, *(batches(one.share) for one in ranks), strict=True):
        assert [len(part) for part, _ in parts] in ([2, 1, 1, 1], [1, 1, 1, 0])
        assert np.array_equal(np.concatenate([part for part, _ in parts if len(part)]), x)
        for part, labels in parts:
            assert part.shape[1:] == x.shape[1:]
            assert np.array_equal(labels, t)


def test_totals_and_signals_are_those_of_all():
    def work(ranks):
        totals = Totals(np, count=ranks.rank + 1)
        totals.loss += 0.5 * ranks.rank
        totals.correct += ranks.rank
        received = {1: signal.SIGINT, 2: signal.SIGTERM}.get(ranks.rank)
        signals = [ranks.signal(received), ranks.signal(signal.SIGINT if ranks.rank else None), ranks.signal(None)]
        return ranks.over(totals).read(), signals

    for read, signals in in_threads(3, work):
        assert read == {"loss": 0.25, "accuracy": 0.5}
        assert signals == [signal.SIGTERM, signal.SIGINT, None]


# --- what is asked for ------------------------------------------------------------------------------------------


def test_one_process_by_itself():
    alone = communicator(None)
    assert (alone.rank, alone.size, alone.gather(3), alone.broadcast("x")) == (0, 1, [3], "x")
    array = np.ones(3)
    alone.sum(array)
    assert array.tolist() == [1, 1, 1]
    assert alone.start_sum(array).test()
    assert small_classifier().rank == 0
    with pytest.raises(SystemExit):
        alone.abort()


@pytest.mark.parametrize("value", ["nccl", 4, True])
def test_anything_else_is_refused(value):
    with pytest.raises(ArgumentError, match=re.escape(f'parallel must be None or "mpi"; received {value!r}.')):
        small_classifier(parallel=value)


def test_without_mpi4py_the_extra_is_named(monkeypatch):
    communicator_module._world.cache_clear()
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(MissingExtraError, match=re.escape('pip install "xpcnn[mpi]"')):
        small_classifier(parallel="mpi")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1)),
        ({"PMI_RANK": "2", "PMI_SIZE": "4"}, (2, 4)),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "3"}, (0, 3)),
        ({"PMI_SIZE": "4"}, (0, 1)),
        ({"PMI_RANK": "x", "PMI_SIZE": "4"}, (0, 1)),
    ],
)
def test_launchers_are_known_by_what_they_leave_in_the_environment(variables, expected, monkeypatch):
    for name in ("PMI_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launched() == expected


def test_what_only_writes_is_for_rank_0(tmp_path):
    class Seen(Callback):
        def __init__(self):
            self.epochs = []

        def on_epoch_end(self, fit, logs):
            self.epochs.append(fit.epoch)

    def train(ranks):
        seen = Seen()
        clf = small_classifier(parallel=ranks)
        clf.fit(DATA, epochs=2, verbose=False, callbacks=[seen, CSVLog(tmp_path / f"{ranks.rank}.csv")])
        clf.save(tmp_path / f"{clf.rank}.safetensors")
        return seen.epochs

    assert in_threads(2, train) == [[1, 2], [1, 2]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.csv", "0.safetensors"]


def test_weights_are_those_of_rank_0_at_the_start():
    def train(ranks):
        clf = small_classifier(parallel=ranks, optimizer=SGD(0.0))
        clf.build((1, 8, 8))
        clf.net["0"].weight.data[...] = 1.0 + ranks.rank
        clf.fit(DATA, epochs=1, verbose=False)
        return float(clf.net["0"].weight.data.mean())

    assert in_threads(2, train) == [1.0, 1.0]


def test_weights_that_drift_apart_are_noticed():
    def train(ranks):
        class Changes(Callback):
            def on_step_end(self, fit):
                if ranks.rank == 2:
                    fit.net["4"].bias.data[0] += 0.1

        small_classifier(parallel=ranks).fit(DATA, epochs=1, verbose=False, callbacks=[Changes()])

    with pytest.raises(XpcnnError, match="after epoch 1 the weights of rank 2 are not those of rank 0: something"):
        in_threads(3, train)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 7}, "seed is 0 on rank 0 and 7 on rank 1"),
        ({"optimizer": SGD(0.2)}, r"optimizer.lr is 0.1 on rank 0 and 0.2 on rank 1"),
        ({"batch_size": 9}, "batch_size is 32 on rank 0 and 9 on rank 1"),
        ({"data": quarters(44)}, "data.images is 43 on rank 0 and 44 on rank 1"),
        ({"net": small_net(dropout=0.5)}, "network.5.weight is None on rank 0"),
        ({"sync_batch_norm": True}, "sync_batch_norm is None on rank 0 and True on rank 1"),
        ({"epochs": 0}, "rank 1: epochs must be an int of at least 1; received 0."),
        ({"data": None}, "rank 1: labels are missing"),
    ],
)
def test_ranks_that_differ_are_refused_and_named(change, words):
    caught = []

    def train(ranks):
        own = change if ranks.rank == 1 else {}
        options = {name: own[name] for name in ("batch_size", "epochs") if name in own}
        given = {name: own[name] for name in ("seed", "optimizer", "net", "sync_batch_norm") if name in own}
        try:
            small_classifier(parallel=ranks, **given).fit(
                own.get("data", DATA), verbose=False, **{"epochs": 1} | options
            )
        except XpcnnError as error:
            caught.append(error)

    in_threads(2, train)
    assert len(caught) == 2  # on both
    assert all(re.search(words, str(error)) for error in caught), caught
    assert all(is_common(error) for error in caught)


def test_an_error_of_one_rank_ends_all_and_says_which(capsys):
    def train(ranks):
        class Fails(Callback):
            def on_step_end(self, fit):
                if ranks.rank == 1:
                    raise XpcnnError("the disk is full")

        small_classifier(parallel=ranks).fit(DATA, epochs=1, verbose=False, callbacks=[Fails()])

    with pytest.raises(SystemExit):
        in_threads(2, train)
    assert capsys.readouterr().err == "rank 1 of 2 failed, which ends all: the disk is full\n"


# --- GPUs -------------------------------------------------------------------------------------------------------


class PretendNCCL:
    """Has the names of CuPy's NCCL bindings; there is no NCCL here. Two ranks that have the same: a sum doubles."""

    NCCL_FLOAT32, NCCL_FLOAT64, NCCL_SUM = "float32", "float64", "sum"

    class NcclCommunicator:
        def __init__(self, size, key, rank):
            self.made = (size, key, rank)
            self.calls, self.stream = [], None

        def allReduce(self, source, target, count, kind, operation, stream):
            import cupy

            assert (source, operation) == (target, "sum")
            self.calls.append((count, kind, stream))
            if self.stream is None:
                return
            memory = cupy.cuda.UnownedMemory(source, count * np.dtype(kind).itemsize, self)
            array = cupy.ndarray((count,), kind, cupy.cuda.MemoryPointer(memory, 0))
            with self.stream:  # which the test has put here: of a pointer CuPy makes none
                array *= 2.0


@pytest.mark.cupy
@pytest.mark.cuda_async
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_plumbing_of_nccl_with_a_stand_in(dtype):
    """Pointers, counts, types and streams are right; what NCCL itself does has not been run on GPUs yet."""
    import cupy

    nccl = communicator_module._NCCL(PretendNCCL, cupy, 2, "key", 1)
    assert nccl.group.made == (2, "key", 1)
    nccl.group.stream = nccl.stream
    gradient = cupy.arange(10, dtype=dtype)
    pending = nccl.start_sum(gradient[2:7])
    assert pending.test()
    pending.wait()
    assert gradient.get().tolist() == [0, 1, 4, 6, 8, 10, 12, 7, 8, 9]
    assert nccl.group.calls == [(5, dtype, nccl.stream.ptr)]


def test_streams_wait_for_each_other_and_the_host_for_neither(cuda_calls):
    """Before a sum its stream waits for the one that computes, and that one for the sum afterwards."""
    import cupy

    nccl = communicator_module._NCCL(PretendNCCL, cupy, 2, "key", 0)
    gradient = cupy.zeros(10, "float32")
    with cuda_calls() as calls:
        pending = nccl.start_sum(gradient)
        assert calls["stream_wait_event"] == 1
        pending.wait()
    assert (calls["event_record"], calls["stream_wait_event"]) == (2, 2)
    assert calls["stream_sync"] == calls["device_sync"] == calls["event_sync"] == calls["d2h"] == 0


@pytest.mark.cupy
def test_nccl_is_used_where_each_rank_has_a_gpu_of_its_own(monkeypatch):
    import cupy

    class Ranks(communicator_module.MPICommunicator):
        """The second of two ranks, on the machines and GPUs named."""

        def __init__(self, *places):
            self.rank, self.size, self._nccl, self._nccl_asked = 1, 2, None, False
            self.places = places

        def gather(self, value):
            return [(value[0], place) for place in self.places]

        def broadcast(self, value):
            return "key of rank 0"

    monkeypatch.setattr(communicator_module, "_nccl_bindings", lambda xp: PretendNCCL)
    array = cupy.ones(3, "float32")
    ranks = Ranks(("a", 0), ("a", 1))
    pending = ranks.start_sum(array)
    assert isinstance(pending, communicator_module._OnStream)
    assert ranks._nccl.group.made == (2, "key of rank 0", 1)
    assert Ranks(("a", 0), ("b", 0))._nccl_of(array) is not None
    assert Ranks(("a", 0), ("a", 0))._nccl_of(array) is None
    monkeypatch.setattr(communicator_module, "_nccl_bindings", lambda xp: None)
    assert Ranks(("a", 0), ("a", 1))._nccl_of(array) is None


@pytest.mark.cupy
def test_gpus_of_a_machine_are_dealt_out():
    class Third(communicator_module.MPICommunicator):
        def __init__(self):
            self._machine = SimpleNamespace(Get_rank=lambda: 2)

    count = xpcnn.Device("cuda").xp.cuda.runtime.getDeviceCount()
    assert Third().place("auto") == Third().place("cuda") == f"cuda:{2 % count}"
    assert Third().place("cuda:0") == "cuda:0"
    assert Third().place("cpu") == "cpu"


# --- what is computed -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmarks_parallel", ROOT / "benchmarks" / "parallel.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_the_table_of_the_guide_is_up_to_date(benchmark):
    assert benchmark.table() in (ROOT / "docs" / "parallel.md").read_text("utf-8")


@pytest.mark.parametrize("gpus", [2, 3, 8])
def test_the_cost_of_a_ring_is_that_of_doing_it(gpus, benchmark):
    """Pieces go round twice: once to be added up, once to be handed out."""
    pieces = [[float(rank * gpus + i) for i in range(gpus)] for rank in range(gpus)]
    expected, steps = [sum(column) for column in zip(*pieces, strict=True)], 2 * (gpus - 1)
    for shift in range(steps):  # in each of them one piece of so many goes over each link
        adding = shift < gpus - 1
        moved = [(rank - shift) % gpus if adding else (rank + 1 - (shift - gpus + 1)) % gpus for rank in range(gpus)]
        values = [pieces[rank][piece] for rank, piece in enumerate(moved)]
        for rank, piece in enumerate(moved):
            target = pieces[(rank + 1) % gpus]
            target[piece] = values[rank] + (target[piece] if adding else 0.0)
    assert all(row == expected for row in pieces)
    cluster = benchmark.Cluster(gpus, bandwidth=10.0, latency=0.25)
    assert benchmark.ring(100.0, cluster) == pytest.approx(steps * (100.0 / gpus / 10.0 + 0.25))


# --- real processes ---------------------------------------------------------------------------------------------

MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
mpi = pytest.mark.skipif(
    MPIEXEC is None or importlib.util.find_spec("mpi4py") is None,
    reason='MPI is not installed (pip install "xpcnn[mpi]")',
)


def environment():
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    return {k: v for k, v in os.environ.items() if k != "XPCNN_THREADS"} | {"PYTHONPATH": os.pathsep.join(paths)}


def mpiexec(count, *arguments, code=0, script=parallel_runs.__file__):
    """Run a program in so many processes; return what they printed, after checking the exit code and the time."""
    program = [sys.executable, "-W", "error", *([script] if script else []), *map(str, arguments)]
    started = time.monotonic()
    done = subprocess.run(
        [MPIEXEC, "-n", str(count), *program], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert (done.returncode == 0) == (code == 0), done.stderr
    assert code in (0, None, done.returncode), done.stderr
    assert code == 0 or time.monotonic() - started < 30
    return done.stdout, done.stderr


def results(folder, name):
    with np.load(folder / f"{name}.npz") as arrays:
        return dict(arrays), json.loads((folder / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    for name in parallel_runs.EQUAL:
        parallel_runs.write(parallel_runs.equal(name, None), folder, name)
    return folder


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Return a function that gives the folder of the trainings in so many processes, which run once."""
    done = {}

    def folder(count):
        if count not in done:
            done[count] = tmp_path_factory.mktemp(f"ranks{count}")
            mpiexec(count, "all_equal", done[count])
        return done[count]

    return folder


@mpi
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("name", parallel_runs.EQUAL)
def test_fifty_steps_end_in_the_same_weights_and_history(name, count, alone, together):
    expected, history = results(alone, name)
    found, own = results(together(count), name)
    assert found.keys() == expected.keys()
    assert max(abs(found[key] - array).max() for key, array in expected.items()) < 1e-10
    assert max(abs(array).max() for array in expected.values()) > 0.3
    assert own.keys() == history.keys()
    for column in set(history) - {"seconds"}:
        assert own[column] == pytest.approx(history[column], abs=1e-10), column


@mpi
def test_the_same_start_gives_the_same_bits(tmp_path):
    """Four ranks, float32, batch norm per rank and dropout."""
    mpiexec(4, "per_rank", tmp_path)
    (first, history), (second, again) = (results(tmp_path, name) for name in ("first", "second"))
    assert history | {"seconds": 0} == again | {"seconds": 0}
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    for name, array in first.items():
        assert second[name].tobytes() == array.tobytes(), name


@mpi
def test_early_stopping_and_files(tmp_path):
    mpiexec(2, "stops_early", tmp_path)
    ranks = [(tmp_path / f"rank{rank}").read_text() for rank in range(2)]
    assert ranks[0] == ranks[1]  # the seconds too
    assert ranks[0].startswith("[1, 2, 3] ")
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 4
    assert xpcnn.load(tmp_path / "best.safetensors", device="cpu").rank == 0


@mpi
def test_what_one_rank_wants_to_stop_stops(tmp_path):
    mpiexec(2, "one_has_enough", tmp_path)
    assert [(tmp_path / f"rank{rank}").read_text() for rank in range(2)] == ["[1, 2]", "[1, 2]"]


@mpi
def test_killed_terminated_and_resumed_with_other_numbers_of_ranks(tmp_path):
    """Two ranks, one of which is killed; four, one of which gets SIGTERM; one. Both times inside an accumulation."""
    mpiexec(1, "resumable", tmp_path / "whole")
    folder = tmp_path / "parts"
    out, err = mpiexec(2, "resumable", folder, "kill", 14, 1, code=9)
    assert "Epoch 2/10" in out
    assert "KILLED" in err.upper() or "signal 9" in out + err
    assert [path.stem[-2:] for path in checkpoints_in(folder / "checkpoints")] == ["12", "13"]

    out, err = mpiexec(4, "resumable", folder, "term", 28, 2, code=143)
    assert f"going on after epoch 3, batch 3 of 5 ({folder}" in out
    assert out.count("interrupted; ") == 1
    assert "holds all up to epoch 6, batch 3 of 5, and the same call goes on from there" in out
    assert re.search(r"ranks was 2 and is now 4; threads was|ranks was 2 and is now 4. The last bits may differ", err)

    out, _ = mpiexec(1, "resumable", folder)
    assert out.startswith("going on after epoch 6, batch 3 of 5")
    (expected, history), (found, own) = results(tmp_path / "whole", "result"), results(folder, "result")
    assert max(abs(found[key] - array).max() for key, array in expected.items()) < 1e-10
    for column in set(history) - {"seconds"}:
        assert own[column] == pytest.approx(history[column], abs=1e-10), column
    out, _ = mpiexec(2, "resumable", folder)
    assert out == f"{folder / 'checkpoints'} holds this training, finished with epoch 10\n"


@mpi
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_the_others(rank, tmp_path):
    mpiexec(2, "resumable", tmp_path, "kill", 3, rank, code=9)
    assert [path.stem[-1] for path in checkpoints_in(tmp_path / "checkpoints")] == ["1", "2"]


@mpi
@pytest.mark.parametrize("where", ["0", "1", "all", "outside of fit"])
def test_a_rank_that_raises_ends_the_others_with_one_message(where, tmp_path):
    out, err = mpiexec(2, "one_fails", tmp_path, where, code=1)
    rank, words = (0 if where == "all" else where), "a mistake in a callback"
    if where == "outside of fit":
        rank, words = 1, "a mistake in the program"
    assert out == ""
    assert err.count(f"ValueError: {words}") == 1
    assert err.startswith(f"rank {rank} of 2 failed, which ends all: Traceback")


@mpi
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("lock", r"FolderInUseError: another training \(process {pid}\) is using .*Wait for its end"),
        ("seed", "ArgumentError: all ranks must have the same data and settings: seed is 0 on rank 0 and 1 on rank 1"),
        ("missing", "DataError: rank 1: labels are missing"),
        ("drift", "XpcnnError: after epoch 1 the weights of rank 1 are not those of rank 0"),
    ],
)
def test_what_all_ranks_refuse_is_said_once(what, words, tmp_path):
    with locked(tmp_path):
        out, err = mpiexec(2, "wrong", tmp_path, what, code=1)
    assert out == ""
    assert err.count("Traceback") == 1
    assert re.search(words.replace("{pid}", str(os.getpid())), err)


@mpi
def test_ranks_on_one_machine_divide_its_cores(tmp_path):
    mpiexec(2, "about", tmp_path)
    expected = max(1, len(os.sched_getaffinity(0)) // 2)
    assert [int((tmp_path / f"rank{rank}").read_text()) for rank in range(2)] == [expected] * 2


@mpi
@pytest.mark.cupy
def test_gpus_without_nccl_go_by_way_of_the_host(tmp_path):
    mpiexec(2, "on_device", tmp_path)
    clf = small_classifier(norm_net(), device="cuda:0")
    clf.fit(parallel_runs.DATA, epochs=1, batch_size=20, verbose=False)
    found, history = results(tmp_path, "device")
    assert_same_weights(found, weights(clf))
    assert history["loss"] == pytest.approx(clf.history["loss"], rel=1e-5)


COMMAND = ["-m", "xpcnn", "train", "mnist", "--device", "cpu", "--limit", "200", "--batch-size", "50"]


@mpi
def test_the_command_line_finds_that_it_is_one_of_several(tmp_path):
    out, err = mpiexec(2, *COMMAND, "--epochs", 2, "--out", tmp_path / "run", script=None)
    assert err == ""
    assert "4 batches of 50 an epoch\n2 processes share each batch\nEpoch 1/2" in out
    assert out.count("Epoch 2/2") == 1
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["ranks"] == 2
    assert run["result"]["epochs"] == 2
    assert xpcnn.load(tmp_path / "run" / "model.safetensors", device="cpu").input_shape == (1, 28, 28)

    out, err = mpiexec(2, "-m", "xpcnn", "train", tmp_path / "nothing", code=2, script=None)
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"xpcnn: {tmp_path / 'nothing'} does not exist")
    with locked(tmp_path / "run"):
        out, err = mpiexec(2, *COMMAND, "--out", tmp_path / "run", code=1, script=None)
    assert err.count("\n") == 1
    assert err.startswith(f"xpcnn: another training (process {os.getpid()}) is using {tmp_path / 'run'}")


@mpi
@pytest.mark.parametrize(
    ("number", "code", "saves"), [(signal.SIGTERM, 143, True), (signal.SIGINT, 130, True), (signal.SIGINT, 130, False)]
)
def test_a_signal_to_mpiexec_saves_and_ends_all(number, code, saves, tmp_path):
    command = [*COMMAND, "--epochs", "1000", "--out", str(tmp_path), "--quiet"]
    command += ["--checkpoint-every", "epoch"] if saves else []
    process = subprocess.Popen(
        [MPIEXEC, "-n", "2", sys.executable, *command], env=environment(), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 30
    begun = tmp_path / ("checkpoints/checkpoint-0000000004.safetensors" if saves else "history.csv")
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert err.count("xpcnn: ") == 1
    assert bool(checkpoints_in(tmp_path / "checkpoints")) == saves
    assert (tmp_path / "model.safetensors").exists() == (number == signal.SIGINT)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@mpi
def test_an_mpiexec_of_another_library_is_noticed():
    """Each process would believe to be alone, and all would do the same."""
    variables = environment() | {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "4"}
    done = subprocess.run(
        [sys.executable, *COMMAND], env=variables, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "mpiexec has started 4 processes, but mpi4py sees 1: they belong to different MPI libraries" in done.stderr


@mpi
def test_without_mpiexec_it_is_one_process():
    script = "from xpcnn.training.communicator import communicator; r = communicator('mpi'); print(r.size, r.gather(5))"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "1 [5]\n"
