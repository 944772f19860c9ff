from __future__ import annotations

import math
import threading

import numpy as np
import pytest
from strategies import normal
from tolerances import assert_close

from xpcnn import backend
from xpcnn.functional import dropout


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_statistics_of_the_mask(p):
    """The share of dropped elements, and of neighbours dropped together, within five standard deviations."""
    size = 200_000
    dropped = ~dropout.dropout_mask(np, (size,), p, key=7)
    assert abs(dropped.mean() - p) < 5 * math.sqrt(p * (1 - p) / size)
    for shift in (1, 2, 8, 64, 1000):
        both = (dropped[shift:] & dropped[:-shift]).mean()
        assert abs(both - p * p) < 5 * math.sqrt(p * p * (1 - p * p) / size)


def test_masks_of_neighbouring_keys_are_independent():
    size = 100_000
    masks = [dropout.dropout_mask(np, (size,), 0.5, key) for key in range(20)]
    for a in range(20):
        for b in range(a):
            assert abs((masks[a] == masks[b]).mean() - 0.5) < 6 * 0.5 / math.sqrt(size)


def test_bits_are_uniform():
    bits = dropout.random_bits(np, 0, 160_000, 3)
    assert bits.dtype == np.uint32
    for shift in (0, 8, 16, 24, 28):
        counts = np.bincount((bits >> np.uint32(shift)) & np.uint32(15), minlength=16)
        assert ((counts - 10_000) ** 2 / 10_000).sum() < 50  # chi-squared with 15 degrees of freedom: p about 1e-5


@pytest.mark.parametrize("p", [0.0, 0.25, 0.5, 0.999, 1.0])
def test_the_same_mask_on_both_backends(xp, p):
    x = normal(0, 3, 5, 7, 11, dtype="float32") + 10
    y, mask = dropout.dropout_forward(xp.asarray(x), p, key=0xFEDC1234)
    expected, expected_mask = dropout.dropout_forward(x, p, key=0xFEDC1234)
    np.testing.assert_array_equal(backend.to_numpy(mask), expected_mask)
    np.testing.assert_array_equal(backend.to_numpy(y), expected)


def test_the_mask_does_not_depend_on_blocks_and_threads(monkeypatch):
    expected = dropout.dropout_mask(np, (100, 1000), 0.3, 5)
    monkeypatch.setattr(dropout, "BLOCK", 77)
    monkeypatch.setattr(backend, "INLINE_WORK", 0)
    monkeypatch.setattr(backend, "_count", 3)
    np.testing.assert_array_equal(dropout.dropout_mask(np, (100, 1000), 0.3, 5), expected)


@pytest.mark.parametrize("p", [0.25, 0.5])
def test_what_is_kept_is_scaled(xp, p):
    x, dy = normal(1, 4, 50), normal(2, 4, 50)
    y, mask = dropout.dropout_forward(xp.asarray(x), p, key=1)
    kept = backend.to_numpy(mask)
    assert 0 < kept.mean() < 1
    assert_close(y, np.where(kept, x / (1 - p), 0.0), "elementwise")
    assert_close(dropout.dropout_backward(xp.asarray(dy), mask, p), np.where(kept, dy / (1 - p), 0.0), "elementwise")


def test_nothing_is_dropped_at_zero_and_everything_at_one(xp):
    x = xp.asarray(normal(1, 4, 50))
    y, mask = dropout.dropout_forward(x, 0.0, key=1)
    assert bool(mask.all())
    np.testing.assert_array_equal(backend.to_numpy(y), backend.to_numpy(x))
    y, mask = dropout.dropout_forward(x, 1.0, key=1)
    assert mask.dtype == np.bool_
    assert not bool(mask.any())
    np.testing.assert_array_equal(backend.to_numpy(y), 0.0)
    np.testing.assert_array_equal(backend.to_numpy(dropout.dropout_backward(x, mask, 1.0)), 0.0)


def test_everything_dropped_hides_even_nan(xp):
    x = xp.full((2, 3), math.nan)
    y, mask = dropout.dropout_forward(x, 1.0, key=1)
    np.testing.assert_array_equal(backend.to_numpy(y), 0.0)
    np.testing.assert_array_equal(backend.to_numpy(dropout.dropout_backward(x, mask, 1.0)), 0.0)


