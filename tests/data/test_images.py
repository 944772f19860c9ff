"""Image files and image folders."""

from __future__ import annotations

import os
import struct
import sys
import threading
import zipfile

import numpy as np
import pytest
from PIL import Image

from xpcnn.data import ImageFolder, image_from_file, mean_std
from xpcnn.data.images import printable
from xpcnn.errors import ArgumentError, DataError


def saved(path, pixels, **options):
    Image.fromarray(np.asarray(pixels)).save(path, **options)
    return path


@pytest.fixture
def grey(rng):
    return rng.integers(0, 256, (6, 4), dtype=np.uint8)


# --- one file ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "pgm", "gif"])
def test_lossless_formats(tmp_path, grey, suffix):
    image = image_from_file(saved(tmp_path / f"a.{suffix}", grey))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, grey[None])


def test_colour(tmp_path, rng):
    pixels = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = saved(tmp_path / "a.png", pixels)
    image = image_from_file(path, mode="RGB")
    np.testing.assert_array_equal(image, pixels.transpose(2, 0, 1))
    assert image.flags.c_contiguous
    luma = pixels @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(image_from_file(path)[0], luma, atol=1)


def test_grey_as_rgb(tmp_path, grey):
    image = image_from_file(saved(tmp_path / "a.png", grey), mode="RGB")
    np.testing.assert_array_equal(image, np.stack([grey] * 3))


def test_transparent_pixels_become_white(tmp_path):
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = 0, 255, 51  # nothing, black, a fifth of black
    for mode in ("L", "RGB"):
        assert image_from_file(saved(tmp_path / "a.png", rgba), mode=mode)[0, 0].tolist() == [255, 0, 204]
    la = rgba[..., [0, 3]]
    assert image_from_file(saved(tmp_path / "b.png", la))[0, 0].tolist() == [255, 0, 204]


def test_palettes(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50, 0, 0, 0])
    image.save(tmp_path / "a.png")
    assert image_from_file(tmp_path / "a.png", mode="RGB")[:, 0, 1].tolist() == [200, 100, 50]
    image.save(tmp_path / "b.png", transparency=bytes([255, 0, 255]))
    assert image_from_file(tmp_path / "b.png", mode="RGB")[:, 0].T.tolist() == [[10, 20, 30], [255] * 3, [0] * 3]


def test_cmyk(tmp_path):
    Image.new("CMYK", (2, 2), (0, 0, 0, 0)).save(tmp_path / "a.tif")
    assert image_from_file(tmp_path / "a.tif", mode="RGB").tolist() == [[[255, 255]] * 2] * 3


