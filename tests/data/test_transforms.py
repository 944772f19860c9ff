"""Transforms against plain loops, known results and their promises: dtype, shape, determinism, inputs untouched."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xpcnn.data import (
    BrightnessContrast,
    Compose,
    Cutout,
    Mixup,
    Normalize,
    RandomAffine,
    RandomCrop,
    RandomHorizontalFlip,
    RandomRotation,
    RandomVerticalFlip,
)
from xpcnn.data.transforms import by_kind
from xpcnn.errors import ArgumentError, ShapeError

EVERY = [
    RandomCrop(5, padding=1),
    RandomHorizontalFlip(),
    RandomVerticalFlip(),
    RandomRotation(30),
    RandomAffine(10, 0.1, (0.8, 1.2), 10),
    BrightnessContrast(0.3, 0.3),
    Cutout(3, 2),
    Compose([RandomHorizontalFlip(), Cutout(2)]),
]


def image(rng, dtype=np.uint8, shape=(3, 7, 6)):
    pixels = rng.integers(0, 256, shape, dtype=np.uint8)
    pixels = pixels if dtype == np.uint8 else (pixels / 255).astype(dtype)
    pixels.flags.writeable = False
    return pixels


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("transform", EVERY, ids=repr)
def test_dtype_kept_input_untouched_and_deterministic(rng, transform, dtype):
    x = image(rng, dtype)
    before = x.copy()
    first = transform(x, np.random.default_rng(1))
    again = transform(x, np.random.default_rng(1))
    assert first.dtype == dtype
    assert first.shape[0] == 3
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(x, before)
    results = {transform(x, np.random.default_rng(seed)).tobytes() for seed in range(20)}
    assert len(results) > 1


@pytest.mark.parametrize("transform", [*EVERY[:-1], Normalize(0, 1)], ids=repr)
@pytest.mark.parametrize("x", [np.zeros((5, 5), np.uint8), np.zeros((2, 1, 5, 5), np.uint8), np.zeros((1, 5, 5), int)])
def test_what_is_not_one_image(transform, x):
    if getattr(transform, "p", None) is not None:
        transform = type(transform)(p=1)
    with pytest.raises(ShapeError, match=r"expects one image \(C, H, W\) of uint8 or floats; received \("):
        transform(x, np.random.default_rng(0))


# --- Normalize --------------------------------------------------------------------------------------------------


def test_normalize_bytes_and_floats(rng):
    x = image(rng)
    transform = Normalize((0.1, 0.2, 0.3), [0.5, 1.0, 2.0])
    expected = (x / 255 - np.reshape([0.1, 0.2, 0.3], (3, 1, 1))) / np.reshape([0.5, 1.0, 2.0], (3, 1, 1))
    for given_ in (x, (x / 255).astype(np.float32), x / 255):
        result = transform(given_, None)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    assert repr(transform) == "Normalize(mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))"


def test_normalize_with_numbers(rng):
    x = image(rng)
    np.testing.assert_allclose(Normalize(0.5, 0.25)(x), (x / 255 - 0.5) / 0.25, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(Normalize(np.array([0.5] * 3), 0.25)(x), Normalize(0.5, [0.25] * 3)(x))


def test_normalize_errors(rng):
    with pytest.raises(ArgumentError, match=r"std must be finite and above 0; received \(0\.5, 0\.0\)"):
        Normalize([0, 0], [0.5, 0])
    with pytest.raises(ArgumentError, match=r"std must be one number or as many as mean \(2\)"):
        Normalize([0, 0], [1, 1, 1])
    with pytest.raises(ShapeError, match=r"Normalize has 2 channels; received an image \(3, 7, 6\)"):
        Normalize([0, 0], 1)(image(rng))


# --- crop and flips ---------------------------------------------------------------------------------------------


def test_random_crop_is_a_piece_of_the_padded_image(rng):
    x = image(rng)
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2)))
    pieces = {padded[:, i : i + 4, j : j + 5].tobytes() for i in range(8) for j in range(6)}
    found = {RandomCrop((4, 5), padding=2)(x, rng).tobytes() for _ in range(2000)}
    assert found == pieces


def test_random_crop_errors(rng):
    with pytest.raises(ShapeError, match=r"cannot cut 10x10 out of an image \(3, 7, 6\) padded by 1\. Raise padding"):
        RandomCrop(10, padding=1)(image(rng), rng)
    for size in (0, (3,), (2.5, 3)):
        with pytest.raises(ArgumentError, match="size must be a positive int or a pair"):
            RandomCrop(size)
    with pytest.raises(ArgumentError, match="padding must be an int of at least 0; received -1"):
        RandomCrop(3, padding=-1)


def test_flips(rng):
    x = image(rng)
    np.testing.assert_array_equal(RandomHorizontalFlip(1)(x, rng), x[:, :, ::-1])
    np.testing.assert_array_equal(RandomVerticalFlip(1)(x, rng), x[:, ::-1])
    assert RandomHorizontalFlip(0)(x, rng) is x
    assert RandomVerticalFlip(0)(x, rng) is x
    count = sum(RandomHorizontalFlip(0.3)(x, rng) is not x for _ in range(2000))
    assert 500 < count < 700
    with pytest.raises(ArgumentError, match=r"p must be a probability; received 1\.5"):
        RandomHorizontalFlip(1.5)
    assert repr(RandomVerticalFlip(0.25)) == "RandomVerticalFlip(p=0.25)"


# --- affine -----------------------------------------------------------------------------------------------------


def naive_affine(x, angle, scale, slant, shift):
    """Bilinear sampling, one pixel after the other. Coordinates are of pixel centres, from the image's centre."""
    _, h, w = x.shape
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])  # y points down
    back = np.linalg.inv(scale * turn @ np.array([[1, math.tan(slant)], [0, 1]]))
    result = np.zeros(x.shape)
    for i in range(h):
        for j in range(w):
            out = np.array([j + 0.5 - w / 2 - shift[0], i + 0.5 - h / 2 - shift[1]])
            u, v = back @ out + (w / 2, h / 2)
            if not (0 <= u < w and 0 <= v < h):
                continue
            u, v = u - 0.5, v - 0.5
            left, top = math.floor(u), math.floor(v)
            for row, a in ((top, 1 - (v - top)), (top + 1, v - top)):
                for column, b in ((left, 1 - (u - left)), (left + 1, u - left)):
                    result[:, i, j] += a * b * x[:, min(max(row, 0), h - 1), min(max(column, 0), w - 1)]
    return result


