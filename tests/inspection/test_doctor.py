"""The doctor: finds what is there, and notices what is broken."""

from __future__ import annotations

import json

import numpy as np
import pytest

from xpcnn import backend
from xpcnn.errors import DeviceError
from xpcnn.inspection import doctor

# the function of the same name hides the module
module = __import__("sys").modules["xpcnn.inspection.doctor"]


@pytest.fixture
def no_cupy(monkeypatch):
    monkeypatch.setattr(module, "gpu_problem", lambda: "CuPy is not installed")
    monkeypatch.setattr(module, "CUPY_PACKAGES", ())
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)


def test_a_machine_without_a_gpu_is_well(no_cupy):
    found = doctor()
    assert found.ok
    assert found.problems == ()
    assert "no GPU will be used: CuPy is not installed" in found.notes
    assert [device.name for device in found.devices] == ["cpu"]
    cpu = found.devices[0]
    assert cpu.problem is None
    assert cpu.seconds > 0
    assert 0 < cpu.memory_used < cpu.memory_total
    assert found.versions["numpy"] == np.__version__
    assert found.threads == backend.threads()
    assert json.loads(json.dumps(found.as_dict()))["ok"] is True
    text = str(found)
    for expected in ("BLAS", "threads", "convolution", "GFLOP/s", "Everything that should work does."):
        assert expected in text


def test_the_kernel_of_the_blas_is_named(monkeypatch):
    common = {"user_api": "blas", "num_threads": 2}
    blas = common | {"internal_api": "openblas", "version": "0.3", "architecture": "Haswell"}
    other = common | {"internal_api": "mkl", "version": None, "num_threads": 4}
    monkeypatch.setattr(module, "threadpool_info", lambda: [blas, {"user_api": "openmp"}, other])
    assert module._blas() == ("openblas 0.3, Haswell kernels, 2 threads", "mkl ?, 4 threads")
    monkeypatch.setattr(module, "threadpool_info", list)
    assert module._blas() == ("not recognised",)


def test_a_cupy_that_cannot_be_used_is_a_problem(monkeypatch):
    monkeypatch.setattr(module, "gpu_problem", lambda: "CuPy finds no usable CUDA driver")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: object())
    found = doctor()
    assert not found.ok
    assert found.problems == ("no GPU can be used: CuPy finds no usable CUDA driver",)
    assert "1 problem(s)." in str(found)


def test_two_cupys_are_a_problem(no_cupy, monkeypatch):
    monkeypatch.setattr(module, "CUPY_PACKAGES", ("numpy", "rich"))
    assert "numpy and rich are installed together" in doctor().problems[0]


def test_a_missing_matplotlib_is_a_note(no_cupy, monkeypatch):
    monkeypatch.setattr(module, "_installed", lambda names: {})
    found = doctor()
    assert found.ok
    assert 'no pictures of filters and curves: pip install "xpcnn[viz]"' in found.notes


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (DeviceError("the device is gone"), "cpu: the device is gone"),
        (OSError("libfoo.so: not found\nmore"), "cpu: convolution failed: OSError: libfoo.so: not found"),
        (RuntimeError(), "cpu: convolution failed: RuntimeError"),
    ],
)
def test_a_convolution_that_fails_is_a_problem(no_cupy, monkeypatch, error, text):
    def fails(*_):
        raise error

    monkeypatch.setattr(module, "conv2d", fails)
    found = doctor()
    assert not found.ok
    assert found.problems == (text,)
    assert "PROBLEM" in str(found)
    json.dumps(found.as_dict(), allow_nan=False)


def test_a_convolution_that_differs_is_a_problem(no_cupy, monkeypatch):
    monkeypatch.setattr(module, "conv2d", lambda x, w: np.zeros((16, 32, 30, 30), np.float32))
    assert "cpu: convolution differs from the reference by up to" in doctor().problems[0]


def test_a_gpu_is_described():
    class Runtime:
        @staticmethod
        def getDeviceProperties(index):
            return {"name": b"Some GPU", "major": 9, "minor": index}

    class Gpu:
        kind, index = "cuda", 1
        xp = type("cupy", (), {"cuda": type("cuda", (), {"runtime": Runtime})})

    assert module._describe(Gpu()) == "Some GPU, compute 9.1"
    assert module._dotted(13020) == "13.2"


def test_rich_output(no_cupy, capsys):
    from rich.console import Console

    Console(width=150, force_terminal=False).print(doctor())
    assert "Everything that should work does." in capsys.readouterr().out


@pytest.mark.cupy
def test_with_cuda_every_device_is_tried():
    found = doctor()
    assert [device.name for device in found.devices][:2] == ["cpu", "cuda:0"]
    assert found.devices[1].problem is None
    assert "CUDA runtime" in found.gpu
