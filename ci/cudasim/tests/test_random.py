"""cuRAND's place is taken by other sequences of the same distributions; default_rng runs its real kernels."""

import cupy as cp


def test_random_state():
    r = cp.random.RandomState(3)
    u = r.uniform(-1, 1, (2000,)).get()
    n = r.normal(2, 3, (4000,)).get()
    i = r.randint(0, 10, 500).get()
    assert abs(u.mean()) < 0.1 and abs(n.mean() - 2) < 0.3 and abs(n.std() - 3) < 0.3 and i.min() >= 0 and i.max() == 9
    a = cp.random.RandomState(3).uniform(-1, 1, (2000,)).get()
    assert (a == u).all()


def test_random_module():
    cp.random.seed(1)
    cp.random.rand(3, 3)
    cp.random.randn(5)
    p = cp.random.permutation(20).get()
    assert sorted(p.tolist()) == list(range(20))
    cp.random.random_sample((3,))
    b = cp.random.binomial(1, 0.5, 1000).get()
    assert 350 < b.sum() < 650


def test_random_choice_shuffle():
    cp.random.choice(5, 3)
    a = cp.arange(10)
    cp.random.shuffle(a)
    assert sorted(a.get().tolist()) == list(range(10))


def test_random_default_rng():
    g = cp.random.default_rng(1)
    u = g.random(1000).get()
    assert 0.4 < u.mean() < 0.6
    n = g.standard_normal(1000).get()
    assert abs(n.mean()) < 0.2
    i = g.integers(0, 5, 100).get()
    assert set(i.tolist()) <= set(range(5))
