from __future__ import annotations

import math

import numpy as np
import pytest
import references
from hypothesis import given
from hypothesis import strategies as st
from references import numerical_gradient
from strategies import laid_out, layouts, normal, seeds, shape
from tolerances import assert_close

from xpcnn.backend import to_numpy
from xpcnn.errors import ArgumentError, DeviceError, ShapeError
from xpcnn.functional.loss import mse_loss, softmax_cross_entropy

WEIGHTS = np.array([0.5, 2.0, 1.0, 0.0, 3.0])
HARD = {
    "plain": {},
    "weighted": {"class_weights": WEIGHTS},
    "smoothed": {"label_smoothing": 0.1},
    "all smoothed away": {"label_smoothing": 1.0},
    "ignored": {"ignore_index": 2},
    "ignored outside": {"ignore_index": -100},
    "weighted and smoothed": {"class_weights": WEIGHTS, "label_smoothing": 0.2},
    "weighted and ignored": {"class_weights": WEIGHTS, "ignore_index": 1},
    "smoothed and ignored": {"label_smoothing": 0.3, "ignore_index": 0},
    "all": {"class_weights": WEIGHTS, "label_smoothing": 0.2, "ignore_index": -1},
}
SOFT = {name: options for name, options in HARD.items() if "ignore_index" not in options}
LABELS = np.array([0, 1, 2, 4, 2, 0, 1])


def soft_labels(seed: int, n: int, k: int) -> np.ndarray:
    return references.softmax(normal(seed, n, k))


def labels_for(options) -> np.ndarray:
    labels = LABELS.copy()
    if options.get("ignore_index", 0) < 0:
        labels[[0, 4]] = options["ignore_index"]
    return labels


def on(xp, options):
    weights = options.get("class_weights")
    return options if weights is None else {**options, "class_weights": xp.asarray(weights)}


def check(xp, logits: np.ndarray, t: np.ndarray, options, layout: str = "C") -> None:
    """logits (N, K). Loss against the formula, gradient against differences of the formula."""
    arrays = laid_out(np.ascontiguousarray(logits.T), layout), laid_out(t, layout) if t.ndim == 2 else t
    loss, dlogits = softmax_cross_entropy(*(a if xp is np else xp.asarray(a) for a in arrays), **on(xp, options))
    assert loss.shape == ()
    assert_close(
        np.asarray(to_numpy(loss)), np.array(references.softmax_cross_entropy(logits, t, **options)), "forward"
    )
    expected = numerical_gradient(lambda v: references.softmax_cross_entropy(v, t, **options), logits)
    assert_close(dlogits, expected.T, "gradient")


@pytest.mark.parametrize("options", HARD.values(), ids=HARD)
@pytest.mark.parametrize("integer", ["int64", "int32"])
def test_integer_labels(xp, options, integer):
    check(xp, 3 * normal(1, 7, 5), labels_for(options).astype(integer), options)


@pytest.mark.parametrize("options", SOFT.values(), ids=SOFT)
def test_soft_labels(xp, options):
    check(xp, 3 * normal(1, 7, 5), soft_labels(2, 7, 5), options)


@pytest.mark.parametrize("options", HARD.values(), ids=HARD)
def test_float32(xp, options):
    logits, t = (3 * normal(1, 7, 5)).astype("float32"), labels_for(options)
    if "class_weights" in options:
        options = {**options, "class_weights": options["class_weights"].astype("float32")}
    loss, dlogits = softmax_cross_entropy(xp.asarray(logits.T), xp.asarray(t), **on(xp, options))
    assert loss.dtype == dlogits.dtype == "float32"
    expected = references.softmax_cross_entropy(logits, t, **options)
    np.testing.assert_allclose(float(loss), expected, rtol=1e-5)


