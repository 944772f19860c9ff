"""Data sets in well-known files: MNIST, IDX, CIFAR-10, .npz, and finding out which of them a path is."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import pickle
import runpy
import struct
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from xpcnn.data import ArrayDataset, ImageFolder, cifar10, from_npz, idx, mnist, open_dataset, read_idx, sources
from xpcnn.errors import ArgumentError, DataError, FileFormatError

FASHION = Path("/usr/share/datasets/fashion-mnist")
IDX_CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(array):
    code = IDX_CODES[array.dtype.str[1:]]
    return (
        struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
        + array.astype(array.dtype.newbyteorder(">")).tobytes()
    )


def write_idx_set(folder, rng, n=(12, 5), suffix=""):
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for part, count in zip(("train", "t10k"), n, strict=True):
        arrays[f"{part}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 6, 5), dtype=np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = (np.arange(count) % 10).astype(np.uint8)
    for name, array in arrays.items():
        content = idx_bytes(array)
        (folder / (name + suffix)).write_bytes(gzip.compress(content) if suffix else content)
    return arrays


# --- the embedded digits ----------------------------------------------------------------------------------------


def test_embedded_mnist():
    train, test = mnist()
    assert (len(train), len(test)) == (9000, 1000)
    assert train.shape == test.shape == (1, 28, 28)
    assert train.x.dtype == np.uint8
    assert train.classes == test.classes == list("0123456789")
    both = np.concatenate([train.labels, test.labels])
    assert np.bincount(both).tolist() == [1001, 1127, 991, 1032, 980, 863, 1014, 1070, 944, 978]
    np.testing.assert_allclose(np.bincount(test.labels), np.bincount(both) / 10, atol=1)
    everything = np.concatenate([train.x, test.x])
    assert len(np.unique(everything.reshape(10000, -1), axis=0)) == 10000
    assert 0.12 < everything.mean() / 255 < 0.14


@pytest.mark.parametrize("count", [50, 320, 1000, 3000])
def test_prefixes_of_embedded_mnist_have_the_class_proportions(count):
    labels = mnist()[0].labels
    expected = np.bincount(labels) * count / len(labels)
    np.testing.assert_allclose(np.bincount(labels[:count], minlength=10), expected, atol=1.5)


def test_embedded_mnist_is_small_and_quick_to_load():
    assert sources.EMBEDDED_MNIST.stat().st_size < 2_000_000
    start = time.perf_counter()
    mnist()
    assert time.perf_counter() - start < 2  # it is 15 ms; the bound only catches another order of magnitude


def test_embedded_mnist_has_its_licence():
    text = sources.EMBEDDED_MNIST.with_name("LICENSE-mnist.txt").read_text()
    for words in ("MIT License", "Juan Cazala", "Yann LeCun", "1.1.0"):
        assert words in text


def test_embedded_mnist_can_be_made_again(tmp_path, monkeypatch, capsys):
    """ci/make_mnist.py gives the same arrays and bytes from what the package holds: pixels as rounded fractions."""
    x = np.concatenate([part.x[:, 0] for part in mnist()])
    y = np.concatenate([part.labels for part in mnist()])
    script = Path(__file__).parents[2] / "ci" / "make_mnist.py"
    (tmp_path / "src" / "digits").mkdir(parents=True)
    for digit in range(10):
        numbers = ",".join(f"{v:.3f}".rstrip("0").rstrip(".") for v in (x[y == digit][:20] / 255).ravel())
        (tmp_path / "src" / "digits" / f"{digit}.json").write_text(f'{{ "data": [{numbers}] }}')
    outputs = []
    for name in ("a.npz", "b.npz"):
        monkeypatch.setattr("sys.argv", ["make_mnist.py", str(tmp_path), str(tmp_path / name)])
        runpy.run_path(str(script), run_name="__main__")
        outputs.append((tmp_path / name).read_bytes())
    assert outputs[0] == outputs[1]
    assert "200 digits" in capsys.readouterr().out
    with np.load(tmp_path / "a.npz") as made:
        for digit in range(10):
            found = {image.tobytes() for image in made["x"][made["y"] == digit]}
            assert found == {image.tobytes() for image in x[y == digit][:20]}


# --- downloads --------------------------------------------------------------------------------------------------


@pytest.fixture
def mirror(tmp_path, rng, monkeypatch):
    """A web server on this machine with four small IDX files whose checksums are the expected ones."""
    folder = tmp_path / "mirror"
    arrays = write_idx_set(folder, rng, suffix=".gz")
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setattr(sources, "MNIST_SHA256", sums)
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            requests.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", folder, arrays, requests
        server.shutdown()
        thread.join()


def test_download(mirror, tmp_path):
    url, _, arrays, requests = mirror
    train, test = mnist(tmp_path / "new" / "mnist", download=True, url=url)
    np.testing.assert_array_equal(train.x[:, 0], arrays["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(test.labels, arrays["t10k-labels-idx1-ubyte"])
    assert len(list((tmp_path / "new" / "mnist").iterdir())) == 4
    (tmp_path / "new" / "mnist" / "t10k-labels-idx1-ubyte.gz").write_bytes(b"damaged")
    del requests[:]
    mnist(tmp_path / "new" / "mnist", download=True, url=url)
    assert requests == ["/t10k-labels-idx1-ubyte.gz"]
    assert len(mnist(tmp_path / "new" / "mnist")[0]) == 12


def test_download_from_a_file_url(mirror, tmp_path):
    assert len(mnist(tmp_path / "new", download=True, url=mirror[1].as_uri() + "/")[0]) == 12


def test_download_with_a_wrong_checksum_leaves_nothing(mirror, tmp_path):
    url, folder, _, _ = mirror
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(DataError, match=r"ubyte\.gz: the download has SHA-256 [0-9a-f]{64}, expected [0-9a-f]{64}\."):
        mnist(tmp_path / "new", download=True, url=url)
    assert not (tmp_path / "new").exists()


def test_download_that_fails_leaves_nothing(mirror, tmp_path):
    url, folder, _, _ = mirror
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"the download failed \(HTTP Error 404.*put the file into .*new yourself"):
        mnist(tmp_path / "new", download=True, url=url)
    assert not (tmp_path / "new").exists()


def test_download_without_a_server(tmp_path):
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/train-images-idx3-ubyte\.gz: the download failed"):
        mnist(tmp_path / "new", download=True, url="http://127.0.0.1:9/")


def test_download_needs_a_folder():
    with pytest.raises(ArgumentError, match=r'needs a folder to go to: mnist\("folder", download=True\)'):
        mnist(download=True)


def test_the_mirror_and_its_sums_are_there():
    assert sources.MNIST_URL.startswith("https://")
    assert sources.MNIST_URL.endswith("/")
    assert all(len(bytes.fromhex(value)) == 32 for value in sources.MNIST_SHA256.values())
    assert len(sources.MNIST_SHA256) == 4


# --- IDX --------------------------------------------------------------------------------------------------------


@given(
    array=st.sampled_from(sorted(IDX_CODES)).flatmap(
        lambda t: hnp.arrays(
            t,
            hnp.array_shapes(max_dims=4, max_side=5, min_side=0),
            elements={"allow_nan": False} if t[0] == "f" else None,
        )
    ),
    compressed=st.booleans(),
)
def test_read_idx_gives_back_what_was_written(tmp_path_factory, array, compressed):
    path = tmp_path_factory.getbasetemp() / "any.idx"
    content = idx_bytes(array)
    path.write_bytes(gzip.compress(content) if compressed else content)
    read = read_idx(path)
    assert read.dtype == array.dtype
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, array)


GOOD = idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is not an IDX file: it begins with nothing"),
        (b"\x89PNG\r\n", "is not an IDX file: it begins with 89504e47, expected 0000"),
        (b"\0\0\x07\x01\0\0\0\0", "is not an IDX file: it begins with 00000701"),
        (b"\0\0\x08\0", "is not an IDX file: it begins with 00000800"),
        (GOOD[:-1], r"is truncated: shorter than the 24 bytes of data that its header \(2, 3, 4\) says"),
        (GOOD[:10], r"is truncated: shorter than the 2 bytes of data that its header \(2,\) says"),
        (GOOD + b"x", "is longer than the 24 bytes"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "is truncated: shorter than the 79228162458924105385300197375 bytes"),
        (
            b"\0\0\x08\x03" + b"\xff" * 8 + b"\0" * 4,
            r"has a shape \(4294967295, 4294967295, 0\) that no array can have",
        ),
        (b"\0\0\x08\x41" + b"\0" * 260, r"has a shape \(0, 0, .*\) that no array can have"),
        (gzip.compress(GOOD, mtime=0)[:-12], "is truncated or broken"),
        (gzip.compress(GOOD, mtime=0)[:10] + b"\x07" * 20, "is truncated or broken"),
        (gzip.compress(GOOD, mtime=0)[:-8] + b"\0" * 8, "is truncated or broken"),
        (gzip.compress(GOOD[:-1], mtime=0), "is truncated: shorter than the 24 bytes"),
        (gzip.compress(b"\0\0\x08\x03" + b"\xff" * 12, mtime=0), "is truncated: shorter than"),
    ],
)
def test_broken_idx_files(tmp_path, content, text):
    path = tmp_path / "broken-ubyte"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=f"broken-ubyte: {text}"):
        read_idx(path)


def test_missing_idx_file(tmp_path):
    with pytest.raises(DataError, match=r"nothing: cannot be read \(No such file or directory\)"):
        read_idx(tmp_path / "nothing")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_folder(tmp_path, rng, suffix):
    arrays = write_idx_set(tmp_path, rng, suffix=suffix)
    train, test = idx(tmp_path)
    np.testing.assert_array_equal(train.x[:, 0], arrays["train-images-idx3-ubyte"])
    assert test.labels.tolist() == [0, 1, 2, 3, 4]
    assert train.classes == test.classes == list("0123456789")
    assert idx(tmp_path, classes="abcdefghij")[1].classes == list("abcdefghij")
    assert len(mnist(tmp_path)[0]) == 12


def test_idx_files_with_a_dot_in_the_name(tmp_path, rng):
    write_idx_set(tmp_path, rng)
    for file in list(tmp_path.iterdir()):
        file.rename(tmp_path / file.name.replace("-idx", ".idx"))
    assert len(idx(tmp_path)[0]) == 12


def test_idx_folder_with_a_missing_file(tmp_path, rng):
    write_idx_set(tmp_path, rng)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"has no file t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte\.gz"):
        idx(tmp_path)


def test_idx_folder_with_wrong_content(tmp_path, rng):
    write_idx_set(tmp_path, rng)
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(idx_bytes(np.arange(11, dtype=np.uint8)))
    with pytest.raises(
        DataError, match=r"\(train\): there must be one label per image: received 12 images and 11 labels"
    ):
        idx(tmp_path)
    path.write_bytes(idx_bytes(np.zeros(12, np.int32)))
    with pytest.raises(FileFormatError, match=r"idx1-ubyte: must hold bytes in 1 dimension\(s\); holds int32 \(12,\)"):
        idx(tmp_path)


@pytest.mark.skipif(not FASHION.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed")
def test_fashion_mnist():
    train, test = idx(FASHION)
    assert train.x.shape == (60000, 1, 28, 28)
    assert test.x.shape == (10000, 1, 28, 28)
    assert np.bincount(train.labels).tolist() == [6000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    np.testing.assert_allclose(train.x.mean(dtype=np.float64) / 255, 0.2860, atol=5e-5)
    assert train.labels[:4].tolist() == [9, 0, 0, 3]


# --- CIFAR-10 ---------------------------------------------------------------------------------------------------

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def write_cifar(folder, images, labels, names=NAMES):
    """Write images (6 n, 3, 32, 32): five training files and a test file of n each."""
    folder.mkdir(parents=True, exist_ok=True)
    records = np.concatenate([labels.astype(np.uint8)[:, None], images.reshape(len(images), -1)], axis=1)
    files = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    for name, part in zip(files, np.split(records, 6), strict=True):
        (folder / name).write_bytes(part.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(names) + "\n\n")


@pytest.fixture
def cifar_images(rng):
    return rng.integers(0, 256, (60, 3, 32, 32), dtype=np.uint8), np.arange(60) % 10


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"])
def test_cifar10(tmp_path, cifar_images, inner):
    images, labels = cifar_images
    write_cifar(tmp_path / inner, images, labels)
    train, test = cifar10(tmp_path)
    np.testing.assert_array_equal(train.x, images[:50])
    np.testing.assert_array_equal(test.x, images[50:])
    np.testing.assert_array_equal(train.labels, labels[:50])
    assert train.classes == NAMES


def test_cifar10_with_real_images(tmp_path, real_data):
    with np.load(real_data("cifar10_small.npz")) as file:
        x, y = file["x_train"].transpose(0, 3, 1, 2)[:600], file["y_train"][:600]
    write_cifar(tmp_path, np.ascontiguousarray(x), y)
    train, test = cifar10(tmp_path)
    np.testing.assert_array_equal(np.concatenate([train.x, test.x]), x)


def test_cifar10_with_missing_files(tmp_path, cifar_images):
    with pytest.raises(DataError, match=r"has no file data_batch_1\.bin\. Get the binary version of CIFAR-10"):
        cifar10(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(b"")
    with pytest.raises(DataError, match=r"no file data_batch_1\.bin\. This looks like the pickled version\."):
        cifar10(tmp_path)
    write_cifar(tmp_path, *cifar_images)
    (tmp_path / "test_batch.bin").unlink()
    with pytest.raises(DataError, match=r"no file test_batch\.bin"):
        cifar10(tmp_path)


def test_cifar10_with_broken_files(tmp_path, cifar_images):
    images, labels = cifar_images
    write_cifar(tmp_path, images, labels)
    path = tmp_path / "data_batch_3.bin"
    content = path.read_bytes()
    for broken in (content[:-1], b""):
        path.write_bytes(broken)
        with pytest.raises(FileFormatError, match=rf"_3\.bin: .*records of 3073 bytes; has {len(broken)} bytes"):
            cifar10(tmp_path)
    path.write_bytes(bytes([10]) + content[1:])
    with pytest.raises(FileFormatError, match=r"_3\.bin: labels must lie in 0\.\.9; received 10 in record 0\."):
        cifar10(tmp_path)
    write_cifar(tmp_path, images, labels, NAMES[:9])
    with pytest.raises(FileFormatError, match=r"batches\.meta\.txt: must name 10 classes; names 9"):
        cifar10(tmp_path)


# --- npz --------------------------------------------------------------------------------------------------------


@pytest.fixture
def x(rng):
    return rng.integers(0, 256, (6, 4, 4), dtype=np.uint8)


def test_npz_with_train_and_test(tmp_path, x):
    np.savez(tmp_path / "a.npz", x_train=x, y_train=[0, 1, 2] * 2, x_test=x[:2], y_test=[0, 1])
    train, test = from_npz(tmp_path / "a.npz")
    np.testing.assert_array_equal(train.x[:, 0], x)
    assert test.labels.tolist() == [0, 1]
    assert train.classes == test.classes == ["0", "1", "2"]


def test_npz_with_x_y_and_classes(tmp_path, x):
    np.savez_compressed(tmp_path / "a.npz", x=x.astype(np.float32), y=[0, 1] * 3, classes=["no", "yes", "perhaps"])
    train, test = from_npz(tmp_path / "a.npz")
    assert train.x.dtype == np.float32
    assert train.classes == ["no", "yes", "perhaps"]
    assert test is None


def test_npz_without_the_arrays(tmp_path, x):
    np.savez(tmp_path / "a.npz", images=x, labels=[0])
    with pytest.raises(
        DataError, match=r"a\.npz: needs the arrays x_train and y_train, or x and y; it has images, labels"
    ):
        from_npz(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", x=x)
    with pytest.raises(DataError, match="it has x"):
        from_npz(tmp_path / "a.npz")


def test_npz_with_arrays_that_do_not_fit(tmp_path, x):
    np.savez(tmp_path / "a.npz", x=x, y=[0.0] * 6)
    with pytest.raises(DataError, match=r"a\.npz \(x, y\): labels must be integers"):
        from_npz(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", x_train=x, y_train=[0] * 6, x_test=x[:, :3], y_test=[0] * 6)
    with pytest.raises(DataError, match=r"x_test has images of shape \(1, 3, 4\), x_train of \(1, 4, 4\)"):
        from_npz(tmp_path / "a.npz")


class Trap:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was run')",)


def test_npz_never_unpickles(tmp_path, x):
    np.savez(tmp_path / "a.npz", x=np.array([Trap()], object), y=[0])
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Trap()))
    for name in ("a.npz", "b.npz"):
        with pytest.raises(FileFormatError, match=rf"{name}: is not a readable \.npz file of plain arrays"):
            from_npz(tmp_path / name)


def test_broken_npz_files(tmp_path, x):
    np.savez_compressed(tmp_path / "good.npz", x=x, y=[0] * 6)
    content = (tmp_path / "good.npz").read_bytes()
    damaged = bytearray(content)
    damaged[60] ^= 0xFF
    single = io.BytesIO()
    np.save(single, x)
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("x.npy", b"no array")
    for broken in (b"", content[:200], content[:30], bytes(damaged), single.getvalue(), b"text", other.getvalue()):
        (tmp_path / "bad.npz").write_bytes(broken)
        with pytest.raises((FileFormatError, DataError), match=r"bad\.npz: "):
            from_npz(tmp_path / "bad.npz")
    with pytest.raises(DataError, match=r"none\.npz: cannot be read \(No such file or directory\)"):
        from_npz(tmp_path / "none.npz")


def npy(shape, dtype, content=b"", version=1):
    """The header of an .npy file that may lie, and whatever follows it."""
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 * version, "little") + text + content


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("shape", "dtype", "text"),
    [
        ((2**40, 5, 5), "<f8", r"x\.npy of [\d,]+ bytes claims to be \(1099511627776, 5, 5\) float64"),
        ((100,), "<U99999999", r"x\.npy of [\d,]+ bytes claims to be \(100,\) <U99999999"),
        ((2**40,), "|S0", "the elements of x.npy have no bytes"),
        ("(4, 5, ", "<f8", "EOF|parse|header"),  # NumPy's reader raises TokenError, which is no ValueError
    ],
)
def test_npz_headers_that_lie(tmp_path, version, shape, dtype, text):
    with zipfile.ZipFile(tmp_path / "lie.npz", "w") as archive:
        archive.writestr("x.npy", npy(shape, dtype, bytes(64), version))
        archive.writestr("readme.txt", "no array")
    tracemalloc.start()
    try:
        with pytest.raises(FileFormatError, match=rf"lie\.npz: is not a readable \.npz file.*({text})"):
            from_npz(tmp_path / "lie.npz")
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_npz_members_that_claim_too_much(tmp_path, x):
    np.savez_compressed(tmp_path / "a.npz", x=x, y=[0] * 6)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    entry = content.index(b"PK\x01\x02")  # of the central directory, which has the size at byte 24
    content[entry + 24 : entry + 28] = (2**31 - 1).to_bytes(4, "little")
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(FileFormatError, match=r"a\.npz: is not a readable .*x\.npy claims 2,147,483,647 bytes"):
        from_npz(tmp_path / "a.npz")


def test_npz_with_text_that_is_none(tmp_path, x):
    """Code points beyond Unicode's last one, on which NumPy raises SystemError."""
    names = np.array([0x7FFFFFFF, 65], np.uint32).view("<U1")
    np.savez(tmp_path / "a.npz", x=x, y=[0, 1] * 3, classes=names)
    with pytest.raises(FileFormatError, match=r"a\.npz: is not a readable \.npz file"):
        from_npz(tmp_path / "a.npz")


