"""Torch files: what is read, what is refused, and that refusing is cheap and runs nothing."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from formats import torch_files as torch
from formats.torch_files import (
    EMPTY,
    call,
    dict_of,
    ints,
    legacy,
    list_of,
    name,
    number,
    storage,
    tensor,
    text,
    tuple_of,
    zipped,
)
from hypothesis import given
from hypothesis import strategies as st

from xpcnn.errors import ArgumentError, FileFormatError
from xpcnn.formats import pth, read_weights, write_weights
from xpcnn.formats.unpickle import INSTRUCTIONS

NUMBERS = np.arange(6, dtype="<f4")
SIX = NUMBERS.tobytes()
MEMORY = 100 * 2**20


def program(contents: bytes) -> bytes:
    return torch.HEAD + contents + torch.END


def both(contents: bytes, raw: bytes = SIX, count: int = 6) -> list[bytes]:
    """The same contents over one storage "0" in both formats."""
    return [zipped(program(contents), {"data/0": raw}), legacy(program(contents), {"0": (count, raw)})]


@pytest.fixture
def read(tmp_path):
    """Read bytes as a file of weights."""

    def call(content, suffix=".pth", **options):
        path = tmp_path / f"model{suffix}"
        path.write_bytes(content)
        return read_weights(path, **options)

    return call


# --- what is read -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".th", ".bin"])
def test_both_formats_under_all_names(read, suffix):
    for content in both(dict_of(w=tensor())):
        state = read(content, suffix)
        assert state.keys() == {"w"}
        assert state["w"].dtype == np.float32
        np.testing.assert_array_equal(state["w"], [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize(
    ("offset", "size", "stride", "expected"),
    [
        (0, (3, 2), (1, 3), [[0, 3], [1, 4], [2, 5]]),
        (1, (2, 2), (3, 1), [[1, 2], [4, 5]]),
        (5, (), (), 5),
        (4, (1, 2), (77, 1), [[4, 5]]),
        (0, (0, 3), (3, 1), np.zeros((0, 3))),
        (9, (2, 0), (1, 1), np.zeros((2, 0))),
        (2, (3,), (0,), [2, 2, 2]),
        (0, (2, 3), (1, 1), [[0, 1, 2], [1, 2, 3]]),
    ],
    ids=["transposed", "offset", "0-d", "stride of a single row", "empty", "empty, offset", "expanded", "overlapping"],
)
def test_views(read, offset, size, stride, expected):
    for content in both(dict_of(w=tensor(None, offset, size, stride))):
        array = read(content)["w"]
        np.testing.assert_array_equal(array, np.asarray(expected, np.float32))
        assert array.shape == size
        assert array.flags.c_contiguous
        assert array.flags.writeable


@pytest.mark.parametrize(("kind", "dtype"), pth.STORAGES.items())
def test_every_dtype_in_both_byte_orders(read, kind, dtype):
    values = np.array([0, 1, 2, 3, 100], "float32" if dtype == "bfloat16" else dtype)
    raw = (values.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bfloat16" else values
    contents = program(dict_of(w=tensor(storage(5, kind=f"torch.{kind}"), 0, (5,), (1,))))
    for order, letter in (("little", "<"), ("big", ">")):
        stored = raw.astype(raw.dtype.newbyteorder(letter)).tobytes()
        array = read(zipped(contents, {"data/0": stored, "byteorder": order.encode()}))["w"]
        assert array.dtype == values.dtype
        np.testing.assert_array_equal(array, values)
    little = raw.astype(raw.dtype.newbyteorder("<")).tobytes()
    np.testing.assert_array_equal(read(legacy(contents, {"0": (5, little)}))["w"], values)


def test_a_dtype_beside_its_storage(read):
    of = storage(8, kind="torch.storage.UntypedStorage")
    found = tensor(of, 1, (3,), (1,), "torch._utils._rebuild_tensor_v3", (name("torch.uint16"),))
    for content in both(dict_of(w=found), np.array([1, 2, 3, 65535], "<u2").tobytes(), 8):
        array = read(content)["w"]
        assert array.dtype == np.uint16
        np.testing.assert_array_equal(array, [2, 3, 65535])


def test_parameters_sizes_and_devices(read):
    parameter = call("torch._utils._rebuild_parameter", tensor(), b"\x88", EMPTY)
    stateful = call("torch._utils._rebuild_parameter_with_state", tensor(), b"\x88", EMPTY, dict_of(tag=text("x")))
    old = call("torch._utils._rebuild_tensor", storage(), number(2), ints(2), ints(1))
    others = {"shape": call("torch.Size", ints(2, 3)), "place": call("torch.device", text("cuda"), number(0))}
    for content in both(dict_of(a=parameter, b=stateful, c=old, kind=name("torch.float32"), **others)):
        state = read(content)
        assert list(state) == ["a", "b", "c"]
        np.testing.assert_array_equal(state["b"], NUMBERS.reshape(2, 3))
        np.testing.assert_array_equal(state["c"], [2, 3])


def test_ordered_dicts_of_python_2_and_3(read):
    pairs = list_of(list_of(b"U\x01a", tensor()), list_of(b"U\x01b", tensor()))
    attributes = dict_of(_metadata=EMPTY)
    contents = name("collections.OrderedDict") + tuple_of(pairs) + b"R" + attributes + b"b"
    for content in both(contents):
        assert list(read(content)) == ["a", "b"]


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_numpy_arrays_and_scalars(read, protocol):
    arrays = {
        "plain": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
        "big": np.arange(4, dtype=">f4"),
        "accuracy": np.float64(0.5),
        "epoch": np.int64(3),
        "0-d": np.array(7.0),
    }
    state = read(zipped(pickle.dumps(arrays, protocol), {}))
    assert set(state) == {"plain", "fortran", "big", "0-d"}
    for key, array in state.items():
        np.testing.assert_array_equal(array, arrays[key])
        assert array.dtype.isnative
    old = pickle.dumps(arrays, protocol).replace(b"numpy._core", b"numpy.core")
    if protocol == 2:  # later protocols store the length of the name
        np.testing.assert_array_equal(read(zipped(old, {}))["plain"], arrays["plain"])


def test_numpy_arrays_of_python_2(read):
    made = call("numpy.core.multiarray._reconstruct", name("numpy.ndarray"), ints(0), b"U\x01b")
    kind = call("numpy.dtype", b"U\x02f4", number(0), number(1)) + tuple_of(number(3), b"U\x01<") + b"b"
    state = tuple_of(number(1), ints(2, 3), kind, b"\x89", b"U" + bytes([len(SIX)]) + SIX)
    for content in both(dict_of(w=tensor(), mean=made + state + b"b")):
        np.testing.assert_array_equal(read(content)["mean"], NUMBERS.reshape(2, 3))


# --- which dict -------------------------------------------------------------------------------------------------


def test_a_wrapped_state_dict_is_found(read):
    state, optimizer = dict_of(w=tensor()), dict_of(state=b"}" + number(0) + dict_of(step=tensor()) + b"s")
    for contents in (
        dict_of(state_dict=state, epoch=number(90), best_prec1=b"G" + struct.pack(">d", 91.7)),
        dict_of(model=state, optimizer=optimizer, args=b"N"),
        dict_of(outer=dict_of(inner=state)),
        dict_of(w=tensor(), classes=list_of(text("cat")), epoch=number(3)),
    ):
        for content in both(contents):
            assert list(read(content)) == ["w"]


def test_several_state_dicts(read, tmp_path):
    contents = dict_of(generator=dict_of(w=tensor()), critic=dict_of(v=tensor()), epoch=number(3))
    message = (
        r"model\.pth holds more than one state dict: generator \(dict of 1\), critic \(dict of 1\), epoch \(int\)\. "
        r"Choose a key: 'generator', 'critic'\."
    )
    for content in both(contents):
        with pytest.raises(FileFormatError, match=message):
            read(content)
        assert list(read(content, key="critic")) == ["v"]
        with pytest.raises(FileFormatError, match=r"has nothing at 'discriminator'\. It holds generator"):
            read(content, key="discriminator")
    nested = dict_of(mean=tensor(), state_dict=dict_of(w=tensor()))
    with pytest.raises(FileFormatError, match=r"more than one state dict: mean \(array\), state_dict \(dict of 1\)"):
        read(both(nested)[0])
    assert list(read(both(nested)[0], key="state_dict")) == ["w"]
    assert list(read(both(dict_of(a=nested))[0], key="a.state_dict")) == ["w"]


def test_a_key_is_for_torch_files(tmp_path):
    write_weights(tmp_path / "a.safetensors", {"w": NUMBERS})
    with pytest.raises(ArgumentError, match="key is for torch files"):
        read_weights(tmp_path / "a.safetensors", key="model")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (dict_of(epoch=number(3)), r"holds no state dict: epoch \(int\)"),
        (b"}", "holds no state dict: an empty dict"),
        (list_of(tensor()), "holds no state dict: an object of type list"),
        (b"}" + number(1) + tensor() + b"s", r"holds no state dict: 1 \(array\)"),
    ],
)
def test_no_state_dict(read, contents, message):
    with pytest.raises(FileFormatError, match=message):
        read(zipped(program(contents), {"data/0": SIX}))


# --- hostile files ----------------------------------------------------------------------------------------------

WRONG = {
    "a module of somebody's": (call("models.resnet.ResNet"), "asks for 'models.resnet.ResNet', and xpcnn runs no code"),
    "a deeper name": (b"\x8c\x02os\x8c\x0bpath.exists\x93", r"asks for 'os\.path\.exists'"),
    "a name that is no text": (b"KqKq\x93", "asks for a name which is no text"),
    "a known name with a dot": (b"\x8c\x05torch\x8c\x10_utils.os.system\x93", r"asks for 'torch\._utils\.os\.system'"),
    "calls a storage class": (
        call("torch.FloatStorage", number(9)),
        "calls 'torch.FloatStorage', which xpcnn knows as",
    ),
    "calls an int": (number(1) + b")R", "calls an object of type int with an object of type tuple"),
    "arguments that are no tuple": (name("torch.Size") + b"]R", "calls the name 'torch.Size' with .* type list"),
    "too many arguments": (call("torch.Size", ints(1), ints(1)), "holds a pickle that is broken"),
    "NEWOBJ": (name("torch.Size") + b")\x81", "with the instruction NEWOBJ, which xpcnn does not carry out"),
    "INST": (b"(ios\nsystem\n", "with the instruction INST"),
    "OBJ": (b"(" + name("torch.Size") + b"o", "with the instruction OBJ"),
    "EXT1": (b"\x82\x01", "with the instruction EXT1"),
    "PERSID": (b"Pstorage\n", "with the instruction PERSID"),
    "BUILD of a tensor": (tensor() + b"}b", "gives attributes to an object of type Tensor"),
    "persistent id of something": (tuple_of(text("module"), number(1)) + b"Q", "a persistent id that is not that of a"),
    "storage class of nothing": (storage(kind="numpy.ndarray"), "takes 'numpy.ndarray' for a storage"),
    "storage of nothing": (tuple_of(text("storage"), *[b"N"] * 4) + b"Q", "a storage without class, name or number"),
    "storage of negative length": (storage(-6), "a storage without class, name or number"),
    "an old view": (
        tuple_of(text("storage"), name("torch.FloatStorage"), text("0"), text("cpu"), number(6), ints(1, 2)) + b"Q",
        "a view of a storage, as torch 0.1 wrote it",
    ),
    "negative stride": (tensor(None, 5, (6,), (-1,)), "no negative ints"),
    "negative offset": (tensor(None, -1), "no negative ints"),
    "negative size": (tensor(None, 0, (-2, 3)), "no negative ints"),
    "bool as size": (call("torch._utils._rebuild_tensor", storage(), number(0), b"\x88\x85", ints(1)), "negative ints"),
    "33 dimensions": (tensor(None, 0, (1,) * 33, (1,) * 33), "size or strides are none"),
    "other number of strides": (tensor(None, 0, (2, 3), (1,)), "a tensor of 2 dimensions with 1 strides"),
    "beyond the storage": (
        tensor(None, 1),
        r"of size \(2, 3\) and strides \(3, 1\) from element 1 on, which reaches beyond the 6 elements of storage '0'",
    ),
    "far beyond the storage": (tensor(None, 0, (2**40, 2**40), (2**62, 1)), "reaches beyond the 6 elements"),
    "offset beyond the storage": (tensor(None, 2**60, (1,), (1,)), "reaches beyond the 6 elements"),
    "wider than its storage": (
        tensor(None, 3, (1,), (1,), "torch._utils._rebuild_tensor_v3", (name("torch.float64"),)),
        "beyond the 3 elements",
    ),
    "dtype that NumPy lacks": (
        tensor(function="torch._utils._rebuild_tensor_v3", more=(text("torch.float8_e5m2"),)),
        "which NumPy lacks",
    ),
    "float8": (name("torch.float8_e5m2"), "asks for 'torch.float8_e5m2'"),
    "conjugated": (tensor(more=(dict_of(conj=b"\x88"),)), "a lazily conjugated or negated tensor"),
    "parameter of nothing": (call("torch._utils._rebuild_parameter", number(1), b"\x88", EMPTY), "that is no tensor"),
    "expanded beyond reason": (
        dict_of(w=tensor(None, 0, (2**20, 2**20), (0, 0))),
        r"describes arrays of 4,398,046,511,104 bytes, but has only [\d,]+ bytes itself",
    ),
    "sizes of other things": (call("torch.Size", text("12")), "a torch.Size that is none"),
    "device of other things": (call("torch.device", number(1)), "a torch.device that is none"),
    "tuple as a key": (b"}" + b")" + number(1) + b"s", "a dict with an object of type tuple as a key"),
    "huge int as a key": (b"}" + number(2**61 - 1) + number(1) + b"s", "a dict with an object of type int as a key"),
    "key twice": (b"}(" + text("w") + tensor() + text("w") + tensor() + b"u", "a dict with the key 'w' twice"),
    "key without value": (b"}(" + text("w") + b"u", "a key that has no value"),
    "items of a list": (b"](" + text("w") + number(1) + b"u", "uses an object of type list as a dict"),
    "append to a dict": (b"}" + number(1) + b"a", "uses an object of type dict as a list"),
    "pairs that are none": (call("collections.OrderedDict", list_of(number(1))), "not a list of pairs"),
    "empty stack": (b"R", "a pickle that is broken"),
    "tuple of nothing": (b"\x87", "a pickle that is broken"),
    "no mark": (b"t", "a pickle that is broken"),
    "unknown memo": (b"h\x05", "a pickle that is broken"),
    "unknown instruction": (b"\xff", "a pickle that is broken"),
    "string of 4 GB": (b"X\xff\xff\xff\xffabc", "a pickle that is broken"),
    "string of 2**63 bytes": (b"\x8d" + b"\xff" * 8 + b"abc", "a pickle that is broken"),
    "bytes of 2**62 bytes": (b"\x8e" + struct.pack("<Q", 2**62) + b"abc", "a pickle that is broken"),
    "int of 2 GB": (b"\x8b\xff\xff\xff\x7fabc", "a pickle that is broken"),
    "numpy objects": (call("numpy.dtype", text("O"), b"\x89", b"\x88"), "dtype O, which is none of plain numbers"),
    "numpy of a long dtype": (
        call("numpy.dtype", text("f8," * 9999)),
        "dtype f8,f8,f8,f8,f8,f8,f8, which is none of plain numbers",
    ),
    "numpy of two sizes": (
        call(
            "numpy._core.numeric._frombuffer",
            b"C\x04abcd",
            call("numpy.dtype", text("f4")),
            ints(2**40),
            text("C"),
        ),
        r"a NumPy array of 4,398,046,511,104 bytes with data of 4 bytes",
    ),
    "numpy dtype without order": (call("numpy.dtype", text("f4")) + ints(3) + b"b", "a NumPy dtype that is broken"),
    "numpy array without state": (
        call("numpy._core.multiarray._reconstruct", name("numpy.ndarray"), ints(0), text("b")) + b"}b",
        "a NumPy array that is broken",
    ),
    "numpy array of text": (
        call("numpy._core.numeric._frombuffer", number(4), call("numpy.dtype", text("f4")), ints(1), text("C")),
        "a NumPy array that is broken",
    ),
    "numpy function": (call("numpy.fromfile", text("x")), "asks for 'numpy.fromfile'"),
    "encoding as code": (
        call("_codecs.encode", text("x"), text("rot13")),
        "encodes something other than text as latin1",
    ),
}


@pytest.mark.parametrize(("contents", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_contents_are_refused(read, contents, message):
    for content in both(contents):
        tracemalloc.start()
        try:
            with pytest.raises(FileFormatError, match=rf"model\.pth .*{message}"):
                read(content)
            assert tracemalloc.get_traced_memory()[1] < 2**22
        finally:
            tracemalloc.stop()


CALLS = ["os.system", "posix.system", "nt.system", "subprocess.check_output", "builtins.eval", "builtins.exec"]
CALLS += [
    "builtins.__import__",
    "__builtin__.eval",
    "builtins.getattr",
    "builtins.open",
    "runpy.run_path",
    "torch.load",
]
CALLS += ["pickle.loads", "_pickle.loads", "functools.partial", "importlib.import_module", "numpy.load"]


@pytest.mark.parametrize("function", CALLS)
def test_nothing_is_executed(read, tmp_path, monkeypatch, function):
    monkeypatch.chdir(tmp_path)
    commands = {"os.system": "echo ran > canary", "builtins.open": "canary"}
    command = text(commands.get(function, "open('canary', 'w')"))
    attack = call(function, command)
    nested = [
        attack,
        dict_of(w=tensor(), x=attack),
        call("torch._utils._rebuild_tensor_v2", attack, number(0), ints(1), ints(1), b"\x89", EMPTY),
        call("torch._utils._rebuild_parameter", tensor(), b"\x88", attack),
        call("collections.OrderedDict", list_of(list_of(text("w"), attack))),
        tuple_of(text("storage"), name(function), text("0"), text("cpu"), number(6)) + b"Q",
        tuple_of(text("storage"), attack, text("0"), text("cpu"), number(6)) + b"Q",
        EMPTY + dict_of(__reduce__=attack) + b"b",
        text(function.rpartition(".")[0]) + text(function.rpartition(".")[2]) + b"\x93" + tuple_of(command) + b"R",
    ]
    for contents in nested:
        for content in both(contents):
            with pytest.raises(FileFormatError, match=rf"model\.pth asks for '{function}', and xpcnn runs no code"):
                read(content)
    attacks = {
        "magic number": program(attack),
        "version": program(number(torch.MAGIC)) + program(attack),
        "machine": program(number(torch.MAGIC)) + program(number(1001)) + program(attack),
        "keys": legacy(program(dict_of(w=tensor())), {}, attack),
    }
    for content in attacks.values():
        with pytest.raises(FileFormatError, match=f"asks for '{function}'"):
            read(content)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


def test_the_pickle_that_python_would_run(read, tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "canary"),)

    for protocol in range(6):
        with pytest.raises(FileFormatError, match=r"model\.pth (asks for|holds a pickle|is not a torch file)"):
            read(zipped(pickle.dumps({"w": Attack()}, protocol), {}))
    assert not (tmp_path / "canary").exists()


BOMBS = {
    "too many lists": b"(" + b"]" * (2 * INSTRUCTIONS),
    "too many marks": b"(" * (2 * INSTRUCTIONS),
    "a memo too long": b"N" + b"\x94" * (2 * INSTRUCTIONS),
    "memo at a huge index": b"Nr\xff\xff\xff\xff" * 1000 + b"}",
    "lists in lists": b"]" + b"]" * 100_000 + b"a" * 100_000,
    "tuples in tuples": b")" + b"\x85" * 200_000,
    "dicts in dicts": b"}" + (text("a") + b"}") * 60_000 + b"s" * 60_000,
    "doubling tuples": b")" + b"q\x00h\x00\x86" * 60_000,
    "doubling lists": b"]" + b"q\x00](h\x00h\x00e" * 40_000,
    "copies of a long string": text("a" * 2**20)
    + b"q\x00"
    + (name("_codecs.encode") + b"h\x00U\x06latin1\x86R") * 9999,
    "arrays of a long string": text("a" * 2**20)
    + b"q\x00"
    + (
        call("numpy.core.numeric._frombuffer", b"h\x00", call("numpy.dtype", text("u1")), ints(2**20), text("C")) * 9999
    ),
    "copies of a long dict": list_of(*[list_of(b"U\x04" + b"%04d" % i, b"N") for i in range(9999)])
    + b"q\x00"
    + (name("collections.OrderedDict") + b"h\x00\x85R") * 9999,
}


@pytest.mark.parametrize("contents", BOMBS.values(), ids=BOMBS.keys())
def test_bombs_take_little_memory(read, contents):
    content = zipped(program(contents), {"data/0": SIX})
    tracemalloc.start()
    try:
        with pytest.raises(FileFormatError, match=r"model\.pth holds "):
            read(content)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


def test_cyclic_pickles(read):
    inside = b"}q\x00(" + text("w") + tensor() + text("self") + b"h\x00u"
    around = b"}q\x00(" + text("a") + b"h\x00" + text("b") + b"]q\x01h\x01ah\x00au"
    for content in both(inside):
        assert list(read(content)) == ["w"]
    with pytest.raises(FileFormatError, match=r"holds no state dict: a \(dict of 2\), b \(list\)"):
        read(zipped(program(around), {}))


def test_one_storage_under_two_names_of_dtype(read):
    contents = dict_of(a=tensor(), b=tensor(storage(6, kind="torch.IntStorage")))
    assert list(read(both(contents)[0])) == ["a", "b"]  # the same bytes twice harm nobody
    with pytest.raises(FileFormatError, match="describes storage '0' in two ways"):
        read(both(contents)[1])


def test_many_views_of_one_storage_are_refused_before_they_are_copied(read):
    raw = bytes(2**20)
    one = tensor(storage(2**18), 0, (2**18,), (1,))
    contents = dict_of(**{f"w{i}": one for i in range(300)})
    for content in both(contents, raw, 2**18):
        tracemalloc.start()
        try:
            with pytest.raises(FileFormatError, match="describes arrays of 314,572,800 bytes, but has only"):
                read(content)
            assert tracemalloc.get_traced_memory()[1] < 2**24
        finally:
            tracemalloc.stop()


# --- broken containers ------------------------------------------------------------------------------------------

GOOD = program(dict_of(w=tensor()))


def zip_with(*members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for member, data in members:
            archive.writestr(member, data)
    return file.getvalue()


def patched(content: bytes, signature: bytes, offset: int, data: bytes) -> bytes:
    """Overwrite part of each header with that signature."""
    found = content.find(signature)
    while found >= 0:
        content = content[: found + offset] + data + content[found + offset + len(data) :]
        found = content.find(signature, found + 1)
    return content


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: b"", "is not a torch file"),
        (lambda: b"\x80", "holds a pickle that is broken"),
        (lambda: b"PK\x03\x04", "is broken or of another format than its name says"),
        (lambda: b"once upon a time", "is not a torch file: it is neither a zip archive nor a pickle"),
        (lambda: pickle.dumps({"w": 1}), "is a pickle, but not one of torch's"),
        (lambda: zip_with(("a.txt", b"hello")), r"without the data\.pkl \(just one\)"),
        (lambda: zip_with(("a/data.pkl", GOOD), ("b/data.pkl", GOOD)), r"without the data\.pkl \(just one\)"),
        (lambda: zip_with(("a/data.pkl", GOOD), ("a/data.pkl", GOOD)), "with two members of one name"),
        (
            lambda: zip_with(("a/data.pkl", GOOD)),
            "should have 24 bytes in 'a/data/0' for one of its tensors; it has no",
        ),
        (lambda: zipped(GOOD, {"data/0": SIX[:-1]}), "should have 24 bytes in 'archive/data/0' .* it has 23"),
        (lambda: zipped(GOOD, {"data/0": SIX, "byteorder": b"middle"}), "neither little nor big"),
        (
            lambda: zip_with(("a/data.pkl", GOOD), ("a/data/0", bytes(10**8)), compression=zipfile.ZIP_DEFLATED),
            "in which 'a/data.pkl' is compressed",
        ),
        (
            lambda: patched(zipped(GOOD, {"data/0": SIX}), b"PK\x01\x02", 20, struct.pack("<II", 10**9, 10**9)),
            "claims to hold 2,000,000,000 bytes",
        ),
        (
            lambda: patched(zipped(GOOD, {"data/0": SIX}), b"PK\x01\x02", 24, struct.pack("<I", 10**9)),
            "is compressed",
        ),
        (lambda: patched(zipped(GOOD, {"data/0": SIX}), b"PK\x01\x02", 42, b"\xff\xff\xff\x00"), "is broken or of"),
        (lambda: patched(zipped(GOOD, {"data/0": SIX}), b"PK\x01\x02", 8, b"\x01\x00"), "is broken or of"),
        (lambda: zipped(GOOD, {"data/0": SIX}).replace(SIX, SIX[::-1]), "is broken or of another .*CRC"),
        (lambda: legacy(GOOD, {"0": (7, SIX)}), "storage '0' should have 24 bytes from byte"),
        (lambda: legacy(GOOD, {"0": (2**62, SIX)}), "storage '0' should have 24 bytes from byte"),
        (lambda: legacy(GOOD, {"0": (6, SIX[:-1])}), "storage '0' should have 24 bytes from byte"),
        (lambda: legacy(GOOD, {"1": (6, SIX)}), "a list of storages that does not fit its tensors"),
        (lambda: legacy(GOOD, {"0": (6, SIX)}, number(1)), "a list of storages that does not fit its tensors"),
        (lambda: legacy(GOOD, {"0": (6, SIX)}, list_of(list_of())), "a list of storages that does not fit"),
        (lambda: legacy(GOOD, {"0": (6, SIX)}).replace(number(1001), number(1002), 1), "of an unknown version"),
    ],
)
def test_broken_containers(read, content, message):
    data = content()
    tracemalloc.start()
    try:
        with pytest.raises(FileFormatError, match=rf"model\.pth .*{message}"):
            read(data)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def honest() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {"conv.weight": rng.normal(size=(4, 3, 3, 3)).astype("f4"), "conv.bias": rng.normal(size=4).astype("f2")}


def honest_files() -> list[bytes]:
    contents = dict_of(state_dict=dict_of(w=tensor(), v=tensor(None, 2, (2,), (2,))), epoch=number(3))
    return both(contents)


@pytest.mark.parametrize("which", [0, 1], ids=["zip", "legacy"])
def test_truncated_anywhere(read, which):
    content = honest_files()[which]
    assert list(read(content)) == ["w", "v"]
    for length in range(len(content)):
        with pytest.raises(FileFormatError, match=r"model\.pth "):
            read(content[:length])


@given(st.integers(0, 1), st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8))
def test_random_bytes_in_a_good_file(tmp_path_factory, which, changes):
    content = bytearray(honest_files()[which])
    for where, value in changes:
        content[int(where * len(content))] = value
    path = tmp_path_factory.getbasetemp() / "flipped.pth"
    path.write_bytes(content)
    try:
        state = read_weights(path)
    except FileFormatError as error:
        message = str(error)
        assert "flipped.pth" in message
    else:
        assert all(isinstance(array, np.ndarray) and array.nbytes <= 2**24 for array in state.values())


@given(st.binary(max_size=200))
def test_random_pickles(tmp_path_factory, junk):
    path = tmp_path_factory.getbasetemp() / "junk.pth"
    for content in (zipped(torch.HEAD + junk, {"data/0": SIX}), torch.HEAD + junk):
        path.write_bytes(content)
        try:
            read_weights(path)
        except FileFormatError as error:
            message = str(error)
            assert "junk.pth" in message


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path / "none.pth")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(IsADirectoryError):
        read_weights(tmp_path / "folder.pth")


# --- writing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".th", ".bin"])
def test_what_is_written_is_read_again(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    arrays = honest() | {
        "0-d": np.float64(3.5),
        "empty": np.zeros((0, 3), np.float32),
        "integers": np.arange(-3, 3),
        "bools": np.array([[True, False]]),
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "big-endian": np.arange(3, dtype=">f8"),
        "ключ": np.zeros(1, np.uint8),
    }
    write_weights(path, arrays)
    again = read_weights(path)
    assert list(again) == list(arrays)
    for key, array in arrays.items():
        assert again[key].dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(again[key], array)
    before = path.read_bytes()
    write_weights(path, arrays)
    assert path.read_bytes() == before


def test_dtypes_that_torch_lacks(tmp_path):
    with pytest.raises(ArgumentError, match="w has dtype uint16; torch files hold float32, float64"):
        write_weights(tmp_path / "a.pth", {"w": np.zeros(1, np.uint16)})
    assert not list(tmp_path.iterdir())
