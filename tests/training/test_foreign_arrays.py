"""Arrays of other libraries: taken where they are, handed back where they are, refused with advice.

The producers here have nothing but the protocol, so no other library is needed; tests/outside has torch.
"""

from __future__ import annotations

import numpy as np
import pytest
from helpers import to_numpy
from toys import quarters

import xpcnn
from xpcnn import ArrayDataset, Classifier, DataError, Dense, Flatten, Sequential, batch_last, conv2d
from xpcnn.backend import as_array
from xpcnn.training.inputs import as_images


class ByDLPack:
    """An array of a library that knows DLPack and nothing else."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class ByInterface:
    """An array that says where its memory is: `__array_interface__`, or `__cuda_array_interface__` on a GPU."""

    def __init__(self, array):
        name = "__array_interface__" if isinstance(array, np.ndarray) else "__cuda_array_interface__"
        self.array = array
        setattr(self, name, getattr(array, name))


class ByMethod:
    """An array that converts itself, as data frames do."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array, dtype)


SHARED = pytest.mark.parametrize("wrap", [ByDLPack, ByInterface])


def net_of(classes=3):
    return Sequential(Flatten(), Dense(classes))


def toy_classifier():
    return Classifier(net_of(), device="cpu", seed=3)


# --- in ---------------------------------------------------------------------------------------------------------


@SHARED
@pytest.mark.parametrize("dtype", ["uint8", "int64", "float16", "float32", "float64"])
def test_memory_is_shared(xp, wrap, dtype):
    own = xp.arange(24).astype(dtype).reshape(2, 3, 4)
    for array in (own, own.transpose(2, 0, 1), own[:, ::2]):
        found = as_array(wrap(array))
        assert type(found) is xp.ndarray
        assert (found.shape, found.dtype, found.strides) == (array.shape, array.dtype, array.strides)
        array[0, 0, 0] = 99
        assert int(found[0, 0, 0]) == 99


def test_our_own_arrays_and_what_is_none_stay_what_they_are(xp):
    array = xp.ones(3)
    nothing = [1, 2]
    assert as_array(array) is array
    assert as_array(nothing) is nothing
    assert as_array(None) is None


def test_a_data_set_is_a_view_of_foreign_memory():
    images, labels = quarters(6)
    images = images.astype(np.float32)
    dataset = ArrayDataset(ByDLPack(images), ByDLPack(labels))
    assert np.shares_memory(dataset.x, images)
    images[4] = 7.0
    assert (dataset[4][0] == 7.0).all()
    assert not dataset.x.flags.writeable
    assert images.flags.writeable


@SHARED
def test_training_is_that_on_our_own_arrays(xp, wrap):
    images, labels = quarters(24)
    ours, theirs = toy_classifier(), toy_classifier()
    ours.fit(images, labels, epochs=2, verbose=False)
    given = wrap(xp.asarray(images)), wrap(xp.asarray(labels))
    theirs.fit(*given, epochs=2, validation=given, verbose=False)
    np.testing.assert_array_equal(theirs.predict_proba(given[0]), ours.predict_proba(images))
    np.testing.assert_array_equal(theirs.predict(given[0]), ours.predict(images))
    assert theirs.score(*given) == ours.score(images, labels)


@pytest.mark.parametrize("wrap", [ByDLPack, ByInterface, ByMethod])
def test_nets_and_functions(xp, rng, wrap):
    if wrap is ByMethod and xp is not np:
        wrap = ByDLPack  # a conversion to NumPy would have to leave the device
    x, w, b = (xp.asarray(rng.normal(size=shape).astype("float32")) for shape in ((2, 3, 5, 4), (6, 3, 3, 3), (6,)))
    np.testing.assert_array_equal(to_numpy(batch_last(wrap(x))), to_numpy(batch_last(x)))
    expected = conv2d(x, w, b, padding=1)
    np.testing.assert_array_equal(to_numpy(conv2d(wrap(x), wrap(w), wrap(b), padding=1)), to_numpy(expected))
    net = net_of()
    net.build((3, 5, 4), device=str(xpcnn.device_of(x)))
    y = net(wrap(x))
    assert type(y) is xp.ndarray
    np.testing.assert_array_equal(to_numpy(y), to_numpy(net(x)))


