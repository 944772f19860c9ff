"""Fixtures of the data tests: small image folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """A folder of 5 cats and 3 dogs: 10x8 grey PNGs whose pixels all have the number of the image, times 10."""
    number = 0
    for name, count in (("dog", 3), ("cat", 5)):
        (tmp_path / "animals" / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.full((10, 8), number * 10, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "animals" / name / f"{i}.png")
            number += 1
    return tmp_path / "animals"
