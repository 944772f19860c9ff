"""Tables that look well in a terminal and read well in a log."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import rich.box
from rich.console import Console, Group
from rich.table import Table as RichTable
from rich.text import Text

__all__ = ["Table", "quantity"]


def quantity(value: float, unit: str = "") -> str:
    """Return a number with a decimal prefix: 1234567 -> "1.23 M"; with unit "B" powers of 1024 are used (KiB, MiB)."""
    step, prefixes = (1024.0, ("", "Ki", "Mi", "Gi", "Ti")) if unit == "B" else (1000.0, ("", "k", "M", "G", "T"))
    index = 0
    while abs(value) >= step and index < len(prefixes) - 1:
        value /= step
        index += 1
    number = f"{value:.0f}" if not index and value == int(value) else f"{value:.3g}" if value < 100 else f"{value:.0f}"
    return f"{number} {prefixes[index]}{unit}".rstrip()


@dataclass
class Table:
    """A title, columns as (name, "<" or ">"), rows and a footer; `str()` gives plain text, rich prints it in colour."""

    title: str
    columns: Sequence[tuple[str, str]]
    rows: list[tuple[tuple[str, ...], bool]] = field(default_factory=list)
    footer: str = ""

    def add(self, *cells: Any, bad: bool = False) -> None:
        """Add a row. Shapes are written 8x28x28, whole numbers with commas; a bad row is red."""
        self.rows.append((tuple(_text(cell) for cell in cells), bad))

    def __rich__(self) -> Group:
        table = RichTable(title=self.title, title_justify="left", box=rich.box.SIMPLE_HEAD, pad_edge=False)
        for name, side in self.columns:
            table.add_column(name, justify="right" if side == ">" else "left", overflow="fold")
        for cells, bad in self.rows:
            table.add_row(*(Text(cell) for cell in cells), style="red" if bad else None)
        return Group(table, Text(self.footer)) if self.footer else Group(table)

    def __str__(self) -> str:
        out = io.StringIO()
        Console(file=out, width=200, color_system=None, force_terminal=False).print(self)
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _text(cell: Any) -> str:
    if isinstance(cell, tuple):
        return "x".join(map(str, cell))
    return f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell)
