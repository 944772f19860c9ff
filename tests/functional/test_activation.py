from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import references
from hypothesis import given
from hypothesis import strategies as st
from references import batch_last, numerical_gradient
from strategies import laid_out, layouts, normal, seeds, shape
from tolerances import assert_close

from xpcnn import backend
from xpcnn.functional import activation as f

pytestmark = pytest.mark.usefixtures("blocks")

# name -> (forward(x), backward(dy, x or y), whether backward reads y, reference)
ACTIVATIONS = {
    "relu": (f.relu_forward, f.relu_backward, True, references.relu),
    "clip": (
        partial(f.clip_forward, low=-1.0, high=6.0),
        partial(f.clip_backward, low=-1.0, high=6.0),
        True,
        lambda x: np.minimum(np.maximum(np.float64(x), -1.0), 6.0),
    ),
    "leaky_relu": (
        partial(f.leaky_relu_forward, slope=0.01),
        partial(f.leaky_relu_backward, slope=0.01),
        False,
        references.leaky_relu,
    ),
    "elu": (partial(f.elu_forward, alpha=1.0), partial(f.elu_backward, alpha=1.0), False, references.elu),
    "selu": (
        partial(f.elu_forward, alpha=f.SELU_ALPHA, scale=f.SELU_SCALE),
        partial(f.elu_backward, alpha=f.SELU_ALPHA, scale=f.SELU_SCALE),
        False,
        references.selu,
    ),
    "sigmoid": (f.sigmoid_forward, f.sigmoid_backward, True, references.logistic),
    "tanh": (f.tanh_forward, f.tanh_backward, True, references.tanh),
    "silu": (f.silu_forward, f.silu_backward, False, references.silu),
    "gelu": (f.gelu_forward, f.gelu_backward, False, references.gelu),
    "gelu_tanh": (f.gelu_tanh_forward, f.gelu_tanh_backward, False, references.gelu_tanh),
    "softplus": (
        partial(f.softplus_forward, beta=1.0, threshold=20.0),
        partial(f.softplus_backward, beta=1.0, threshold=20.0),
        False,
        references.softplus,
    ),
    "softplus, beta 2": (
        partial(f.softplus_forward, beta=2.0, threshold=3.0),
        partial(f.softplus_backward, beta=2.0, threshold=3.0),
        False,
        partial(references.softplus, beta=2.0, threshold=3.0),
    ),
}
every = pytest.mark.parametrize("name", ACTIVATIONS)
X = np.concatenate([np.linspace(-30, 30, 241), [-1e-3, 1e-3, -700.0, 700.0, 0.0]])


@every
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_equals_the_formula_without_overflow(xp, name, dtype):
    forward, _, _, reference = ACTIVATIONS[name]
    x = X.astype(dtype)
    y = forward(xp.asarray(x))
    assert y.dtype == dtype
    assert_close(y, reference(x), "forward")


@every
def test_gradient_is_that_of_differences(xp, name):
    forward, backward, from_output, reference = ACTIVATIONS[name]
    x = np.linspace(-6.01, 6.02, 84).reshape(3, 4, 7)
    for kink in (-1.0, 6.0, 1.5):  # of clip, and of softplus with beta 2
        x[np.abs(x - kink) < 1e-3] += 0.01
    dy = normal(1, *x.shape)
    dx = backward(xp.asarray(dy), forward(xp.asarray(x)) if from_output else xp.asarray(x))
    assert_close(dx, numerical_gradient(reference, x, dy), "gradient")


@every
def test_gradient_is_finite_everywhere(xp, name):
    forward, backward, from_output, _ = ACTIVATIONS[name]
    for dtype in ("float64", "float32"):
        x = xp.asarray(X.astype(dtype))
        dx = backward(xp.ones_like(x), forward(x) if from_output else x)
        assert dx.dtype == dtype
        assert bool(xp.isfinite(dx).all())


@every
def test_nan_is_passed_on(xp, name):
    y = ACTIVATIONS[name][0](xp.asarray(np.array([np.nan, 1.0])))
    np.testing.assert_array_equal(np.isnan(backend.to_numpy(y)), [True, False])


def test_relu_at_zero_has_gradient_zero(xp):
    x = xp.asarray(np.array([0.0, -0.0, 1.0]))
    np.testing.assert_array_equal(backend.to_numpy(f.relu_backward(xp.ones(3), f.relu_forward(x))), [0.0, 0.0, 1.0])


def test_clip_has_gradient_zero_at_both_ends(xp):
    x = xp.asarray(np.array([-2.0, -1.0, 0.0, 6.0, 7.0]))
    y = f.clip_forward(x, -1.0, 6.0)
    np.testing.assert_array_equal(backend.to_numpy(y), [-1.0, -1.0, 0.0, 6.0, 6.0])
    dx = f.clip_backward(xp.full(5, 3.0), y, -1.0, 6.0)
    np.testing.assert_array_equal(backend.to_numpy(dx), [0.0, 0.0, 3.0, 0.0, 0.0])


