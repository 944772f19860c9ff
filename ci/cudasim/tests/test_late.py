"""CUDASIM_ASYNC=1: work runs when something waits for it, and not before."""

import pytest
from processes import output

SETUP = """
n = 100
pinned = np.frombuffer(cp.cuda.alloc_pinned_memory(4 * n), "f4", n)
stream = cp.cuda.Stream(non_blocking=True)
x = cp.zeros(n, "f4")
x + 1, x * 3
cp.cuda.Device().synchronize()
"""
PROGRAMS = {
    "nothing runs before a wait": (
        """
y = x + 1
before = cudasim.instructions()
cp.cuda.Device().synchronize()
print(before < cudasim.instructions(), y.get()[0])
""",
        "True 1.0",
        "False 1.0",
    ),
    "a pinned buffer that is overwritten too early": (
        """
pinned[:] = 1
x.set(pinned, stream=stream)
pinned[:] = 5
stream.synchronize()
print(x.get()[0])
""",
        "5.0",
        "1.0",
    ),
    "pageable memory may be overwritten": (
        """
host = np.ones(n, "f4")
x.set(host, stream=stream)
host[:] = 5
stream.synchronize()
print(x.get()[0])
""",
        "1.0",
        "1.0",
    ),
    "a missing wait_event": (
        """
x[:] = 2
cp.cuda.Device().synchronize()
y = cp.zeros(n, "f4")
cp.cuda.Device().synchronize()
with stream:
    cp.multiply(x, 3, out=y)
print((y + 1).get()[0])
""",
        "1.0",
        "7.0",
    ),
    "a wait_event that is there": (
        """
x[:] = 2
cp.cuda.Device().synchronize()
y = cp.zeros(n, "f4")
cp.cuda.Device().synchronize()
with stream:
    cp.multiply(x, 3, out=y)
cp.cuda.Stream.null.wait_event(stream.record())
print((y + 1).get()[0])
""",
        "7.0",
        "7.0",
    ),
    "the default stream and blocking streams wait for each other": (
        """
blocking = cp.cuda.Stream()
y = cp.zeros(n, "f4")
with blocking:
    cp.add(x, 4, out=y)
z = y * 2
with blocking:
    w = z + 1
print(w.get()[0])
""",
        "9.0",
        "9.0",
    ),
    "to destroy an event waits for nothing": (
        """
event = cp.cuda.Event()
y = x + 1
event.record()
before = cudasim.instructions()
del event
print(before == cudasim.instructions(), y.get()[0])
""",
        "True 1.0",
        "True 1.0",
    ),
    "an event that is recorded twice and destroyed while both records wait": (
        """
event = cp.cuda.Event()
with stream:
    event.record()
y = x + 1
event.record()
del event
later = [cp.cuda.Event() for _ in range(100)]
cp.cuda.Device().synchronize()
print(y.get()[0], all(e.done for e in later))
""",
        "1.0 True",
        "1.0 True",
    ),
    "asking again and again ends": (
        """
with stream:
    y = x + 1
    z = y + 1
event = stream.record()
asked = 0
while not event.done:
    asked += 1
print(asked > 0, z.get()[0])
""",
        "True 2.0",
        "False 2.0",
    ),
    "cuBLAS runs what its stream depends on": (
        """
a = cp.ones((4, 4), "f4") + 1
print((a @ a).get()[0, 0])
""",
        "16.0",
        "16.0",
    ),
    "a fault shows when its work runs": (
        """
k = cp.RawKernel('extern "C" __global__ void bad(float *x) { x[1 << 30] = 1; }', "bad")
k((1,), (1,), (x,))
print(cudasim.last_error() == "", end=" ")
try:
    cp.cuda.Device().synchronize()
except cp.cuda.runtime.CUDARuntimeError as e:
    print(str(e)[:23])
cudasim.clear_error()
""",
        "True cudaErrorIllegalAddress",
        "False cudaErrorIllegalAddress",
    ),
}


@pytest.fixture(scope="module", params=["1", "0"], ids=["late", "at once"])
def printed(request):
    """Run all programs in one process; return what each printed, and the column of PROGRAMS that it should be."""
    texts = {name: SETUP + program for name, (program, _, _) in PROGRAMS.items()}
    runner = f"for name, text in {texts!r}.items():\n    print('#', name)\n    exec(text, dict(globals()))\n"
    parts = output(runner, CUDASIM_ASYNC=request.param, CUDASIM_QUIET="1").split("# ")[1:]
    return dict(part.strip().split("\n", 1) for part in parts), 1 if request.param == "1" else 2


@pytest.mark.parametrize("name", PROGRAMS)
def test_ordering(name, printed):
    found, column = printed
    assert found[name] == PROGRAMS[name][column]
