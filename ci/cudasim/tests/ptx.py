"""Runs PTX written in a test: a few instructions for each thread, or a whole kernel."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import cupy as cp
import numpy as np

HEADER = ".version 8.0\n.target sm_80\n.address_size 64\n"


def kernel(text: str, name: str = "k") -> Any:
    """Return a kernel of a module in PTX."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "module.ptx")
        path.write_text(HEADER + text)
        return cp.RawModule(path=str(path)).get_function(name)


def evaluate(instructions: str, *inputs: np.ndarray, result: str, more: str = "") -> np.ndarray:
    """Run `instructions` in one thread for each element of the inputs.

    The inputs are in %a, %b, %c and %e; the result, of that dtype, is what they leave in %d. Registers have the width
    of their dtype. There are also %p and %q (.pred), %w0 to %w7 (.b32), %l0 to %l7 (.b64), %h0 to %h7 (.b16); `more`
    is declared in front of the kernel.
    """
    inputs = [np.ascontiguousarray(x) for x in inputs]
    n = len(inputs[0])
    out = cp.zeros(n, result)
    names = ["a", "b", "c", "e"][: len(inputs)]
    bits = {name: 8 * x.itemsize for name, x in zip(names, inputs, strict=True)}
    bits["d"] = 8 * out.itemsize
    pointers = "".join(f".param .u64 p_{name}, " for name in names) + ".param .u64 p_d"
    lines = [f".reg .b{max(size, 16)} %{name};" for name, size in bits.items()]
    lines += [".reg .pred %p, %q; .reg .b32 %w<8>; .reg .b64 %l<8>, %at<2>; .reg .b16 %h<8>; .reg .b32 %i;"]
    lines += ["mov.u32 %i, %tid.x;"]

    def place(name: str) -> str:
        return f"ld.param.u64 %at0, [p_{name}]; mad.wide.u32 %at1, %i, {bits[name] // 8}, %at0;"

    for name in names:
        lines.append(f"{place(name)} ld.global.b{bits[name]} %{name}, [%at1];")
    lines += [instructions, f"{place('d')} st.global.b{bits['d']} [%at1], %d;", "ret;"]
    run = kernel(f"{more}\n.visible .entry k({pointers})\n{{\n" + "\n".join(lines) + "\n}\n")
    run((1,), (n,), (*[cp.asarray(x) for x in inputs], out))
    return out.get()


def pairs(values: Any, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Return every pair of values as two arrays."""
    array = np.array(values, dtype)
    return tuple(np.ascontiguousarray(x.ravel()) for x in np.meshgrid(array, array, indexing="ij"))
