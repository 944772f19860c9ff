"""Model files: exact round trips, and broken or hostile files refused with their name."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from xpcnn import ArgumentError, FileFormatError, formats

META = {"format": 1, "classes": ["ä", "b"], "dtype": "float32"}
SUFFIXES = [".safetensors", ".json"]


@pytest.fixture
def tensors(rng):
    odd = np.array([1e-45, -0.0, 3.4028235e38, np.pi, 1 / 3, np.inf], np.float32)
    return {
        "0.weight": rng.normal(size=(3, 2, 2)).astype(np.float32),
        "0.bias": odd,
        "scale": np.float32(0.1).reshape(()),
    }


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip_is_exact(tmp_path, tensors, suffix):
    path = tmp_path / f"model{suffix}"
    formats.write(path, META, tensors)
    meta, loaded = formats.read(path)
    assert meta == META
    assert loaded.keys() == tensors.keys()
    for name, array in tensors.items():
        assert loaded[name].dtype == np.float32
        assert loaded[name].shape == array.shape
        assert loaded[name].tobytes() == array.tobytes()
    assert list(tmp_path.iterdir()) == [path], "temporary files are left"


def test_float64_survives_json(tmp_path, rng):
    path, array = tmp_path / "m.JSON", rng.normal(size=5)
    formats.write(path, {"dtype": "float64"}, {"w": array})
    assert formats.read(path)[1]["w"].tobytes() == array.tobytes()


def test_arrays_that_are_not_contiguous(tmp_path, rng):
    array = rng.normal(size=(4, 6)).astype(np.float32)[::2, ::-1].T
    formats.write(tmp_path / "m.safetensors", META, {"w": array})
    np.testing.assert_array_equal(formats.read(tmp_path / "m.safetensors")[1]["w"], array)


@pytest.mark.parametrize("name", ["model.pkl", "model", "model.pth"])
def test_other_suffixes_are_refused(tmp_path, name):
    with pytest.raises(ArgumentError, match=r"a model file is called \*\.safetensors or \*\.json"):
        formats.write(tmp_path / name, META, {})
    with pytest.raises(ArgumentError, match=name):
        formats.read(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_missing_file(tmp_path, suffix):
    with pytest.raises(FileNotFoundError):
        formats.read(tmp_path / f"none{suffix}")


def damaged(path, tensors):
    """Yield ways in which a safetensors file can be wrong."""
    formats.write(path, META, tensors)
    whole = path.read_bytes()
    yield "empty", b""
    yield "truncated header", whole[:20]
    yield "truncated data", whole[:-1]
    yield "surplus data", whole + b"x"
    yield "text", b"once upon a time there was no tensor at all"
    yield "header of 2**63 bytes", struct.pack("<Q", 2**63) + whole[8:]
    for shape, offsets in (([10**12], [0, 4 * 10**12]), ([-1], [0, 4]), ([2], [0, 4])):
        header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode()
        yield f"shape {shape}", struct.pack("<Q", len(header)) + header + b"\0" * 4
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    yield "a dtype that NumPy lacks", struct.pack("<Q", len(header)) + header + b"\0" * 4


def test_damaged_safetensors_name_the_file(tmp_path, tensors):
    path = tmp_path / "model.safetensors"
    for what, content in list(damaged(path, tensors)):
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match=r"model\.safetensors is not a whole safetensors file"):
            pytest.fail(f"{what}: {formats.read(path)}")


def test_safetensors_of_somebody_else(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"w": np.zeros(2, np.float32)}, path)
    with pytest.raises(FileFormatError, match=r'other\.safetensors is a safetensors file without the "xpcnn" entry'):
        formats.read(path)


@pytest.mark.parametrize("text", ["{", "", "[" * 100_000])
def test_header_that_is_not_json(tmp_path, text):
    path = tmp_path / "m.safetensors"
    save_file({"w": np.zeros(2, np.float32)}, path, metadata={"xpcnn": text})
    with pytest.raises(FileFormatError, match=r"m\.safetensors does not hold valid JSON"):
        formats.read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "does not hold valid JSON"),
        (b"[" * 100_000, "does not hold valid JSON"),
        (b"\xff\xfe\x00", "is not a JSON text file"),
        (b"[1, 2]", "should hold a JSON object; received list"),
        (b"{}", 'has no "weights"'),
        (b'{"weights": [1]}', 'has no "weights"'),
        (b'{"weights": {"w": [[1], [1, 2]]}}', 'weights "w" should be rectangular nested lists of numbers'),
        (b'{"weights": {"w": ["1", "x"]}}', 'weights "w" should be rectangular'),
        (b'{"weights": {"w": {"a": 1}}}', 'weights "w" should be rectangular'),
    ],
)
def test_damaged_json_names_the_file(tmp_path, content, message):
    path = tmp_path / "model.json"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=rf"model\.json:? .*{message}|model\.json: {message}"):
        formats.read(path)


def test_a_failed_write_leaves_the_old_file(tmp_path, tensors):
    path = tmp_path / "model.json"
    formats.write(path, META, tensors)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        formats.write(path, {"bad": object()}, tensors)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
