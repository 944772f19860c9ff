"""Counts on the device against plain loops, and the report."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import to_numpy

from xpcnn import ArgumentError
from xpcnn.training import Report
from xpcnn.training.metrics import Totals, confusion_counts, one_hot, top_k_correct


def test_one_hot(xp):
    table = one_hot(xp.array([2, 0, 2]), 3)
    assert table.dtype == np.float32
    np.testing.assert_array_equal(to_numpy(table), [[0, 1, 0], [0, 0, 0], [1, 0, 1]])


@pytest.mark.parametrize("soft", [False, True])
def test_confusion_counts_every_pair(xp, rng, soft):
    logits, t = rng.normal(size=(5, 200)), rng.integers(0, 5, 200)
    expected = np.zeros((5, 5), np.int64)
    for truth, column in zip(t, logits.T, strict=True):
        expected[truth, np.argmax(column)] += 1
    labels = np.eye(5)[t] * 0.6 + 0.08 if soft else t
    counts = confusion_counts(xp.asarray(logits), xp.asarray(labels))
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(to_numpy(counts), expected)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k(xp, rng, k):
    logits, t = rng.normal(size=(5, 100)), rng.integers(0, 5, 100)
    expected = sum(truth in np.argsort(-column)[:k] for truth, column in zip(t, logits.T, strict=True))
    assert int(top_k_correct(xp.asarray(logits), xp.asarray(t), k)) == expected


def test_top_k_ranks_ties_like_argmax_and_nan_is_wrong(xp):
    logits = xp.array([[1.0, 1.0, np.nan], [1.0, 1.0, np.nan], [0.0, 0.0, np.nan]])
    t = xp.array([0, 1, 0])
    assert int(top_k_correct(logits, t, 1)) == 1
    assert int(top_k_correct(logits, t, 2)) == 2


def test_top_k_with_an_infinite_logit(xp):
    logits = xp.array([[np.inf, 0.0], [1.0, -np.inf]])
    assert int(top_k_correct(logits, xp.array([0, 0]))) == 2


def test_top_k_refuses_k_out_of_range():
    with pytest.raises(ArgumentError, match=r"needs k from 1 to 3, the number of classes; received 4\."):
        top_k_correct(np.zeros((3, 2)), np.zeros(2, int), 4)


def test_totals_weigh_batches_by_their_size(xp):
    totals = Totals(xp)
    totals.add(xp.float32(1.0) * xp.ones(()), xp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]), xp.array([0, 1, 0]))
    totals.add(xp.ones(()) * 3.0, xp.array([[1.0], [0.0]]), xp.array([[0.9, 0.1]]))
    assert totals.read() == {"loss": 1.5, "accuracy": 0.75}


def test_totals_of_nothing():
    assert Totals(np).read() == {"loss": 0.0, "accuracy": 0.0}


CONFUSION = np.array([[8, 2, 0], [1, 3, 0], [0, 0, 0]])


def test_report_numbers():
    report = Report(0.25, CONFUSION, ["cat", "dog", "eel"])
    assert report.accuracy == pytest.approx(11 / 14)
    assert report.counts == {"cat": 10, "dog": 4, "eel": 0}
    assert report.per_class["cat"] == 0.8
    assert report.precision["dog"] == 0.6
    assert report.f1["cat"] == pytest.approx(2 * 8 / (10 + 9))
    assert np.isnan([report.per_class["eel"], report.precision["eel"], report.f1["eel"]]).all()
    assert report.confusion.dtype == np.int64
    assert repr(report) == "Report(loss=0.2500, accuracy=0.7857, images=14)"


def test_report_as_data_is_strict_json():
    data = json.loads(json.dumps(Report(0.25, CONFUSION, ["cat", "dog", "eel"]).to_dict(), allow_nan=False))
    assert data["count"] == 14
    assert data["confusion"] == CONFUSION.tolist()
    assert data["per_class"][2] == {"class": "eel", "count": 0, "accuracy": None, "precision": None, "f1": None}


def test_report_prints_every_class_and_count():
    text = str(Report(0.25, CONFUSION, ["cat [old]", "dog", "eel"]))
    lines = text.splitlines()
    assert "loss 0.2500, accuracy 0.7857 on 14 images" in lines[0]
    cat = next(line for line in lines if "cat [old]" in line)
    assert [cell.strip() for cell in cat.split("│")[1:-1]] == ["cat [old]", "10", "0.8000", "0.8889", "0.8421"]
    eel = next(line for line in lines if "eel" in line and "0" in line)
    assert [cell.strip() for cell in eel.split("│")[1:-1]] == ["eel", "0", "-", "-", "-"]
    assert any([cell.strip() for cell in line.split("│")[1:-1]] == ["cat [old]", "8", "2", "."] for line in lines)


def test_report_of_many_classes_leaves_the_matrix_out():
    names = [f"class {i}" for i in range(21)]
    text = str(Report(0.0, np.eye(21), names))
    assert "class 20" in text
    assert "confusion" not in text


def test_report_of_long_names_keeps_them():
    name = "a class with quite a long name " * 3
    assert name.strip() in str(Report(0.0, np.eye(2), [name, "b"]))
