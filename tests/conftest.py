"""What every test shares: the two backends, simulated or real, and checks that a test leaves nothing behind.

`xp` runs a test on NumPy and on CuPy. CuPy works on a GPU, or without one under `ci/cudasim/with-cuda-sim pytest ...`.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("MPLBACKEND", "Agg")

import helpers
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# --- options ----------------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        choices=["auto", "numpy", "cupy", "all"],
        default="auto",
        help="numpy: everything but CuPy; cupy: only the tests on CuPy, which must work; all: both; "
        "auto (default): both where CuPy works, else NumPy",
    )
    parser.addoption(
        "--no-skips-except",
        metavar="REGEX",
        help="a test skipped for a reason that this regular expression does not match fails",
    )


def simulated() -> bool:
    """Return whether CuPy runs on the simulated device of ci/cudasim."""
    cudasim = sys.modules.get("cudasim")
    return cudasim is not None and cudasim.is_active()


@lru_cache(maxsize=1)
def cupy_problem() -> str | None:
    """Return None if CuPy computes, else why it does not."""
    from xpcnn.backend import gpu_problem

    problem = gpu_problem()
    if problem is None:
        try:
            import cupy

            if int((cupy.arange(4) * 2).sum()) != 12:
                problem = "CuPy computes nonsense"
        except Exception as error:  # whatever it is, CuPy cannot be used here
            problem = f"CuPy does not compute: {error}"
    return problem


def real_gpu_problem() -> str | None:
    return cupy_problem() or ("the CUDA device is simulated by cudasim" if simulated() else None)


def asks_for_gpu(config: pytest.Config) -> bool:
    return re.search(r"(?<!not )\bgpu\b", config.getoption("markexpr") or "") is not None


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import the comparisons with other libraries where they are not wanted: torch may be missing."""
    unwanted = re.search(r"\bnot outside\b", config.getoption("markexpr") or "")
    return True if unwanted and collection_path.name == "outside" else None


def pytest_configure(config: pytest.Config) -> None:
    # a shell's background jobs, and what they start, ignore Ctrl-C: so does xpcnn, which is not what is tested here
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("backend") in ("cupy", "all") and (problem := cupy_problem()) is not None:
        raise pytest.UsageError(
            f"--backend {config.getoption('backend')} needs CuPy: {problem}. "
            "Without a GPU run the tests under ci/cudasim/with-cuda-sim (bash ci/test.sh does)."
        )


# --- which tests run where --------------------------------------------------------------------------------------


def place_of(item: pytest.Item) -> str:
    """Return what a test needs: "gpu", "simulator", "cupy", or "host" for nothing."""
    if item.get_closest_marker("gpu"):
        return "gpu"
    if "cuda_calls" in getattr(item, "fixturenames", ()):
        return "simulator"
    return "cupy" if item.get_closest_marker("cupy") else "host"


def available_places(config: pytest.Config) -> set[str]:
    backend = config.getoption("backend")
    places = set() if backend == "cupy" else {"host"}
    if backend != "numpy" and cupy_problem() is None:
        places |= {"cupy", "simulator" if simulated() else "gpu"}
    if asks_for_gpu(config):
        places.add("gpu")
    return places


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    places = available_places(config)
    dropped = [item for item in items if place_of(item) not in places]
    if dropped:
        items[:] = [item for item in items if place_of(item) in places]
        config.hook.pytest_deselected(items=dropped)
    config.stash[_dropped] = dropped


_dropped = pytest.StashKey[list[pytest.Item]]()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    places = available_places(config)
    parts = ["NumPy"] if "host" in places else []
    if "cupy" in places:
        parts.append("CuPy on a simulated device" if simulated() else "CuPy on a GPU")
    line = f"backends: {' and '.join(parts)}"
    counts = {"cupy": 0, "simulator": 0, "gpu": 0}
    for item in config.stash.get(_dropped, []):
        if (place := place_of(item)) in counts:
            counts[place] += 1
    left_out = ", ".join(
        f"{count} test{'s that need' if count > 1 else ' that needs'} {place}"
        for place, count in counts.items()
        if count
    )
    if left_out:
        reason = cupy_problem() or real_gpu_problem() or "no simulated device"
        line += f"; NOT RUN: {left_out} ({'--backend numpy' if config.getoption('backend') == 'numpy' else reason})"
    terminalreporter.write_line(line)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and (problem := real_gpu_problem()) is not None:
        pytest.fail(f"this test needs a real GPU: {problem}", pytrace=False)


