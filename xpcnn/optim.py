"""Optimizers, on the flat buffers of a network; formulas and defaults are torch's.

`optimizer.step(net)` uses the accumulated gradients and clears them. State is kept in flat arrays beside the
parameters and is named by parameter in `state_dict`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from . import backend
from .backend import Array, array_module, for_chunks, workspace
from .errors import ArgumentError, StateDictError

__all__ = ["EMA", "SGD", "Adagrad", "Adam", "AdamW", "Optimizer", "RMSprop"]


def _check(optimizer: str, **values: tuple[float, float, float]) -> None:
    """Raise unless each value lies in [low, high)."""
    for name, (value, low, high) in values.items():
        if not low <= value < high:
            raise ArgumentError(f"{name} of {optimizer} must be at least {low} and below {high}; received {value!r}.")


class FlatState:
    """Arrays beside the flat buffers of a network; outside they go by "array name/parameter name"."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.arrays: dict[str, Array] = {}
        self._flat: Any = None
        self._loaded: dict[str, Array] = {}

    def attach(self, flat: Any, start: float = 0.0) -> bool:
        """Lay the arrays out beside these buffers, with what was loaded or kept so far; say whether they are new."""
        if self._flat is flat:
            return False
        previous = self.state_dict()
        xp = array_module(flat.data)
        with backend.device_of(flat.data):
            self.arrays = {name: xp.full(flat.data.shape, start, flat.data.dtype) for name in self.names}
        self._flat, self._loaded = flat, {}
        if previous:
            self._restore(previous)
        return not previous

    def _restore(self, previous: Mapping[str, Array]) -> None:
        for key, view in self.state_dict().items():
            if key not in previous or previous[key].shape != view.shape:
                raise StateDictError(
                    f"the state does not fit the network: expected {key} of shape {view.shape}; "
                    f"received {previous[key].shape if key in previous else 'nothing'}."
                )
            view[...] = backend.to_device(backend.to_numpy(previous[key]), backend.device_of(view))

    def state_dict(self) -> dict[str, Array]:
        """Return views of the arrays by name."""
        if self._flat is None:
            return dict(self._loaded)
        return {
            f"{name}/{parameter}": view
            for name, array in self.arrays.items()
            for parameter, view in self._flat.views(array).items()
        }

    def load(self, state: Mapping[str, Array], owner: str) -> None:
        """Take copies of the arrays of another run; they are laid out when the network is next seen."""
        kinds = {key.partition("/")[0] for key in state}
        if not kinds <= set(self.names):
            raise StateDictError(
                f"{owner} keeps {', '.join(self.names) or 'no arrays'}; received {', '.join(sorted(kinds))}."
            )
        self._loaded = {key: np.array(backend.to_numpy(value)) for key, value in state.items()}
        self._flat, self.arrays = None, {}