def test_npz_may_hold_other_things_too(tmp_path, x):
    np.savez(tmp_path / "a.npz", x=x, y=[0, 1] * 3)
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("readme.txt", "about these images")
    assert len(from_npz(tmp_path / "a.npz")[0]) == 6


def test_npz_with_real_digits(real_data):
    train, test = from_npz(real_data("mnist_small.npz"))
    assert (len(train), len(test)) == (10000, 2000)
    assert np.bincount(test.labels).tolist() == [200] * 10


def test_npz_with_real_pictures(real_data):
    train, test = from_npz(real_data("cifar10_small.npz"))
    assert (len(train), len(test), train.shape) == (4000, 1000, (3, 32, 32))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_npz_with_channels_last_is_turned(tmp_path, rng, channels):
    x = rng.integers(0, 256, (6, 5, 7, channels), dtype=np.uint8)
    np.savez(tmp_path / "last.npz", x=x, y=[0, 1] * 3)
    np.savez(tmp_path / "first.npz", x=x.transpose(0, 3, 1, 2), y=[0, 1] * 3)
    for name in ("last.npz", "first.npz"):
        dataset, _ = from_npz(tmp_path / name)
        assert dataset.shape == (channels, 5, 7)
        np.testing.assert_array_equal(dataset[4][0], x[4].transpose(2, 0, 1))


