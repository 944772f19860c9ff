"""Losses: each returns the loss (a 0-d array that stays on the device) and its gradient.

Notation: K classes, N batch. Network outputs are batch-last (K, N); targets are as people hand them in, (N,) or (N, K).
"""

from __future__ import annotations

from ..backend import Array, array_module
from ..errors import ArgumentError, ShapeError
from . import fused
from .activation import log_softmax_forward


def softmax_cross_entropy(
    logits: Array,
    t: Array,
    class_weights: Array | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
) -> tuple[Array, Array]:
    """Cross-entropy of softmax(logits) against labels, averaged over the batch.

    With integer labels and class weights the mean is weighted, sum(w[t] * loss) / sum(w[t]); with soft labels each
    class term is weighted and the sum is divided by N.

    Args:
        logits: (K, N).
        t: integer labels (N,), which must lie in 0..K-1 (checked when the data set is made, not here: a check
            would wait for the GPU), or soft labels (N, K), each row a distribution.
        class_weights: (K,) or None.
        label_smoothing: how much of each label is spread evenly over all classes, 0 to 1
            (Szegedy et al., "Rethinking the Inception Architecture", 2016, section 7).
        ignore_index: an integer label whose samples count neither in the loss nor in its mean.

    Returns:
        loss (), dlogits (K, N).
    """
    xp = array_module(logits=logits, t=t, class_weights=class_weights)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ArgumentError(f"label_smoothing must lie between 0 and 1; received {label_smoothing}.")
    if logits.ndim != 2 or t.shape not in ((logits.shape[1],), logits.shape[::-1]):
        raise ShapeError(
            "softmax_cross_entropy expects logits (K, N) and labels (N,) or soft labels (N, K); "
            f"received logits {logits.shape} and labels {t.shape}."
        )
    if class_weights is not None and class_weights.shape != logits.shape[:1]:
        raise ShapeError(f"class_weights must have shape ({logits.shape[0]},); received {class_weights.shape}.")
    wide = xp.promote_types(logits.dtype, xp.float32)
    classes, batch = logits.shape
    hard = t.ndim == 1
    if hard:
        if t.dtype.kind not in "iu":
            raise ShapeError(f"labels (N,) must be integers; received dtype {t.dtype}.")
        if class_weights is None and ignore_index is None and fused.takes(logits, t):
            return fused.softmax_cross_entropy(logits, t, label_smoothing)
        target = (xp.arange(classes)[:, None] == t).astype(wide)
    else:
        target = t.T.astype(wide)
    log_p = log_softmax_forward(logits.astype(wide, copy=False))
    weight = target if class_weights is None else target * class_weights[:, None]
    if hard:
        keep = None if ignore_index is None else (t != ignore_index).astype(wide)
        if keep is not None:
            weight = weight * keep
        total = weight.sum() if class_weights is not None or keep is not None else batch
        total = total + (total == 0)  # where nothing counts, the loss is 0
    else:
        keep, total = None, batch
    if label_smoothing:
        even = label_smoothing / classes
        spread = even if class_weights is None else class_weights[:, None] * even
        weight = weight * (1.0 - label_smoothing) + (spread if keep is None else spread * keep)
    weight = weight / total
    loss = (weight * xp.where(weight == 0, 0.0, -log_p)).sum()  # a class ruled out by a logit of -inf costs nothing
    dlogits = xp.exp(log_p) * weight.sum(axis=0) - weight
    return loss, dlogits.astype(logits.dtype, copy=False)


def mse_loss(y: Array, target: Array) -> tuple[Array, Array]:
    """Mean squared error over all elements.

    Args:
        y: network output (D, N).
        target: (N, D).

    Returns:
        loss (), dy (D, N).
    """
    xp = array_module(y=y, target=target)
    if y.shape != target.shape[::-1]:
        raise ShapeError(f"mse_loss expects y (D, N) and target (N, D); received y {y.shape}, target {target.shape}.")
    difference = y - target.T.astype(y.dtype, copy=False)
    loss = (difference * difference).mean(dtype=xp.promote_types(y.dtype, xp.float32))
    return loss, difference * (2.0 / y.size)
