from __future__ import annotations

import math
from itertools import pairwise

import pytest

from xpcnn.errors import ArgumentError
from xpcnn.schedule import Constant, Cosine, Exponential, LinearWarmup, OneCycle, Schedule, StepDecay


def factors(schedule, total: int) -> list[float]:
    return [schedule(t, total) for t in range(total)]


def test_constant():
    assert factors(Constant(), 5) == [1.0] * 5
    assert factors(Schedule(), 2) == [1.0] * 2


def test_step():
    assert factors(StepDecay(3, 0.5), 8) == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert StepDecay(2)(2, 10) == 0.1


def test_exponential_is_system_b():
    assert factors(Exponential(0.9), 4) == pytest.approx([1, 0.9, 0.81, 0.729], rel=1e-15)


def test_cosine():
    expected = [0.1 + 0.9 * (1 + math.cos(math.pi * t / 6)) / 2 for t in range(6)]
    assert factors(Cosine(0.1), 6) == pytest.approx(expected, rel=1e-15)
    assert Cosine()(0, 10) == 1.0
    assert Cosine()(10, 10) == pytest.approx(0.0, abs=1e-15)
    assert Cosine(0.2)(99, 10) == pytest.approx(0.2), "after the end it stays"
    assert Cosine()(0, 0) == 1.0


def test_linear_warmup():
    assert factors(LinearWarmup(4), 6) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    schedule = LinearWarmup(2, Exponential(0.5))
    assert factors(schedule, 5) == [0.5, 1.0, 1.0, 0.5, 0.25]
    schedule = LinearWarmup(3, Cosine())
    assert schedule(3, 9) == 1.0
    assert schedule(9, 9) == pytest.approx(0.0, abs=1e-15)
    assert LinearWarmup(5, Cosine())(3, 4) == 0.8, "a warm-up longer than the training"


@pytest.mark.parametrize("total", [10, 100, 1000])
def test_one_cycle(total):
    values = factors(OneCycle(), total)
    peak = round(0.3 * total) - 1
    assert values[0] == pytest.approx(1 / 25)
    assert max(values) == values[peak] == pytest.approx(1.0)
    assert values[-1] == pytest.approx(1 / 25e4)
    assert all(a < b for a, b in pairwise(values[: peak + 1]))
    assert all(a > b for a, b in pairwise(values[peak:]))
    middle = (total - 1 + peak) // 2 if (total - 1 + peak) % 2 == 0 else None
    if middle is not None:
        assert values[middle] == pytest.approx((1 + 1 / 25e4) / 2)


@pytest.mark.parametrize("total", [0, 1, 2, 3])
def test_one_cycle_of_very_few_steps_is_finite(total):
    for t in range(max(total, 1) + 2):
        assert 0 < OneCycle()(t, total) <= 1


def test_time_counts_epochs_or_steps():
    for schedule in (Constant(), StepDecay(2), Exponential(0.9), Cosine(), LinearWarmup(2)):
        assert schedule.every == "epoch"
    assert OneCycle().every == "step"
    assert OneCycle(every="epoch").every == "epoch"
    assert Cosine(every="step").every == "step"
    assert LinearWarmup(2, every="step").every == "step"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Constant(every="batch"), r'every must be "epoch" or "step"; received \'batch\''),
        (lambda: Cosine(every=3), r"every must be .*received 3"),
        (lambda: OneCycle(every="batch"), r"every must be"),
        (lambda: StepDecay(0), r"size of StepDecay must be at least 1; received 0"),
        (lambda: LinearWarmup(0), r"length of LinearWarmup must be at least 1; received 0"),
        (lambda: OneCycle(rise=0.0), r"rise between 0 and 1, start and end at least 1; received rise=0\.0"),
        (lambda: OneCycle(rise=1.0), r"received rise=1\.0"),
        (lambda: OneCycle(start=0.5), r"start=0\.5"),
        (lambda: OneCycle(end=0.0), r"end=0\.0"),
    ],
)
def test_impossible_schedules_are_refused(make, text):
    with pytest.raises(ArgumentError, match=text):
        make()


def test_schedules_are_values():
    assert StepDecay(3) == StepDecay(3, 0.1)
    assert LinearWarmup(2, Cosine()) == LinearWarmup(2, Cosine())
    assert repr(Exponential(0.9)) == "Exponential(every='epoch', gamma=0.9)"
