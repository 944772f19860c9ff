"""The repository keeps the rules of docs/design.md: who imports what, what ships, how long the core is."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

import xpcnn
from xpcnn import version

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "xpcnn"
MODULES = sorted(PACKAGE.rglob("*.py"))

BELOW_LAYERS = {"errors", "version", "files", "backend", "functional", "init"}
BELOW_TRAINING = BELOW_LAYERS | {"layers", "optim", "schedule", "data", "table", "figures"}
MAY_IMPORT = {
    "errors": set(),
    "version": set(),
    "files": {"errors"},
    "table": set(),
    "figures": {"errors", "files"},
    "backend": {"errors", "files"},
    "functional": {"errors", "backend"},
    "init": {"errors", "backend"},
    "layers": BELOW_LAYERS | {"inference"},  # for_inference, inside the method
    "plan": BELOW_LAYERS | {"layers"},
    "inference": BELOW_LAYERS | {"layers", "plan"},
    "optim": {"errors", "backend", "functional"},
    "schedule": {"errors"},
    "data": {"errors", "files", "backend"},
    "zoo": BELOW_LAYERS | {"layers", "formats"},
    "training": BELOW_TRAINING | {"formats", "inspection", "inference"},
    "formats": BELOW_TRAINING | {"training", "inference"},
    "inspection": BELOW_TRAINING | {"training", "zoo", "formats", "inference"},
    "sklearn": BELOW_TRAINING | {"training", "zoo", "formats"},
    "serve": BELOW_TRAINING | {"training", "formats", "inspection"},
}
ON_TOP = {"__init__", "__main__", "cli"}
CORE = ("errors", "backend", "functional", "layers", "optim")
CORE_LINES = 3200
FASTER = {"fused.py": "CUDA kernels", "winograd.py": "Winograd"}  # beside generic code that does the same
FASTER_LINES = 600
NO_CODE = {getattr(tokenize, n) for n in ("COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENCODING", "ENDMARKER")}


def part_of(path: Path) -> str:
    """Return the module or sub-package of xpcnn that a file is in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def runtime_imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Return the imports of a module and its functions, without those for type checkers only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield from runtime_imports(node)


def imported_parts(path: Path) -> set[str]:
    """Return the parts of xpcnn that a file imports."""
    found = set()
    package = ["xpcnn", *path.relative_to(PACKAGE).parts[:-1]]
    for node in runtime_imports(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            base = package[: len(package) + 1 - node.level] if node.level else []
            names = [".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("xpcnn.")}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_only(path):
    part = part_of(path)
    if part in ON_TOP:
        return
    assert part in MAY_IMPORT, f"{part} has no place in docs/design.md and in MAY_IMPORT here"
    parts = {entry.stem for entry in PACKAGE.iterdir()}
    wrong = (imported_parts(path) & parts) - MAY_IMPORT[part] - {part}
    assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}, which {part} must know nothing of"


def test_only_the_backend_imports_cupy():
    guilty = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
                names = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            if any(name.split(".")[0] in ("cupy", "cupyx", "cupy_backends") for name in names):
                guilty.append(str(path.relative_to(ROOT)))
    assert set(guilty) == {"xpcnn/backend.py"}


def text_files() -> list[Path]:
    """Return the files of the repository that people wrote: no build outputs, caches or environments."""
    made = re.compile(r"(^|/)(\.git|\.venv[^/]*|\.[a-z]+_cache|\.cache|\.hypothesis|__pycache__|build|dist|runs|lib)/")
    suffixes = {".py", ".md", ".toml", ".yml", ".sh", ".txt", ".cpp", ".h", ".cfg", ""}
    found = []
    for path in ROOT.rglob("*"):
        if path.suffix in suffixes and path.is_file() and not made.search(f"{path.relative_to(ROOT).as_posix()}"):
            found.append(path)
    return found


def test_no_file_names_a_machine_or_a_registry():
    folders = "|".join(("home", "root", "Users", "work", "tmp", "mnt"))
    hosts = "|".join(
        re.escape(host) for host in ("pypi" + ".org", "pythonhosted" + ".org", "npmjs" + ".org", "npmjs" + ".com")
    )
    pattern = re.compile(rf"(?<![\w.~*}})\]/-])/({folders})/\w|{hosts}")
    found = []
    for path in text_files():
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {m.group()}" for m in pattern.finditer(text)]
    assert not found


def test_typed_marker_and_version_ship():
    assert files("xpcnn").joinpath("py.typed").is_file()
    assert xpcnn.__version__ == version.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", version.__version__)


def test_public_names_exist():
    assert len(set(xpcnn.__all__)) == len(xpcnn.__all__)
    assert [name for name in xpcnn.__all__ if not hasattr(xpcnn, name)] == []


def code_lines(path: Path) -> int:
    """Return how many lines hold code: no blank lines, comments or docstrings."""
    tree = ast.parse(path.read_text("utf-8"))
    texts: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            texts |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines: set[int] = set()
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type not in NO_CODE:
                lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - texts)


def test_the_core_stays_small(capsys):
    lines = dict.fromkeys((*CORE, *FASTER.values()), 0)
    for path in MODULES:
        part = FASTER.get(path.name, part_of(path))
        if part in lines:
            lines[part] += code_lines(path)
    faster = {part: lines.pop(part) for part in FASTER.values()}
    total = sum(lines.values())
    with capsys.disabled():
        parts, beside = (", ".join(f"{part} {n}" for part, n in found.items()) for found in (lines, faster))
        print(f"\ncode of the core: {total:,} lines of at most {CORE_LINES:,} ({parts}); beside it: {beside}")
    assert sum(faster.values()) < FASTER_LINES
    assert total <= CORE_LINES
