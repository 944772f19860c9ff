"""The entrance of a network, labels of every kind, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import readonly, to_numpy
from toys import CLASSES, quarters, small_classifier

from xpcnn import ArgumentError, ArrayDataset, DataError, DeviceError
from xpcnn.data import Loader, split
from xpcnn.training.callbacks import NonFiniteError
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


# --- every message, from the verbs that people call ------------------------------------------------------------

IMAGES, LABELS = quarters(12)
FLOATS = (IMAGES / 255).astype(np.float32)


def spoiled(value, dtype="float32"):
    images = FLOATS.astype(dtype)
    images[3, 0, 2, 1] = value
    return images


class Own:
    """A data set of somebody's own, whose images are as told."""

    labels, classes, shape = LABELS, CLASSES, (1, 8, 8)

    def __init__(self, change=lambda image: image, **attributes):
        self.change = change
        vars(self).update(attributes)

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, index):
        return self.change(IMAGES[index]), int(LABELS[index])


class Table:
    """As pandas's frames and series: an array by `__array__`, with other methods around it."""

    def __init__(self, values):
        self.values = values
        self.shape = values.shape
        self.iloc = values

    def __len__(self):
        return len(self.values)

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


FINITE = "images must be finite; image 3 contains NaN or infinity, or a number too large for float32. Leave such images"
INTEGERS = r"labels must be integers; received dtype {}. Convert them with labels\.astype\(int\)"
PIXELS = r"must be uint8 \(0\.\.255\) or floats; received dtype {}\. Use x\.astype\(np\.uint8\) if .* else x\.astype"
NO_ARRAY = r"images must be an array \(N, C, H, W\); received {}"
NO_LABELS = r"labels must be an array \(N,\), one for each image; received {}"

