"""Keras files: every layout that Keras 2 and 3 write, and files that are none."""

from __future__ import annotations

import io
import json
import sys
import time
import zipfile

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xpcnn import BatchNorm2d, Conv2d, Dense, Flatten, Sequential
from xpcnn.errors import ArgumentError, FileFormatError, MissingExtraError
from xpcnn.formats import keras, read_weights
from xpcnn.formats.keras import permute_dense


def layers(rng: np.random.Generator) -> dict[str, dict[str, np.ndarray]]:
    """Variables of four layers as Keras names and lays them out."""

    def random(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return {
        "conv2d": {"kernel": random(3, 2, 3, 4), "bias": random(4)},
        "batch_normalization": {name: random(4) for name in ("gamma", "beta", "moving_mean", "moving_variance")},
        "depthwise_conv2d": {"depthwise_kernel": random(3, 3, 4, 2), "bias": random(8)},
        "separable_conv2d": {
            "depthwise_kernel": random(3, 3, 8, 1),
            "pointwise_kernel": random(1, 1, 8, 5),
            "bias": random(5),
        },
        "dense": {"kernel": random(6, 2), "bias": random(2)},
    }


def expected(found: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    conv, norm, depthwise, separable, dense = found.values()
    kernels = depthwise["depthwise_kernel"]
    return {
        "conv2d.weight": conv["kernel"].transpose(3, 2, 0, 1),
        "conv2d.bias": conv["bias"],
        "batch_normalization.weight": norm["gamma"],
        "batch_normalization.bias": norm["beta"],
        "batch_normalization.running_mean": norm["moving_mean"],
        "batch_normalization.running_var": norm["moving_variance"],
        "depthwise_conv2d.weight": np.stack([kernels[:, :, c, m] for c in range(4) for m in range(2)])[:, None],
        "depthwise_conv2d.bias": depthwise["bias"],
        "separable_conv2d.depthwise.weight": separable["depthwise_kernel"].transpose(2, 3, 0, 1),
        "separable_conv2d.pointwise.weight": separable["pointwise_kernel"].transpose(3, 2, 0, 1),
        "separable_conv2d.pointwise.bias": separable["bias"],
        "dense.weight": dense["kernel"].T,
        "dense.bias": dense["bias"],
    }


def write_named(path, found, root="model_weights", suffix=":0", rename=None, config=None):
    """A file of Keras 2, or an .h5 of Keras 3 (no ":0", and a depthwise kernel called kernel)."""
    with h5py.File(path, "w") as file:
        group = file.create_group(root) if root else file
        for layer, variables in found.items():
            group.create_group(layer).attrs["weight_names"] = [f"{layer}/{name}{suffix}" for name in variables]
            for name, array in variables.items():
                name = (rename or {}).get((layer, name), name)
                group[f"{layer}/{layer}/{name}{suffix}"] = array
        group.create_group("flatten")
        file.create_group("optimizer_weights/training/Adam")["conv2d/kernel/m:0"] = np.zeros(3)
        if config is not None:
            file.attrs["model_config"] = json.dumps(config)


def numbered(found, labels=None) -> bytes:
    """The HDF5 part of a .keras file: numbers instead of names."""
    file = io.BytesIO()
    with h5py.File(file, "w") as store:
        for layer, variables in found.items():
            group = store.create_group(f"layers/{layer}/vars")
            group.attrs["name"] = (labels or {}).get(layer, layer)
            for i, array in enumerate(variables.values()):
                group[str(i)] = array
        store.create_group("layers/dropout/seed_generator/vars")["0"] = np.zeros(2, np.uint32)
        store.create_group("optimizer/vars")["0"] = np.zeros(3, np.float32)
    return file.getvalue()


def write_keras(path, content: bytes, config=None, compression=zipfile.ZIP_STORED, name="model.weights.h5"):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("metadata.json", "{}")
        if config is not None:
            archive.writestr("config.json", config if isinstance(config, str) else json.dumps(config))
        archive.writestr(name, content)


def configured(**layers):
    """A model's configuration: name=(class, options)."""
    inner = [{"class_name": kind, "config": {"name": name, **options}} for name, (kind, options) in layers.items()]
    return {"class_name": "Functional", "config": {"name": "model", "layers": inner}}


def check(state, wanted):
    assert set(state) == set(wanted)
    for key, array in wanted.items():
        assert state[key].dtype == np.float32
        assert state[key].flags.c_contiguous
        np.testing.assert_array_equal(state[key], array)


# --- every layout -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("root", ["model_weights", ""], ids=["model", "weights alone"])
@pytest.mark.parametrize("suffix", [".h5", ".hdf5"])
def test_keras_2(tmp_path, rng, root, suffix):
    found = layers(rng)
    write_named(tmp_path / f"m{suffix}", found, root)
    check(read_weights(tmp_path / f"m{suffix}"), expected(found))


def test_h5_of_keras_3(tmp_path, rng):
    found = layers(rng)
    rename = {("depthwise_conv2d", "depthwise_kernel"): "kernel"}
    config = configured(depthwise_conv2d=("DepthwiseConv2D", {}), dense=("Dense", {}))
    write_named(tmp_path / "m.h5", found, "model_weights", "", rename, config)
    check(read_weights(tmp_path / "m.h5"), expected(found))


def test_keras_3(tmp_path, rng):
    found = layers(rng)
    write_keras(tmp_path / "m.keras", numbered(found))
    check(read_weights(tmp_path / "m.keras"), expected(found))
    (tmp_path / "m.weights.h5").write_bytes(numbered(found))
    check(read_weights(tmp_path / "m.weights.h5"), expected(found))


def test_keras_3_gives_layers_the_names_of_the_user(tmp_path, rng):
    found = layers(rng)
    labels = {"conv2d": "first", "batch_normalization": "norm", "dense": "head"}
    config = configured(first=("Conv2D", {}), norm=("BatchNormalization", {}), head=("Dense", {}))
    write_keras(tmp_path / "m.keras", numbered(found, labels), config)
    state = read_weights(tmp_path / "m.keras")
    parts = {key: key.partition(".") for key in expected(found)}
    names = {key: f"{labels.get(layer, layer)}.{rest}" for key, (layer, _, rest) in parts.items()}
    check(state, {names[key]: array for key, array in expected(found).items()})


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"scale": False}, ["bias", "running_mean", "running_var"]),
        ({"center": False}, ["weight", "running_mean", "running_var"]),
        ({"scale": False, "center": False}, ["running_mean", "running_var"]),
        ({}, ["weight", "bias", "running_mean", "running_var"]),
    ],
)
def test_batch_norm_without_scale_or_center(tmp_path, rng, options, names):
    variables = {str(i): rng.normal(size=3).astype("f4") for i in range(len(names))}
    content = numbered({"batch_normalization_7": variables})
    options = {"scale": True, "center": True} | options
    write_keras(tmp_path / "m.keras", content, configured(batch_normalization_7=("BatchNormalization", options)))
    state = read_weights(tmp_path / "m.keras")
    assert list(state) == [f"batch_normalization_7.{name}" for name in names]
    (tmp_path / "m.weights.h5").write_bytes(content)
    if len(names) == 3:
        message = r"m\.weights\.h5 does not say which three variables 'batch_normalization_7' has"
        with pytest.raises(FileFormatError, match=message):
            read_weights(tmp_path / "m.weights.h5")
    else:
        assert list(read_weights(tmp_path / "m.weights.h5")) == list(state)


