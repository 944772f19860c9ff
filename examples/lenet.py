"""LeNet on MNIST, as an article rebuilt it with NumPy alone, with its family of poolings.

    python examples/lenet.py                   # max pooling
    python examples/lenet.py --pool 2          # pooling by the 2-norm
    python examples/lenet.py --pool 1          # average pooling

The article's network is the one of Caffe and Chainer: two convolutions 5x5 with 20 and 50 filters, each followed by
pooling 2x2, then 500 neurons and 10 classes. Its training is plain stochastic gradient descent, five images at a time:

    w <- w - lr * (gradient + 0.0001 * w),    lr = 0.005 * 0.9 ** epoch

**Pooling by the P-norm**: u = (mean of z ** P) ** (1 / P) over the four pixels of a window. P = 1 is the average; the
larger P, the more the largest pixel counts, and in the limit u is the maximum. The gradient goes to the pixels in
proportion to (z / u) ** (P - 1): evenly for P = 1, to the largest pixel alone in the limit.

The article leaves open how weights start and what the images go through first. Here weights start by He's rule, pixels
are brought to mean 0 and deviation 1, and each time a digit is shown it is turned, moved and slanted a little
(`--plain` leaves that out): with no more than 10,000 digits this is worth more than anything done to the network.
"""

from __future__ import annotations

import argparse
import math
import time

from xpcnn import SGD, Classifier, Conv2d, Dense, Dropout, Flatten, Layer, LpPool2d, MaxPool2d, ReLU, Sequential
from xpcnn.data import RandomAffine, open_dataset
from xpcnn.schedule import Exponential

THEIRS = "loss 0.104 at the end of training, 96 % of 100 test images"


def network(classes: int = 10, p: float = math.inf) -> Sequential:
    """Return the network with pooling by the P-norm; `p = math.inf` is max pooling."""

    def pooling() -> Layer:
        return MaxPool2d(2) if p == math.inf else LpPool2d(2, p=p, mean=True)

    return Sequential(
        Conv2d(20, 5, init="he_normal"),  # (1, 28, 28) -> (20, 24, 24)
        ReLU(),
        pooling(),  # -> (20, 12, 12)
        Conv2d(50, 5, init="he_normal"),  # -> (50, 8, 8)
        ReLU(),
        pooling(),  # -> (50, 4, 4)
        Flatten(),  # -> (800,)
        Dense(500, init="he_normal"),
        ReLU(),
        Dropout(0.5),
        Dense(classes, init="he_normal"),
    )


def main(arguments: list[str] | None = None) -> float:
    """Train; return the test accuracy."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", metavar="FILE.npz", default="mnist", help="other images than the embedded digits")
    parser.add_argument("--pool", type=float, default=math.inf, metavar="P", help="norm of the pooling; inf is max")
    parser.add_argument("--plain", action="store_true", help="show every digit as it is")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=5)
    parser.add_argument("--limit", type=int, help="train on that many images only")
    parser.add_argument("--device", default="auto", help="cpu, cuda:0, ... or auto")
    options = parser.parse_args(arguments)
    train, test = open_dataset(options.data, limit=options.limit)

    classifier = Classifier(
        network(len(train.classes), options.pool),
        classes=train.classes,
        optimizer=SGD(0.005, weight_decay=1e-4),
        schedule=Exponential(0.9),
        normalize="data",
        device=options.device,
        seed=0,
    )
    started = time.perf_counter()
    history = classifier.fit(
        train,
        epochs=options.epochs,
        batch_size=options.batch_size,
        validation=test,
        augment=None if options.plain else RandomAffine(10, translate=0.06, scale=(0.9, 1.1), shear=8),
        workers=1,
    )
    seconds = time.perf_counter() - started
    report = classifier.evaluate(test)
    print(report)
    print(f"\nthe article: {THEIRS}")
    print(
        f"here:        loss {history['loss'][-1]:.4f} at the end of training, {report.accuracy:.2%} of {len(test):,} "
        f"test images; {options.epochs} epochs of {len(train):,} images in {seconds:.0f} s"
    )
    return report.accuracy


if __name__ == "__main__":
    main()