# what is given to fit -> what is said
FIT = {
    "NaN": ((spoiled(np.nan), LABELS), FINITE),
    "infinity": ((spoiled(-np.inf), LABELS), FINITE),
    "beyond float32": ((spoiled(1e300, "float64"), LABELS), FINITE),
    "bool images": ((IMAGES > 9, LABELS), PIXELS.format("bool")),
    "int images": ((IMAGES.astype(int), LABELS), PIXELS.format("int64")),
    "int8 images": ((IMAGES.astype(np.int8), LABELS), PIXELS.format("int8")),
    "complex images": ((FLOATS * 1j, LABELS), r"images must form one array \(N, C, H, W\)"),
    "nested lists of ints": ((IMAGES.tolist(), LABELS.tolist()), PIXELS.format("int64")),
    "no images": ((IMAGES[:0], LABELS[:0]), "a data set needs at least one image; received none"),
    "a single number": ((1.5, LABELS), NO_ARRAY.format("1.5")),
    "nothing": ((None, LABELS), NO_ARRAY.format("None")),
    "a generator": (((i for i in IMAGES), LABELS), NO_ARRAY.format(r"a generator, .* Give list\(\.\.\.\) of it")),
    "a dict": (({0: IMAGES}, LABELS), NO_ARRAY.format(r"a dict\. Give its values as arrays")),
    "one axis": ((IMAGES.ravel(), LABELS), r"must have shape \(N, C, H, W\) or \(N, H, W\); received shape \(768,\)"),
    "two axes": ((IMAGES[0, 0], LABELS), r"or \(N, H, W\); received shape \(8, 8\)"),
    "five axes": ((IMAGES[None], LABELS), r"or \(N, H, W\); received shape \(1, 12, 1, 8, 8\)"),
    "a table of pixels": ((Table(IMAGES.reshape(12, 64)), LABELS), r"or \(N, H, W\); received shape \(12, 64\)"),
    "images and labels swapped": ((LABELS, IMAGES), r"or \(N, H, W\); received shape \(12,\)"),
    "channels last": ((np.zeros((12, 8, 8, 3)), LABELS), r"looks like \(N, H, W, C\)\. Use x\.transpose\(0, 3, 1, 2\)"),
    "fewer labels": ((IMAGES, LABELS[:5]), "one label per image: received 12 images and 5 labels"),
    "labels out of range": ((IMAGES, LABELS + 5), r"must lie in 0\.\.2, as the network has 3 outputs; received 7"),
    "negative labels": ((IMAGES, LABELS - 1), r"labels must lie in 0\.\.K-1; received -1 at index 0"),
    "huge labels": ((IMAGES, LABELS * 10**12), r"received 2000000000000 at index 2\. .*return_inverse=True\)\[1\]"),
    "float labels": ((IMAGES, LABELS * 1.0), INTEGERS.format("float64")),
    "NaN as a label": (
        (IMAGES, np.where(LABELS == 1, np.nan, LABELS)),
        r"labels must be integers; received nan at index 1\.",
    ),
    "complex labels": ((IMAGES, LABELS * 1j), INTEGERS.format("complex128")),
    "dates as labels": ((IMAGES, LABELS.astype("M8[D]")), INTEGERS.format(r"datetime64\[D\]")),
    "bytes as labels": ((IMAGES, [b"a", b"b"] * 6), r"received dtype \|S1\. Convert them with np\.unique\(labels, "),
    "objects as labels": (
        (IMAGES, np.array([None] * 12)),
        INTEGERS.format("object") + r", or labels\.astype\(str\) if",
    ),
    "names and numbers": ((IMAGES, np.array(["a", 1] * 6, object)), INTEGERS.format("object")),
    "unknown soft labels": ((IMAGES, np.ones((12, 3))), r"rows of probabilities that sum to 1; received \(12, 3\)"),
    "one number as labels": ((IMAGES, 3), NO_LABELS.format("3")),
    "a generator of labels": ((IMAGES, (int(t) for t in LABELS)), NO_LABELS.format(r"a generator, .* Give list")),
    "a set of labels": ((IMAGES, {0, 1}), NO_LABELS.format(r"a set, which has no length or order\. Give list")),
    "a dict of labels": ((IMAGES, {0: 1}), NO_LABELS.format("a dict. Give its values as arrays")),
    "one class": ((IMAGES, LABELS * 0), "all 12 training images are of class 0: nothing can be learned from that"),
    "no labels": ((IMAGES,), r"labels are missing: give images and labels as \(x, y\), .*received ndarray"),
    "pairs": (([*zip(IMAGES, LABELS, strict=True)],), "labels are missing: .*received list"),
    "a generator of pairs": ((zip(IMAGES, LABELS, strict=True),), "labels are missing: .*received zip"),
    "the name of a folder": (("images",), "labels are missing: .*received str"),
    "own data set, ints": ((Own(lambda x: x.astype(int)),), "or floats; the data set gives int64. Use image.astype"),
    "own data set, no channel": ((Own(lambda x: x[0]),), r"have shape \(1, 8, 8\); it gives \(8, 8\) for sample \d+\."),
    "own data set, other size": (
        (Own(lambda x: x[:, :5]),),
        r"have shape \(1, 8, 8\); it gives \(1, 5, 8\) for sample",
    ),
    "own data set, labels": (
        (Own(labels=LABELS + 4),),
        r"must lie in 0\.\.2, as the network has 3 outputs; received 6",
    ),
    "own data set, fewer labels": ((Own(labels=LABELS[:5]),), "received 12 images and 5 labels"),
}


@pytest.mark.parametrize("name", FIT)
def test_what_fit_says(name):
    data, message = FIT[name]
    with pytest.raises(DataError, match=message):
        small_classifier().fit(*data, epochs=1, verbose=False)


