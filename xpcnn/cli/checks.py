"""`xpcnn summary`, `gradcheck`, `crosscheck`, `profile`, `bench` and `doctor`: networks and machines looked into."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import numpy as np
import typer

from .. import inspection
from ..backend import Device, generator
from ..layers import Layer
from .common import (
    AsJson,
    BatchSize,
    Classes,
    DeviceName,
    Input,
    ModelOrName,
    OptimizerName,
    Seed,
    Stem,
    make_optimizer,
    network,
    show,
)


def _random_batch(net: Layer, shape: tuple[int, ...], batch: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random images in [0, 1) and random labels for a network that ends in K scores."""
    rng = generator(seed, "random batch")
    x = rng.random((batch, *shape))
    return x, rng.integers(0, net(x[:1]).shape[1], batch)


def summary(
    model: ModelOrName,
    input: Input = None,
    classes: Classes = None,
    stem: Stem = None,
    batch_size: BatchSize = 32,
    optimizer: Annotated[OptimizerName, typer.Option(help="Whose memory counts.")] = OptimizerName.adam,
    momentum: Annotated[float, typer.Option(help="For sgd and rmsprop.")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Print layers, shapes, parameters, multiplications and the memory that training takes."""
    net, shape = network(model, classes, input, stem, 0)
    found = inspection.summary(net, shape, batch_size, make_optimizer(optimizer, None, momentum, 0.0))
    show(json.dumps(asdict(found), indent=2) if as_json else found)


def gradcheck(
    model: ModelOrName,
    input: Input = None,
    classes: Classes = None,
    stem: Stem = None,
    batch_size: BatchSize = 2,
    seed: Seed = 0,
) -> int:
    """Compare every gradient with finite differences in float64, on random images.

    Ends with exit code 1 if a gradient is wrong.
    """
    net, shape = network(model, classes, input, stem, seed)
    report = inspection.gradcheck(net, *_random_batch(net, shape, batch_size, seed), seed=seed)
    show(report)
    return 0 if report.passed else 1


def crosscheck(
    model: ModelOrName,
    input: Input = None,
    classes: Classes = None,
    stem: Stem = None,
    batch_size: BatchSize = 4,
    device: Annotated[str, typer.Option("--device", help="What to compare with the CPU.")] = "cuda:0",
    seed: Seed = 0,
) -> int:
    """Run a model forward and backward on NumPy and on CuPy and print the largest differences, layer by layer.

    Ends with exit code 1 if something differs by more than rounding, or if there is no GPU.
    """
    Device(device)
    net, shape = network(model, classes, input, stem, seed)
    report = inspection.crosscheck(net, *_random_batch(net, shape, batch_size, seed), device=device, seed=seed)
    show(report)
    return 0 if report.passed else 1


def profile(
    model: ModelOrName,
    input: Input = None,
    classes: Classes = None,
    stem: Stem = None,
    batch_size: BatchSize = 32,
    steps: Annotated[int, typer.Option(min=1, help="Training steps to average over.")] = 5,
    device: DeviceName = "auto",
) -> None:
    """Print how long each layer takes in training, forward and backward, with its multiplications and memory."""
    net, shape = network(model, classes, input, stem, 0)
    show(inspection.profile(net.to(device), shape, batch_size, steps))


def bench(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Parts of workload names.")] = None,
    device: DeviceName = "auto",
    seconds: Annotated[float, typer.Option(min=0.0, help="How long to time each workload.")] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Time fixed workloads on this machine: training steps and predictions of small and deep networks."""
    found = inspection.bench(names or (), device, seconds)
    show(json.dumps(asdict(found), indent=2) if as_json else found)


def doctor(as_json: AsJson = False) -> int:
    """Print versions, BLAS, threads and devices, and try a convolution on each device.

    Ends with exit code 1 if something that should work does not.
    """
    found = inspection.doctor()
    show(json.dumps(found.as_dict(), indent=2) if as_json else found)
    return 0 if found.ok else 1
