"""Mixed precision: float16 arithmetic, float32 weights, and a loss scale that finds its own size.

The network keeps float32 parameters. Given float16 images, convolutions and dense layers take a float16 copy of their
weights, everything between layers is float16, and gradients are added up in float32. Statistics, sums, the loss and the
update of the weights stay in float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .. import backend
from ..backend import Array, array_module
from ..errors import ArgumentError, StateDictError
from ..functional import fused

__all__ = ["MIXED", "LossScale"]

MIXED = "mixed_float16"


class LossScale:
    """What the gradient of the loss is multiplied by so that small gradients do not vanish in float16.

    `optimizer.step(net, scale=scale)` divides by it again. Where a gradient is NaN or infinite, that step is left out
    and the scale is halved; after `growth_steps` good steps in a row it is doubled. All of it stays on the device, so
    nothing waits. By hand, for a network built in float32:

        logits, ctx = net.forward(batch_last(x).astype("float16"), train=True)
        loss, dlogits = softmax_cross_entropy(logits.astype("float32"), t)
        net.backward(scale.apply(dlogits, "float16"), ctx, need_dx=False)
        optimizer.step(net, scale=scale)

    Source: Micikevicius et al., "Mixed Precision Training" (2018).

    Args:
        start: the first scale.
        growth_steps: good steps in a row after which it is doubled.

    Attributes:
        scale, good, skipped: the scale now, good steps since it last changed, steps left out; each () on the device.
    """

    def __init__(self, start: float = 2.0**16, growth_steps: int = 2000) -> None:
        if not start > 0 or growth_steps < 1:
            raise ArgumentError(
                f"LossScale expects start > 0 and growth_steps >= 1; received start={start} and "
                f"growth_steps={growth_steps}."
            )
        self.start = start
        self.growth_steps = growth_steps
        self.scale: Array = np.array(start, np.float32)
        self.good: Array = np.array(0, np.int64)
        self.skipped: Array = np.array(0, np.int64)

    def apply(self, gradient: Array, dtype: str | np.dtype[np.generic]) -> Array:
        """Return the gradient of the loss times the scale, in the dtype of the network's input."""
        self._follow(gradient)
        return (gradient * self.scale).astype(dtype, copy=False)

    def unscale(self, gradient: Array) -> tuple[Array, Array]:
        """Divide a flat gradient by the scale, in place, and adjust the scale for the next step.

        Returns:
            whether every element is finite (), and how many steps were left out so far ().
        """
        self._follow(gradient)
        if fused.takes(gradient):
            finite = fused.unscale(gradient, self.scale)
            fused.adjust_scale(finite, self.growth_steps, self.scale, self.good, self.skipped)
            return finite, self.skipped
        xp = array_module(gradient)
        gradient /= self.scale
        finite = xp.isfinite(gradient).all()
        self.good[...] = xp.where(finite, self.good + 1, 0)
        self.skipped += ~finite
        self.scale *= xp.where(finite, xp.where(self.good == self.growth_steps, 2.0, 1.0), 0.5)
        self.good %= self.growth_steps
        return finite, self.skipped

    def _follow(self, array: Array) -> None:
        """Move to the device of an array, if elsewhere."""
        place = backend.device_of(array)
        if backend.device_of(self.scale) != place:
            self.load_state_dict(self.state_dict(), place)

    def state_dict(self) -> dict[str, Array]:
        """Return "scale", "good" and "skipped", each ()."""
        return {"scale": self.scale, "good": self.good, "skipped": self.skipped}

    def load_state_dict(self, state: Mapping[str, Array], device: str | backend.Device = "cpu") -> None:
        """Take the state of another run."""
        own = self.state_dict()
        if state.keys() != own.keys():
            raise StateDictError(f"a loss scale has entries {', '.join(own)}; received {', '.join(state) or 'none'}.")
        for name, array in own.items():
            setattr(self, name, backend.to_device(np.array(backend.to_numpy(state[name]), array.dtype), device))
