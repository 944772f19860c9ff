"""Runs to write reports about, and what is in a page of HTML."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from toys import quarters

from xpcnn.cli import main

HOSTILE = ["<img src=x onerror=alert(1)>", "\"quoted\" & 'so' $\\frac", "</style><script>alert(2)</script>"]


def train(folder: Path, *arguments: str) -> Path:
    """Train on a few images of classes with hostile names; return the folder of the run."""
    x, y = quarters(90)
    np.savez(folder / "data.npz", x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:], classes=HOSTILE)
    run = folder / "run"
    settings = ["--model", "keras_style", "--size", "8", "--device", "cpu", "--quiet", "--out", str(run)]
    assert main(["train", str(folder / "data.npz"), "--epochs", "3", "--batch-size", "10", *settings, *arguments]) == 0
    return run


VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Parses HTML strictly: `tags` with their attributes, `texts` by tag, `tables` by label."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append((tag, found))
        if tag not in VOID:
            self.open.append(tag)
        if found.get("role") == "region":
            self.rows = self.tables.setdefault(found["aria-label"], [])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self, *tags: str) -> str:
        """Return all text, or that inside of these tags."""
        return " ".join(" ".join(data for tag, data in self.texts if not tags or tag in tags).split())
