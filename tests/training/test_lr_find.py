"""The learning-rate range test: what it sees, what it suggests, and that it leaves everything as it was."""

from __future__ import annotations

import builtins
import pickle

import numpy as np
import pytest
from helpers import to_numpy
from PIL import Image
from toys import norm_net, place, quarters, small_classifier

from xpcnn import SGD, Adam, ArgumentError, DataError, MissingExtraError
from xpcnn.schedule import Exponential
from xpcnn.training import LearningRates, lr_find


def state(clf):
    """Return everything that a test must not touch."""
    arrays = {name: to_numpy(array).copy() for name, array in clf.net.state_dict().items()}
    arrays |= {
        f"optimizer/{k}": to_numpy(a).copy() for k, a in clf.optimizer.state_dict().items() if hasattr(a, "dtype")
    }
    return arrays


def test_the_rates_grow_by_equal_factors_and_the_loss_is_that_of_fit(xp):
    images, labels = quarters(48)
    clf = small_classifier(device=place(xp), optimizer=SGD(0.5, groups={"4": {"lr": 0.25}}))
    found = lr_find(clf, images, labels, low=1e-4, high=1.0, steps=9, batch_size=16)
    np.testing.assert_allclose(found.rates, np.geomspace(1e-4, 1, 9), rtol=1e-12)
    assert not found.diverged
    # the first losses are those of the untrained network, for the steps are tiny
    twin = small_classifier(device=place(xp))
    twin.build((1, 8, 8))
    assert found.losses[:3].mean() == pytest.approx(twin.evaluate(images, labels).loss, rel=1e-2)
    average = 0.0
    for i, loss in enumerate(found.losses):
        average = 0.9 * average + 0.1 * loss
        assert found.smoothed[i] == pytest.approx(average / (1 - 0.9 ** (i + 1)), rel=1e-12)


def test_the_classifier_is_as_it_was_bit_for_bit(xp):
    images, labels = quarters(36)
    options = {"device": place(xp), "optimizer": Adam(1e-3), "schedule": Exponential(0.9), "ema": 0.9}
    clf, twin = (small_classifier(norm_net(), normalize="data", **options) for _ in range(2))
    for one in (clf, twin):
        one.fit(images, labels, epochs=2, verbose=False)
    before = pickle.dumps(state(clf))
    lr_find(clf, images, labels, steps=30, workers=1)
    assert pickle.dumps(state(clf)) == before
    assert (clf.history.epochs, clf.optimizer.lr, clf.schedule) == (2, 1e-3, Exponential(0.9))
    for one in (clf, twin):  # and it goes on as one that was never tested
        one.fit(images, labels, epochs=1, verbose=False)
    for name, array in state(clf).items():
        np.testing.assert_array_equal(array, state(twin)[name])


def test_a_classifier_that_is_not_built_stays_so():
    clf = small_classifier()
    lr_find(clf, *quarters(24), steps=5)
    assert clf.classes_ is None
    assert clf.net.parameters() == {}


def test_the_suggestion_trains():
    images, labels = quarters(60)
    found = lr_find(small_classifier(), images, labels, batch_size=12)
    assert found.suggestion is not None
    assert 1e-4 < found.suggestion < found.lowest
    clf = small_classifier(optimizer=SGD(found.suggestion))
    history = clf.fit(images, labels, epochs=8, batch_size=12, verbose=False)
    assert history["loss"][-1] < 0.7 * history["loss"][0]
    assert f"suggested learning rate: {found.suggestion:.2g}, where the loss falls fastest" in str(found)


def test_a_rate_that_is_too_large_ends_it():
    found = lr_find(small_classifier(), *quarters(60), low=1e-3, high=1e6, steps=60)
    assert found.diverged
    assert len(found.rates) < 60
    assert np.isfinite(found.smoothed).all()
    assert "where the loss grew too large" in str(found)


def curve(losses, rates=None):
    losses = np.array(losses, float)
    return LearningRates(np.geomspace(1e-4, 1, len(losses)) if rates is None else rates, losses, losses, False)


def test_suggestion_of_a_known_curve():
    assert curve([4, 4, 4, 3.9, 2, 1, 0.9, 3, 9]).suggestion == pytest.approx(1e-4 * 10 ** (4 * 0.5), rel=1e-9)
    noisy = [9, 5, *[4] * 28, *np.linspace(4, 1, 10), *[1] * 10, *[9] * 10]  # the first steps do not count
    assert curve(noisy).suggestion == pytest.approx(1e-4 * 10 ** (34 * 4 / 59), rel=0.5)
    assert curve([4, 4, 3, 1, 1, 9]).lowest == pytest.approx(1e-4 * 10 ** (3 * 0.8), rel=1e-9)


@pytest.mark.parametrize("losses", [[1, 2, 3, 4], [2, 1, 3, 4]])
def test_no_suggestion_where_the_loss_does_not_fall(losses):
    found = curve(losses)
    assert found.suggestion is None
    assert "the loss never fell. Check the data" in str(found)


def test_the_picture(tmp_path):
    figure = lr_find(small_classifier(), *quarters(36), steps=40).plot(tmp_path / "lr.png")
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert len(axes.get_lines()) >= 2
    with Image.open(tmp_path / "lr.png") as picture:
        assert picture.size == (1050, 600)
        assert np.asarray(picture).std() > 5
    assert curve([1, 2, 3, 4]).plot().axes[0].get_lines()


def test_the_picture_needs_matplotlib(monkeypatch):
    real = builtins.__import__

    def refuses(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuses)
    with pytest.raises(MissingExtraError, match=r'drawing the learning rates needs matplotlib.*"xpcnn\[viz\]"'):
        curve([3, 2, 1]).plot()


@pytest.mark.parametrize(
    "options", [{"low": 0}, {"low": 1, "high": 1}, {"high": np.inf}, {"steps": 2}, {"smoothing": 1.0}]
)
def test_nonsense_is_refused(options):
    with pytest.raises(ArgumentError, match="lr_find needs 0 < low < high, at least 3 steps and a smoothing from 0"):
        lr_find(small_classifier(), *quarters(12), **options)


def test_what_cannot_be_tested():
    with pytest.raises(ArgumentError, match="the optimizer's learning rate, which is 0"):
        lr_find(small_classifier(optimizer=SGD(0.0)), *quarters(12))
    clf = small_classifier()
    clf.build((1, 8, 8))
    clf.net["4"].bias.data[0] = np.nan
    with pytest.raises(DataError, match="the loss is not finite from the first step on"):
        lr_find(clf, *quarters(12))
