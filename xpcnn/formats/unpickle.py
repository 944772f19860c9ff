"""A reader of pickles that cannot run code.

Python's pickle is a program for a small stack machine, and two of its instructions import and call whatever the file
names. This machine never imports anything. It knows a short list of instructions, and the names that its caller
knows; what a name stands for is a function of xpcnn. Anything else ends in an error that says what was asked for.

Memory is bounded: `pickletools.genops` only cuts the bytes into instructions and cannot read past their end, the number
of instructions is limited, and whatever would copy data that is already there counts as many of them.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from ..errors import FileFormatError

__all__ = ["INSTRUCTIONS", "NUMPY_NAMES", "Name", "NumpyArray", "unpickle"]

INSTRUCTIONS = 500_000  # a state dict takes some 40 for each tensor

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LITERALS = {  # those of protocol 2 and newer
    *("INT", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}


@dataclass(frozen=True)
class Name:
    """A class or function that the pickle mentions, by its qualified name."""

    text: str


def unpickle(
    file: IO[bytes], known: Mapping[str, Callable[..., Any] | None], persistent: Callable[[Any], Any] | None = None
) -> Any:
    """Return what one pickle describes, leaving the file right behind it.

    Args:
        file: its `read(n)` must not take memory for more than there is (as io.BytesIO and mmap do not).
        known: for each qualified name that may occur the function that stands for it; None for one that is only
            mentioned and never called.
        persistent: makes an object of a persistent id.

    Raises:
        FileFormatError: for names, instructions or data that are not allowed, and for pickles that make no sense.
    """
    try:
        return _Machine(known, persistent).run(file)
    except FileFormatError:
        raise
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise FileFormatError(f"holds a pickle that is broken ({str(error)[:200]}).") from None


class _Machine:
    def __init__(self, known: Mapping[str, Callable[..., Any] | None], persistent: Callable[[Any], Any] | None) -> None:
        self.known = known
        self.persistent = persistent
        self.stack: list[Any] = []
        self.below_marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.left = INSTRUCTIONS

    def spend(self, instructions: int) -> None:
        self.left -= instructions
        if self.left < 0:
            raise FileFormatError(
                f"holds a pickle of more than {INSTRUCTIONS:,} instructions; no state dict is as long."
            )

    def run(self, file: IO[bytes]) -> Any:
        for opcode, argument, _ in pickletools.genops(file):
            self.spend(1)
            self.step(opcode.name, argument)
        return self.stack.pop()  # genops returns after STOP, and raises if there is none

    def step(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        if opcode in LITERALS:
            stack.append(argument)
        elif opcode in CONSTANTS:
            stack.append(CONSTANTS[opcode])
        elif opcode in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif opcode == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif opcode == "MARK":
            self.below_marks.append(stack)
            self.stack = []
        elif opcode == "EMPTY_TUPLE":
            stack.append(())
        elif opcode == "TUPLE":
            self.push(tuple(self.above_mark()))
        elif opcode in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(opcode[-1])
            stack[-count:] = [tuple(self.top(count))]
        elif opcode in ("EMPTY_LIST", "LIST"):
            self.push([] if opcode == "EMPTY_LIST" else self.above_mark())
        elif opcode in ("APPEND", "APPENDS"):
            items = [stack.pop()] if opcode == "APPEND" else self.above_mark()
            self.target(list).extend(items)
        elif opcode in ("EMPTY_DICT", "DICT"):
            items = [] if opcode == "EMPTY_DICT" else self.above_mark()
            self.push({})
            self.set_items(items)
        elif opcode in ("SETITEM", "SETITEMS"):
            items = [stack.pop(), stack.pop()][::-1] if opcode == "SETITEM" else self.above_mark()
            self.set_items(items)
        elif opcode == "GLOBAL":
            self.name(*argument.split(" ", 1))
        elif opcode == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            if not isinstance(name, str) or not isinstance(module, str):
                raise FileFormatError("holds a pickle that asks for a name which is no text.")
            self.name(module, name)
        elif opcode == "BINPERSID" and self.persistent is not None:
            stack.append(self.persistent(stack.pop()))
        elif opcode == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            self.push(self.call(function, arguments))
        elif opcode == "BUILD":
            state, target = stack.pop(), stack[-1]
            if isinstance(target, (_NumpyType, NumpyArray)):
                target.build(state)
            elif not isinstance(target, dict):  # an OrderedDict's attributes (torch's _metadata) are left out
                raise FileFormatError(f"holds a pickle that gives attributes to {_kind(target)}.")
        elif opcode == "POP":
            stack.pop()
        elif opcode not in ("PROTO", "FRAME", "STOP"):
            raise FileFormatError(f"holds a pickle with the instruction {opcode}, which xpcnn does not carry out.")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def top(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("the stack is empty")
        return self.stack[-count:]

    def above_mark(self) -> list[Any]:
        """Return everything since the last mark, and go back to before it."""
        items, self.stack = self.stack, self.below_marks.pop()
        return items

    def target(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise FileFormatError(f"holds a pickle that uses {_kind(self.stack[-1])} as a {kind.__name__}.")
        return self.stack[-1]

    def set_items(self, items: list[Any]) -> None:
        target = self.target(dict)
        if len(items) % 2:
            raise FileFormatError("holds a pickle with a key that has no value.")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not (isinstance(key, str) or (isinstance(key, int) and abs(key) < 2**60)):
                raise FileFormatError(f"holds a dict with {_kind(key)} as a key.")  # whose hash may take for ever
            if key in target:
                raise FileFormatError(f"holds a dict with the key {str(key)[:80]!r} twice.")
            target[key] = value

    def name(self, module: str, name: str) -> None:
        text = f"{module}.{name}"
        if text not in self.known and text not in BUILTINS:
            raise FileFormatError(
                f"asks for {text[:200]!r}, and xpcnn runs no code from files. It reads tensors in plain containers: "
                "if this file holds a whole module, save model.state_dict() instead."
            )
        self.push(Name(text))

    def call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise FileFormatError(f"holds a pickle that calls {_kind(function)} with {_kind(arguments)}.")
        if function.text == "collections.OrderedDict":
            return self.ordered_dict(*arguments)
        if function.text == "_codecs.encode":
            return self.encode(*arguments)
        made = self.known.get(function.text)
        if made is None:
            raise FileFormatError(f"calls {function.text!r}, which xpcnn knows as a name only.")
        return made(*arguments)

    def ordered_dict(self, pairs: Any = ()) -> dict[Any, Any]:
        """Python 2 gives a list of [key, value]; Python 3 an empty dict that is filled later."""
        if not isinstance(pairs, (list, tuple)) or not all(
            isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs
        ):
            raise FileFormatError("makes an OrderedDict of something that is not a list of pairs.")
        self.spend(4 * len(pairs))
        made: dict[Any, Any] = {}
        self.push(made)
        self.set_items([part for pair in pairs for part in pair])
        self.stack.pop()
        return made

    def encode(self, text: Any, encoding: Any) -> bytes:
        """Bytes, as protocol 2 writes them."""
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise FileFormatError("encodes something other than text as latin1.")
        self.spend(len(text) // 64)
        return text.encode("latin-1")


BUILTINS = {"collections.OrderedDict", "_codecs.encode"}


def _kind(value: Any) -> str:
    return f"the name {value.text!r}" if isinstance(value, Name) else f"an object of type {type(value).__name__}"


# --- NumPy's arrays and scalars, which checkpoints keep as accuracies or normalisation -----------------------------


class _NumpyType:
    """A dtype of plain numbers. It is made first, and told its byte order by BUILD."""

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"b1|[iu][1248]|f[248]|c8|c16", code):
            raise FileFormatError(f"holds NumPy data of dtype {str(code)[:20]}, which is none of plain numbers.")
        self.dtype: np.dtype[Any] = np.dtype(code)

    def build(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "=", "|"):
            raise FileFormatError("holds a NumPy dtype that is broken.")
        if state[1] == ">":
            self.dtype = self.dtype.newbyteorder(">")


class NumpyArray:
    """An array that `array` makes; empty until BUILD has told it everything."""

    def __init__(self, *_: Any) -> None:
        self.shape: tuple[int, ...] = (0,)
        self.dtype: np.dtype[Any] = np.dtype("f4")
        self.order: Any = "C"
        self.data: bytes | bytearray | str = b""  # Python 2 has no bytes: then it is text in latin-1

    def build(self, state: Any) -> None:
        """Take what BUILD gives: version, shape, dtype, whether in Fortran's order, data."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise FileFormatError("holds a NumPy array that is broken.")
        _, shape, kind, fortran, data = state
        self.fill(data, kind, shape, "F" if fortran else "C")

    def fill(self, data: Any, kind: Any, shape: Any, order: str) -> NumpyArray:
        """Take bytes, dtype and shape, which must agree; return the array."""
        if not isinstance(kind, _NumpyType) or not isinstance(data, (bytes, bytearray, str)) or not is_shape(shape):
            raise FileFormatError("holds a NumPy array that is broken.")
        self.data, self.dtype, self.shape, self.order = data, kind.dtype, shape, order
        if self.nbytes != len(data):
            raise FileFormatError(f"holds a NumPy array of {self.nbytes:,} bytes with data of {len(data):,} bytes.")
        return self

    @property
    def nbytes(self) -> int:
        """How much memory the array takes."""
        size = self.dtype.itemsize
        for n in self.shape:
            size *= n
        return size

    def array(self) -> np.ndarray:
        """Return a copy in native byte order."""
        data = self.data.encode("latin-1") if isinstance(self.data, str) else self.data
        flat = np.frombuffer(data, self.dtype)
        return np.array(flat.reshape(self.shape, order=self.order), self.dtype.newbyteorder("="), order="C")


def is_shape(value: Any) -> bool:
    """Whether it is a tuple of at most 32 ints that a shape or strides may have."""
    return isinstance(value, tuple) and len(value) <= 32 and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _numpy_scalar(kind: Any, data: Any) -> Any:
    return NumpyArray().fill(data, kind, (), "C").array().item()


def _numpy_from_buffer(data: Any, kind: Any, shape: Any, order: Any, *_: Any) -> NumpyArray:
    return NumpyArray().fill(data, kind, shape, "F" if order == "F" else "C")


NUMPY_NAMES: dict[str, Callable[..., Any] | None] = {"numpy.dtype": _NumpyType, "numpy.ndarray": None}
for _core in ("numpy.core", "numpy._core"):  # before and since NumPy 2
    NUMPY_NAMES |= {
        f"{_core}.multiarray._reconstruct": NumpyArray,
        f"{_core}.multiarray.scalar": _numpy_scalar,
        f"{_core}.numeric._frombuffer": _numpy_from_buffer,
    }