def test_black_and_white(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    assert image_from_file(tmp_path / "a.png").tolist() == [[[255, 0]]]


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    deep = np.array([[0, 257, 128 * 257, 65535, 300]], np.uint16)
    path = saved(tmp_path / f"a.{suffix}", deep)
    assert image_from_file(path)[0, 0].tolist() == [0, 1, 128, 255, 1]
    assert image_from_file(path, mode="RGB")[2, 0].tolist() == [0, 1, 128, 255, 1]


@pytest.mark.parametrize(
    "pixels", [np.array([[0.0, 0.5]], np.float32), np.array([[0, 70000]], np.int32), np.array([[-1, 0]], np.int32)]
)
def test_deeper_pixels_are_refused(tmp_path, pixels):
    path = saved(tmp_path / "deep.tif", pixels)
    with pytest.raises(
        DataError, match=r"deep\.tif: has [IF] pixels in .*expected 8 or 16 bits\. Convert it to 8 bits"
    ):
        image_from_file(path)


def test_exif_orientation(tmp_path, grey):
    for orientation, expected in ((6, np.rot90(grey, -1)), (3, np.rot90(grey, 2)), (2, grey[:, ::-1])):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = saved(tmp_path / f"{orientation}.png", grey, exif=exif)
        np.testing.assert_array_equal(image_from_file(path)[0], expected)


def test_first_of_several_frames(tmp_path, grey):
    other = Image.fromarray(255 - grey)
    Image.fromarray(grey).save(tmp_path / "a.tif", save_all=True, append_images=[other])
    np.testing.assert_array_equal(image_from_file(tmp_path / "a.tif")[0], grey)


def test_resize_pad_and_crop(tmp_path):
    pixels = np.full((20, 40), 200, np.uint8)
    pixels[:, :10] = 100
    path = saved(tmp_path / "a.png", pixels)
    stretched = image_from_file(path, (10, 10))[0]
    assert stretched.shape == (10, 10)
    assert (stretched[:, 0] == 100).all()
    assert (stretched[:, -1] == 200).all()
    padded = image_from_file(path, 40, fit="pad")[0]
    assert padded.shape == (40, 40)
    assert not padded[:10].any()
    assert not padded[30:].any()
    np.testing.assert_array_equal(padded[10:30], pixels)
    cropped = image_from_file(path, (20, 20), fit="crop")[0]
    np.testing.assert_array_equal(cropped, pixels[:, 10:30])


def test_a_file_of_the_right_size_is_not_touched(tmp_path, grey):
    path = saved(tmp_path / "a.png", grey)
    for fit in ("resize", "pad", "crop"):
        np.testing.assert_array_equal(image_from_file(path, (6, 4), fit=fit)[0], grey)


def test_large_jpeg_is_close_to_the_exact_resize(tmp_path):
    ramp = np.linspace(0, 255, 800).astype(np.uint8)
    path = saved(tmp_path / "a.jpg", np.broadcast_to(ramp, (600, 800)), quality=95)
    small = image_from_file(path, 50)[0]
    exact = np.asarray(Image.fromarray(np.broadcast_to(ramp, (600, 800))).resize((50, 50), Image.Resampling.BILINEAR))
    assert np.abs(small.astype(int) - exact).max() <= 3


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mode": "P"}, r'mode must be "L" \(grey\) or "RGB"; received \'P\''),
        ({"fit": "stretch"}, 'fit must be "resize", "pad" or "crop"; received \'stretch\''),
        ({"size": 0}, r"size must be a positive int or a pair \(height, width\); received 0"),
        ({"size": (3, 4, 5)}, r"received \(3, 4, 5\)"),
        ({"size": (3.0, 4)}, r"received \(3\.0, 4\)"),
    ],
)
def test_wrong_options(tmp_path, options, text):
    with pytest.raises(ArgumentError, match=text):
        image_from_file(tmp_path / "a.png", **options)


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"a\.png: cannot be read \(No such file or directory\)"):
        image_from_file(tmp_path / "a.png")


