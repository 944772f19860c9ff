"""Weights in torch's files (.pth, .pt, .th, .bin), read and written without torch and without running code.

Since torch 1.6 such a file is a zip archive, stored without compression:

    NAME/data.pkl       a pickle: containers, and tensors as (storage, offset, size, stride)
    NAME/data/0, 1, ... the storages: raw numbers
    NAME/byteorder      "little" or "big"; little where it is missing
    NAME/version, ...   not needed

Older files are five pickles one after the other (a magic number, the version, the machine, the contents, the names of
the storages), and then, for each storage, the number of elements in 8 bytes and the raw numbers.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, Literal, Protocol

import numpy as np

from ..errors import ArgumentError, FileFormatError
from ..files import atomic_write
from .common import bfloat16_to_float32, most_bytes, naming, stored_zip
from .unpickle import NUMPY_NAMES, Name, NumpyArray, is_shape, unpickle

__all__ = ["read_weights", "write_weights"]

MAGIC = 0x1950A86A20F9469CFC6C
STORAGES = {  # torch's classes, and the dtype of what they hold
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
DTYPES = {*STORAGES.values(), "uint16", "uint32", "uint64"}
DEPTH = 4  # how many dicts deep a state dict is looked for


# --- what the pickle describes ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Storage:
    """A run of numbers in the file, by name."""

    key: str
    dtype: str
    nbytes: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage, in elements. Nothing is read before `array` is given the bytes of the storage."""

    storage: Storage
    dtype: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """How much memory the array takes."""
        return math.prod(self.size) * (4 if self.dtype == "bfloat16" else _itemsize(self.dtype))

    def array(self, data: bytes, order: Literal["<", ">"]) -> np.ndarray:
        """Return a copy in native byte order, C-contiguous, bfloat16 as float32."""
        raw = np.dtype({"bfloat16": "uint16", "bool": "uint8"}.get(self.dtype, self.dtype))
        flat = np.frombuffer(data, raw.newbyteorder(order), len(data) // raw.itemsize)
        steps = tuple(raw.itemsize * step for step in self.stride)
        view = np.lib.stride_tricks.as_strided(flat[self.offset :], self.size, steps, writeable=False)
        array = np.array(view, raw, order="C")
        return bfloat16_to_float32(array) if self.dtype == "bfloat16" else array.astype(self.dtype, copy=False)


def _itemsize(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any, dtype: str | None = None) -> Tensor:
    """torch._utils._rebuild_tensor and _rebuild_tensor_v2 (+ requires_grad, hooks, metadata)."""
    if not isinstance(storage, Storage) or not is_shape((offset,)) or not is_shape(size) or not is_shape(stride):
        raise FileFormatError("describes a tensor whose storage, offset, size or strides are none (no negative ints).")
    if len(size) != len(stride):
        raise FileFormatError(f"describes a tensor of {len(size)} dimensions with {len(stride)} strides.")
    if len(rest) > 2 and rest[2]:
        raise FileFormatError("holds a lazily conjugated or negated tensor: save tensor.resolve_conj().resolve_neg().")
    dtype = dtype or storage.dtype
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    capacity = storage.nbytes // _itemsize(dtype)
    if 0 not in size and last >= capacity:
        raise FileFormatError(
            f"describes a tensor of size {size} and strides {stride} from element {offset} on, which reaches beyond "
            f"the {capacity:,} elements of storage {storage.key!r}."
        )
    return Tensor(storage, dtype, 0 if 0 in size else offset, size, stride)


def _tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
) -> Tensor:
    """torch._utils._rebuild_tensor_v3: the dtype is not that of the storage."""
    found = dtype.text.removeprefix("torch.") if isinstance(dtype, Name) else ""
    if found not in DTYPES:
        raise FileFormatError(f"holds a tensor of dtype {found!r}, which NumPy lacks.")
    return _tensor(storage, offset, size, stride, grad, hooks, *rest, dtype=found)


