"""A training step of a small network, by hand: the same numbers as NumPy, and no waits."""

import cudasim
import cupy as cp
import numpy as np
from comparing import IMAGES, im2col, rng


def test_training_step():
    def step(xp, x, t, w1, w2):
        n = x.shape[0]
        m = v = None
        col = im2col(xp, x).reshape(-1, 27)
        z = col @ w1
        a = xp.maximum(z, 0).reshape(n, 6, 6, 8)
        p = a.reshape(n, 3, 2, 3, 2, 8).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 4)
        k = p.argmax(1)
        f = xp.take_along_axis(p, k[:, None], 1).reshape(n, -1)
        y = f @ w2
        e = xp.exp(y - y.max(1, keepdims=True))
        q = e / e.sum(1, keepdims=True)
        loss = -xp.log(q[xp.arange(n), t]).mean()
        dy = q.copy()
        dy[xp.arange(n), t] -= 1
        dy /= n
        dw2 = f.T @ dy
        df = (dy @ w2.T).reshape(-1)
        dp = xp.zeros_like(p)
        dp[xp.arange(p.shape[0]), k] = df
        da = dp.reshape(n, 3, 3, 8, 2, 2).transpose(0, 1, 4, 2, 5, 3).reshape(-1, 8)
        dz = da * (z > 0)
        dw1 = col.T @ dz
        out = []
        for w, g in ((w1, dw1), (w2, dw2)):
            m = 0.1 * g
            v = 0.001 * g * g
            out.append(w - 0.001 * (m / 0.1) / (xp.sqrt(v / 0.001) + 1e-8))
        return loss, out

    x = IMAGES
    t = np.array([1, 0, 3, 2])
    w1 = (rng.randn(27, 8) * 0.1).astype("f4")
    w2 = (rng.randn(72, 10) * 0.1).astype("f4")
    l0, o0 = step(np, x, t, w1, w2)
    dv = [cp.asarray(v) for v in (x, t, w1, w2)]
    step(cp, *dv)
    with cudasim.count() as c:
        l1, o1 = step(cp, *dv)
    assert c["d2h"] == 0 and c["h2d"] == 0 and c["device_sync"] == 0, c.as_dict()
    seen = ", ".join(
        f"{c[k]} {k}" for k in ("kernel_launch", "gemm", "h2d", "d2h", "d2d", "stream_sync", "device_sync")
    )
    print(f"   (one CNN step: {seen})")
    np.testing.assert_allclose(l0, l1.get(), rtol=1e-5)
    for a, b in zip(o0, o1, strict=True):
        np.testing.assert_allclose(a, b.get(), rtol=1e-3, atol=2e-4)
