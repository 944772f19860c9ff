"""Memory of training: what is foretold is what is measured, and a limit is kept without changing the results."""

from __future__ import annotations

import subprocess
import sys
import threading
import tracemalloc
import weakref
from pathlib import Path

import numpy as np
import pytest
from helpers import to_numpy
from tolerances import assert_close
from toys import SHAPE, norm_net, place, quarters, small_classifier, small_net

from xpcnn import (
    SGD,
    Adam,
    ArgumentError,
    AuxiliaryHead,
    BatchNorm2d,
    Classifier,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    MaxPool2d,
    ReLU,
    Residual,
    Sequential,
    Step,
    backend,
    batch_last,
    config,
    softmax_cross_entropy,
    zoo,
)
from xpcnn.backend import peak_memory, set_threads, threads
from xpcnn.data import ArrayDataset, Loader
from xpcnn.inspection.bench import densenet40, resnet18, vgg16_bn
from xpcnn.layers import Recompute
from xpcnn.training import Callback
from xpcnn.training.memory import (
    Demand,
    Probe,
    bytes_of,
    choose,
    memory_of,
    queued,
    recomputing,
    training_memory,
    weights_of,
)

WITHIN = 0.15
NETS = {
    "keras_style": (zoo.keras_style, (1, 28, 28)),
    "mri": (zoo.mri, (1, 200, 200)),
    "vgg16-bn": (vgg16_bn, (3, 32, 32)),
    "resnet18": (resnet18, (3, 32, 32)),
    "densenet40": (densenet40, (3, 32, 32)),
}
OPTIMIZERS = {"adam": Adam, "momentum": lambda: SGD(0.01, momentum=0.9)}


def train_by_hand(net, shape, batch, optimizer, steps=3):
    """Train on random images as any loop would."""
    rng = np.random.default_rng(0)
    x, t = rng.random((batch, *shape), dtype=np.float32), rng.integers(0, 3, batch)
    for number in range(steps):
        logits, ctx = net.forward(batch_last(x), Step(0, number, need_dx=False))
        net.backward(softmax_cross_entropy(logits, t)[1], ctx, need_dx=False)
        optimizer.step(net)
        del logits, ctx


def built(name):
    make, shape = NETS[name]
    net = make()
    net.build(shape)
    return net, shape


# --- foretold and measured --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "batch", "optimizer"),
    [("keras_style", 16, "adam"), ("keras_style", 64, "momentum"), ("mri", 16, "momentum"),
     ("vgg16-bn", 16, "momentum"), ("resnet18", 16, "adam"), ("densenet40", 16, "adam")],
)  # fmt: skip
def test_what_is_foretold_is_what_is_allocated(name, batch, optimizer):
    net, shape = built(name)
    foretold = training_memory(net, shape, batch, OPTIMIZERS[optimizer]())
    with peak_memory("cpu"):  # which starts tracemalloc and gives scratch memory back
        before = tracemalloc.get_traced_memory()[0]
        train_by_hand(net, shape, batch, OPTIMIZERS[optimizer]())
        measured = tracemalloc.get_traced_memory()[1] - before + foretold.weights + foretold.gradients
    assert foretold.total == pytest.approx(measured, rel=WITHIN)


