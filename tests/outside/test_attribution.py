"""Grad-CAM and saliency against torch's autograd, by hooks on the layer in question."""

from __future__ import annotations

import numpy as np
import pytest
from tolerances import assert_close

from xpcnn import layers as L
from xpcnn.inspection import grad_cam, saliency

torch = pytest.importorskip("torch", reason="torch is not installed (pip install torch)")
nn = torch.nn
pytestmark = pytest.mark.outside


class Block(nn.Module):
    """A residual block as xpcnn.Residual has it."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(self.bn(self.conv(x)) + x)


def pair(dtype="float64"):
    """Return one network in xpcnn and in torch, with the same weights."""
    ours = L.Sequential(
        stem=L.Conv2d(5, 3, stride=2, padding=1),
        act=L.ReLU(),
        block=L.Residual(L.Sequential(conv=L.Conv2d(5, 3, padding=1), bn=L.BatchNorm2d()), activation=L.ReLU()),
        last=L.Sequential(L.Conv2d(7, 3, padding=1), L.ReLU()),
        pool=L.MaxPool2d(2),
        flatten=L.Flatten(),
        fc=L.Dense(4),
    )
    ours.build((3, 13, 11), seed=5, dtype=dtype)
    theirs = nn.Sequential()
    for name, module in (
        ("stem", nn.Conv2d(3, 5, 3, stride=2, padding=1)),
        ("act", nn.ReLU()),
        ("block", Block(5)),
        ("last", nn.Sequential(nn.Conv2d(5, 7, 3, padding=1), nn.ReLU())),
        ("pool", nn.MaxPool2d(2)),
        ("flatten", nn.Flatten()),
        ("fc", nn.Linear(63, 4)),
    ):
        theirs.add_module(name, module)
    theirs = theirs.double().eval()
    rng = np.random.default_rng(1)
    ours["block.bn"].running_mean.data[...] = rng.standard_normal(5)
    ours["block.bn"].running_var.data[...] = rng.uniform(0.5, 2, 5)
    state = {name: torch.tensor(np.array(array)) for name, array in ours.state_dict().items()}
    theirs.load_state_dict(state, strict=False)
    return ours, theirs


@pytest.mark.parametrize("layer", ["stem", "block", "block.conv", "last", "last.0"])
def test_grad_cam_at_any_layer(layer):
    ours, theirs = pair()
    x = np.random.default_rng(2).standard_normal((3, 3, 13, 11))
    kept = []

    def keep(_module, _inputs, output):
        output.retain_grad()
        kept.append(output)

    theirs.get_submodule(layer).register_forward_hook(keep)
    target = [1, 3, 0]
    theirs(torch.tensor(x))[range(3), target].sum().backward()
    features = kept[0]
    weights = features.grad.mean(dim=(2, 3), keepdim=True)
    expected = torch.relu((weights * features).sum(dim=1)).detach().numpy()
    assert expected.max() > 0
    assert_close(grad_cam(ours, x, target, layer, resize=False).maps, expected, "torch")
    assert grad_cam(ours, x, target).layer == "last"


def test_saliency():
    ours, theirs = pair()
    x = np.random.default_rng(3).standard_normal((2, 3, 13, 11))
    pixels = torch.tensor(x, requires_grad=True)
    scores = theirs(pixels)
    scores.max(dim=1).values.sum().backward()
    found = saliency(ours, x)
    np.testing.assert_array_equal(found.classes, scores.argmax(dim=1).numpy())
    assert_close(found.maps, pixels.grad.abs().amax(dim=1).numpy(), "torch")
