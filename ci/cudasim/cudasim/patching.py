"""Puts the simulator under CuPy: loads the replaced libraries and patches the runtime that CuPy's modules carry."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from cudasim import elf, library
from cudasim.counting import counters

# The first has the runtime that all of CuPy uses; the others carry device code and a runtime of their own.
_MODULES = ("cupy_backends.cuda.api.runtime", "cupy.cuda.thrust", "cupy.cuda.cub", "cupy.random._generator_api")
_PATCHED = re.compile(
    r"cuda[A-Z]\w*$|__cuda(Register\w+|UnregisterFatBinary|InitModule|GetKernel|LaunchKernel|PushCallConfiguration"
    r"|PopCallConfiguration)$"
)
_PER_THREAD = ("_ptsz", "_ptds")  # variants for per-thread default streams, which the wheel does not use
# what nvcc makes to tell the runtime, when a module is loaded, which kernels it carries
_REGISTRATION = re.compile(r"_ZL\d+__sti____cudaRegisterAll\w*v$")
_NUMBERS = ("CUDASIM_MEM", "CUDASIM_POISON", "CUDASIM_MAX_INS", "CUDASIM_CC", "CUDASIM_DEVICES")

_kept: list[ctypes.CDLL] = []


def install(cache_dir: str | None = None) -> None:
    """Make cupy usable without a GPU in this process. Raises RuntimeError where that cannot work."""
    if library.is_loaded():
        return
    if any(name == "cupy" or name.startswith("cupy.") for name in sys.modules):
        raise RuntimeError("cudasim.install() must run before cupy is imported")
    _check_numbers()
    os.environ["CUPY_COMPILE_WITH_PTX"] = "1"
    os.environ.setdefault("CUPY_CACHE_DIR", cache_dir or os.path.join(os.path.expanduser("~"), ".cache", "cudasim"))
    library.load()
    _load_nvrtc_builtins()
    for name in _MODULES:
        _patch(name)
    if os.environ.get("CUDASIM_REPORT", "") not in ("", "0"):
        atexit.register(lambda: print("cudasim:", {k: v for k, v in counters().items() if v}, file=sys.stderr))


def _check_numbers() -> None:
    for name in _NUMBERS:
        text = os.environ.get(name, "")
        try:
            int(text or "0", 0)
        except ValueError:
            raise ValueError(f"{name} must be a whole number (bytes are written out), and is {text!r}") from None


def _load_nvrtc_builtins() -> None:
    """NVRTC opens its builtins by bare name and only finds them if they are loaded."""
    spec = importlib.util.find_spec("nvidia.cu13") if importlib.util.find_spec("nvidia") else None
    for root in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(root, "lib").glob("libnvrtc-builtins.so.13*")):
            _kept.append(ctypes.CDLL(str(path)))


def _patch(module: str) -> None:
    """Write jumps over the CUDA functions inside a module of CuPy, and register its device code anew."""
    path = _find_module(module)
    if path is None:
        return
    _kept.append(ctypes.CDLL(str(path)))
    base = elf.base_address(path)
    replaced, registrations = 0, []
    for name, offset in _symbols(path):
        if _REGISTRATION.match(name):
            registrations.append(base + offset)
        elif not name.endswith(_PER_THREAD):
            outcome = library.get().cudasim_patch(name.encode(), base + offset)
            if outcome < 0:
                raise RuntimeError(f"cannot patch {name} in {path}")
            replaced += outcome
    if not replaced:
        raise RuntimeError(f"no CUDA runtime symbols found in {path}: the wheel is stripped, cudasim cannot be used")
    for address in registrations:  # they ran when the module was loaded, before its functions were patched
        ctypes.CFUNCTYPE(None)(address)()


def _find_module(module: str) -> Path | None:
    spec = importlib.util.find_spec("cupy_backends")
    if spec is None:
        raise RuntimeError("CuPy is not installed in this environment")
    packages = spec.submodule_search_locations or [os.path.dirname(spec.origin or "")]
    *parents, leaf = module.split(".")
    folder = Path(next(iter(packages))).parent.joinpath(*parents)
    return next(iter(sorted(folder.glob(f"{leaf}.*.so"))), None)


def _symbols(path: Path) -> list[tuple[str, int]]:
    """Return the functions of interest; kept in the cache folder, since the big modules take a while to read."""
    status = path.stat()
    cache = Path(os.environ["CUPY_CACHE_DIR"], f"cudasim-{path.name}-{status.st_size}-{int(status.st_mtime)}.json")
    with contextlib.suppress(OSError, ValueError):
        return [(name, offset) for name, offset in json.loads(cache.read_text())]
    found = [(name, at) for name, at in elf.functions(path) if _PATCHED.match(name) or _REGISTRATION.match(name)]
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        unfinished = cache.with_name(f"{cache.name}.{os.getpid()}")
        unfinished.write_text(json.dumps(found))
        unfinished.replace(cache)
    return found


def is_active() -> bool:
    """Return whether this process runs on the simulator."""
    return library.is_loaded()


def last_error() -> str:
    """Return the text of the last device fault: which kernel, thread and instruction."""
    return library.get().cudasim_last_message().decode()


def clear_error() -> None:
    """Forget a fault. With a real GPU that takes a new process."""
    library.get().cudasim_clear_error()


@contextlib.contextmanager
def race_check(on: bool = True) -> Iterator[None]:
    """Look for races in kernels launched inside a `with`, or do not, whatever CUDASIM_RACECHECK says."""
    before = library.get().cudasim_set_race_check(on)
    try:
        yield
    finally:
        library.get().cudasim_set_race_check(before)


def strict_memory() -> None:
    """Turn CuPy's memory pool off: each array is checked to its exact size, and fresh memory reads as NaN."""
    import cupy

    cupy.get_default_memory_pool().free_all_blocks()
    cupy.cuda.set_allocator(None)


def check_embedded() -> tuple[int, int]:
    """Build every kernel that CuPy's modules carry; return how many cannot run, and how many there are."""
    total = ctypes.c_int()
    broken = library.get().cudasim_check_embedded(ctypes.byref(total))
    return broken, total.value
