"""Is everything there, and does it compute? Versions, BLAS, threads, devices, and a convolution tried on each."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from ..backend import Device, generator, gpu_problem, memory_info, synchronize, threads, to_device, to_numpy
from ..errors import XpcnnError
from ..functional.conv import conv2d
from ..table import Table, quantity
from ..version import __version__

__all__ = ["DeviceCheck", "Diagnosis", "doctor", "versions"]

PACKAGES = ("numpy", "pillow", "safetensors", "threadpoolctl", "rich", "typer", "matplotlib")
CUPY_PACKAGES = ("cupy-cuda13x", "cupy-cuda12x", "cupy-cuda11x", "cupy")
RTOL, ATOL = 1e-4, 1e-5


@dataclass(frozen=True)
class DeviceCheck:
    """A device and how a convolution went on it. Memory in bytes, `seconds` of one convolution after warming up."""

    name: str
    description: str
    memory_used: int
    memory_total: int
    seconds: float | None
    gflops: float | None
    problem: str | None


@dataclass(frozen=True)
class Diagnosis:
    """What `doctor` found. `problems` is empty if everything that should work does."""

    versions: dict[str, str]
    blas: tuple[str, ...]
    threads: int
    gpu: dict[str, str]
    devices: tuple[DeviceCheck, ...]
    notes: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able data."""
        return {**asdict(self), "ok": self.ok}

    def table(self) -> Table:
        """Return everything as one table."""
        table = Table("", [("", "<"), ("", "<")])
        for name, version in self.versions.items():
            table.add(name, version)
        for line in self.blas:
            table.add("BLAS", line)
        table.add("threads", self.threads)
        for name, version in self.gpu.items():
            table.add(name, version)
        for device in self.devices:
            name, bad = f"device {device.name}", device.problem is not None
            memory = f"{quantity(device.memory_used, 'B')} of {quantity(device.memory_total, 'B')} used"
            tried = device.problem
            if tried is None and device.seconds is not None:
                tried = f"convolution {device.seconds * 1e3:.1f} ms, {device.gflops:.0f} GFLOP/s, agrees"
            table.add(name, f"{device.description}; {memory}; {tried}", bad=bad)
        for note in self.notes:
            table.add("note", note)
        for problem in self.problems:
            table.add("PROBLEM", problem, bad=True)
        table.footer = "Everything that should work does." if self.ok else f"{len(self.problems)} problem(s)."
        return table

    def __rich__(self) -> Any:
        return self.table().__rich__()

    def __str__(self) -> str:
        return str(self.table())


def doctor() -> Diagnosis:
    """Look at this machine and try a convolution on every device that xpcnn could use.

    Missing optional packages are notes. Problems are a CuPy that is installed but cannot be used and a device whose
    convolution fails or differs from a plain computation in float64.
    """
    notes, problems, gpu = [], [], {}
    gpu.update(_installed(CUPY_PACKAGES))
    if len(gpu) > 1:
        problems.append(f"{' and '.join(gpu)} are installed together and overwrite each other; uninstall all but one")
    names = ["cpu"]
    reason = gpu_problem()
    if reason is None:
        runtime = Device("cuda:0").xp.cuda.runtime
        gpu["CUDA runtime"] = _dotted(runtime.runtimeGetVersion())
        gpu["CUDA driver"] = _dotted(runtime.driverGetVersion())
        names += [f"cuda:{index}" for index in range(runtime.getDeviceCount())]
    elif importlib.util.find_spec("cupy") is None:
        notes.append(f"no GPU will be used: {reason}")
    else:
        problems.append(f"no GPU can be used: {reason}")
    if not _installed(["matplotlib"]):
        notes.append('no pictures of filters and curves: pip install "xpcnn[viz]"')
    expected = _reference()
    devices = tuple(_try(name, *expected) for name in names)
    problems += [f"{device.name}: {device.problem}" for device in devices if device.problem is not None]
    return Diagnosis(versions(), _blas(), threads(), gpu, devices, tuple(notes), tuple(problems))


def versions() -> dict[str, str]:
    """Return the versions of Python, xpcnn and the packages it uses, as far as they are installed."""
    python = {"Python": f"{platform.python_version()} on {platform.platform()}", "xpcnn": __version__}
    return python | _installed(PACKAGES)


def _installed(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _blas() -> tuple[str, ...]:
    """Return a line for each BLAS in this process: which, its kernel for this processor, its threads."""
    found = [info for info in threadpool_info() if info["user_api"] == "blas"]
    lines = []
    for info in found:
        kernel = f", {info['architecture']} kernels" if info.get("architecture") else ""
        lines.append(f"{info['internal_api']} {info.get('version') or '?'}{kernel}, {info['num_threads']} threads")
    return tuple(lines) or ("not recognised",)


def _reference() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return images, filters, and their convolution summed tap by tap in float64."""
    rng = generator(0, "doctor")
    x = rng.standard_normal((16, 16, 32, 32)).astype(np.float32)
    weight = rng.standard_normal((32, 16, 3, 3)).astype(np.float32)
    y = np.zeros((16, 32, 30, 30))
    for i in range(3):
        for j in range(3):
            seen = x[:, :, i : i + 30, j : j + 30].astype(np.float64)
            y += np.einsum("nchw,oc->nohw", seen, weight[:, :, i, j], optimize=True)
    return x, weight, y


def _try(name: str, x: np.ndarray, weight: np.ndarray, expected: np.ndarray) -> DeviceCheck:
    description, used, total, seconds, gflops, problem = name, 0, 0, None, None, None
    try:
        device = Device(name)
        description = _describe(device)
        with device:
            there = to_device(x, device), to_device(weight, device)
            y = to_numpy(conv2d(*there))  # the first call warms up: on a GPU it compiles
            started = time.perf_counter()
            conv2d(*there)
            synchronize(device)
            seconds = time.perf_counter() - started
            gflops = 2 * expected.size * weight[0].size / seconds / 1e9
        memory = memory_info(device)
        used, total = memory.used, memory.total
        if not np.allclose(y, expected, RTOL, ATOL):
            problem = f"convolution differs from the reference by up to {np.abs(y - expected).max():.1e}"
    except XpcnnError as error:
        problem = str(error)
    except Exception as error:  # whatever a broken driver or compiler raises is what the doctor is asked about
        problem = ": ".join(["convolution failed", type(error).__name__, *str(error).strip().splitlines()[:1]])
    return DeviceCheck(name, description, used, total, seconds, gflops, problem)


def _describe(device: Device) -> str:
    if device.kind == "cpu":
        return platform.processor() or platform.machine()
    properties = device.xp.cuda.runtime.getDeviceProperties(device.index)
    name = properties["name"]
    return f"{name.decode() if isinstance(name, bytes) else name}, compute {properties['major']}.{properties['minor']}"