@pytest.mark.parametrize("options", SOFT.values(), ids=SOFT)
def test_float32_with_soft_labels_of_float64(xp, options):
    logits, t = (3 * normal(1, 7, 5)).astype("float32"), soft_labels(2, 7, 5)
    if "class_weights" in options:
        options = {**options, "class_weights": options["class_weights"].astype("float32")}
    loss, dlogits = softmax_cross_entropy(xp.asarray(logits.T), xp.asarray(t), **on(xp, options))
    assert loss.dtype == dlogits.dtype == "float32"
    np.testing.assert_allclose(float(loss), references.softmax_cross_entropy(logits, t, **options), rtol=1e-5)


def test_small_labels_name_the_first_of_many_classes(xp):
    """No class beyond 255 is taken for one of these."""
    loss, _ = softmax_cross_entropy(*(xp.asarray(a) for a in (np.zeros((300, 2)), np.array([0, 255], "uint8"))))
    assert math.isclose(float(loss), math.log(300))
    weighted, _ = softmax_cross_entropy(xp.zeros((300, 2)), xp.asarray(np.array([0, 255], "uint8")), xp.ones(300))
    assert math.isclose(float(weighted), math.log(300))


def test_where_all_are_ignored_the_loss_is_zero(xp):
    logits, t = xp.asarray(normal(1, 5, 3)), xp.asarray(np.full(3, -100))
    for options in ({}, {"label_smoothing": 0.1}, {"class_weights": xp.ones(5)}):
        loss, dlogits = softmax_cross_entropy(logits, t, ignore_index=-100, **options)
        assert str(float(loss)) == "0.0"  # and not -0.0
        np.testing.assert_array_equal(to_numpy(dlogits), 0.0)


@given(n_k=shape("NK"), seed=seeds, soft=st.booleans(), smoothing=st.sampled_from([0.0, 0.1]), layout=layouts)
def test_any_shape_and_layout(xp, n_k, seed, soft, smoothing, layout):
    n, k = n_k
    t = soft_labels(seed, n, k) if soft and n_k[0] else np.random.default_rng(seed).integers(0, k, n)
    check(xp, normal(seed, n, k), t, {"label_smoothing": smoothing}, layout)


def test_one_hot_labels_are_labels(xp):
    logits = xp.asarray(normal(1, 5, 7))
    hard, d_hard = softmax_cross_entropy(logits, xp.asarray(LABELS))
    soft, d_soft = softmax_cross_entropy(logits, xp.asarray(np.eye(5)[LABELS]))
    assert_close(hard, to_numpy(soft), "elementwise")
    assert_close(d_hard, to_numpy(d_soft), "elementwise")


def test_equal_logits_cost_the_logarithm_of_the_classes(xp):
    loss, _ = softmax_cross_entropy(xp.zeros((10, 4)), xp.asarray(np.arange(4)))
    assert math.isclose(float(loss), math.log(10))


@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
def test_huge_logits_do_not_overflow(xp, size):
    logits = xp.asarray(np.array([[size, -size], [-size, size]], "float32"))
    loss, dlogits = softmax_cross_entropy(logits, xp.asarray(np.array([0, 1])))
    assert float(loss) == 0.0
    np.testing.assert_array_equal(to_numpy(dlogits), 0.0)
    loss, _ = softmax_cross_entropy(logits, xp.asarray(np.array([1, 0])))
    assert math.isclose(float(loss), 2 * size, rel_tol=1e-6)


def test_the_largest_logit_may_be_that_of_any_class(xp):
    """Everything is taken relative to it: relative to another, these exponentials would overflow."""
    loss, dlogits = softmax_cross_entropy(xp.asarray(1e4 * np.eye(40, dtype="float32")), xp.asarray(np.arange(40)))
    assert float(loss) == 0.0
    np.testing.assert_array_equal(to_numpy(dlogits), 0.0)


def test_a_class_ruled_out_by_minus_infinity_costs_nothing_to_the_others(xp):
    logits = xp.asarray(np.array([[0.0], [-np.inf], [0.0]]))
    loss, dlogits = softmax_cross_entropy(logits, xp.asarray(np.array([0])))
    assert math.isclose(float(loss), math.log(2))
    np.testing.assert_allclose(to_numpy(dlogits)[:, 0], [-0.5, 0.0, 0.5], atol=1e-15)


