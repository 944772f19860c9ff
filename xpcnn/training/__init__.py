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
from .ema import EMA
from .history import History
from .logs import TensorBoard
from .loop import Fit, evaluate_batches, train_epoch
from .lr_find import LearningRates, lr_find
from .metrics import Report, confusion_counts, top_k_correct
from .precision import LossScale
from .transfer import load_pretrained, new_head

__all__ = [
    "EMA",
    "CSVLog",
    "Callback",
    "Classifier",
    "EarlyStopping",
    "Fit",
    "History",
    "LearningRateLog",
    "LearningRates",
    "LossScale",
    "NonFiniteError",
    "Progress",
    "Report",
    "SaveBest",
    "StopOnNaN",
    "TensorBoard",
    "confusion_counts",
    "evaluate_batches",
    "load",
    "load_pretrained",
    "lr_find",
    "new_head",
    "save",
    "top_k_correct",
    "train_epoch",
]
