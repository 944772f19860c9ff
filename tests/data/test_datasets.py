"""Data sets in memory, subsets, splits and statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xpcnn.data import ArrayDataset, Subset, mean_std, split
from xpcnn.data.datasets import TakingDataset, gather, limited, stratified_order
from xpcnn.errors import ArgumentError, DataError


class Listed:
    """The least a user's data set may be: no `take`."""

    def __init__(self, images, labels):
        self.images = images
        self.labels = np.array(labels)
        self.classes = ["a", "b"]
        self.shape = images[0].shape

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], int(self.labels[index])


# --- ArrayDataset -----------------------------------------------------------------------------------------------


def test_array_dataset_follows_the_protocol(rng):
    x = rng.integers(0, 256, (6, 3, 5, 4), dtype=np.uint8)
    d = ArrayDataset(x, [0, 1, 2, 0, 1, 2])
    assert len(d) == 6
    assert d.shape == (3, 5, 4)
    assert d.classes == ["0", "1", "2"]
    assert d.labels.dtype == np.int64
    image, label = d[4]
    np.testing.assert_array_equal(image, x[4])
    assert label == 1
    assert type(label) is int
    assert d[-1][1] == 2
    np.testing.assert_array_equal(d.take(np.array([5, 0])), x[[5, 0]])
    assert repr(d) == "ArrayDataset(6 images of shape (3, 5, 4), 3 classes)"
    assert [label for _, label in d] == [0, 1, 2, 0, 1, 2]


def test_grey_images_get_a_channel():
    assert ArrayDataset(np.zeros((2, 7, 5), np.uint8), [0, 1]).shape == (1, 7, 5)


def test_items_cannot_be_written_but_batches_are_copies():
    x = np.zeros((2, 1, 3, 3), np.uint8)
    d = ArrayDataset(x, [0, 1])
    with pytest.raises(ValueError, match="read-only"):
        d[0][0][:] = 1
    d.take(np.array([0, 1]))[:] = 9
    assert not x.any()
    assert x.flags.writeable


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_kept_as_float32(dtype):
    d = ArrayDataset(np.full((2, 1, 3, 3), 0.5, dtype), [0, 1])
    assert d.x.dtype == np.float32
    assert d.x.max() == 0.5


def test_float32_and_uint8_are_not_copied():
    for dtype in (np.float32, np.uint8):
        x = np.zeros((2, 1, 3, 3), dtype)
        assert np.shares_memory(ArrayDataset(x, [0, 1]).x, x)


def test_arrays_of_either_backend(xp):
    d = ArrayDataset(xp.ones((2, 1, 3, 3), xp.float32), xp.array([0, 1]))
    assert type(d.x) is np.ndarray
    assert d.labels.tolist() == [0, 1]


@pytest.mark.parametrize("shape", [(2, 28, 28, 1), (2, 32, 32, 3), (2, 10, 8, 4)])
def test_channels_last_is_refused(shape):
    with pytest.raises(DataError, match=r"looks like \(N, H, W, C\)\. Use x\.transpose\(0, 3, 1, 2\)"):
        ArrayDataset(np.zeros(shape, np.uint8), [0, 1])


@pytest.mark.parametrize("shape", [(2, 3, 8, 3), (2, 64, 1, 1), (2, 16, 3, 3), (2, 1, 28, 1)])
def test_narrow_images_are_not_taken_for_channels_last(shape):
    assert ArrayDataset(np.zeros(shape, np.uint8), [0, 1]).shape == shape[1:]


@pytest.mark.parametrize("shape", [(2, 5), (2,), (2, 1, 1, 5, 5), (2, 1, 0, 5)])
def test_images_of_another_rank(shape):
    with pytest.raises(DataError, match=r"shape \(N, C, H, W\) or \(N, H, W\); received shape"):
        ArrayDataset(np.zeros(shape, np.uint8), [0, 1])


@pytest.mark.parametrize("dtype", [np.int64, bool, complex])
def test_images_of_another_dtype(dtype):
    with pytest.raises(
        DataError, match=r"must be uint8 \(0\.\.255\) or floats; received dtype .* x\.astype\(np\.uint8\)"
    ):
        ArrayDataset(np.zeros((2, 3, 3), dtype), [0, 1])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_images_must_be_finite(value):
    x = np.zeros((3, 1, 2, 2), np.float32)
    x[2, 0, 1, 0] = value
    with pytest.raises(DataError, match="image 2 contains NaN or infinity"):
        ArrayDataset(x, [0, 1, 0])


