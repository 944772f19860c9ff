"""Grading Alzheimer's disease from brain MRI: a small CNN on grey images of 200x200, in four classes.

    python examples/mri.py FOLDER_OR_ZIP                      # the whole folder, a quarter held out, 20 epochs
    python examples/mri.py FOLDER_OR_ZIP --limit 256          # 192 training images, as in the slides

FOLDER holds one sub-folder of images per class (NonDemented, VeryMildDemented, MildDemented, ModerateDemented), such as
the training folder of "Alzheimer's Dataset (4 class of images)". A .zip of such a folder will do too.

**Read the accuracy with care.** The images are slices of the same heads, and a random split puts neighbouring slices,
which look almost alike, on both sides. A network that merely remembers heads scores well on such a split. What a
doctor would want to know, how it does on patients it has never seen, this figure does not say.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import zipfile
from pathlib import Path

from xpcnn import Adam, Classifier, Conv2d, Dense, Dropout, Flatten, MaxPool2d, ReLU, Sequential
from xpcnn.data import ImageFolder, split
from xpcnn.inspection import summary

LEAK = "(neighbouring slices of one head are on both sides of a random split, which flatters this figure)"


def network(classes: int = 4) -> Sequential:
    """Return the network of the slides: three convolutions that see ever more of the image, then two dense layers."""
    return Sequential(
        Conv2d(8, 3, padding="same"),  # (1, 200, 200) -> (8, 200, 200)
        ReLU(),
        MaxPool2d(2),  # -> (8, 100, 100)
        Conv2d(12, 3, padding="same"),
        ReLU(),
        MaxPool2d(2),  # -> (12, 50, 50)
        Conv2d(16, 3, padding="same"),
        ReLU(),
        MaxPool2d(2),  # -> (16, 25, 25)
        Flatten(),  # -> (10000,)
        Dense(512),
        ReLU(),
        Dropout(0.25),
        Dense(classes),
    )


def image_folder(path: Path, scratch: Path) -> Path:
    """Return the folder that holds the classes: in `path`, or in the zip at `path`, unpacked into `scratch`."""
    if path.is_file():
        with zipfile.ZipFile(path) as archive:
            archive.extractall(scratch)
        path = scratch
    while len(inside := [entry for entry in path.iterdir() if not entry.name.startswith((".", "__"))]) == 1:
        path = inside[0]
    return path


def main(arguments: list[str] | None = None) -> float:
    """Train; return the accuracy on the images held out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, metavar="FOLDER_OR_ZIP", help="one sub-folder of images per class")
    parser.add_argument("--size", type=int, default=200, help="images are brought to SIZE x SIZE pixels")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of Adam")
    parser.add_argument("--limit", type=int, help="use that many images only, training and held out together")
    parser.add_argument("--device", default="auto", help="cpu, cuda:0, ... or auto")
    parser.add_argument("--out", type=Path, help="save the model to this file (.safetensors or .json)")
    options = parser.parse_args(arguments)

    with tempfile.TemporaryDirectory() as scratch:
        folder = image_folder(options.data, Path(scratch))
        images = ImageFolder(folder, size=(options.size, options.size), mode="L", limit=options.limit)
        return train(images, options)


def train(images: ImageFolder, options: argparse.Namespace) -> float:
    """Train on three quarters of the images and judge by the rest."""
    training, held_out = split(images, 0.25, seed=0)
    net = network(len(images.classes))
    print(summary(net, images.shape))
    print(f"{len(images):,} images in {len(images.classes)} classes: {', '.join(images.classes)}")
    print(f"{len(training):,} training samples, {len(held_out):,} validation samples")
    print(f"{-(-len(training) // options.batch_size)} batches of {options.batch_size} in an epoch\n")

    classifier = Classifier(net, classes=images.classes, optimizer=Adam(options.lr), device=options.device, seed=0)
    started = time.perf_counter()
    history = classifier.fit(training, epochs=options.epochs, batch_size=options.batch_size, validation=held_out)
    seconds = time.perf_counter() - started
    report = classifier.evaluate(held_out)
    print(report)
    if options.out is not None:
        classifier.save(options.out)

    print("\nthe slides: 290 s an epoch of 192 images; 28 to 44 % of the validation images right")
    print(
        f"here:       {min(history['seconds']):.2f} s an epoch of {len(training):,} images ({seconds:.0f} s in all); "
        f"{report.accuracy:.2%} right"
    )
    print(f"            {LEAK}")
    return report.accuracy


if __name__ == "__main__":
    main()
