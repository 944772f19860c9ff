"""The scripts in ci/ and the rules of conftest.py: clear words, right exit codes, nothing skipped in silence."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BASH = shutil.which("bash") or "bash"


def run(*command, **env):
    """Run a command in the repository; `env` changes the environment, None removes a variable."""
    merged = {k: v for k, v in {**os.environ, **env}.items() if v is not None}
    return subprocess.run(command, cwd=ROOT, env=merged, capture_output=True, text=True, timeout=120, check=False)


def pytest_run(*arguments):
    """Run pytest with no CUDA device in sight, as on a machine that has none."""
    env = {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": None, "COVERAGE_PROCESS_START": None, "CI": None}
    return run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments, **env)


@pytest.mark.parametrize("script", ["ci/test.sh", "ci/demo.sh"])
def test_help(script):
    result = run(BASH, script, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"usage: bash {script}")


@pytest.mark.parametrize("script", ["ci/test.sh", "ci/demo.sh"])
def test_unknown_option(script):
    result = run(BASH, script, "--fast")
    assert result.returncode == 2
    assert f"usage: bash {script}" in result.stderr


def test_no_python_is_said_clearly(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("dirname", "basename"):
        (tools / tool).symlink_to(shutil.which(tool))
    result = run(BASH, "-c", "source ci/common.sh; find_python", PATH=str(tools), PYTHON=None)
    assert result.returncode == 1
    assert "needs Python 3.10 or newer; install one, or name it: PYTHON=" in result.stderr


def test_no_compiler_is_said_clearly():
    result = run("sh", "ci/cudasim/build.sh", sys.executable, CXX="no-such-compiler")
    assert result.returncode == 1
    wanted = "finds no no-such-compiler (Debian, Ubuntu: apt-get install g++)"
    assert wanted in result.stderr or "works on x86-64 Linux only" in result.stderr


def test_gpu_tests_fail_where_there_is_no_gpu():
    result = pytest_run("-m", "gpu", "tests/test_gpu.py")
    assert result.returncode == 1
    assert "this test needs a real GPU: CuPy" in result.stdout
    assert "passed" not in result.stdout


def test_cupy_must_work_when_it_is_asked_for():
    result = pytest_run("--backend", "cupy", "tests/test_gpu.py")
    assert result.returncode == 4
    assert "--backend cupy needs CuPy: CuPy" in result.stderr


def test_the_cupy_half_is_never_left_out_in_silence(tmp_path):
    (tmp_path / "test_both.py").write_text("def test_both(xp):\n    assert xp.ones(3).sum() == 3\n")
    result = pytest_run("-c", str(ROOT / "pyproject.toml"), "-p", "tests.conftest", str(tmp_path))
    assert result.returncode == 0
    assert "NOT RUN: 1 test that needs cupy (CuPy " in result.stdout


@pytest.mark.parametrize(
    ("reason", "code"), [("XPCNN_TEST_DATA does not name a folder", 0), ("no time", 1)], ids=["allowed", "refused"]
)
def test_skips_need_a_reason_on_the_list(tmp_path, reason, code):
    (tmp_path / "test_skip.py").write_text(f"import pytest\n\n\ndef test_skip():\n    pytest.skip({reason!r})\n")
    arguments = ["-c", str(ROOT / "pyproject.toml"), "-p", "tests.conftest", str(tmp_path)]
    result = pytest_run(*arguments, "--no-skips-except", "XPCNN_TEST_DATA")
    assert result.returncode == code
    assert ("a skip that is not on the list of allowed reasons" in result.stdout) == (code == 1)


def test_a_leaked_thread_fails_the_test(tmp_path):
    (tmp_path / "test_leak.py").write_text(
        "import threading, time\n\n\ndef test_leak():\n"
        "    threading.Thread(target=time.sleep, args=(4,), name='stray', daemon=True).start()\n"
    )
    result = pytest_run("-c", str(ROOT / "pyproject.toml"), "-p", "tests.conftest", str(tmp_path))
    assert result.returncode == 1
    assert "threads still running after the test: stray" in result.stdout
