"""The loader: order, batches, workers, errors, threads."""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xpcnn import backend
from xpcnn.data import ArrayDataset, Compose, ImageFolder, Loader, Mixup, Normalize, RandomAffine, RandomHorizontalFlip
from xpcnn.errors import ArgumentError, DataError


def numbered(n, shape=(1, 2, 2)):
    """Images whose pixels all are the number of the image, which is its label modulo 7 as well."""
    x = np.broadcast_to(np.arange(n, dtype=np.float32).reshape(-1, 1, 1, 1), (n, *shape)).copy()
    return ArrayDataset(x, np.arange(n) % 7)


def workers_alive():
    return [t for t in threading.enumerate() if t.name.startswith("xpcnn-loader")]


def batches(loader, epoch=0, start=0):
    return [(backend.to_numpy(x), backend.to_numpy(t)) for x, t in loader.epoch(epoch, start)]


def assert_same(first, second):
    assert len(first) == len(second)
    for (x, t), (u, v) in zip(first, second, strict=True):
        assert x.dtype == u.dtype
        assert t.dtype == v.dtype
        np.testing.assert_array_equal(x, u)
        np.testing.assert_array_equal(t, v)


@given(
    n=st.integers(1, 60), batch=st.integers(1, 20), drop=st.booleans(), shuffle=st.booleans(), epoch=st.integers(0, 3)
)
def test_an_epoch_holds_every_sample_once(n, batch, drop, shuffle, epoch):
    if drop and batch > n:
        return
    loader = Loader(numbered(n), batch, shuffle=shuffle, drop_last=drop)
    found = batches(loader, epoch)
    assert len(found) == len(loader)
    assert all(len(x) == batch for x, _ in found[: n // batch])
    numbers = np.concatenate([x[:, 0, 0, 0] for x, _ in found]).astype(int)
    assert len(set(numbers.tolist())) == len(numbers) == (n // batch * batch if drop else n)
    np.testing.assert_array_equal(np.concatenate([t for _, t in found]), numbers % 7)
    np.testing.assert_array_equal(numbers, loader.order(epoch)[: len(numbers)])
    assert shuffle or numbers.tolist() == list(range(len(numbers)))


def test_shapes_and_dtypes(rng):
    d = ArrayDataset(rng.integers(0, 256, (5, 3, 4, 6), dtype=np.uint8), [0, 1, 2, 1, 0])
    x, t = next(iter(Loader(d, 2)))
    assert (x.shape, x.dtype) == ((2, 3, 4, 6), np.uint8)
    assert (t.shape, t.dtype) == ((2,), np.int64)
    assert x.flags.writeable


def test_order_depends_on_seed_and_epoch_alone():
    d = numbered(50)
    orders = [Loader(d, 8, seed=seed).order(epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert Loader(d, 3, seed=1, workers=2).order(1).tolist() == orders[3]


def test_iterating_runs_one_epoch_after_the_other():
    loader = Loader(numbered(20), 6)
    for epoch in range(3):
        assert_same(list(loader), batches(loader, epoch))


AUGMENT = Compose([RandomHorizontalFlip(), RandomAffine(20, 0.1), Normalize(0.1, 0.3), Mixup(0.4, 7)])


@pytest.mark.parametrize("transform", [None, RandomAffine(20), AUGMENT], ids=["none", "affine", "all"])
@pytest.mark.parametrize("options", [{"workers": 1}, {"workers": 3}, {"workers": 2, "prefetch": 7}], ids=str)
def test_workers_change_nothing(rng, transform, options):
    d = ArrayDataset(rng.integers(0, 256, (41, 1, 9, 9), dtype=np.uint8), np.arange(41) % 7)
    plain = Loader(d, 6, seed=5, transform=transform)
    threaded = Loader(d, 6, seed=5, transform=transform, **options)
    for epoch in (0, 3):
        assert_same(batches(plain, epoch), batches(threaded, epoch))
    assert not workers_alive()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_may_begin_anywhere(rng, workers):
    d = ArrayDataset(rng.random((30, 1, 5, 5), np.float32), np.arange(30) % 7)
    loader = Loader(d, 4, seed=2, transform=AUGMENT, workers=workers)
    whole = batches(loader, 1)
    for start in (0, 3, 7, 8):
        assert_same(batches(loader, 1, start), whole[start:])


def test_augmentation_belongs_to_the_sample_not_to_its_batch(rng):
    d = ArrayDataset(rng.random((12, 1, 5, 5), np.float32), np.arange(12) % 7)
    small, large = (Loader(d, size, seed=9, transform=RandomAffine(30)) for size in (2, 12))
    np.testing.assert_array_equal(np.concatenate([x for x, _ in batches(small)]), batches(large)[0][0])
    other = batches(Loader(d, 12, shuffle=False, seed=9, transform=RandomAffine(30)), 1)[0][0]
    assert not np.array_equal(other, batches(Loader(d, 12, shuffle=False, seed=9, transform=RandomAffine(30)))[0][0])


def test_mixup_gives_soft_labels():
    x, t = batches(Loader(numbered(8), 8, transform=Mixup(1.0, 7)))[0]
    assert x.dtype == t.dtype == np.float32
    assert t.shape == (8, 7)


def test_image_folder_with_workers(animals):
    d = ImageFolder(animals, 6)
    assert_same(batches(Loader(d, 3)), batches(Loader(ImageFolder(animals, 6, cache=False), 3, workers=2)))


class Custom:
    """A user's data set without `take`; item 11 fails."""

    def __init__(self, error):
        self.error = error
        self.labels = [0, 1] * 10
        self.classes = ["a", "b"]
        self.shape = (1, 2, 2)

    def __len__(self):
        return 20

    def __getitem__(self, index):
        if index == 11:
            raise self.error
        return np.full((1, 2, 2), index, np.float32), index % 2


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("error", [KeyError("lost"), DataError("scan.png: broken"), MemoryError("full")])
def test_errors_reach_the_consumer_in_turn(workers, error):
    iterator = iter(Loader(Custom(error), 4, shuffle=False, workers=workers))
    assert [next(iterator)[0][:, 0, 0, 0].tolist() for _ in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(type(error)) as caught:
        next(iterator)
    assert caught.value is error
    assert not workers_alive()


@pytest.mark.parametrize("how", ["break", "close", "drop", "consumer error"])
def test_stopping_early_leaves_no_thread(how):
    loader = Loader(numbered(100), 2, workers=3, transform=lambda image, rng: time.sleep(0.001) or image)
    if how == "break":
        for _ in loader:
            assert workers_alive()
            break
    elif how == "consumer error":
        with pytest.raises(ZeroDivisionError):
            [1 // (len(x) - 2) for x, _ in loader]
    else:
        iterator = loader.epoch(0)
        next(iterator)
        assert workers_alive()
        if how == "close":
            iterator.close()
        del iterator
    gc.collect()
    assert not workers_alive()


def test_an_iterator_that_is_never_used_starts_nothing():
    iterator = Loader(numbered(10), 2, workers=2).epoch(0)
    assert not workers_alive()
    del iterator


def test_workers_prepare_ahead_but_not_everything():
    prepared = []
    loader = Loader(
        numbered(40), 1, shuffle=False, workers=2, prefetch=3, transform=lambda image, rng: prepared.append(1) or image
    )
    iterator = loader.epoch(0)
    next(iterator)
    deadline = time.monotonic() + 5
    while len(prepared) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(prepared) == 4
    iterator.close()


def test_without_a_transform_a_batch_is_one_look_up():
    calls = []

    class Counted(ArrayDataset):
        def take(self, indices):
            calls.append(len(indices))
            return super().take(indices)

        def __getitem__(self, index):
            raise AssertionError("item by item")

    list(Loader(Counted(np.zeros((10, 1, 2, 2), np.uint8), [0, 1] * 5), 4))
    assert calls == [4, 4, 2]


def test_batches_on_the_device(xp, rng):
    device = "cpu" if xp is np else "cuda:0"
    d = ArrayDataset(rng.integers(0, 256, (22, 1, 5, 5), dtype=np.uint8), np.arange(22) % 7)
    for transform in (None, AUGMENT):
        expected = batches(Loader(d, 4, transform=transform))
        for workers in (0, 2):
            loader = Loader(d, 4, transform=transform, workers=workers, device=device)
            assert loader.device == device
            got = list(loader.epoch(0))
            assert all(isinstance(a, xp.ndarray) for batch in got for a in batch)
            assert_same([tuple(map(backend.to_numpy, batch)) for batch in got], expected)
            for x, _ in loader.epoch(0, start=2):
                assert x.shape[0] == 4
                break
    assert not workers_alive()


def test_a_device_epoch_may_be_empty(xp):
    loader = Loader(numbered(4), 2, device="cpu" if xp is np else "cuda:0")
    assert list(loader.epoch(0, start=2)) == []


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"batch_size": 0}, ArgumentError, "batch_size must be an int of at least 1; received 0"),
        ({"batch_size": 2.0}, ArgumentError, r"batch_size must be an int of at least 1; received 2\.0"),
        ({"seed": -1}, ArgumentError, "seed must be an int of at least 0; received -1"),
        ({"workers": -1}, ArgumentError, "workers must be an int of at least 0; received -1"),
        ({"prefetch": 0}, ArgumentError, "prefetch must be an int of at least 1; received 0"),
        ({"transform": 3}, ArgumentError, r"transform must be callable as f\(image, rng\); received 3"),
        ({"batch_size": 11, "drop_last": True}, DataError, "batch_size 11 with drop_last=True leaves no batch of 10"),
    ],
)
def test_wrong_options(options, error, text):
    with pytest.raises(error, match=text):
        Loader(numbered(10), **{"batch_size": 2, **options})


def test_labels_are_checked_once():
    d = Custom(None)
    d.labels = np.array([0, 2] * 10)
    with pytest.raises(DataError, match=r"labels must lie in 0\.\.1; received 2 at index 1"):
        Loader(d, 2)


@pytest.mark.parametrize(("epoch", "start"), [(-1, 0), (0, -1), (0, 6)])
def test_wrong_epochs(epoch, start):
    with pytest.raises(ArgumentError, match=rf"start in 0\.\.5; received epoch {epoch}, start {start}"):
        Loader(numbered(10), 2).epoch(epoch, start)


def test_transforms_that_disagree_about_the_shape():
    loader = Loader(
        numbered(4), 4, shuffle=False, transform=lambda image, rng: image[:, : 1 + int(image[0, 0, 0]) // 2]
    )
    with pytest.raises(DataError, match=r"sample 0 has \(1, 1, 2\) float32, sample 2 has \(1, 2, 2\) float32"):
        list(loader)
