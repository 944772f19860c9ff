"""Where the functions of a shared library are: in its file, and in memory."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

_SECTION_TABLE = 0x28  # offsets in the header of a 64-bit ELF file
_SECTION_COUNTS = 0x3A
_SYMBOL_TABLE, _FUNCTION = 2, 2  # SHT_SYMTAB, STT_FUNC
_SYMBOL_BYTES = 24


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Yield name and offset of the functions in the symbol table, which a stripped file does not have."""
    data = path.read_bytes()
    (table,) = struct.unpack_from("<Q", data, _SECTION_TABLE)
    size, count, _ = struct.unpack_from("<HHH", data, _SECTION_COUNTS)
    # name, type, flags, address, offset, size, link, info, alignment, entry size
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + k * size) for k in range(count)]
    for _, kind, _, _, start, length, link, _, _, _ in sections:
        if kind != _SYMBOL_TABLE:
            continue
        names = sections[link][4]
        for at in range(start, start + length, _SYMBOL_BYTES):
            name, info, _, section, value, _ = struct.unpack_from("<IBBHQQ", data, at)
            if info & 15 == _FUNCTION and section and value:
                end = data.index(b"\0", names + name)
                yield data[names + name : end].decode("latin1"), value


def base_address(path: Path) -> int:
    """Return where a loaded library starts in the memory of this process."""
    real = os.path.realpath(path)
    for line in Path("/proc/self/maps").read_text().splitlines():
        parts = line.split(None, 5)
        if len(parts) == 6 and os.path.realpath(parts[5].strip()) == real and int(parts[2], 16) == 0:
            return int(parts[0].split("-")[0], 16)
    raise RuntimeError(f"{path} is not mapped")
