"""TensorBoard's event files, read back by a reader of their format written here; and the curve in a line of text."""

from __future__ import annotations

import builtins
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from toys import place, quarters, small_classifier

from xpcnn import ArgumentError, MissingExtraError
from xpcnn.training import Callback, NonFiniteError, TensorBoard
from xpcnn.training.sparkline import Trend, sparkline

# --- a reader: TFRecord frames, CRC-32C, and as much of protocol buffers as an event needs ----------------------


def crc32c(data: bytes) -> int:
    """Return the checksum of Castagnoli, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(content: bytes) -> list[bytes]:
    """Return the payloads: each has its length before it, and a checksum of both."""
    found = []
    while content:
        (size,) = struct.unpack("<Q", content[:8])
        assert struct.unpack("<I", content[8:12])[0] == masked(content[:8])
        payload = content[12 : 12 + size]
        assert struct.unpack("<I", content[12 + size : 16 + size])[0] == masked(payload)
        found.append(payload)
        content = content[16 + size :]
    return found


def fields(message: bytes) -> list[tuple[int, bytes | int]]:
    """Return (field number, value) of a protocol buffer."""

    def varint() -> int:
        nonlocal message
        value = shift = 0
        while True:
            byte, message = message[0], message[1:]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    found = []
    while message:
        key = varint()
        number, kind = key >> 3, key & 7
        size = {1: 8, 5: 4}.get(kind) or (varint() if kind == 2 else 0)
        if kind == 0:
            found.append((number, varint()))
        else:
            found.append((number, message[:size]))
            message = message[size:]
    return found


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) by tag of all event files in a folder."""
    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.iterdir(), key=lambda p: p.stat().st_mtime_ns):
        events = [dict(fields(record)) for record in records(path.read_bytes())]
        assert events[0][3] == b"brain.Event:2"
        for event in events:
            for _, value in fields(event.get(5, b"")):
                parts = dict(fields(value))
                if 2 in parts:
                    number = struct.unpack("<f", parts[2])[0]
                    found.setdefault(parts[1].decode(), []).append((event.get(2, 0), number))
    return found


def test_the_checksum_is_that_of_the_standard():
    assert crc32c(b"123456789") == 0xE3069283


# --- the callback -----------------------------------------------------------------------------------------------


def test_every_epoch_is_in_the_event_file(xp, tmp_path):
    images, labels = quarters(48)
    clf = small_classifier(device=place(xp))
    log = TensorBoard(tmp_path / "events")
    clf.fit(images, labels, epochs=2, validation=0.25, callbacks=[log], verbose=False)
    clf.fit(images, labels, epochs=1, callbacks=[log], verbose=False)  # it goes on
    found, history = scalars(tmp_path / "events"), clf.history
    assert set(found) == {
        "loss/training", "accuracy/training", "loss/validation", "accuracy/validation", "learning_rate",
        "images_per_second",
    }  # fmt: skip
    for tag, column in (("loss/training", "loss"), ("accuracy/training", "accuracy"), ("learning_rate", "lr")):
        assert [step for step, _ in found[tag]] == [1, 2, 3]
        np.testing.assert_allclose([value for _, value in found[tag]], history[column], rtol=1e-6)
    for name in ("loss", "accuracy"):
        expected = history[f"val_{name}"][:2]
        np.testing.assert_allclose([value for _, value in found[f"{name}/validation"]], expected, rtol=1e-6)
    speed = [n / s for n, s in zip((36, 36, 48), history["seconds"], strict=True)]
    np.testing.assert_allclose([value for _, value in found["images_per_second"]], speed, rtol=1e-6)


def test_steps_if_asked_for(tmp_path):
    losses = []

    class Losses(Callback):
        def on_step_end(self, fit):
            losses.append(float(fit.batch_loss))

    callbacks = [TensorBoard(tmp_path, every=2), Losses()]
    small_classifier().fit(quarters(48), epochs=2, batch_size=12, callbacks=callbacks, verbose=False)
    found = scalars(tmp_path)
    assert [step for step, _ in found["batch/loss"]] == [2, 4, 6, 8]
    np.testing.assert_allclose([value for _, value in found["batch/loss"]], losses[1::2], rtol=1e-6)
    np.testing.assert_allclose([value for _, value in found["batch/learning_rate"]], [0.1] * 4, rtol=1e-6)


def test_an_epoch_can_be_read_while_the_training_goes_on(tmp_path):
    seen = []

    class Look(Callback):
        def on_epoch_end(self, fit, logs):
            seen.append(len(scalars(tmp_path)["loss/training"]))

    small_classifier().fit(quarters(24), epochs=2, callbacks=[TensorBoard(tmp_path), Look()], verbose=False)
    assert seen == [1, 2]


def test_a_training_that_fails_leaves_a_whole_file(tmp_path):
    clf = small_classifier()
    clf.build((1, 8, 8))
    clf.net["4"].bias.data[0] = np.nan
    with pytest.raises(NonFiniteError):
        clf.fit(quarters(24), callbacks=[TensorBoard(tmp_path)], verbose=False)
    assert scalars(tmp_path) == {}


def test_without_the_package(monkeypatch, tmp_path):
    real = builtins.__import__

    def refuses(name, *args, **kwargs):
        if name.startswith("tensorboardX"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuses)
    with pytest.raises(MissingExtraError, match=r'the TensorBoard callback needs tensorboardX.*"xpcnn\[tensorboard\]"'):
        small_classifier().fit(quarters(24), callbacks=[TensorBoard(tmp_path)], verbose=False)


def test_every_must_be_a_step():
    with pytest.raises(ArgumentError, match="every must be at least 1 step, or None; received 0"):
        TensorBoard("runs", every=0)


# --- the curve in a line ----------------------------------------------------------------------------------------


def test_sparkline():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([5.0, 5.0]) == "▁▁"
    assert sparkline([]) == ""
    assert sparkline([1.0, math.nan, 2.0, math.inf]) == "▁ █ "


@pytest.mark.parametrize("count", [1, 4, 5, 9, 16, 17, 100, 1000])
def test_a_trend_spans_everything_in_equal_parts(count):
    trend = Trend(width=4)
    for i in range(count):
        trend.add(float(i))
    each = trend._each
    assert len(trend.values) <= 4
    assert len(trend.values) == count // each
    expected = [(first + first + each - 1) / 2 for first in range(0, count // each * each, each)]
    np.testing.assert_allclose(trend.values, expected)
    assert len(str(trend)) == len(trend.values)
