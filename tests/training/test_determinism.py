"""The same seed gives the same bits: run after run, in another process, with another number of workers.

For numbers of threads see tests/test_backend.py.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import to_numpy
from toys import place, quarters, small_classifier

from xpcnn import Adam, BatchNorm2d, Conv2d, Dense, Dropout, Flatten, MaxPool2d, ReLU, Sequential
from xpcnn.data import Compose, Mixup, RandomAffine, RandomHorizontalFlip

ROOT = Path(__file__).resolve().parents[2]


def fingerprint(device, workers=0, seed=3):
    """Train with all that draws random numbers; return what stands for every bit of weights, losses and answers."""
    net = Sequential(
        Conv2d(4, 3, padding=1),
        BatchNorm2d(),
        ReLU(),
        MaxPool2d(2),
        Dropout(0.3),
        Flatten(),
        Dense(16),
        ReLU(),
        Dense(3),
    )
    augment = Compose([RandomHorizontalFlip(), RandomAffine(15, 0.1), Mixup(0.4, 3)])
    clf = small_classifier(net, optimizer=Adam(1e-2), device=device, seed=seed, ema=0.9, normalize="data")
    images, labels = quarters(48)
    history = clf.fit(
        images, labels, epochs=3, batch_size=7, validation=0.25, augment=augment, workers=workers, verbose=False
    )
    digest = hashlib.sha256()
    for name, array in sorted(clf.net.state_dict().items()):
        digest.update(name.encode() + to_numpy(array).tobytes())
    digest.update(clf.predict_proba(images).tobytes())
    digest.update(np.array([history["loss"], history["val_loss"]]).tobytes())
    return digest.hexdigest()


def test_run_after_run_and_whatever_the_number_of_workers(xp):
    first = fingerprint(place(xp))
    for workers in (0, 2, 5):
        assert fingerprint(place(xp), workers) == first
    assert fingerprint(place(xp), seed=4) != first


@pytest.mark.parametrize("seed", ["0", "12345"])
def test_in_processes_whose_hashes_differ(xp, seed):
    """Sets and dicts of strings have another order where PYTHONHASHSEED differs."""
    program = f"from test_determinism import fingerprint; print(fingerprint({place(xp)!r}, workers=2))"
    paths = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == fingerprint(place(xp))
