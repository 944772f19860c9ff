"""SimpleConvNet on MNIST: the smallest network that shows everything, with its gradients checked.

    python examples/simple_convnet.py

The network is the one of many lecture notes, from the textbook "Deep Learning from Scratch" (Koki Saitoh):

    image -> convolution 5x5, 30 filters -> ReLU -> max pooling 2x2 -> dense 100 -> ReLU -> dense 10 -> softmax

Four things happen here:

1. **Is back-propagation right?** Every parameter's gradient is compared with (f(w + eps) - f(w - eps)) / (2 eps).
   The two must agree to about six digits. If you write a layer of your own, this is the first thing to do with it.
2. **Filters before training** are noise: see filters_before.png.
3. **Training** with Adam: the loss falls, the accuracy on digits never seen rises. Each time a digit is shown it is
   turned, moved and slanted a little (`--plain` leaves that out), so that 9,000 digits go a longer way; the learning
   rate goes down to zero along a cosine; and labels are smoothed, so that no digit is learned by heart.
4. **Filters after training** have become detectors of edges and strokes: see filters_after.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from xpcnn import Adam, Classifier, Conv2d, Dense, Flatten, MaxPool2d, ReLU, Sequential, load
from xpcnn.data import RandomAffine, open_dataset
from xpcnn.init import Normal
from xpcnn.inspection import gradcheck, plot_filters
from xpcnn.schedule import Cosine


def network(classes: int = 10) -> Sequential:
    """Return the network; all weights start as small Gaussian noise, N(0, 0.01)."""
    noise = Normal(0.01)
    return Sequential(
        Conv2d(30, 5, init=noise),  # (1, 28, 28) -> (30, 24, 24)
        ReLU(),
        MaxPool2d(2),  # -> (30, 12, 12)
        Flatten(),  # -> (4320,)
        Dense(100, init=noise),
        ReLU(),
        Dense(classes, init=noise),  # the softmax is part of the loss
    )


def main(arguments: list[str] | None = None) -> float:
    """Check, train, draw; return the test accuracy."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", metavar="FILE.npz", default="mnist", help="other images than the embedded digits")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--plain", action="store_true", help="show every digit as it is")
    parser.add_argument("--limit", type=int, help="train on that many images only")
    parser.add_argument("--device", default="auto", help="cpu, cuda:0, ... or auto")
    parser.add_argument("--out", type=Path, default=Path("runs/simple_convnet"), help="folder for pictures and weights")
    options = parser.parse_args(arguments)
    train, test = open_dataset(options.data, limit=options.limit)

    # 1. the gradient check, in double precision: every parameter, and the images themselves. The images are noise: in
    # the black margin of a digit every convolution gives exactly 0, where ReLU has a kink and no derivative
    noise = np.random.default_rng(0).random((4, *train.shape))
    report = gradcheck(network(), noise, np.arange(4), elements=1000)
    print(report)
    if not report.passed:
        raise SystemExit("a gradient is wrong: training would be pointless")

    # 2. the filters before training
    net = network()
    net.build(train.shape, seed=0)
    plot_filters(net, path=options.out / "filters_before.png", title="First layer before training")

    # 3. training
    classifier = Classifier(
        net,
        classes=train.classes,
        optimizer=Adam(3e-3),
        schedule=Cosine(),
        label_smoothing=0.1,
        device=options.device,
        seed=0,
    )
    augment = None if options.plain else RandomAffine(10, translate=0.06, scale=(0.9, 1.1), shear=8)
    classifier.fit(
        train, epochs=options.epochs, batch_size=options.batch_size, validation=test, augment=augment, workers=1
    )
    accuracy = classifier.evaluate(test).accuracy

    # 4. the filters after training; and the parameters, saved and loaded again
    plot_filters(net, path=options.out / "filters_after.png", title="First layer after training")
    classifier.save(options.out / "model.safetensors")
    again = load(options.out / "model.safetensors", options.device).evaluate(test).accuracy

    print(f"\nlargest error of a gradient: {report.worst.error:.1e} ({report.worst.name})")
    print(f"test accuracy: {accuracy:.2%} on {len(test)} images; after saving and loading: {again:.2%}")
    print("the lecture gives no figure of its own")
    print(f"pictures and parameters: {options.out}")
    return accuracy


if __name__ == "__main__":
    main()