class Optimizer:
    """Base class: walks the trainable parameters in blocks that stay in the cache and applies `update` to each.

    Args:
        lr: learning rate; assign `optimizer.lr` to change it. Schedules multiply it.
        weight_decay: added to the gradient times the weight (coupled), unless the optimizer says otherwise.
        clip_norm: scale all gradients so that their joint L2 norm is at most this (Pascanu et al., 2013).
        clip_value: cut every gradient element to [-clip_value, clip_value], after clip_norm.
    """

    state_start = 0.0

    def __init__(
        self,
        states: tuple[str, ...],
        lr: float,
        weight_decay: float,
        clip_norm: float | None,
        clip_value: float | None,
    ) -> None:
        _check(type(self).__name__, lr=(lr, 0.0, math.inf), weight_decay=(weight_decay, 0.0, math.inf))
        for name, value in (("clip_norm", clip_norm), ("clip_value", clip_value)):
            if value is not None and not value > 0:
                raise ArgumentError(f"{name} must be positive or None; received {value!r}.")
        self.lr = lr
        self.weight_decay = weight_decay
        self.clip_norm = clip_norm
        self.clip_value = clip_value
        self.steps = 0
        self._memory = FlatState(states)

    def update(self, w: Array, g: Array, state: list[Array], scratch: Array, lr: float) -> None:
        """Change w in place. g and scratch may be overwritten; `self.steps` counts from 1."""
        raise TypeError(f"{type(self).__name__} does not define update")

    def step(self, net: Any, lr: float | None = None) -> None:
        """Update every trainable parameter of the network by its accumulated gradient, then clear the gradients.

        Args:
            net: a built network (any layer).
            lr: learning rate of this step; `self.lr` if None.
        """
        flat = net.flat()
        self._memory.attach(flat, self.state_start)
        self.steps += 1
        rate = self.lr if lr is None else lr
        xp = array_module(flat.data)
        runs = flat.runs()
        self._clip(flat, runs)
        size = flat.data.size if xp is not np else backend.BLOCK
        blocks = [slice(i, min(i + size, run.stop)) for run in runs for i in range(run.start, run.stop, size)]

        def work(index: int) -> None:
            block = blocks[index]
            w, g = flat.data[block], flat.grad[block]
            scratch = workspace(xp, "optimizer", w.shape, w.dtype)
            self.update(w, g, [array[block] for array in self._memory.arrays.values()], scratch, rate)
            flat.grad[block] = 0.0

        for_chunks(len(blocks), 8 * flat.data.size, work)

    def _clip(self, flat: Any, runs: list[slice]) -> None:
        xp = array_module(flat.data)
        if self.clip_norm is not None:
            wide = xp.promote_types(flat.grad.dtype, xp.float32)
            squares = [xp.square(flat.grad[run], dtype=wide).sum() for run in runs]
            norm = xp.sqrt(sum(squares[1:], squares[0])) if squares else 0.0
            flat.grad *= xp.minimum(self.clip_norm / (norm + 1e-6), 1.0).astype(flat.grad.dtype) if squares else 1.0
        if self.clip_value is not None:
            xp.clip(flat.grad, -self.clip_value, self.clip_value, out=flat.grad)

    def state_dict(self) -> dict[str, Array]:
        """Return the state: "steps", and each kept array as "name/parameter name"."""
        return {"steps": np.array(self.steps), **self._memory.state_dict()}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Take the state of another run; it is laid out when the next step sees the network.

        Raises:
            StateDictError: if it is that of another optimizer, or (at the next step) of another network.
        """
        arrays = dict(state)
        if "steps" not in arrays:
            raise StateDictError("the state of an optimizer has an entry 'steps'; received none.")
        steps = int(arrays.pop("steps"))
        self._memory.load(arrays, type(self).__name__)
        self.steps = steps

    def __repr__(self) -> str:
        name, *arguments = self.settings().items()
        return f"{name[1]}({', '.join(f'{k}={v!r}' for k, v in arguments)})"

    def settings(self) -> dict[str, Any]:
        """Return the class name and constructor arguments, for logs and files."""
        arguments = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        return {"optimizer": type(self).__name__, **arguments}


class SGD(Optimizer):
    """Stochastic gradient descent: v = momentum * v + g, w -= lr * v.

    Args:
        lr: learning rate.
        momentum: 0 for none.
        nesterov: step by g + momentum * v (Sutskever et al., 2013).
        weight_decay, clip_norm, clip_value: see `Optimizer`.
    """

    def __init__(
        self,
        lr: float = 1e-3,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        super().__init__(("velocity",) if momentum else (), lr, weight_decay, clip_norm, clip_value)
        _check("SGD", momentum=(momentum, 0.0, 1.0))
        if nesterov and not momentum:
            raise ArgumentError("nesterov=True needs a momentum above 0; received momentum=0.0.")
        self.momentum = momentum
        self.nesterov = nesterov

    def update(self, w: Array, g: Array, state: list[Array], scratch: Array, lr: float) -> None:
        """See the class."""
        xp = array_module(w)
        if self.weight_decay:
            xp.multiply(w, self.weight_decay, out=scratch)
            g += scratch
        if state:
            (velocity,) = state
            velocity *= self.momentum
            velocity += g
            if self.nesterov:
                xp.multiply(velocity, self.momentum, out=scratch)
                g += scratch
            else:
                g = velocity
        xp.multiply(g, lr, out=scratch)
        w -= scratch


class Adagrad(Optimizer):
    """s += g**2, w -= lr * g / (sqrt(s) + eps). Duchi, Hazan and Singer (2011).

    Args:
        lr: learning rate.
        lr_decay: the rate of step t is lr / (1 + (t - 1) * lr_decay).
        initial_accumulator_value: where s begins.
        eps: keeps the quotient finite.
        weight_decay, clip_norm, clip_value: see `Optimizer`.
    """

    def __init__(
        self,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        super().__init__(("sum",), lr, weight_decay, clip_norm, clip_value)
        _check(
            "Adagrad",
            lr_decay=(lr_decay, 0.0, math.inf),
            initial_accumulator_value=(initial_accumulator_value, 0.0, math.inf),
            eps=(eps, 0.0, math.inf),
        )
        self.lr_decay = lr_decay
        self.initial_accumulator_value = self.state_start = initial_accumulator_value
        self.eps = eps

    def update(self, w: Array, g: Array, state: list[Array], scratch: Array, lr: float) -> None:
        """See the class."""
        xp = array_module(w)
        (total,) = state
        if self.weight_decay:
            xp.multiply(w, self.weight_decay, out=scratch)
            g += scratch
        xp.multiply(g, g, out=scratch)
        total += scratch
        xp.sqrt(total, out=scratch)
        scratch += self.eps
        xp.divide(g, scratch, out=scratch)
        scratch *= lr / (1.0 + (self.steps - 1) * self.lr_decay)
        w -= scratch


class RMSprop(Optimizer):
    """s = alpha * s + (1 - alpha) * g**2, w -= lr * g / (sqrt(s) + eps). Tieleman and Hinton (2012).

    Args:
        lr: learning rate.
        alpha: smoothing of the squared gradients.
        eps: keeps the quotient finite.
        momentum: of the quotient; 0 for none.
        centered: subtract the square of the mean gradient from s (Graves, 2013).
        weight_decay, clip_norm, clip_value: see `Optimizer`.
    """

    def __init__(
        self,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        momentum: float = 0.0,
        centered: bool = False,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        states = ("square", *(("mean",) if centered else ()), *(("velocity",) if momentum else ()))
        super().__init__(states, lr, weight_decay, clip_norm, clip_value)
        _check("RMSprop", alpha=(alpha, 0.0, 1.0), eps=(eps, 0.0, math.inf), momentum=(momentum, 0.0, 1.0))
        self.alpha = alpha
        self.eps = eps
        self.momentum = momentum
        self.centered = centered

    def update(self, w: Array, g: Array, state: list[Array], scratch: Array, lr: float) -> None:
        """See the class."""
        xp = array_module(w)
        named = dict(zip(self._memory.names, state, strict=True))
        if self.weight_decay:
            xp.multiply(w, self.weight_decay, out=scratch)
            g += scratch
        square = named["square"]
        square *= self.alpha
        xp.multiply(g, g, out=scratch)
        scratch *= 1.0 - self.alpha
        square += scratch
        if self.centered:
            mean = named["mean"]
            mean *= self.alpha
            xp.multiply(g, 1.0 - self.alpha, out=scratch)
            mean += scratch
            xp.multiply(mean, mean, out=scratch)
            xp.subtract(square, scratch, out=scratch)
            xp.maximum(scratch, 0.0, out=scratch)  # rounding may make it slightly negative
            xp.sqrt(scratch, out=scratch)
        else:
            xp.sqrt(square, out=scratch)
        scratch += self.eps
        xp.divide(g, scratch, out=scratch)
        if self.momentum:
            velocity = named["velocity"]
            velocity *= self.momentum
            velocity += scratch
            xp.multiply(velocity, lr, out=scratch)
        else:
            scratch *= lr
        w -= scratch


class Adam(Optimizer):
    """m and v are running means of g and g**2, corrected for their start at 0; w -= lr * m / (sqrt(v) + eps).

    Source: Kingma and Ba, "Adam" (2015), algorithm 1.

    Args:
        lr: learning rate.
        betas: smoothing of m and of v.
        eps: keeps the quotient finite.
        weight_decay, clip_norm, clip_value: see `Optimizer`.
    """

    decoupled = False

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        super().__init__(("m", "v"), lr, weight_decay, clip_norm, clip_value)
        _check(
            type(self).__name__,
            **{"betas[0]": (betas[0], 0.0, 1.0), "betas[1]": (betas[1], 0.0, 1.0), "eps": (eps, 0.0, math.inf)},
        )
        self.betas = (float(betas[0]), float(betas[1]))
        self.eps = eps

    def update(self, w: Array, g: Array, state: list[Array], scratch: Array, lr: float) -> None:
        """See the class."""
        xp = array_module(w)
        m, v = state
        first, second = self.betas
        if self.weight_decay and self.decoupled:
            w *= 1.0 - lr * self.weight_decay
        elif self.weight_decay:
            xp.multiply(w, self.weight_decay, out=scratch)
            g += scratch
        xp.multiply(g, g, out=scratch)
        scratch -= v
        scratch *= 1.0 - second
        v += scratch
        g -= m
        g *= 1.0 - first
        m += g
        # m / c1 / (sqrt(v / c2) + eps), with the constants gathered
        root = math.sqrt(1.0 - second**self.steps)
        xp.sqrt(v, out=scratch)
        scratch += self.eps * root
        xp.divide(m, scratch, out=scratch)
        scratch *= lr * root / (1.0 - first**self.steps)
        w -= scratch


class AdamW(Adam):
    """Adam with weight decay apart from the gradient: w *= 1 - lr * weight_decay. Loshchilov and Hutter (2019).

    Args: as `Adam`, weight_decay 0.01 by default.
    """

    decoupled = True

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay, clip_norm, clip_value)


class EMA:
    """Exponential moving average of the weights: average = decay * average + (1 - decay) * weights.

    `update(net)` after each step; inside `with ema.swap(net):` the network has the averaged weights. Polyak and
    Juditsky (1992).
    """

    def __init__(self, decay: float = 0.999) -> None:
        _check("EMA", decay=(decay, 0.0, 1.0))
        self.decay = decay
        self._memory = FlatState(("average",))

    def update(self, net: Any) -> None:
        """Take the network's present weights into the average; the first time they are the average."""
        flat = net.flat()
        first = self._memory.attach(flat)
        average, weights, weight = self._memory.arrays["average"], flat.data, 1.0 if first else 1.0 - self.decay
        xp = array_module(weights)

        def work(rows: slice) -> None:
            step = xp.subtract(
                weights[rows], average[rows], out=workspace(xp, "average", weights[rows].shape, weights.dtype)
            )
            step *= weight
            average[rows] += step

        backend.for_rows(average, work, 4)

    @contextmanager
    def swap(self, net: Any) -> Iterator[None]:
        """Lend the network the averaged weights."""
        flat = net.flat()
        if self._memory.attach(flat):
            self._memory.arrays["average"][...] = flat.data
        own = flat.data.copy()
        flat.data[...] = self._memory.arrays["average"]
        try:
            yield
        finally:
            flat.data[...] = own

    def state_dict(self) -> dict[str, Array]:
        """Return the average as "average/parameter name"; empty before the first update."""
        return self._memory.state_dict()

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Take the average of another run."""
        self._memory.load(state, "EMA")
