from __future__ import annotations

import numpy as np
import pytest
from helpers import to_numpy

from xpcnn import Adam, Classifier, Conv2d, Dense, Flatten, MaxPool2d, ReLU, Sequential, Step, batch_last
from xpcnn.inspection import LayerTimes, profile, summary, watch_time


def network(device="cpu"):
    net = Sequential(Conv2d(4, 3), ReLU(), MaxPool2d(2), Flatten(), Dense(3))
    net.build((1, 8, 8), device=device)
    return net


def test_profile_names_every_layer_and_changes_nothing(xp):
    net = network("cpu" if xp is np else "cuda:0")
    before = {name: to_numpy(array).copy() for name, array in net.state_dict().items()}
    result = profile(net, batch_size=2, steps=2, optimizer=Adam())
    assert [row.path for row in result.layers] == ["0", "1", "2", "3", "4"]
    assert all(row.calls == 2 and row.forward > 0 and row.backward > 0 for row in result.layers)
    assert result.steps == 2
    assert result.total >= sum(row.forward + row.backward for row in result.layers)
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(to_numpy(array), before[name])
    assert "forward" not in vars(net["0"])


def test_macs_and_bytes_are_those_of_the_summary():
    net = network()
    rows = profile(net, batch_size=3, steps=1).layers
    expected = summary(net).rows
    assert [row.macs for row in rows] == [3 * row.macs for row in expected]
    assert [row.kept for row in rows][1:] == [3 * row.kept for row in expected][1:]


def test_profile_prints_a_table():
    text = str(profile(network(), batch_size=2, steps=1))
    assert "Time per step on cpu, mean of 1 steps" in text
    assert "Conv2d(4, 3)" in text
    assert "FLOP/s" in text
    assert "Total:" in text
    assert "outside the layers" in text


def test_watching_a_hand_written_step_and_an_error_inside():
    net = network()
    x = batch_last(np.ones((2, 1, 8, 8), np.float32))
    with watch_time(net) as result:
        y, ctx = net.forward(x, Step())
        net.backward(np.ones_like(y), ctx, need_dx=False)
    assert result.layers[0].calls == 1
    assert "Total:" in str(result)
    with pytest.raises(KeyError), watch_time(net):
        raise KeyError
    assert not any("forward" in vars(layer) for _, layer in net.leaves())


@pytest.mark.parametrize(("steps", "timed"), [(3, 3), (100, 7)])
def test_the_callback_times_the_first_steps_of_a_training(steps, timed, capsys):
    rng = np.random.default_rng(0)
    x, t = rng.random((16, 1, 8, 8), dtype=np.float32), rng.integers(0, 3, 16)
    times, plain = LayerTimes(steps), network()
    watched = Classifier(network(), device="cpu")
    watched.fit(x, t, epochs=2, batch_size=4, callbacks=[times], verbose=False)
    assert times.result is not None
    assert times.result.steps == timed
    assert [row.calls for row in times.result.layers] == [timed] * 5
    assert f"mean of {timed} steps" in capsys.readouterr().out
    assert not any("forward" in vars(layer) for _, layer in watched.net.leaves())
    Classifier(plain, device="cpu").fit(x, t, epochs=2, batch_size=4, verbose=False)
    for one, other in zip(plain.state_dict().values(), watched.net.state_dict().values(), strict=True):
        np.testing.assert_array_equal(one, other)