def _parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise FileFormatError("holds a parameter that is no tensor.")
    return data


def _size(size: Any = ()) -> tuple[int, ...]:
    if not is_shape(size):
        raise FileFormatError("holds a torch.Size that is none.")
    return size  # type: ignore[no-any-return]


def _device(kind: Any, index: Any = None) -> str:
    if not isinstance(kind, str) or not (index is None or type(index) is int):
        raise FileFormatError("holds a torch.device that is none.")
    return kind if index is None else f"{kind}:{index}"


KNOWN: dict[str, Callable[..., Any] | None] = {
    **NUMPY_NAMES,
    **{f"torch.{name}": None for name in STORAGES},
    **{f"torch.{name}": None for name in DTYPES},
    "torch.UntypedStorage": None,
    "torch.storage.UntypedStorage": None,
    "torch.Size": _size,
    "torch.device": _device,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}


def _storage(identity: Any) -> Storage:
    """Make a storage of torch's persistent id: ("storage", class, key, device, number of elements)."""
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise FileFormatError("holds a persistent id that is not that of a storage.")
    _, kind, key, _, count, *view = identity
    if not isinstance(kind, Name) or not isinstance(key, str) or not is_shape((count,)):
        raise FileFormatError("holds a storage without class, name or number of elements.")
    if view and view[0] is not None:
        raise FileFormatError("holds a view of a storage, as torch 0.1 wrote it. Load and save it with a newer torch.")
    name = kind.text.rpartition(".")[2]
    if name not in STORAGES and name != "UntypedStorage":
        raise FileFormatError(f"takes {kind.text!r} for a storage.")
    dtype = STORAGES.get(name, "uint8")
    return Storage(key, dtype, count * _itemsize(dtype))


# --- the two containers -----------------------------------------------------------------------------------------


class Container(Protocol):
    """An open file: its contents, and the bytes of a storage."""

    contents: Any
    order: Literal["<", ">"]

    def bytes_of(self, storage: Storage) -> bytes:
        """Return the numbers of a storage."""


class ZipContainer:
    """torch 1.6 and newer."""

    def __init__(self, file: IO[bytes], file_size: int) -> None:
        self.archive = stored_zip(file, file_size)
        names = self.archive.namelist()
        programs = [name for name in names if name.endswith("/data.pkl")]
        if len(programs) != 1:
            raise FileFormatError("is a zip archive without the data.pkl (just one) of torch's files.")
        self.folder = programs[0].removesuffix("data.pkl")
        self.sizes = {member.filename: member.file_size for member in self.archive.infolist()}
        order = self.archive.read(self.folder + "byteorder") if self.folder + "byteorder" in names else b"little"
        if order not in (b"little", b"big"):
            raise FileFormatError("has a byte order that is neither little nor big.")
        self.order: Literal["<", ">"] = "<" if order == b"little" else ">"
        self.contents = unpickle(io.BytesIO(self.archive.read(programs[0])), KNOWN, _storage)

    def bytes_of(self, storage: Storage) -> bytes:
        """Return the member of the archive that holds the storage."""
        name = f"{self.folder}data/{storage.key}"
        if self.sizes.get(name, -1) < storage.nbytes:
            raise FileFormatError(
                f"should have {storage.nbytes:,} bytes in {name[:80]!r} for one of its tensors; it has "
                f"{self.sizes.get(name, 'no such member')}."
            )
        return self.archive.read(name)


