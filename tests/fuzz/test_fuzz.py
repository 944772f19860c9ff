"""Some hundreds of damaged files for every reader. `python -m tests.fuzz.run` tries more of them."""

from __future__ import annotations

import json
import sys
import time
from contextlib import nullcontext

import numpy as np
import pytest

from tests.fuzz import harness, run, seeds
from tests.fuzz.harness import MB, READERS, Finding, Outcome, Reader, check, resident
from xpcnn.errors import FileFormatError
from xpcnn.formats import onnx as onnx_format

SEED = 1


@pytest.mark.parametrize("name", READERS)
def test_good_files_are_read(name, tmp_path):
    reader = READERS[name]
    reader.prepare(tmp_path)
    good = reader.seeds()
    errors = [outcome.error for content in good if (outcome := check(reader, content, tmp_path)).error]
    if name == "images":  # Pillow writes some that are refused: deep pixels, formats that it does not read
        assert len(errors) < len(good) / 4
    else:
        assert not errors


@pytest.mark.parametrize("name", READERS)
def test_damaged_files(name, tmp_path):
    reader = READERS[name]
    reader.prepare(tmp_path)
    with reader.forking():
        for number in range(reader.quick):
            check(reader, reader.content(SEED, number), tmp_path)


def padded_to_less_than_nothing() -> bytes:
    """A model whose Pad takes away more than there is, with a Slice behind it."""
    import onnx

    model = onnx.load_model_from_string(seeds.onnx_slice_files()[0])
    (pads,) = (tensor for tensor in model.graph.initializer if tensor.name == "pads")
    pads.CopyFrom(onnx.numpy_helper.from_array(np.array([0, 0, -99, 1, 0, 0, 1, 1]), "pads"))
    return bytes(model.SerializeToString())


def test_a_model_that_crashes_the_package_onnx(tmp_path):
    """Shape inference of Slice ends the process there; it is tried in another one."""
    (tmp_path / "in.onnx").write_bytes(padded_to_less_than_nothing())
    with pytest.raises(FileFormatError, match=r"in\.onnx: it is not a valid ONNX model"):
        onnx_format.load(tmp_path / "in.onnx")


def test_what_is_watched_for(tmp_path):
    """A reader that does what it must not is found out."""

    def reader(read, **options):
        return Reader("bad", "in.bin", lambda: [b""], read, **options)

    def raising(error):
        def read(path):
            raise error

        return read

    for read, message in (
        (raising(KeyError("x")), "KeyError instead of an xpcnn error"),
        (raising(MemoryError()), "MemoryError instead of an xpcnn error"),
        (raising(FileFormatError("it is broken")), r"the error does not name in\.bin: it is broken"),
    ):
        with pytest.raises(Finding, match=message):
            check(reader(read), b"", tmp_path)
    assert check(reader(raising(FileFormatError("in.bin is broken"))), b"", tmp_path).error == "in.bin is broken"
    assert check(reader(lambda path: [np.zeros(3)]), b"", tmp_path).error is None
    if resident():
        with pytest.raises(Finding, match="the bound is 8 MB"):
            check(reader(lambda path: [np.ones(4 * MB)], bound=8 * MB), b"", tmp_path)


def test_what_takes_long_is_tried_again(tmp_path, monkeypatch):
    """The machine may have been busy; what takes too long every time is found."""
    reader = READERS["idx"]
    for seconds, found in ([9.0, 8.0, 7.0, 1.0], None), ([9.0, 8.0, 7.0, 6.0], "idx: took 6.0 s"):
        left = iter(seconds)
        monkeypatch.setattr(harness, "_attempt", lambda reader, path, left=left: Outcome(None, next(left), 0))
        with pytest.raises(Finding, match=found) if found else nullcontext():
            assert check(reader, b"", tmp_path).seconds == 1.0


def test_figures_are_kept_and_added_to(tmp_path, monkeypatch, capsys):
    figures = tmp_path / "figures.json"
    for inputs in ("25", "40"):
        monkeypatch.setattr(sys, "argv", ["run", "--reader", "idx", "--inputs", inputs, "--json", str(figures)])
        assert run.main() == 0
    (row,) = json.loads(figures.read_text())["results"]
    assert (row["inputs"], row["errors"] + row["reads"], row["findings"]) == (40, 40, [])
    assert "| idx | 40 |" in capsys.readouterr().out


@pytest.mark.parametrize("name", READERS)
def test_good_files_are_the_same_at_any_time(name, monkeypatch):
    good = READERS[name].seeds()
    monkeypatch.setattr(time, "time", lambda: 1e9)
    assert READERS[name].seeds.__wrapped__() == good


def test_inputs_are_known_by_their_number():
    reader = READERS["pth, zip"]
    assert reader.content(SEED, 5) == reader.content(SEED, 5)
    assert len({reader.content(SEED, number) for number in range(50)}) > 45
