"""What a network consists of and what it costs: parameters, multiplications, memory."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from ..errors import ArgumentError
from ..inference import Inference
from ..layers import AuxiliaryHead, Step, activation
from ..optim import Adam, Optimizer
from ..table import Table, quantity
from ..training.memory import TrainingMemory, has_batch_norm, memory_of, training_memory, weights_of
from .trace import trace

__all__ = ["Summary", "SummaryRow", "summary"]

ACTIVATIONS = tuple(getattr(activation, name) for name in activation.__all__)


@dataclass(frozen=True)
class SummaryRow:
    """One leaf layer. Shapes exclude the batch; MACs (multiply-accumulates) and kept bytes are for one image.

    MACs are those of inference: auxiliary heads have none.
    """

    path: str
    layer: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    activation: str
    parameters: int
    macs: int
    kept: float


@dataclass(frozen=True)
class Summary:
    """What `summary` found; print it to see the table.

    `kept` is what one training forward leaves in memory for backward, for one image; it may be more than the rows' sum
    where a container keeps something itself. `weights` and `kept` are bytes. `training` is what a whole training step
    takes.
    """

    rows: tuple[SummaryRow, ...]
    input_shape: tuple[int, ...]
    parameters: int
    trainable: int
    macs: int
    kept: float
    weights: int
    training: TrainingMemory | None = None

    def table(self) -> Table:
        """Return the rows as a table with the totals below."""
        table = Table(
            f"Input: {'x'.join(map(str, self.input_shape))}",
            [("name", "<"), ("layer", "<"), ("input", "<"), ("output", "<"), ("activation", "<"), ("parameters", ">"),
             ("MACs", ">"), ("kept for backward", ">")],
        )  # fmt: skip
        for row in self.rows:
            macs = quantity(row.macs) if row.macs else ""
            kept = quantity(row.kept, "B") if row.kept else ""
            shapes = row.input_shape, row.output_shape
            table.add(row.path, row.layer, *shapes, row.activation, row.parameters or "", macs, kept)
        table.footer = "\n".join(
            [
                f"Parameters:        {self.parameters:,} ({self.trainable:,} trainable), {quantity(self.weights, 'B')}",
                f"MACs:              {quantity(self.macs)} an image",
                f"Kept for backward: {quantity(self.kept, 'B')} an image",
                *([str(self.training)] if self.training else []),
            ]
        )
        return table

    def __rich__(self) -> Any:
        return self.table().__rich__()

    def __str__(self) -> str:
        return str(self.table())


def summary(
    net: Any,
    input_shape: tuple[int, ...] | None = None,
    batch_size: int | None = None,
    optimizer: Optimizer | None = None,
    ema: bool = False,
) -> Summary:
    """Describe a network layer by layer.

    The bytes kept for backward are not estimated: a copy of the network does one training forward on zeros, and
    every distinct piece of memory that it keeps is counted once, at the first layer that keeps it. Weights are not
    counted among them.

    Args:
        net: any layer, built or not, or a `Classifier`. It is not changed.
        input_shape: (C, H, W) or (D,); a classifier knows its own.
        batch_size: images in a training step whose memory is to be measured too; None for none. What would take more
            than 1 GiB is not tried out but extrapolated.
        optimizer: of the training, Adam if not given.
        ema: whether the training keeps a moving average of the weights.
    """
    shape = input_shape or getattr(net, "input_shape", None)
    if shape is None:
        raise ArgumentError("the network does not say for which images it was built; call summary(net, (C, H, W)).")
    net = copy.deepcopy(getattr(net, "net", net))
    net.build(shape)
    parameters = list(net.parameters().values())
    images = 2 if has_batch_norm(net) else 1  # batch norm takes no single value, such as the one pixel of a small map
    x = net.xp.zeros((*shape, images), net.dtype)
    with net.device, trace(net) as visits:
        _, ctx = net.forward(x, Step(0, 0, recompute=True, inference=isinstance(net, Inference)))
    own = weights_of(net)
    kept = {piece: size for piece, size in memory_of(ctx).items() if piece not in own}
    left = dict(kept)
    rows = []
    seen: set[int] = set()
    idle = {id(leaf) for _, head in net.walk() if isinstance(head, AuxiliaryHead) for _, leaf in head.head.leaves()}
    for visit, following in zip(visits, [*visits[1:], None], strict=True):
        first_visit = id(visit.layer) not in seen
        seen.add(id(visit.layer))
        shapes = tuple(visit.x.shape[:-1]), tuple(visit.y.shape[:-1])
        followed = following is not None and following.x is visit.y and isinstance(following.layer, ACTIVATIONS)
        rows.append(
            SummaryRow(
                visit.path,
                repr(visit.layer),
                *shapes,
                type(following.layer).__name__.lower() if followed and following else "",
                sum(p.data.size for p in visit.layer.parameters().values()) if first_visit else 0,
                0 if id(visit.layer) in idle else int(visit.layer.macs(*shapes)),
                sum(left.pop(piece, 0) for piece in memory_of(visit.ctx)) / images,
            )
        )
    del visits, ctx
    training = None if batch_size is None else training_memory(net, shape, batch_size, optimizer or Adam(), ema)
    return Summary(
        tuple(rows),
        tuple(shape),
        sum(p.data.size for p in parameters),
        sum(p.data.size for p in parameters if p.trainable),
        sum(row.macs for row in rows),
        sum(kept.values()) / images,
        sum(p.data.nbytes for p in parameters),
        training,
    )