class LegacyContainer:
    """torch before 1.6, and newer ones when told so. Always little-endian, whatever machine wrote it."""

    order: Literal["<", ">"] = "<"

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        if unpickle(data, {}) != MAGIC:  # type: ignore[arg-type]
            raise FileFormatError("is a pickle, but not one of torch's.")
        version, _ = unpickle(data, {}), unpickle(data, {})  # type: ignore[arg-type]
        if version != 1001:
            raise FileFormatError("is a torch file of an unknown version.")
        self.declared: dict[str, Storage] = {}
        self.contents = unpickle(data, KNOWN, self._declare)  # type: ignore[arg-type]
        keys = unpickle(data, {})  # type: ignore[arg-type]
        if not isinstance(keys, list) or set(map(type, keys)) - {str} or set(keys) != set(self.declared):
            raise FileFormatError("has a list of storages that does not fit its tensors.")
        self.starts: dict[str, int] = {}
        position = data.tell()
        for key in keys:
            storage = self.declared[key]
            (count,) = struct.unpack_from("<q", data, position)
            self.starts[key] = position + 8
            position += 8 + storage.nbytes
            if count * _itemsize(storage.dtype) != storage.nbytes or position > len(data):
                raise FileFormatError(
                    f"is truncated or broken: storage {key!r} should have {storage.nbytes:,} bytes from byte "
                    f"{self.starts[key]:,} on, of {len(data):,} in the file."
                )

    def _declare(self, identity: Any) -> Storage:
        storage = _storage(identity)
        if self.declared.setdefault(storage.key, storage) != storage:
            raise FileFormatError(f"describes storage {storage.key!r} in two ways.")
        return storage

    def bytes_of(self, storage: Storage) -> bytes:
        """Return a copy of the storage's part of the file."""
        start = self.starts[storage.key]
        return self.data[start : start + storage.nbytes]


# --- reading ----------------------------------------------------------------------------------------------------


