"""The documentation holds: its Python runs, its command lines are understood, its links lead somewhere.

Blocks of Python in README.md and docs/*.md run in order, those of a page in one namespace and one empty folder, with a
few embedded digits. Comments before a block say what else there is to know:

    <!-- not run: REASON -->    the block is only shown
    <!-- needs a GPU -->        it runs on CuPy alone, with all other blocks of its page
    <!-- printed -->            before a block of text: exactly what the Python block before it printed
    <!-- hidden                 code that runs and is not shown, up to the end of the comment
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import io
import re
import shlex
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import typer

import xpcnn
from xpcnn import backend, cli, formats, inspection, layers, training, zoo
from xpcnn.data.datasets import limited
from xpcnn.functional.conv import Columns
from xpcnn.functional.geometry import make_window

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
HIDDEN = r"^<!-- hidden\n(?P<hidden>.*?)^-->$"
FENCED = r"(?:^<!-- (?P<marker>[^\n]*) -->\n)?^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$"
PIECE = re.compile(f"{HIDDEN}|{FENCED}", re.DOTALL | re.MULTILINE)
NEEDS_GPU = "needs a GPU"


@dataclass(frozen=True)
class Block:
    """A fenced block, or hidden code, which counts as Python."""

    language: str
    code: str
    marker: str
    line: int  # of the page, in which the code begins


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    found = []
    for piece in PIECE.finditer(text):
        group, language = ("code", piece["language"]) if piece["hidden"] is None else ("hidden", "python")
        line = text.count("\n", 0, piece.start(group)) + 1
        found.append(Block(language, piece[group], piece["marker"] or "", line))
    fences = len(re.findall("^```", text, re.MULTILINE))
    assert fences == 2 * sum(piece["hidden"] is None for piece in PIECE.finditer(text)), f"{page.name}: an open fence"
    return found


def ids(pages):
    return {"argvalues": pages, "ids": [page.name for page in pages]}


def with_language(language):
    return [page for page in PAGES if any(block.language == language for block in blocks_of(page))]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """An empty folder to work in, few digits, and everything global put back afterwards."""
    monkeypatch.chdir(tmp_path)
    train, test = xpcnn.data.mnist()
    monkeypatch.setattr(xpcnn.data, "mnist", lambda: (limited(train, 300), limited(test, 100)))
    monkeypatch.setattr(layers.base, "_CLASSES", dict(layers.base._CLASSES))
    monkeypatch.setattr(backend, "_count", backend._count)
    monkeypatch.setattr(backend, "_lanes", backend._lanes)


def run(page: Path, gpu: bool) -> None:
    """Run the blocks of a page and compare what they print with what the page says they print."""
    names: dict[str, object] = {"__name__": f"docs_{page.stem}"}
    printed = ""
    for block in blocks_of(page):
        where = f"{page.name}, line {block.line}"
        shown_only = block.marker.startswith("not run: ") and len(block.marker) > 15
        if block.language == "python" and not shown_only:
            assert block.marker in ("", NEEDS_GPU), f"{where}: {block.marker!r} is no marker"
            if block.marker == NEEDS_GPU and not gpu:
                continue
            code = compile("\n" * (block.line - 1) + block.code, str(page), "exec", dont_inherit=True)
            with redirect_stdout(io.StringIO()) as out:
                exec(code, names)
            printed = out.getvalue()
        elif block.marker == "printed":
            assert block.code.split() == printed.split(), f"{where}: this was printed:\n{printed}"


@pytest.mark.parametrize("page", **ids(with_language("python")))
def test_python_runs(page, desk):
    run(page, gpu=False)


@pytest.mark.cupy
@pytest.mark.parametrize("page", **ids([p for p in PAGES if any(b.marker == NEEDS_GPU for b in blocks_of(p))]))
def test_python_runs_on_cupy(page, desk):
    run(page, gpu=True)


# --- command lines ----------------------------------------------------------------------------------------------


def commands_of(page: Path) -> list[list[str]]:
    text = "".join(block.code for block in blocks_of(page) if block.language == "bash").replace("\\\n", " ")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


COMMANDS = typer.main.get_command(cli.app).commands
EXTRAS = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE))


@pytest.mark.parametrize("page", **ids(with_language("bash")))
def test_command_lines_are_understood(page):
    for program, *arguments in commands_of(page):
        if program == "mpiexec":
            assert arguments[0] == "-n"
            program, *arguments = arguments[2:]
        script = next((word for word in [program, *arguments] if word.endswith((".py", ".sh"))), None)
        if script is not None:
            text = (ROOT / script).read_text("utf-8")
            options = [word for word in arguments if word.startswith("--")]
            assert all(f'"{option}"' in text or f" {option} " in text for option in options), (page.name, arguments)
        elif program == "xpcnn":
            COMMANDS[arguments[0]].make_context(arguments[0], arguments[1:])
        else:
            assert program in ("pip", "pytest"), f"{page.name}: nothing here knows what {program} is"


@pytest.mark.parametrize("page", **ids(PAGES))
def test_commands_and_extras_in_prose_exist(page):
    text = page.read_text("utf-8")
    for name, rest in re.findall(r"`xpcnn (\w+)([^`\n|]*)`", text):
        known = {option for parameter in COMMANDS[name].params for option in parameter.opts}
        assert set(re.findall(r"--[\w-]+", rest)) <= known, (name, rest)
    for group in re.findall(r"xpcnn\[([\w,]+)\]", text):
        assert set(group.split(",")) <= EXTRAS, group


# --- coming from elsewhere --------------------------------------------------------------------------------------

OURS = {name: getattr(xpcnn, name) for name in xpcnn.__all__} | {
    "formats": formats,
    "inspection": inspection,
    "training": training,
    "zoo": zoo,
    "clf": xpcnn.Classifier,  # an instance of it
    "net": xpcnn.Layer,
    "optimizer": xpcnn.Optimizer,
}


def object_of(node: ast.expr) -> object:
    """Return the module, class or function that an expression names; a call stands for the class that is called."""
    if isinstance(node, ast.Name):
        return OURS[node.id]
    if isinstance(node, ast.Attribute):
        return getattr(object_of(node.value), node.attr)
    assert isinstance(node, ast.Call), ast.dump(node)
    return object_of(node.func)


def test_tables_of_calls_name_what_is_there():
    rows = re.findall(r"^\|[^|\n]*\|([^|\n]*)\|$", (DOCS / "coming_from.md").read_text("utf-8"), re.MULTILINE)
    snippets = [snippet for cell in rows for snippet in re.findall(r"`([^`]+)`", cell)]
    checked = 0
    for snippet in snippets:
        for node in ast.walk(ast.parse(snippet)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "training":
                object_of(node)
            if not isinstance(node, ast.Call) or (
                isinstance(node.func, ast.Attribute) and node.func.attr == "transpose"
            ):
                continue
            called = object_of(node.func)
            if ast.unparse(node.func) == "net":
                called = xpcnn.Layer.__call__
            bound = (None,) if inspect.isfunction(called) and "." in called.__qualname__ else ()
            keywords = {keyword.arg: None for keyword in node.keywords}
            try:
                inspect.signature(called).bind(*bound, *node.args, **keywords)
            except TypeError as error:
                pytest.fail(f"{snippet}: {error}")
            checked += 1
    assert checked > 60


# --- the site ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", **ids(PAGES))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


def test_every_page_is_in_the_navigation():
    named = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text("utf-8")))
    assert named == {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}


def test_the_reference_has_every_public_name():
    pages = (DOCS / "reference").glob("*.md")
    named = {name for page in pages for name in re.findall(r"^::: (\S+)$", page.read_text("utf-8"), re.MULTILINE)}
    shown = set()
    for module in map(importlib.import_module, named):
        shown |= {name for name in getattr(module, "__all__", vars(module)) if hasattr(module, name)}
    modules = {name for name in xpcnn.__all__ if inspect.ismodule(getattr(xpcnn, name))}
    assert set(xpcnn.__all__) - modules - {"__version__"} <= shown


def test_the_picture_of_the_layout_is_true_and_up_to_date():
    spec = importlib.util.spec_from_file_location("draw_layout", DOCS / "draw_layout.py")
    drawing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawing)
    assert (DOCS / "img/layout.svg").read_text("utf-8") == drawing.draw()

    size, kernel = (drawing.H, drawing.W), (drawing.K, drawing.K)
    pixels = np.arange(16.0).reshape(1, 4, 4, 1).repeat(drawing.N, axis=3)
    columns = Columns(pixels, make_window(size, kernel, (1, 1), 0)).chunk((0, drawing.OUT, 0, drawing.OUT))[0]
    assert columns.T.tolist() == [seen for _, seen in drawing.columns()]