def lowbias32(h: int) -> int:
    """The mixer as published, one number at a time."""
    for shift, factor in ((16, 0x21F0AAAD), (15, 0xD35A2D97)):
        h = (h ^ (h >> shift)) * factor % 2**32
    return h ^ (h >> 15)


@pytest.mark.parametrize("key", [0, 1, 0xFEDCBA98, 2**32 - 1])
def test_bits_are_those_of_the_published_mixer(xp, key):
    start, stop = 1000, 1050
    salt = dropout.mix(key + 1)
    expected = [lowbias32(lowbias32(element ^ key) ^ salt) for element in range(start, stop)]
    assert backend.to_numpy(dropout.random_bits(xp, start, stop, key)).tolist() == expected


@pytest.mark.parametrize("value", [0, 1, 2**32 - 1, 2**32, 0xFEDCBA9876543210, 2**64 - 1, 2**64 + 5])
def test_mix_puts_one_half_after_the_other_into_the_mixer(value):
    low = lowbias32((0x9E3779B9 + value % 2**32) % 2**32)
    assert dropout.mix(value) == lowbias32((low + (value >> 32) % 2**32) % 2**32)


def test_every_layer_seed_and_step_has_a_mask_of_its_own():
    keys = {dropout.mask_key(layer, seed, step) for layer in range(9) for seed in range(9) for step in range(9)}
    assert len(keys) == 9**3


def test_masks_never_change(xp):
    """A training that is resumed with a later version drops the same elements."""
    assert [dropout.mask_key(1, 2, 3), dropout.mask_key(2**40, 7, 2**63)] == [0xC4F6C19F, 0x04D287F1]
    kept = backend.to_numpy(dropout.dropout_mask(xp, (2, 8), 0.5, 7))
    assert kept.dtype == np.bool_
    assert kept.astype(int).tolist() == [[1, 1, 1, 1, 1, 1, 0, 0], [0, 1, 0, 0, 1, 0, 1, 1]]


def test_an_element_is_kept_from_its_threshold_on(xp):
    """p is compared with the hash over 2**32: at the hash of an element it is kept, just above it is dropped."""
    bits = backend.to_numpy(dropout.random_bits(xp, 0, 4, 3))
    for element, value in enumerate(bits.tolist()):
        for p, kept in ((value / 2**32, True), ((value + 1) / 2**32, False)):
            assert bool(dropout.dropout_mask(xp, (4,), p, 3)[element]) is kept
            assert bool(dropout.dropout_forward(xp.ones(4), p, 3)[1][element]) is kept


def test_a_mask_is_made_in_blocks_that_stay_in_the_cache(monkeypatch):
    lengths, random_bits = [], dropout.random_bits

    def spy(xp, start, stop, key):
        lengths.append(stop - start)
        return random_bits(xp, start, stop, key)

    monkeypatch.setattr(dropout, "random_bits", spy)
    dropout.dropout_mask(np, (3, dropout.BLOCK), 0.3, 5)
    assert sum(lengths) == 3 * dropout.BLOCK
    assert max(lengths) <= dropout.BLOCK


def test_large_masks_are_made_by_several_threads_at_once(monkeypatch):
    """Each of two waits, inside its block, for the other."""
    meeting, random_bits = threading.Barrier(2), dropout.random_bits

    def meet(*arguments):
        meeting.wait(timeout=60.0)
        return random_bits(*arguments)

    monkeypatch.setattr(dropout, "random_bits", meet)
    monkeypatch.setattr(backend, "_count", 2)
    monkeypatch.setattr(backend, "_lanes", 0)
    assert dropout.dropout_mask(np, (2, 20_000), 0.5, 7).any()


def test_mix_gives_32_bits_and_depends_on_all_64():
    values = {dropout.mix(v) for v in [0, 1, 2, 1 << 31, 1 << 32, 1 << 40, 1 << 63, (1 << 64) - 1]}
    assert len(values) == 8
    assert all(0 <= v < 2**32 for v in values)
