"""What a release must agree on, for .github/workflows/release.yml and for whoever makes one.

python ci/release.py check v1.2.3   version.py, CHANGELOG.md and CITATION.cff are those of the release 1.2.3
python ci/release.py notes v1.2.3   prints what CHANGELOG.md says of it
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class ReleaseError(Exception):
    """The release must not be made."""


def found(pattern: str, path: Path) -> str:
    """Return the one text in a file that the pattern's group matches."""
    matches = re.findall(pattern, path.read_text("utf-8"), re.MULTILINE)
    if len(matches) != 1:
        raise ReleaseError(f"{path.name} has {len(matches)} lines like {pattern}, expected one")
    return matches[0]


def section(version: str, root: Path) -> tuple[str, str]:
    """Return the date of a version and its text in CHANGELOG.md."""
    text = (root / "CHANGELOG.md").read_text("utf-8")
    heading = rf"^## \[{re.escape(version)}\] - (\d{{4}}-\d\d-\d\d)$"
    match = re.search(rf"{heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if match is None:
        raise ReleaseError(f"CHANGELOG.md has no section '## [{version}] - YYYY-MM-DD'")
    if not match[2].strip():
        raise ReleaseError(f"the section of {version} in CHANGELOG.md is empty")
    return match[1], match[2].strip()


def check(tag: str, root: Path = ROOT) -> str:
    """Return the version of a tag if everything in the tree is of that version; raise ReleaseError if not."""
    if not re.fullmatch(r"v(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)", tag):
        raise ReleaseError(f"a release is tagged vX.Y.Z, not {tag!r}")
    version = tag[1:]
    date, _ = section(version, root)
    expected = {
        ("xpcnn/version.py", r'^__version__ = "(.+)"$'): version,
        ("CITATION.cff", r"^version: (.+)$"): version,
        ("CITATION.cff", r"^date-released: (.+)$"): date,
    }
    for (name, pattern), value in expected.items():
        if (actual := found(pattern, root / name)) != value:
            raise ReleaseError(f"{name} says {actual}, expected {value} for {tag} (CHANGELOG.md: {date})")
    return version


def main(arguments: list[str]) -> None:
    match arguments:
        case ["check", tag]:
            print(f"{check(tag)} may be released")
        case ["notes", tag]:
            print(section(check(tag), ROOT)[1])
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ReleaseError as error:
        sys.exit(f"ci/release.py: {error}")
