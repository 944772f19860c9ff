"""Reads the arrays of an HDF5 file in a process of its own: a damaged file can crash the HDF5 library, or keep it busy.

`keras.py` starts `python -I hdf5.py SEARCH_PATH LIMIT`, gives it the file on stdin, and takes from stdout the length of
a JSON header in 8 bytes, the header, and the raw numbers, little-endian, one array after the other:

    {"error": null or what is wrong, "config": the attribute model_config or null,
     "names": {"layers/conv2d": the attribute name of layers/conv2d/vars, ...},
     "arrays": [{"path": [...], "dtype": "<f4", "shape": [...]}, ...]}

It imports nothing of xpcnn, so that it starts quickly.
"""

from __future__ import annotations

import io
import json
import math
import os
import signal
import struct
import sys
from collections.abc import Iterator
from typing import Any

DEPTH = 20  # groups inside groups
OBJECTS = 100_000
SPARE_MEMORY = 128 * 2**20  # beside the file and its arrays
NO_WEIGHTS = {("optimizer",), ("optimizer_weights",), ("metrics",)}


class Refused(Exception):
    """Something that Keras would not have written."""


def walk(root: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (path, object) of groups and data sets, each once; refuse everything that points elsewhere."""
    import h5py

    stack: list[tuple[tuple[str, ...], Any]] = [((), root)]
    seen: set[int] = set()
    while stack:
        path, group = stack.pop()
        for name in group:
            where = (*path, name)
            if len(where) > DEPTH or len(seen) > OBJECTS:
                raise Refused(f"has groups more than {DEPTH} deep or more than {OBJECTS:,} objects.")
            if where in NO_WEIGHTS or name == "seed_generator":
                continue
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise Refused(f"has a link to somewhere else at {'/'.join(where)[:80]!r}; Keras writes none.")
            member = group[name]
            address = h5py.h5o.get_info(member.id).addr
            if address not in seen:
                seen.add(address)
                yield where, member
                if isinstance(member, h5py.Group):
                    stack.append((where, member))


def check(dataset: Any, name: str) -> None:
    """Refuse data that are in other files, or made by filters, or no numbers."""
    if dataset.shape is None or dataset.dtype.kind not in "fiu":
        raise Refused(f"holds {name[:80]!r}, which is no array of numbers.")
    if dataset.external or dataset.is_virtual:
        raise Refused(f"keeps {name[:80]!r} in another file; xpcnn reads one file at a time.")
    if dataset.id.get_create_plist().get_nfilters():
        raise Refused(f"keeps {name[:80]!r} compressed or filtered; save the weights plain.")


def read(content: bytes, limit: int) -> tuple[dict[str, Any], list[Any]]:
    """Return the header and the arrays of a file; all of them together have at most `limit` bytes."""
    import h5py

    arrays, entries, names = [], [], {}
    with h5py.File(io.BytesIO(content), "r") as file:
        config = file.attrs.get("model_config")
        for path, found in walk(file):
            if isinstance(found, h5py.Dataset):
                check(found, "/".join(path))
                limit -= math.prod(found.shape) * found.dtype.itemsize
                if limit < 0:
                    raise Refused("describes arrays that are far larger than the file itself.")
                array = found[()]
                arrays.append(array.astype(array.dtype.newbyteorder("<")))
                entries.append({"path": path, "dtype": arrays[-1].dtype.str, "shape": array.shape})
            elif path[-1] == "vars" and isinstance(label := found.attrs.get("name"), str):
                names["/".join(path[:-1])] = label
    config = config.decode() if isinstance(config, bytes) else config
    return {"config": config if isinstance(config, str) else None, "names": names, "arrays": entries}, arrays


def limit_time(seconds: float) -> None:
    """Let this process compute for so long, then end by SIGPROF, where the system can do that.

    Seconds of computing, since a busy or slow machine is no fault of the file.
    """
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def limit_memory(size: int) -> None:
    """Let this process take so many bytes more than it has, where the system can do that."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        return
    resource.setrlimit(resource.RLIMIT_AS, (now + size, now + size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """Read stdin, write stdout."""
    sys.path[:], limit = json.loads(sys.argv[1]), int(sys.argv[2])
    content = sys.stdin.buffer.read()
    header: dict[str, Any]
    try:
        os.environ["OPENBLAS_NUM_THREADS"] = "1"  # another thread might take its 36 MiB only after the limit is set
        import h5py  # noqa: F401 (before memory is limited)

        limit_memory(len(content) + 2 * limit + SPARE_MEMORY)
        limit_time(1 + len(content) / 2**20)  # 15,000 objects of one number each take 1.2 s and 2.8 MiB
        header, arrays = read(content, limit)
    except Refused as error:
        header, arrays = {"error": str(error)}, []
    except Exception as error:  # whatever the library raises for files that are none
        header, arrays = {"error": f"is broken or no HDF5 file ({type(error).__name__}: {error})."[:300]}, []
    text = json.dumps({"error": None} | header).encode()
    sys.stdout.buffer.write(struct.pack("<Q", len(text)) + text)
    for array in arrays:
        sys.stdout.buffer.write(array.tobytes())


if __name__ == "__main__":
    main()
