"""What is wrong with a data set: near-duplicates, leaking splits, broken files, and splits that keep groups."""

from __future__ import annotations

import csv
import io
import json
import logging
import zipfile

import numpy as np
import pytest
from PIL import Image

from xpcnn import Classifier, zoo
from xpcnn.cli import main
from xpcnn.data import ArrayDataset, ImageFolder, groups_by, inspect, mnist, open_dataset, split
from xpcnn.data.images import image_from_file
from xpcnn.data.leakage import (
    chance_limits,
    clusters,
    distance,
    hash_difference,
    judge,
    leak_warning,
    neighbours,
    small_pictures,
)
from xpcnn.errors import ArgumentError, DataError


def scenes(rng, count, size=20):
    """Independent smooth pictures, uint8 (count, 1, size, size)."""
    coarse = rng.random((count, 7, 7))
    images = [Image.fromarray(np.uint8(c * 255)).resize((size, size), Image.Resampling.BICUBIC) for c in coarse]
    return np.array([np.asarray(image) for image in images])[:, None]


def shots(rng, sources, each):
    """Pictures of `sources` scenes, `each` a little noisy, brightened and moved; labels say nothing. (x, y, source)."""
    large = scenes(rng, sources, 24)[:, 0]
    source = np.repeat(np.arange(sources), each)
    x = np.empty((len(source), 1, 20, 20), np.uint8)
    for k, s in enumerate(source):
        i, j = rng.integers(1, 4, 2)
        noisy = large[s, i : i + 20, j : j + 20] * rng.uniform(0.8, 1.0) + rng.normal(0, 3, (20, 20))
        x[k, 0] = np.clip(noisy, 0, 255)
    return x, rng.integers(0, 2, sources)[source], source


@pytest.fixture(scope="module")
def leaky():
    """40 sources with 8 pictures each: data set and sources."""
    x, y, source = shots(np.random.default_rng(3), 40, 8)
    return ArrayDataset(x, y, ["cat", "dog"]), source


