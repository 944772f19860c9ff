"""A short form of benchmarks/long_run.py: memory stays flat, and no file handle, thread or temporary file is left."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from benchmarks import long_run

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory and handles are counted in /proc")


def test_training_and_loading_leave_nothing_behind():
    command = [sys.executable, "benchmarks/long_run.py", "--steps", "200", "--cycles", "20", "--threads", "2"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "flat, and nothing left behind" in done.stdout


def test_growth_is_seen(capsys):
    watch = long_run.Watch("step", 40)
    watch.samples = [(i, 1.0 + 0.1 * max(0, i - 20), 50.0) for i in range(0, 40, 2)]
    grown = watch.growth()
    assert grown["traced_mb"] == pytest.approx(0.4)
    assert grown["resident_mb"] == 0


def test_what_is_left_is_seen(tmp_path):
    before = long_run.handles(), long_run.threads()
    done = threading.Event()
    with open(tmp_path / "open.txt", "w"):
        thread = threading.Thread(target=done.wait, name="forgotten")
        thread.start()
        after = long_run.handles(), long_run.threads()
        done.set()
        thread.join()
    assert set(after[0]) - set(before[0]) == {str(tmp_path / "open.txt")}
    assert set(after[1]) - set(before[1]) == {"forgotten"}
