"""Model files: exact round trips, and broken or hostile files refused with their name."""

from __future__ import annotations

import json
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
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
    header = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}).encode()
    yield "a dtype that NumPy lacks", struct.pack("<Q", len(header)) + header + b"\0" * 4


def by_hand(header, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(start: int, stop: int, shape: list[int], dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(0, 8, [2]), "b": entry(4, 12, [2])},
        {"a": entry(0, 8, [2]), "b": entry(0, 8, [2])},
        {"a": entry(0, 4, [1]), "b": entry(8, 12, [1])},
        {"a": entry(0, 12, [3]), "b": entry(12, 16, [1])},
        {"a": entry(12, 0, [3])},
        {"a": entry(0, 12, [2**32, 2**32])},
        {"a": entry(0, 12, [2**62, 0, 3])},
        {"a": entry(0, 12, [3], "O")},
        {"a": entry(-12, 0, [3])},
        {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0]}},
        {"a": entry(0, 12, [3.0])},
        b'{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}, '
        b'"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, ' + b'"b": ' + b"[" * 50_000,
        b"{" * 50_000,
    ],
    ids=["overlap", "the same", "hole", "beyond", "backwards", "overflow", "empty", "objects", "negative", "one offset",
         "float", "twice", "deep", "deeper"],
)  # fmt: skip
def test_hostile_safetensors(tmp_path, header):
    path = tmp_path / "model.safetensors"
    path.write_bytes(by_hand(header, bytes(12)))
    tracemalloc.start()
    try:
        with pytest.raises(FileFormatError, match=r"model\.safetensors is not a whole safetensors file"):
            formats.read_weights(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_weights_of_any_safetensors_file(tmp_path, rng):
    arrays = {"w": rng.normal(size=(2, 3)), "i": np.arange(3), "b": np.array([True])}
    save_file(arrays, tmp_path / "other.safetensors")
    found = formats.read_weights(tmp_path / "other.safetensors")
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_bfloat16(tmp_path):
    values = np.array([[1.0, -2.5, 3e38], [0.0, -0.0, np.inf]], np.float32)
    bits = (values.view(np.uint32) >> 16).astype("<u2")
    header = {"pad": entry(0, 2, [1], "F16"), "w": entry(2, 14, [2, 3], "BF16"), "e": entry(14, 14, [0], "BF16")}
    path = tmp_path / "half.safetensors"
    path.write_bytes(by_hand(header, bytes(2) + bits.tobytes()))
    found = formats.read_weights(path)
    assert found["w"].dtype == np.float32
    np.testing.assert_array_equal(found["w"], (bits.astype(np.uint32) << 16).view(np.float32))
    np.testing.assert_allclose(found["w"], values, rtol=2**-7)
    assert found["e"].shape == (0,)


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6))
def test_random_bytes_in_a_good_file(tmp_path_factory, suffix, changes):
    path = tmp_path_factory.getbasetemp() / f"flipped{suffix}"
    formats.write(path, META, {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)})
    content = bytearray(path.read_bytes())
    for where, value in changes:
        content[int(where * len(content))] = value
    path.write_bytes(content)
    try:
        formats.read_weights(path)
    except FileFormatError as error:
        message = str(error)
        assert f"flipped{suffix}" in message


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


def test_metadata_that_are_null(tmp_path):
    header = b'{"__metadata__":null,"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert list(formats.read_weights(tmp_path / "a.safetensors")) == ["w"]
    with pytest.raises(FileFormatError, match=r"a\.safetensors is a safetensors file without the \"xpcnn\" entry"):
        formats.read(tmp_path / "a.safetensors")


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
        (b'{"weights": {"w": [1], "w": [2]}}', "the name 'w' occurs twice in one object"),
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
