"""Networks by name: `zoo.build("resnet18", classes=10, stem="cifar")`, `zoo.names()`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from os import PathLike

from ..errors import ArgumentError, StateDictError
from ..layers import Layer
from .classic import keras_style, lenet, mri, simple_convnet
from .densenet import densenet
from .inception import googlenet, inception_v3
from .mobile import mobilenet_v2, squeezenet
from .resnet import cifar_resnet, resnet
from .vgg import alexnet, vgg

__all__ = [
    "MODELS",
    "Entry",
    "Form",
    "alexnet",
    "build",
    "cifar_resnet",
    "densenet",
    "entry",
    "googlenet",
    "inception_v3",
    "keras_style",
    "lenet",
    "mobilenet_v2",
    "mri",
    "names",
    "resnet",
    "simple_convnet",
    "squeezenet",
    "vgg",
]


@dataclass(frozen=True)
class Form:
    """A network as it was made: the images and classes it was made for, and what it costs then.

    Args:
        input_shape: (C, H, W).
        classes: number of classes K.
        parameters: trained numbers, those of side classifiers too.
        macs: multiply-accumulate operations of one image at inference.
    """

    input_shape: tuple[int, int, int]
    classes: int
    parameters: int
    macs: int


@dataclass(frozen=True)
class Entry:
    """A network of the zoo.

    Args:
        make: returns the network, not built yet.
        year: when it was first published; None if it was not.
        paper: who described it where.
        forms: by stem, "imagenet" and "cifar"; the first is what `build` makes unless told otherwise. Networks without
            that choice have one form called "own".
    """

    make: Callable[..., Layer]
    year: int | None
    paper: str
    forms: dict[str, Form]

    def form(self, stem: str | None = None) -> Form:
        """Return the form with that stem, or the usual one.

        Raises:
            ArgumentError: if there is none.
        """
        if stem is None:
            return next(iter(self.forms.values()))
        if stem not in self.forms or stem == "own":
            known = " or ".join(f'"{name}"' for name in self.forms if name != "own")
            raise ArgumentError(f"stem must be {known or 'left out'} for this network; received {stem!r}.")
        return self.forms[stem]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the usual form."""
        return self.form().input_shape

    @property
    def classes(self) -> int:
        """Number of classes K of the usual form."""
        return self.form().classes

    @property
    def parameters(self) -> int:
        """Number of parameters of the usual form."""
        return self.form().parameters

    @property
    def macs(self) -> int:
        """MACs of the usual form at inference, for one image."""
        return self.form().macs

    @property
    def mode(self) -> str:
        """Pillow's name for the images it expects: "L" (grey) or "RGB"."""
        return "L" if self.input_shape[0] == 1 else "RGB"


def _own(shape: tuple[int, int, int], classes: int, parameters: int, macs: int) -> dict[str, Form]:
    return {"own": Form(shape, classes, parameters, macs)}


def _cifar(parameters: int, macs: int) -> dict[str, Form]:
    return {"cifar": Form((3, 32, 32), 10, parameters, macs)}


def _both(parameters: int, macs: int, small_parameters: int, small_macs: int, size: int = 224) -> dict[str, Form]:
    return {"imagenet": Form((3, size, size), 1000, parameters, macs)} | _cifar(small_parameters, small_macs)


SAITOH = 'Saitoh, "Deep Learning from Scratch" (2016)'
LENET = 'LeCun et al., "Gradient-Based Learning Applied to Document Recognition" (1998)'
ALEXNET = 'Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks" (2012)'
VGG = 'Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition" (2015)'
GOOGLENET = 'Szegedy et al., "Going Deeper with Convolutions" (2015)'
INCEPTION = 'Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (2016)'
RESNET = 'He et al., "Deep Residual Learning for Image Recognition" (2016)'
DENSENET = 'Huang et al., "Densely Connected Convolutional Networks" (2017)'
SQUEEZENET = 'Iandola et al., "SqueezeNet: AlexNet-Level Accuracy with 50x Fewer Parameters" (2016)'
MOBILENET = 'Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (2018)'

