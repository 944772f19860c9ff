"""Good files of every format that xpcnn reads, small, to be damaged. They are the same in every run."""

from __future__ import annotations

import gzip
import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tests.formats.torch_files import EMPTY, END, HEAD, call, dict_of, legacy, list_of, number, tensor, text, zipped
from xpcnn import BatchNorm2d, Classifier, Conv2d, Dense, Dropout, Flatten, MaxPool2d, ReLU, Sequential
from xpcnn.data.sources import IDX_DTYPES
from xpcnn.formats import json as json_format
from xpcnn.formats import onnx as onnx_format
from xpcnn.formats import pth, safetensors

CIFAR_LABELS = "airplane automobile bird cat deer dog frog horse ship truck"


def _rng() -> np.random.Generator:
    return np.random.default_rng(20261122)


def written(write: Callable[[Path], object], suffix: str) -> bytes:
    """Return what a function writes to a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"seed{suffix}")
        write(path)
        return path.read_bytes()


def _tensors() -> dict[str, np.ndarray]:
    rng = _rng()
    return {
        "0.weight": rng.normal(size=(2, 1, 3, 3)).astype(np.float32),
        "0.bias": np.zeros(2, np.float32),
        "half": rng.normal(size=5).astype(np.float16),
        "count": np.array(7),
        "none": np.zeros((0, 3), np.float64),
        "mask": np.array([True, False]),
    }


def _network() -> Sequential:
    return Sequential(Conv2d(2, 3, padding=1), BatchNorm2d(), ReLU(), MaxPool2d(2), Flatten(), Dropout(0.2), Dense(3))


def _model(suffix: str) -> bytes:
    model = Classifier(_network(), ["a", "b", "c"], device="cpu", normalize=(0.5, 0.25))
    model.build((1, 6, 6))
    return written(model.save, suffix)


# --- weights and models -----------------------------------------------------------------------------------------


@lru_cache
def safetensors_files() -> list[bytes]:
    bfloat16 = b'{"w":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]},"__metadata__":{"a":"b"}}'
    return [
        written(lambda path: safetensors.write_weights(path, _tensors()), ".safetensors"),
        len(bfloat16).to_bytes(8, "little") + bfloat16 + bytes(range(8)),
    ]


@lru_cache
def json_files() -> list[bytes]:
    plain = {name: array for name, array in _tensors().items() if array.dtype.kind == "f"}
    return [written(lambda path: json_format.write_weights(path, plain), ".json"), b'{"weights": {"w": [[1, 2]]}}']


@lru_cache
def model_safetensors_files() -> list[bytes]:
    return [_model(".safetensors")]


@lru_cache
def model_json_files() -> list[bytes]:
    return [_model(".json")]


SIX = np.arange(6, dtype="<f4").tobytes()


def _programs() -> list[bytes]:
    """Contents of torch files: a plain state dict, and one with everything that is understood."""
    ordered = call("collections.OrderedDict", list_of(list_of(text("v"), tensor())))
    everything = dict_of(
        state_dict=dict_of(w=tensor(), v=tensor(None, 1, (2, 2), (3, 1)), p=call(
            "torch._utils._rebuild_parameter", tensor(), b"\x88", EMPTY
        )),
        epoch=number(90),
        shape=call("torch.Size", tensor()[:0] + b")"),
        accuracy=call("numpy._core.multiarray.scalar", call("numpy.dtype", text("f8")), b"C\x08" + bytes(8)),
        args=list_of(text("lr"), b"N", b"\x88", ordered),
    )  # fmt: skip
    return [HEAD + dict_of(w=tensor()) + END, HEAD + everything + END]


@lru_cache
def pth_files() -> list[bytes]:
    made = written(lambda path: pth.write_weights(path, _tensors()), ".pth")
    return [made, *(zipped(program, {"data/0": SIX, "byteorder": b"little"}) for program in _programs())]


@lru_cache
def legacy_pth_files() -> list[bytes]:
    return [legacy(program, {"0": (6, SIX)}) for program in _programs()]


def _hdf5(numbered: bool) -> bytes:
    import h5py

    rng, file = _rng(), io.BytesIO()
    with h5py.File(file, "w") as store:
        for layer, shapes in {"conv2d": ((3, 3, 1, 2), (2,)), "dense": ((4, 3), (3,))}.items():
            for i, (name, shape) in enumerate(zip(("kernel:0", "bias:0"), shapes, strict=True)):
                place = f"layers/{layer}/vars/{i}" if numbered else f"model_weights/{layer}/{layer}/{name}"
                store[place] = rng.normal(size=shape).astype(np.float32)
        if not numbered:
            store.attrs["model_config"] = json.dumps({"class_name": "Functional", "config": {"layers": []}})
    return file.getvalue()


@lru_cache
def hdf5_files() -> list[bytes]:
    return [_hdf5(numbered=False)]


@lru_cache
def keras_files() -> list[bytes]:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in (
            ("metadata.json", "{}"),
            ("config.json", json.dumps({"class_name": "Functional", "config": {"name": "model"}})),
            ("model.weights.h5", _hdf5(numbered=True)),
        ):
            archive.writestr(zipfile.ZipInfo(name), content)  # dated 1980
    return [file.getvalue()]


def _constants_model(cut: bool) -> bytes:
    """A model that computes constants while it is read, with a Slice or without."""
    import onnx

    node, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    constants = {
        "scale": np.float32([2.0]),
        "size": np.array([2, 3]),
        "shape": np.array([0, -1]),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "start": np.array([1]),
        "end": np.array([4]),
        "axis": np.array([2]),
    }
    nodes = [
        node("ConstantOfShape", ["size"], ["table"]),
        node("Expand", ["scale", "size"], ["wide"]),
        node("Add", ["table", "wide"], ["sum"]),
        node("ReduceMax", ["sum"], ["top"], keepdims=0),
        node("Mul", ["x", "top"], ["scaled"]),
        node("Pad", ["scaled", "pads"], ["padded"]),
        node("Slice", ["padded", "start", "end", "axis"], ["cut"]) if cut else node("Relu", ["padded"], ["cut"]),
        node("Concat", ["cut", "cut"], ["double"], axis=1),
        node("AveragePool", ["double"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Reshape", ["pooled", "shape"], ["flat"]),
        node("Softmax", ["flat"], ["y"], axis=-1),
    ]
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [info("x", kind, ["N", 1, 6, 6])],
        [info("y", kind, ["N", "K"])],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


@lru_cache
def onnx_files() -> list[bytes]:
    net = _network()
    net.build((1, 6, 6))
    return [written(lambda path: onnx_format.save(net, path, (1, 6, 6)), ".onnx"), _constants_model(cut=False)]


@lru_cache
def onnx_slice_files() -> list[bytes]:
    return [_constants_model(cut=True)]


# --- data sets --------------------------------------------------------------------------------------------------


@lru_cache
def idx_files() -> list[bytes]:
    files = []
    for code, dtype in IDX_DTYPES.items():
        shape = (2, 3, 4)[: 1 + code % 3]
        header = bytes([0, 0, code, len(shape)]) + np.array(shape, ">u4").tobytes()
        files.append(header + np.arange(np.prod(shape)).astype(dtype).tobytes())
    return files


@lru_cache
def idx_gz_files() -> list[bytes]:
    return [gzip.compress(content, mtime=0) for content in idx_files()]


@lru_cache
def cifar_files() -> list[bytes]:
    records = _rng().integers(0, 256, (2, 3073), dtype=np.uint8)
    records[:, 0] = 3, 9
    return [records.tobytes()]


def cifar_folder(folder: Path) -> None:
    """Write the files of CIFAR-10 beside the damaged one."""
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        (folder / name).write_bytes(cifar_files()[0])
    (folder / "batches.meta.txt").write_text(CIFAR_LABELS.replace(" ", "\n"))


@lru_cache
def npz_files() -> list[bytes]:
    x, y = _rng().integers(0, 256, (4, 5, 5), dtype=np.uint8), np.array([0, 1, 2, 1])
    plain, packed = io.BytesIO(), io.BytesIO()
    np.savez(plain, x=x, y=y)
    np.savez_compressed(packed, x_train=x / 255, y_train=y, x_test=x[:1] / 255, y_test=y[:1], classes=["a", "b", "c"])
    return [plain.getvalue(), packed.getvalue()]


# --- images -----------------------------------------------------------------------------------------------------


def _picture(mode: str, size: tuple[int, int] = (11, 8)) -> Image.Image:
    image = Image.new("RGB", size, "navy")
    ImageDraw.Draw(image).ellipse((1, 1, 8, 6), fill="orange")
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image.convert(mode)


@lru_cache
def image_files() -> list[bytes]:
    """Every format that Pillow writes here, in the modes it takes, some with several frames."""
    Image.init()
    files = []
    for name in sorted(Image.SAVE):
        if name in ("PDF", "EPS", "MPO", "PALM"):  # not read, or the same as another
            continue
        for mode in ("RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "I;16", "I", "F"):
            file = io.BytesIO()
            try:
                _picture(mode).save(file, name)
            except Exception:  # a mode that this format does not have
                continue
            files.append(file.getvalue())
    frames = [_picture("P"), _picture("L"), _picture("RGB")]
    for name, options in (("GIF", {}), ("PNG", {}), ("WEBP", {}), ("TIFF", {"compression": "tiff_lzw"})):
        if name in Image.SAVE:
            file = io.BytesIO()
            frames[0].save(file, name, save_all=True, append_images=frames[1:], **options)
            files.append(file.getvalue())
    for options in ({"compression": "jpeg"}, {"compression": "tiff_deflate"}, {"compression": "group4"}):
        file = io.BytesIO()
        _picture("1" if options["compression"] == "group4" else "RGB").save(file, "TIFF", **options)
        files.append(file.getvalue())
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    _picture("RGB").save(file, "JPEG", progressive=True, exif=exif, icc_profile=b"profile")
    return [*files, file.getvalue()]
