"""Grad-CAM, saliency, occlusion and activations, against finite differences and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import to_numpy
from PIL import Image
from tolerances import assert_close
from toys import CLASSES, place, quarters, small_classifier

import xpcnn
from xpcnn import (
    ArgumentError,
    BatchNorm2d,
    Concat,
    Conv2d,
    Dense,
    DenseConcat,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    MaxPool2d,
    Recompute,
    ReLU,
    Residual,
    Sequential,
    ShapeError,
    Softmax,
    Step,
    Tanh,
    batch_last,
    zoo,
)
from xpcnn.backend import peak_memory
from xpcnn.inspection import activations, grad_cam, numerical_gradient, occlusion, saliency

SHAPE = (2, 9, 7)


def conv(width):
    return Conv2d(width, 3, padding=1)


def net_of(body, xp=np, dtype="float64"):
    """Return a built network: a body of smooth layers, then a head that is not linear."""
    net = Sequential(body=body, head=Sequential(MaxPool2d(2), Flatten(), Dense(5), Tanh(), Dense(3)))
    net.build(SHAPE, seed=3, dtype=dtype, device=place(xp))
    rng = np.random.default_rng(7)
    for name, array in net.state_dict().items():
        if "running" in name:
            array[...] = xp.asarray(rng.uniform(0.5, 1.5, array.shape))
    return net


BODIES = {
    "plain": lambda: Sequential(conv(4), BatchNorm2d(), Tanh(), Dropout(0.5)),
    "residual": lambda: Sequential(conv(4), Residual(Sequential(conv(4), Tanh()), activation=Tanh())),
    "dense": lambda: Sequential(conv(3), DenseConcat(Sequential(conv(2), Tanh()))),
    "concat": lambda: Sequential(Concat(conv(2), Sequential(conv(3), Tanh()))),
    "recomputed": lambda: Sequential(Recompute(Sequential(conv(3), Tanh())), Recompute(Sequential(conv(3), Tanh()))),
}


def by_differences(net, x, target):
    """Return Grad-CAM of the output of "body" (N, H, W), its gradient by central differences of the head."""
    features = to_numpy(net["body"].forward(batch_last(x), False)[0]).astype(np.float64)
    xp = net.xp

    def score(a):
        return sum(net["head"].forward(xp.asarray(a), False)[0][t, n] for n, t in enumerate(target))

    gradient = numerical_gradient(score, features)
    weights = gradient.sum(axis=(1, 2)) / (features.shape[1] * features.shape[2])
    maps = np.einsum("cn,chwn->nhw", weights, features)
    return np.where(maps > 0, maps, 0)


@pytest.mark.parametrize("name", BODIES)
def test_grad_cam_is_that_of_finite_differences(xp, rng, name):
    net = net_of(BODIES[name](), xp)
    x = xp.asarray(rng.standard_normal((2, *SHAPE)))
    found = grad_cam(net, x, [2, 0], "body", resize=False)
    expected = by_differences(net, x, [2, 0])
    assert expected.max() > 1e-3
    assert (found.layer, found.method, found.maps.dtype) == ("body", "Grad-CAM", np.float64)
    np.testing.assert_array_equal(found.classes, [2, 0])
    assert_close(found.maps, expected, "gradient")
    assert grad_cam(net, x, [2, 0], resize=False).layer == "body", "it is the last feature map too"
    assert found.name(1) == "0"


def test_saliency_is_that_of_finite_differences(xp, rng):
    net = net_of(BODIES["residual"](), xp)
    x = rng.standard_normal((1, *SHAPE))
    found = saliency(net, xp.asarray(x), 1)
    gradient = numerical_gradient(lambda v: net(xp.asarray(v))[0, 1], x.copy())
    assert_close(found.maps, np.abs(gradient).max(axis=1), "gradient")


def test_a_classifier_takes_pixels_and_names(xp):
    images, labels = quarters(24)
    clf = small_classifier(classes=CLASSES, device=place(xp), normalize=(0.4, 0.25), ema=0.5)
    clf.fit(images, labels, epochs=2, verbose=False)
    one = images[1]
    with clf.averaged() as net:
        net = net.to("cpu")
        x = (one[None] / 255 - 0.4) / 0.25
        gradient = numerical_gradient(lambda v: net.to(dtype="float64")(v)[0, 2], x)
    np.testing.assert_allclose(saliency(clf, one, "south").maps, np.abs(gradient)[:, 0] / 0.25, rtol=1e-4, atol=1e-5)
    cam = grad_cam(clf, images[:3])
    np.testing.assert_array_equal(cam.classes, clf.predict_proba(images[:3]).argmax(axis=1))
    assert cam.name(0) == clf.predict(images[:3])[0]
    assert cam.maps.shape == (3, 8, 8)
    assert cam.layer == "1"
    small = grad_cam(clf, images[:3], resize=False).maps
    assert small.shape == (3, 6, 6)
    assert cam.maps.max() <= small.max() * 1.000001


def test_nothing_is_changed_by_looking(xp, readonly):
    images, labels = quarters(12)
    clf = small_classifier(device=place(xp))
    clf.fit(images, labels, epochs=1, verbose=False)
    before = {name: to_numpy(array).copy() for name, array in clf.net.state_dict().items()}
    attributes = [dict(vars(layer)) for _, layer in clf.net.walk()]
    for method in (grad_cam, saliency, occlusion):
        method(clf, readonly(images[:2]))
    activations(clf, readonly(images[:2]), "0")
    for name, array in clf.net.state_dict().items():
        np.testing.assert_array_equal(to_numpy(array), before[name])
    assert not to_numpy(clf.net.flat().grad).any()
    assert [dict(vars(layer)) for _, layer in clf.net.walk()] == attributes


def test_the_weights_are_not_copied(xp):
    """Those of VGG-16 are half a gigabyte, with as many gradients."""
    net = Sequential(conv(2), Flatten(), Dense(4000), Dense(500), Dense(2))
    net.build(SHAPE, device=place(xp))
    weights = sum(parameter.data.nbytes for parameter in net.parameters().values())
    net.flat().grad[...] = 3.0
    with peak_memory(place(xp)) as peak:
        grad_cam(net, xp.ones((1, *SHAPE), np.float32))
        assert peak() < weights / 4
    assert (to_numpy(net.flat().grad) == 3.0).all()


def test_activations_are_the_outputs_of_the_layers(xp, rng):
    net = net_of(BODIES["plain"](), xp, "float32")
    x = xp.asarray(rng.standard_normal((3, *SHAPE)).astype(np.float32))
    y = batch_last(x)
    for path in ("body", "head.0", "head.1", "head.2", "head.3", "head.4"):
        y = net[path].forward(y, False)[0]
        np.testing.assert_array_equal(activations(net, x, path), np.moveaxis(to_numpy(y), -1, 0))
    convolved = net["body.0"].forward(batch_last(x), False)[0]
    np.testing.assert_array_equal(activations(net, x, "body.0"), np.moveaxis(to_numpy(convolved), -1, 0))


def test_of_a_layer_used_twice_it_is_the_last_output(rng):
    shared = conv(2)
    net = Sequential(shared, Tanh(), shared, Tanh(), Flatten(), Dense(3))
    net.build(SHAPE, dtype="float64")
    x = rng.standard_normal((1, *SHAPE))
    last = net["2"] if "2" in dict(net.walk()) else shared
    assert last is shared
    tail = Sequential(Tanh(), *[layer for _, layer in net.children()][4:])
    features = batch_last(activations(net, x, "0")).copy()
    np.testing.assert_allclose(tail.forward(features, False)[0].T, net(x), rtol=1e-12)
    gradient = numerical_gradient(lambda a: tail.forward(a, False)[0][1, 0], features)
    weights = gradient.mean(axis=(1, 2), keepdims=True)
    expected = np.maximum((weights * features).sum(axis=0), 0)[..., 0]
    assert_close(grad_cam(net, x, 1, "0", resize=False).maps[0], expected, "gradient")


@pytest.mark.parametrize(
    ("name", "stem", "layer"),
    [
        ("lenet", None, "4"),
        ("keras_style", None, "3"),
        ("resnet20", None, "layer3"),
        ("mobilenet_v2", "cifar", "features"),
        ("squeezenet1_1", "cifar", "classifier.2"),
        ("googlenet", "cifar", "inception5b"),
        ("densenet121", "cifar", "features"),
        ("vgg11_bn", "cifar", "features.27"),
    ],
)
def test_the_last_feature_map(rng, name, stem, layer):
    net, shape = zoo.build(name, stem=stem), zoo.entry(name).form(stem).input_shape
    net.build(shape)
    found = grad_cam(net, rng.standard_normal((1, *shape)))
    assert found.layer == layer
    assert found.maps.shape == (1, *shape[1:])


def test_an_onnx_graph_is_looked_into_by_node(xp, rng, tmp_path):
    pytest.importorskip("onnx", reason="onnx is not installed")
    from xpcnn.formats.onnx import load, save

    net = Sequential(
        conv1=conv(4), norm=BatchNorm2d(), block=Residual(Sequential(conv=conv(4), act=Tanh()), activation=ReLU()),
        pool=GlobalAvgPool2d(), flatten=Flatten(), fc=Dense(3),
    )  # fmt: skip
    net.build(SHAPE)
    save(net, tmp_path / "net.onnx", SHAPE)
    graph = load(tmp_path / "net.onnx")
    graph.build(SHAPE)
    graph.to(place(xp))
    x = xp.asarray(rng.standard_normal((2, *SHAPE)).astype(np.float32))
    for target in range(3):
        found, expected = grad_cam(graph, x, target), grad_cam(net, to_numpy(x), target)
        assert expected.layer == "block"
        assert found.maps.shape == (2, 9, 7)
        assert_close(found.maps, expected.maps, "sum of products")
    assert found.layer == graph.parsed[-4].name or found.layer.startswith("block")
    assert_close(saliency(graph, x).maps, saliency(net, to_numpy(x)).maps, "sum of products")
    assert_close(activations(graph, x, "conv1"), activations(net, to_numpy(x), "conv1"), "sum of products")
    nested = Sequential(graph=graph)
    assert_close(activations(nested, x, "graph.conv1"), activations(net, to_numpy(x), "conv1"), "sum of products")
    assert type(graph.parsed[0]).__name__ == "Node", "the graph itself is not watched"


# --- occlusion --------------------------------------------------------------------------------------------------


def test_occlusion_by_hand(xp, rng):
    net = net_of(BODIES["plain"](), xp)
    x = rng.standard_normal((2, *SHAPE))
    found = occlusion(net, xp.asarray(x), [1, 2], patch=3, stride=2, batch_size=5)

    def probability(image, target):
        scores = np.exp(to_numpy(net(xp.asarray(image[None])))[0])
        return scores[target] / scores.sum()

    for n, target in enumerate((1, 2)):
        total, count = np.zeros((9, 7)), np.zeros((9, 7))
        for top in (0, 2, 4, 6):
            for left in (0, 2, 4):
                covered = x[n].copy()
                covered[:, top : top + 3, left : left + 3] = x[n].mean(axis=(1, 2), keepdims=True)
                total[top : top + 3, left : left + 3] += probability(x[n], target) - probability(covered, target)
                count[top : top + 3, left : left + 3] += 1
        np.testing.assert_allclose(found.maps[n], total / count, rtol=1e-9, atol=1e-12)
    assert (found.maps < 0).any()


def test_occlusion_finds_what_matters():
    images, labels = quarters(60)
    clf = small_classifier(classes=CLASSES)
    clf.fit(images, labels, epochs=20, verbose=False)
    assert clf.score(images, labels) == 1
    heat = occlusion(clf, images[1], "east", patch=4, stride=2).maps[0]
    assert heat[:4, 4:].mean() > 2 * max(heat[:4, :4].mean(), heat[4:, 4:].mean())


def test_a_network_that_ends_with_softmax_gives_probabilities_itself(rng):
    net = Sequential(Flatten(), Dense(3), Softmax())
    net.build((1, 4, 4), dtype="float64")
    x = rng.standard_normal((1, 1, 4, 4))
    covered = np.full_like(x, x.mean())
    found = occlusion(net, x, 1, patch=4)
    np.testing.assert_allclose(found.maps, np.full((1, 4, 4), net(x)[0, 1] - net(covered)[0, 1]), rtol=1e-9)


@pytest.mark.parametrize("options", [{"patch": 8}, {"patch": 2, "stride": 3}, {"patch": 0}, {"batch_size": 0}])
def test_a_square_that_does_not_fit(rng, options):
    net = net_of(BODIES["plain"]())
    with pytest.raises(ArgumentError, match=r"occlusion needs 1 <= stride <= patch <= 7, the shorter side.*received"):
        occlusion(net, rng.standard_normal((1, *SHAPE)), **options)


# --- what is refused --------------------------------------------------------------------------------------------


def test_unknown_layers_and_classes(rng, tmp_path):
    net = net_of(BODIES["plain"]())
    x = rng.standard_normal((2, *SHAPE))
    with pytest.raises(ArgumentError, match=r"no layer 'fc' takes part in prediction; there are: body\.0, body\.1,"):
        grad_cam(net, x, layer="fc")
    with pytest.raises(ArgumentError, match="no layer 'fc' takes part"):
        activations(net, x, "fc")
    with pytest.raises(ArgumentError, match=r"the output of layer 'head\.2' has shape \(5,\)\. Name a convolution"):
        grad_cam(net, x, layer="head.2")
    for target in (3, -1, "east", [0, 1, 2], 1.5):
        with pytest.raises(ArgumentError, match=r"a class is given by number \(0 to 2\), one for all images or one fo"):
            saliency(net, x, target)
    clf = small_classifier(classes=CLASSES)
    clf.build((1, 8, 8))
    with pytest.raises(ArgumentError, match=r"a class is given by name \(north, east, south\) or by number"):
        saliency(clf, np.zeros((8, 8), np.uint8), "west")
    with pytest.raises(ArgumentError, match="the classifier has not been trained"):
        saliency(small_classifier(), np.zeros((8, 8), np.uint8))


def test_networks_without_feature_maps_or_scores(rng):
    dense = Sequential(Flatten(), Dense(3))
    dense.build((1, 4, 4))
    x = rng.standard_normal((1, 1, 4, 4))
    with pytest.raises(
        ArgumentError, match=r"no convolution whose output is larger than one pixel.*use saliency or occ"
    ):
        grad_cam(dense, x)
    assert saliency(dense, x).maps.shape == (1, 4, 4)
    body = Sequential(Conv2d(2, 3))
    body.build((1, 4, 4))
    with pytest.raises(ShapeError, match=r"should end in K scores; its output has shape \(2, 2, 2\)"):
        saliency(body, x)
    single = Sequential(Conv2d(2, 4), Flatten(), Dense(3))
    single.build((1, 4, 4))
    with pytest.raises(ArgumentError, match="no convolution whose output is larger than one pixel"):
        grad_cam(single, x)


def test_image_files(tmp_path):
    images, labels = quarters(12)
    clf = small_classifier(classes=CLASSES)
    clf.fit(images, labels, epochs=1, verbose=False)
    Image.fromarray(images[0, 0]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(saliency(clf, tmp_path / "a.png", 0).maps, saliency(clf, images[0], 0).maps)
    both = grad_cam(clf, [tmp_path / "a.png", str(tmp_path / "a.png")], ["north", 2])
    np.testing.assert_array_equal(both.classes, [0, 2])
    with pytest.raises(xpcnn.DataError):
        saliency(clf, np.zeros((1, 9, 9), np.uint8))


def test_dropout_is_off(rng):
    net = net_of(BODIES["plain"]())
    x = rng.standard_normal((1, *SHAPE))
    np.testing.assert_array_equal(grad_cam(net, x, 0).maps, grad_cam(net, x, 0).maps)
    assert net.forward(batch_last(x), Step(inference=True))[0].shape == (3, 1)