MODELS = {
    "mri": Entry(mri, None, "", _own((1, 200, 200), 4, 5_125_264, 20_962_048)),
    "lenet": Entry(lenet, 1998, LENET, _own((1, 28, 28), 10, 431_080, 2_293_000)),
    "simple_convnet": Entry(simple_convnet, 2016, SAITOH, _own((1, 28, 28), 10, 433_890, 865_000)),
    "keras_style": Entry(
        keras_style, 2015, "Chollet et al., Keras' examples (2015)", _own((1, 28, 28), 10, 1_199_882, 11_992_448)
    ),
    "alexnet": Entry(alexnet, 2012, ALEXNET, _both(61_100_840, 714_188_480, 5_871_434, 182_220_800)),
    "vgg11": Entry(partial(vgg, 11), 2014, VGG, _both(132_863_336, 7_609_090_048, 9_750_922, 153_293_824)),
    "vgg13": Entry(partial(vgg, 13), 2014, VGG, _both(133_047_848, 11_308_466_176, 9_935_434, 228_791_296)),
    "vgg16": Entry(partial(vgg, 16), 2014, VGG, _both(138_357_544, 15_470_264_320, 15_245_130, 313_725_952)),
    "vgg19": Entry(partial(vgg, 19), 2014, VGG, _both(143_667_240, 19_632_062_464, 20_554_826, 398_660_608)),
    "vgg11_bn": Entry(
        partial(vgg, 11, norm=True), 2014, VGG, _both(132_868_840, 7_609_090_048, 9_756_426, 153_293_824)
    ),
    "vgg13_bn": Entry(
        partial(vgg, 13, norm=True), 2014, VGG, _both(133_053_736, 11_308_466_176, 9_941_322, 228_791_296)
    ),
    "vgg16_bn": Entry(
        partial(vgg, 16, norm=True), 2014, VGG, _both(138_365_992, 15_470_264_320, 15_253_578, 313_725_952)
    ),
    "vgg19_bn": Entry(
        partial(vgg, 19, norm=True), 2014, VGG, _both(143_678_248, 19_632_062_464, 20_565_834, 398_660_608)
    ),
    "googlenet": Entry(googlenet, 2014, GOOGLENET, _both(13_004_888, 1_498_376_192, 9_952_958, 452_175_872)),
    "inception_v3": Entry(
        inception_v3, 2015, INCEPTION, _both(27_161_264, 5_713_216_096, 24_371_444, 827_671_552, 299)
    ),
    "resnet18": Entry(partial(resnet, 18), 2015, RESNET, _both(11_689_512, 1_814_073_344, 11_173_962, 555_422_720)),
    "resnet34": Entry(partial(resnet, 34), 2015, RESNET, _both(21_797_672, 3_663_761_408, 21_282_122, 1_159_402_496)),
    "resnet50": Entry(partial(resnet, 50), 2015, RESNET, _both(25_557_032, 4_089_184_256, 23_520_842, 1_297_829_888)),
    "resnet101": Entry(partial(resnet, 101), 2015, RESNET, _both(44_549_160, 7_801_405_440, 42_512_970, 2_509_983_744)),
    "resnet152": Entry(
        partial(resnet, 152), 2015, RESNET, _both(60_192_808, 11_513_626_624, 58_156_618, 3_722_137_600)
    ),
    "resnet20": Entry(partial(cifar_resnet, 20), 2015, RESNET, _cifar(269_722, 40_551_040)),
    "resnet32": Entry(partial(cifar_resnet, 32), 2015, RESNET, _cifar(464_154, 68_862_592)),
    "resnet44": Entry(partial(cifar_resnet, 44), 2015, RESNET, _cifar(658_586, 97_174_144)),
    "resnet56": Entry(partial(cifar_resnet, 56), 2015, RESNET, _cifar(853_018, 125_485_696)),
    "resnet110": Entry(partial(cifar_resnet, 110), 2015, RESNET, _cifar(1_727_962, 252_887_680)),
    "densenet121": Entry(
        partial(densenet, 121), 2016, DENSENET, _both(7_978_856, 2_834_161_664, 6_956_426, 888_350_720)
    ),
    "densenet161": Entry(
        partial(densenet, 161), 2016, DENSENET, _both(28_681_000, 7_727_907_072, 26_482_570, 2_467_550_784)
    ),
    "densenet169": Entry(
        partial(densenet, 169), 2016, DENSENET, _both(14_149_480, 3_359_843_328, 12_493_450, 1_059_799_296)
    ),
    "densenet201": Entry(
        partial(densenet, 201), 2016, DENSENET, _both(20_013_928, 4_291_365_888, 18_104_458, 1_363_888_896)
    ),
    "squeezenet1_0": Entry(
        partial(squeezenet, "1.0"), 2016, SQUEEZENET, _both(1_248_424, 818_924_576, 729_034, 52_543_488)
    ),
    "squeezenet1_1": Entry(
        partial(squeezenet, "1.1"), 2016, SQUEEZENET, _both(1_235_496, 349_151_936, 727_626, 23_511_040)
    ),
    "mobilenet_v2": Entry(mobilenet_v2, 2018, MOBILENET, _both(3_504_872, 300_774_272, 2_236_682, 87_976_448)),
}


