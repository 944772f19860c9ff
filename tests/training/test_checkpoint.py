"""Saved models: the same predictions after loading, and hostile files refused with their name."""

from __future__ import annotations

import errno
import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from toys import CLASSES, SHAPE, norm_net, place, quarters, small_classifier

import xpcnn
from xpcnn import (
    BatchNorm2d,
    Conv2d,
    Dense,
    FileFormatError,
    Flatten,
    GlobalAvgPool2d,
    Sequential,
    Softmax,
    StateDictError,
    formats,
)

TEST = quarters(12, seed=1)[0]


@pytest.fixture(scope="module")
def clf():
    clf = small_classifier(norm_net(), classes=CLASSES, normalize="data")
    clf.fit(quarters(60), epochs=2, verbose=False)
    return clf


@pytest.fixture
def saved(clf, tmp_path):
    path = tmp_path / "model.safetensors"
    clf.save(path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_round_trip(clf, tmp_path, suffix, xp):
    path = tmp_path / f"model{suffix}"
    clf.save(path)
    other = xpcnn.load(str(path), device=place(xp))
    for name, array in clf.net.state_dict().items():
        np.testing.assert_array_equal(xpcnn.to_numpy(other.net.state_dict()[name]), array)
    for name in ("classes_", "input_shape", "mean", "std", "image", "loss", "dtype"):
        assert getattr(other, name) == getattr(clf, name), name
    assert str(other.net.device) == place(xp)
    assert other.predict(TEST).tolist() == clf.predict(TEST).tolist()
    if xp is np:
        np.testing.assert_array_equal(other.predict_proba(TEST), clf.predict_proba(TEST))
    assert list(tmp_path.iterdir()) == [path]


def test_saving_twice_gives_the_same_bytes(clf, saved, tmp_path):
    xpcnn.load(saved, "cpu").save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()


def test_a_loaded_model_learns_on(saved):
    clf = xpcnn.load(saved, "cpu")
    history = clf.fit(quarters(60), epochs=1, verbose=False)
    assert history["epoch"] == [1]


def test_float64_and_a_float_loss(tmp_path):
    clf = small_classifier(dtype="float64", loss=lambda y, t: xpcnn.softmax_cross_entropy(y, t))
    clf.fit(quarters(12), epochs=1, verbose=False)
    for path in (tmp_path / "m.safetensors", tmp_path / "m.json"):
        clf.save(path)
        other = xpcnn.load(path, "cpu")
        assert other.net.dtype == np.float64
        assert other.loss == "softmax_cross_entropy"
        np.testing.assert_array_equal(other.predict_proba(TEST), clf.predict_proba(TEST))


def test_a_network_with_softmax(tmp_path):
    clf = small_classifier(Sequential(Flatten(), Dense(3), Softmax()), loss=lambda y, t: (y.sum(), y * 0.0))
    clf.fit(quarters(12), epochs=1, verbose=False)
    clf.save(tmp_path / "m.json")
    assert xpcnn.load(tmp_path / "m.json", "cpu").loss == "mse"


def test_a_network_without_parameters(tmp_path):
    images, labels = quarters(12, channels=3)
    clf = small_classifier(Sequential(GlobalAvgPool2d(), Flatten()))
    clf.fit(images, labels, epochs=1, verbose=False)
    clf.save(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(xpcnn.load(tmp_path / "m.safetensors", "cpu").predict(images), clf.predict(images))


def test_two_channels_and_a_shared_batch_norm(tmp_path):
    images, labels = quarters(12, channels=2)
    norm = BatchNorm2d()
    clf = small_classifier(Sequential(norm, norm, Flatten(), Dense(3)))
    clf.fit(images, labels, epochs=1, verbose=False)
    clf.save(tmp_path / "m.safetensors")
    other = xpcnn.load(tmp_path / "m.safetensors", "cpu")
    assert other.image is None
    np.testing.assert_array_equal(other.predict_proba(images), clf.predict_proba(images))


def test_the_moving_average_is_saved(tmp_path):
    clf = small_classifier(ema=0.9)
    clf.fit(quarters(30), epochs=1, batch_size=5, verbose=False)
    clf.save(tmp_path / "m.safetensors")
    other = xpcnn.load(tmp_path / "m.safetensors", "cpu")
    np.testing.assert_array_equal(other.predict_proba(TEST), clf.predict_proba(TEST))
    assert (other.net.state_dict()["4.weight"] != clf.net.state_dict()["4.weight"]).any()


def test_the_header_is_readable_json(saved):
    with safe_open(saved, framework="numpy") as file:
        meta = json.loads(file.metadata()["xpcnn"])
    assert meta["format"] == 1
    assert meta["version"] == xpcnn.__version__
    assert meta["classes"] == CLASSES
    assert meta["input_shape"] == list(SHAPE)
    assert meta["architecture"]["layer"] == "Sequential"
    assert meta["image"] == {"size": [8, 8], "mode": "L", "fit": "resize"}


# --- files that are not what they seem --------------------------------------------------------------------------


def change(path, meta=None, tensors=None):
    """Write the file again with another header entry or other arrays (None removes one)."""
    old_meta, old_tensors = formats.read(path)
    for old, new in ((old_meta, meta), (old_tensors, tensors)):
        old.update(new or {})
        for name in [name for name, value in old.items() if value is None and name in (new or {})]:
            del old[name]
    save_file(old_tensors, path, metadata={"xpcnn": json.dumps(old_meta)})


def layer(name, **arguments):
    return {"layer": name, "arguments": arguments}


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"format": 2}, "it has format 2, and this xpcnn reads format 1. Update xpcnn"),
        ({"format": None}, "it has format None"),
        ({"input_shape": [1, 8]}, r"input_shape should be \[C, H, W\]; it is \[1, 8\]"),
        ({"input_shape": [1, 8, -8]}, "input_shape should be"),
        ({"input_shape": "big"}, "input_shape should be"),
        ({"classes": "ab"}, "a list of classes"),
        ({"classes": ["a", "b"]}, "there are 2 classes, but the network has 3 outputs"),
        ({"classes": [1, 2, 3]}, "classes must be a list of different names"),
        ({"dtype": "complex64"}, "a dtype of float16, float32, float64"),
        ({"mean": [0.1, 0.2], "std": [1.0, 1.0]}, "mean and std must be a number or 1, one per channel"),
        ({"mean": None, "std": [1.0]}, "mean and std must be a number"),
        ({"mean": ["a"]}, "does not hold a usable model"),
        ({"std": [0.0]}, "every std must be above 0"),
        ({"image": {"size": [10**6, 10**6], "mode": "L"}}, r"\"image\" should give size \[8, 8\] and mode 'L'"),
        ({"image": {"size": [8, 8], "mode": "L", "fit": "stretch"}}, "fit must be"),
        ({"image": 3}, '"image" should give size'),
        ({"architecture": None}, "the architecture is not that of a network"),
        ({"architecture": []}, "the architecture is not that of a network"),
        ({"architecture": layer("os.system", command="true")}, "unknown layer 'os.system'"),
        ({"architecture": layer("Conv2d", surprise=1)}, "arguments it does not take"),
        ({"architecture": layer("Conv2d", out_channels=-4, kernel_size=3)}, "does not hold a usable model"),
        ({"architecture": layer("Sequential", forward=layer("ReLU"))}, "the name is taken"),
    ],
)
def test_headers_that_make_no_sense(saved, meta, message):
    change(saved, meta)
    with pytest.raises(
        FileFormatError, match=rf"model\.safetensors does not hold a usable model: .*{message}|{message}"
    ) as info:
        xpcnn.load(saved, "cpu")
    assert "model.safetensors" in str(info.value)


