"""pytest -p cudasim.pytest_plugin: a `cuda_calls` fixture that counts device calls."""

import pytest

import cudasim


@pytest.fixture
def cuda_calls():
    """Use as: with cuda_calls() as c: step();  assert c['d2h'] == 0"""
    return cudasim.count