def read_weights(path: str | os.PathLike[str], key: str | None = None) -> dict[str, np.ndarray]:
    """Return the state dict in a torch file: arrays by name, bfloat16 as float32. Nothing in the file is executed.

    A state dict inside others, as in `{"state_dict": {...}, "epoch": 90}`, is found if there is just one. Entries
    beside the tensors that are none are left out.

    Args:
        path: a file written by torch.save, in either of its two formats.
        key: where the state dict is, such as "model" or "generator.state_dict", if there are several.

    Raises:
        FileNotFoundError: if there is no such file.
        FileFormatError: if the file is broken, asks for code, describes more than it holds, or has no state dict
            or several; the message names the file and says what is in it.
    """
    with open(path, "rb") as file, naming(path):
        size = os.fstat(file.fileno()).st_size
        start = file.read(4)
        file.seek(0)
        if start == b"PK\x03\x04":
            return _arrays(ZipContainer(file, size), key, size)
        if start[:1] != b"\x80":
            raise FileFormatError("is not a torch file: it is neither a zip archive nor a pickle.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _arrays(LegacyContainer(data), key, size)


def _arrays(container: Container, key: str | None, file_size: int) -> dict[str, np.ndarray]:
    state = _state_dict(container.contents, key)
    if (total := sum(entry.nbytes for entry in state.values())) > most_bytes(file_size):
        raise FileFormatError(f"describes arrays of {total:,} bytes, but has only {file_size:,} bytes itself.")
    arrays: dict[str, np.ndarray] = {}
    held: tuple[Storage | None, bytes] = (None, b"")  # tensors of one storage mostly follow one another
    for name, entry in state.items():
        if isinstance(entry, NumpyArray):
            arrays[name] = entry.array()
            continue
        if entry.storage != held[0]:
            held = (entry.storage, container.bytes_of(entry.storage))
        arrays[name] = entry.array(held[1], container.order)
    return arrays


def _state_dict(contents: Any, key: str | None) -> dict[str, Tensor | NumpyArray]:
    """Return the tensors by name, from where `key` says or from the only dict that has any."""
    for part in key.split(".") if key else ():
        if not isinstance(contents, dict) or part not in contents:
            raise FileFormatError(f"has nothing at {key!r}. It holds {_listing(contents)}.")
        contents = contents[part]
    level, seen = [("", contents)], {id(contents)}
    found: list[tuple[str, Any]] = []
    for _ in range(DEPTH):
        if found := [place for place in level if _has_tensors(place[1])]:
            found += [place for place in _inside(found, seen) if _has_tensors(place[1])]
            break
        level = _inside(level, seen)
    if len(found) != 1:
        what = f"holds {'more than one' if found else 'no'} state dict: {_listing(contents)}."
        places = ", ".join(repr(path[:60]) for path, _ in found[:20] if path)
        raise FileFormatError(f"{what} Choose a key: {places}." if places else what)
    return {name: entry for name, entry in found[0][1].items() if isinstance(entry, (Tensor, NumpyArray))}


def _has_tensors(value: Any) -> bool:
    tensors = [k for k, v in value.items() if isinstance(v, (Tensor, NumpyArray))] if isinstance(value, dict) else []
    return bool(tensors) and all(isinstance(name, str) for name in tensors)


def _inside(level: list[tuple[str, Any]], seen: set[int]) -> list[tuple[str, Any]]:
    """Return (path, dict) of the dicts right inside some others, each once: a pickle may be cyclic."""
    below = []
    for path, value in level:
        for name, inner in value.items() if isinstance(value, dict) else ():
            if isinstance(inner, dict) and id(inner) not in seen:
                seen.add(id(inner))
                below.append((f"{path}.{name}" if path else str(name), inner))
    return below


def _listing(contents: Any) -> str:
    """Say what an object holds, in one line."""
    if not isinstance(contents, dict):
        return f"an object of type {type(contents).__name__}"
    parts = []
    for name, value in list(contents.items())[:20]:
        if isinstance(value, (Tensor, NumpyArray)):
            what = "array"
        else:
            what = f"{type(value).__name__} of {len(value)}" if isinstance(value, dict) else type(value).__name__
        parts.append(f"{str(name)[:60]} ({what})")
    more = len(contents) - len(parts)
    return (", ".join(parts) or "an empty dict") + (f" and {more} more" if more else "")


# --- writing ----------------------------------------------------------------------------------------------------


def write_weights(path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as a torch file (zip format), whole or not at all; `torch.load` gives an OrderedDict.

    Raises:
        ArgumentError: for an array of a dtype for which torch has no storage.
    """
    arrays = {str(name): np.asarray(array) for name, array in tensors.items()}
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        _member(archive, "data.pkl", _program(arrays))
        _member(archive, "byteorder", b"little")
        for number, array in enumerate(arrays.values()):
            _member(archive, f"data/{number}", array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        _member(archive, "version", b"3\n")


def _member(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)  # dated 1980: the same weights give the same bytes


def _program(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return the pickle that describes the arrays, as torch.save would write it."""
    classes = {dtype: name for name, dtype in STORAGES.items()}
    empty = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    program = pickle.PROTO + b"\x02" + empty + pickle.MARK
    for number, (name, array) in enumerate(arrays.items()):
        if array.dtype.name not in classes:
            raise ArgumentError(f"{name} has dtype {array.dtype}; torch files hold {', '.join(classes)}.")
        strides = [math.prod(array.shape[i + 1 :]) for i in range(array.ndim)]
        storage = _tuple(
            _text("storage"),
            _global("torch", classes[array.dtype.name]),
            _text(str(number)),
            _text("cpu"),
            _int(array.size),
        )
        program += _text(name) + _global("torch._utils", "_rebuild_tensor_v2")
        program += _tuple(
            storage + pickle.BINPERSID,
            _int(0),
            _tuple(*map(_int, array.shape)),
            _tuple(*map(_int, strides)),
            pickle.NEWFALSE,
            empty,
        )
        program += pickle.REDUCE
    return program + pickle.SETITEMS + pickle.STOP


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    data = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _int(n: int) -> bytes:
    if n < 2**31:
        return pickle.BININT + struct.pack("<i", n)
    data = pickle.encode_long(n)
    return pickle.LONG1 + bytes([len(data)]) + data


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE
