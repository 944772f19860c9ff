"""Training: the `Classifier`, the loop it runs, and what can be done around the steps of that loop."""

from __future__ import annotations

from .callbacks import (
    Callback,
    CSVLog,
    EarlyStopping,
    LearningRateLog,
    NonFiniteError,
    Progress,
    SaveBest,
    StopOnNaN,
)
from .checkpoint import load, save
from .classifier import Classifier
from .history import History
from .loop import Fit, evaluate_batches, train_epoch
from .metrics import Report, confusion_counts, top_k_correct

__all__ = [
    "CSVLog",
    "Callback",
    "Classifier",
    "EarlyStopping",
    "Fit",
    "History",
    "LearningRateLog",
    "NonFiniteError",
    "Progress",
    "Report",
    "SaveBest",
    "StopOnNaN",
    "confusion_counts",
    "evaluate_batches",
    "load",
    "save",
    "top_k_correct",
    "train_epoch",
]