# --- small pictures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 48, 32), (3, 32, 48), (1, 16, 16)])
def test_small_pictures_are_means_of_blocks(rng, shape):
    images = rng.integers(0, 256, (5, *shape), dtype=np.uint8)
    c, h, w = shape
    cells = images.reshape(5, c, 16, h // 16, 16, w // 16).mean(axis=(3, 5)).reshape(5, -1)
    cells -= cells.mean(axis=1, keepdims=True)
    cells /= np.linalg.norm(cells, axis=1, keepdims=True)
    np.testing.assert_allclose(small_pictures(images), cells, atol=1e-6)


def test_a_cell_takes_parts_of_pixels():
    """24 pixels to 16 cells: a cell is a pixel and half of the next."""
    row = np.arange(24.0)
    left = row[0::3], row[1::3], row[2::3]
    expected = np.stack([(left[0] + left[1] / 2) / 1.5, (left[1] / 2 + left[2]) / 1.5], axis=1).reshape(-1)
    expected = np.tile(expected - expected.mean(), 16)
    image = np.tile(row.astype(np.float32), (16, 1))[None, None]
    np.testing.assert_allclose(small_pictures(image)[0], expected / np.linalg.norm(expected), atol=1e-6)


def test_brightness_and_contrast_do_not_count(rng):
    x = rng.random((3, 1, 20, 30)).astype(np.float32)
    np.testing.assert_allclose(small_pictures(0.3 * x + 0.5), small_pictures(x), atol=1e-5)


def test_images_of_one_colour_are_near_to_nothing():
    flat = small_pictures(np.full((2, 3, 21, 17), 77, np.uint8))
    assert not flat.any()
    assert distance(flat @ flat.T).min() == pytest.approx(2**0.5)


def test_difference_hash(rng):
    x = scenes(rng, 50, 64)
    small = small_pictures(x)
    jpeg = []
    for image in x[:, 0]:
        file = io.BytesIO()
        Image.fromarray(image).resize((40, 40)).save(file, "JPEG", quality=80)
        jpeg.append(np.asarray(Image.open(file)))
    copies = small_pictures(np.array(jpeg)[:, None])
    assert hash_difference(small, copies).max() < 0.1
    assert hash_difference(small, np.roll(small, 1, axis=0)).min() > 0.2
    assert hash_difference(small[:0], copies[:0]).shape == (0,)


# --- neighbours -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("same", [False, True])
def test_neighbours_against_a_plain_search(rng, monkeypatch, same):
    monkeypatch.setattr("xpcnn.data.leakage.BLOCK", 200)  # several chunks
    a = small_pictures(scenes(rng, 30))
    b = a if same else small_pictures(scenes(rng, 40))
    s = (a.astype(np.float64)[:, None] * b).sum(axis=2)
    if same:
        np.fill_diagonal(s, -2)
    limits = np.full(30, 0.2)
    found = neighbours(a, b, limits, same)
    np.testing.assert_array_equal(found.index, s.argmax(axis=1))
    np.testing.assert_allclose(found.similarity, s.max(axis=1), atol=1e-6)
    pairs = set(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert pairs == set(map(tuple, np.argwhere(s > 0.2).tolist()))
    assert pairs


def test_neighbours_outside_a_group(rng):
    a = small_pictures(scenes(rng, 30))
    groups = np.arange(30) % 3
    s = a @ a.T
    s[groups[:, None] == groups] = -2
    np.testing.assert_array_equal(neighbours(a, a, groups=(groups, groups)).index, s.argmax(axis=1))


def test_only_the_nearest_pairs_of_an_image_are_kept(rng, monkeypatch):
    monkeypatch.setattr("xpcnn.data.leakage.MOST", 3)
    a = small_pictures(scenes(rng, 30))
    found = neighbours(a, a, np.full(30, -1.5), same=True)
    s = a @ a.T - 3 * np.eye(30)
    for i in range(30):
        assert found.second[found.first == i].tolist() == np.argsort(-s[i])[:3].tolist()


@pytest.mark.parametrize("dimension", [3, 8])
def test_chance_is_what_it_is_called(rng, dimension):
    """Of independent points on a sphere at most 1 % are nearer than the limit for chance 0.01, and not none."""
    points = rng.normal(size=(6000, dimension + 1)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    limits = chance_limits(points[:3000], points[3000:])
    r = distance(neighbours(points[:3000], points[3000:]).similarity)
    assert 0.0005 < (r < limits[0, 0]).mean() < 0.01
    assert 0.02 < (r < limits[0, 1]).mean() < 0.1  # ten times the chance
    assert (r < limits[1, 0]).mean() < 0.01


def test_clusters():
    assert clusters(7, [0, 5, 2, 3], [3, 6, 3, 2]).tolist() == [0, 1, 0, 0, 2, 3, 3]
    assert clusters(2, [], []).tolist() == [0, 1]


# --- the verdict ------------------------------------------------------------------------------------------------


def test_a_random_split_of_few_sources_leaks(leaky):
    report = inspect(*split(leaky[0], 0.25))
    assert report.leaks
    assert not report.ok
    assert report.nearest_accuracy > 0.95
    assert report.near_share > 0.8
    assert report.honest_accuracy < 0.75  # labels say nothing
    assert "the split leaks" in report.verdict[-1]
    assert "A nearest neighbour already scores" in report.verdict[-1]


def test_a_split_by_source_does_not_leak(leaky):
    dataset, source = leaky
    for groups in (source, inspect(dataset).clusters):
        report = inspect(*split(dataset, 0.25, groups=groups))
        assert not report.leaks
        assert report.honest_accuracy is None
        assert report.ok
        assert "too few for a leak" in report.verdict[-1]


def test_clusters_are_the_sources(leaky):
    dataset, source = leaky
    report = inspect(dataset)
    assert report.leaks
    assert "a random split leaks" in report.verdict[-1]
    assert all(len(set(source[report.clusters == c].tolist())) == 1 for c in set(report.clusters.tolist()))
    assert len(set(report.clusters.tolist())) < 60


def test_sources_of_very_many_images(rng):
    """The nearest 1 and 5 % are all of one source: that is what the second look is for."""
    x, y, _ = shots(rng, 25, 80)
    train, held_out = split(ArrayDataset(x, y), 0.25)
    assert judge(*_small(held_out), *_small(train)).leaks


def _small(dataset):
    return small_pictures(dataset.take(np.arange(len(dataset)))), dataset.labels


@pytest.mark.parametrize("count", [300, 1000])
def test_embedded_digits_do_not_leak(count):
    train, _ = mnist()
    part, _ = split(train, 1 - count / len(train))
    train, held_out = split(part, 0.25)
    found = judge(*_small(held_out), *_small(train))
    assert found.nearest_accuracy > 0.75  # high, and honest
    assert found.near_share < 0.03
    assert not found.leaks
    assert leak_warning(train, held_out) is None


def test_independent_pictures_do_not_leak(rng):
    for x in (scenes(rng, 400), rng.integers(0, 256, (400, 3, 12, 18), dtype=np.uint8)):
        report = inspect(*split(ArrayDataset(x, rng.integers(0, 2, 400)), 0.25))
        assert not report.leaks
        assert report.near_share < 0.03


def test_one_copy_of_each_image_leaks(rng):
    x = scenes(rng, 300)
    y = rng.integers(0, 2, 300)
    noisy = np.clip(x[:150] + rng.normal(0, 4, (150, 1, 20, 20)), 0, 255).astype(np.uint8)
    report = inspect(ArrayDataset(x, y), ArrayDataset(noisy, y[:150]))
    assert report.near_share > 0.95
    assert report.nearest_accuracy > 0.95
    assert report.leaks


def test_few_images(rng):
    x = scenes(rng, 20)
    report = inspect(ArrayDataset(x, np.arange(20) % 2))
    assert not report.leaks
    assert "20 images are too few to tell near-duplicates from chance" in report.verdict[-1]


def test_identical_images_and_contradictions(rng):
    x = scenes(rng, 20)
    x[7], x[8] = x[3], x[3]
    report = inspect(ArrayDataset(x, [0] * 8 + [1] * 12, ["a", "b"]))
    assert (report.parts[0].twins, report.parts[0].contradictions) == (2, 1)
    assert report.clusters[3] == report.clusters[7] == report.clusters[8]
    assert len(set(report.clusters.tolist())) == 18
    assert not report.ok
    assert "Images: 1 image with the pixels of one of another class." in report.verdict


def test_near_duplicates_of_different_classes(rng):
    x = scenes(rng, 200)
    x[1] = np.clip(x[0] + rng.normal(0, 2, x[0].shape), 0, 255)
    report = inspect(ArrayDataset(x, np.arange(200) % 2, ["even", "odd"]))
    assert report.across_classes == 1
    assert {report.pairs[0].first, report.pairs[0].second} == {"images 0", "images 1"}
    assert report.pairs[0].kind == "same hash"
    assert "1 pair of near-duplicates with different classes: is a label wrong?" in report.verdict


def test_report(leaky, tmp_path):
    dataset, _ = leaky
    train, held_out = split(dataset, 0.25)
    report = inspect(train, held_out)
    text = str(report)
    assert "training: 240 images; sizes 20x20 (240); uint8 (240)" in text
    content = json.loads(json.dumps(report.as_dict()))
    counts = np.bincount(held_out.labels).tolist()
    assert content["parts"][1]["classes"] == {"cat": counts[0], "dog": counts[1]}
    x = train.take(np.arange(240)) / 255
    assert content["parts"][0]["mean"] == pytest.approx([x.mean()])
    assert content["parts"][0]["std"] == pytest.approx([x.std()])
    assert content["leaks"] is True
    assert report.picture(tmp_path / "pairs.png")
    with Image.open(tmp_path / "pairs.png") as picture:
        assert picture.width > 900
        assert len(picture.getcolors(1 << 20)) > 50
    assert [pair.distance for pair in report.pairs] == sorted(pair.distance for pair in report.pairs)


def test_imbalance(rng):
    report = inspect(ArrayDataset(scenes(rng, 44), [0] * 40 + [1] * 4))
    assert "the largest class has 10 times the images of the smallest" in report.verdict[0]


def test_grey_against_colour(rng):
    grey, colour = (ArrayDataset(np.repeat(scenes(rng, 9), c, axis=1), np.arange(9) % 2) for c in (1, 3))
    with pytest.raises(DataError, match="one side is grey and the other coloured"):
        inspect(grey, colour)


# --- splits by group --------------------------------------------------------------------------------------------


def test_groups_stay_together(leaky):
    dataset, source = leaky
    for seed in range(5):
        train, held_out = split(dataset, 0.25, seed, groups=source)
        assert not set(source[train.indices].tolist()) & set(source[held_out.indices].tolist())
        assert sorted([*train.indices, *held_out.indices]) == list(range(len(dataset)))
        assert abs(len(held_out) - 80) <= 8
        shares = [np.bincount(part.labels) / len(part) for part in (train, held_out)]
        np.testing.assert_allclose(*shares, atol=0.1)
    assert split(dataset, 0.25, 0, groups=source)[1].indices.tolist() != held_out.indices.tolist()


def test_groups_of_very_different_sizes(rng):
    names = np.repeat([f"g{i}" for i in range(30)], [200, 100, *[10] * 28])
    dataset = ArrayDataset(np.zeros((len(names), 2, 2), np.uint8), rng.integers(0, 2, len(names)))
    _, held_out = split(dataset, 0.2, groups=names.tolist())
    assert 90 <= len(held_out) <= 140


def test_every_class_is_on_both_sides():
    labels = np.repeat([0, 1, 1, 2], 10)  # class 1 has two groups, 2 has one
    groups = np.repeat([0, 1, 2, 3], 10)
    groups[:10] = np.arange(10) + 10
    dataset = ArrayDataset(np.zeros((40, 2, 2), np.uint8), labels)
    train, held_out = split(dataset, 0.2, groups=groups)
    assert set(held_out.labels.tolist()) == {0, 1}
    assert set(train.labels.tolist()) == {0, 1, 2}


def test_groups_that_cannot_be(leaky):
    dataset, _ = leaky
    with pytest.raises(DataError, match="one group per sample: received 320 samples and 3 groups"):
        split(dataset, 0.2, groups=[1, 2, 3])
    with pytest.raises(DataError, match="all samples are of one group"):
        split(dataset, 0.2, groups=["a"] * 320)


def test_groups_by_name():
    names = ["sick/p1_a.png", "sick/p1_b.png", "well/p22_a.png"]
    assert groups_by(names, r"(p\d+)_") == ["p1", "p1", "p22"]
    assert groups_by(names, r"p\d+") == ["p1", "p1", "p22"]
    with pytest.raises(DataError, match=r"finds no group in 2 of 3 names, such as sick/p1_a.png"):
        groups_by(names, r"p\d\d")
    with pytest.raises(ArgumentError, match="no regular expression"):
        groups_by(names, "(")


# --- files ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, leaky):
    """The leaky pictures as files CLASS/sSOURCE_NUMBER.png."""
    dataset, source = leaky
    for i, (image, label) in enumerate(zip(dataset.x, dataset.labels, strict=True)):
        file = tmp_path / "photos" / dataset.classes[label] / f"s{source[i]}_{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(file)
    return tmp_path / "photos"


def test_files_of_a_folder(folder):
    (folder / "cat" / "empty.png").write_bytes(b"")
    (folder / "cat" / "text.jpg").write_text("no image")
    Image.new("RGB", (30, 20), "red").save(folder / "dog" / "red.png")
    report = inspect(folder)
    part = report.parts[0]
    assert part.images == 321
    assert part.sizes == {"20x20": 320, "20x30": 1}
    assert part.modes == {"L": 320, "RGB": 1}
    broken = {name.rpartition("cat")[2][1:]: problem for name, problem in part.broken.items()}
    assert broken == {"empty.png": "is empty", "text.jpg": "is not an image in any format that Pillow reads."}
    pixels = [image_from_file(file, mode="RGB").reshape(3, -1) / 255 for file in report.files]
    together = np.concatenate(pixels, axis=1)
    np.testing.assert_allclose(part.mean, together.mean(axis=1))
    np.testing.assert_allclose(part.std, together.std(axis=1))
    assert not report.ok
    assert len(report.files) == len(report.clusters) == 321


def test_command(folder, tmp_path, capsys):
    assert main(["data", str(folder), "--picture", str(tmp_path / "pairs.png")]) == 1
    out = capsys.readouterr().out
    assert "a random split leaks" in out
    assert f"{tmp_path / 'pairs.png'}: 16 pairs" in out
    assert main(["data", str(folder), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["leaks"] is True
    assert main(["data", "mnist", "--against", str(folder)]) in (0, 1)


@pytest.mark.parametrize("options", [[], ["--group-by", r"(s\d+)_"]])
def test_command_writes_a_split(folder, tmp_path, capsys, options):
    out = tmp_path / "split"
    (folder / "cat" / "empty.png").write_bytes(b"")
    assert main(["data", str(folder), "--split", "0.25", "--out", str(out), *options]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "images in train/" in said[-2]
    assert "too few for a leak" in said[-1]
    train, test = open_dataset(out, 20)
    files = {file.relative_to(out / part) for part, d in (("train", train), ("test", test)) for file in d.files}
    assert files == {file.relative_to(folder) for file in folder.rglob("s*.png")}
    sources = [{file.name.partition("_")[0] for file in d.files} for d in (train, test)]
    assert not inspect(out).leaks
    with open(out / "split.csv", newline="") as table:
        rows = list(csv.DictReader(table))
    assert {(out / row["part"] / row["file"]).exists() for row in rows} == {True}
    assert len(rows) == 320
    if options:
        assert not sources[0] & sources[1]
        assert {row["group"] for row in rows} == {f"s{i}" for i in range(40)}
    assert main(["data", str(folder), "--split", "0.25", "--out", str(out)]) == 2
    assert "exists and is not empty" in capsys.readouterr().err


def test_command_refuses(folder, tmp_path, capsys):
    for arguments, words in (
        ([str(folder), "--split", "0.2"], "belong together"),
        ([str(folder), "--group-by", "s"], "belong together"),
        ([str(tmp_path / "nothing")], "does not exist"),
        (["mnist", "--split", "0.2", "--out", str(tmp_path / "x")], "xpcnn.data.split"),
    ):
        assert main(["data", *arguments]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    assert main(["data", str(folder), "--split", ".2", "--out", str(tmp_path / "x"), "--group-by", "cat|dog"]) == 1
    assert "too few groups to be on both sides" in capsys.readouterr().err


# --- the warning ------------------------------------------------------------------------------------------------


def warnings_of(caplog, dataset, **options):
    caplog.clear()
    net = zoo.build("mlp", len(dataset.classes)) if "mlp" in zoo.names() else zoo.build("lenet", len(dataset.classes))
    classifier = Classifier(net, device="cpu")
    with caplog.at_level(logging.WARNING, "xpcnn"):
        for _ in range(2):  # it is said once
            classifier.fit(dataset, epochs=1, validation=0.25, verbose=False, **options)
    return [record.getMessage() for record in caplog.records if "leaked" in record.getMessage()]


def test_fit_warns_once(caplog, leaky):
    x = np.pad(leaky[0].x, ((0, 0), (0, 0), (4, 4), (4, 4)))
    dataset = ArrayDataset(x, leaky[0].labels)
    (said,) = warnings_of(caplog, dataset)
    assert "the validation data look leaked" in said
    assert "of 80 held-out images have a near-duplicate among 240 training images" in said
    assert warnings_of(caplog, dataset, check_leak=False) == []
    assert warnings_of(caplog, split(mnist()[0], 0.04)[1]) == []


def test_warning_is_quiet_where_nothing_can_be_said(leaky, tmp_path, rng):
    dataset, _ = leaky
    few, rest = split(dataset, 0.9)
    assert leak_warning(few, rest) is None
    assert leak_warning(dataset, ArrayDataset(np.repeat(dataset.x, 3, axis=1), dataset.labels)) is None
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "broken.png").write_bytes(b"nothing")
    assert leak_warning(dataset, ImageFolder(tmp_path, 20)) is None


# --- real data --------------------------------------------------------------------------------------------------


def test_real_digits_and_photos(real_data):
    for name in ("mnist_small.npz", "cifar10_small.npz"):
        with np.load(real_data(name)) as arrays:
            parts = [(arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in ("train", "test")]
        train, test = (ArrayDataset(x if x.ndim == 3 else x.transpose(0, 3, 1, 2), y) for x, y in parts)
        assert leak_warning(train, test) is None
        found = judge(*_small(test), *_small(train))
        assert found.near_share < 0.02
        assert not found.leaks


@pytest.mark.slow
def test_real_scans(real_data, tmp_path):
    """5,121 slices of 200 heads: a random split leaks, one by clusters does not."""
    with zipfile.ZipFile(real_data("alzheimer_mri_train_jpg.zip")) as archive:
        archive.extractall(tmp_path)
    folder = next(p for p in tmp_path.rglob("*") if (p / "NonDemented").is_dir())
    report = inspect(folder)
    assert report.leaks
    assert report.nearest_accuracy > 0.99
    assert report.honest_accuracy < 0.6
    assert 195 <= len(set(report.clusters.tolist())) <= 210
    scans = ImageFolder(folder, 50)
    assert leak_warning(*split(scans, 0.25)) is not None
    parts = split(scans, 0.25, groups=report.clusters)
    assert leak_warning(*parts) is None
    assert inspect(*parts).nearest_accuracy < 0.65