@pytest.mark.parametrize(
    ("labels", "classes", "text"),
    [
        (
            [0.0, 1.0],
            None,
            r"labels must be integers; received dtype float64\. Convert them with labels\.astype\(int\)",
        ),
        ([True, False], None, r"received dtype bool\. Convert them with labels\.astype\(int\)"),
        (["a", "b"], None, r"Convert them with np\.unique\(labels, return_inverse=True\)"),
        (
            np.eye(2, dtype=int),
            None,
            r"received shape \(2, 2\)\. If the rows are one-hot, use labels\.argmax\(axis=1\)",
        ),
        ([[0], [1]], None, r"must have shape \(N,\); received shape \(2, 1\)\. Use labels\.reshape\(-1\)"),
        ([0, 1, 1], None, "one label per image: received 2 images and 3 labels"),
        ([0, -1], None, r"labels must lie in 0\.\.K-1; received -1 at index 1"),
        ([2, 0], ["a", "b"], r"labels must lie in 0\.\.1; received 2 at index 0"),
        ([7, 10**12], None, r"class numbers 0\.\.K-1; received 1000000000000 at index 1\. .* np\.unique\(labels, ret"),
        (np.array([0, 2**64 - 1], np.uint64), None, r"received 18446744073709551615 at index 1"),
    ],
)
def test_wrong_labels(labels, classes, text):
    with pytest.raises(DataError, match=text):
        ArrayDataset(np.zeros((2, 3, 3), np.uint8), labels, classes)


def test_no_images():
    with pytest.raises(DataError, match="at least one image; received none"):
        ArrayDataset(np.zeros((0, 3, 3), np.uint8), np.zeros(0, int))


def test_class_names_become_text():
    assert ArrayDataset(np.zeros((2, 3, 3), np.uint8), [0, 1], classes=(7, "b", "c")).classes == ["7", "b", "c"]


def test_take_must_be_defined():
    class Forgot(TakingDataset):
        labels = np.array([0])

    with pytest.raises(TypeError, match=r"Forgot must define take\(indices\)"):
        Forgot()[0]


# --- batches of any data set ------------------------------------------------------------------------------------


def test_gather_from_a_users_data_set(rng):
    images = [rng.random((1, 3, 3), np.float32) for _ in range(4)]
    batch = gather(Listed(images, [0, 1, 0, 1]), np.array([3, 1]))
    np.testing.assert_array_equal(batch, np.stack([images[3], images[1]]))


@pytest.mark.parametrize("other", [np.zeros((1, 4, 3), np.uint8), np.zeros((1, 3, 3), np.float32)])
def test_images_of_a_batch_must_agree(other):
    d = Listed([np.zeros((1, 3, 3), np.uint8)] * 2 + [other], [0, 1, 0])
    with pytest.raises(DataError, match=r"sample 1 has \(1, 3, 3\) uint8, sample 2 has \(1, [34], 3\) .*one size"):
        gather(d, np.array([1, 2]))


# --- Subset -----------------------------------------------------------------------------------------------------


def test_subset(rng):
    x = rng.integers(0, 256, (5, 1, 2, 2), dtype=np.uint8)
    d = Subset(ArrayDataset(x, [0, 1, 2, 1, 0], ["a", "b", "c"]), [4, 1, 1])
    assert len(d) == 3
    assert d.labels.tolist() == [0, 1, 1]
    assert (d.classes, d.shape) == (["a", "b", "c"], (1, 2, 2))
    np.testing.assert_array_equal(d[0][0], x[4])
    np.testing.assert_array_equal(d.take(np.array([2, 0])), x[[1, 4]])
    inner = Subset(d, np.array([2]))
    np.testing.assert_array_equal(inner.take(np.array([0])), x[[1]])
    assert inner[0][1] == 1


@pytest.mark.parametrize(
    ("indices", "text"),
    [
        ([], "non-empty list of integers"),
        ([0.0], r"received shape \(1,\), dtype float64"),
        ([True, False, True], r"dtype bool\. Use np\.flatnonzero\(mask\)"),
        ([[0]], r"received shape \(1, 1\)"),
        ([0, 3], r"must lie in 0\.\.2; received 3"),
        ([-1], r"must lie in 0\.\.2; received -1"),
    ],
)
def test_wrong_indices(indices, text):
    with pytest.raises(DataError, match=text):
        Subset(ArrayDataset(np.zeros((3, 2, 2), np.uint8), [0, 1, 0]), indices)