# --- no silent skips --------------------------------------------------------------------------------------------


def _refuse_skip(report: Any, config: pytest.Config) -> None:
    allowed = config.getoption("--no-skips-except")
    if allowed is None or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not re.search(allowed, reason):
        report.outcome = "failed"
        report.longrepr = f"a skip that is not on the list of allowed reasons ({allowed}): {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    _refuse_skip(report, item.config)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    report = yield
    _refuse_skip(report, collector.config)
    return report


# --- fixtures ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=["numpy", pytest.param("cupy", marks=pytest.mark.cupy)])
def xp(request: pytest.FixtureRequest) -> ModuleType:
    """The array module: the test runs once with numpy and once with cupy."""
    if request.param == "numpy":
        return np
    import cupy

    return cupy


@pytest.fixture
def cuda_calls() -> Any:
    """`with cuda_calls() as c: ...`, then c["kernel_launch"], c["h2d"], c["d2h"], c["stream_sync"], c.log, ..."""
    import cudasim

    return cudasim.count


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers that are the same in every run."""
    return np.random.default_rng(20261101)


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """`real_data(name)`: a file of the folder XPCNN_TEST_DATA; skips where there is none."""

    def find(name: str) -> Path:
        folder = os.environ.get("XPCNN_TEST_DATA")
        if not folder:
            pytest.skip("XPCNN_TEST_DATA does not name a folder with real data")
        path = Path(folder, name)
        if not path.exists():
            pytest.skip(f"XPCNN_TEST_DATA has no {name}")
        return path

    return find


@pytest.fixture(params=["whole", "in blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work as usual, and cut into small blocks for three threads: `pytestmark = pytest.mark.usefixtures("blocks")`."""
    from xpcnn import backend

    if request.param == "in blocks":
        monkeypatch.setattr(backend, "BLOCK", 8)
        monkeypatch.setattr(backend, "INLINE_WORK", 0)
        monkeypatch.setattr(backend, "_count", 3)


@pytest.fixture(name="readonly")
def _readonly() -> Callable[[Any], Any]:
    return helpers.readonly


@pytest.fixture(name="to_numpy")
def _to_numpy() -> Callable[[Any], np.ndarray]:
    return helpers.to_numpy


@pytest.fixture(autouse=True)
def _no_leaked_threads() -> Iterator[None]:
    """Fail a test that leaves a thread running; the backend's pool of workers is meant to stay."""
    before = set(threading.enumerate())
    yield
    started = [t for t in threading.enumerate() if t not in before and not t.name.startswith("xpcnn-worker")]
    for thread in started:
        thread.join(timeout=2.0)
    leaked = [thread.name for thread in started if thread.is_alive()]
    if leaked:
        pytest.fail(f"threads still running after the test: {', '.join(leaked)}", pytrace=False)


# --- property-based tests ---------------------------------------------------------------------------------------

_quiet = {
    "deadline": None,
    "suppress_health_check": [
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.differing_executors,
    ],
}
_share = 4 if os.environ.get("CUPY_COMPILE_WITH_PTX") else 1  # a simulated device is slow
settings.register_profile("dev", max_examples=40 // _share, derandomize=True, **_quiet)
settings.register_profile("ci", max_examples=60 // _share, derandomize=True, print_blob=True, **_quiet)
settings.register_profile("intense", max_examples=2000 // _share, **_quiet)
settings.load_profile(os.environ.get("XPCNN_HYPOTHESIS", "ci" if os.environ.get("CI") else "dev"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Run the command line; return (exit code, stdout, stderr)."""
    from xpcnn import cli

    monkeypatch.setattr(cli.logging, "basicConfig", lambda **_: None)

    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call
