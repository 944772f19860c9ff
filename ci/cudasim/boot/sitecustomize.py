# Put on PYTHONPATH by with-cuda-sim: switches cudasim on when cupy is first imported.
import importlib.util
import os
import sys

_here = os.path.dirname(os.path.abspath(__file__))


class _Hook:
    busy = False

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("cupy", "cupyx", "cupy_backends") and not _Hook.busy:
            _Hook.busy = True
            sys.meta_path.remove(self)
            sys.path.insert(0, os.path.dirname(_here))
            try:
                import cudasim
            finally:
                sys.path.pop(0)
            cudasim.install()
        return


sys.meta_path.insert(0, _Hook())

# a sitecustomize that this one hides still runs
for _p in sys.path:
    _f = os.path.join(_p, "sitecustomize.py")
    if os.path.isfile(_f) and os.path.abspath(_p) != _here:
        _s = importlib.util.spec_from_file_location("sitecustomize_next", _f)
        _s.loader.exec_module(importlib.util.module_from_spec(_s))
        break