def test_models_in_models(tmp_path, rng):
    inner = {"kernel": rng.normal(size=(4, 2)).astype("f4"), "bias": rng.normal(size=2).astype("f4")}
    with h5py.File(tmp_path / "m.h5", "w") as file:
        for name, array in inner.items():
            file[f"model_weights/backbone/backbone/a/{name}:0"] = array
            file[f"model_weights/backbone/backbone/b/{name}:0"] = array
            file[f"model_weights/head/sequential/head/{name}:0"] = array
    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        for group in ("functional/layers/dense", "functional/layers/dense_1", "dense"):
            for i, array in enumerate(inner.values()):
                file[f"layers/{group}/vars/{i}"] = array
        for group, label in {"functional": "backbone", "functional/layers/dense": "a", "dense": "head"}.items():
            file.require_group(f"layers/{group}/vars").attrs["name"] = label
        file["layers/functional/layers/dense_1/vars"].attrs["name"] = "b"
    names = [f"{layer}.{name}" for layer in ("backbone.a", "backbone.b", "head") for name in ("weight", "bias")]
    for path in ("m.h5", "m.weights.h5"):
        state = read_weights(tmp_path / path)
        assert sorted(state) == sorted(names)
        np.testing.assert_array_equal(state["backbone.b.weight"], inner["kernel"].T)


def test_variables_of_unknown_layers_are_left_as_they_are(tmp_path, rng):
    array = rng.normal(size=(5, 3)).astype("f4")
    (tmp_path / "m.weights.h5").write_bytes(numbered({"embedding": {"embeddings": array}}))
    np.testing.assert_array_equal(read_weights(tmp_path / "m.weights.h5")["embedding.0"], array)


