"""Optimizers, on the flat buffers of a network; formulas and defaults are torch's.

`optimizer.step(net)` uses the accumulated gradients and clears them. State is kept in flat arrays beside the
parameters and is named by parameter in `state_dict`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from . import backend
from .backend import Array, array_module, for_chunks, pieces, spans, workspace
from .errors import ArgumentError, StateDictError
from .functional import fused

__all__ = ["OPTIMIZERS", "SGD", "Adagrad", "Adam", "AdamW", "FlatState", "Optimizer", "RMSprop", "Terms"]

Groups: TypeAlias = "Mapping[str, Mapping[str, float]]"


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
        self.flat: Any = None  # the buffers beside which they lie
        self._loaded: dict[str, Array] = {}

    def attach(self, flat: Any, start: float | Array) -> set[str]:
        """Lay the arrays out beside these buffers, with what was loaded or kept so far; what is new is `start`.

        Returns:
            The names of the parameters that were not in the buffers before these, a replaced layer's for example.
        """
        if self.flat is flat:
            return set()
        known, old = self.state_dict(), self.flat
        fresh = {name for name, p in flat.parameters.items() if old is not None and old.parameters.get(name) is not p}
        with backend.device_of(flat.data):
            arrays = {name: array_module(flat.data).empty_like(flat.data) for name in self.names}
        for name, array in arrays.items():
            array[...] = start
            for parameter, view in flat.views(array).items():
                key = f"{name}/{parameter}"
                if not known or parameter in fresh:
                    continue
                if key not in known or known[key].shape != view.shape:
                    raise StateDictError(
                        f"the state does not fit the network: expected {key} of shape {view.shape}; "
                        f"received {known[key].shape if key in known else 'nothing'}."
                    )
                view[...] = backend.to_device(backend.to_numpy(known[key]), backend.device_of(view))
        self.arrays, self.flat, self._loaded = arrays, flat, {}
        return fresh

    def state_dict(self) -> dict[str, Array]:
        """Return views of the arrays by name."""
        if self.flat is None:
            return dict(self._loaded)
        return {
            f"{name}/{parameter}": view
            for name, array in self.arrays.items()
            for parameter, view in self.flat.views(array).items()
        }

    def load(self, state: Mapping[str, Array], owner: str) -> None:
        """Take copies of the arrays of another run; they are laid out when the network is next seen."""
        kinds = {key.partition("/")[0] for key in state}
        if not kinds <= set(self.names):
            raise StateDictError(
                f"{owner} keeps {', '.join(self.names) or 'no arrays'}; received {', '.join(sorted(kinds))}."
            )
        self._loaded = {key: np.array(backend.to_numpy(value)) for key, value in state.items()}
        self.flat, self.arrays = None, {}


class Terms(NamedTuple):
    """On which terms parameters are updated in one step: learning rate, weight decay, and which update of theirs."""

    lr: float
    weight_decay: float
    step: int  # counted from 1; steps in which a parameter was frozen do not count


class Optimizer:
    """Base class: walks the trainable parameters in blocks that stay in the cache and applies `update` to each.

    Args:
        lr: learning rate; assign `optimizer.lr` to change it. Schedules multiply it.
        weight_decay: added to the gradient times the weight (coupled), unless the optimizer says otherwise.
        clip_norm: scale all gradients so that their joint L2 norm is at most this (Pascanu et al., 2013).
        clip_value: cut every gradient element to [-clip_value, clip_value], after clip_norm.
        groups: parameters with a learning rate or weight decay of their own, by pattern as in `net.freeze`:
            `{"features": {"lr": 1e-4}, "*.bias": {"weight_decay": 0.0}}`. A parameter belongs to the first pattern
            that matches; a pattern that matches nothing is an error at the first step. Schedules multiply all rates.
    """

    state_start = 0.0
    decoupled = False  # whether weights decay by themselves, w *= 1 - lr * weight_decay, apart from the gradient

    def __init__(
        self,
        states: tuple[str, ...],
        lr: float,
        weight_decay: float,
        clip_norm: float | None,
        clip_value: float | None,
        groups: Groups | None = None,
    ) -> None:
        _check(type(self).__name__, lr=(lr, 0.0, math.inf), weight_decay=(weight_decay, 0.0, math.inf))
        for pattern, own in (groups or {}).items():
            if not isinstance(own, Mapping) or not own or not own.keys() <= {"lr", "weight_decay"}:
                raise ArgumentError(
                    f'the group {pattern!r} must say {{"lr": ..., "weight_decay": ...}} or one of them; '
                    f"received {own!r}."
                )
            _check(f"the group {pattern!r}", **{name: (value, 0.0, math.inf) for name, value in own.items()})
        for name, value in (("clip_norm", clip_norm), ("clip_value", clip_value)):
            if value is not None and not value > 0:
                raise ArgumentError(f"{name} must be positive or None; received {value!r}.")
        self.lr = lr
        self.weight_decay = weight_decay
        self.clip_norm = clip_norm
        self.clip_value = clip_value
        self.groups = groups
        self.steps = 0
        self._missed: dict[str, int] = {}  # in how many of these steps a parameter was frozen, or not there yet
        self._own: dict[str, Mapping[str, float]] = {}  # the group of each parameter that is in one
        self._memory = FlatState(states)

    def update(self, w: Array, g: Array, state: list[Array], scratch: Array, terms: Terms) -> None:
        """Change w in place. g, which has the coupled weight decay in it, and scratch may be overwritten."""
        raise TypeError(f"{type(self).__name__} does not define update")

    def cuda(self) -> tuple[str, dict[str, float]] | None:
        """Return `update` as CUDA code (see `functional.fused.update`) and its constants, None if there is none."""
        return None

    def step(self, net: Any, factor: float = 1.0, scale: Any = None) -> None:
        """Update every trainable parameter of the network by its accumulated gradient, then clear the gradients.

        Args:
            net: a built network (any layer).
            factor: all learning rates are multiplied by it in this step (a schedule).
            scale: the `xpcnn.LossScale` by which the gradients are too large (mixed precision). Where one of them is
                not finite, weights and state stay as they are and the step does not count.

        Raises:
            ArgumentError: if a pattern of `groups` matches no parameter.
            StateDictError: if a state was loaded that is not that of this network.
        """
        flat = net.flat()
        if self._memory.flat is not flat:
            self._own = {}
            for pattern, own in (self.groups or {}).items():
                self._own = dict.fromkeys(net.matching(pattern), own) | self._own
            self._missed |= dict.fromkeys(self._memory.attach(flat, self.state_start), self.steps)
        self.steps += 1
        for name, parameter in flat.parameters.items():
            if not parameter.trainable:
                self._missed[name] = self._missed.get(name, 0) + 1

        def terms_of(name: str) -> Terms:
            own = self._own.get(name, {})
            lr, weight_decay = own.get("lr", self.lr), own.get("weight_decay", self.weight_decay)
            return Terms(lr * factor, weight_decay, self.steps - self._missed.get(name, 0))

        xp = array_module(flat.data)
        runs = flat.runs(terms_of)
        gradient = flat.grad
        finite, skipped = (True, 0) if scale is None else scale.unscale(gradient)
        blocks = [
            (slice(run.start + i, run.start + j), terms)
            for run, terms in runs
            for i, j in spans(run.stop - run.start, pieces(run.stop - run.start, 8) if xp is np else 1)
        ]

        def work(index: int) -> None:
            block, terms = blocks[index]
            w, g = flat.data[block], gradient[block]
            states = {name: array[block] for name, array in self._memory.arrays.items()}
            if fused.takes(w) and (cuda := self.cuda()) is not None:
                decay = "w *= 1 - lr * weight_decay;" if self.decoupled else "g += weight_decay * w;"
                constants = {"lr": terms.lr, "weight_decay": terms.weight_decay, **cuda[1]}
                fused.update(f"{decay} {cuda[0]}", w, g, states, constants, terms.step, skipped, finite)
                return
            kept = [] if scale is None else [(a, a.copy()) for a in (w, *states.values())]
            scratch = workspace(xp, "optimizer", w.shape, w.dtype)
            if terms.weight_decay and self.decoupled:
                w *= 1.0 - terms.lr * terms.weight_decay
            elif terms.weight_decay:
                xp.multiply(w, terms.weight_decay, out=scratch)
                g += scratch
            self.update(w, g, list(states.values()), scratch, terms._replace(step=terms.step - skipped))
            for array, before in kept:  # no `if finite`: it may be on a GPU
                xp.copyto(array, before, where=~finite)

        with np.errstate(all=None if scale is None else "ignore"):  # what comes of infinities is not kept
            self._clip(gradient, [run for run, _ in runs])
            for_chunks(len(blocks), 8 * flat.data.size, work)
        flat.clear()

    def _clip(self, gradient: Array, runs: list[slice]) -> None:
        xp = array_module(gradient)
        if self.clip_norm is not None and runs:
            wide = xp.promote_types(gradient.dtype, xp.float32)
            squares = [xp.square(gradient[run], dtype=wide).sum() for run in runs]
            norm = xp.sqrt(sum(squares[1:], squares[0]))
            gradient *= xp.minimum(self.clip_norm / (norm + 1e-6), 1.0).astype(gradient.dtype)
        if self.clip_value is not None:
            xp.clip(gradient, -self.clip_value, self.clip_value, out=gradient)

    @property
    def state_arrays(self) -> int:
        """How many numbers the optimizer keeps for each weight."""
        return len(self._memory.names)

    def state_dict(self) -> dict[str, Array]:
        """Return the state: "steps", each kept array as "name/parameter name", and "missed/parameter name".

        The last is in how many of the steps a parameter was not updated; it is left out where that is 0.
        """
        missed = {f"missed/{name}": np.array(count) for name, count in self._missed.items() if count}
        return {"steps": np.array(self.steps), **missed, **self._memory.state_dict()}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Take the state of another run; it is laid out when the next step sees the network.

        Raises:
            StateDictError: if it is that of another optimizer, or (at the next step) of another network.
        """
        arrays = dict(state)
        if "steps" not in arrays:
            raise StateDictError("the state of an optimizer has an entry 'steps'; received none.")
        steps = int(arrays.pop("steps"))
        missed = {key: int(arrays.pop(key)) for key in state if key.startswith("missed/")}
        self._memory.load(arrays, type(self).__name__)
        self.steps, self._missed = steps, {key.partition("/")[2]: count for key, count in missed.items()}

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
        weight_decay, clip_norm, clip_value, groups: see `Optimizer`.
    """

    def __init__(
        self,
        lr: float = 1e-3,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        groups: Groups | None = None,
    ) -> None:
        super().__init__(("velocity",) if momentum else (), lr, weight_decay, clip_norm, clip_value, groups)
        _check("SGD", momentum=(momentum, 0.0, 1.0))
        if nesterov and not momentum:
            raise ArgumentError("nesterov=True needs a momentum above 0; received momentum=0.0.")
        self.momentum = momentum
        self.nesterov = nesterov
        self.decoupled = not momentum  # which comes to the same, in one pass less

    def update(self, w: Array, g: Array, state: list[Array], scratch: Array, terms: Terms) -> None:
        """See the class."""
        xp = array_module(w)
        direction = g
        if state:
            (velocity,) = state
            velocity *= self.momentum
            velocity += g
            if self.nesterov:
                xp.multiply(velocity, self.momentum, out=scratch)
                g += scratch
            direction = g if self.nesterov else velocity
        w -= xp.multiply(direction, terms.lr, out=g)

    def cuda(self) -> tuple[str, dict[str, float]]:
        """See `Optimizer`."""
        if not self.momentum:
            return "w -= lr * g;", {}
        direction = "g + momentum * velocity" if self.nesterov else "velocity"
        return f"velocity = momentum * velocity + g; w -= lr * ({direction});", {"momentum": self.momentum}


class Adagrad(Optimizer):
    """s += g**2, w -= lr * g / (sqrt(s) + eps). Duchi, Hazan and Singer (2011).

    Args:
        lr: learning rate.
        lr_decay: the rate of a parameter's update t is lr / (1 + (t - 1) * lr_decay).
        initial_accumulator_value: where s begins.
        eps: keeps the quotient finite.
        weight_decay, clip_norm, clip_value, groups: see `Optimizer`.
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
        groups: Groups | None = None,
    ) -> None:
        super().__init__(("sum",), lr, weight_decay, clip_norm, clip_value, groups)
        _check(
            "Adagrad",
            lr_decay=(lr_decay, 0.0, math.inf),
            initial_accumulator_value=(initial_accumulator_value, 0.0, math.inf),
            eps=(eps, 0.0, math.inf),
        )
        self.lr_decay = lr_decay
        self.initial_accumulator_value = self.state_start = initial_accumulator_value
        self.eps = eps

    def update(self, w: Array, g: Array, state: list[Array], scratch: Array, terms: Terms) -> None:
        """See the class."""
        xp = array_module(w)
        (total,) = state
        xp.multiply(g, g, out=scratch)
        total += scratch
        xp.sqrt(total, out=scratch)
        scratch += self.eps
        xp.divide(g, scratch, out=scratch)
        scratch *= terms.lr / (1.0 + (terms.step - 1) * self.lr_decay)
        w -= scratch

    def cuda(self) -> tuple[str, dict[str, float]]:
        """See `Optimizer`."""
        code = "sum += g * g; w -= lr / (1 + (step - 1) * lr_decay) * g / (sqrt(sum) + eps);"
        return code, {"lr_decay": self.lr_decay, "eps": self.eps}


