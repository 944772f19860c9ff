"""Every reader of xpcnn, and what may come of a damaged file: an xpcnn error that names it, or a valid read.

Nothing may crash, take longer than `SECONDS`, or take more memory than the reader's bound. `python -m tests.fuzz.run`
tries many inputs in processes of their own, `test_fuzz.py` some hundreds. Both fork interpreters that a reader starts
(`forkserver.py`); `test_forkserver.py` starts some.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

import xpcnn
from tests.fuzz import forkserver, mutators, seeds
from tests.fuzz.mutators import ANY, Mutator
from xpcnn.data import cifar10, from_npz, image_from_file, read_idx
from xpcnn.errors import XpcnnError
from xpcnn.formats import onnx, read_weights

SECONDS = 5.0
ATTEMPTS = 4
MB = 2**20
LARGEST = 1 << 20  # bytes of an input


class Finding(AssertionError):
    """An input for which a reader did what it must not."""


@dataclass(frozen=True)
class Reader:
    """One reader, its good files, and how they are damaged.

    Args:
        name: what it is called in tables.
        file: name of the file it is given.
        seeds: makes good files.
        read: path -> arrays.
        special: mutators that know the format; half of all damage is theirs.
        bound: bytes that reading one file may take beyond what the process had before.
        quick: inputs in the test suite.
        prepare: puts into the folder what else is needed there.
        imports: what the interpreter imports that it starts for each file, "" if it starts none.
    """

    name: str
    file: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[Path], Iterable[Any]]
    special: tuple[Mutator, ...] = ()
    bound: int = 64 * MB
    quick: int = 400
    prepare: Callable[[Path], None] = lambda folder: None
    imports: str = ""

    def forking(self) -> AbstractContextManager[None]:
        """Let interpreters be forked instead of started, where there are some and the system can do that."""
        return forkserver.forking(self.imports) if self.imports and forkserver.POSSIBLE else nullcontext()

    def content(self, seed: int, number: int) -> bytes:
        """Return input `number`: a damaged good file."""
        random = Random(f"{seed}/{self.name}/{number}")
        return self.damaged(random, random.choice(self.seeds()))

    def damaged(self, random: Random, content: bytes) -> bytes:
        """Return a file, changed one to four times."""
        other = random.choice(self.seeds())
        for _ in range(random.choice((1, 1, 1, 2, 2, 4))):
            mutator = random.choice(self.special if self.special and random.random() < 0.5 else ANY)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    content = mutator(random, content, other)
            except Exception:  # the structure it needs is gone by an earlier change
                content = mutators.flip(random, content, other)
        return content[:LARGEST]


def _weights(path: Path) -> Iterable[Any]:
    return read_weights(path).values()


def _model(path: Path) -> Iterable[Any]:
    return xpcnn.load(path, "cpu").net.state_dict().values()


def _onnx(path: Path) -> Iterable[Any]:
    return onnx.load(path).state_dict().values()


def _cifar(path: Path) -> Iterable[Any]:
    return [part.x for part in cifar10(path.parent)]


def _npz(path: Path) -> Iterable[Any]:
    return [part.x for part in from_npz(path) if part is not None]


def _image(path: Path) -> Iterable[Any]:
    options = ({}, {"size": 9}, {"size": (7, 9), "mode": "RGB"}, {"size": 9, "fit": "pad"}, {"size": 9, "fit": "crop"})
    image = image_from_file(path, **options[zlib.crc32(path.read_bytes()) % len(options)])
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        raise Finding(f"an image of {image.shape} {image.dtype}")
    return [image]


READERS = {
    reader.name: reader
    for reader in (
        Reader("safetensors", "in.safetensors", seeds.safetensors_files, _weights, (mutators.safetensors_header,)),
        Reader("pth, zip", "in.pth", seeds.pth_files, _weights, (mutators.zip_members,)),
        Reader("pth, legacy", "in.pth", seeds.legacy_pth_files, _weights, (mutators.instructions,)),
        Reader("json", "in.json", seeds.json_files, _weights, (mutators.json_tree,)),
        Reader("h5", "in.h5", seeds.hdf5_files, _weights, (mutators.field,), quick=100, imports="h5py"),
        Reader("keras", "in.keras", seeds.keras_files, _weights, (mutators.zip_members,), quick=100, imports="h5py"),
        Reader("onnx", "in.onnx", seeds.onnx_files, _onnx, (mutators.protobuf,), 192 * MB, quick=200),
        Reader("onnx, Slice", "in.onnx", seeds.onnx_slice_files, _onnx, (mutators.protobuf,), 192 * MB, quick=100,
               imports="onnx.shape_inference"),
        Reader("model.safetensors", "in.safetensors", seeds.model_safetensors_files, _model,
               (mutators.safetensors_header,)),
        Reader("model.json", "in.json", seeds.model_json_files, _model, (mutators.json_tree,)),
        Reader("idx", "in-ubyte", seeds.idx_files, lambda path: [read_idx(path)]),
        Reader("idx.gz", "in-ubyte.gz", seeds.idx_gz_files, lambda path: [read_idx(path)], (mutators.gzipped,)),
        Reader("cifar10", "data_batch_3.bin", seeds.cifar_files, _cifar, prepare=seeds.cifar_folder),
        Reader("npz", "in.npz", seeds.npz_files, _npz, (mutators.zip_members,)),
        Reader("images", "in.png", seeds.image_files, _image, (mutators.png_chunks, mutators.field), 1536 * MB),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What became of one input: the error if there was one, seconds, bytes beyond what the process had before."""

    error: str | None
    seconds: float
    memory: int


