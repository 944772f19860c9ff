"""Copies between host and device, and how CuPy's arrays meet NumPy's."""

import cupy as cp
import cupyx
import numpy as np
from comparing import IMAGES, MATRIX, OTHER


def test_get_asnumpy_out():
    x = cp.asarray(MATRIX)
    assert (cp.asnumpy(x) == MATRIX).all()
    o = np.empty_like(MATRIX)
    x.get(out=o)
    assert (o == MATRIX).all()
    v = cp.asarray(IMAGES)[:, 1, ::2]
    assert (v.get() == IMAGES[:, 1, ::2]).all()


def test_asarray_noncontig():
    assert (cp.asarray(IMAGES.transpose(3, 1, 0, 2)).get() == IMAGES.transpose(3, 1, 0, 2)).all()


def test_mixing_raises():
    for f in (
        lambda: cp.asarray(MATRIX) + MATRIX,
        lambda: MATRIX + cp.asarray(MATRIX),
        lambda: cp.dot(cp.asarray(MATRIX), MATRIX.T),
        lambda: np.asarray(cp.asarray(MATRIX)),
        lambda: cp.concatenate([cp.asarray(MATRIX), MATRIX]),
    ):
        try:
            f()
        except (TypeError, ValueError):
            pass
        else:
            raise AssertionError("no error")


def test_pinned_memory():
    m = cp.cuda.alloc_pinned_memory(MATRIX.nbytes)
    h = np.frombuffer(m, "f4", MATRIX.size).reshape(MATRIX.shape)
    h[...] = MATRIX
    x = cp.empty(MATRIX.shape, "f4")
    x.set(h, stream=cp.cuda.Stream.null)
    assert (x.get() == MATRIX).all()
    z = cupyx.zeros_pinned((3, 3))
    assert z.sum() == 0


def test_npz_roundtrip():
    import io

    f = io.BytesIO()
    cp.savez(f, a=cp.asarray(MATRIX))
    f.seek(0)
    assert (cp.load(f)["a"].get() == MATRIX).all()


def test_dlpack_and_interface():
    x = cp.asarray(MATRIX)
    assert (cp.from_dlpack(x).get() == MATRIX).all()
    assert x.__cuda_array_interface__["data"][0] == x.data.ptr
    assert cp.get_array_module(x) is cp


def test_scalar_conversion():
    x = cp.asarray(3.5)
    assert float(x) == 3.5 and x.item() == 3.5 and int(cp.asarray(3)) == 3 and bool(cp.asarray(True))


def test_array_function_protocol():
    assert isinstance(np.concatenate([cp.asarray(MATRIX), cp.asarray(OTHER)]), cp.ndarray) and isinstance(
        np.exp(cp.asarray(MATRIX)), cp.ndarray
    )
