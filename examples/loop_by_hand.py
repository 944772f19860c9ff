"""The training loop, written out: what `Classifier.fit` does for you, in a dozen lines.

    python examples/loop_by_hand.py

Everything in it is an array. `forward` returns the scores and `ctx`, a bundle of arrays that `backward` needs; the loss
returns its own gradient; `backward` adds to the gradients of the parameters; the optimizer uses and clears them.
"""

from __future__ import annotations

import argparse
import time

from xpcnn import Adam, Conv2d, Dense, Flatten, MaxPool2d, ReLU, Sequential, batch_last, softmax_cross_entropy
from xpcnn.data import Loader, open_dataset


def network(classes: int = 10) -> Sequential:
    """Return two convolutions and a dense layer; a network is a layer made of layers."""
    return Sequential(
        Conv2d(16, 3),
        ReLU(),
        MaxPool2d(2),
        Conv2d(32, 3),
        ReLU(),
        MaxPool2d(2),
        Flatten(),
        Dense(classes),
    )


def main(arguments: list[str] | None = None) -> float:
    """Train on handwritten digits; return the test accuracy."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", metavar="FILE.npz", help="other images than the embedded MNIST digits")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--limit", type=int, help="train on that many images only")
    parser.add_argument("--device", default="cpu", help="cpu, cuda:0, ... or auto")
    options = parser.parse_args(arguments)

    train, test = open_dataset(options.data or "mnist", limit=options.limit)
    net = network()
    net.build(train.shape, seed=0, device=options.device)
    optimizer = Adam(1e-3)
    batches = Loader(train, batch_size=32, seed=0, device=net.device)

    for epoch in range(1, options.epochs + 1):
        started, total = time.perf_counter(), 0.0
        for x, t in batches:  # x (N, 1, 28, 28), t (N,)
            x = batch_last(x).astype(net.dtype) / 255.0  # inside a network the batch comes last: (1, 28, 28, N)
            logits, ctx = net.forward(x, True)  # logits (10, N)
            loss, dlogits = softmax_cross_entropy(logits, t)  # the loss is an array too: it stays on the device
            net.backward(dlogits, ctx, need_dx=False)  # nobody asks for the gradient of the images
            optimizer.step(net)  # one update, then the gradients are zero again
            total = total + loss * len(t)
        loss, seconds = float(total) / len(train), time.perf_counter() - started  # float() waits for the device
        print(f"epoch {epoch}: mean loss {loss:.4f}, {seconds:.1f} s")

    right = 0
    for x, t in Loader(test, batch_size=100, shuffle=False, device=net.device):
        scores = net(x.astype(net.dtype) / 255.0)  # calling a network is inference: (N, 10)
        right += int((scores.argmax(axis=1) == t).sum())
    print(f"{right} of {len(test)} test images are right: {right / len(test):.2%}")
    return right / len(test)


if __name__ == "__main__":
    main()