MEASURE = """
import sys
from pathlib import Path
from test_memory import NETS, OPTIMIZERS, train_by_hand

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])

name, batch, optimizer = sys.argv[1:]
make, shape = NETS[name]
before = status("VmRSS")
net = make()
net.build(shape)
train_by_hand(net, shape, int(batch), OPTIMIZERS[optimizer]())
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell the peak of a process in /proc")
@pytest.mark.parametrize("batch", [16, 64])
@pytest.mark.parametrize("name", ["vgg16-bn", "resnet18", "densenet40"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_is_foretold_is_what_a_process_takes(name, batch, optimizer):
    net, shape = built(name)
    foretold = training_memory(net, shape, batch, OPTIMIZERS[optimizer]())
    here = Path(__file__).resolve().parent
    path = [str(here), str(here.parent), str(here.parent.parent)]
    code = f"import sys; sys.path[:0] = {path!r}\n{MEASURE}"
    result = subprocess.run(
        [sys.executable, "-c", code, name, str(batch), optimizer], capture_output=True, text=True, check=True
    )
    assert foretold.total == pytest.approx(int(result.stdout), rel=WITHIN)


def test_what_is_too_large_to_try_is_extrapolated():
    net, shape = built("densenet40")
    exact = training_memory(net, shape, 32, Adam())
    with peak_memory("cpu"):
        foretold = training_memory(net, shape, 32, Adam(), probe=exact.total * 6 // 10)
        tried = tracemalloc.get_traced_memory()[1]
    assert foretold.kept == exact.kept
    assert foretold.total == pytest.approx(exact.total, rel=WITHIN)
    assert tried < exact.total * 0.7


def test_the_parts():
    net = Sequential(Conv2d(4, 3), BatchNorm2d(), ReLU(), Flatten(), Dense(5))
    net.build((2, 6, 6))
    parameters = 4 * 2 * 9 + 4 + 4 + 4 + 5 * 64 + 5
    found = training_memory(net, (2, 6, 6), 8, Adam(clip_norm=1.0), ema=True)
    assert found.weights == 4 * (parameters + 8)
    assert found.gradients == 4 * parameters
    assert found.optimizer == 3 * 4 * parameters
    assert found.images == 4 * 8 * 2 * 36
    # the image, the convolution's output, that of the batch norm, and mean and variance
    assert found.kept == 4 * (8 * (2 * 36 + 2 * 4 * 16) + 2 * 4)
    assert found.working > 0
    assert str(found).startswith(
        f"Training, batch 8: {found.total / 1024:.3g} KiB (weights 1.63 KiB, gradients 1.6 KiB"
    )
    assert training_memory(net, (2, 6, 6), 8, SGD(0.1)).optimizer == 0


def test_finding_out_changes_nothing(xp):
    net = Sequential(Conv2d(3, 3), BatchNorm2d(), ReLU(), AuxiliaryHead(Sequential(Flatten(), Dense(2))), Dropout(0.5))
    net.build((1, 8, 8), device=place(xp))
    before = {name: array.copy() for name, array in net.state_dict().items()}
    found = training_memory(net, (1, 8, 8), 4, Adam())
    assert found.total > found.kept > 4 * 4 * (64 + 2 * 3 * 36)
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(to_numpy(array), to_numpy(before[name]))
    assert not net.flat().grad.any()


def test_half_the_bytes_in_half_precision(xp):
    net = deep_net()
    net.build((1, 16, 16), device=place(xp))
    full, half = (Probe(net, (1, 16, 16), dtype=kind).measure(4) for kind in ("float32", "float16"))
    assert 0.45 * full.kept < half.kept < 0.6 * full.kept
    clf = small_classifier(deep_net(), dtype="mixed_float16", device=place(xp))
    clf.fit(larger(12), epochs=1, batch_size=4, memory_limit="1GB", verbose=False)
    assert clf.memory.kept == pytest.approx(half.kept, rel=0.01)


def test_scratch_memory_counts_for_every_thread(monkeypatch):
    """Which thread takes the larger piece is chance: in the end each will have had it."""
    monkeypatch.setattr(backend, "_scratch", weakref.WeakKeyDictionary())
    monkeypatch.setattr(backend, "_count", 3)
    asked, counted = threading.Barrier(3), threading.Barrier(3)

    def work(size: int) -> None:
        backend.workspace(np, "by several", (size,), np.float32)
        if size == 100:
            backend.workspace(np, "by one", (7,), np.float32)  # the caller of a loop, say: no other will need it
        asked.wait()
        counted.wait()

    workers = [threading.Thread(target=work, args=(size,)) for size in (100, 1000)]
    for worker in workers:
        worker.start()
    asked.wait()
    to_come = backend._scratch_to_come()
    counted.wait()
    for worker in workers:
        worker.join()
    assert to_come == 4 * (3 * 1000 - 1100)


def test_batches_that_wait():
    images, labels = quarters(12)
    data = ArrayDataset(images, labels)
    assert queued(Loader(data, 4)) == 1
    assert queued(Loader(data, 4, workers=3, prefetch=2)) == 5


@pytest.mark.cupy
def test_batches_that_wait_on_a_gpu():
    assert queued(Loader(ArrayDataset(*quarters(12)), 4, workers=3, device="cuda:0")) == 3


# --- a limit as people write it ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "number"),
    [(7, 7), ("7", 7), ("512 B", 512), ("2GiB", 2 << 30), ("1.5 MiB", 3 << 19), ("500MB", 500_000_000),
     ("3kb", 3000), (" 2 G ", 2_000_000_000), ("1TiB", 1 << 40)],
)  # fmt: skip
def test_sizes(size, number):
    assert bytes_of(size) == number


@pytest.mark.parametrize("size", [0, -1, True, 2.5, "", "much", "2 GiB more", "0 MB", "2EiB", None])
def test_what_is_no_size(size):
    with pytest.raises(
        ArgumentError, match=r'memory_limit is a number of bytes, or a text such as "2GiB" or "500MB"; '
    ):
        bytes_of(size)


# --- micro-batches ----------------------------------------------------------------------------------------------


def side_net():
    side = Sequential(Flatten(), Dense(3))
    return Sequential(Conv2d(4, 3), ReLU(), AuxiliaryHead(side), MaxPool2d(2), Flatten(), Dense(3))


def weights(clf):
    return {name: array.copy() for name, array in clf.net.state_dict().items()}


@pytest.mark.parametrize("micro_batch", [1, 4, 5, 7, 100])
def test_micro_batches_train_as_the_whole_batch(xp, micro_batch):
    """Side classifiers, class weights, smoothing and accumulation included; the last batch is smaller."""
    options = {"class_weights": [0.5, 2.0, 0.0], "label_smoothing": 0.1, "dtype": "float64", "device": place(xp)}
    whole, cut = (small_classifier(side_net(), **options) for _ in range(2))
    data = quarters(19, dtype="float64")
    whole.fit(data, epochs=2, batch_size=7, accumulate=2, verbose=False)
    cut.fit(data, epochs=2, batch_size=7, accumulate=2, micro_batch=micro_batch, verbose=False)
    for name, array in weights(whole).items():
        assert_close(weights(cut)[name], array, "sum of products")
    assert cut.history["accuracy"] == whole.history["accuracy"]


def test_soft_labels_in_micro_batches():
    images, labels = quarters(12, dtype="float64")
    soft = np.eye(3)[labels] * 0.8 + 0.2 / 3
    whole, cut = (small_classifier(class_weights=[1.0, 2.0, 3.0], dtype="float64") for _ in range(2))
    whole.fit(images, soft, epochs=1, batch_size=6, verbose=False)
    cut.fit(images, soft, epochs=1, batch_size=6, micro_batch=4, verbose=False)
    for name, array in weights(whole).items():
        assert_close(weights(cut)[name], array, "sum of products")


def test_what_callbacks_see_of_micro_batches():
    seen = []

    class Log(Callback):
        def on_loss(self, fit):
            seen.append((fit.batch, fit.x.shape[-1], fit.step.number))

        def on_step_end(self, fit):
            seen.append(float(fit.batch_loss))

    whole, cut = small_classifier(), small_classifier()
    images, labels = quarters(10)
    whole.fit(images, labels, epochs=1, batch_size=10, verbose=False)
    cut.fit(images, labels, epochs=1, batch_size=10, micro_batch=4, verbose=False, callbacks=[Log()])
    assert seen[:-1] == [(1, 3, 0), (1, 3, 1), (1, 4, 2)]
    assert seen[-1] == pytest.approx(whole.history["loss"][0], rel=1e-6)
    assert cut.history["loss"] == pytest.approx(whole.history["loss"], rel=1e-6)


@pytest.mark.parametrize("micro_batch", [0, 2.5])
def test_a_micro_batch_that_is_none(micro_batch):
    with pytest.raises(ArgumentError, match=rf"micro_batch must be an int of at least 1; received {micro_batch}"):
        small_classifier().fit(quarters(12), micro_batch=micro_batch, verbose=False)


# --- recomputation ----------------------------------------------------------------------------------------------


def deep_net(width=8, norm=True, blocks=4):
    """Residual blocks with everything in them that recomputation could get wrong."""

    def conv():
        return [Conv2d(width, 3, padding=1), *([BatchNorm2d()] if norm else []), ReLU()]

    body = [
        Residual(Sequential(*conv(), Dropout(0.2), Conv2d(width, 3, padding=1)), None, ReLU()) for _ in range(blocks)
    ]
    head = AuxiliaryHead(Sequential(Flatten(), Dense(3)))
    return Sequential(
        features=Sequential(*conv(), *body[:2], head, *body[2:]),
        classifier=Sequential(MaxPool2d(4), Flatten(), Dense(3)),
    )


def test_recomputation_gives_the_same_bits_from_less_memory(xp):
    net = deep_net()
    net.build((1, 16, 16), device=place(xp))
    again = recomputing(net, (1, 16, 16))
    x = xp.asarray(np.random.default_rng(0).standard_normal((1, 16, 16, 6)).astype("float32"))
    gradients, kept, statistics = [], [], []
    start = {name: array.copy() for name, array in net.state_dict().items()}
    for body in (net, again):
        net.load_state_dict(start)
        y, ctx = body.forward(x, Step(3, 5, need_dx=False))
        kept.append(sum(size for piece, size in memory_of(ctx).items() if piece not in weights_of(net)))
        body.backward(y * 0.1, ctx, need_dx=False)
        gradients.append(net.flat().grad.copy())
        statistics.append({name: array.copy() for name, array in net.state_dict().items()})
        net.flat().grad[...] = 0.0
    np.testing.assert_array_equal(*map(to_numpy, gradients))
    assert gradients[0].any()
    for name, array in statistics[0].items():
        np.testing.assert_array_equal(to_numpy(statistics[1][name]), to_numpy(array))
    assert kept[1] < 0.6 * kept[0]
    assert sum(isinstance(layer, Recompute) for _, layer in again.children()) >= 2


def test_side_classifiers_are_not_recomputed():
    net = deep_net()
    net.build((1, 16, 16))
    for _, layer in recomputing(net, (1, 16, 16)).children():
        if isinstance(layer, Recompute):
            assert not any(isinstance(inner, AuxiliaryHead) for _, inner in layer.walk())


def test_where_recomputation_saves_nothing():
    net = Sequential(Flatten(), Dense(3))
    net.build(SHAPE)
    assert recomputing(net, SHAPE) is None


# --- a limit that is kept ---------------------------------------------------------------------------------------


def demand(net, batch, shape=(1, 16, 16), device="cpu"):
    net.build(shape, device=device)
    return Demand(net, shape, batch, SGD(0.1))


def totals(wanted, bodies):
    """What the whole batch takes with each of these networks."""
    return [wanted.memory(Probe(wanted.net, wanted.shape, body).measure(wanted.batch_size)).total for body in bodies]


@pytest.fixture
def one_thread():
    """What small networks take depends on which thread does what."""
    before = threads()
    set_threads(1)
    yield
    set_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_with_batch_norm_recomputation_comes_before_small_micro_batches():
    wanted = demand(deep_net(), 32)
    whole, again = totals(wanted, [wanted.net, recomputing(wanted.net, wanted.shape)])
    half = wanted.memory(Probe(wanted.net, wanted.shape).measure(16)).total
    found, body = choose(wanted, whole * 11 // 10)
    assert (found.micro_batch, found.recompute, body) == (32, False, wanted.net)
    found, body = choose(wanted, (whole + half) // 2)
    assert (found.micro_batch, found.recompute, body) == (16, False, wanted.net)
    found, body = choose(wanted, half * 9 // 10)
    assert (found.micro_batch, found.recompute) == (16, True)
    assert body is not wanted.net
    assert found.total <= half * 0.9
    assert again < whole
    found, body = choose(wanted, half * 9 // 10, micro_batch=8)
    assert (found.micro_batch, found.recompute, body) == (8, False, wanted.net)


@pytest.mark.usefixtures("one_thread")
def test_without_batch_norm_micro_batches_come_first():
    wanted = demand(deep_net(norm=False), 32, (1, 32, 32))
    single = wanted.memory(Probe(wanted.net, wanted.shape).measure(1)).total
    found, body = choose(wanted, single * 11 // 10)
    assert (found.micro_batch, found.recompute, body) == (1, False, wanted.net)
    found, _ = choose(wanted, single * 95 // 100)
    assert (found.micro_batch, found.recompute) == (1, True)
    assert str(found).startswith("Training, batch 32 in micro-batches of 1 with recomputation: ")


def test_what_cannot_be_done():
    wanted = demand(small_net(), 8, SHAPE)
    with pytest.raises(ArgumentError) as caught:
        choose(wanted, 1000)
    text = str(caught.value)
    assert text.startswith("memory_limit: 1000 B is not enough. The least that this training can do with is ")
    assert "Training, batch 8 in micro-batches of 1" in text
    assert text.endswith("Raise the limit, lower batch_size, or use a smaller network or smaller images.")


def larger(count, times=2):
    images, labels = quarters(count)
    return images.repeat(times, axis=2).repeat(times, axis=3), labels


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("norm", [True, False])
def test_fit_stays_within_the_limit(xp, norm):
    width, times = (16, 4) if xp is np else (8, 2)  # on the CPU Python's own objects are counted as well
    wanted = demand(deep_net(width, norm), 24, (1, 8 * times, 8 * times), place(xp))
    (whole,) = totals(wanted, [wanted.net])
    limit = whole * 6 // 10
    measured = {}
    for key, options in {"free": {}, "held": {"memory_limit": limit}}.items():
        clf = small_classifier(deep_net(width, norm), device=place(xp))
        with peak_memory(place(xp)) as peak:
            clf.fit(larger(48, times), epochs=1, batch_size=24, verbose=False, **options)
            measured[key] = peak()
    assert measured["held"] <= 1.15 * limit
    assert 1.15 * limit < measured["free"] <= 1.15 * whole  # one batch at a time is kept, and no more
    assert clf.memory.total <= limit
    assert clf.memory.recompute == norm
    assert (clf.memory.micro_batch < 24) >= (not norm)


@pytest.mark.usefixtures("one_thread")
def test_a_limit_changes_no_bit_where_recomputation_is_enough(tmp_path):
    wanted = demand(deep_net(), 12)
    whole, again = totals(wanted, [wanted.net, recomputing(wanted.net, wanted.shape)])
    described = []

    class Watch(Callback):
        def on_step_end(self, fit):
            described.append((config(fit.net), list(fit.net.state_dict())))
            fit.classifier.save(tmp_path / "model.safetensors")

    free, held = small_classifier(deep_net(), ema=0.9), small_classifier(deep_net(), ema=0.9)
    free.fit(larger(24), epochs=2, batch_size=12, verbose=False)
    options = {"memory_limit": (whole + again) // 2 + free.net.flat().data.nbytes, "callbacks": [Watch()]}
    held.fit(larger(24), epochs=2, batch_size=12, validation=larger(6), verbose=False, **options)
    assert (held.memory.recompute, held.memory.micro_batch) == (True, 12)
    for name, array in weights(free).items():
        np.testing.assert_array_equal(weights(held)[name], array)
    plain = (config(deep_net()), list(free.net.state_dict()))
    assert all(described_now == plain for described_now in described)
    assert config(held.net) == plain[0]


def test_what_was_chosen_is_said(capsys):
    clf = Classifier(norm_net(), device="cpu")
    clf.fit(quarters(12), epochs=1, batch_size=6, memory_limit="1GB", verbose="lines")
    assert capsys.readouterr().out.startswith("Training, batch 6: ")
    assert clf.memory.micro_batch == 6
    clf.fit(quarters(12), epochs=1, batch_size=6, verbose="lines")
    assert "Training, batch" not in capsys.readouterr().out
    assert clf.memory is None
