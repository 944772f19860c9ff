"""The first example of Keras, on MNIST, with very little data: 1,000 images to learn from, 1,000 to be judged by.

    python examples/keras_style.py
    python examples/keras_style.py --augment         # the same, with the digits turned, moved and slanted a little

A notebook called Kerasy rebuilt Keras in NumPy to see how it works, with `Sequential`, `compile` and `fit`, and trained
this network with a loop over pixels: 1,010 to 1,440 seconds an epoch, 92.3 % after 20 epochs. Here are the same names
as layers, and what differs:

    Keras                                   here
    model.add(Conv2D(32, (3, 3)))           Conv2d(32, 3)
    activation="relu"                       ReLU() as a layer of its own
    Dropout(0.25): part that is dropped     Dropout(0.25)
    compile(optimizer="adagrad", loss=...)  Classifier(net, optimizer=Adagrad(0.01)); softmax and cross-entropy are one
    one-hot labels                          class numbers
    model.fit(x, y, validation_data=...)    classifier.fit((x, y), validation=...)
"""

from __future__ import annotations

import argparse
import time

from xpcnn import Adagrad, Classifier, Conv2d, Dense, Dropout, Flatten, MaxPool2d, ReLU, Sequential
from xpcnn.data import RandomAffine, open_dataset
from xpcnn.inspection import summary

THEIRS_SECONDS = (1010, 1440)  # an epoch


def network(classes: int = 10) -> Sequential:
    """Return the network: 1,199,882 parameters, of which 1,179,776 are in one dense layer.

    They start as Keras starts them: uniform in Glorot's range, biases at zero.
    """
    glorot = "xavier_uniform"
    return Sequential(
        Conv2d(32, 3, init=glorot),  # (1, 28, 28) -> (32, 26, 26)
        ReLU(),
        Conv2d(64, 3, init=glorot),  # -> (64, 24, 24)
        ReLU(),
        MaxPool2d(2),  # -> (64, 12, 12)
        Dropout(0.25),
        Flatten(),  # -> (9216,)
        Dense(128, init=glorot),
        ReLU(),
        Dropout(0.5),
        Dense(classes, init=glorot),
    )


def main(arguments: list[str] | None = None) -> float:
    """Train; return the test accuracy."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", metavar="FILE.npz", default="mnist", help="other images than the embedded digits")
    parser.add_argument("--augment", action="store_true", help="turn, move and slant the training digits a little")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument(
        "--limit", type=int, default=1000, help="train on so many images; and test, if there is no test part"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda:0, ... or auto")
    options = parser.parse_args(arguments)
    train, test = open_dataset(options.data, limit=options.limit)

    net = network(len(train.classes))
    print(summary(net, train.shape))
    print(f"{len(train):,} training images, {len(test):,} test images, batches of {options.batch_size}\n")

    augment = RandomAffine(10, translate=0.06, scale=(0.9, 1.1), shear=8) if options.augment else None
    classifier = Classifier(net, classes=train.classes, optimizer=Adagrad(0.01), device=options.device, seed=0)
    started = time.perf_counter()
    history = classifier.fit(
        train, epochs=options.epochs, batch_size=options.batch_size, validation=test, augment=augment
    )
    seconds = time.perf_counter() - started
    report = classifier.evaluate(test)
    print(report)

    low, high = THEIRS_SECONDS
    print(f"\nthe notebook: {low:,} to {high:,} s an epoch, 92.3 % of 1,000 images after 20 epochs (best: 92.7 %)")
    print(
        f"here:         {seconds / options.epochs:.2f} s an epoch, {report.accuracy:.1%} of {len(test):,} images after "
        f"{options.epochs} epochs (best: {max(history['val_accuracy']):.1%}); {seconds:.0f} s in all"
    )
    return report.accuracy


if __name__ == "__main__":
    main()
