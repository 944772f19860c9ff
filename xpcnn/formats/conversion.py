"""From one file format to another."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..errors import ArgumentError, FileFormatError

__all__ = ["convert"]


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    key: str | None = None,
    strip_prefix: str = "",
    input_shape: tuple[int, int, int] | None = None,
) -> list[str]:
    """Read one file and write another; the suffixes say the formats.

    A model that xpcnn saved stays one in .safetensors and .json, becomes a network in .onnx, and its weights alone
    elsewhere. An .onnx file becomes a model, or its weights alone. Of any other file the weights are taken; .onnx needs
    more than those.

    Args:
        source: .safetensors, .json, .pth, .pt, .th, .bin, .h5, .hdf5, .keras or .onnx.
        target: .safetensors, .json, .pth, .pt, .th, .bin or .onnx. A file of that name is replaced.
        key: which state dict of a torch file that has several.
        strip_prefix: what to take off the front of the names of weights, such as "module.".
        input_shape: (C, H, W) for an .onnx file that leaves them open.

    Returns:
        Lines that say what was written, and what the format cannot hold.

    Raises:
        ArgumentError: for other suffixes, or a source that lacks what the target needs.
        FileFormatError: for a source that cannot be read.
    """
    # the package imports this module
    from . import FORMATS, TORCH, WEIGHTS, pth, read, read_weights, write, write_weights

    known = {"source": [*WEIGHTS, ".onnx"], "target": [*FORMATS, *TORCH, ".onnx"]}
    first, second = (Path(path).suffix.lower() for path in (source, target))
    for what, path, suffix in (("source", source, first), ("target", target, second)):
        if suffix not in known[what]:
            raise ArgumentError(f'the {what} "{os.fspath(path)}" should end in one of {", ".join(known[what])}.')
    if Path(target).exists() and Path(source).samefile(target):
        raise ArgumentError(f"source and target are the same file, {os.fspath(source)}.")
    if second == ".onnx":
        return _to_onnx(source, target)
    if first == ".onnx":
        return _from_onnx(source, target, second in FORMATS, input_shape)
    if WEIGHTS[first] is not pth and key is not None:
        raise ArgumentError("key is for torch files, which may hold several state dicts.")
    if first in FORMATS and second in FORMATS and not strip_prefix:
        try:
            meta, tensors = read(source)
        except FileFormatError:  # weights alone, or broken: then read_weights says so
            meta = {}
        if "architecture" in meta:
            write(target, meta, tensors)
            return [f"a model of {_count(tensors)}"]
    tensors = _stripped(read_weights(source, key), strip_prefix)
    write_weights(target, tensors)
    return [f"weights: {_count(tensors)}"]


def _count(tensors: Mapping[str, np.ndarray]) -> str:
    return f"{sum(array.size for array in tensors.values()):,} numbers in {len(tensors)} arrays"


def _stripped(tensors: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    if prefix and not any(name.startswith(prefix) for name in tensors):
        raise ArgumentError(f"no name begins with {prefix!r}; they are {', '.join([*tensors][:5])}, ...")
    stripped = {name.removeprefix(prefix): array for name, array in tensors.items()}
    if len(stripped) < len(tensors):
        raise ArgumentError(f"without {prefix!r} two arrays would have one name.")
    return stripped


def _to_onnx(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> list[str]:
    from ..training import load
    from . import FORMATS, onnx

    if Path(source).suffix.lower() not in FORMATS:
        raise ArgumentError(
            f".onnx needs the network, and {os.fspath(source)} has weights alone. Load them into a network and save "
            "that: xpcnn.formats.onnx.save(net, path, input_shape)."
        )
    classifier = load(source, "cpu")
    assert classifier.input_shape is not None
    onnx.save(classifier.net, target, classifier.input_shape)
    lines = [f"a network of {_count(classifier.net.state_dict())}, for images of {classifier.input_shape}"]
    if classifier.mean is not None:
        lines.append(f"not in it: pixels are to be normalised, by mean {classifier.mean} and std {classifier.std}")
    return [*lines, f"not in it: the classes {', '.join(classifier.classes_ or [])}"]


def _from_onnx(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    whole: bool,
    input_shape: tuple[int, int, int] | None,
) -> list[str]:
    from ..training import Classifier
    from . import onnx, write_weights

    net = onnx.load(source, logits=whole)
    if not whole:
        write_weights(target, net.state_dict())
        return [f"weights: {_count(net.state_dict())}"]
    shape = input_shape or net.input_shape
    if shape is None:
        raise ArgumentError(f"{os.fspath(source)} does not say the size of its images: give the input shape (C, H, W).")
    (classes,) = net.build(shape)
    classifier = Classifier(net, classes, device="cpu")
    classifier.build(shape)
    classifier.save(target)
    return [f"a model of {_count(net.state_dict())}", "its classes are called 0, 1, ...: an .onnx file has no names"]
