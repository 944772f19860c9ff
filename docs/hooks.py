"""Let pages link to files of the repository outside docs/, such as ../examples/mri.py, on the site as on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parent.parent
LINKED = ("examples/*.py", "benchmarks/*.md", "benchmarks/*.py", "benchmarks/results/*.json", "ci/cudasim/README.md")


def on_files(files: Files, config: Any) -> Files:
    """Add those files to the site."""
    for path in sorted(path for pattern in LINKED for path in ROOT.glob(pattern)):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path), inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A page of docs/ lies at the root of the site."""
    return markdown if "/" in page.file.src_uri else markdown.replace("](../", "](")
