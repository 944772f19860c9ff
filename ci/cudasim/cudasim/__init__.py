"""cudasim: run an unmodified CuPy wheel on a machine without a GPU.

Call install() before cupy is imported (or run under with-cuda-sim, which does so).
"""

import ctypes
import glob
import importlib.util
import os
import re
import struct
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))
_LIB = os.path.join(_HERE, "lib")
_lib = None
_keep = []
patched = {}


def _elf_functions(path):
    """Yield (name, value) for the functions in .symtab of an ELF64 file."""
    with open(path, "rb") as f:
        data = f.read()
    (shoff,) = struct.unpack_from("<Q", data, 0x28)
    shentsize, shnum, _ = struct.unpack_from("<HHH", data, 0x3A)
    secs = [struct.unpack_from("<IIQQQQIIQQ", data, shoff + i * shentsize) for i in range(shnum)]
    for s in secs:
        if s[1] != 2:  # SHT_SYMTAB
            continue
        stroff = secs[s[6]][4]
        for off in range(s[4], s[4] + s[5], 24):
            name, info, _, shndx, value, _ = struct.unpack_from("<IBBHQQ", data, off)
            if info & 15 == 2 and shndx and value:
                end = data.index(b"\0", stroff + name)
                yield data[stroff + name : end].decode("latin1"), value


def _symbols(path):
    """The functions of interest, kept in the cache folder (the big modules take a while to read)."""
    import json

    st = os.stat(path)
    key = f"{os.path.basename(path)}-{st.st_size}-{int(st.st_mtime)}.json"
    cache = os.path.join(os.environ["CUPY_CACHE_DIR"], "cudasim-" + key)
    try:
        with open(cache) as f:
            return json.load(f)
    except (OSError, ValueError):
        pass
    out = [[n, v] for n, v in _elf_functions(path) if _WANTED.match(n) or _REGISTER.match(n)]
    try:
        os.makedirs(os.path.dirname(cache), exist_ok=True)
        tmp = f"{cache}.{os.getpid()}"
        with open(tmp, "w") as f:
            json.dump(out, f)
        os.replace(tmp, cache)
    except OSError:
        pass
    return out


def _base_address(path):
    path = os.path.realpath(path)
    with open("/proc/self/maps") as f:
        for line in f:
            p = line.split(None, 5)
            if len(p) == 6 and os.path.realpath(p[5].strip()) == path and p[2].strip("0") == "":
                return int(p[0].split("-")[0], 16)
    raise RuntimeError(f"{path} is not mapped")


_WANTED = re.compile(
    r"cuda[A-Z]\w*$|__cuda(Register\w+|UnregisterFatBinary|InitModule|GetKernel|LaunchKernel|PushCallConfiguration|PopCallConfiguration)$"
)
_REGISTER = re.compile(r"_ZL\d+__sti____cudaRegisterAll\w*v$")
_SOFT = ("cupy.cuda.thrust", "cupy.cuda.cub", "cupy.random._generator_api")


def _patch_module(modname):
    spec = importlib.util.find_spec("cupy_backends")
    packages = spec.submodule_search_locations or [os.path.dirname(spec.origin)]
    root = os.path.dirname(next(iter(packages)))
    d, _, leaf = modname.rpartition(".")
    folder = os.path.join(root, *d.split("."))
    cands = [x for x in os.listdir(folder) if x.startswith(leaf + ".") and x.endswith(".so")]
    if not cands:
        return
    path = os.path.join(folder, cands[0])
    _keep.append(ctypes.CDLL(path, mode=os.RTLD_NOW | os.RTLD_LOCAL))
    base = _base_address(path)
    real = stubs = 0
    again = []
    for name, value in _symbols(path):
        if _REGISTER.match(name):
            again.append(base + value)
            continue
        if not _WANTED.match(name) or name.endswith(("_ptsz", "_ptds")):
            continue
        r = _lib.cudasim_patch(name.encode(), base + value)
        if r < 0:
            raise RuntimeError(f"cannot patch {name} in {path}")
        real += r == 1
        stubs += r == 0
    for a in again:  # tell the replacement about the device code in this module
        ctypes.CFUNCTYPE(None)(a)()
    if real == 0:
        raise RuntimeError(f"no CUDA runtime symbols found in {path}: the wheel is stripped, cudasim cannot be used")
    patched[modname] = (real, stubs)


