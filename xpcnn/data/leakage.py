"""Near-duplicates: pictures that are closer to each other than chance explains, and what they do to a split.

Notation: N images, M images they are compared with, D = C * 16 * 16 numbers of a small picture, R reference images,
r a distance, m a dimension.

**The rule.** A picture is averaged down to 16x16 and brought to mean 0 and length 1; r is the Euclidean distance of two
of them, 0 to 2. Around a picture, the number of *independent* pictures within r grows like r**m, where m is the local
dimension of the data. Two distances of each picture, to the 1 % and the 5 % nearest of the others (at least 10 and 50),
give m (the estimate of Levina & Bickel 2004, "Maximum likelihood estimation of intrinsic dimension", for two radii) and
with it the number of independent pictures expected within r: M * 0.01 * (r / r_1%)**m. Where that is below 0.01, a
picture at distance r is not there by chance: it shows the same thing, or comes from the same source. That is a
**near-duplicate**.
A split **leaks** if at least a tenth of its held-out images have a near-duplicate among the training images.

A second look, with 5 % and 20 % in place of 1 % and 5 %, finds sources of so many images each that the 1 % nearest
are all of one source; being further from its measurements it asks for a chance of 0.001 and for half of the images.

High accuracy of a nearest neighbour is no sign of a leak by itself: with 10,000 digits of MNIST it scores 94 to 96 %,
and its neighbours are as far away as those of independent digits are. Barz & Denzler (2020, "Do we train on test data?
Purging CIFAR of near-duplicates") find near-duplicates of 3.3 % of CIFAR-10's test images by looking at them; the rule
marks 2.8 %, few enough to be no leak.

**What it misses**: one source seen so differently that its pictures are no closer than others (a patient photographed
from two sides, a person in two places); crops, mirror images and turned copies; data of fewer than about twenty
sources; sets below 100 images, in which only identical pictures are found.

**What it may report wrongly**: drawings with a few parameters, sampled densely; their pictures do lie close together,
whoever drew them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..backend import for_chunks, generator
from ..errors import XpcnnError
from .datasets import Dataset, Subset, gather
from .images import ImageFolder

__all__ = ["Judgement", "clusters", "hash_difference", "judge", "leak_warning", "small_pictures"]

SIDE = 16
LEAST = 100  # images below which chance cannot be told from duplication
REFERENCE = 2000  # images from which distances at a share of the data are estimated
NEAR, FAR = (0.01, 0.05, 0.01), (0.05, 0.20, 0.001)  # share, larger share, chance: see above
LINK = 10  # clusters are made of pairs at so many times the chance: joining too much does less harm than too little
LEAK, FAR_LEAK = 0.1, 0.5
MOST = 50  # near-duplicates of one image that are kept
BLOCK = 1 << 23  # similarities at a time and thread
QUICK = 2000, 10_000  # held-out and training images that a training looks at
QUICK_FILES = 300, 1500  # where each of them may have to be read from a file


# --- small pictures ---------------------------------------------------------------------------------------------


def small_pictures(images: np.ndarray) -> np.ndarray:
    """Average images (N, C, H, W) down to 16x16 cells each and return them as float32 (N, D) of mean 0 and length 1.

    So brightness and contrast do not count. An image of one colour becomes zeros, which are near to nothing.
    """
    n, c, h, w = images.shape
    x = images.reshape(-1, w).astype(np.float32) @ _averaging(w).T
    cells: np.ndarray = (_averaging(h) @ x.reshape(n * c, h, SIDE)).reshape(n, -1)
    scale = np.abs(cells).max(axis=1, keepdims=True)
    cells -= cells.mean(axis=1, keepdims=True)
    length = np.linalg.norm(cells, axis=1, keepdims=True)
    flat = length <= 1e-5 * scale * SIDE  # nothing but rounding
    cells /= np.where(flat, np.float32(np.inf), length)
    return cells


def _averaging(size: int) -> np.ndarray:
    """Return float32 (16, size): what each of `size` pixels counts in each of 16 equal cells."""
    edges = np.arange(SIDE + 1) * size / SIDE
    pixels = np.arange(size)
    inside = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.asarray(np.maximum(inside, 0) * SIDE / size, np.float32)


def hash_difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return in which part (n,) of their bits the difference hashes of small pictures (n, D) differ.

    A bit of the difference hash (dHash: Krawetz 2013, "Kind of Like That") says whether a cell is brighter than its
    left neighbour. Copies that were scaled, compressed or brightened differ in few bits, independent pictures in up to
    half of them.
    """
    bits = [np.diff(part.reshape(len(part), first.shape[1] // SIDE, SIDE)) > 0 for part in (first, second)]
    difference: np.ndarray = (bits[0] != bits[1]).mean(axis=(1, 2))
    return difference


# --- neighbours -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Neighbours:
    """The nearest of M pictures for each of N: index (N,), similarity (N,), and all pairs (P,) beyond the limits."""

    index: np.ndarray
    similarity: np.ndarray
    first: np.ndarray
    second: np.ndarray
    pair_similarity: np.ndarray


def neighbours(
    pictures: np.ndarray,
    others: np.ndarray,
    limits: np.ndarray | None = None,
    same: bool = False,
    groups: tuple[np.ndarray, np.ndarray] | None = None,
) -> Neighbours:
    """Compare small pictures (N, D) with others (M, D), some rows at a time.

    Args:
        pictures, others: see `small_pictures`.
        limits: (N,) similarities; pairs above them are returned, at most 50 for an image.
        same: whether both are the same pictures, none of which is its own neighbour.
        groups: (N,) and (M,): do not compare within a group.
    """
    count = len(pictures)
    index, similarity = np.empty(count, np.int64), np.empty(count, np.float32)
    rows = min(max(1, BLOCK // len(others)), -(-count // 2))  # two threads have something to do
    found: list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = [[] for _ in range(-(-count // rows))]

    def compare(k: int) -> None:
        part = np.arange(k * rows, min((k + 1) * rows, count))
        s = pictures[part] @ others.T
        if same:
            s[np.arange(len(part)), part] = -2
        if groups is not None:
            s[groups[0][part, None] == groups[1]] = -2
        index[part] = s.argmax(axis=1)
        similarity[part] = s[np.arange(len(part)), index[part]]
        if limits is None:
            return
        for i in np.flatnonzero(similarity[part] > limits[part]):
            near = np.flatnonzero(s[i] > limits[part[i]])
            if len(near) > MOST:
                near = near[np.argsort(-s[i, near], kind="stable")[:MOST]]
            found[k].append((np.full(len(near), part[i]), near, s[i, near]))

    for_chunks(len(found), count * len(others), compare)
    pairs = [pair for chunk in found for pair in chunk]
    nothing = np.empty(0, np.int64)
    first, second, near = (
        (np.concatenate(a) for a in zip(*pairs, strict=True)) if pairs else (nothing, nothing, nothing)
    )
    return Neighbours(index, similarity, first, second, near)


def distance(similarity: np.ndarray) -> np.ndarray:
    """Return the Euclidean distance of unit vectors from their product."""
    r: np.ndarray = np.sqrt(np.maximum(2 - 2 * similarity.astype(np.float64), 0))
    return r


def chance_limits(pictures: np.ndarray, others: np.ndarray, same: bool = False) -> np.ndarray:
    """Return the distances (2, 2, N) below which one of the `others` (M, D) is not there by chance.

    The first axis is the first and the second look, the second axis near-duplicates and what clusters are made of. The
    dimension used is a picture's own or the median of all, whichever is lower: so the chance is at most what is said.
    """
    size = min(len(others), REFERENCE)
    chosen = np.sort(generator(0, "reference").choice(len(others), size, replace=False))
    ranks = [(max(10, int(share * size)), max(50, int(more * size)), chance) for share, more, chance in (NEAR, FAR)]
    kept = sorted({rank - 1 for *pair, _ in ranks for rank in pair})
    radii = np.empty((len(kept), len(pictures)))
    rows = max(1, BLOCK // 4 // size)

    def measure(k: int) -> None:
        part = np.arange(k * rows, min((k + 1) * rows, len(pictures)))
        s = -(pictures[part] @ others[chosen].T)
        if same:
            s[part[:, None] == chosen] = 2
        s.partition(kept, axis=1)
        radii[:, part] = distance(-s[:, kept].T)

    for_chunks(-(-len(pictures) // rows), len(pictures) * size, measure)
    limits = []
    for rank, more, chance in ranks:
        near, far = (np.maximum(radii[kept.index(r - 1)], 1e-9) for r in (rank, more))
        own = np.log(more / rank) / np.maximum(np.log(far / near), 1e-3)
        dimension = np.minimum(own, np.median(own))
        expected = len(others) * rank / size  # independent pictures within `near`
        limits.append([near * (part / expected) ** (1 / dimension) for part in (chance, LINK * chance)])
    return np.array(limits)


def clusters(count: int, first: Iterable[int], second: Iterable[int]) -> np.ndarray:
    """Number the connected parts of a graph: (count,) int64, 0 for the part of node 0, by union-find.

    Args:
        count: number of nodes.
        first, second: the ends of each edge.
    """
    parent = list(range(count))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = node = parent[parent[node]]
        return node

    for i, j in zip(first, second, strict=True):
        a, b = root(int(i)), root(int(j))
        parent[max(a, b)] = min(a, b)
    return np.unique([root(node) for node in range(count)], return_inverse=True)[1].astype(np.int64)


# --- the verdict ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judgement:
    """What nearest neighbours say about a split, or about one set, whose every image is then held out in turn.

    Attributes:
        images: how many images were judged, and compared with how many others.
        nearest_accuracy: part of the images that their nearest neighbour classifies right.
        near: (N,) whether an image has a near-duplicate among the others.
        leaks: whether so many have one that accuracy means little.
        pairs: (P, 2) near-duplicates (image, other), the nearest 50 of each image; `distances` (P,) beside them.
        links: (P', 2) pairs to make clusters of: somewhat more than `pairs`.
    """

    images: tuple[int, int]
    nearest_accuracy: float
    near: np.ndarray
    leaks: bool
    pairs: np.ndarray
    distances: np.ndarray
    links: np.ndarray

    @property
    def near_share(self) -> float:
        """Part of the images that have a near-duplicate."""
        return float(self.near.mean())


def judge(
    pictures: np.ndarray,
    labels: np.ndarray,
    others: np.ndarray | None = None,
    other_labels: np.ndarray | None = None,
    pairs: bool = True,
) -> Judgement:
    """Judge held-out pictures (N, D) with labels (N,) by their neighbours among training pictures (M, D).

    Without `others` each picture is compared with all the rest of its own set, as in a random split. The pictures of
    pairs are near for both of them then.

    Args:
        pictures, labels, others, other_labels: see above and `small_pictures`.
        pairs: list the pairs too.
    """
    same = others is None
    keys, truth = (pictures, labels) if others is None or other_labels is None else (others, other_labels)
    known = len(keys) >= LEAST
    limits = chance_limits(pictures, keys, same) if known else np.zeros((2, 2, len(pictures)))
    found = neighbours(pictures, keys, 1 - limits.max(axis=(0, 1)) ** 2 / 2 if pairs and known else None, same)
    near, far = distance(found.similarity) < limits[:, 0]
    use_far = far.mean() >= max(FAR_LEAK, near.mean())
    limit, link = limits[int(use_far)]
    lengths = distance(found.pair_similarity)

    def closer(bounds: np.ndarray) -> np.ndarray:
        kept: np.ndarray = lengths < bounds[found.first]
        return kept & (lengths < bounds[found.second]) if same else kept

    both = np.stack([found.first, found.second], axis=1)
    return Judgement(
        (len(pictures), len(keys)),
        float((truth[found.index] == labels).mean()),
        far if use_far else near,
        bool(known and (use_far or near.mean() >= LEAK)),
        both[closer(limit)],
        lengths[closer(limit)],
        both[closer(link)],
    )


def leak_warning(train: Dataset, held_out: Dataset) -> str | None:
    """Look quickly whether a split leaks; return what to say if it does.

    At most 2,000 held-out and 10,000 training images, chosen once and for all, are compared; 300 and 1,500 of an
    image folder. What cannot be read is left for the training to complain about.
    """
    try:
        sides = [_sample(held_out, 0), _sample(train, 1)]
    except XpcnnError:
        return None
    (pictures, labels), (others, other_labels) = sides
    if pictures.shape[1] != others.shape[1]:
        return None
    found = judge(pictures, labels, others, other_labels, pairs=False)
    if not found.leaks:
        return None
    return (
        f"the validation data look leaked: {found.near_share:.0%} of {len(labels):,} held-out images have a "
        f"near-duplicate among {len(other_labels):,} training images, and a nearest neighbour already scores "
        f"{found.nearest_accuracy:.1%}. Images of one source belong on one side: see xpcnn data --split, or "
        "split(..., groups=...)."
    )


def _sample(dataset: Dataset, side: int) -> tuple[np.ndarray, np.ndarray]:
    whole = dataset
    while isinstance(whole, Subset):
        whole = whole.dataset
    count = min(len(dataset), (QUICK_FILES if isinstance(whole, ImageFolder) else QUICK)[side])
    chosen = np.sort(generator(0, "leak").permutation(len(dataset))[:count])
    parts = [small_pictures(gather(dataset, part)) for part in np.array_split(chosen, -(-count // 500))]
    return np.concatenate(parts), np.asarray(dataset.labels)[chosen]
