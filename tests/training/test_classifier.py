"""`Classifier`: fit with every option, evaluate, predict on everything people hand in, and clear refusals."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from helpers import readonly
from PIL import Image
from tolerances import assert_close
from toys import CLASSES, SHAPE, norm_net, place, quarters, small_classifier, small_net

import xpcnn
from xpcnn import (
    SGD,
    Adam,
    ArgumentError,
    ArrayDataset,
    Classifier,
    Conv2d,
    DataError,
    Dense,
    Flatten,
    ImageFolder,
    ReLU,
    Sequential,
    ShapeError,
    Softmax,
    softmax_cross_entropy,
)
from xpcnn.data import Compose, Mixup, RandomCrop, split
from xpcnn.schedule import Cosine
from xpcnn.training import Callback, LearningRateLog

TRAIN, TEST = quarters(90), quarters(30, seed=1)


def trained(epochs=6, data=TRAIN, **options):
    clf = small_classifier(**options)
    clf.fit(data, epochs=epochs, batch_size=15, verbose=False)
    return clf


@pytest.fixture(scope="module")
def clf():
    return trained()


@pytest.fixture(scope="module")
def named():
    return trained(classes=CLASSES)


def weights(clf):
    return {name: xpcnn.to_numpy(array).copy() for name, array in clf.net.state_dict().items()}


def assert_same(first, second):
    for name, array in weights(first).items():
        np.testing.assert_array_equal(weights(second)[name], array)


# --- fit --------------------------------------------------------------------------------------------------------


def test_it_learns(xp):
    clf = trained(device=place(xp))
    assert clf.score(*TEST) == 1.0
    history = clf.history
    assert history["epoch"] == [1, 2, 3, 4, 5, 6]
    assert history["loss"][-1] < history["loss"][0]
    assert history["accuracy"][-1] > 0.9
    assert all(seconds > 0 for seconds in history["seconds"])
    assert str(clf.net.device) == place(xp)
    assert clf.classes_ == ["0", "1", "2"]
    assert clf.input_shape == SHAPE


def test_every_way_to_give_the_data_is_the_same():
    images, labels = TRAIN
    first = small_classifier()
    first.fit(images, labels, epochs=2, verbose=False)
    for data in (
        (images, labels),
        ArrayDataset(images, labels),
        (readonly(images), labels[:, None]),
        (images[:, 0], labels.tolist()),
        (images, np.eye(3)[labels]),
        (np.asfortranarray(images), labels.astype(np.int8)),
    ):
        other = small_classifier()
        other.fit(data, epochs=2, verbose=False)
        assert_same(first, other)


def test_both_backends_train_alike(xp):
    first, other = (
        trained(1, net=small_net(dropout=0.2), device=device, normalize="data") for device in ("cpu", place(xp))
    )
    for name, array in weights(first).items():
        assert_close(weights(other)[name], array, "sum of products")


def test_the_seed_decides_everything():
    def run(seed):
        clf = small_classifier(small_net(dropout=0.3), seed=seed)
        clf.fit(TRAIN, epochs=2, augment=RandomCrop(8, padding=1), validation=0.2, verbose=False)
        return clf

    first, again, other = run(1), run(1), run(2)
    assert_same(first, again)
    assert {k: v for k, v in first.history.items() if k != "seconds"} == {
        k: v for k, v in again.history.items() if k != "seconds"
    }
    assert (weights(first)["0.weight"] != weights(other)["0.weight"]).any()


def test_workers_change_nothing():
    first, other = small_classifier(), small_classifier()
    first.fit(TRAIN, epochs=2, augment=RandomCrop(8, padding=1), verbose=False)
    other.fit(TRAIN, epochs=2, augment=RandomCrop(8, padding=1), workers=3, verbose=False)
    assert_same(first, other)


def test_fit_goes_on_where_it_was():
    first, other = small_classifier(optimizer=Adam(0.01)), small_classifier(optimizer=Adam(0.01))
    first.fit(TRAIN, epochs=3, verbose=False)
    other.fit(TRAIN, epochs=1, verbose=False)
    history = other.fit(TRAIN, epochs=2, verbose=False)
    assert history["epoch"] == [1, 2, 3]
    assert history is other.history
    assert_same(first, other)


def test_validation_as_data_and_as_fraction():
    clf = small_classifier()
    history = clf.fit(TRAIN, epochs=2, validation=TEST, verbose=False)
    report = clf.evaluate(TEST)
    assert history["val_loss"][-1] == pytest.approx(report.loss, rel=1e-6)
    assert history["val_accuracy"][-1] == report.accuracy

    seen = []

    class Count(Callback):
        def on_epoch_end(self, fit, logs):
            seen.append(len(fit.loader.dataset))

    clf = small_classifier(seed=3)
    history = clf.fit(ArrayDataset(*TRAIN), epochs=1, validation=0.2, callbacks=[Count()], verbose=False)
    assert seen == [72]
    _, held_out = split(ArrayDataset(*TRAIN), 0.2, seed=3)
    assert history["val_loss"][-1] == pytest.approx(clf.evaluate(held_out).loss, rel=1e-6)


def test_drop_last_shuffle_and_batches_larger_than_the_data():
    batches = []

    class Sizes(Callback):
        def on_step_end(self, fit):
            batches.append(fit.x.shape[-1])

    small_classifier().fit(TRAIN, epochs=1, batch_size=40, drop_last=True, callbacks=[Sizes()], verbose=False)
    small_classifier().fit(TRAIN, epochs=1, batch_size=1000, callbacks=[Sizes()], verbose=False)
    assert batches == [40, 40, 90]
    with pytest.raises(DataError, match="batch_size 1000 with drop_last=True leaves no batch of 90 images"):
        small_classifier().fit(TRAIN, batch_size=1000, drop_last=True)

    first = []

    class First(Callback):
        def on_epoch_begin(self, fit):
            first.append(next(fit.loader.epoch(fit.epoch - 1))[1])

    small_classifier().fit(TRAIN, epochs=2, batch_size=9, shuffle=False, callbacks=[First()], verbose=False)
    np.testing.assert_array_equal(first, [TRAIN[1][:9]] * 2)


def test_schedule_reaches_the_optimizer():
    log = LearningRateLog()
    clf = small_classifier(schedule=Cosine(every="step"))
    history = clf.fit(TRAIN, epochs=2, batch_size=30, callbacks=[log], verbose=False)
    assert log.rates == pytest.approx([0.05 * (1 + np.cos(np.pi * t / 6)) for t in range(6)])
    assert history["lr"] == [log.rates[2], log.rates[5]]
    assert clf.optimizer.lr == 0.1


def test_soft_labels_and_mixup():
    images, labels = TRAIN
    soft = np.eye(3)[labels] * 0.9 + 0.1 / 3
    clf = trained(data=(images, soft))
    assert clf.score(*TEST) == 1.0
    assert clf.evaluate(images, soft).accuracy == 1.0

    clf = small_classifier()
    clf.fit(TRAIN, epochs=8, augment=Compose([RandomCrop(8, padding=1), Mixup(0.2, 3)]), verbose=False)
    assert clf.score(*TEST) > 0.9


def test_mse_and_a_loss_of_ones_own():
    clf = trained(
        loss="mse", net=Sequential(Conv2d(4, 3), ReLU(), Flatten(), Dense(3), Softmax()), optimizer=Adam(0.01)
    )
    assert clf.score(*TEST) > 0.9
    np.testing.assert_allclose(clf.predict_proba(TEST[0]).sum(axis=1), 1.0, rtol=1e-5)
    outputs = clf.net(TEST[0].astype(np.float32) / 255)
    np.testing.assert_allclose(clf.predict_proba(TEST[0]), outputs, rtol=1e-5)
    targets = np.eye(3)[TEST[1]]
    assert clf.evaluate(TEST).loss == pytest.approx(np.mean((outputs - targets) ** 2), rel=1e-5)
    assert clf.evaluate(TEST[0], targets * 0.5 + 0.5 / 3).loss > clf.evaluate(TEST).loss

    def doubled(y, t):
        loss, dy = softmax_cross_entropy(y, t)
        return loss * 2.0, dy * 2.0

    first, other = trained(2, loss=doubled, optimizer=SGD(0.05)), trained(2)
    np.testing.assert_allclose(weights(first)["0.weight"], weights(other)["0.weight"], rtol=1e-5)
    assert first.evaluate(TEST).loss == pytest.approx(2 * other.evaluate(TEST).loss, rel=1e-5)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("balanced", [100 / 180, 100 / 90, 100 / 30]), ([1.0, 0.0, 2.5], [1.0, 0.0, 2.5]), (None, None)],
)
def test_class_weights(xp, given, expected):
    images, _ = quarters(100)
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    clf, seen = small_classifier(class_weights=given, label_smoothing=0.1, device=place(xp)), []

    class Look(Callback):
        def on_fit_begin(self, fit):
            seen.append(fit.loss.keywords)

    clf.fit(images, labels, epochs=1, callbacks=[Look()], verbose=False)
    assert seen[0]["label_smoothing"] == 0.1
    used = seen[0]["class_weights"]
    assert used is expected or np.allclose(xpcnn.to_numpy(used), expected)


def test_evaluation_has_neither_weights_nor_smoothing():
    clf = trained(1, class_weights="balanced", label_smoothing=0.2)
    logits = clf.net(TEST[0].astype(np.float32) / 255)
    assert clf.evaluate(TEST).loss == pytest.approx(float(softmax_cross_entropy(logits.T, TEST[1])[0]), rel=1e-6)


def test_normalize_by_the_data():
    images, labels = quarters(60, channels=2)
    images[:, 1] = 7  # a constant channel
    clf = small_classifier(normalize="data")
    clf.fit(images, labels, epochs=1, verbose=False)
    pixels = images / 255.0
    assert clf.mean == pytest.approx(tuple(pixels.mean(axis=(0, 2, 3))))
    assert clf.std == pytest.approx((pixels[:, 0].std(), 1.0))
    mean = clf.mean
    clf.fit(images // 2, labels, epochs=1, verbose=False)
    assert clf.mean == mean, "the network has learned with the first normalisation"


def test_normalize_by_the_training_part_only():
    clf = small_classifier(normalize="data", seed=4)
    clf.fit(TRAIN, epochs=1, validation=0.3, verbose=False)
    part, _ = split(ArrayDataset(*TRAIN), 0.3, seed=4)
    assert clf.mean == pytest.approx((np.mean(TRAIN[0][part.indices] / 255.0),))


@pytest.mark.parametrize("normalize", [(0.5, 0.25), ([0.5], np.array([0.25]))])
def test_normalize_by_numbers(normalize):
    clf = trained(1, normalize=normalize)
    assert (clf.mean, clf.std) == ((0.5,), (0.25,))
    logits = clf.net((TEST[0].astype(np.float32) / 255 - 0.5) / 0.25)
    assert clf.evaluate(TEST).loss == pytest.approx(float(softmax_cross_entropy(logits.T, TEST[1])[0]), rel=1e-5)


def test_bytes_and_floats_are_the_same():
    images, labels = TRAIN
    floats = (images / 255.0).astype(np.float32)
    first, other = trained(2), trained(2, data=(floats, labels))
    for name, array in weights(first).items():
        assert_close(weights(other)[name], array, "sum of products")


def test_float64():
    clf = trained(2, dtype="float64")
    assert clf.net.dtype == np.float64
    assert clf.predict_proba(TEST[0]).dtype == np.float64


def test_a_network_that_is_built_keeps_its_weights():
    net = small_net()
    net.build(SHAPE, seed=9)
    before = net.state_dict()["0.weight"].copy()
    clf = small_classifier(net, optimizer=SGD(0.0))
    clf.fit(TRAIN, epochs=1, verbose=False)
    np.testing.assert_array_equal(weights(clf)["0.weight"], before)


def test_build_is_enough_to_predict():
    clf = small_classifier()
    clf.build(SHAPE)
    assert clf.predict_proba(TEST[0]).shape == (30, 3)
    assert repr(clf) == "Classifier(Sequential, 3 classes, 0 epochs)"


def test_frozen_layers_stay():
    clf = small_classifier()
    clf.build(SHAPE)
    clf.net.freeze("0")
    before = weights(clf)
    clf.fit(TRAIN, epochs=1, verbose=False)
    after = weights(clf)
    assert (after["0.weight"] == before["0.weight"]).all()
    assert (after["4.weight"] != before["4.weight"]).any()


def test_the_moving_average_is_what_is_used():
    clf = small_classifier(ema=0.9)
    clf.fit(TRAIN, epochs=1, batch_size=9, validation=TEST, verbose=False)
    raw = weights(clf)
    with clf.averaged() as net:
        assert (net.state_dict()["4.weight"] != raw["4.weight"]).any()
        expected = net(TEST[0].astype(np.float32) / 255)
    np.testing.assert_array_equal(weights(clf)["4.weight"], raw["4.weight"])
    np.testing.assert_array_equal(clf.predict(TEST[0]), expected.argmax(axis=1))
    assert clf.history["val_loss"][-1] == pytest.approx(clf.evaluate(TEST).loss, rel=1e-6)
    loss = float(softmax_cross_entropy(expected.T, TEST[1])[0])
    assert clf.evaluate(TEST).loss == pytest.approx(loss, rel=1e-6)


# --- names ------------------------------------------------------------------------------------------------------


def test_string_labels_give_string_answers():
    images, labels = TRAIN
    words = np.array(["wolf", "bear", "lynx"])[labels]
    clf = small_classifier()
    clf.fit(
        images,
        words,
        epochs=6,
        batch_size=15,
        validation=(TEST[0], np.array(["wolf", "bear", "lynx"])[TEST[1]]),
        verbose=False,
    )
    assert clf.classes_ == ["bear", "lynx", "wolf"]
    assert clf.predict(images[:3]).tolist() == words[:3].tolist()
    assert clf.score(images, words) == clf.history["val_accuracy"][-1] == 1.0
    with pytest.raises(DataError, match="label 'elk' is not one of the classes: bear, lynx, wolf"):
        clf.evaluate(images[:1], ["elk"])


def test_given_names_take_numbers_or_names(named):
    images, labels = TEST
    assert named.predict(images).tolist() == [CLASSES[i] for i in labels]
    assert named.score(images, labels) == named.score(images, [CLASSES[i] for i in labels]) == 1.0
    assert list(named.evaluate(TEST).per_class) == CLASSES


def test_names_of_the_data_set():
    clf = trained(data=ArrayDataset(*TRAIN, classes=CLASSES))
    assert clf.classes_ == CLASSES
    assert clf.predict(TEST[0][:2]).tolist() == CLASSES[:2]
    with pytest.raises(
        DataError, match=r"the classes are \['north', 'east', 'south'\], in this order; received data with"
    ):
        clf.evaluate(ArrayDataset(*TEST, classes=CLASSES[::-1]))


def test_a_number_of_classes_does_not_hide_their_names():
    assert trained(1, data=ArrayDataset(*TRAIN, classes=CLASSES), classes=3).classes_ == CLASSES
    with pytest.raises(ArgumentError, match="there are 4 classes, but the network has 3 outputs"):
        trained(1, data=ArrayDataset(*TRAIN, classes=CLASSES), classes=4)


def test_without_names_numbers_are_predicted(clf):
    prediction = clf.predict(TEST[0])
    assert prediction.dtype.kind == "i"
    np.testing.assert_array_equal(prediction, TEST[1])
    digits = trained(data=ArrayDataset(*TRAIN, classes=["0", "1", "2"]))
    assert digits.predict(TEST[0]).dtype.kind == "i"


def test_fewer_classes_in_the_data_than_outputs():
    images, labels = TRAIN
    clf = trained(data=(images[labels < 2], labels[labels < 2]))
    assert clf.classes_ == ["0", "1", "2"]
    report = clf.evaluate(TEST)
    assert report.confusion.shape == (3, 3)
    assert report.per_class["2"] == 0.0


# --- evaluate and predict ---------------------------------------------------------------------------------------


def test_report(clf):
    report = clf.evaluate(TEST, batch_size=7)
    assert report.accuracy == clf.score(*TEST)
    assert report.confusion.tolist() == [[10, 0, 0], [0, 10, 0], [0, 0, 10]]
    assert report.loss == pytest.approx(clf.evaluate(*TEST, batch_size=1000).loss, rel=1e-5)


def test_probabilities(xp):
    clf = trained(2, device=place(xp))
    probabilities = clf.predict_proba(TEST[0])
    assert isinstance(probabilities, np.ndarray)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-5)
    logits = xpcnn.to_numpy(clf.net(xpcnn.to_device(TEST[0].astype(np.float32) / 255, place(xp))))
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    assert_close(probabilities, exp / exp.sum(axis=1, keepdims=True), "sum of products")


def test_everything_that_predict_takes(clf, tmp_path):
    images = TEST[0]
    expected = clf.predict_proba(images)
    floats = (images / 255.0).astype(np.float32)
    for x in (images[:, 0], ArrayDataset(*TEST), floats, floats.astype(np.float64), readonly(images[::-1])[::-1]):
        np.testing.assert_allclose(clf.predict_proba(x, batch_size=8), expected, rtol=1e-5)
    for single in (images[3], images[3, 0], images[3:4]):
        np.testing.assert_allclose(clf.predict_proba(single), expected[3:4], rtol=1e-5)
        assert clf.predict(single).shape == (1,)
    paths = []
    for i in range(4):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(images[i, 0]).save(paths[-1])
    np.testing.assert_allclose(clf.predict_proba(paths), expected[:4], rtol=1e-5)
    np.testing.assert_allclose(clf.predict_proba(str(paths[2])), expected[2:3], rtol=1e-5)
    assert clf.predict((str(paths[1]),)).shape == (1,)


def test_arrays_of_a_gpu_are_taken_anywhere(xp, clf):
    np.testing.assert_array_equal(clf.predict(xp.asarray(TEST[0])), TEST[1])


def test_image_folders_bring_size_and_mode(tmp_path):
    images, labels = quarters(30, channels=3)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = tmp_path / CLASSES[label]
        folder.mkdir(exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{i}.png")
    data = ImageFolder(tmp_path, size=(8, 8), mode="RGB", fit="crop")
    clf = small_classifier()
    clf.fit(data, epochs=8, batch_size=8, validation=0.2, verbose=False)
    assert clf.image == {"size": [8, 8], "mode": "RGB", "fit": "crop"}
    assert clf.predict(data.files[:1])[0] in CLASSES
    wide = tmp_path / "wide.png"
    Image.fromarray(np.zeros((8, 20, 3), np.uint8)).save(wide)
    assert clf.predict_proba(wide).shape == (1, 3)
    with pytest.raises(DataError, match=r"missing\.png"):
        clf.predict(["missing.png"])


def test_two_threads_predict_like_one(clf):
    batches = [quarters(40, seed=seed)[0] for seed in range(6)]
    expected = [clf.predict_proba(batch) for batch in batches]
    results = [None] * 6

    def work(which):
        for _ in range(5):
            for i in which:
                results[i] = clf.predict_proba(batches[i])

    threads = [threading.Thread(target=work, args=(which,)) for which in ((0, 1, 2), (3, 4, 5), (1, 4))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, correct in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, correct)


def test_two_threads_predict_with_the_moving_average():
    clf = trained(1, ema=0.9)
    expected, raw, results = clf.predict_proba(TEST[0]), weights(clf), []

    def work():
        for _ in range(20):
            results.append(clf.predict_proba(TEST[0]))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((result == expected).all() for result in results)
    np.testing.assert_array_equal(weights(clf)["0.weight"], raw["0.weight"])


def test_summary(clf):
    assert "Conv2d" in str(clf.summary())


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"net": "lenet"}, "net must be a layer, such as Sequential.*; received str"),
        ({"loss": "hinge"}, "loss must be 'softmax_cross_entropy' or 'mse', or a function; received 'hinge'"),
        ({"net": Sequential(Dense(3), Softmax())}, "the network ends with Softmax"),
        ({"loss": "mse", "label_smoothing": 0.1}, 'class_weights and label_smoothing need loss="softmax'),
        ({"class_weights": "even"}, "class_weights must be None, \"balanced\" or K numbers; received 'even'"),
        ({"normalize": "max"}, r"normalize must be None, \"data\" or a pair \(mean, std\); received 'max'"),
        ({"normalize": (1, 2, 3)}, "normalize must be None"),
        ({"classes": ["a", "a"]}, "classes must be a list of different names"),
        ({"classes": "ab"}, "classes must be a list of different names"),
        ({"classes": [1, 2]}, "classes must be a list of different names"),
        ({"classes": True}, "classes must be a list of different names"),
        ({"ema": 1.5}, "decay of EMA must be"),
    ],
)
def test_constructor_refuses(options, message):
    with pytest.raises(ArgumentError, match=message):
        small_classifier(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"classes": 4}, ArgumentError, r"there are 4 classes, but the network has 3 outputs\. End it with Dense\(4\)"),
        ({"classes": [*"abcd"]}, ArgumentError, "there are 4 classes, but the network has 3 outputs"),
        ({"classes": ["a", "b"]}, DataError, r"labels must lie in 0\.\.1; received 2 at index 2"),
        ({"net": small_net(1)}, ArgumentError, "needs at least 2 classes; this network has 1 output"),
        ({"net": Sequential(Conv2d(3, 3))}, ShapeError, r"has outputs of shape \(3, 6, 6\)\. End it with Flatten"),
        ({"net": Sequential(Conv2d(3, 9), Flatten(), Dense(3))}, ShapeError, "layer '0'"),
        ({"normalize": ([0.5, 0.5], 1.0)}, ArgumentError, "mean and std must be a number or 1, one per channel"),
        ({"normalize": (0.5, 0.0)}, ArgumentError, r"every std must be above 0; received \[0.0\]"),
        ({"class_weights": [1.0, 2.0]}, ArgumentError, r"class_weights must be 3 numbers of at least 0"),
        ({"class_weights": [1.0, 2.0, -1.0]}, ArgumentError, r"class_weights must be 3 numbers of at least 0"),
        ({"device": "cuda:99"}, xpcnn.DeviceError, 'device "cuda:99" cannot be used'),
    ],
)
def test_fit_refuses_what_does_not_go_together(options, error, message):
    with pytest.raises(error, match=message):
        small_classifier(**options).fit(TRAIN, epochs=1, verbose=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be an int of at least 1; received 0"),
        ({"epochs": 1.5}, "epochs must be an int of at least 1; received 1.5"),
        ({"accumulate": 0}, "accumulate must be an int of at least 1; received 0"),
        ({"batch_size": 0}, "batch_size must be an int of at least 1; received 0"),
        ({"workers": -1}, "workers must be an int of at least 0; received -1"),
        ({"validation": 1.5}, "fraction must lie between 0 and 1"),
        ({"augment": "flip"}, "transform must be callable"),
    ],
)
def test_fit_refuses_options(options, message):
    with pytest.raises(ArgumentError, match=message):
        small_classifier().fit(TRAIN, verbose=False, **options)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((TRAIN[0], TRAIN[1] + 1), r"labels must lie in 0\.\.2, as the network has 3 outputs; received 3"),
        ((TRAIN[0], np.zeros(90, int)), "all 90 training images are of class 0: nothing can be learned"),
        ((TRAIN[0][:0], TRAIN[1][:0]), "at least one image"),
        ((TRAIN[0] * np.float32(np.nan), TRAIN[1]), "images must be finite; image 0 contains NaN"),
    ],
)
def test_fit_refuses_data(data, message):
    with pytest.raises(DataError, match=message):
        small_classifier().fit(data, verbose=False)


def test_other_shapes_are_refused_once_the_network_is_built(clf):
    with pytest.raises(DataError, match=r"the network takes images of shape \(1, 8, 8\); received \(1, 9, 8\)"):
        clf.predict(np.zeros((2, 1, 9, 8), np.uint8))
    with pytest.raises(DataError, match=r"received \(3, 8, 8\)"):
        clf.fit(quarters(9, channels=3), epochs=1)
    with pytest.raises(DataError, match="at least one image"):
        clf.predict(TEST[0][:0])
    with pytest.raises(DataError, match="needs at least one image; received an empty list"):
        clf.predict([])


def test_nothing_works_before_fit():
    clf = small_classifier()
    for use in (clf.predict, clf.evaluate, clf.score, clf.predict_proba):
        with pytest.raises(ArgumentError, match=r"the classifier has not been trained: call fit\(\.\.\.\)"):
            use(TEST[0])
    with pytest.raises(ArgumentError, match="has not been trained"):
        clf.summary()
    with pytest.raises(ArgumentError, match="has not been trained"):
        clf.save("x.safetensors")
    assert not Path("x.safetensors").exists()
    assert repr(clf) == "Classifier(Sequential, not trained)"


def test_files_need_one_or_three_channels(tmp_path):
    clf = small_classifier()
    clf.fit(quarters(9, channels=2), epochs=1, verbose=False)
    with pytest.raises(ArgumentError, match="takes neither one nor three channels, so it cannot read image files"):
        clf.predict("scan.png")


def test_a_failed_first_fit_can_be_repeated():
    clf = small_classifier(norm_net())
    with pytest.raises(DataError):
        clf.fit(TRAIN[0], np.zeros(90, int), verbose=False)
    clf.fit(TRAIN, epochs=1, verbose=False)
    assert clf.history.epochs == 1


def test_the_default_optimizer_is_adam():
    clf = Classifier(small_net(), device="cpu")
    assert isinstance(clf.optimizer, Adam)
    assert clf.optimizer.lr == 1e-3