# --- whatever it is ---------------------------------------------------------------------------------------------


def test_open_dataset_recognises_files(tmp_path, rng, x, cifar_images):
    assert [len(part) for part in open_dataset("mnist")] == [9000, 1000]
    np.savez(tmp_path / "a.npz", x=x, y=[0, 1] * 3)
    assert len(open_dataset(str(tmp_path / "a.npz"))[0]) == 6
    write_idx_set(tmp_path / "idx", rng, suffix=".gz")
    assert len(open_dataset(tmp_path / "idx")[0]) == 12
    write_cifar(tmp_path / "cifar", *cifar_images)
    assert len(open_dataset(tmp_path / "cifar")[0]) == 50


def test_open_dataset_with_a_limit():
    train, test = open_dataset("mnist", limit=500)
    assert type(train) is ArrayDataset
    assert (len(train), len(test)) == (500, 1000)
    assert np.bincount(train.labels).min() > 40
    with pytest.raises(ArgumentError, match="limit must be at least 1; received -3"):
        open_dataset("mnist", limit=-3)


def test_open_dataset_image_folder(animals):
    train, test = open_dataset(animals, size=(5, 4), mode="RGB", limit=4)
    assert isinstance(train, ImageFolder)
    assert train.shape == (3, 5, 4)
    assert len(train) == 4
    assert test is None
    with pytest.raises(ArgumentError, match=r"animals: an image folder needs a size, such as size=\(28, 28\)"):
        open_dataset(animals)


