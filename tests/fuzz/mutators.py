"""Damage: a mutator is f(random, content, another good file) -> content.

The first ones know nothing of the format; those after them keep its envelope (lengths, checksums, compression) intact,
so that the damage reaches what is inside. All are driven by `random.Random`, so an input is known by its number.
"""

from __future__ import annotations

import copy
import gzip
import io
import itertools
import json
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

Mutator = Callable[[Random, bytes, bytes], bytes]

NUMBERS = [0, 1, 2, 3, 4, 127, 128, 255, 256, 1000, 2**15, 2**16 - 1, 2**16, 10**6, 2**24, 2**31 - 1, 2**31, 2**32 - 1]
NUMBERS += [2**32, 10**12, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -1, -2, -(2**31), -(2**63)]

# --- any file ---------------------------------------------------------------------------------------------------


def flip(random: Random, data: bytes, other: bytes) -> bytes:
    """Change one to eight bytes."""
    made = bytearray(data or b"\0")
    for _ in range(random.choice((1, 1, 2, 8))):
        where = random.randrange(len(made))
        made[where] = random.choice((random.randrange(256), made[where] ^ 1 << random.randrange(8), 0, 255))
    return bytes(made)


def truncate(random: Random, data: bytes, other: bytes) -> bytes:
    """Cut off the end, or put something behind it."""
    return data[: random.randrange(len(data) + 1)] if random.random() < 0.8 else data + random.randbytes(9)


def splice(random: Random, data: bytes, other: bytes) -> bytes:
    """Take a piece out, or put in a piece of this file or of another one."""
    a, b = sorted(random.randrange(len(data) + 1) for _ in range(2))
    if random.random() < 0.3:
        return data[:a] + data[b:]
    source = random.choice((data, other))
    start = random.randrange(len(source) + 1)
    piece = source[start : start + random.choice((1, 4, 16, 200))]
    return data[:a] + piece + data[random.choice((a, b, a + len(piece))) :]


def field(random: Random, data: bytes, other: bytes) -> bytes:
    """Overwrite a number of 1 to 8 bytes: the lengths, offsets and sizes of binary formats are such."""
    size = random.choice((1, 2, 4, 8))
    if len(data) < size:
        return flip(random, data, other)
    where = random.randrange(min(len(data) - size + 1, random.choice((64, 1024, 1 << 30))))
    order: Any = random.choice(("little", "big"))
    old = int.from_bytes(data[where : where + size], order)
    new = random.choice((random.choice(NUMBERS), old + random.choice((-1, 1)), 2 * old, len(data), len(data) - where))
    return data[:where] + (new % 256**size).to_bytes(size, order) + data[where + size :]


def digits(random: Random, data: bytes, other: bytes) -> bytes:
    """Put another number in the place of one that is written in digits."""
    found = [match.span() for match in re.finditer(rb"\d+", data[: 1 << 16])]
    if not found:
        return field(random, data, other)
    a, b = random.choice(found)
    new = random.choice([*map(str, NUMBERS), "1e999", "NaN", "0.5", "-0", "9" * 400])
    return data[:a] + new.encode() + data[b:]


ANY = (flip, flip, truncate, splice, field, field, digits)

# --- JSON -------------------------------------------------------------------------------------------------------

VALUES: list[Any] = [None, True, False, "", "x", "\ud800", "F32", "BF16", "float64", [], {}, [[]], [1, [2]], {"a": 1}]
VALUES += [*NUMBERS, 0.5, -0.0, 1e308, float("nan"), float("inf"), 10**400]
VALUES += [{"layer": "Dense", "arguments": {"units": 10**9}}, {"layer": "Flatten", "arguments": {}}, {"again": 0}]


def tree(random: Random, root: Any) -> Any:
    """Change, remove, copy or rename one node of JSON-able data, the higher the likelier."""
    root = copy.deepcopy(root)
    node = root
    while isinstance(node, (dict, list)) and node:
        key = random.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if isinstance(node[key], (dict, list)) and random.random() < 0.8:
            node = node[key]
            continue
        change = random.randrange(5)
        if change == 0:
            del node[key]
        elif change == 1 and isinstance(node, dict):
            node[random.choice(["", "w", "layer", "arguments", "weights", "dtype", "__metadata__"])] = node.pop(key)
        elif change == 2:
            node[key] = copy.deepcopy(random.choice(list(node.values()) if isinstance(node, dict) else node))
        elif change == 3:
            node[key] = [node[key]] * random.choice((1, 2, 50))
        else:
            node[key] = random.choice(VALUES)
        return root
    return random.choice(VALUES)


