"""What is wrong with a data set: broken files, imbalance, duplicates, and splits that leak."""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from ..backend import for_chunks
from ..errors import DataError
from ..files import atomic_write
from .datasets import Dataset, gather, mean_std
from .images import DECODING_WORK, ImageFolder, image_from_file, printable
from .leakage import LEAST, Judgement, clusters, hash_difference, judge, neighbours, small_pictures
from .sources import open_dataset

__all__ = ["DataReport", "Pair", "Part", "inspect"]

IMBALANCE = 10.0  # largest class to smallest from which on it is worth a word
HASH = 0.1  # part of the bits in which difference hashes may differ
SHOWN = 16  # pairs in the report and the picture
TILE = 112  # pixels of an image in the picture
CHUNK = 512  # images at a time


@dataclass(frozen=True)
class Part:
    """One set of images.

    Attributes:
        name: "images", "training" or "held out".
        images: how many there are, broken ones apart.
        classes: class name -> number of images.
        sizes: "HxW" -> number of images.
        modes: Pillow's mode of the file ("L", "RGB", "CMYK", ...), or the dtype of an array -> number of images.
        broken: file -> what is wrong with it.
        mean, std: per channel, in the scale the network sees, over all pixels.
        twins: images of which the set has another one with the same pixels.
        contradictions: such images whose twin has another class.
    """

    name: str
    images: int
    classes: dict[str, int]
    sizes: dict[str, int]
    modes: dict[str, int]
    broken: dict[str, str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    twins: int
    contradictions: int

    @property
    def imbalance(self) -> float:
        """Images of the largest class for each of the smallest; infinite if one is empty."""
        low, high = min(self.classes.values()), max(self.classes.values())
        return high / low if low else float("inf")


@dataclass(frozen=True)
class Pair:
    """Two images too much alike: `distance` is that of their small pictures (0 to 2).

    `kind` is "identical" (the same pixels), "same hash" (more alike than chance explains, and the difference hashes,
    which know nothing of chance, agree in 9 bits of 10) or "similar" (without the second witness).
    """

    first: str
    second: str
    classes: tuple[str, str]
    distance: float
    kind: str


@dataclass(frozen=True)
class DataReport:
    """What `inspect` found; print it, draw the pairs with `picture`, or take `as_dict`.

    Attributes:
        parts: the set, or the training and the held-out part.
        nearest_accuracy: what a nearest neighbour scores on the split; of one set, on all images held out in turn.
        near_share: part of those images with a near-duplicate on the other side.
        honest_accuracy: what it scores if an image is not compared with its cluster; None where nothing leaks.
        leaks: whether the split (of one set: any random split) leaks; the rule is in xpcnn/data/leakage.py.
        across_classes: near-duplicates of different classes, within the first part.
        kinds: kind of pair -> how many there are, across the split or in the one set.
        clusters: (N,) int64: the cluster of near-duplicates of each good image of the first part, in its order, for
            `split(dataset, 0.25, groups=report.clusters)`.
        files: of these images; none if they are arrays.
        pairs: some pairs: those of different classes, then the others from the nearest to the farthest.
        verdict: what it means, in sentences.
    """

    parts: tuple[Part, ...]
    nearest_accuracy: float
    near_share: float
    honest_accuracy: float | None
    leaks: bool
    across_classes: int
    kinds: dict[str, int]
    clusters: np.ndarray
    files: tuple[Path, ...]
    pairs: tuple[Pair, ...]
    verdict: tuple[str, ...]
    _read: Callable[[str], np.ndarray] = field(repr=False, compare=False)

    @property
    def ok(self) -> bool:
        """Whether nothing is broken, contradicts itself or leaks."""
        return not (self.leaks or any(part.broken or part.contradictions for part in self.parts))

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the list of images as plain data, ready for JSON."""
        sizes = np.bincount(self.clusters)
        return {
            "parts": [asdict(part) for part in self.parts],
            "nearest_accuracy": self.nearest_accuracy,
            "near_share": self.near_share,
            "honest_accuracy": self.honest_accuracy,
            "leaks": self.leaks,
            "across_classes": self.across_classes,
            "kinds": self.kinds,
            "clusters": len(sizes),
            "largest_cluster": int(sizes.max()),
            "pairs": [asdict(pair) for pair in self.pairs],
            "verdict": list(self.verdict),
            "ok": self.ok,
        }

    def picture(self, path: str | os.PathLike[str]) -> bool:
        """Draw the pairs side by side, four pairs a row, into an image file; return False if there is none to draw."""
        if not self.pairs:
            return False
        across = min(4, len(self.pairs))
        width, height = 2 * TILE + 16, TILE + 44
        sheet = Image.new("RGB", (across * width + 16, -(-len(self.pairs) // across) * height + 16), "white")
        draw = ImageDraw.Draw(sheet)
        for k, pair in enumerate(self.pairs):
            x, y = 16 + k % across * width, 16 + k // across * height
            for name, label, left in zip((pair.first, pair.second), pair.classes, (x, x + TILE + 2), strict=True):
                sheet.paste(_tile(self._read(name)), (left, y))
                colour = "black" if pair.classes[0] == pair.classes[1] else "red"
                draw.text((left, y + TILE + 2), _short(label), fill=colour)
                draw.text((left, y + TILE + 13), _short(Path(name).name), fill="grey")
            draw.text((x, y + TILE + 24), f"{pair.kind}, {pair.distance:.3f} apart", fill="grey")
        with atomic_write(path) as temporary:
            sheet.save(temporary)
        return True

    def __rich__(self) -> Group:
        table = Table(title="images of each class", title_justify="left", box=None, pad_edge=False)
        table.add_column("class")
        for part in self.parts:
            table.add_column(part.name, justify="right")
        for name in self.parts[0].classes:
            table.add_row(Text(name), *(f"{part.classes.get(name, 0):,}" for part in self.parts))
        lines = [line for part in self.parts for line in _described(part)]
        lines += [f"{pair.kind}: {pair.first} and {pair.second}" for pair in self.pairs[:5]]
        return Group(table, Text(), Text("\n".join([*lines, "", *self.verdict])))

    def __str__(self) -> str:
        out = io.StringIO()
        Console(file=out, width=10_000, color_system=None).print(self)
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def inspect(
    dataset: Dataset | str | os.PathLike[str], against: Dataset | str | os.PathLike[str] | None = None
) -> DataReport:
    """Examine a data set, and the split into it and another one.

    Counts, sizes, modes, broken files, mean and deviation, identical images, near-duplicates across classes and across
    the split, and whether the split leaks: xpcnn/data/leakage.py has the rule, its source and what it misses. 50,000
    colour images of 32x32 take about half a minute of processor time and 0.6 GiB; time grows with the square.

    Args:
        dataset: the training data: a data set, or what `open_dataset` opens. Images of folders are read at their own
            size; broken ones are reported and left out.
        against: the held-out data. If not given, the test part that the source brings; without one the set is judged
            as if each image was held out in turn, which says what a random split would do.

    Raises:
        DataError: if there are fewer than two good images, or one side is grey and the other coloured.
    """
    opened, brought = _opened(dataset)
    held = brought if against is None else _opened(against)[0]
    colour = _mode(opened, held)
    train = _read(opened, "images" if held is None else "training", colour)
    test = None if held is None else _read(held, "held out", colour)
    if test is not None and test.small.shape[1] != train.small.shape[1]:
        raise DataError("one side is grey and the other coloured. Bring both to one mode.")

    own = judge(train.small, train.labels)
    cross = own if test is None else judge(test.small, test.labels, train.small, train.labels)
    twins = _same_pixels(train)
    cluster = clusters(len(train.labels), *np.concatenate([own.links, twins]).T)
    honest = None
    if cross.leaks and test is None:
        honest = _accuracy_outside(train, train, cluster, cluster)
    elif cross.leaks and test is not None:
        nodes = len(train.labels) + len(test.labels)
        links = np.concatenate([own.links, twins, cross.links[:, ::-1] + [0, len(train.labels)]])
        joint = clusters(nodes, *links.T)
        honest = _accuracy_outside(test, train, joint[len(train.labels) :], joint[: len(train.labels)])

    listed = _listed(train, train, own)
    listed_cross = listed if test is None else _listed(test, train, cross)
    across_classes = int(listed.labels_differ().sum())
    counts = Counter(listed_cross.kinds.tolist())
    parts = tuple(_part(pictures) for pictures in (train, test) if pictures is not None)
    reads = {n: partial(p.read, i) for p in (test, train) if p is not None for i, n in enumerate(p.names)}
    return DataReport(
        parts,
        cross.nearest_accuracy,
        cross.near_share,
        honest,
        cross.leaks,
        across_classes,
        {kind: counts[kind] for kind in ("identical", "same hash", "similar")},
        cluster,
        tuple(train.files),
        _chosen(listed, listed_cross),
        tuple(_verdict(parts, cross, honest, across_classes, len(train.labels))),
        lambda name: reads[name](),
    )


# --- reading ----------------------------------------------------------------------------------------------------


@dataclass
class _Pictures:
    """All that is kept of a set of N images."""

    name: str
    classes: list[str]
    names: list[str]
    files: list[Path]
    labels: np.ndarray
    small: np.ndarray
    digests: list[bytes]
    sizes: Counter[str]
    modes: Counter[str]
    broken: dict[str, str]
    mean: np.ndarray
    std: np.ndarray
    read: Callable[[int], np.ndarray]


def _opened(source: Any) -> tuple[Dataset, Dataset | None]:
    if isinstance(source, (str, os.PathLike)):
        return open_dataset(source, size=16)
    return source, None


def _mode(*sets: Dataset | None) -> str:
    """Return "RGB" if a file of the image folders among the sets is coloured, else "L"."""
    files = [file for dataset in sets if isinstance(dataset, ImageFolder) for file in dataset.files]
    return "L" if all(_file_mode(file) in ("1", "L", "LA", "I", "I;16", "F", "") for file in files) else "RGB"


def _file_mode(file: Path) -> str:
    """Return the mode of an image file by its header, "" if it has none."""
    try:
        with Image.open(file) as image:
            return str(image.mode)
    except Exception:  # whatever a broken file leads to; reading it will say what is wrong
        return ""


def _read(dataset: Dataset, name: str, mode: str) -> _Pictures:
    return _read_files(dataset, name, mode) if isinstance(dataset, ImageFolder) else _read_arrays(dataset, name)


def _read_arrays(dataset: Dataset, name: str) -> _Pictures:
    small, digests, modes = [], [], Counter[str]()
    for start in range(0, len(dataset), CHUNK):
        images = gather(dataset, np.arange(start, min(start + CHUNK, len(dataset))))
        small.append(small_pictures(images))
        digests += [_digest(image) for image in images]
        modes[str(images.dtype)] += len(images)
    _, height, width = dataset.shape
    return _Pictures(
        name,
        list(dataset.classes),
        [f"{name} {i}" for i in range(len(dataset))],
        [],
        np.asarray(dataset.labels),
        np.concatenate(small),
        digests,
        Counter({f"{height}x{width}": len(dataset)}),
        modes,
        {},
        *mean_std(dataset),
        lambda i: dataset[i][0],
    )


def _read_files(folder: ImageFolder, name: str, mode: str) -> _Pictures:
    count, channels = len(folder), 3 if mode == "RGB" else 1
    names = [printable(file) for file in folder.files]
    small = np.zeros((count, channels * 256), np.float32)
    sums = np.zeros((3, count, channels))  # of ones, of pixels and of their squares: exact
    digests, shapes, modes, problems = [b""] * count, [""] * count, [""] * count, [""] * count

    def read(k: int) -> None:
        file = folder.files[k]
        try:
            image = image_from_file(file, mode=mode)
        except DataError as error:
            problems[k] = "is empty" if not file.stat().st_size else str(error).partition(": ")[2]
            return
        small[k] = small_pictures(image[None])[0]
        pixels = image.reshape(channels, -1).astype(np.int64)
        sums[0, k], sums[1, k], sums[2, k] = pixels.shape[1], pixels.sum(axis=1), (pixels**2).sum(axis=1)
        digests[k], shapes[k], modes[k] = _digest(image), f"{image.shape[1]}x{image.shape[2]}", _file_mode(file)

    for_chunks(count, count * DECODING_WORK * 10_000, read)  # pixels of a small image
    good = np.flatnonzero(np.array(digests) != b"")
    if len(good) < 2:
        raise DataError(f"{printable(folder.path)}: has {len(good)} good images; at least 2 are needed.")
    pixels, total, squares = sums.sum(axis=1) / [[1.0], [255.0], [255.0**2]]
    mean = total / pixels
    return _Pictures(
        name,
        list(folder.classes),
        [names[i] for i in good],
        [folder.files[i] for i in good],
        folder.labels[good],
        small[good],
        [digests[i] for i in good],
        Counter(shapes[i] for i in good),
        Counter(modes[i] for i in good),
        {names[i]: problem for i, problem in enumerate(problems) if problem},
        mean,
        np.sqrt(np.maximum(squares / pixels - mean**2, 0)),
        lambda i: image_from_file(folder.files[good[i]], mode=mode),
    )


def _digest(image: np.ndarray) -> bytes:
    """Return a hash of shape, type and pixels."""
    described = f"{image.shape} {image.dtype}".encode()
    return hashlib.blake2b(described + image.tobytes(), digest_size=16).digest()


# --- judging ----------------------------------------------------------------------------------------------------


def _same_pixels(pictures: _Pictures) -> np.ndarray:
    """Return pairs (P, 2): each image with the same pixels as an earlier one, after that one."""
    earlier: dict[bytes, int] = {}
    pairs = [(earlier.setdefault(digest, i), i) for i, digest in enumerate(pictures.digests)]
    return np.array([pair for pair in pairs if pair[0] != pair[1]], np.int64).reshape(-1, 2)


def _part(pictures: _Pictures) -> Part:
    pairs = _same_pixels(pictures)
    contradictions = pictures.labels[pairs[:, 0]] != pictures.labels[pairs[:, 1]]
    counts = np.bincount(pictures.labels, minlength=len(pictures.classes)).tolist()
    return Part(
        pictures.name,
        len(pictures.labels),
        dict(zip(pictures.classes, counts, strict=True)),
        dict(pictures.sizes.most_common()),
        dict(pictures.modes.most_common()),
        pictures.broken,
        tuple(pictures.mean.tolist()),
        tuple(pictures.std.tolist()),
        len(pairs),
        int(contradictions.sum()),
    )


def _accuracy_outside(
    pictures: _Pictures, others: _Pictures, groups: np.ndarray, other_groups: np.ndarray
) -> float | None:
    """Return what a nearest neighbour scores that is not of the image's cluster; None if there is nothing else."""
    if len(np.unique(other_groups)) < 2:
        return None
    found = neighbours(pictures.small, others.small, groups=(groups, other_groups))
    return float((others.labels[found.index] == pictures.labels).mean())


@dataclass(frozen=True)
class _Listed:
    """Pairs (P, 2) of an image of `first` and one of `second`, each once; distances (P,) and kinds (P,) of str."""

    first: _Pictures
    second: _Pictures
    pairs: np.ndarray
    distances: np.ndarray
    kinds: np.ndarray

    def labels_differ(self) -> np.ndarray:
        """Return bool (P,)."""
        unlike: np.ndarray = self.first.labels[self.pairs[:, 0]] != self.second.labels[self.pairs[:, 1]]
        return unlike

    def pair(self, k: int) -> Pair:
        """Describe one of them."""
        i, j = self.pairs[k].tolist()
        classes = self.first.classes[self.first.labels[i]], self.second.classes[self.second.labels[j]]
        length = round(float(self.distances[k]), 6)
        return Pair(self.first.names[i], self.second.names[j], classes, length, str(self.kinds[k]))


def _listed(first: _Pictures, second: _Pictures, found: Judgement) -> _Listed:
    pairs, lengths = found.pairs, found.distances
    if first is second:
        once = pairs[:, 0] < pairs[:, 1]
        pairs, lengths = pairs[once], lengths[once]
    difference = [
        hash_difference(first.small[part[:, 0]], second.small[part[:, 1]])
        for part in np.array_split(pairs, max(1, len(pairs) // 10_000))
    ]
    same = np.array([first.digests[i] == second.digests[j] for i, j in pairs.tolist()], bool)
    kinds = np.where(same, "identical", np.where(np.concatenate(difference) <= HASH, "same hash", "similar"))
    return _Listed(first, second, pairs, lengths, kinds)


def _chosen(own: _Listed, cross: _Listed) -> tuple[Pair, ...]:
    """Return some pairs: the nearest of different classes, then others from the nearest to the farthest."""
    odd = []
    for listed in [own] if own is cross else [own, cross]:
        unlike = np.flatnonzero(listed.labels_differ())
        nearest = unlike[np.argsort(listed.distances[unlike], kind="stable")[:SHOWN]]
        odd += [listed.pair(int(k)) for k in nearest]
    usual = np.flatnonzero(~cross.labels_differ())
    usual = usual[np.argsort(cross.distances[usual], kind="stable")]
    odd = sorted(odd, key=lambda pair: pair.distance)[: SHOWN // 2 if len(usual) else SHOWN]
    places = np.unique(np.linspace(0, len(usual) - 1, min(len(usual), SHOWN - len(odd))).astype(int))
    return (*odd, *(cross.pair(int(usual[i])) for i in places))


def _verdict(
    parts: Sequence[Part], cross: Judgement, honest: float | None, across_classes: int, images: int
) -> list[str]:
    split = len(parts) == 2
    said = []
    for part in parts:
        if part.broken:
            said.append(f"{part.name}: {_count(len(part.broken), 'file')} cannot be read.")
        if part.contradictions:
            said.append(f"{part.name}: {_count(part.contradictions, 'image')} with the pixels of one of another class.")
        if part.twins:
            said.append(f"{part.name}: {_count(part.twins, 'image')} with the same pixels as one before.")
        if part.imbalance >= IMBALANCE:
            said.append(
                f"{part.name}: the largest class has {part.imbalance:.0f} times the images of the smallest. Look at "
                'the accuracy of each class; class_weights="balanced" may help.'
            )
    if across_classes:
        said.append(f"{_count(across_classes, 'pair')} of near-duplicates with different classes: is a label wrong?")
    side = "training image" if split else "other image"
    score = f"a nearest neighbour {'already scores' if split else 'scores'} {cross.nearest_accuracy:.1%}"
    where = "on this split" if split else "on images held out one by one"
    share = f"{cross.near_share:.1%} of the images have a near-duplicate among the {side}s"
    if images < LEAST:
        said.append(f"{images} images are too few to tell near-duplicates from chance; {score} {where}.")
    elif cross.leaks:
        what = "the split leaks" if split else "a random split leaks"
        rest = "" if honest is None else f" Outside an image's own cluster of near-duplicates it scores {honest:.1%}."
        said.append(
            f"{score} {where}: {what}. {share}.{rest} Hold out whole sources: --split 0.25 --group-by REGEX, or "
            "--split 0.25 for clusters of near-duplicates."
        )
    else:
        said.append(f"{score} {where}, and {share}: too few for a leak.")
    return [line[0].upper() + line[1:] for line in said]


# --- words and pictures -----------------------------------------------------------------------------------------


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'s' * (number != 1)}"


def _described(part: Part) -> list[str]:
    def most(counts: dict[str, int]) -> str:
        names = [f"{name} ({count:,})" for name, count in list(counts.items())[:4]]
        return ", ".join(names) + (f" and {len(counts) - 4} more" if len(counts) > 4 else "")

    def numbers(values: Sequence[float]) -> str:
        return " ".join(f"{value:.4f}" for value in values)

    lines = [
        f"{part.name}: {_count(part.images, 'image')}; sizes {most(part.sizes)}; {most(part.modes)}",
        f"{part.name}: mean {numbers(part.mean)}, standard deviation {numbers(part.std)}",
    ]
    lines += [f"{part.name}: {file} {problem}" for file, problem in list(part.broken.items())[:5]]
    return lines


def _short(text: str) -> str:
    text = text.encode("ascii", "replace").decode()  # Pillow's own font has no more
    return text if len(text) <= 18 else text[:8] + ".." + text[-8:]


def _tile(image: np.ndarray) -> Image.Image:
    if image.dtype != np.uint8:
        low, high = float(image.min()), float(image.max())
        image = ((image - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
    shown = Image.fromarray(image[0] if len(image) != 3 else image.transpose(1, 2, 0)).convert("RGB")
    scale = TILE / max(shown.size)
    size = max(1, round(shown.width * scale)), max(1, round(shown.height * scale))
    return shown.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR)
