"""Famous networks side by side on CIFAR-10: ten classes, 32x32 pixels, from AlexNet (2012) to DenseNet (2016).

    python examples/zoo_cifar10.py FOLDER_OR_NPZ --nets alexnet,vgg16_bn,googlenet --epochs 10 --augment
    python examples/zoo_cifar10.py FOLDER_OR_NPZ --nets resnet20 --weights FILE --epochs 0     # only judge
    python examples/zoo_cifar10.py FOLDER_OR_NPZ --nets resnet20 --weights FILE --head-only    # train a new last layer

FOLDER_OR_NPZ is the folder of CIFAR-10's binary version, or an .npz file with x_train (N, 32, 32, 3), y_train, x_test
and y_test. A network leaves NAME.json and NAME.safetensors in the folder --out, and the tables and curves are made from
all .json files there: networks may be trained one by one, and one that is trained again replaces its old row. Needs
matplotlib: pip install "xpcnn[viz]".

What to look for. AlexNet has most of its weights in dense layers. VGG replaces large kernels by stacks of 3x3.
GoogLeNet and Inception v3 look with kernels of several sizes at once, and average over the map where others have dense
layers. ResNet adds the input of a block to its output, and so 152 layers still learn. DenseNet hands the output of
every layer to all later ones. The table shows that fewer parameters mean neither fewer multiplications (MACs) nor less
time.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from xpcnn import SGD, ArrayDataset, BatchNorm2d, Classifier, Layer, load_pretrained, new_head, threads, zoo
from xpcnn.data import Compose, Dataset, RandomCrop, RandomHorizontalFlip, open_dataset, split
from xpcnn.formats import read_weights
from xpcnn.schedule import OneCycle

NETS = "alexnet,vgg16_bn,googlenet,inception_v3,resnet152,densenet121"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
# Mean and standard deviation of red, green and blue that published weights expect; as good as any for fresh ones.
NORMALIZE = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def images(source: Path, limit: int | None, test_limit: int | None) -> tuple[Dataset, Dataset]:
    """Return (train, test), or that many images of each."""
    if source.suffix == ".npz":
        with np.load(source) as arrays:
            x, y = ([arrays[f"{kind}_{part}"] for part in ("train", "test")] for kind in "xy")
        # Such files have the colours last, xpcnn has them first.
        pairs = zip(x, y, strict=True)
        train, test = (ArrayDataset(x.transpose(0, 3, 1, 2).copy(), y, CLASSES) for x, y in pairs)
    else:
        train, test = open_dataset(source)
    return part(train, limit), part(test, test_limit)


def part(dataset: Dataset, limit: int | None) -> Dataset:
    """Return at most `limit` images, with the same part of each class."""
    if limit is None or limit >= len(dataset):
        return dataset
    return split(dataset, limit / len(dataset))[1]


def network(name: str, stem: str, weights: Path | None, head_only: bool) -> Layer:
    """Return a network of the zoo with fresh weights or those of a file."""
    net = zoo.build(name, classes=len(CLASSES), stem=stem)
    if weights is not None:
        net.build((3, 32, 32))
        load_pretrained(net, read_weights(weights))  # all but a head for other classes
        if head_only:
            net.freeze()
            new_head(net, len(CLASSES))  # what is new is not frozen
    return net


def train_and_judge(name: str, train: Dataset, test: Dataset, options: argparse.Namespace) -> dict[str, Any]:
    """Train one network and return everything the report says about it."""
    net = network(name, options.stem, options.weights, options.head_only)
    normed = any(isinstance(layer, BatchNorm2d) for _, layer in net.leaves())
    lr = options.lr or (0.1 if normed else 0.05)  # batch norm bears larger steps
    classifier = Classifier(
        net,
        classes=CLASSES,
        optimizer=SGD(lr, momentum=0.9, weight_decay=5e-4),
        schedule=OneCycle(),
        normalize=NORMALIZE,
        device=options.device,
        seed=options.seed,
    )
    classifier.build(train.shape)
    costs = classifier.summary()
    print(
        f"\n{name}: {costs.parameters:,} parameters ({costs.trainable:,} trained), {costs.macs:,} MACs an image\n"
        f"{'weights from ' + options.weights.name if options.weights else 'trained from scratch'} on {net.device}, "
        f"{threads()} threads, {len(train):,} training and {len(test):,} test images\n"
        f"epochs = {options.epochs}, batch size = {options.batch_size}, highest learning rate = {lr}\n"
        f"SGD, momentum 0.9, weight decay 0.0005, one-cycle schedule, "
        f"{'random crops and flips' if options.augment else 'no augmentation'}, seed {options.seed}"
    )
    if options.epochs:
        augment = Compose([RandomCrop(32, padding=4), RandomHorizontalFlip()]) if options.augment else None
        classifier.fit(
            train,
            epochs=options.epochs,
            batch_size=options.batch_size,
            validation=test,
            augment=augment,
            checkpoint=options.out / "checkpoints" / name if options.resume else None,
        )
        print(f"total time: {sum(classifier.history['seconds']):.0f} s")
        classifier.save(options.out / f"{name}.safetensors")
    reports = classifier.evaluate(train), classifier.evaluate(test)
    return {
        "net": name,
        "year": zoo.entry(name).year,
        "parameters": costs.parameters,
        "macs": costs.macs,
        "history": classifier.history,
        "train": reports[0].to_dict(),
        "test": reports[1].to_dict(),
    }


def tables(results: list[dict[str, Any]]) -> str:
    """Return the comparison of the networks and their accuracy in each class, as Markdown."""
    lines = ["| net | year | parameters | MACs an image | epochs x images | train | test | time |"]
    lines += ["|---|" + "---:|" * 7]
    for r in results:
        history, train, test = r["history"], r["train"], r["test"]
        lines.append(
            f"| {r['net']} | {r['year']} | {r['parameters']:,} | {r['macs']:,} "
            f"| {len(history['epoch'])} x {train['count']:,} | {train['accuracy']:.2%} "
            f"| {test['accuracy']:.2%} of {test['count']:,} | {sum(history['seconds']):.0f} s |"
        )
    lines += ["", "Accuracy per class, train / test:", ""]
    lines += ["| class | " + " | ".join(r["net"] for r in results) + " |", "|---|" + "---:|" * len(results)]
    for k, name in enumerate(CLASSES):
        pairs = ([r[part]["per_class"][k]["accuracy"] for part in ("train", "test")] for r in results)
        lines.append(f"| {name} | " + " | ".join(f"{train:.1%} / {test:.1%}" for train, test in pairs) + " |")
    return "\n".join(lines)


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Draw loss and accuracy of all networks against the epoch: training dashed, validation solid."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for number, result in enumerate(results):
            history, colour = result["history"], f"C{number}"
            axes.plot(history["epoch"], history[f"val_{name}"], colour, label=result["net"], marker="o", markersize=3)
            axes.plot(history["epoch"], history[name], colour, linestyle="--", linewidth=1)
        axes.set(xlabel="epoch", ylabel=f"{name} (dashed: training)")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if name == "loss":  # after a few steps, validation by young running statistics may be far off
            axes.set_ylim(0.0, 1.5 * max((max(r["history"]["loss"], default=1.0) for r in results), default=1.0))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=90)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train the networks and write the report; return the test accuracy of each network in it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, metavar="FOLDER_OR_NPZ", help="CIFAR-10, as described above")
    parser.add_argument("--nets", default=NETS, help=f"names in the zoo, with commas; default: {NETS}")
    parser.add_argument("--epochs", type=int, default=30, help="0 only judges the weights")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, help="highest learning rate; default: 0.1 with batch norm, else 0.05")
    parser.add_argument("--limit", type=int, help="train on that many images only")
    parser.add_argument("--test-limit", type=int, help="judge by that many test images only")
    parser.add_argument("--stem", choices=["cifar", "imagenet"], default="cifar", help="how the networks begin")
    parser.add_argument("--augment", action="store_true", help="move training images up to 4 pixels, mirror half")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="start from these: .safetensors, .pth, .th, ...")
    parser.add_argument("--head-only", action="store_true", help="with --weights: train a new last layer and no other")
    parser.add_argument("--resume", action="store_true", help="write checkpoints, and go on from those that are there")
    parser.add_argument("--device", default="auto", help="cpu, cuda:0, ... or auto")
    parser.add_argument("--out", type=Path, default=Path("runs/zoo_cifar10"), metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    nets = options.nets.split(",")
    if options.weights and len(nets) > 1:
        parser.error("--weights are those of one network: name it with --nets")
    if options.head_only and not options.weights:
        parser.error("--head-only needs --weights")
    if min(options.limit or 10, options.test_limit or 10) < 10:
        parser.error("--limit and --test-limit must leave at least 10 images, one of each class")

    train, test = images(options.data, options.limit, options.test_limit)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in nets:
        result = train_and_judge(name, train, test, options)
        (options.out / f"{name}.json").write_text(json.dumps(result))

    results = [json.loads(path.read_text()) for path in options.out.glob("*.json")]
    results.sort(key=lambda result: (result["year"], result["net"]))
    report = tables(results)
    (options.out / "report.md").write_text(f"{report}\n")
    print(f"\n{report}")
    if trained := [result for result in results if result["history"]["epoch"]]:
        draw(trained, options.out / "curves.png")
    return {result["net"]: result["test"]["accuracy"] for result in results}


if __name__ == "__main__":
    main()
