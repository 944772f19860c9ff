"""Every check over every row of `table.py`."""

from __future__ import annotations

import copy
import json
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import strategies
from helpers import readonly, to_numpy
from layers.table import ROWS, Row
from references import batch_first, batch_last
from tolerances import assert_close

from xpcnn import backend, layers
from xpcnn.errors import ShapeError, StateDictError
from xpcnn.inspection import gradcheck
from xpcnn.layers import Layer, Step, config, from_config


def rows(which: Callable[[Row], Any] = lambda row: True) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", [row for row in ROWS if which(row)], ids=lambda row: row.name)


every_row = rows()
STEP = Step(seed=3, number=7)


def device_of(xp: Any) -> str:
    return "cpu" if xp is np else "cuda:0"


def gradients(layer: Layer) -> dict[str, np.ndarray]:
    return {name: to_numpy(p.grad).copy() for name, p in layer.parameters().items()}


def run(layer: Layer, x: Any, dy: Any, need_dx: bool = True) -> dict[str, np.ndarray | None]:
    """One training step from cleared gradients: y, dx and the gradient of every parameter."""
    for parameter in layer.parameters().values():
        parameter.grad[...] = 0.0
    y, ctx = layer.forward(x, STEP)
    dx = layer.backward(dy, ctx, need_dx)
    return {"y": to_numpy(y).copy(), "dx": None if dx is None else to_numpy(dx).copy(), **gradients(layer)}