# options of fit -> what is said
OPTIONS = {
    "batch of none": ({"batch_size": 0}, ArgumentError, "batch_size must be an int of at least 1; received 0"),
    "batch of a fraction": ({"batch_size": 2.5}, ArgumentError, "an int of at least 1; received 2.5"),
    "batch larger than the data": (
        {"batch_size": 99, "drop_last": True},
        DataError,
        r"batch_size 99 with drop_last=True leaves no batch of 12 images\. Lower batch_size",
    ),
    "validation of other size": (
        {"validation": (IMAGES[:, :, :5], LABELS)},
        DataError,
        r"the network takes images of shape \(1, 8, 8\); received \(1, 5, 8\)",
    ),
    "validation of other classes": (
        {"validation": (IMAGES, LABELS + 1)},
        DataError,
        r"labels must lie in 0\.\.2; received 3 at index 2",
    ),
    "validation without labels": ({"validation": IMAGES}, DataError, "labels are missing"),
    "validation of all": ({"validation": 1.0}, ArgumentError, "fraction must lie between 0 and 1"),
    "a transform that gives ints": (
        {"augment": lambda image, rng: image.astype(int)},
        DataError,
        r"or floats; the transform gives int64\. Use image\.astype\(np\.uint8\)",
    ),
    "a transform that gives NaN": (
        {"augment": lambda image, rng: image * np.float32("nan")},
        NonFiniteError,
        "in epoch 1, in batch 1. .*the images of this batch are not finite .*check the data, the transforms",
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_what_fit_says_of_options(name):
    options, error, message = OPTIONS[name]
    with pytest.raises(error, match=message):
        small_classifier().fit(IMAGES, LABELS, epochs=1, verbose=False, **options)


def test_what_a_data_set_of_ones_own_hides_is_found_in_training():
    dataset = Own(lambda image: image * np.float32("inf"))
    with np.errstate(invalid="ignore"), pytest.raises(NonFiniteError, match="the images of this batch are not finite"):
        small_classifier().fit(dataset, epochs=1, verbose=False)


# what is given to predict -> what is said
PREDICT = {
    "NaN": (spoiled(np.nan), FINITE),
    "other channels": (np.repeat(IMAGES, 3, 1), r"takes images of shape \(1, 8, 8\); received \(3, 8, 8\)"),
    "other size": (IMAGES[:, :, :5], r"takes images of shape \(1, 8, 8\); received \(1, 5, 8\)"),
    "bool": (IMAGES > 5, PIXELS.format("bool")),
    "none": (IMAGES[:0], "a data set needs at least one image; received none"),
    "an empty list": ([], "predict needs at least one image; received an empty list"),
    "nothing": (None, NO_ARRAY.format("None")),
    "a generator": ((image for image in IMAGES), NO_ARRAY.format("a generator")),
    "labels too": ((IMAGES, LABELS), r"images must form one array \(N, C, H, W\)"),
    "no file": ("nothing.png", r"nothing\.png: cannot be read"),
}


@pytest.mark.parametrize("name", PREDICT)
def test_what_predict_says(name):
    images, message = PREDICT[name]
    model = small_classifier()
    model.build((1, 8, 8))
    with pytest.raises(DataError, match=message):
        model.predict(images)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (FLOATS.astype(np.float16), LABELS),
        (FLOATS.astype(np.float64), LABELS),
        (list(IMAGES), LABELS.tolist()),
        (FLOATS[:, 0].tolist(), list(LABELS)),
        (IMAGES, LABELS.astype(np.uint8)),
        (IMAGES, LABELS > 0),
        (IMAGES, np.minimum(LABELS, 1)),  # a class without images
        (IMAGES, Table(LABELS)),
        (IMAGES, Table(LABELS[:, None])),
        (IMAGES, Table(np.array(CLASSES, object)[LABELS])),
        (Table(IMAGES), LABELS),
    ],
    ids=[
        *("float16", "float64", "lists", "nested lists", "uint8 labels", "bool labels", "an empty class"),
        *("a series", "a column", "a series of names", "images in a table"),
    ],
)
def test_what_fit_takes(x, y):
    """Also batches larger than the data: they are then as large as the data."""
    history = small_classifier().fit(x, y, epochs=1, batch_size=99, verbose=False)
    assert np.isfinite(history["loss"]).all()


def test_arrays_of_the_other_device_are_taken(xp):
    model = small_classifier()
    model.fit(xp.asarray(IMAGES), xp.asarray(LABELS), epochs=1, verbose=False)
    assert model.predict(xp.asarray(FLOATS)).shape == (12,)
    if xp is not np:
        with pytest.raises(DeviceError, match="to_device"):
            model.net(xp.asarray(FLOATS))


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