@given(
    angle=st.floats(-180, 180),
    scale=st.floats(0.5, 2),
    shear=st.floats(-40, 40),
    shape=st.sampled_from([(1, 7, 6), (2, 5, 9)]),
)
def test_affine_against_a_loop(angle, scale, shear, shape):
    x = np.random.default_rng(3).random(shape, np.float32)
    result = RandomAffine((angle, angle), 0, (scale, scale), (shear, shear))(x, np.random.default_rng(0))
    expected = naive_affine(x, math.radians(angle), scale, math.radians(shear), (0, 0))
    close = np.isclose(result, expected, rtol=1e-4, atol=1e-3)
    assert close.mean() > 0.9  # a pixel that comes from just beside the border may fall on the other side of it
    assert close[:, 2:-2, 2:-2].mean() == 1 or scale < 0.9 or abs(angle) > 20 or abs(shear) > 20


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_no_affine_change_gives_the_image_back(rng, dtype):
    x = image(rng, dtype)
    np.testing.assert_allclose(RandomAffine()(x, rng), x, atol=1e-6)


@pytest.mark.parametrize("turns", [1, 2, 3, -1])
def test_quarter_turns_are_counter_clockwise(rng, turns):
    x = image(rng, shape=(2, 6, 6))
    np.testing.assert_array_equal(RandomRotation((90 * turns,) * 2)(x, rng), np.rot90(x, turns, axes=(1, 2)))