def check(reader: Reader, content: bytes, folder: Path) -> Outcome:
    """Read one input and return what became of it. What takes too long is tried again: the machine may be busy.

    Raises:
        Finding: if that is not what is promised.
    """
    path = folder / reader.file
    path.write_bytes(content)
    for _ in range(ATTEMPTS):
        outcome = _attempt(reader, path)
        if outcome.seconds <= SECONDS:
            break
    if outcome.error is not None and reader.file not in outcome.error:
        raise Finding(f"{reader.name}: the error does not name {reader.file}: {outcome.error}")
    if outcome.seconds > SECONDS:
        raise Finding(f"{reader.name}: took {outcome.seconds:.1f} s")
    if outcome.memory > reader.bound:
        raise Finding(f"{reader.name}: took {outcome.memory / MB:.0f} MB; the bound is {reader.bound / MB:.0f} MB")
    return outcome


def _attempt(reader: Reader, path: Path) -> Outcome:
    error = None
    with warnings.catch_warnings(), watch() as seen:
        warnings.simplefilter("ignore")
        try:
            for array in reader.read(path):
                np.asarray(array).tobytes()  # looks at every element
        except XpcnnError as caught:
            error = str(caught)
        except Finding:
            raise
        except BaseException as caught:
            raise Finding(f"{reader.name}: {type(caught).__name__} instead of an xpcnn error: {caught}") from caught
    return Outcome(error, seen.seconds, seen.memory)


class Seen:
    """What `watch` measures."""

    seconds = 0.0
    memory = 0


@contextmanager
def watch() -> Iterator[Seen]:
    """Measure time and memory (0 where the system does not say it); end the process if it hangs."""
    seen = Seen()
    faulthandler.dump_traceback_later(6 * SECONDS, exit=True, file=sys.__stderr__)
    before = _reset_peak()
    begin = time.perf_counter()
    try:
        yield seen
    finally:
        seen.seconds = time.perf_counter() - begin
        faulthandler.cancel_dump_traceback_later()
        if before is not None:
            seen.memory = max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(name.encode()):
                return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def _reset_peak() -> int | None:
    """Forget the greatest memory so far; return what there is now, None where that cannot be known."""
    try:
        with open("/proc/self/clear_refs", "wb", buffering=0) as file:
            file.write(b"5")
        return _status("VmRSS")
    except OSError:
        return None


def resident() -> int:
    """Return the bytes of memory that this process has, 0 where the system does not say it."""
    try:
        return _status("VmRSS")
    except OSError:
        return 0


def scratch() -> str | None:
    """Return a folder in memory for the files, or None."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