def test_lists_and_numbers_are_no_arrays():
    with pytest.raises(xpcnn.DeviceError, match=r"received list\. Convert it with numpy\.asarray first"):
        batch_last([[1.0, 2.0]])


def test_lists_stay_images(rng):
    images = rng.normal(size=(3, 1, 2, 2)).astype(np.float32)
    np.testing.assert_array_equal(as_images(images.tolist()), images)


# --- out --------------------------------------------------------------------------------------------------------


def test_what_comes_back_can_be_handed_on(xp, rng):
    x = xp.asarray(rng.normal(size=(4, 1, 6, 6)).astype("float32"))
    w = xp.ones((2, 1, 3, 3), "float32")
    net = net_of()
    net.build((1, 6, 6), device=str(xpcnn.device_of(x)))
    for y in (net(x), conv2d(x, w), batch_last(x)):
        again = xp.from_dlpack(ByDLPack(y))
        y[0, 0] = 5.0
        assert (again[0, 0] == 5.0).all()


def test_predictions_are_numpy_arrays_that_others_take():
    images, labels = quarters(12)
    classifier = toy_classifier()
    classifier.fit(images, labels, epochs=1, verbose=False)
    for y in (classifier.predict_proba(images), classifier.predict(images)):
        again = np.from_dlpack(ByDLPack(y))
        assert np.shares_memory(again, y)
        np.testing.assert_array_equal(again, y)


# --- what is refused --------------------------------------------------------------------------------------------


class Refusing(ByDLPack):
    def __dlpack__(self, **options):
        raise BufferError("records gradients")


class Elsewhere(ByDLPack):
    def __dlpack_device__(self):
        return 8, 0  # Metal

    def __dlpack__(self, **options):
        raise BufferError("lies on another device")


class Nowhere(ByDLPack):
    def __dlpack_device__(self):
        raise ValueError("no such device")


@pytest.mark.parametrize(
    ("wrap", "why"),
    [(Refusing, "records gradients"), (Elsewhere, "[Dd]evice|lies on"), (Nowhere, "no such device")],
)
def test_refusals_say_why_and_what_to_do(wrap, why):
    images, labels = quarters(4)
    images = images.astype(np.float32)
    message = (
        rf"^cannot use this {wrap.__name__} \(.*({why}).*\): give x\.detach\(\) if it requires grad, x\.to_dense\(\) "
        r"if it is sparse, x\.float\(\) or x\.astype\('float32'\) if bfloat16, x\.cpu\(\) or jax\.device_get\(x\) "
        r"if out of CuPy's reach\.$"
    )
    calls = [
        lambda x: toy_classifier().fit(x, labels, verbose=False),
        lambda x: toy_classifier().fit(images, x, verbose=False),
        lambda x: ArrayDataset(x, labels),
        lambda x: net_of()(x),
        batch_last,
        lambda x: conv2d(x, np.ones((2, 1, 3, 3), np.float32)),
        lambda x: conv2d(images, x),
        xpcnn.to_numpy,
    ]
    for call in calls:
        with pytest.raises(DataError, match=message) as caught:
            call(wrap(images))
        assert caught.value.__cause__ is not None


def test_device_memory_without_cupy(monkeypatch):
    class OnGPU(ByDLPack):
        def __dlpack_device__(self):
            return 2, 0

    def missing():
        raise ModuleNotFoundError("No module named 'cupy'")

    monkeypatch.setattr(xpcnn.backend, "_cupy", missing)
    with pytest.raises(DataError, match=r"No module named 'cupy'\): .*x\.cpu\(\) .* if out of CuPy's reach"):
        as_array(OnGPU(np.ones(3)))
