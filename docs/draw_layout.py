"""Draw docs/img/layout.svg: a convolution as one matrix product, with the batch last.

    python docs/draw_layout.py

Two images of 4x4 pixels, one channel, two filters of 3x3. Pixels are numbered 0 to 15; the colour says which image.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

TARGET = Path(__file__).with_name("img") / "layout.svg"

H = W = 4
K = 3  # KH and KW
OUT = H - K + 1  # OH and OW
N, FILTERS = 2, 2
CELL = 24
IMAGES = ("#cfe2ff", "#ffe0c2")  # one fill an image
EDGES = ("#1f5fbf", "#b85c00")
INK, QUIET, WEIGHT, SUM, MARK = "#1b1f24", "#57606a", "#d7f0d7", "#f1f1f1", "#c0143c"
SHOWN = (0, 1, 1)  # the window (oh, ow) of image n that is followed through the picture, for filter 1


def columns() -> list[tuple[tuple[int, int, int], list[int]]]:
    """Return, for each column (oh, ow, n), the pixels that its window sees, in the order of the weights."""
    return [
        ((oh, ow, n), [(oh + kh) * W + ow + kw for kh, kw in product(range(K), repeat=2)])
        for oh, ow, n in product(range(OUT), range(OUT), range(N))
    ]


class Drawing:
    """SVG elements, one after the other."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def text(self, x: float, y: float, words: str, size: int = 13, fill: str = INK, anchor: str = "start") -> None:
        """Write words; x and y are where their base line begins, or its middle."""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{fill}" text-anchor="{anchor}">{words}</text>'
        )

    def box(self, x: float, y: float, width: float, height: float, fill: str, stroke: str, line: float = 1) -> None:
        """Draw a rectangle."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}" stroke="{stroke}" '
            f'stroke-width="{line:g}"/>'
        )

    def cell(self, x: float, y: float, words: str, fill: str, stroke: str) -> None:
        """Draw one element of a matrix."""
        self.box(x, y, CELL, CELL, fill, stroke, 0.7)
        if words:
            self.text(x + CELL / 2, y + CELL / 2 + 4, words, 11, INK, "middle")

    def mark(self, x: float, y: float, across: int, down: int) -> None:
        """Frame some elements."""
        self.box(x, y, across * CELL, down * CELL, "none", MARK, 2.6)


def image(d: Drawing, x: float, y: float, n: int) -> None:
    """Draw one image with numbered pixels."""
    for h, w in product(range(H), range(W)):
        d.cell(x + w * CELL, y + h * CELL, str(h * W + w), IMAGES[n], EDGES[n])
    d.text(x, y + H * CELL + 17, f"image n = {n}", 12, EDGES[n])


def draw() -> str:
    """Return the whole picture."""
    d = Drawing()
    cols, taps = columns(), K * K
    followed = [where for where, _ in cols].index(SHOWN)

    d.text(24, 34, "x (C, H, W, N) = (1, 4, 4, 2)", 14)
    for n in range(N):
        image(d, 24 + n * 124, 50, n)
    d.mark(24 + SHOWN[2] * 124 + SHOWN[1] * CELL, 50 + SHOWN[0] * CELL, K, K)

    left = 320
    d.text(left, 34, "in memory the batch is last: pixel 0 of all images, pixel 1, ...", 14)
    for i, (pixel, n) in enumerate(product(range(10), range(N))):
        d.cell(left + i * CELL, 50, str(pixel), IMAGES[n], EDGES[n])
    d.text(left + 20 * CELL + 8, 66, "...", 14)
    d.text(left, 104, "A column lists what one window sees in one image. The same window", 13, QUIET)
    d.text(left, 122, "of all images gives neighbouring columns: with stride 1, what lies in", 13, QUIET)
    d.text(left, 140, "memory in runs of OW·N numbers. Their order is that of the output.", 13, QUIET)

    top = 260
    weight, col = 36, 36 + taps * CELL + 64
    result = col + len(cols) * CELL + 84
    middle = top + taps * CELL / 2
    d.text(weight, middle - CELL - 14, "weight (O, C·KH·KW) = (2, 9)", 14)
    d.text(col, top - 32, "columns of x (C·KH·KW, OH·OW·N) = (9, 8)", 14)
    d.text(result, middle - CELL - 28, "y (O, OH·OW·N) = (2, 8)", 14)
    for o, tap in product(range(FILTERS), range(taps)):
        d.cell(weight + tap * CELL, middle - CELL + o * CELL, "", WEIGHT, "#2f7d32")
    for o in range(FILTERS):
        d.text(weight - 6, middle - CELL + o * CELL + 16, str(o), 11, QUIET, "end")
    d.text(weight + taps * CELL + 32, middle + 6, "@", 18, INK, "middle")
    d.text(col + len(cols) * CELL + 42, middle + 6, "=", 20, INK, "middle")
    for i, ((oh, ow, n), pixels) in enumerate(cols):
        for row, pixel in enumerate(pixels):
            d.cell(col + i * CELL, top + row * CELL, str(pixel), IMAGES[n], EDGES[n])
        for o in range(FILTERS):
            d.cell(result + i * CELL, middle - CELL + o * CELL, "", IMAGES[n], EDGES[n])
        if n == 0:
            for start, height in ((col, top), (result, middle - CELL)):
                d.text(start + (i + N / 2) * CELL, height - 8, f"({oh}, {ow})", 11, QUIET, "middle")
    d.text(col - 8, top - 8, "(oh, ow)", 11, QUIET, "end")
    d.mark(weight, middle, taps, 1)
    d.mark(col + followed * CELL, top, 1, taps)
    d.mark(result + followed * CELL, middle, 1, 1)
    below = middle + FILTERS * CELL + 4
    d.text(result, below, "as it lies this is (O, OH, OW, N):", 13, QUIET)
    d.text(result, below + 18, "nothing is transposed", 13, QUIET)

    width, height = result + len(cols) * CELL + 36, top + taps * CELL + 24
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="system-ui, sans-serif" role="img">\n'
        "<title>Convolution as one matrix product, with the batch as the last axis</title>\n"
        f'<rect width="{width:g}" height="{height:g}" rx="8" fill="#ffffff"/>\n'
    )
    return head + "\n".join(d.parts) + "\n</svg>\n"


if __name__ == "__main__":
    TARGET.write_text(draw(), encoding="utf-8")
    print(TARGET)