def install(cache_dir=None):
    """Make cupy usable without a GPU in this process."""
    global _lib
    if _lib is not None:
        return
    if any(m == "cupy" or m.startswith("cupy.") for m in sys.modules):
        raise RuntimeError("cudasim.install() must run before cupy is imported")
    os.environ["CUPY_COMPILE_WITH_PTX"] = "1"
    os.environ.setdefault("CUPY_CACHE_DIR", cache_dir or os.path.join(os.path.expanduser("~"), ".cache", "cudasim"))
    _lib = ctypes.CDLL(os.path.join(_LIB, "libcudasim.so"), mode=os.RTLD_NOW | os.RTLD_LOCAL)
    _lib.cudasim_patch.argtypes = [ctypes.c_char_p, ctypes.c_uint64]
    _lib.cudasim_counter_name.restype = ctypes.c_char_p
    _lib.cudasim_counter_value.restype = ctypes.c_uint64
    _lib.cudasim_log_get.restype = ctypes.c_char_p
    _lib.cudasim_last_message.restype = ctypes.c_char_p
    _lib.cudasim_instructions.restype = ctypes.c_uint64
    for name in ("libcuda.so.1", "libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10"):
        p = os.path.join(_LIB, name)
        if os.path.exists(p):
            _keep.append(ctypes.CDLL(p, mode=os.RTLD_NOW | os.RTLD_LOCAL))
    # NVRTC opens its builtins by bare name and only finds them if they are loaded
    spec = importlib.util.find_spec("nvidia.cu13") if importlib.util.find_spec("nvidia") else None
    for root in spec.submodule_search_locations if spec else ():
        for p in sorted(glob.glob(os.path.join(root, "lib", "libnvrtc-builtins.so.13*"))):
            _keep.append(ctypes.CDLL(p))
    _patch_module("cupy_backends.cuda.api.runtime")
    for m in _SOFT:
        _patch_module(m)
    if os.environ.get("CUDASIM_REPORT", "") not in ("", "0"):
        import atexit

        atexit.register(lambda: print("cudasim:", {k: v for k, v in counters().items() if v}, file=sys.stderr))


def is_active():
    """True when this process runs on the simulator."""
    return _lib is not None


def counters():
    """Calls so far, as a dict."""
    return {
        _lib.cudasim_counter_name(i).decode(): _lib.cudasim_counter_value(i)
        for i in range(_lib.cudasim_counter_count())
    }


def reset():
    _lib.cudasim_counter_reset()


class count:
    """with cudasim.count() as c: ...  then c['d2h'], c['kernel_launch'], c.log"""

    def __init__(self, log=False):
        self._log = log
        self.log = []
        self._d = None

    def __enter__(self):
        if self._log:
            _lib.cudasim_log(1)
        self._a = counters()
        return self

    def __exit__(self, *exc):
        b = counters()
        self._d = {k: b[k] - self._a[k] for k in b}
        if self._log:
            self.log = [_lib.cudasim_log_get(i).decode() for i in range(_lib.cudasim_log_size())]
            _lib.cudasim_log(0)
        return False

    def __getitem__(self, k):
        d = self._d
        if d is None:
            return counters()[k] - self._a[k]
        return d[k]

    def as_dict(self):
        return dict(self._d)


def last_error():
    """Text of the last device fault, e.g. which kernel read out of range."""
    return _lib.cudasim_last_message().decode()


def clear_error():
    """Forget a sticky device error (a real GPU would need a new process)."""
    _lib.cudasim_clear_error()


def strict_memory():
    """Turn CuPy's memory pool off, so that every array is checked to its exact size and fresh memory reads as NaN."""
    import cupy

    cupy.get_default_memory_pool().free_all_blocks()
    cupy.cuda.set_allocator(None)


def instructions():
    """Device thread-instructions run so far (a deterministic measure of kernel work)."""
    return _lib.cudasim_instructions()
