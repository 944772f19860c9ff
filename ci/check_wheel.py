"""Builds the wheel, looks at what is in it, and uses it without the source tree."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from email import message_from_string
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 3_000_000  # bytes; the embedded digits are most of it
CORE = {"numpy", "pillow", "safetensors", "threadpoolctl", "rich", "typer"}
EXTRAS = {"cuda12", "cuda13", "viz", "keras", "onnx", "tensorboard", "sklearn", "report", "mpi", "serve", "docs", "dev"}

USE = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy, xpcnn
assert xpcnn.__file__.startswith(sys.argv[1]), xpcnn.__file__
assert not {"cupy", "matplotlib", "typer"} & set(sys.modules), "importing xpcnn imports more than it needs"
digits, test = xpcnn.data.mnist()
net = xpcnn.Sequential(xpcnn.Conv2d(4, 3), xpcnn.ReLU(), xpcnn.Flatten(), xpcnn.Dense(10))
net.build(digits.shape)
assert net(numpy.stack([digits[i][0] for i in range(3)])).shape == (3, 10)
print(f"xpcnn {xpcnn.__version__} works from the wheel: {len(digits) + len(test):,} embedded digits of {digits.shape}")
"""


def check(truth: bool, otherwise: str) -> None:
    if not truth:
        sys.exit(f"ci/check_wheel.py: {otherwise}")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(ROOT)]
        subprocess.run(pip, check=True)
        (wheel,) = folder.glob("xpcnn-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            archive.extractall(folder / "installed")
        size = wheel.stat().st_size
        print(f"{wheel.name}: {len(names)} files, {size:,} bytes")

        check(size < LIMIT, f"the wheel has {size:,} bytes, more than {LIMIT:,}")
        (info,) = {n.split("/")[0] for n in names} - {"xpcnn"}
        check(info.endswith(".dist-info"), f"the wheel holds more than xpcnn: {info}")
        check("xpcnn/py.typed" in names, "py.typed is missing, so type checkers would ignore xpcnn")
        for licence in ("LICENSE", "LICENSE-mnist.txt"):
            check(any(n.startswith(info) and n.endswith(f"/{licence}") for n in names), f"{licence} is missing")
        metadata = message_from_string((folder / "installed" / info / "METADATA").read_text("utf-8"))
        core = {re.match(r"[\w-]+", r).group() for r in metadata.get_all("Requires-Dist") if "extra ==" not in r}
        check(core == CORE, f"the core needs {sorted(core)}, not {sorted(CORE)}")
        check(set(metadata.get_all("Provides-Extra")) == EXTRAS, f"extras are {metadata.get_all('Provides-Extra')}")

        installed = str(folder / "installed")
        subprocess.run([sys.executable, "-c", USE, installed], check=True, cwd=name)
        subprocess.run([sys.executable, "-m", "xpcnn", "--version"], check=True, cwd=installed)


if __name__ == "__main__":
    main()