def names() -> list[str]:
    """Return the names that `build` knows."""
    return list(MODELS)


def entry(name: str) -> Entry:
    """Return a network's entry: its maker, paper, input shapes (C, H, W), classes, parameters and MACs.

    Raises:
        ArgumentError: for a name that is not in the zoo. Dashes count as underscores.
    """
    found = MODELS.get(name.replace("-", "_").lower())
    if found is None:
        raise ArgumentError(f"there is no network called {name!r}; the zoo has {', '.join(names())}.")
    return found


def build(
    name: str,
    classes: int | None = None,
    weights: str | PathLike[str] | None = None,
    stem: str | None = None,
    **options: object,
) -> Layer:
    """Make a network by name.

    Its parameters are made by `net.build(input_shape)`, unless weights are loaded: then it is built already.

    Args:
        name: one of `names()`.
        classes: number of classes K; None for as many as it was made for.
        weights: a file of weights with torchvision's names (Idelbayev's for resnet20 to resnet110), in any format that
            `xpcnn.formats.read_weights` knows. A prefix "module." is dropped.
        stem: "imagenet", or "cifar" for images of 32x32 pixels; None for what it was made for.
        options: further arguments of the network's function, such as `dropout=0.0` or `shortcut="B"`.

    Raises:
        ArgumentError: for a name, stem or option that is not there.
        StateDictError: if the weights are those of another network or for other classes.
    """
    found = entry(name)
    form = found.form(stem)
    wanted = form.classes if classes is None else classes
    if len(found.forms) > 1:
        options["stem"] = stem or next(iter(found.forms))
    try:
        inspect.signature(found.make).bind(classes=wanted, **options)
    except TypeError as error:
        known = ", ".join(key for key in inspect.signature(found.make).parameters if key not in ("classes", "stem"))
        raise ArgumentError(
            f"{name}: {error}; {f'its options are {known}' if known else 'it has no options'}."
        ) from None
    net = found.make(classes=wanted, **options)
    if weights is not None:
        net.build(form.input_shape)
        _load(net, weights, wanted)
    return net


def _load(net: Layer, path: str | PathLike[str], classes: int) -> None:
    from ..formats import read_weights

    state = {key.removeprefix("module."): array for key, array in read_weights(path).items()}
    for key, own in net.state_dict().items():
        given = state[key].shape if key in state else own.shape
        if len(given) == own.ndim and given[1:] == own.shape[1:] and given[0] != own.shape[0] == classes:
            raise StateDictError(
                f"{path} tells {given[0]} classes apart, and the network {classes} ({key}): build it with "
                f"classes={given[0]}, then call xpcnn.new_head(net, {classes})."
            )
    try:
        net.load_state_dict(state)
    except StateDictError as error:
        raise StateDictError(f"{path}: {error}") from None