def assert_same(a: dict[str, np.ndarray | None], b: dict[str, np.ndarray | None]) -> None:
    """Bit for bit."""
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def arrays(row: Row, dtype: str = "float64", n: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """x and dy, batch-last."""
    dy = strategies.normal(5, n, *row.output_shape, dtype=dtype)
    return batch_last(row.images(n, dtype)), batch_last(dy)


# --- what comes out ---------------------------------------------------------------------------------------------


@every_row
@pytest.mark.parametrize("n", [1, 4])
def test_output_shape_is_what_build_said(row, n):
    layer = row.make()
    assert layer.build(row.input_shape) == row.output_shape
    x = batch_last(row.images(n, "float32"))
    y, ctx = layer.forward(x, False)
    assert y.shape == (*row.output_shape, n)
    assert y.dtype == "float32"
    assert ctx is None


@every_row
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("n", [1, 3])
def test_inference_equals_the_reference(xp, row, dtype, n):
    layer = row.built(dtype, device=device_of(xp))
    x = row.images(n, dtype)
    state = {name: to_numpy(value) for name, value in layer.state_dict().items()}
    y, ctx = layer.forward(xp.asarray(batch_last(x)), False)
    assert ctx is None
    assert y.dtype == dtype
    expected = row.reference(np.float64(x), state)
    assert_close(batch_first(to_numpy(y)), expected, "forward")
    assert_close(layer(xp.asarray(x)), expected, "forward", dtype)


@rows(lambda row: not row.random)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_training_equals_the_reference(xp, row, dtype):
    layer = row.built(dtype, device=device_of(xp))
    x = row.images(3, dtype)
    state = {name: to_numpy(value).copy() for name, value in layer.state_dict().items()}
    y, ctx = layer.forward(xp.asarray(batch_last(x)), True)
    assert ctx is not None
    assert_close(batch_first(to_numpy(y)), (row.training or row.reference)(np.float64(x), state), "forward")


@every_row
def test_a_step_at_inference_gives_what_prediction_gives(row):
    layer, x = row.built(), batch_last(row.images())
    before = copy.deepcopy(layer.state_dict())
    y, ctx = layer.forward(x, Step(inference=True))
    np.testing.assert_array_equal(y, layer.forward(x, False)[0])
    assert layer.backward(np.ones_like(y), ctx).shape == x.shape
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


# --- gradients --------------------------------------------------------------------------------------------------


@every_row
@pytest.mark.parametrize("inference", [False, True])
def test_gradients_are_those_of_differences(row, inference):
    report = gradcheck(row.built(), row.images(), inference=inference)
    names = {"input"} | {name for name in row.state if not name.endswith(("running_mean", "running_var"))}
    assert {r.name for r in report.rows} == names
    assert report.passed, f"\n{report}"


@rows(lambda row: row.training is None)
def test_gradients_of_one_image(row):
    report = gradcheck(row.built(), row.images(1))
    assert report.passed, f"\n{report}"


@every_row
def test_without_dx_the_parameters_get_the_same(row):
    layer = row.built()
    with_dx, without = run(layer, *arrays(row)), run(layer, *arrays(row), need_dx=False)
    assert with_dx.pop("dx").shape == (*row.input_shape, 3)
    assert without.pop("dx") is None
    for name in with_dx:
        assert_close(without[name], with_dx[name], "forward")


@every_row
def test_a_step_that_needs_no_dx_gives_the_same(row):
    layer, (x, dy) = row.built(), arrays(row)
    expected = run(layer, x, dy)
    layer.parameters()
    for parameter in layer.parameters().values():
        parameter.grad[...] = 0.0
    y, ctx = layer.forward(x, Step(seed=3, number=7, need_dx=False))
    assert layer.backward(dy, ctx, need_dx=False) is None
    np.testing.assert_array_equal(y, expected["y"])
    for name, gradient in gradients(layer).items():
        assert_close(gradient, expected[name], "forward")


@every_row
def test_gradients_accumulate(row):
    layer, (x, dy) = row.built(), arrays(row)
    once = run(layer, x, dy)
    _, ctx = layer.forward(x, STEP)
    layer.backward(dy, ctx)
    for name, gradient in gradients(layer).items():
        assert_close(gradient, 2 * once[name], "forward")


@rows(lambda row: row.built().parameters())
def test_frozen_parameters_get_no_gradient(row):
    layer, (x, dy) = row.built(), arrays(row)
    expected = run(layer, x, dy)
    for frozen in layer.parameters():
        layer.unfreeze()
        layer.freeze(frozen)
        trainable = [name for name, p in layer.parameters().items() if p.trainable]
        actual = run(layer, x, dy)
        assert not actual[frozen].any(), frozen
        if any("running_mean" in name for name in row.state) and not any(
            name.rpartition(".")[0] == frozen.rpartition(".")[0] for name in trainable
        ):
            continue  # a frozen batch norm changes to its second mode
        for name in ["y", "dx", *trainable]:
            assert_close(actual[name], expected[name], "forward")
    layer.freeze()
    assert not any(gradient.any() for name, gradient in run(layer, x, dy).items() if name not in ("y", "dx"))
    _, ctx = layer.forward(x, Step(need_dx=False))
    assert layer.backward(dy, ctx, need_dx=False) is None


# --- arrays of all kinds ----------------------------------------------------------------------------------------


@every_row
@pytest.mark.parametrize("layout", ["F", "strided", "reversed", "readonly"])
def test_any_memory_layout_and_nothing_is_written(row, layout):
    layer, (x, dy) = row.built(), arrays(row)
    expected = run(layer, x, dy)
    odd_x, odd_dy = (readonly(strategies.laid_out(a, layout)) for a in (x, dy))
    actual = run(layer, odd_x, odd_dy)
    for name in expected:
        assert_close(actual[name], expected[name], "forward")
    np.testing.assert_array_equal(odd_x, x)
    np.testing.assert_array_equal(odd_dy, dy)


@every_row
def test_inputs_on_the_device_are_not_written(xp, row):
    layer, (x, dy) = row.built(device=device_of(xp)), arrays(row)
    x_in, dy_in = xp.asarray(x), xp.asarray(dy)
    run(layer, x_in, dy_in)
    np.testing.assert_array_equal(to_numpy(x_in), x)
    np.testing.assert_array_equal(to_numpy(dy_in), dy)


@every_row
def test_float32_is_float64_rounded(row):
    high, low = run(row.built("float64"), *arrays(row)), run(row.built("float32"), *arrays(row, "float32"))
    for name, value in high.items():
        assert low[name].dtype == "float32"
        scale = max(1.0, float(np.abs(value).max(initial=0.0)))
        np.testing.assert_allclose(low[name], value, rtol=1e-4, atol=1e-5 * scale, err_msg=name)


@every_row
def test_float16_stays_float16(xp, row):
    high = run(row.built("float64"), *arrays(row))
    layer = row.built("float16", device=device_of(xp))
    low = run(layer, *(xp.asarray(a) for a in arrays(row, "float16")))
    for name, value in high.items():
        assert low[name].dtype == "float16", name
        scale = max(1.0, float(np.abs(value).max(initial=0.0)))
        np.testing.assert_allclose(low[name], value, rtol=0.02, atol=0.02 * scale, err_msg=name)
    assert layer.forward(xp.asarray(arrays(row, "float16")[0]), False)[0].dtype == "float16"


@pytest.mark.cupy
@every_row
def test_numpy_and_cupy_agree(row):
    import cupy

    host = run(row.built("float32"), *arrays(row, "float32"))
    device = run(row.built("float32", device="cuda:0"), *(cupy.asarray(a) for a in arrays(row, "float32")))
    for name, value in host.items():
        assert device[name].dtype == value.dtype
        assert_close(device[name], value, "elementwise" if row.elementwise else "sum of products")


# --- one call does not know of another --------------------------------------------------------------------------


@every_row
def test_two_forwards_then_both_backwards(xp, row):
    layer = row.built(device=device_of(xp))
    (x, dy), other = (tuple(xp.asarray(a) for a in arrays(row, n=n)) for n in (3, 2))
    one, two = run(layer, x, dy), run(layer, *other)
    for parameter in layer.parameters().values():
        parameter.grad[...] = 0.0
    first_y, first = layer.forward(x, STEP)
    second_y, second = layer.forward(other[0], STEP)
    layer.forward(other[0], False)
    dx_one, dx_two = layer.backward(dy, first), layer.backward(other[1], second)
    np.testing.assert_array_equal(to_numpy(dx_one), one["dx"])
    np.testing.assert_array_equal(to_numpy(dx_two), two["dx"])
    np.testing.assert_array_equal(to_numpy(first_y), one["y"])
    np.testing.assert_array_equal(to_numpy(second_y), two["y"])
    for name, gradient in gradients(layer).items():
        assert_close(gradient, one[name] + two[name], "forward")


@every_row
def test_a_call_leaves_nothing_on_the_layer(row):
    layer = row.built()

    def attributes() -> list[dict[str, Any]]:
        return [dict(vars(inner)) for _, inner in layer.walk()]

    before = attributes()
    run(layer, *arrays(row))
    layer(row.images())
    for earlier, later in zip(before, attributes(), strict=True):
        assert earlier.keys() == later.keys()
        assert all(earlier[name] is later[name] for name in earlier)


@every_row
def test_again_is_the_same_bit_for_bit(xp, row):
    layer = row.built("float32", device=device_of(xp))
    x, dy = (xp.asarray(a) for a in arrays(row, "float32"))
    assert_same(run(layer, x, dy), run(layer, x, dy))


@every_row
def test_recomputing_a_step_changes_nothing(row):
    layer, (x, dy) = row.built(), arrays(row)
    expected = run(layer, x, dy)
    before = copy.deepcopy(layer.state_dict())
    y, ctx = layer.forward(x, Step(seed=3, number=7, recompute=True))
    np.testing.assert_array_equal(y, expected["y"])
    np.testing.assert_array_equal(layer.backward(dy, ctx), expected["dx"])
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


@every_row
def test_threads_may_predict_with_one_layer(row, monkeypatch):
    monkeypatch.setattr(backend, "INLINE_WORK", 0)
    monkeypatch.setattr(backend, "_count", 2)
    layer = row.built("float32")
    inputs = [row.images(n, "float32", seed=n) for n in range(1, 5)]
    expected = [layer(x) for x in inputs]
    results: list[Any] = [None] * len(inputs)

    def predict(i: int) -> None:
        for _ in range(3):
            results[i] = layer(inputs[i])

    workers = [threading.Thread(target=predict, args=(i,)) for i in range(len(inputs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for actual, wanted in zip(results, expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)


# --- state, configuration, errors -------------------------------------------------------------------------------


@every_row
def test_state_dict_goes_round(xp, row):
    one = row.built(device=device_of(xp))
    state = one.state_dict()
    assert {name: value.shape for name, value in state.items()} == row.state
    other = row.make()
    other.build(row.input_shape, seed=99, dtype="float64")
    if not state:
        with pytest.raises(StateDictError, match=r"no parameters"):
            other.load_state_dict({"weight": np.zeros(1)})
        return
    other.load_state_dict(state | {"0.num_batches_tracked": np.zeros((), "int64")})
    x = row.images()
    assert_close(other(x), one(xp.asarray(x)), "sum of products")
    for name, value in state.items():
        assert not np.shares_memory(other.state_dict()[name], to_numpy(value))


@every_row
def test_configuration_goes_round(row):
    layer = row.built()
    text = json.dumps(config(layer), allow_nan=False)
    assert json.dumps(config(row.make()), allow_nan=False) == text
    again = from_config(json.loads(text))
    assert type(again) is type(layer)
    assert repr(again) == repr(layer)
    assert again.build(row.input_shape, dtype="float64") == row.output_shape
    if row.state:
        again.load_state_dict(layer.state_dict())
    assert_same(run(layer, *arrays(row)), run(again, *arrays(row)))
    assert config(again) == config(layer)


@every_row
def test_initial_weights_depend_on_seed_and_name_alone(row):
    one, same, other = row.make(), row.make(), row.make()
    for layer, seed in ((one, 4), (same, 4), (other, 5)):
        layer.build(row.input_shape, seed=seed)
    state = one.state_dict()
    for name, value in same.state_dict().items():
        np.testing.assert_array_equal(value, state[name])
    for name, value in other.state_dict().items():
        if name.endswith("weight") and value.ndim > 1:
            assert not np.array_equal(value, state[name])


@every_row
def test_building_again_keeps_the_parameters(row):
    layer = row.built()
    before = copy.deepcopy(layer.state_dict())
    assert layer.build(row.input_shape, seed=1) == row.output_shape
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    assert layer.dtype == ("float64" if row.state else "float32")


@every_row
def test_a_deep_copy_is_independent(row):
    layer = row.built()
    twin = copy.deepcopy(layer)
    x = row.images()
    expected = layer(x)
    for value in twin.state_dict().values():
        value[...] = 0.5
    np.testing.assert_array_equal(layer(x), expected)


@rows(lambda row: row.wrong)
def test_wrong_shapes_are_refused_with_words(row):
    for shape, text in row.wrong:
        with pytest.raises(ShapeError, match=text):
            row.make().build(shape)


@every_row
def test_macs(row):
    assert row.built().macs(row.input_shape, row.output_shape) == row.macs


@rows(lambda row: row.state)
def test_a_layer_with_parameters_must_be_built_first(row):
    with pytest.raises(ShapeError, match=r"has no parameters yet: call net\.build\(input_shape\)"):
        row.make().forward(batch_last(row.images()), False)


@every_row
def test_its_repr_begins_with_its_name(row):
    layer = row.make()
    assert repr(layer).startswith(type(layer).__name__ + "(")
    assert math.prod(row.input_shape) > 0


def test_every_public_layer_has_a_row():
    tested = {type(inner).__name__ for row in ROWS for _, inner in row.make().walk()}
    public = {
        name
        for name, value in vars(layers).items()
        if isinstance(value, type) and issubclass(value, Layer) and value is not Layer
    }
    assert public - tested == {"AuxiliaryHead"}  # has tests of its own
