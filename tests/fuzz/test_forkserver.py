"""A forked child and an interpreter that is started come to the same: outcome, error, memory, time, end."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fuzz import forkserver, seeds
from tests.fuzz.forkserver import forking
from tests.fuzz.harness import MB, READERS, Finding, check
from tests.fuzz.test_fuzz import padded_to_less_than_nothing
from xpcnn.errors import FileFormatError
from xpcnn.formats import hdf5, keras

pytestmark = pytest.mark.skipif(not forkserver.POSSIBLE, reason="the fork server needs Linux")


def wants_memory() -> bytes:
    """An HDF5 file of 12 kB whose configuration claims to be a text of 1 GiB."""
    good = seeds.hdf5_files()[0]
    text, heap = {"class_name": "Functional", "config": {"layers": []}}, good.index(b"GCOL")
    entry = struct.pack("<IQ", len(json.dumps(text)), heap)
    assert good.count(entry) == 1
    return good.replace(entry, struct.pack("<IQ", 2**30, heap))


def never_ends() -> bytes:
    """An HDF5 file in whose heap the first text is too long, so that an empty one seems to follow (HDF5 2.0)."""
    good = bytearray(seeds.hdf5_files()[0])
    good[good.index(b"GCOL") + 24] = 235
    return bytes(good)


GOOD = None  # no error
FILES = {
    "h5": {
        "good": (lambda: seeds.hdf5_files()[0], GOOD),
        "truncated": (lambda: seeds.hdf5_files()[0][:9000], "OSError: Unable to synchronously open file (truncated"),
        "memory": (wants_memory, "OSError: Can't synchronously read data (memory allocation failed"),
        "time": (never_ends, "keeps the HDF5 library busy for ever"),
    },
    "keras": {
        "good": (lambda: seeds.keras_files()[0], GOOD),
        "truncated": (lambda: seeds.keras_files()[0][:3000], "BadZipFile"),
    },
    "onnx, Slice": {
        "good": (lambda: seeds.onnx_slice_files()[0], GOOD),
        "truncated": (lambda: seeds.onnx_slice_files()[0][:600], "is not a whole ONNX file"),
        "a crash of onnx": (padded_to_less_than_nothing, "inferring its shapes crashes the package onnx"),
    },
}


def outcome(reader, content, folder):
    """Return the error, or the arrays as bytes."""
    path = folder / reader.file
    path.write_bytes(content)
    try:
        return [array.tobytes() for array in reader.read(path)]
    except FileFormatError as error:
        return str(error)


@pytest.mark.parametrize("name", FILES)
def test_the_same_outcome(name, tmp_path):
    reader = READERS[name]
    contents = [make() for make, _ in FILES[name].values()] + [reader.content(7, number) for number in range(4)]
    started = [outcome(reader, content, tmp_path) for content in contents]
    with reader.forking():
        assert [outcome(reader, content, tmp_path) for content in contents] == started
    for found, (_, expected) in zip(started, FILES[name].values(), strict=False):
        assert isinstance(found, list) if expected is GOOD else expected in found


@pytest.fixture
def child(tmp_path, monkeypatch):
    """Put a program in the place of hdf5.py, and return what becomes of a file: (forked, started)."""

    def outcomes(program):
        (tmp_path / "child.py").write_text(program)
        monkeypatch.setattr(keras.hdf5, "__file__", str(tmp_path / "child.py"))
        with forking("h5py"):
            forked = outcome(READERS["h5"], b"", tmp_path)
        return forked, outcome(READERS["h5"], b"", tmp_path)

    return outcomes


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("import os; os.abort()", "crashed (exit code -6)"),
        ("import ctypes; ctypes.string_at(0)", "crashed (exit code -11)"),
        ("raise ValueError", "crashed (exit code 1)"),
        ("import sys; sys.exit('no')", "crashed (exit code 1)"),
        ("import sys; sys.exit(7)", "crashed (exit code 7)"),
        ("import atexit, os; atexit.register(os.abort)", "crashed (exit code -6)"),
        ("while True: pass", "keeps the HDF5 library busy for ever"),
        ("print('x' * 20)", "is broken or of another format"),
    ],
)
def test_the_same_end(child, monkeypatch, program, expected):
    if "busy" in expected:
        monkeypatch.setattr(keras, "SECONDS", 0.5)
    forked, started = child(program)
    assert expected in forked
    assert forked == started


LARGEST_ARRAY = """
def read(content, limit):
    low, high = 0, 1 << 30
    while high - low > 4096:
        middle = (low + high) // 2
        try:
            bytearray(middle)
            low = middle
        except MemoryError:
            high = middle
    print(low - 2 * limit, len(os.listdir("/proc/self/task")), file=open(sys.argv[0] + ".txt", "a"))
    raise Refused("seen")

main()
"""


def test_the_same_memory(child, tmp_path, monkeypatch):
    """A limit is so much more than a process has: what the server had does not matter, and no thread takes of it."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    source = Path(hdf5.__file__).read_text().rpartition("if __name__")[0]
    ends = child(f"{source.replace('from __future__ import annotations', '')}\n{LARGEST_ARRAY}")
    assert all(end.endswith(" seen") for end in ends), ends
    seen = [map(int, line.split()) for line in (tmp_path / "child.py.txt").read_text().splitlines()]
    assert len(seen) == 2
    for size, threads in seen:
        assert abs(size - hdf5.SPARE_MEMORY) < MB
        assert threads == 1


def test_only_interpreters_are_forked():
    """The forked child has the server as its parent; other programs are started."""
    program = "import os; print(os.getppid())"
    with forking("json"):
        done = subprocess.run([sys.executable, "-I", "-c", program], input=b"", capture_output=True)
        assert int(done.stdout) != os.getpid()
        done = subprocess.run([sys.executable, "-c", program], input=b"", capture_output=True)
        assert int(done.stdout) == os.getpid()
    done = subprocess.run([sys.executable, "-I", "-c", program], input=b"", capture_output=True)
    assert int(done.stdout) == os.getpid()


def test_a_server_that_fails_is_no_refused_file(tmp_path, monkeypatch, capfd):
    """Readers take many errors for those of a broken file."""
    (tmp_path / "threads.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    reader = READERS["h5"]
    with forking("threads"), pytest.raises(Finding, match="ServerFailed instead of an xpcnn error: the fork server"):
        check(reader, reader.seeds()[0], tmp_path)
    assert "the fork server has threads, which its children would lack" in capfd.readouterr().err


def test_nothing_is_left_of_one_that_is_killed(tmp_path):
    """The server and its child end with the process that asked."""
    program = f"""
import os, time
with open({str(tmp_path / "pid")!r}, "w") as file:
    file.write(str(os.getpid()))
time.sleep(99)
"""
    asks = f"""
import subprocess, sys
from tests.fuzz.forkserver import forking
with forking("json"):
    subprocess.run([sys.executable, "-I", "-c", {program!r}], input=b"")
"""
    process = subprocess.Popen([sys.executable, "-c", asks], cwd=Path(__file__).parents[2])
    try:
        pid = waited_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    finally:
        process.kill()
        process.wait()
    waited_for(lambda: not alive(int(pid)))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def waited_for(condition):
    """Return what a condition comes to; fail if that takes long."""
    deadline = time.monotonic() + 30
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found
