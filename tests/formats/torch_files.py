"""Torch files made by hand, instruction by instruction: what the tests need and torch would never write."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Mapping

HEAD, END = b"\x80\x02", b"."
EMPTY = b"ccollections\nOrderedDict\n)R"
MAGIC = 0x1950A86A20F9469CFC6C


def name(qualified: str) -> bytes:
    module, _, attribute = qualified.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def ints(*values: int) -> bytes:
    return tuple_of(*map(number, values))


def tuple_of(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def list_of(*items: bytes) -> bytes:
    return b"](" + b"".join(items) + b"e"


def dict_of(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def call(function: str, *arguments: bytes) -> bytes:
    return name(function) + tuple_of(*arguments) + b"R"


def storage(count: int = 6, key: str = "0", kind: str = "torch.FloatStorage") -> bytes:
    return tuple_of(text("storage"), name(kind), text(key), text("cpu"), number(count)) + b"Q"


def tensor(
    of: bytes | None = None,
    offset: int = 0,
    size: tuple[int, ...] = (2, 3),
    stride: tuple[int, ...] = (3, 1),
    function: str = "torch._utils._rebuild_tensor_v2",
    more: tuple[bytes, ...] = (),
) -> bytes:
    of = storage() if of is None else of
    return call(function, of, number(offset), ints(*size), ints(*stride), b"\x89", EMPTY, *more)


def zipped(program: bytes, members: Mapping[str, bytes], folder: str = "archive", **options: int) -> bytes:
    """A torch file in the zip format; `members` as "data/0" -> bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for member, data in {"data.pkl": program, **members}.items():
            archive.writestr(zipfile.ZipInfo(f"{folder}/{member}"), data, archive.compression)  # dated 1980
    return file.getvalue()


def legacy(program: bytes, storages: Mapping[str, tuple[int, bytes]], keys: bytes | None = None) -> bytes:
    """A torch file in the legacy format; `storages` as key -> (number of elements, bytes)."""
    info = dict_of(protocol_version=number(1001), little_endian=b"\x88", type_sizes=dict_of(int=number(4)))
    parts = [number(MAGIC), number(1001), info, None, list_of(*map(text, storages)) if keys is None else keys]
    data = b"".join(program if part is None else HEAD + part + END for part in parts)
    return data + b"".join(struct.pack("<q", count) + raw for count, raw in storages.values())
