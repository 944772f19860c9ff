"""with-cuda-sim puts this folder on PYTHONPATH: cudasim is switched on when cupy is first imported."""

import importlib.util
import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))


class _InstallBeforeCuPy:
    """A finder that finds nothing, but is asked before any module is imported."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("cupy", "cupyx", "cupy_backends"):
            sys.meta_path.remove(self)
            sys.path.insert(0, os.path.dirname(_HERE))
            try:
                import cudasim
            finally:
                sys.path.pop(0)
            cudasim.install()


sys.meta_path.insert(0, _InstallBeforeCuPy())

# Python runs one sitecustomize; the one that this hides runs here
for _folder in sys.path:
    _file = os.path.join(_folder, "sitecustomize.py")
    if os.path.isfile(_file) and os.path.abspath(_folder) != _HERE:
        _spec = importlib.util.spec_from_file_location("sitecustomize_next", _file)
        _spec.loader.exec_module(importlib.util.module_from_spec(_spec))
        break