def test_permute_dense(rng):
    """Flatten in Keras's order and in ours give the same scores."""
    images, kernel = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(4 * 5 * 3, 7))
    theirs = images.transpose(0, 2, 3, 1).reshape(2, -1) @ kernel
    net = Sequential(Flatten(), Dense(7, bias=False))
    net.build((3, 4, 5), dtype="float64")
    net.load_state_dict({"1.weight": permute_dense(kernel.T, (3, 4, 5))})
    np.testing.assert_allclose(net(images), theirs, rtol=1e-12)
    with pytest.raises(
        ArgumentError, match=r"a weight of shape \(O, 60\) for images \(3, 4, 5\); received shape \(7, 61\)"
    ):
        permute_dense(np.zeros((7, 61)), (3, 4, 5))


def test_the_layers_take_them(tmp_path, rng):
    found = layers(rng)
    write_named(tmp_path / "m.h5", found)
    state = read_weights(tmp_path / "m.h5")
    separable = Sequential(depthwise=Conv2d(8, 3, groups=8, bias=False), pointwise=Conv2d(5, 1))
    net = Sequential(
        conv2d=Conv2d(4, (3, 2)),
        batch_normalization=BatchNorm2d(1e-3),
        depthwise_conv2d=Conv2d(8, 3, groups=4),
        separable_conv2d=separable,
    )
    net.build((3, 9, 9))
    net.load_state_dict({key: array for key, array in state.items() if not key.startswith("dense")})


# --- files that are none ----------------------------------------------------------------------------------------


def hostile(path, kind, tmp_path):
    """Write an HDF5 file that Keras would never write."""
    outside = tmp_path / "outside.h5"
    with h5py.File(outside, "w") as file:
        file["secret"] = np.arange(4.0)
    (tmp_path / "secret.bin").write_bytes(bytes(32))
    with h5py.File(path, "w") as file:
        group = file.create_group("model_weights/dense")
        if kind == "external link":
            group["kernel:0"] = h5py.ExternalLink(str(outside), "secret")
        elif kind == "soft link":
            group["kernel:0"] = h5py.SoftLink("/model_weights")
        elif kind == "link to the weights":
            del file["model_weights"]
            file["model_weights"] = h5py.ExternalLink(str(outside), "/")
        elif kind == "external data":
            group.create_dataset("kernel:0", (4,), "f8", external=[(str(tmp_path / "secret.bin"), 0, 32)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((4,), "f8")
            layout[:] = h5py.VirtualSource(str(outside), "secret", (4,))
            group.create_virtual_dataset("kernel:0", layout)
        elif kind == "compressed":
            group.create_dataset("kernel:0", data=np.zeros(10**6), compression="gzip")
        elif kind == "huge":
            group.create_dataset("kernel:0", (2**40, 2**20), "f4", chunks=(1024, 1024))
        elif kind == "overflow":
            group.create_dataset("kernel:0", (2**40, 2**40), "f4", chunks=(1024, 1024))
        elif kind == "text":
            group["kernel:0"] = ["a", "b"]
        elif kind == "objects":
            group.create_dataset("kernel:0", (2,), h5py.ref_dtype)
        elif kind == "nothing":
            group["kernel:0"] = h5py.Empty("f4")
        elif kind == "deep":
            group["/".join("a" * 30) + "/kernel:0"] = np.zeros(3)
        elif kind == "at the root":
            file["kernel:0"] = np.zeros(3)
        elif kind == "transposed":
            file["model_weights/up/up/kernel:0"] = np.zeros((2, 2, 3, 4))
            file.attrs["model_config"] = json.dumps(configured(up=("Conv2DTranspose", {})))
        elif kind == "config":
            group["dense/kernel:0"] = np.zeros((2, 3), "f4")
            file.attrs["model_config"] = "[" * 10_000


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("external link", "has a link to somewhere else at 'model_weights/dense/kernel:0'"),
        ("soft link", "has a link to somewhere else"),
        ("link to the weights", "has a link to somewhere else at 'model_weights'"),
        ("external data", "keeps 'model_weights/dense/kernel:0' in another file"),
        ("virtual", "keeps 'model_weights/dense/kernel:0' in another file"),
        ("compressed", "keeps 'model_weights/dense/kernel:0' compressed or filtered"),
        ("huge", "describes arrays that are far larger than the file itself"),
        ("overflow", "describes arrays that are far larger than the file itself"),
        ("text", "which is no array of numbers"),
        ("objects", "which is no array of numbers"),
        ("nothing", "which is no array of numbers"),
        ("deep", "has groups more than 20 deep"),
        ("at the root", "is an HDF5 file without the layers of a Keras model"),
        ("empty", "is an HDF5 file without the layers of a Keras model"),
        ("transposed", "has the transposed convolution 'up'"),
        ("config", "is broken or of another format"),
    ],
)
def test_hostile_files(tmp_path, kind, message):
    path = tmp_path / "model.h5"
    hostile(path, kind, tmp_path)
    with pytest.raises(FileFormatError, match=rf"model\.h5 .*{message}"):
        read_weights(path)


