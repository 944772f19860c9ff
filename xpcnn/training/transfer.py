"""Transfer learning: a network that has learned one task begins another with a new head.

    net.freeze()                                 # or net.freeze("features"), or nothing
    new_head(net, 5)                             # parameters that are new are not frozen
    Classifier(net, classes=5).fit(x, y)

The new `Classifier` starts its own history, schedule and optimizer state. Give it the normalisation that the weights
were trained with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from ..backend import Array, to_numpy
from ..errors import ArgumentError
from ..layers import AuxiliaryHead, Conv2d, Dense, Layer
from ..layers.base import layer_arguments

__all__ = ["load_pretrained", "new_head"]

Head: TypeAlias = "tuple[str, Dense | Conv2d]"


def new_head(net: Layer, classes: int) -> str:
    """Let a network tell other classes apart: put a new layer in the place of the last dense layer or convolution.

    It has the arguments of the old one but for the number of outputs. That of every auxiliary head is replaced too.
    The next `net.build` (which `Classifier.fit` calls) makes the new parameters from its seed and keeps all others. For
    a head of another kind there is `net.replace(path, layer)`.

    Args:
        net: a network, built or not. It is changed.
        classes: number of outputs.

    Returns:
        The path of the new head, "fc" for example, to give it a learning rate of its own.

    Raises:
        ArgumentError: if the network has no dense layer and no convolution.
    """
    heads = list(_heads(net))
    for path, old in heads:
        size = "out_features" if isinstance(old, Dense) else "out_channels"
        net.replace(path, type(old)(**layer_arguments(old) | {size: classes}))
    return heads[0][0]


def _heads(net: Layer) -> Iterator[Head]:
    """Yield (path, layer) of the layer that makes the scores of the classes, then those in auxiliary heads."""
    sides = [list(layer.head.walk(path)) for path, layer in net.walk() if isinstance(layer, AuxiliaryHead)]
    aside = {id(layer) for side in sides for _, layer in side}
    for part in ([(path, layer) for path, layer in net.walk() if id(layer) not in aside], *sides):
        scoring = [(path, layer) for path, layer in part if isinstance(layer, (Dense, Conv2d))]
        if not scoring:
            raise ArgumentError(
                "a head is the last Dense or Conv2d of a network, and there is none. "
                "Put one in by name: net.replace(path, Dense(classes))."
            )
        yield scoring[-1]


def load_pretrained(net: Layer, state: Mapping[str, Array]) -> list[str]:
    """Load weights that may have been trained for another number of classes: then all but those of the head.

    Args:
        net: a built network.
        state: arrays by name, as for `net.load_state_dict`; a `module.` before all names is dropped.

    Returns:
        The names of the parameters that were left as they were, since the head has another number of outputs.

    Raises:
        StateDictError: if anything else does not fit.
    """
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): array for name, array in state.items()}
    own = net.state_dict()
    names = [f"{path}.{name}" for path, _ in _heads(net) for name in ("weight", "bias")]
    left = [name for name in names if name in own and name in state and _other_classes(state[name], own[name])]
    net.load_state_dict({**state, **{name: to_numpy(own[name]) for name in left}})
    return left


def _other_classes(given: Array, own: Array) -> bool:
    return bool(given.ndim == own.ndim and given.shape[0] != own.shape[0] and given.shape[1:] == own.shape[1:])
