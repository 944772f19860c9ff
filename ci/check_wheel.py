"""Builds sdist and wheel, twice: the same bytes. Looks at what is in them, uses the wheel without the source tree.

python ci/check_wheel.py [FOLDER]: leaves both in FOLDER, as the release workflow publishes them
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from email import message_from_string
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 3_000_000  # bytes of the wheel; the embedded digits are most of it
CORE = {"numpy", "pillow", "safetensors", "threadpoolctl", "rich", "typer"}
EXTRAS = {"cuda12", "cuda13", "viz", "keras", "onnx", "tensorboard", "sklearn", "report", "mpi", "serve", "docs", "dev"}
MADE = (".so", ".o", ".pyc", ".whl", ".log")  # what no sdist should carry

USE = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy, xpcnn
assert xpcnn.__file__.startswith(sys.argv[1]), xpcnn.__file__
assert not {"cupy", "matplotlib", "typer"} & set(sys.modules), "importing xpcnn imports more than it needs"
digits, test = xpcnn.data.mnist()
net = xpcnn.Sequential(xpcnn.Conv2d(4, 3), xpcnn.ReLU(), xpcnn.Flatten(), xpcnn.Dense(10))
net.build(digits.shape)
assert net(numpy.stack([digits[i][0] for i in range(3)])).shape == (3, 10)
print(f"xpcnn {xpcnn.__version__} works from the wheel: {len(digits) + len(test):,} embedded digits of {digits.shape}")
"""


def check(truth: bool, otherwise: str) -> None:
    if not truth:
        sys.exit(f"ci/check_wheel.py: {otherwise}")


def commit_time() -> dict[str, str]:
    """Return SOURCE_DATE_EPOCH, the time of the last commit; nothing outside a git checkout."""
    git = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    if (ROOT / ".git").exists() and shutil.which("git"):
        return {"SOURCE_DATE_EPOCH": subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()}
    return {}


def build(source: Path, target: Path, **environment: str) -> tuple[Path, Path]:
    """Build the sdist of a tree, and the wheel from that sdist."""
    command = [sys.executable, "-m", "build", "--outdir", str(target), str(source)]
    done = subprocess.run(command, env=os.environ | commit_time() | environment, capture_output=True, text=True)
    check(done.returncode == 0, f"{source} cannot be built:\n{done.stdout}{done.stderr}")
    (sdist,), (wheel,) = target.glob("xpcnn-*.tar.gz"), target.glob("xpcnn-*.whl")
    return sdist, wheel


def build_elsewhere(sdist: Path, folder: Path) -> tuple[Path, Path]:
    """Build again from the sdist: another folder, umask, time zone and hash seed, files of another age."""
    before = os.umask(0o077)
    try:
        with tarfile.open(sdist) as archive:
            for member in archive.getmembers():
                member.mode &= 0o700
                archive.extract(member, folder / "tree")
        (source,) = (folder / "tree").iterdir()
        for path in source.rglob("*"):
            os.utime(path, (1_000_000_000, 1_000_000_000))
        return build(source, folder / "again", TZ="Asia/Tokyo", PYTHONHASHSEED="7")
    finally:
        os.umask(before)


def check_wheel(wheel: Path, folder: Path) -> None:
    """Look at what the wheel holds, unpack it into the folder and use it there."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(folder)
    size = wheel.stat().st_size
    print(f"{wheel.name}: {len(names)} files, {size:,} bytes")

    check(size < LIMIT, f"the wheel has {size:,} bytes, more than {LIMIT:,}")
    (info,) = {n.split("/")[0] for n in names} - {"xpcnn"}
    check(info.endswith(".dist-info"), f"the wheel holds more than xpcnn: {info}")
    check("xpcnn/py.typed" in names, "py.typed is missing, so type checkers would ignore xpcnn")
    for licence in ("LICENSE", "LICENSE-mnist.txt"):
        check(any(n.startswith(info) and n.endswith(f"/{licence}") for n in names), f"{licence} is missing")
    metadata = message_from_string((folder / info / "METADATA").read_text("utf-8"))
    core = {re.match(r"[\w-]+", r).group() for r in metadata.get_all("Requires-Dist") if "extra ==" not in r}
    check(core == CORE, f"the core needs {sorted(core)}, not {sorted(CORE)}")
    check(set(metadata.get_all("Provides-Extra")) == EXTRAS, f"extras are {metadata.get_all('Provides-Extra')}")

    subprocess.run([sys.executable, "-c", USE, str(folder)], check=True, cwd=folder.parent)
    subprocess.run([sys.executable, "-m", "xpcnn", "--version"], check=True, cwd=folder)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        built = build(ROOT, folder / "first")
        for once, again in zip(built, build_elsewhere(built[0], folder), strict=True):
            same = once.name == again.name and once.read_bytes() == again.read_bytes()
            check(same, f"{once.name} has other bytes when it is built a second time")
        sdist, wheel = built
        with tarfile.open(sdist) as archive:
            names = archive.getnames()
        print(f"{sdist.name}: {len(names)} files, {sdist.stat().st_size:,} bytes; built twice, the same bytes")
        made = [n for n in names if n.endswith(MADE)]
        check(not made, f"the sdist holds what a build or a run left: {made[:3]}")
        check_wheel(wheel, folder / "installed")
        for target in map(Path, sys.argv[1:2]):
            target.mkdir(parents=True, exist_ok=True)
            for path in built:
                shutil.copy(path, target)


if __name__ == "__main__":
    main()