def test_groups_that_hold_themselves(tmp_path):
    with h5py.File(tmp_path / "m.h5", "w") as file:
        group = file.create_group("model_weights/dense")
        group["kernel:0"] = np.zeros((2, 3), "f4")
        for name in "abcdefgh":
            group[name] = file["model_weights"]
    assert list(read_weights(tmp_path / "m.h5")) == ["dense.weight"]


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" + bytes(500), b"hello"]
)
@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_other_files(tmp_path, content, suffix):
    (tmp_path / f"model{suffix}").write_bytes(content)
    with pytest.raises(FileFormatError, match=rf"model\{suffix} is broken or "):
        read_weights(tmp_path / f"model{suffix}")


def test_other_zip_files(tmp_path, rng):
    path, content = tmp_path / "model.keras", numbered(layers(rng))
    write_keras(path, content, name="model.weights.json")
    with pytest.raises(FileFormatError, match=r"model\.keras is a zip archive without the model\.weights\.h5"):
        read_weights(path)
    write_keras(path, bytes(10**7), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(FileFormatError, match=r"model\.keras is a zip archive in which .* is compressed"):
        read_weights(path)
    for config in ("__import__('os').system('echo ran')", "[" * 100_000, "{"):
        write_keras(path, content, config)
        with pytest.raises(FileFormatError, match=r"model\.keras is broken or of another format"):
            read_weights(path)
    for config in ("3", "[1, null]", '{"config": {"name": 3}}', '{"config": {"name": "conv2d"}, "class_name": [1]}'):
        write_keras(path, content, config)
        assert "dense.weight" in read_weights(path)


@settings(max_examples=max(10, settings.default.max_examples // 4))  # each starts a process
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=5))
def test_random_bytes_in_a_good_file(tmp_path_factory, changes):
    path = tmp_path_factory.getbasetemp() / "flipped.weights.h5"
    content = bytearray(numbered({"dense": {"kernel": np.ones((2, 3), "f4"), "bias": np.ones(3, "f4")}}))
    for where, value in changes:
        content[int(where * len(content))] = value
    path.write_bytes(content)
    try:
        read_weights(path)
    except FileFormatError as error:
        message = str(error)
        assert "flipped.weights.h5" in message


def test_a_library_that_crashes_or_does_not_end(tmp_path, monkeypatch):
    path = tmp_path / "model.h5"
    path.touch()
    child = tmp_path / "child.py"
    monkeypatch.setattr(keras.hdf5, "__file__", str(child))
    monkeypatch.setattr(keras, "SECONDS", 0.5)
    child.write_text("import os; os.abort()")
    with pytest.raises(FileFormatError, match=r"model\.h5 is broken: the HDF5 library crashed \(exit code -?\d+\)"):
        read_weights(path)
    child.write_text("while True: pass")
    with pytest.raises(FileFormatError, match=r"model\.h5 keeps the HDF5 library busy for ever"):
        read_weights(path)
    child.write_text("print('x' * 20)")
    with pytest.raises(FileFormatError, match=r"model\.h5 is broken or of another format"):
        read_weights(path)


def test_a_file_that_the_library_does_not_come_to_an_end_with(tmp_path):
    """The first text of its heap is too long, so that an empty one seems to follow, again and again (HDF5 2.0)."""
    path = tmp_path / "model.h5"
    with h5py.File(path, "w") as file:
        file["dense/dense/kernel:0"] = np.zeros((2, 3), "f4")
        file.attrs["model_config"] = json.dumps(configured(dense=("Dense", {})))
    assert "dense.weight" in read_weights(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"GCOL") + 24] += 64
    path.write_bytes(content)
    begin = time.monotonic()
    with pytest.raises(FileFormatError, match=r"model\.h5 keeps the HDF5 library busy for ever: it is broken\."):
        read_weights(path)
    assert time.monotonic() - begin < keras.SECONDS  # it was its computing that came to an end


def test_without_h5py(tmp_path, monkeypatch):
    (tmp_path / "model.h5").touch()
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r'reading a Keras file needs h5py.*pip install "xpcnn\[keras\]"'):
        read_weights(tmp_path / "model.h5")
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path / "none.h5")