def json_tree(random: Random, data: bytes, other: bytes) -> bytes:
    """Change a JSON file that stays one."""
    if random.random() < 0.02:
        return b"[" * random.choice((10, 2000, 10**5))
    return json.dumps(tree(random, json.loads(data))).encode()


def safetensors_header(random: Random, data: bytes, other: bytes) -> bytes:
    """Change the JSON in the header of a safetensors file, or the JSON inside that."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    inner = header.get("__metadata__", {}).get("xpcnn")
    if inner is not None and random.random() < 0.8:
        header["__metadata__"]["xpcnn"] = json.dumps(tree(random, json.loads(inner)))
    else:
        header = tree(random, header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


# --- zip, gzip --------------------------------------------------------------------------------------------------


def gzipped(random: Random, data: bytes, other: bytes) -> bytes:
    """Damage what is compressed."""
    inner = random.choice(ANY)(random, gzip.decompress(data), gzip.decompress(other))
    return gzip.compress(inner, compresslevel=1, mtime=0)


def zip_members(random: Random, data: bytes, other: bytes) -> bytes:
    """Damage a member of a zip archive, or its name, or the list of members."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
        method = archive.infolist()[0].compress_type if random.random() < 0.95 else zipfile.ZIP_DEFLATED
    k = random.randrange(len(members))
    name, content = members[k]
    choice = random.random()
    if choice < 0.8:
        special = {".pkl": (instructions,), ".npy": (npy_header,), "json": (json_tree,)}.get(name[-4:], ())
        members[k] = name, random.choice((*ANY, *special * 8))(random, content, random.choice(members)[1])
    elif choice < 0.9:
        new = random.choice(
            ["", "x.npy", "a/b", "../x", "archive/data/1", "archive/byteorder", name.upper(), "x" * 300]
        )
        members[k] = new, content
    elif choice < 0.95:
        del members[k]
    else:
        members.insert(0, (name + random.choice(("", "2")), content))
    return zipped(members, method)


def zipped(members: list[tuple[str, bytes]], method: int) -> bytes:
    """Return a zip archive; zipfile warns of names that occur twice, which is what is wanted here."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=method)
    return file.getvalue()


def npy_header(random: Random, data: bytes, other: bytes) -> bytes:
    """Change the text in the header of an .npy file, keeping its length right."""
    start = 10
    length = int.from_bytes(data[8:10], "little")
    text = data[start : start + length]
    kinds = [b"|O", b"<f2", b"<f8", b">i8", b"<U99999999", b"|S0", b"|V8", b"<c16", b"<M8[s]", b"|b1", b"<f16"]
    kind = random.choice(kinds)
    old, new = random.choice(
        [(rb"'\|?<?[a-z]\d'", b"'" + kind + b"'"), (rb"\([\d, ]*\)", b"(%d, 5, 5)" % random.choice(NUMBERS))]
    )
    text = re.sub(old, lambda _: new, text) if random.random() < 0.7 else random.choice(ANY)(random, text, other)
    return data[:8] + (len(text) % 65536).to_bytes(2, "little") + text + data[start + length :]


# --- pickles ----------------------------------------------------------------------------------------------------

PIECES = [b"N", b"\x88", b")", b"]", b"}", b"(", b"t", b"R", b"b", b"Q", b"s", b"u", b"e", b"a", b"0", b"2", b"\x93"]
PIECES += [b"h\0", b"q\0", b"\x94", b"K\xff", b"M\xff\xff", b"J\xff\xff\xff\xff", b"J\0\0\0\x80", b"G" + b"\x7f" * 8]
PIECES += [b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"X\4\0\0\0data", b"C\2ab", b"\x85", b"\x86", b"\x87", b"\x81", b"."]
PIECES += [f"c{name}\n".encode() for name in ("os\nsystem", "torch\nFloatStorage", "torch._utils\n_rebuild_tensor_v3")]
PIECES += [f"c{name}\n".encode() for name in ("torch\nSize", "numpy\ndtype", "numpy._core.multiarray\n_reconstruct")]
PIECES += [f"c{name}\n".encode() for name in ("collections\nOrderedDict", "numpy\nndarray", "_codecs\nencode")]


def instructions(random: Random, data: bytes, other: bytes) -> bytes:
    """Remove, double, swap or replace instructions of the pickles at the front of a file."""
    stream, cuts = io.BytesIO(data), [0]
    try:
        while stream.tell() < len(data):
            begin = stream.tell()
            for _, _, position in pickletools.genops(stream):
                cuts.append(begin + position if begin + position > cuts[-1] else position)
            cuts.append(stream.tell())
    except Exception:  # the raw numbers behind the last pickle, or damage done before
        pass
    cuts = sorted({cut for cut in cuts if cut <= len(data)})
    parts = [data[a:b] for a, b in itertools.pairwise(cuts)]
    if not parts:
        return flip(random, data, other)
    k, j = random.randrange(len(parts)), random.randrange(len(parts))
    change = random.randrange(6)
    if change == 0:
        del parts[k]
    elif change == 1:
        parts[k] *= random.choice((2, 3, 500))
    elif change == 2:
        parts[k], parts[j] = parts[j], parts[k]
    elif change == 3:
        parts.insert(k, random.choice(PIECES))
    elif change == 4:
        parts[k] = random.choice(PIECES)
    else:
        parts[k] = random.choice((flip, field))(random, parts[k], other)
    return b"".join(parts) + data[cuts[-1] :]


# --- PNG --------------------------------------------------------------------------------------------------------


def png_chunks(random: Random, data: bytes, other: bytes) -> bytes:
    """Damage, remove, double or rename a chunk of a PNG file; lengths and checksums stay right."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return random.choice(ANY)(random, data, other)
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    k = random.randrange(len(chunks))
    name, content = chunks[k]
    change = random.randrange(6)
    if change == 0:
        del chunks[k]
    elif change == 1:
        chunks.insert(k, chunks[k])
    elif change == 2:
        new = random.choice([b"tRNS", b"PLTE", b"IDAT", b"acTL", b"fcTL", b"fdAT", b"zTXt", b"iCCP", b"eXIf", b"gAMA"])
        chunks.insert(k, (new, random.randbytes(random.randrange(40))))
    elif name == b"IDAT" and change == 3:
        chunks[k] = name, zlib.compress(bytes(random.choice((0, 9, 10**6))), 9)
    else:
        chunks[k] = name, random.choice((field, flip, truncate))(random, content, other)
    return data[:8] + b"".join(
        struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks
    )


