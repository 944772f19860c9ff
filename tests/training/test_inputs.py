"""The entrance of a network, labels of every kind, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import readonly, to_numpy
from toys import CLASSES, quarters

from xpcnn import ArrayDataset, DataError
from xpcnn.data import Loader, split
from xpcnn.training.inputs import Entrance, as_images, dataset_of, is_dataset, loader_of, named, numbers, read_labels

# --- the entrance -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_entrance_divides_bytes_and_normalises(xp, rng, dtype):
    images = readonly(rng.integers(0, 256, (5, 3, 4, 6), dtype=np.uint8))
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    x = Entrance(np.dtype(dtype), mean, std)(xp.asarray(images))
    expected = (images / 255.0 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    assert x.dtype == dtype
    assert x.flags.c_contiguous
    np.testing.assert_allclose(to_numpy(x), expected.transpose(1, 2, 3, 0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_entrance_takes_floats_as_they_are_and_leaves_its_input(xp, rng, kind):
    images = xp.asarray(rng.normal(size=(4, 1, 3, 3)).astype(kind))
    before = images.copy()
    x = Entrance(np.dtype("float32"), (1.0,), (2.0,))(images)
    assert x.dtype == np.float32
    expected = (to_numpy(before).astype("float64").transpose(1, 2, 3, 0) - 1) / 2
    np.testing.assert_allclose(to_numpy(x), expected, rtol=1e-6, atol=1e-6)
    assert (images == before).all()


def test_entrance_of_one_image_does_not_write_into_it():
    image = np.ones((1, 1, 2, 2), np.float32)  # batch-last is a view of this one
    Entrance(np.dtype("float32"), (5.0,), (1.0,))(readonly(image))
    assert (image == 1).all()


# --- labels -----------------------------------------------------------------------------------------------------


def test_class_names_are_sorted_and_numbered():
    labels = read_labels(["dog", "cat", "dog"], None)
    assert labels.names == ["cat", "dog"]
    np.testing.assert_array_equal(labels.values, [1, 0, 1])


@pytest.mark.parametrize("y", [np.array(["b", "a"]), np.array(["b", "a"], object), ["b", "a"]])
def test_known_names_keep_their_order(y):
    np.testing.assert_array_equal(read_labels(y, ["b", "c", "a"]).values, [0, 2])


def test_unknown_name():
    with pytest.raises(DataError, match="label 'zebra' is not one of the classes: cat, dog"):
        read_labels(["cat", "zebra"], ["cat", "dog"])


def test_one_hot_rows_become_numbers():
    labels = read_labels(np.eye(4, dtype=np.int8)[[2, 0]], None)
    np.testing.assert_array_equal(labels.values, [2, 0])


def test_soft_rows_stay():
    soft = np.array([[0.25, 0.75], [1.0, 0.0]])
    labels = read_labels(soft, ["a", "b"])
    assert labels.values.dtype == np.float32
    assert labels.names == ["a", "b"]
    np.testing.assert_array_equal(labels.values, soft)


@pytest.mark.parametrize("rows", [[[0.5, 0.6]], [[1.5, -0.5]], [[np.nan, 1.0]], [[3, 4]]])
def test_rows_that_are_no_distribution(rows):
    with pytest.raises(DataError, match=r"must be rows of probabilities that sum to 1; received \(1, 2\)"):
        read_labels(np.array(rows), None)


def test_columns_and_booleans():
    np.testing.assert_array_equal(read_labels(np.array([[2], [1]]), None).values, [2, 1])
    labels = read_labels(np.array([True, False]), None)
    assert labels.values.dtype == np.int64
    np.testing.assert_array_equal(labels.values, [1, 0])


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.array([0.0, 1.0, 2.0]), r"labels must be integers; received dtype float64"),
        (np.array([-1, 0, 1]), r"labels must lie in 0\.\.K-1; received -1 at index 0"),
        (np.array([0, 1]), r"one label per image: received 3 images and 2 labels"),
        (np.zeros((3, 2, 2)), r"labels must have shape \(N,\)"),
        (np.array([0, None, 1], object), r"labels must be integers; received dtype object"),
    ],
)
def test_labels_that_cannot_be_used(y, message):
    with pytest.raises(DataError, match=message):
        dataset_of(np.zeros((3, 1, 4, 4), np.uint8), y, None)


def test_names_that_are_numbers_count_as_none():
    assert named(numbers(3)) is None
    assert named(["1", "0"]) == ["1", "0"]


# --- images -----------------------------------------------------------------------------------------------------

X = np.zeros((4, 1, 5, 5), np.float32)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X.astype(bool), "images must be uint8.* or floats; received dtype bool"),
        (X.astype(int), "images must be uint8.* or floats; received dtype int64"),
        (X + np.nan, "images must be finite; image 0 contains NaN"),
        (X[:, 0, 0], r"images must have shape \(N, C, H, W\)"),
        (X[:0], "needs at least one image; received none"),
        (np.zeros((4, 8, 8, 3)), r"looks like \(N, H, W, C\). Use x.transpose\(0, 3, 1, 2\)"),
        ([np.zeros((1, 4, 4)), np.zeros((1, 5, 4))], "these differ in shape or are no numbers"),
        (np.array([None] * 4), "these differ in shape or are no numbers"),
        (["a.png"] * 4, "these differ in shape or are no numbers"),
    ],
)
def test_images_that_cannot_be_used(x, message):
    with pytest.raises(DataError, match=message):
        dataset_of(x, np.arange(len(x)), None)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_floats_become_float32(dtype):
    assert dataset_of(X.astype(dtype), np.arange(4), None)[0][0].dtype == np.float32


def test_arrays_of_the_device_are_fetched(xp):
    dataset = dataset_of((xp.asarray(X), xp.arange(4)), None, None)
    assert isinstance(dataset[0][0], np.ndarray)
    np.testing.assert_array_equal(dataset.labels, np.arange(4))


@pytest.mark.parametrize("data", [X, [X, np.arange(4)], (X,), None])
def test_missing_labels(data):
    with pytest.raises(DataError, match="labels are missing: give images and labels as"):
        dataset_of(data, None, None)


def test_a_single_image_becomes_a_batch():
    assert as_images(X[0], (1, 5, 5)).shape == (1, 1, 5, 5)
    assert as_images(X[0, 0], (1, 5, 5)).shape == (1, 1, 5, 5)
    assert as_images(X[:, 0], (1, 5, 5)).shape == (4, 5, 5)
    assert as_images(X, (1, 5, 5)).shape == X.shape


# --- data sets --------------------------------------------------------------------------------------------------


class Foreign:
    """Follows the protocol without deriving from anything."""

    labels = np.array([0, 1, 0])
    classes = CLASSES[:2]
    shape = (1, 5, 5)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return np.full((1, 5, 5), index, np.uint8), int(self.labels[index])


def test_data_sets_are_taken_as_they_are():
    dataset = Foreign()
    assert dataset_of(dataset, None, None) is dataset
    assert not is_dataset(X)
    dataset.labels = dataset.labels[:0]
    with pytest.raises(DataError, match="a data set needs at least one image"):
        dataset_of(dataset, None, None)


def test_soft_labels_reach_the_batches_in_any_order():
    images, labels = quarters(12)
    soft = (np.eye(3)[labels] * 0.7 + 0.1).astype(np.float32)
    dataset = dataset_of(images, soft, None)
    assert isinstance(dataset, ArrayDataset)
    part, _ = split(dataset, 0.25)
    for data in (dataset, part):
        loader = loader_of(data, 4, seed=1)
        order = loader.order(0)
        got = np.concatenate([t for _, t in loader.epoch(0)])
        rows = soft if data is dataset else soft[part.indices]
        np.testing.assert_array_equal(got, rows[order])


def test_plain_labels_make_a_plain_loader():
    loader = loader_of(ArrayDataset(*quarters(6)), 4, shuffle=False)
    assert isinstance(loader, Loader)
    assert next(iter(loader))[1].dtype == np.int64
