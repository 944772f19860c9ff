"""The scripts in ci/ and the rules of conftest.py: clear words, right exit codes, nothing skipped in silence."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import xpcnn

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


@pytest.mark.parametrize("script", ["ci/test.sh", "ci/demo.sh", "ci/test_wheel.sh"])
def test_help(script):
    result = run(BASH, script, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"usage: bash {script}")


@pytest.mark.parametrize("script", ["ci/test.sh", "ci/demo.sh", "ci/test_wheel.sh"])
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


# --- releases ---------------------------------------------------------------------------------------------------


@pytest.fixture(name="release")
def _release():
    """The functions of ci/release.py."""
    return SimpleNamespace(**runpy.run_path(str(ROOT / "ci" / "release.py")))


@pytest.fixture
def released(tmp_path):
    """A tree in which everything is of version 1.2.3."""
    (tmp_path / "xpcnn").mkdir()
    (tmp_path / "xpcnn" / "version.py").write_text('"""The version."""\n\n__version__ = "1.2.3"\n')
    (tmp_path / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 1.2.3\ndate-released: 2027-01-31\n")
    (tmp_path / "CHANGELOG.md").write_text(
        "# Changelog\n\n## [Unreleased]\n\n## [1.2.3] - 2027-01-31\n\n### Fixed\n- Three things.\n\n"
        "## [1.2.2] - 2026-12-24\n\n### Fixed\n- Two things.\n\n## [1.2.1] - 2026-12-23\n"
    )
    return tmp_path


def test_a_release_that_agrees(release, released):
    assert release.check("v1.2.3", released) == "1.2.3"
    assert release.section("1.2.3", released) == ("2027-01-31", "### Fixed\n- Three things.")
    assert release.section("1.2.2", released) == ("2026-12-24", "### Fixed\n- Two things.")


@pytest.mark.parametrize("tag", ["1.2.3", "v1.2", "v1.2.3rc1", "v01.2.3", "v1.2.3\n", "", "main"])
def test_a_tag_that_is_no_version(release, released, tag):
    with pytest.raises(release.ReleaseError, match=r"a release is tagged vX\.Y\.Z, not"):
        release.check(tag, released)


@pytest.mark.parametrize(
    ("name", "before", "after", "words"),
    [
        ("xpcnn/version.py", "1.2.3", "1.2.4", r"version\.py says 1\.2\.4, expected 1\.2\.3 for v1\.2\.3"),
        ("xpcnn/version.py", "__version__", "version", r"version\.py has 0 lines like .*, expected one"),
        ("CITATION.cff", "version: 1.2.3", "version: 1.2.2", r"CITATION\.cff says 1\.2\.2, expected 1\.2\.3"),
        ("CITATION.cff", "2027-01-31", "2027-01-30", r"says 2027-01-30, expected .*CHANGELOG\.md: 2027-01-31"),
        ("CITATION.cff", "date-released: 2027-01-31", "", r"CITATION\.cff has 0 lines like \^date-released"),
        ("CHANGELOG.md", "[1.2.3] - 2027-01-31", "[1.2.3]", r"no section '## \[1\.2\.3\] - YYYY-MM-DD'"),
        ("CHANGELOG.md", "[1.2.3]", "[1.2.30]", r"no section '## \[1\.2\.3\] - YYYY-MM-DD'"),
        ("CHANGELOG.md", "### Fixed\n- Three things.\n", "", r"the section of 1\.2\.3 in CHANGELOG\.md is empty"),
    ],
)
def test_a_release_that_does_not_agree(release, released, name, before, after, words):
    text = (released / name).read_text()
    assert before in text
    (released / name).write_text(text.replace(before, after, 1))
    with pytest.raises(release.ReleaseError, match=words):
        release.check("v1.2.3", released)


def test_the_last_section_may_be_empty_only_if_nobody_releases_it(release, released):
    with pytest.raises(release.ReleaseError, match=r"the section of 1\.2\.1 in CHANGELOG\.md is empty"):
        release.section("1.2.1", released)


def test_release_script_says_what_is_wrong():
    result = run(sys.executable, "ci/release.py", "check", "v999.0.0")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("ci/release.py: CHANGELOG.md has no section '## [999.0.0]")
    result = run(sys.executable, "ci/release.py")
    assert result.returncode == 1
    assert "python ci/release.py check v1.2.3" in result.stderr


def test_there_is_one_version(release):
    """version.py has it, pyproject.toml takes it from there, CITATION.cff repeats it, CHANGELOG.md has its section."""
    assert release.found(r"^version: (.+)$", ROOT / "CITATION.cff") == xpcnn.__version__
    assert release.found(r'^dynamic = \["(version)"\]$', ROOT / "pyproject.toml")
    assert release.found(r'^path = "(xpcnn/version\.py)"$', ROOT / "pyproject.toml")
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.search(rf"^## \[(Unreleased\]: )?{re.escape(xpcnn.__version__)}\b", changelog, re.MULTILINE)


def test_the_wheel_needs_a_python_that_is_there():
    for options in ((), ("--available",)):
        result = run(BASH, "ci/test_wheel.sh", *options, "3.99", "2.0")
        assert result.returncode == 1
        assert "NOT RUN on Python 3.99 with NumPy 2.0" in result.stderr
        assert "PYTHON399=" in result.stderr
    result = run(BASH, "ci/test_wheel.sh", "--wheel", "no.whl")
    assert result.returncode == 1
    assert f"there is no wheel {ROOT / 'no.whl'}" in result.stderr


def test_what_is_supported_is_what_is_tested():
    """The oldest and newest Python with their NumPy: the same in the script, both workflows and docs/releases.md."""
    script = (ROOT / "ci" / "test_wheel.sh").read_text("utf-8")
    (pairs,) = re.findall(r"^pairs=\((.*?)\)", script, re.MULTILINE)
    pairs = [tuple(pair.split()) for pair in re.findall(r'"(.*?)"', pairs)]
    for name in ("ci.yml", "release.yml"):
        workflow = (ROOT / ".github" / "workflows" / name).read_text("utf-8")
        matrix = re.findall(r"- \{ python: \"(.*?)\", numpy: \"?(.*?)\"? \}", workflow)
        assert matrix == pairs, name
    (oldest, numpy), (newest, _) = pairs
    pyproject = (ROOT / "pyproject.toml").read_text("utf-8")
    assert f'requires-python = ">={oldest}"' in pyproject
    assert f'"numpy>={numpy}"' in pyproject
    releases = (ROOT / "docs" / "releases.md").read_text("utf-8")
    assert f"**Python {oldest} with the oldest NumPy, {numpy}, and Python {newest} with the newest NumPy**" in releases
