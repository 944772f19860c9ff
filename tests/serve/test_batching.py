"""Images that come at one time go through the network together, and each answer reaches the one who asked."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest
from serve.running import PATIENCE, noise, wait_for
from tolerances import assert_close
from toys import SHAPE, norm_net, place, small_classifier

from xpcnn import Sequential, zoo
from xpcnn.inspection import attribution
from xpcnn.serve import ServedModel
from xpcnn.serve.batching import Batcher, QueueFullError


@pytest.fixture
def batcher_of():
    """Make batchers, and end them."""
    made = []

    def make(run, most=4, wait=0.0, limit=64):
        made.append(Batcher(run, most, wait, limit))
        return made[-1]

    yield make
    for batcher in made:
        batcher.close()


def number(value):
    return np.full(SHAPE, value, np.uint8)


def numbers(images):
    return [int(image.flat[0]) for image in images]


class Gate:
    """A run that waits until it is let through, and remembers what it was given."""

    def __init__(self):
        self.open = threading.Event()
        self.passes = []

    def __call__(self, images):
        self.passes.append(numbers(images))
        assert self.open.wait(PATIENCE)
        return numbers(images)


def test_images_that_wait_form_one_pass(batcher_of):
    gate = Gate()
    batcher = batcher_of(gate, most=4)
    first = batcher.submit(number(0))
    wait_for(lambda: gate.passes == [[0]])
    others = [batcher.submit(number(i)) for i in range(1, 8)]
    assert batcher.waiting == 7
    gate.open.set()
    assert [future.result(PATIENCE) for future in [first, *others]] == list(range(8))
    assert gate.passes == [[0], [1, 2, 3, 4], [5, 6, 7]]


def test_an_image_waits_a_moment_for_company(batcher_of):
    passes = []
    batcher = batcher_of(lambda images: passes.append(len(images)) or images, most=3, wait=PATIENCE / 2)
    futures = [batcher.submit(number(i)) for i in range(3)]
    wait(futures, PATIENCE)
    assert passes == [3]  # and none has waited for the 100 seconds


def test_who_no_longer_waits_is_left_out(batcher_of):
    gate = Gate()
    batcher = batcher_of(gate)
    batcher.submit(number(0))
    wait_for(lambda: gate.passes == [[0]])
    futures = [batcher.submit(number(i)) for i in range(1, 5)]
    assert futures[1].cancel()
    gate.open.set()
    assert [futures[i].result(PATIENCE) for i in (0, 2, 3)] == [1, 3, 4]
    assert gate.passes == [[0], [1, 3, 4]]


def test_a_pass_that_all_have_left_is_not_computed(batcher_of):
    gate = Gate()
    batcher = batcher_of(gate)
    batcher.submit(number(0))
    wait_for(lambda: gate.passes == [[0]])
    assert batcher.submit(number(1)).cancel()
    gate.open.set()
    wait_for(lambda: batcher.waiting == 0)
    assert batcher.submit(number(2)).result(PATIENCE) == 2
    assert gate.passes == [[0], [2]]


def test_a_full_queue_refuses(batcher_of):
    gate = Gate()
    batcher = batcher_of(gate, limit=2)
    batcher.submit(number(0))
    wait_for(lambda: gate.passes == [[0]])
    kept = [batcher.submit(number(i)) for i in (1, 2)]
    with pytest.raises(QueueFullError):
        batcher.submit(number(3))
    gate.open.set()
    assert [future.result(PATIENCE) for future in kept] == [1, 2]


@pytest.mark.parametrize("answers", [0, 1, 3], ids=["none", "too few", "too many"])
def test_a_wrong_number_of_answers_reaches_nobody(batcher_of, answers):
    batcher = batcher_of(lambda images: [0] * answers, most=2, wait=20.0)
    futures = [batcher.submit(number(i)) for i in range(2)]
    for future in futures:
        with pytest.raises(ValueError, match=r"zip\(\) argument 2 is"):
            future.result(PATIENCE)


def test_after_an_error_it_goes_on(batcher_of):
    def run(images):
        if 0 in numbers(images):
            raise RuntimeError("of this pass")
        return numbers(images)

    batcher = batcher_of(run)
    with pytest.raises(RuntimeError, match="of this pass"):
        batcher.submit(number(0)).result(PATIENCE)
    assert batcher.submit(number(1)).result(PATIENCE) == 1
    assert batcher.alive


def test_closing_answers_what_waits_and_takes_no_more(batcher_of):
    gate = Gate()
    batcher = batcher_of(gate, most=2, wait=20.0)
    futures = [batcher.submit(number(i)) for i in range(5)]
    wait_for(lambda: gate.passes == [[0, 1]])
    closing = threading.Thread(target=batcher.close)
    closing.start()
    wait_for(lambda: not batcher.alive)
    with pytest.raises(QueueFullError):
        batcher.submit(number(5))
    gate.open.set()
    closing.join(PATIENCE)
    assert [future.result(0) for future in futures] == list(range(5))


def test_many_threads_each_get_their_own(batcher_of):
    batcher = batcher_of(lambda images: [value + 1 for value in numbers(images)], most=8, wait=0.001, limit=1000)
    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda i: batcher.submit(number(i % 250)).result(PATIENCE), range(2000)))
    assert found == [i % 250 + 1 for i in range(2000)]


# --- the same bits ----------------------------------------------------------------------------------------------


def served(xp, net=None, shape=SHAPE, most=8):
    classifier = small_classifier(net, device=place(xp))
    classifier.build(shape)
    return ServedModel(classifier, "toy", most)


@pytest.mark.parametrize("kind", ["small", "norm", "lenet"])
def test_an_image_has_the_same_answer_in_any_company_and_place(xp, rng, kind):
    nets = {"small": (None, SHAPE), "norm": (norm_net(), SHAPE), "lenet": (zoo.build("lenet", 5), (1, 28, 28))}
    model = served(xp, *nets[kind])
    image = rng.integers(0, 256, model.shape, np.uint8)
    alone = model.predict([image])
    assert alone.shape == (1, len(model.classes))
    for count in range(1, model.width + 1):
        others = list(rng.integers(0, 256, (count - 1, *model.shape), np.uint8))
        for at in range(count):
            rows = model.predict([*others[:at], image, *others[at:]])
            assert rows.shape == (count, len(model.classes))
            assert rows[at].tobytes() == alone.tobytes()


def test_answers_are_those_of_the_classifier(xp, rng):
    model = served(xp)
    images = rng.integers(0, 256, (5, *SHAPE), np.uint8)
    rows = model.predict(list(images))
    assert_close(rows, model.classifier.predict_proba(images), "forward")
    one = served(xp, most=1)
    one.classifier.net.load_state_dict(model.classifier.net.state_dict())
    for image in images:
        assert one.predict([image]).tobytes() == one.classifier.predict_proba(image).tobytes()


class PlaceMatters(Sequential):
    """Adds something to the scores that depends on the place in the pass, where that has more than `steady` images."""

    steady = 2

    def forward(self, x, train, **options):
        y, ctx = super().forward(x, train, **options)
        return y * (1 + 1e-3 * np.arange(y.shape[-1]) * (y.shape[-1] > self.steady)).astype(y.dtype), ctx


@pytest.mark.parametrize(("most", "width"), [(8, 2), (6, 1), (4, 2), (2, 2), (1, 1)])
def test_passes_are_as_large_as_leaves_the_place_without_meaning(most, width):
    assert served(np, PlaceMatters(norm_net()), most=most).width == width


def test_a_copy_made_for_grad_cam_goes_at_once(xp):
    """Explaining must not pile up networks until the garbage collector comes."""
    model, copies = served(xp), []

    def watched(net, share):
        made = frozen_copy(net, share)
        copies.append(weakref.ref(dict(made.walk())["0"]))
        return made

    frozen_copy = attribution._frozen_copy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attribution, "_frozen_copy", watched)
        gc.disable()
        try:
            model.explain(model.decode(noise(0)), 1)
            assert copies
            assert copies[0]() is None
        finally:
            gc.enable()