def test_leaky_relu_of_other_slopes(xp):
    x, dy = xp.asarray(np.array([-2.0, 0.0, 3.0])), xp.ones(3)
    for slope in (0.0, 0.3, -1.0):
        np.testing.assert_array_equal(backend.to_numpy(f.leaky_relu_forward(x, slope)), [-2 * slope, 0.0, 3.0])
        np.testing.assert_array_equal(backend.to_numpy(f.leaky_relu_backward(dy, x, slope)), [slope, slope, 1.0])


def test_elu_at_zero_has_the_derivative_from_the_left(xp):
    """They differ unless alpha is 1; x counts as not positive at 0."""
    dx = f.elu_backward(xp.full(2, 3.0), xp.asarray(np.array([0.0, -0.0])), alpha=0.5, scale=2.0)
    np.testing.assert_array_equal(backend.to_numpy(dx), 3.0)


def test_softplus_is_smooth_up_to_its_threshold(xp):
    """Only beyond it x itself is taken, and the derivative 1."""
    x = xp.asarray(np.array([1.5, np.nextafter(1.5, 2.0)]))  # beta x = 3, and the next number
    y, dx = f.softplus_forward(x, 2.0, 3.0), f.softplus_backward(xp.ones(2), x, 2.0, 3.0)
    np.testing.assert_allclose(backend.to_numpy(y), [math.log1p(math.exp(3.0)) / 2, 1.5], rtol=1e-15)
    np.testing.assert_allclose(backend.to_numpy(dx), [1 / (1 + math.exp(-3.0)), 1.0], rtol=1e-15)


@every
@given(shape=st.one_of(shape("CHWN"), shape("DN")), layout=layouts, seed=seeds)
def test_any_shape_and_layout(xp, name, shape, layout, seed):
    forward, backward, from_output, reference = ACTIVATIONS[name]
    x, dy = 3 * normal(seed, *shape), normal(seed + 1, *shape)
    x_in, dy_in = (laid_out(a, layout) if xp is np else xp.asarray(laid_out(a, layout)) for a in (x, dy))
    y = forward(x_in)
    assert_close(y, reference(x), "forward")
    assert backward(dy_in, y if from_output else x_in).shape == shape


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_erf(dtype):
    x = np.concatenate([np.linspace(-7, 7, 1401), [0.0, 1e-9, -1e-9, 40.0, -40.0]]).astype(dtype)
    expected = np.array([math.erf(float(v)) for v in x])
    np.testing.assert_allclose(backend.erf(x), expected, rtol=0, atol=4e-16 if dtype == "float64" else 3e-7)
    assert backend.erf(x).dtype == dtype
    np.testing.assert_array_equal(backend.erf(np.array([np.inf, -np.inf], dtype)), [1.0, -1.0])


# --- softmax ----------------------------------------------------------------------------------------------------

SHAPES = [(5, 4), (1, 3), (3, 2, 4, 5)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_softmax_and_its_logarithm(xp, shape, dtype):
    x = (10 * normal(1, *shape)).astype(dtype)
    y = f.softmax_forward(xp.asarray(batch_last(x)))
    assert_close(y, batch_last(references.softmax(x)), "forward")
    np.testing.assert_allclose(backend.to_numpy(y).sum(axis=0), 1.0, rtol=1e-6)
    assert_close(f.log_softmax_forward(xp.asarray(batch_last(x))), batch_last(references.log_softmax(x)), "forward")


@pytest.mark.parametrize("shape", SHAPES)
def test_softmax_gradients_are_those_of_differences(xp, shape):
    x, dy = batch_last(normal(1, *shape)), batch_last(normal(2, *shape))
    for forward, backward in (
        (f.softmax_forward, f.softmax_backward),
        (f.log_softmax_forward, f.log_softmax_backward),
    ):
        dx = backward(xp.asarray(dy), forward(xp.asarray(x)))
        assert_close(dx, numerical_gradient(forward, x, dy), "gradient")


def test_softmax_of_one_sample_does_not_depend_on_the_others(xp):
    """Each column is taken relative to its own maximum: else these exponentials would all be zero."""
    x = np.array([[1e4, -1e4], [1e4, -1e4]])
    np.testing.assert_array_equal(backend.to_numpy(f.softmax_forward(xp.asarray(x))), 0.5)
    np.testing.assert_allclose(backend.to_numpy(f.log_softmax_forward(xp.asarray(x))), -math.log(2), rtol=1e-15)


def test_softmax_of_huge_numbers(xp):
    x = xp.asarray(np.array([[1e4, -1e4], [0.0, -1e4], [-1e4, 1e4]], "float32"))
    np.testing.assert_array_equal(backend.to_numpy(f.softmax_forward(x)), [[1, 0], [0, 0], [0, 1]])
    np.testing.assert_array_equal(
        backend.to_numpy(f.log_softmax_forward(x)), np.array([[0, -2e4], [-1e4, -2e4], [-2e4, 0]], "float32")
    )
