"""The workloads of xpcnn.inspection.bench in PyTorch, eager mode, as its users write them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def mri():
    blocks, present = [], 1
    for width in (8, 12, 16):
        blocks += [nn.Conv2d(present, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        present = width
    head = [nn.Linear(10_000, 512), nn.ReLU(), nn.Dropout(0.25), nn.Linear(512, 4)]
    return nn.Sequential(*blocks, nn.Flatten(), *head)


def lenet():
    blocks = [nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Dropout(0.5), nn.Linear(500, 10))


def simple_convnet():
    head = [nn.Linear(4320, 100), nn.ReLU(), nn.Linear(100, 10)]
    return nn.Sequential(nn.Conv2d(1, 30, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), *head)


def keras_style():
    blocks = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)]
    head = [nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)]
    return nn.Sequential(*blocks, nn.Flatten(), *head)


def conv_norm(present, width, kernel=3, stride=1, relu=True):
    layers = [nn.Conv2d(present, width, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(width)]
    return [*layers, nn.ReLU()] if relu else layers


def vgg16_bn():
    layers, present = [], 3
    for count, width in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        for _ in range(count):
            layers += conv_norm(present, width)
            present = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


class Block(nn.Module):
    def __init__(self, present, width, stride):
        super().__init__()
        self.body = nn.Sequential(*conv_norm(present, width, 3, stride), *conv_norm(width, width, relu=False))
        same = stride == 1 and present == width
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv_norm(present, width, 1, stride, relu=False))

    def forward(self, x):
        return F.relu(self.body(x) + self.shortcut(x))


def resnet18():
    layers, present = conv_norm(3, 64), 64
    for width, first in ((64, 1), (128, 2), (256, 2), (512, 2)):
        for stride in (first, 1):
            layers.append(Block(present, width, stride))
            present = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


class DenseLayer(nn.Module):
    def __init__(self, present):
        super().__init__()
        self.narrow = nn.Sequential(nn.BatchNorm2d(present), nn.ReLU(), nn.Conv2d(present, 48, 1, bias=False))
        self.grow = nn.Sequential(nn.BatchNorm2d(48), nn.ReLU(), nn.Conv2d(48, 12, 3, padding=1, bias=False))

    def forward(self, x):
        return torch.cat([x, self.grow(self.narrow(x))], 1)


def densenet40():
    layers, present = [nn.Conv2d(3, 24, 3, padding=1, bias=False)], 24
    for block in range(3):
        for _ in range(6):
            layers.append(DenseLayer(present))
            present += 12
        if block < 2:
            layers += [nn.BatchNorm2d(present), nn.ReLU(), nn.Conv2d(present, present // 2, 1, bias=False)]
            layers.append(nn.AvgPool2d(2))
            present //= 2
    tail = [nn.BatchNorm2d(present), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(present, 10)]
    return nn.Sequential(*layers, *tail)


OPTIMIZERS = {
    "mri": lambda p: torch.optim.Adam(p),
    "lenet": lambda p: torch.optim.SGD(p, 0.01, weight_decay=5e-4),
    "simple_convnet": lambda p: torch.optim.Adam(p),
    "keras_style": lambda p: torch.optim.Adagrad(p),
}


def runner(workload):
    """Return a function that does one step of an xpcnn.inspection.bench.Workload in torch."""
    name = workload.network.__name__
    torch.manual_seed(0)
    net = globals()[name]()
    x = torch.randn(workload.batch, *workload.shape)
    t = torch.randint(0, workload.classes, (workload.batch,))
    if workload.optimizer is None:
        net.eval()

        def infer():
            with torch.inference_mode():
                net(x)

        return infer
    make = OPTIMIZERS.get(name, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=5e-4))
    optimizer = make(net.parameters())

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(net(x), t)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step