@pytest.mark.parametrize("other", ["test", "val", "valid", "validation"])
def test_open_dataset_image_folder_in_parts(animals, other):
    parts = [animals.parent / "parts" / name for name in ("train", other)]
    parts[0].parent.mkdir()
    animals.rename(parts[0])
    assert open_dataset(parts[0].parent, size=5)[1] is None
    for name in ("cat", "dog"):
        (parts[1] / name).mkdir(parents=True)
        Image.new("L", (5, 5)).save(parts[1] / name / "a.png")
    train, test = open_dataset(parts[0].parent, size=5, limit=3)
    assert (len(train), len(test)) == (3, 2)
    (parts[1] / "dog").rename(parts[1] / "wolf")
    with pytest.raises(DataError, match=rf"{other}: its classes cat, wolf are not those of .*train, cat, dog"):
        open_dataset(parts[0].parent, size=5)


def test_open_dataset_of_nothing(tmp_path):
    with pytest.raises(
        DataError, match=r'nothing: does not exist\. Expected a folder, an \.npz file or the word "mnist"'
    ):
        open_dataset(tmp_path / "nothing")
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match=r"a\.txt: is neither a folder nor an \.npz file"):
        open_dataset(tmp_path / "a.txt")
    (tmp_path / "data_batch_1").write_bytes(b"")
    with pytest.raises(DataError, match="This looks like the pickled version"):
        open_dataset(tmp_path)
