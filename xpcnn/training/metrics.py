"""Counts that stay on the device while data flows and are read once, and the report made from them.

Notation: N batch, K classes, C (K, K) the confusion matrix with C[i, j] images of class i predicted as class j.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ..backend import Array, array_module, to_numpy
from ..errors import ArgumentError

__all__ = ["Report", "Totals", "class_indices", "confusion_counts", "one_hot", "top_k_correct"]

MATRIX_LIMIT = 20  # classes up to which a printed report shows the confusion matrix


def class_indices(t: Array) -> Array:
    """Return labels as indices (N,): soft or one-hot labels (N, K) become their largest class."""
    return t.argmax(axis=1) if t.ndim == 2 else t


def one_hot(t: Array, classes: int, dtype: Any = "float32") -> Array:
    """Turn class indices (N,) into (K, N) with a single 1 in each column.

    A comparison rather than an indexed store: no scatter, and the same on both backends.
    """
    xp = array_module(t)
    return (xp.arange(classes)[:, None] == t[None, :]).astype(dtype)


def confusion_counts(logits: Array, t: Array) -> Array:
    """Count (truth, prediction) pairs of one batch as a matrix product of one-hot rows.

    Args:
        logits: (K, N); the largest is the prediction.
        t: (N,) class indices, or (N, K).

    Returns:
        (K, K) int64 on the device of the logits, rows = truth. float32 products of zeros and ones are exact for
        batches below 2**24 images.
    """
    xp = array_module(logits=logits, t=t)
    classes = logits.shape[0]
    truth = one_hot(class_indices(t), classes)
    predicted = one_hot(logits.argmax(axis=0), classes)
    return xp.matmul(truth, predicted.T).astype("int64")


def top_k_correct(logits: Array, t: Array, k: int = 1) -> Array:
    """Count the images whose true class is among the k largest logits.

    Among equal logits the lower class index ranks first, as in argmax; a NaN logit is never correct.

    Args:
        logits: (K, N).
        t: (N,) class indices, or (N, K).
        k: from 1 to K.

    Returns:
        0-d int64 array on the device.

    Raises:
        ArgumentError: if k is not in 1..K.
    """
    xp = array_module(logits=logits, t=t)
    classes = logits.shape[0]
    if not 1 <= k <= classes:
        raise ArgumentError(f"top-k accuracy needs k from 1 to {classes}, the number of classes; received {k}.")
    t = class_indices(t)
    index = xp.arange(classes)[:, None]
    true = xp.where(index == t, logits, 0.0).sum(axis=0)
    ahead = (logits > true) | ((logits == true) & (index < t))
    return ((ahead.sum(axis=0) < k) & (true == true)).sum(dtype="int64")


@dataclass
class Totals:
    """Loss and correct predictions summed on the device; `read` is the one place that waits."""

    xp: ModuleType
    count: int = 0
    loss: Array = field(init=False)
    correct: Array = field(init=False)

    def __post_init__(self) -> None:
        self.loss = self.xp.zeros((), "float64")
        self.correct = self.xp.zeros((), "int64")

    def add(self, loss: Array, logits: Array, t: Array) -> None:
        """Add one batch: its mean loss (0-d), logits (K, N) and labels (N,) or (N, K)."""
        n = logits.shape[-1]
        self.count += n
        self.loss += loss * float(n)
        self.correct += (logits.argmax(axis=0) == class_indices(t)).sum(dtype="int64")

    def read(self) -> dict[str, float]:
        """Return the mean loss and the accuracy so far (waits for a GPU)."""
        count = max(self.count, 1)
        return {"loss": float(self.loss) / count, "accuracy": int(self.correct) / count}


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide counts; nothing out of nothing is NaN."""
    ratio = np.full(part.shape, np.nan)
    np.divide(part, whole, out=ratio, where=whole > 0)
    return ratio


class Report:
    """What `Classifier.evaluate` found. `print(report)` shows a table.

    Attributes:
        loss: mean loss per image.
        classes: names of the classes, in the order of the matrix.
        confusion: (K, K) int64, rows = truth, columns = prediction.
        accuracy: part of all images that is predicted right.
        per_class: class name -> accuracy among the images of that class (its recall); NaN where there are none.
        counts: class name -> number of images.
        precision: class name -> part of the predictions of that class that is right.
        f1: class name -> harmonic mean of precision and recall.
    """

    def __init__(self, loss: float, confusion: Array, classes: Sequence[str]) -> None:
        self.loss = float(loss)
        self.classes = list(classes)
        self.confusion: np.ndarray = to_numpy(confusion).astype(np.int64)
        right, truth, predicted = np.diag(self.confusion), self.confusion.sum(axis=1), self.confusion.sum(axis=0)
        self.accuracy = int(right.sum()) / max(int(truth.sum()), 1)
        self.counts = self._named(truth)
        self.per_class = self._named(_ratio(right, truth))
        self.precision = self._named(_ratio(right, predicted))
        self.f1 = self._named(_ratio(2 * right, truth + predicted))

    def _named(self, values: np.ndarray) -> dict[str, Any]:
        return dict(zip(self.classes, values.tolist(), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain Python data, ready for JSON (NaN becomes None)."""
        per_class = [
            {"class": name, "count": self.counts[name]}
            | {
                key: None if np.isnan(table[name]) else table[name]
                for key, table in (("accuracy", self.per_class), ("precision", self.precision), ("f1", self.f1))
            }
            for name in self.classes
        ]
        return {
            "loss": self.loss,
            "accuracy": self.accuracy,
            "count": sum(self.counts.values()),
            "per_class": per_class,
            "confusion": self.confusion.tolist(),
        }

    def _tables(self) -> list[Table]:
        total = sum(self.counts.values())
        scores = Table(title=f"loss {self.loss:.4f}, accuracy {self.accuracy:.4f} on {total} images")
        for column in ("class", "images", "accuracy", "precision", "F1"):
            scores.add_column(column, justify="left" if column == "class" else "right")
        for name in self.classes:
            values = (self.per_class[name], self.precision[name], self.f1[name])
            cells = ["-" if np.isnan(value) else f"{value:.4f}" for value in values]
            scores.add_row(_escape(name), str(self.counts[name]), *cells)
        if len(self.classes) > MATRIX_LIMIT:
            return [scores]
        matrix = Table(title="confusion matrix (rows: truth, columns: prediction)")
        matrix.add_column("")
        for name in self.classes:
            matrix.add_column(_escape(name), justify="right")
        for name, row in zip(self.classes, self.confusion.tolist(), strict=True):
            matrix.add_row(_escape(name), *[str(cell) if cell else "." for cell in row])
        return [scores, matrix]

    def __str__(self) -> str:
        # As wide as it takes: a table squeezed into 80 characters would lose its class names.
        console = Console(file=io.StringIO(), width=10_000, color_system=None)
        for table in self._tables():
            console.print(table)
        assert isinstance(console.file, io.StringIO)
        return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())

    def __repr__(self) -> str:
        return f"Report(loss={self.loss:.4f}, accuracy={self.accuracy:.4f}, images={sum(self.counts.values())})"


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