# --- split and limit --------------------------------------------------------------------------------------------


labels_strategy = st.lists(st.integers(0, 4), min_size=1, max_size=200).map(np.array)


@given(labels=labels_strategy, seed=st.integers(0, 2**32))
def test_every_prefix_has_the_class_proportions(labels, seed):
    order = stratified_order(labels, seed)
    assert sorted(order.tolist()) == list(range(len(labels)))
    total = np.bincount(labels, minlength=5)
    seen = np.cumsum(np.eye(5)[labels[order]], axis=0)
    share = np.arange(1, len(labels) + 1)[:, None] / len(labels) * total
    assert np.abs(seen - share).max() <= (total > 0).sum() / 2 + 1e-9
    np.testing.assert_array_equal(order, stratified_order(labels, seed))


@given(labels=labels_strategy, fraction=st.floats(0.01, 0.99), seed=st.integers(0, 100), stratified=st.booleans())
def test_split_parts_are_disjoint_and_whole(labels, fraction, seed, stratified):
    d = ArrayDataset(np.zeros((len(labels), 2, 2), np.uint8), labels, "abcde")
    count = round(fraction * len(labels))
    if not 0 < count < len(labels):
        with pytest.raises(ArgumentError, match="leave both parts at least one of"):
            split(d, fraction, seed, stratified)
        return
    train, held_out = split(d, fraction, seed, stratified)
    assert len(held_out) == count
    assert sorted([*train.indices, *held_out.indices]) == list(range(len(labels)))
    if stratified:
        for label, total in enumerate(np.bincount(labels, minlength=5)):
            assert abs((held_out.labels == label).sum() - fraction * total) <= 3


def test_split_depends_on_the_seed_alone(rng):
    d = ArrayDataset(np.zeros((100, 2, 2), np.uint8), rng.integers(0, 3, 100))
    for stratified in (True, False):
        first, again, other = (split(d, 0.25, seed, stratified)[1].indices for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, math.nan])
def test_wrong_fraction(fraction):
    d = ArrayDataset(np.zeros((4, 2, 2), np.uint8), [0, 1, 0, 1])
    with pytest.raises(ArgumentError, match="fraction must lie between 0 and 1"):
        split(d, fraction)


def test_limit_keeps_proportions_and_kind():
    d = ArrayDataset(np.arange(60, dtype=np.uint8).reshape(60, 1, 1, 1), [0] * 40 + [1] * 20, ["a", "b"])
    part = limited(d, 15)
    assert type(part) is ArrayDataset
    assert np.bincount(part.labels).tolist() == [10, 5]
    assert part.classes == ["a", "b"]
    assert limited(d, None) is d
    assert limited(d, 60) is d
    assert type(limited(Subset(d, range(30)), 10)) is Subset
    with pytest.raises(ArgumentError, match="limit must be at least 1; received 0"):
        limited(d, 0)


# --- mean and standard deviation --------------------------------------------------------------------------------


def test_mean_std_of_bytes(rng):
    x = rng.integers(0, 256, (50, 3, 6, 5), dtype=np.uint8)
    mean, std = mean_std(ArrayDataset(x, [0, 1] * 25))
    assert mean.dtype == std.dtype == np.float64
    np.testing.assert_allclose(mean, (x / 255).mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, (x / 255).std(axis=(0, 2, 3)), rtol=1e-12)


def test_mean_std_in_many_chunks_far_from_zero(rng):
    x = (1e4 + rng.random((40, 1, 250, 250))).astype(np.float32)
    mean, std = mean_std(ArrayDataset(x, [0, 1] * 20))
    np.testing.assert_allclose(mean, x.mean(axis=(0, 2, 3), dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(std, x.astype(np.float64).std(axis=(0, 2, 3)), rtol=1e-9)


def test_mean_std_of_a_part_sees_every_class():
    x = np.repeat(np.array([0, 255], np.uint8), 50).reshape(100, 1, 1, 1)
    mean, std = mean_std(ArrayDataset(x, [0] * 50 + [1] * 50), limit=10)
    assert mean.tolist() == [0.5]
    assert std.tolist() == [0.5]