def test_translate_stays_within_its_bounds():
    x = np.zeros((1, 21, 11), np.float32)
    x[0, 10, 5] = 1
    rows, columns = np.mgrid[:21, :11]
    for seed in range(100):
        moved = RandomAffine(translate=0.2)(x, np.random.default_rng(seed))[0]
        assert abs((moved * rows).sum() - 10) <= 0.2 * 21 + 1e-4
        assert abs((moved * columns).sum() - 5) <= 0.2 * 11 + 1e-4
        assert moved.sum() == pytest.approx(1, abs=1e-4)


def test_rotation_draws_the_whole_range():
    x = np.zeros((1, 41, 41), np.float32)
    x[0, 20, 40] = 1  # three o'clock
    rows, columns = np.mgrid[:41, :41] - 20
    angles = []
    for seed in range(200):
        turned = RandomRotation(30)(x, np.random.default_rng(seed))[0]
        if turned.sum() > 0.5:
            angles.append(math.degrees(math.atan2(-(turned * rows).sum(), (turned * columns).sum())))
    assert -31 < min(angles) < -25
    assert 25 < max(angles) < 31


def test_bytes_are_rounded_not_truncated():
    x = np.array([[[0, 255]]], np.uint8).repeat(2, axis=1)
    half = RandomAffine(translate=0, scale=(2, 2))(x, np.random.default_rng(0))
    exact = RandomAffine(translate=0, scale=(2, 2))(x.astype(np.float32), np.random.default_rng(0))
    np.testing.assert_array_equal(half, np.rint(exact))
    assert set(half.ravel().tolist()) == {64, 191}


def test_affine_errors():
    for options, text in (
        ({"degrees": -5}, "degrees must be a number of at least 0 or a pair"),
        ({"degrees": (5, -5)}, "degrees must be a number of at least 0 or a pair"),
        ({"degrees": (1, 2, 3)}, "degrees must be a number of at least 0 or a pair"),
        ({"shear": 90}, "shear must be below 90 degrees"),
        ({"translate": 2}, "translate must be a fraction between 0 and 1; received 2"),
        ({"scale": (0, 1)}, r"scale must be a pair of factors 0 < low <= high; received \(0, 1\)"),
        ({"scale": (2, 1)}, "scale must be a pair of factors"),
    ):
        with pytest.raises(ArgumentError, match=text):
            RandomAffine(**options)
    assert repr(RandomRotation(10)) == "RandomRotation(degrees=(-10.0, 10.0))"
    assert (
        repr(RandomAffine(0)) == "RandomAffine(degrees=(0.0, 0.0), translate=0.0, scale=(1.0, 1.0), shear=(0.0, 0.0))"
    )


# --- brightness, cutout -----------------------------------------------------------------------------------------


