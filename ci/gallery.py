"""Draw one picture of a training on MNIST: its curves, digits and what the network looks at in them, its filters."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import xpcnn
from xpcnn.files import atomic_write
from xpcnn.inspection import compare, grad_cam

DIGITS, FILTERS = 10, 20


def main(folder: Path) -> None:
    run = compare([folder]).runs[0]
    classifier = xpcnn.load(folder / "best.safetensors", device="cpu")
    before = xpcnn.zoo.build(run.settings["model"])
    before.build(classifier.input_shape, seed=run.settings["seed"])
    _, test = xpcnn.data.mnist()
    probabilities = classifier.predict_proba(test)
    right = probabilities.argmax(axis=1) == test.labels

    figure = Figure(figsize=(11, 6.9), layout="constrained")
    title = f"{run.settings['model']}: {right.mean():.1%} of {len(test):,} handwritten digits that it has not seen"
    figure.suptitle(f"{title}, after {run.history.epochs} epochs", fontsize=14, weight="bold")
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=(2.4, 2.6, 1.7))
    draw_curves(top, run.history)
    hard = sorted(np.flatnonzero(~right), key=lambda i: -probabilities[i].max())[:2]  # the surest mistakes
    easy = [np.flatnonzero(right & (test.labels == digit))[:1] for digit in range(DIGITS)]
    chosen = np.concatenate([*easy, hard]).astype(int)[-DIGITS:]
    draw_digits(middle, classifier, test, chosen, probabilities)
    draw_filters(bottom, before, classifier.net)
    with atomic_write(folder / "gallery.png") as temporary:
        figure.savefig(temporary, dpi=110)


def draw_curves(figure, history) -> None:
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        axes.plot(history["epoch"], history[name], marker="o", markersize=3, label="training")
        axes.plot(history["epoch"], history[f"val_{name}"], marker="o", markersize=3, label="held out")
        axes.set(xlabel="epoch", ylabel=name)
        axes.grid(alpha=0.3)
        axes.legend()


def draw_digits(figure, classifier, test, chosen, probabilities) -> None:
    images = test.take(chosen)
    heat = grad_cam(classifier, images).maps
    grid = figure.subplots(2, len(chosen))
    for i, (image, warm) in enumerate(zip(images[:, 0], heat, strict=True)):
        row, truth = probabilities[chosen[i]], int(test.labels[chosen[i]])
        guess = int(row.argmax())
        grid[0, i].imshow(image, cmap="gray")
        note = f"{guess}\n{row[guess]:.1%}" if guess == truth else f"{guess}, is {truth}\n{row[guess]:.1%}"
        grid[0, i].set_title(note, fontsize=10, color="black" if guess == truth else "firebrick")
        grid[1, i].imshow(0.6 * image, cmap="gray", vmin=0, vmax=255)
        strength = np.sqrt(warm / (warm.max() or 1.0))
        grid[1, i].imshow(warm, cmap="inferno", alpha=0.85 * strength)
    bare(grid, ["prediction", "Grad-CAM: where\nit looks"])


def draw_filters(figure, *nets) -> None:
    before, after = (net["0"].weight.data[:FILTERS, 0] for net in nets)
    grid = figure.subplots(3, len(after))
    for row, weights in zip(grid, (before, after, after - before), strict=True):
        scale = float(np.abs(weights).max())
        for axes, kernel in zip(row, weights, strict=True):
            axes.imshow(kernel, cmap="gray", vmin=-scale, vmax=scale)
    bare(grid, ["filters before", "and after", "learned"])


def bare(grid, labels) -> None:
    for axes in grid.flat:
        axes.set_xticks([], [])
        axes.set_yticks([], [])
        axes.spines[:].set_visible(False)
    for axes, label in zip(grid[:, 0], labels, strict=True):
        axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=10)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
