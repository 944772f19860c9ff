"""Torch's own files: what torch writes is read, and what is written torch reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xpcnn.errors import FileFormatError
from xpcnn.formats import read_weights, write_weights

pytestmark = pytest.mark.outside

DTYPES = [torch.float16, torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.int8, torch.int16]
DTYPES += [torch.int32, torch.int64, torch.bool, torch.complex64, torch.complex128]
DTYPES += [torch.uint16, torch.uint32, torch.uint64]

LEGACY = {"_use_new_zipfile_serialization": False}


@pytest.fixture(params=[{}, LEGACY, {"pickle_protocol": 4}, LEGACY | {"pickle_protocol": 5}], ids=str)
def saved(request, tmp_path):
    """Save by torch; read by xpcnn."""

    def call(contents, **options):
        torch.save(contents, tmp_path / "model.pth", **request.param)
        return read_weights(tmp_path / "model.pth", **options)

    return call


def numbers(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    values = torch.randint(0, 2 if dtype == torch.bool else 100, shape, generator=torch.Generator().manual_seed(0))
    return values.to(dtype)


def plain(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def check(found: np.ndarray, tensor: torch.Tensor) -> None:
    expected = plain(tensor)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(saved, dtype):
    tensor = numbers(dtype, 3, 4)
    state = saved({"w": tensor, "0-d": numbers(dtype), "empty": numbers(dtype, 0, 2), "t": tensor.T})
    for key, expected in {"w": tensor, "0-d": numbers(dtype), "empty": numbers(dtype, 0, 2), "t": tensor.T}.items():
        check(state[key], expected)


def test_views_that_share_a_storage(saved):
    base = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {
        "base": base,
        "view": base.view(6, 4),
        "slice": base[:, 1:, ::2],
        "transposed": base.permute(2, 0, 1),
        "expanded": base[:1].expand(3, 3, 4),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "one": base[1, 2, 3],
    }
    for key, found in saved(tensors).items():
        check(found, tensors[key])


def test_modules_parameters_and_checkpoints(saved):
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(16, 2)
    )
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    expected = net.state_dict()
    tagged = torch.nn.Parameter(torch.ones(2))
    tagged.tag = "head"
    for contents in (
        expected,
        {"state_dict": expected, "optimizer": optimizer.state_dict(), "epoch": 3, "best": np.float64(0.9)},
        {
            "model": dict(net.named_parameters()) | {"tagged": tagged},
            "shape": torch.Size([3, 4]),
            "dtype": torch.float16,
        },
    ):
        state = saved(contents)
        for key, found in state.items():
            check(found, tagged if key == "tagged" else expected[key])
        assert {"0.weight", "3.bias"} <= set(state)


def test_numpy_arrays(saved):
    arrays = {"a": np.arange(6.0).reshape(2, 3).T, "b": np.ones(2, ">i4"), "t": torch.ones(2)}
    state = saved(arrays)
    for key in ("a", "b"):
        np.testing.assert_array_equal(state[key], arrays[key])


def test_whole_modules_are_refused(saved):
    with pytest.raises(FileFormatError, match=r"asks for 'torch\.nn\.modules\.linear\.Linear', and xpcnn runs no code"):
        saved(torch.nn.Linear(2, 3))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), tmp_path / "model.pt")
    with pytest.raises(FileFormatError, match=r"model\.pt (asks for '__torch__|is a zip archive in which)"):
        read_weights(tmp_path / "model.pt")


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_reads_what_is_written(tmp_path, mmap, rng):
    arrays = {
        "conv.weight": rng.normal(size=(4, 3, 2, 5)).astype(np.float32),
        "half": rng.normal(size=3).astype(np.float16),
        "double": rng.normal(size=(2, 2)).T,
        "count": np.array(7),
        "empty": np.zeros((0, 3), np.float32),
        "bools": np.array([True, False, True]),
        "bytes": np.arange(256, dtype=np.uint8),
        "complex": np.array([1 + 2j, 3], np.complex64),
    }
    write_weights(tmp_path / "model.pth", arrays)
    state = torch.load(tmp_path / "model.pth", weights_only=True, mmap=mmap)
    assert list(state) == list(arrays)
    for key, tensor in state.items():
        assert tensor.is_contiguous()
        check(arrays[key], tensor)


def test_the_bytes_torch_would_have_read(tmp_path):
    """A state dict goes torch -> xpcnn -> torch and back into its module."""
    net = torch.nn.Linear(5, 3)
    torch.save(net.state_dict(), tmp_path / "a.pth")
    write_weights(tmp_path / "b.pth", read_weights(tmp_path / "a.pth"))
    other = torch.nn.Linear(5, 3)
    other.load_state_dict(torch.load(tmp_path / "b.pth", weights_only=True))
    assert torch.equal(net.weight, other.weight)
    assert torch.equal(net.bias, other.bias)