@pytest.mark.parametrize("depth", [450, 5000])
def test_bottomless_nesting(saved, depth):
    text = (
        '{"layer": "Sequential", "arguments": {"0": ' * depth + '{"layer": "Flatten", "arguments": {}}' + "}}" * depth
    )
    meta, tensors = formats.read(saved)
    header = json.dumps(meta | {"architecture": "HERE"}).replace('"HERE"', text)
    save_file(tensors, saved, metadata={"xpcnn": header})
    # how deep is too deep depends on Python; a network that it can still make does not fit the weights
    refused = r"model\.safetensors( does not hold (valid JSON|a usable model)|: the network has no parameters)"
    with pytest.raises((FileFormatError, StateDictError), match=refused):
        xpcnn.load(saved, "cpu")


@pytest.mark.parametrize("size", [10**4, 10**12, 10**30])
def test_absurd_sizes_get_no_memory(saved, size):
    change(saved, {"architecture": layer("Sequential", **{"0": layer("Flatten"), "1": layer("Dense", features=size)})})
    name = r"the architecture needs an array '1\.weight'"
    with pytest.raises((StateDictError, FileFormatError), match=rf"model\.safetensors.*({name}|features)"):
        xpcnn.load(saved, "cpu")


def test_weights_that_do_not_fit(saved):
    change(saved, tensors={"4.bias": np.zeros(4, np.float32)})
    with pytest.raises(
        StateDictError,
        match=r"model\.safetensors: the architecture needs .* '4\.bias' of shape \(3,\); the file has shape \(4,\)",
    ):
        xpcnn.load(saved, "cpu")


def test_weights_that_are_missing_or_surplus(saved):
    change(saved, tensors={"extra": np.zeros(1, np.float32)})
    with pytest.raises(StateDictError, match=r"model\.safetensors: .*unexpected: extra"):
        xpcnn.load(saved, "cpu")
    change(saved, tensors={"extra": None, "1.running_mean": None})
    with pytest.raises(StateDictError, match=r"model\.safetensors: .*'1\.running_mean' .*; the file has nothing"):
        xpcnn.load(saved, "cpu")


def test_a_shared_layer_survives(tmp_path):
    shared = Conv2d(1, 3, padding="same")
    clf = small_classifier(Sequential(shared, shared, Flatten(), Dense(3)))
    clf.fit(quarters(12), epochs=1, verbose=False)
    clf.save(tmp_path / "m.safetensors")
    assert set(load_file(tmp_path / "m.safetensors")) == {"0.weight", "0.bias", "3.weight", "3.bias"}
    other = xpcnn.load(tmp_path / "m.safetensors", "cpu")
    assert other.net["0"] is vars(other.net)["1"]
    np.testing.assert_array_equal(other.predict_proba(TEST), clf.predict_proba(TEST))


def test_a_failed_save_leaves_the_old_file(saved, clf, monkeypatch):
    before = saved.read_bytes()

    def fail(_file):
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr("xpcnn.files.os.fsync", fail)
    with pytest.raises(OSError, match=r"disk full: '.*m.*\.safetensors'"):
        clf.save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]