def test_a_file_that_is_no_image(tmp_path):
    (tmp_path / "a.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"a\.png: is not an image in any format that Pillow reads"):
        image_from_file(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp"])
def test_truncated_files(tmp_path, rng, suffix):
    path = saved(tmp_path / f"half.{suffix}", rng.integers(0, 256, (40, 40), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"half\.{suffix}: cannot be (read|decoded) \("):
        image_from_file(path)


def test_broken_bytes_never_raise_anything_else(tmp_path, rng):
    """Whatever a byte is changed to, the result is an image or a DataError that names the file."""
    path = saved(tmp_path / "a.png", rng.integers(0, 256, (9, 9), dtype=np.uint8))
    content = bytearray(path.read_bytes())
    for position in range(0, len(content), 3):
        broken = bytearray(content)
        broken[position] ^= 0x55
        path.write_bytes(broken)
        message = str(path)
        try:
            shape = image_from_file(path, 9).shape
        except DataError as error:
            shape, message = (1, 9, 9), str(error)
        assert shape == (1, 9, 9)
        assert message.startswith(str(path))


def test_a_header_that_asks_for_memory(tmp_path):
    """Boxes of JPEG 2000 have a length, which Pillow would read in one piece."""
    box = struct.pack(">I4s", 1, b"jp2h") + struct.pack(">Q", 2**45)
    content = b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x14ftypjp2 \0\0\0\0jp2 " + box
    (tmp_path / "a.jp2").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.jp2: (is not an image|cannot be)"):
        image_from_file(tmp_path / "a.jp2")


def test_folders_pipes_and_devices_are_no_images(tmp_path):
    (tmp_path / "x.png").mkdir()
    places = [tmp_path / "x.png"]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
        (tmp_path / "endless.png").symlink_to("/dev/zero")
        places += [tmp_path / "pipe.png", tmp_path / "endless.png"]
    for path in places:
        with pytest.raises(DataError, match=rf"{path.name}: is not a file \(but a folder, pipe or device\)"):
            image_from_file(path)


def test_animations_give_their_first_frame(tmp_path, grey):
    first, second = Image.fromarray(grey), Image.fromarray(255 - grey)
    for suffix, options in (("gif", {}), ("png", {}), ("webp", {"lossless": True})):
        path = tmp_path / f"a.{suffix}"
        first.save(path, save_all=True, append_images=[second, second], duration=50, **options)
        with Image.open(path) as file:
            assert file.n_frames > 1
        np.testing.assert_array_equal(image_from_file(path)[0], grey)


def test_postscript_is_not_run(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(DataError, match="is not an image"):
        image_from_file(tmp_path / "a.png")


@pytest.mark.parametrize("limit", [40, 70])  # Pillow raises above twice the limit and only warns below
def test_decompression_bomb(tmp_path, monkeypatch, limit):
    path = saved(tmp_path / "bomb.png", np.zeros((10, 10), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(
        DataError, match=rf"bomb\.png: has more than {limit} pixels\. .*raise PIL\.Image\.MAX_IMAGE_PIXELS"
    ):
        image_from_file(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert image_from_file(path).shape == (1, 10, 10)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb_that_pillow_only_warns_of(tmp_path, monkeypatch):
    path = saved(tmp_path / "bomb.png", np.zeros((10, 10), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 70)
    with pytest.raises(DataError, match="has more than 70 pixels"):
        image_from_file(path)


def test_out_of_memory_is_not_called_a_broken_file(tmp_path, monkeypatch, grey):
    path = saved(tmp_path / "a.png", grey)
    monkeypatch.setattr(Image.Image, "convert", lambda *_: (_ for _ in ()).throw(MemoryError("none left")))
    with pytest.raises(MemoryError, match="none left"):
        image_from_file(path)


def test_decoder_errors_are_wrapped(tmp_path, monkeypatch, grey):
    path = saved(tmp_path / "a.png", grey)
    monkeypatch.setattr(Image.Image, "convert", lambda *_: (_ for _ in ()).throw(IndexError("out of range")))
    with pytest.raises(DataError, match=r"a\.png: cannot be decoded \(IndexError: out of range\)"):
        image_from_file(path)


# --- folders ----------------------------------------------------------------------------------------------------


def test_image_folder(animals):
    d = ImageFolder(animals, size=(10, 8))
    assert d.classes == ["cat", "dog"]
    assert len(d) == 8
    assert d.shape == (1, 10, 8)
    assert d.labels.tolist() == [0] * 5 + [1] * 3
    assert d.labels.dtype == np.int64
    assert d.skipped == 0
    image, label = d[7]
    assert (image.shape, image.dtype, label) == ((1, 10, 8), np.uint8, 1)
    assert d.take(np.arange(8))[:, 0, 0, 0].tolist() == [30, 40, 50, 60, 70, 0, 10, 20]
    assert d.files[0] == animals / "cat" / "0.png"
    assert repr(d) == "ImageFolder(8 images of shape (1, 10, 8), 2 classes)"
    with pytest.raises(IndexError):
        d[8]


@pytest.mark.parametrize("cache", [True, False])
def test_cache_changes_nothing(animals, cache):
    d = ImageFolder(animals, 5, mode="RGB", cache=cache)
    expected = np.stack([image_from_file(f, 5, "RGB") for f in d.files])
    for indices in ([3, 3, 0], [7, 0, 1, 2], list(range(8))):
        batch = d.take(np.array(indices))
        np.testing.assert_array_equal(batch, expected[indices])
        batch[:] = 0


def test_images_are_decoded_once_when_asked_for(animals, monkeypatch):
    decoded = []
    original = image_from_file
    monkeypatch.setattr(
        "xpcnn.data.images.image_from_file", lambda path, *a: decoded.append(path) or original(path, *a)
    )
    d = ImageFolder(animals, 5)
    assert not decoded
    for _ in range(3):
        d.take(np.array([1, 2]))
    assert len(decoded) == 2
    small = ImageFolder(animals, 5, cache_limit=8 * 25 - 1)
    small.take(np.array([1, 1]))
    assert len(decoded) == 4


def test_class_order_and_choice(animals):
    assert ImageFolder(animals, 5, classes=["dog", "cat"]).labels.tolist() == [0] * 3 + [1] * 5
    assert ImageFolder(animals, 5, classes=["dog"]).classes == ["dog"]
    with pytest.raises(DataError, match="has no sub-folder for class 'bird'; it has cat, dog"):
        ImageFolder(animals, 5, classes=["bird"])


def test_limit_keeps_proportions(animals):
    assert ImageFolder(animals, 5, limit=4).labels.tolist() in ([0, 0, 0, 1], [0, 0, 1, 1])
    assert len(ImageFolder(animals, 5, limit=100)) == 8
    with pytest.raises(ArgumentError, match="limit must be at least 1; received 0"):
        ImageFolder(animals, 5, limit=0)


def test_what_is_left_out(animals, grey):
    saved(animals / "cat" / ".hidden.png", grey)
    (animals / "cat" / "notes.txt").write_text("no image")
    (animals / "cat" / "no_suffix").write_text("no image")
    saved(animals / "at_the_top.png", grey)
    for hidden in (".git", "__MACOSX"):
        (animals / hidden).mkdir()
        (animals / "cat" / hidden).mkdir()
        saved(animals / "cat" / hidden / "a.png", grey)
    assert len(ImageFolder(animals, 5)) == 8
    assert ImageFolder(animals, 5).classes == ["cat", "dog"]


def test_deeper_folders_and_capital_suffixes(animals, grey):
    (animals / "dog" / "b" / "c").mkdir(parents=True)
    saved(animals / "dog" / "b" / "c" / "X.PNG", grey)
    d = ImageFolder(animals, 5)
    assert d.files[-1].name == "X.PNG"
    assert d.labels.tolist() == [0] * 5 + [1] * 4


def test_a_broken_file_is_named(animals):
    broken = animals / "cat" / "2.png"
    broken.write_bytes(broken.read_bytes()[:40])
    d = ImageFolder(animals, 5)
    d.take(np.array([0, 1, 3]))
    for cache in (True, False):
        with pytest.raises(DataError, match=r"2\.png: "):
            ImageFolder(animals, 5, cache=cache).take(np.arange(8))


@pytest.mark.parametrize("cache", [True, False])
def test_broken_files_can_be_skipped(animals, cache):
    (animals / "cat" / "2.png").write_bytes(b"broken")
    (animals / "dog" / "0.png").write_bytes(b"")
    d = ImageFolder(animals, (10, 8), on_error="skip", cache=cache)
    assert d.skipped == 2
    assert len(d) == len(d.files) == 6
    assert d.labels.tolist() == [0] * 4 + [1] * 2
    assert d.take(np.arange(6))[:, 0, 0, 0].tolist() == [30, 40, 60, 70, 10, 20]
    assert ImageFolder(animals / "..", 5, on_error="skip", classes=["animals"]).skipped == 2


def test_folders_called_like_images_links_and_loops(animals, grey):
    """Images may lie in a folder called x.png; links to files are followed, those to folders inside a class are not."""
    (animals / "cat" / "x.png").mkdir()
    inside = saved(animals / "cat" / "x.png" / "inside.png", grey)
    (animals / "cat" / "loop").symlink_to(animals, target_is_directory=True)
    (animals / "cat" / "itself.png").symlink_to(animals / "cat" / "itself.png")
    (animals / "cat" / "nowhere.png").symlink_to(animals / "nowhere.png")
    (animals / "cat" / "linked.png").symlink_to(inside)
    (animals / "around").symlink_to(animals / "around")  # no folder, so no class
    d = ImageFolder(animals, (6, 4))
    assert d.classes == ["cat", "dog"]
    names = [path.name for path in d.files]
    assert names == [*(f"{i}.png" for i in range(5)), "itself.png", "linked.png", "nowhere.png", "inside.png"] + [
        f"{i}.png" for i in range(3)
    ]
    np.testing.assert_array_equal(d[6][0][0], grey)
    with pytest.raises(DataError, match=r"nowhere\.png: cannot be read \(No such file or directory\)"):
        d[7]
    with pytest.raises(DataError, match=r"itself\.png: cannot be read"):
        d[5]
    whole = ImageFolder(animals, (6, 4), on_error="skip")
    assert (len(whole), whole.skipped) == (10, 2)


def test_very_many_files(animals):
    many = animals / "cat" / "many"
    many.mkdir()
    for i in range(20_000):
        os.close(os.open(many / f"{i}.png", os.O_CREAT | os.O_WRONLY))
    d = ImageFolder(animals, 5)
    assert len(d) == 20_008
    with pytest.raises(DataError, match=r"many/\d+\.png: is not an image"):
        d.take(np.arange(20))
    small = ImageFolder(animals, 5, on_error="skip")
    assert (len(small), small.skipped) == (8, 20_000)


def test_a_class_of_broken_files_only(animals):
    for file in (animals / "dog").iterdir():
        file.write_bytes(b"broken")
    with pytest.raises(DataError, match="animals: every image of class 'dog' is broken"):
        ImageFolder(animals, 5, on_error="skip")


def test_missing_or_empty_folders(animals, tmp_path):
    with pytest.raises(DataError, match=r"nowhere: is not a folder\. Expected a folder with one sub-folder"):
        ImageFolder(tmp_path / "nowhere", 5)
    with pytest.raises(DataError, match=r"cat: has no sub-folders\. Expected one sub-folder of images per class"):
        ImageFolder(animals / "cat", 5)
    (animals / "bird").mkdir()
    with pytest.raises(DataError, match=r"the sub-folder of class 'bird' has no images\. Remove it or add some"):
        ImageFolder(animals, 5)


def test_wrong_folder_options(animals):
    with pytest.raises(ArgumentError, match='on_error must be "raise" or "skip"; received \'ignore\''):
        ImageFolder(animals, 5, on_error="ignore")
    with pytest.raises(ArgumentError, match="size must be a positive int or a pair"):
        ImageFolder(animals, None)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not allow names that are not UTF-8")
def test_names_that_are_not_utf8(animals, grey):
    folder = os.path.join(os.fsencode(animals), b"ca\xf1on")
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("this file system does not allow names that are not UTF-8")
    name = os.fsdecode(os.path.join(folder, b"\xff.png"))
    saved(name, grey)
    d = ImageFolder(animals, (6, 4))
    assert d.classes == ["ca\\xf1on", "cat", "dog"]
    np.testing.assert_array_equal(d[0][0][0], grey)
    assert ImageFolder(animals, 5, classes=[d.classes[0]]).labels.tolist() == [0]
    with open(name, "wb"):
        pass
    with pytest.raises(DataError, match=r"ca\\xf1on/\\xff\.png: is not an image") as caught:
        ImageFolder(animals, 5)[0]
    str(caught.value).encode("utf-8")
    assert printable("ä") == "ä"


def test_threads_may_read_one_folder(animals):
    d = ImageFolder(animals, 5)
    expected = ImageFolder(animals, 5, cache=False).take(np.arange(8))
    results = []
    readers = [threading.Thread(target=lambda: results.append(d.take(np.arange(8)))) for _ in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    for result in results:
        np.testing.assert_array_equal(result, expected)
    assert len(results) == 4


# --- real images ------------------------------------------------------------------------------------------------


def test_brain_scans(tmp_path, real_data):
    with zipfile.ZipFile(real_data("alzheimer_mri_train_jpg.zip")) as archive:
        archive.extractall(tmp_path)
    d = ImageFolder(tmp_path / "train", size=(200, 200), mode="L")
    assert d.classes == ["MildDemented", "ModerateDemented", "NonDemented", "VeryMildDemented"]
    assert np.bincount(d.labels).tolist() == [717, 52, 2560, 1792]
    assert ImageFolder(tmp_path / "train", 200, limit=192).labels.size == 192
    mean, std = mean_std(d, limit=200)
    assert 0.2 < mean[0] < 0.4
    assert 0.2 < std[0] < 0.4
    native = ImageFolder(tmp_path / "train", (208, 176))
    with Image.open(native.files[0]) as file:
        np.testing.assert_array_equal(native[0][0][0], np.asarray(file))