# --- protobuf (ONNX) --------------------------------------------------------------------------------------------

OPERATORS = [
    "Conv",
    "Gemm",
    "MatMul",
    "Relu",
    "Reshape",
    "Flatten",
    "Concat",
    "Split",
    "Slice",
    "Gather",
    "Pad",
    "Tile",
]
OPERATORS += [
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "BatchNormalization",
    "LRN",
    "Resize",
    "Transpose",
    "Expand",
]
OPERATORS += ["ConstantOfShape", "Range", "Shape", "Squeeze", "Unsqueeze", "Clip", "Cast", "ReduceMean", "Loop", "If"]


def protobuf(random: Random, data: bytes, other: bytes) -> bytes:
    """Change one field of an ONNX model that stays a protobuf message."""
    import onnx

    model = onnx.load_model_from_string(data)
    names = [name for node in model.graph.node for name in (*node.input, *node.output)] or ["x"]
    places: list[tuple[Any, Any]] = []
    stack = [model]
    while stack:
        message = stack.pop()
        for kind, value in message.ListFields():
            places.append((message, kind))
            inner = list(value) if hasattr(value, "append") or hasattr(value, "add") else [value]
            stack += [v for v in inner if hasattr(v, "ListFields")]
    message, kind = random.choice(places)
    value = getattr(message, kind.name)
    many = hasattr(value, "append") or hasattr(value, "add")
    k = random.randrange(len(value)) if many else 0
    item = value[k] if many else value
    change = random.random()
    if hasattr(item, "ListFields"):
        if not many:
            message.ClearField(kind.name)
        elif change < 0.4:
            del value[k]
        elif change < 0.7:
            value.add().CopyFrom(item)
        else:
            item.CopyFrom(random.choice(value))
        return bytes(model.SerializeToString())
    if many and change < 0.2:
        del value[k]
        return bytes(model.SerializeToString())
    if isinstance(item, str):
        new: Any = random.choice([*OPERATORS, *names, *names, "", "x" * 99, "0.weight"])
    elif isinstance(item, bytes):
        new = random.choice(ANY)(random, item, item)
    elif isinstance(item, float):
        new = random.choice([0.0, -1.0, 1e38, float("nan"), float("inf")])
    else:
        new = random.choice([*NUMBERS, item + 1, item - 1, *range(20)])
        bits = 64 if "INT64" in str(kind.type) or kind.type in (3, 4) else 32
        new = (new + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)
    if many and change > 0.8:
        value.append(new)
    elif many:
        value[k] = new
    else:
        setattr(message, kind.name, new)
    return bytes(model.SerializeToString())
