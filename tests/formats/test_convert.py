"""Converting: every pair of formats, what stays and what is lost, and the command line."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

import xpcnn
from xpcnn import BatchNorm2d, Classifier, Conv2d, Dense, Flatten, ReLU, Sequential, formats
from xpcnn.cli import main
from xpcnn.errors import ArgumentError, FileFormatError, StateDictError
from xpcnn.formats import convert, read_weights, write_weights

WEIGHTS = [".safetensors", ".json", ".pth", ".pt", ".th", ".bin"]


@pytest.fixture
def model(tmp_path):
    """A saved model and its classifier."""
    net = Sequential(Conv2d(4, 3), BatchNorm2d(), ReLU(), Flatten(), Dense(2))
    classifier = Classifier(net, ["cat", "dog"], device="cpu", normalize=([0.5], [0.25]))
    classifier.build((1, 6, 5))
    classifier.save(tmp_path / "model.safetensors")
    return classifier


def same(found, expected):
    assert set(found) == set(expected)
    for key, array in expected.items():
        assert found[key].dtype == array.dtype
        assert found[key].tobytes() == np.ascontiguousarray(array).tobytes()


@pytest.mark.parametrize("first", WEIGHTS)
@pytest.mark.parametrize("second", WEIGHTS)
def test_weights_to_weights(tmp_path, rng, first, second):
    arrays = {"a.weight": rng.normal(size=(3, 2)).astype("f4"), "a.bias": rng.normal(size=3).astype("f4").T}
    write_weights(tmp_path / f"a{first}", arrays)
    lines = convert(tmp_path / f"a{first}", tmp_path / f"b{second}")
    assert lines == ["weights: 9 numbers in 2 arrays"]
    same(read_weights(tmp_path / f"b{second}"), arrays)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("suffix", WEIGHTS)
def test_floats_keep_their_values(tmp_path, rng, suffix, dtype):
    arrays = {"w": rng.normal(size=(2, 3)).astype(dtype), "count": np.array(3)}
    write_weights(tmp_path / f"a{suffix}", arrays)
    again = read_weights(tmp_path / f"a{suffix}")
    for key, array in arrays.items():
        np.testing.assert_array_equal(again[key], array)


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_complex_weights(tmp_path, suffix):
    with pytest.raises(ArgumentError, match="w has dtype complex64; this format holds real numbers and bools"):
        write_weights(tmp_path / f"a{suffix}", {"w": np.zeros(2, np.complex64)})
    assert not list(tmp_path.iterdir())


def test_a_model_stays_one(tmp_path, model, rng):
    assert convert(tmp_path / "model.safetensors", tmp_path / "m.json") == ["a model of 154 numbers in 8 arrays"]
    convert(tmp_path / "m.json", tmp_path / "again.safetensors")
    images = rng.random((3, 1, 6, 5))
    for name in ("m.json", "again.safetensors"):
        found = xpcnn.load(tmp_path / name, "cpu")
        assert (found.classes_, found.mean) == (["cat", "dog"], (0.5,))
        np.testing.assert_array_equal(found.predict_proba(images), model.predict_proba(images))
    assert convert(tmp_path / "m.json", tmp_path / "m.pth") == ["weights: 154 numbers in 8 arrays"]
    same(read_weights(tmp_path / "m.pth"), model.net.state_dict())


def test_onnx_there_and_back(tmp_path, model, rng):
    lines = convert(tmp_path / "model.safetensors", tmp_path / "m.onnx")
    assert "by mean (0.5,) and std (0.25,)" in lines[1]
    assert lines[2] == "not in it: the classes cat, dog"
    lines = convert(tmp_path / "m.onnx", tmp_path / "again.safetensors")
    assert "its classes are called 0, 1" in lines[1]
    images = rng.random((3, 1, 6, 5))
    found = xpcnn.load(tmp_path / "again.safetensors", "cpu")
    assert found.classes_ == ["0", "1"]
    images = ((images - 0.5) / 0.25).astype("f4")
    np.testing.assert_allclose(found.net(images), model.net(images), rtol=1e-5, atol=1e-6)
    convert(tmp_path / "m.onnx", tmp_path / "m.pth")
    assert sum(array.size for array in read_weights(tmp_path / "m.pth").values()) >= 84


def test_onnx_without_a_size(tmp_path, model, monkeypatch):
    convert(tmp_path / "model.safetensors", tmp_path / "m.onnx")
    graph = formats.onnx.load(tmp_path / "m.onnx", logits=True)
    graph.input_shape = None
    monkeypatch.setattr(formats.onnx, "load", lambda path, logits: graph)
    with pytest.raises(ArgumentError, match=r"m\.onnx does not say the size of its images: give the input shape"):
        convert(tmp_path / "m.onnx", tmp_path / "again.json")
    convert(tmp_path / "m.onnx", tmp_path / "again.json", input_shape=(1, 6, 5))
    assert xpcnn.load(tmp_path / "again.json", "cpu").input_shape == (1, 6, 5)


def test_onnx_needs_a_model(tmp_path):
    write_weights(tmp_path / "a.pth", {"w": np.ones(2)})
    with pytest.raises(ArgumentError, match=r"\.onnx needs the network, and .*a\.pth has weights alone"):
        convert(tmp_path / "a.pth", tmp_path / "a.onnx")
    write_weights(tmp_path / "a.safetensors", {"w": np.ones(2)})
    with pytest.raises(FileFormatError, match='without the "xpcnn" entry'):
        convert(tmp_path / "a.safetensors", tmp_path / "a.onnx")


def test_keras_to_torch(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["model_weights/dense/dense/kernel:0"] = np.arange(6, dtype="f4").reshape(3, 2)
    convert(tmp_path / "a.h5", tmp_path / "a.pth")
    np.testing.assert_array_equal(read_weights(tmp_path / "a.pth")["dense.weight"], [[0, 2, 4], [1, 3, 5]])


def test_prefixes(tmp_path):
    arrays = {"module.w": np.ones(2, "f4"), "module.b": np.zeros(1, "f4"), "count": np.zeros((), "f4")}
    write_weights(tmp_path / "a.pth", arrays)
    convert(tmp_path / "a.pth", tmp_path / "b.safetensors", strip_prefix="module.")
    assert set(read_weights(tmp_path / "b.safetensors")) == {"w", "b", "count"}
    with pytest.raises(ArgumentError, match=r"no name begins with 'model\.'; they are module\.w, module\.b, count"):
        convert(tmp_path / "a.pth", tmp_path / "c.safetensors", strip_prefix="model.")
    write_weights(tmp_path / "a.pth", arrays | {"w": np.ones(2, "f4")})
    with pytest.raises(ArgumentError, match=r"without 'module\.' two arrays would have one name"):
        convert(tmp_path / "a.pth", tmp_path / "c.safetensors", strip_prefix="module.")
    assert not (tmp_path / "c.safetensors").exists()


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("a.pkl", "b.pth", r'the source ".*a\.pkl" should end in one of \.safetensors, \.json, \.pth'),
        ("a.pth", "b.h5", r'the target ".*b\.h5" should end in one of \.safetensors, \.json, \.pth'),
        ("a.pth", "b", r'the target ".*b" should end in one of'),
        ("a.pth", "a.pth", r"source and target are the same file, .*a\.pth"),
    ],
)
def test_what_cannot_be_converted(tmp_path, first, second, message):
    write_weights(tmp_path / "a.pth", {"w": np.ones(2)})
    (tmp_path / "a.pkl").touch()
    with pytest.raises(ArgumentError, match=message):
        convert(tmp_path / first, tmp_path / second)
    with pytest.raises(ArgumentError, match="key is for torch files"):
        convert(tmp_path / "a.json", tmp_path / "b.pth", key="model")


def test_other_names_of_weights(tmp_path):
    with pytest.raises(
        ArgumentError, match=r"a file of weights is called \*\.safetensors, .* or \*\.keras; received .*a\.npz"
    ):
        read_weights(tmp_path / "a.npz")
    with pytest.raises(
        ArgumentError, match=r"a file of weights that xpcnn writes is called .* or \*\.bin; received .*a\.h5"
    ):
        write_weights(tmp_path / "a.h5", {})


def test_the_command_line(tmp_path, model, capsys):
    source, target = str(tmp_path / "model.safetensors"), str(tmp_path / "m.pth")
    assert main(["convert", source, target]) == 0
    assert capsys.readouterr().out == f"{target}: weights: 154 numbers in 8 arrays\n"
    assert main(["convert", source, target]) == 2
    assert capsys.readouterr().err == f"xpcnn: {target} exists; --force replaces it.\n"
    assert main(["convert", source, target, "--force"]) == 0
    assert main(["convert", target, str(tmp_path / "n.pth"), "--strip-prefix", "0."]) == 0
    assert set(read_weights(tmp_path / "n.pth")) >= {"weight", "bias", "1.running_mean"}
    assert main(["convert", target, str(tmp_path / "o.pth"), "--key", "model"]) == 1
    assert "has nothing at 'model'" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "none.pth"), str(tmp_path / "o.pth")]) == 2
    assert "none.pth does not exist" in capsys.readouterr().err
    (tmp_path / "evil.pth").write_bytes(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.")
    assert main(["convert", str(tmp_path / "evil.pth"), str(tmp_path / "o.pth")]) == 1
    assert "evil.pth asks for 'os.system', and xpcnn runs no code from files" in capsys.readouterr().err
    assert not (tmp_path / "o.pth").exists()


# --- state dicts that almost fit --------------------------------------------------------------------------------


def small():
    block = Sequential(norm1=BatchNorm2d(), conv1=Conv2d(2, 1), norm2=BatchNorm2d(), conv2=Conv2d(2, 1))
    net = Sequential(features=Sequential(block=block), fc=Sequential(Flatten(), Dense(2)))
    net.build((1, 2, 2))
    return net


@pytest.mark.parametrize("prefix", ["module.", "model.net.", "state."])
def test_strip_prefix(prefix):
    net = small()
    state = {prefix + key: array + 1 for key, array in net.state_dict().items()}
    message = rf'All its keys begin with "{prefix}": try strip_prefix="{prefix}"'
    with pytest.raises(StateDictError, match=message):
        net.load_state_dict(state)
    with pytest.raises(StateDictError, match=message):
        net.load_state_dict(state, strict=False)
    net.load_state_dict(state, strip_prefix=prefix)
    for key, array in net.state_dict().items():
        np.testing.assert_array_equal(array, state[prefix + key])


def test_a_prefix_that_some_keys_have():
    net = small()
    state = {f"module.{key}": array + 1 for key, array in net.state_dict().items()}
    state["fc.1.bias"] = state.pop("module.fc.1.bias")
    with pytest.raises(StateDictError) as error:
        net.load_state_dict(state)
    assert "strip_prefix" not in str(error.value)
    net.load_state_dict(state, strip_prefix="module.")
    np.testing.assert_array_equal(net.state_dict()["fc.1.bias"], state["fc.1.bias"])
    with pytest.raises(StateDictError, match=r"fc\.1\.bias comes twice"):
        net.load_state_dict(state | {"module.fc.1.bias": np.zeros(2)}, strip_prefix="module.")


def test_the_first_spelling_of_densenet():
    net = small()
    state = net.state_dict()
    older = {key: array + 1 for key, array in state.items()}
    for name in ("norm", "conv"):
        for i in "12":
            older = {key.replace(f".{name}{i}.", f".{name}.{i}."): array for key, array in older.items()}
    assert "features.block.norm.1.running_mean" in older
    net.load_state_dict(older | {"features.block.norm.1.num_batches_tracked": np.zeros(())})
    np.testing.assert_array_equal(
        net.state_dict()["features.block.conv2.weight"], older["features.block.conv.2.weight"]
    )
    with pytest.raises(StateDictError, match=r"features\.block\.norm1\.weight comes twice"):
        net.load_state_dict(older | {"features.block.norm1.weight": np.zeros(1)})


def test_a_network_that_is_spelled_so_itself():
    net = Sequential(norm=Sequential(BatchNorm2d(), BatchNorm2d()))
    net.build((1, 2, 2))
    net.load_state_dict({key: array + 1 for key, array in net.state_dict().items()})
    np.testing.assert_array_equal(net.state_dict()["norm.1.weight"], [2])


def test_long_lists_are_cut():
    net = Sequential(*[BatchNorm2d() for _ in range(12)])
    net.build((1, 2, 2))
    with pytest.raises(StateDictError, match=r"missing: 0\.bias, .*, and 28 more; unexpected: x\.$"):
        net.load_state_dict({"x": np.zeros(1)})


def test_strict_false_with_nothing_that_fits():
    net = small()
    with pytest.raises(StateDictError, match=r"missing: .*; unexpected: backbone\.weight"):
        net.load_state_dict({"backbone.weight": np.zeros(1)}, strict=False)
