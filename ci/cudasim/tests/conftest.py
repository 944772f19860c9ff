"""Switches the simulator on, and sees to it that each test starts without a fault."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import cudasim

cudasim.install()  # where with-cuda-sim has not done so

import pytest

pytest_plugins = ["cudasim.pytest_plugin"]


@pytest.fixture(autouse=True)
def no_fault():
    """Fail a test that leaves a device fault behind, and clear it for the next."""
    yield
    left = cudasim.last_error()
    cudasim.clear_error()
    assert not left, f"the test left a device fault: {left}"