class RMSprop(Optimizer):
    """s = alpha * s + (1 - alpha) * g**2, w -= lr * g / (sqrt(s) + eps). Tieleman and Hinton (2012).

    Args:
        lr: learning rate.
        alpha: smoothing of the squared gradients.
        eps: keeps the quotient finite.
        momentum: of the quotient; 0 for none.
        centered: subtract the square of the mean gradient from s (Graves, 2013).
        weight_decay, clip_norm, clip_value, groups: see `Optimizer`.
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
        groups: Groups | None = None,
    ) -> None:
        states = ("square", *(("mean",) if centered else ()), *(("velocity",) if momentum else ()))
        super().__init__(states, lr, weight_decay, clip_norm, clip_value, groups)
        _check("RMSprop", alpha=(alpha, 0.0, 1.0), eps=(eps, 0.0, math.inf), momentum=(momentum, 0.0, 1.0))
        self.alpha = alpha
        self.eps = eps
        self.momentum = momentum
        self.centered = centered

    def update(self, w: Array, g: Array, state: list[Array], scratch: Array, terms: Terms) -> None:
        """See the class."""
        xp = array_module(w)
        named = dict(zip(self._memory.names, state, strict=True))
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
            xp.multiply(velocity, terms.lr, out=scratch)
        else:
            scratch *= terms.lr
        w -= scratch

    def cuda(self) -> tuple[str, dict[str, float]]:
        """See `Optimizer`."""
        code = "square = alpha * square + rest * g * g; F spread = square;"
        if self.centered:
            code += "mean = alpha * mean + rest * g; spread = max(square - mean * mean, (F)0);"
        code += "F change = g / (sqrt(spread) + eps);"
        if self.momentum:
            code += "change = velocity = momentum * velocity + change;"
        constants = {"alpha": self.alpha, "rest": 1.0 - self.alpha, "eps": self.eps, "momentum": self.momentum}
        return code + "w -= lr * change;", constants


class Adam(Optimizer):
    """m and v are running means of g and g**2, corrected for their start at 0; w -= lr * m / (sqrt(v) + eps).

    Source: Kingma and Ba, "Adam" (2015), algorithm 1.

    Args:
        lr: learning rate.
        betas: smoothing of m and of v.
        eps: keeps the quotient finite.
        weight_decay, clip_norm, clip_value, groups: see `Optimizer`.
    """

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        groups: Groups | None = None,
    ) -> None:
        super().__init__(("m", "v"), lr, weight_decay, clip_norm, clip_value, groups)
        _check(
            type(self).__name__,
            **{"betas[0]": (betas[0], 0.0, 1.0), "betas[1]": (betas[1], 0.0, 1.0), "eps": (eps, 0.0, math.inf)},
        )
        self.betas = (float(betas[0]), float(betas[1]))
        self.eps = eps

    def update(self, w: Array, g: Array, state: list[Array], scratch: Array, terms: Terms) -> None:
        """See the class."""
        xp = array_module(w)
        m, v = state
        first, second = self.betas
        xp.multiply(g, g, out=scratch)
        scratch -= v
        scratch *= 1.0 - second
        v += scratch
        g -= m
        g *= 1.0 - first
        m += g
        # m / c1 / (sqrt(v / c2) + eps), with the constants gathered
        root = (1.0 - second**terms.step) ** 0.5
        xp.sqrt(v, out=scratch)
        scratch += self.eps * root
        xp.divide(m, scratch, out=scratch)
        scratch *= terms.lr * root / (1.0 - first**terms.step)
        w -= scratch

    def cuda(self) -> tuple[str, dict[str, float]]:
        """See `Optimizer`. expm1 keeps what 1 - beta**step would lose in float32."""
        constants = {"eps": self.eps}
        for name, beta in zip("mv", self.betas, strict=True):
            constants[f"rest_{name}"] = 1.0 - beta
            constants[f"log_{name}"] = math.log(beta) if beta else -math.inf
        code = """
            v += rest_v * (g * g - v);
            m += rest_m * (g - m);
            const F root = sqrt(-expm1(step * log_v));
            w += lr * root / expm1(step * log_m) * m / (sqrt(v) + eps * root);
        """
        return code, constants


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
        groups: Groups | None = None,
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay, clip_norm, clip_value, groups)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {k.__name__.lower(): k for k in (Adam, AdamW, SGD, RMSprop, Adagrad)}