def test_float16_is_summed_in_float32(xp):
    logits = xp.asarray((20 * normal(1, 3, 4000)).astype("float16"))
    t = np.arange(4000) % 3
    loss, dlogits = softmax_cross_entropy(logits, xp.asarray(t))
    assert loss.dtype == "float32"
    assert dlogits.dtype == "float16"
    np.testing.assert_allclose(float(loss), references.softmax_cross_entropy(to_numpy(logits).T, t), rtol=1e-5)


def test_gradients_sum_to_zero_over_classes(xp):
    _, dlogits = softmax_cross_entropy(xp.asarray(normal(1, 5, 7)), xp.asarray(LABELS), label_smoothing=0.1)
    np.testing.assert_allclose(to_numpy(dlogits).sum(axis=0), 0.0, atol=1e-15)


@pytest.mark.parametrize(
    ("logits", "t", "options", "error", "text"),
    [
        (
            (5, 7),
            np.zeros(6, int),
            {},
            ShapeError,
            r"^softmax_cross_entropy expects logits \(K, N\).* labels \(6,\)",
        ),
        ((5, 7), np.zeros((5, 7)), {}, ShapeError, r"soft labels \(N, K\); received .* labels \(5, 7\)"),
        ((5, 7, 1), np.zeros(7, int), {}, ShapeError, r"received logits \(5, 7, 1\)"),
        ((5, 7), np.zeros(7), {}, ShapeError, r"labels \(N,\) must be integers; received dtype float64"),
        ((5, 7), np.zeros(7, int), {"label_smoothing": 1.5}, ArgumentError, r"between 0 and 1; received 1\.5"),
        ((5, 7), np.zeros(7, int), {"label_smoothing": -0.1}, ArgumentError, r"between 0 and 1; received -0\.1"),
        ((5, 7), np.zeros(7, int), {"class_weights": np.ones(4)}, ShapeError, r"\(5,\); received \(4,\)"),
    ],
)
def test_wrong_arguments_are_refused(logits, t, options, error, text):
    with pytest.raises(error, match=text):
        softmax_cross_entropy(np.zeros(logits), t, **options)


@pytest.mark.cupy
def test_labels_on_another_device_are_refused():
    import cupy

    with pytest.raises(DeviceError, match=r"logits on cuda:0, t on cpu"):
        softmax_cross_entropy(cupy.zeros((3, 2)), np.zeros(2, int))


# --- mean squared error -----------------------------------------------------------------------------------------


@given(d_n=shape("DN"), layout=layouts, seed=seeds)
def test_mse(xp, d_n, layout, seed):
    y, target = normal(seed, *d_n), normal(seed + 1, *d_n[::-1])
    loss, dy = mse_loss(*(a if xp is np else xp.asarray(a) for a in (laid_out(y, layout), laid_out(target, layout))))
    assert loss.shape == ()
    np.testing.assert_allclose(float(loss), references.mse(y.T, target), rtol=1e-12)
    assert_close(dy, numerical_gradient(lambda v: references.mse(v.T, target), y), "gradient")


def test_mse_keeps_float32(xp):
    loss, dy = mse_loss(xp.ones((2, 3), "float32"), xp.zeros((3, 2), "float64"))
    assert loss.dtype == dy.dtype == "float32"
    assert float(loss) == 1.0


def test_mse_of_float16_is_summed_in_float32(xp):
    loss, dy = mse_loss(xp.full((10, 4000), 100.0, "float16"), xp.zeros((4000, 10), "float16"))
    assert float(loss) == 10_000.0
    assert loss.dtype == "float32"
    assert dy.dtype == "float16"


def test_mse_refuses_other_shapes():
    with pytest.raises(ShapeError, match=r"y \(D, N\) and target \(N, D\); received y \(2, 3\), target \(2, 3\)"):
        mse_loss(np.zeros((2, 3)), np.zeros((2, 3)))