def test_brightness_and_contrast(rng):
    x = image(rng, np.float32)
    np.testing.assert_allclose(BrightnessContrast((1.5, 1.5))(x, rng), x * 1.5, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(BrightnessContrast(0, (0, 0))(x, rng), np.full(x.shape, x.mean()), rtol=1e-5)
    np.testing.assert_allclose(
        BrightnessContrast(0, (2, 2))(x, rng), x.mean() + 2 * (x - x.mean()), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(BrightnessContrast()(x, rng), x, rtol=1e-5, atol=1e-6)
    x = image(rng)
    np.testing.assert_array_equal(BrightnessContrast((3, 3))(x, rng), np.minimum(x.astype(int) * 3, 255))


def test_brightness_range(rng):
    x = np.full((1, 2, 2), 100, np.uint8)
    values = [int(BrightnessContrast(0.2)(x, rng)[0, 0, 0]) for _ in range(500)]
    assert 80 <= min(values) < 85
    assert 115 < max(values) <= 120
    assert BrightnessContrast(2.0).brightness == (0.0, 3.0)
    with pytest.raises(ArgumentError, match="a factor must be at least 0"):
        BrightnessContrast((-1, 1))
    with pytest.raises(ArgumentError, match="contrast must be a number of at least 0 or a pair"):
        BrightnessContrast(0, -0.5)


def test_cutout(rng):
    x = np.ones((2, 10, 12), np.float32)
    areas = set()
    for _ in range(300):
        y = Cutout(3)(x, rng)
        hole = y[0] == 0
        np.testing.assert_array_equal(y[0], y[1])
        rows, columns = hole.any(axis=1).sum(), hole.any(axis=0).sum()
        assert hole.sum() == rows * columns
        assert min(rows, columns) >= 2
        areas.add(int(hole.sum()))
    assert areas == {4, 6, 9}
    assert not Cutout(100)(x, rng).any()
    for options in ({"size": 0}, {"size": 2.0}, {"size": 2, "n": 0}):
        with pytest.raises(ArgumentError, match=r"(size|n) must be a positive int"):
            Cutout(**options)


# --- Mixup, Compose ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_mixup(rng, dtype):
    x = image(rng, dtype, (8, 1, 3, 3))
    t = np.arange(8) % 4
    scaled = x / 255 if dtype == np.uint8 else x
    images, labels = Mixup(1.0, 5)(x, t, np.random.default_rng(1))
    assert images.dtype == labels.dtype == np.float32
    assert labels.shape == (8, 5)
    np.testing.assert_allclose(labels.sum(axis=1), 1, rtol=1e-6)
    draw = np.random.default_rng(1)
    weight, other = draw.beta(1, 1), draw.permutation(8)
    np.testing.assert_allclose(images, weight * scaled + (1 - weight) * scaled[other], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(labels, weight * np.eye(5)[t] + (1 - weight) * np.eye(5)[t[other]], rtol=1e-5, atol=1e-6)


def test_mixup_of_soft_labels(rng):
    x, soft = image(rng, np.float32, (4, 1, 2, 2)), np.full((4, 3), 1 / 3, np.float32)
    np.testing.assert_allclose(Mixup(0.2, 3)(x, soft, rng)[1], soft, rtol=1e-6)


def test_mixup_errors(rng):
    with pytest.raises(ArgumentError, match="alpha must be above 0; received 0"):
        Mixup(0, 3)
    with pytest.raises(ArgumentError, match="classes must be a positive int; received 0"):
        Mixup(1, 0)
    with pytest.raises(ShapeError, match="Mixup has classes=3; received label 3"):
        Mixup(1, 3)(image(rng, np.uint8, (4, 1, 2, 2)), np.arange(4), rng)


def test_compose(rng):
    x = image(rng)
    both = Compose([RandomVerticalFlip(1), Compose([RandomHorizontalFlip(1)]), Mixup(0.2, 3)])
    np.testing.assert_array_equal(both(x, rng), x[:, ::-1, ::-1])
    per_image, per_batch = by_kind(both)
    assert per_image == [RandomVerticalFlip(1), RandomHorizontalFlip(1)]
    assert per_batch == [Mixup(0.2, 3)]
    assert by_kind(None) == ([], [])
    assert by_kind(Mixup(0.2, 3)) == ([], [Mixup(0.2, 3)])
    assert repr(Compose([Cutout(2)])) == "Compose([Cutout(size=2, n=1)])"


def test_compose_errors():
    with pytest.raises(ArgumentError, match="a transform must be callable as f"):
        Compose([3])
    with pytest.raises(ArgumentError, match="the order must be transforms of one image first, batch transforms last"):
        Compose([Mixup(1, 2), Cutout(2)])
    with pytest.raises(ArgumentError, match="the order must be"):
        Compose([Compose([Mixup(1, 2)]), Cutout(2)])
