"""Mutation testing of xpcnn/functional/: would the tests notice if the code were a little different?

    python -m pip install mutmut==3.8.1
    python ci/mutation.py             # every file; as long as it takes, and another time only what survived
    python ci/mutation.py conv pool   # some files
    python ci/mutation.py --numpy     # without the simulated GPU (ci/cudasim), whose lines then count as not tested

mutmut makes one small change after the other (a sign, a constant, an argument left out) and runs those of
tests/functional/ that reach the changed function: on NumPy, and on CuPy if none of these fails. A change that no test
notices survives. All happens in a copy of the tree, .cache/mutation/, which also keeps the verdicts; survivors.diff in
it shows what survived, docs/mutation.md says why. The CUDA source in fused.py is text to mutmut:
ci/mutation_kernels.py changes that.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".cache" / "mutation"
MUTANTS = WORK / "mutants"
CODE = Path("xpcnn", "functional")
LEAST = 90.0  # percent

CONFIGURATION = """
[tool.mutmut]
source_paths = ["xpcnn"]
only_mutate = [{files}]
pytest_add_cli_args = ["--backend", "{backend}", "-p", "no:cacheprovider"]
pytest_add_cli_args_test_selection = ["tests/functional"]
use_git_change_detection = false
timeout_constant = 20.0
"""
# A window made before the mutant was chosen must not hide it.
CONFTEST = """
import pytest
from xpcnn.functional.geometry import make_window

@pytest.fixture(autouse=True)
def _windows_are_made_anew():
    make_window.cache_clear()
"""
VERDICTS = {1: "killed", 3: "killed", 0: "survived", 5: "not tested", 33: "not tested", None: "not tried"}
# what mutmut reports for a mutant that ran out of time, or that crashed the interpreter
VERDICTS |= dict.fromkeys((24, -24, 36, 152, 255), "timed out") | {-11: "killed", -6: "killed", -9: "killed"}


def copy_tree(files: list[str], backend: str) -> None:
    """Bring the copy up to date. Of its own copies mutmut replaces those with mutants only, where the code is newer."""
    WORK.mkdir(parents=True, exist_ok=True)
    for folder in (WORK / "xpcnn", WORK / "tests", MUTANTS / "tests"):
        shutil.rmtree(folder, ignore_errors=True)
    for module in (MUTANTS / "xpcnn").rglob("*.py"):
        if "__mutmut_" not in module.read_text("utf-8"):
            module.unlink()
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "xpcnn", WORK / "xpcnn", ignore=ignored)
    shutil.copytree(ROOT / "tests" / "functional", WORK / "tests" / "functional", ignore=ignored)
    for module in (ROOT / "tests").glob("*.py"):
        shutil.copy2(module, WORK / "tests")
    (WORK / "tests" / "functional" / "conftest.py").write_text(CONFTEST)
    listed = ", ".join(f'"{(CODE / name).as_posix()}.py"' for name in files)
    text = (ROOT / "pyproject.toml").read_text("utf-8") + CONFIGURATION.format(files=listed, backend=backend)
    (WORK / "pyproject.toml").write_text(text, "utf-8")


def forget_what_was_not_killed() -> None:
    """The tests may be better now: try again what has no verdict, and find out anew which test reaches what."""
    (MUTANTS / "mutmut-stats.json").unlink(missing_ok=True)
    for path in (MUTANTS / CODE).glob("*.meta"):
        data = json.loads(path.read_text("utf-8"))
        codes = data["exit_code_by_key"]
        data["exit_code_by_key"] = {key: code if code in (1, 3) else None for key, code in codes.items()}
        path.write_text(json.dumps(data, indent=4), "utf-8")


def changes(path: Path) -> dict[str, tuple[str, str]]:
    """Return mutant -> (verdict, diff of its function) for a mutated file; the names of functions lose their `x_`."""
    codes = json.loads(Path(f"{path}.meta").read_text("utf-8"))["exit_code_by_key"]
    spans = json.loads(Path(f"{path}.spans").read_text("utf-8"))["spans"]
    lines = path.read_text("utf-8").splitlines()
    found = {}
    for key, code in codes.items():
        name = key.rpartition(".")[2]
        original = re.sub(r"__mutmut_\d+$", "__mutmut_orig", name)
        before, after = (lines[slice(*spans[which])] for which in (original, name))
        diff = difflib.unified_diff(before[1:], after[1:], n=0, lineterm="")
        text = "\n".join(line for line in diff if not re.match(r"---|\+\+\+|@@", line))
        text = text or f"-{before[0]}\n+{after[0]}"  # a default on the line of the def
        found[name] = VERDICTS.get(code, f"exit code {code}"), text
    return found


def report(files: list[str]) -> float:
    """Print the scores as a table of docs/mutation.md, write the survivors down, and return the score of all."""
    total: Counter[str] = Counter()
    survivors = []
    print("| file | mutants | killed | timed out | survived | score |\n|---|---|---|---|---|---|")

    def row(name: str, count: Counter[str]) -> float:
        dead = count["killed"] + count["timed out"]
        score = 100 * dead / max(count.total(), 1)
        alive = count.total() - dead
        print(f"| {name} | {count.total()} | {count['killed']} | {count['timed out']} | {alive} | {score:.1f} % |")
        return score

    for name in files:
        mutants = changes(MUTANTS / CODE / f"{name}.py")
        count = Counter(verdict for verdict, _ in mutants.values())
        row(f"`{name}.py`", count)
        total += count
        for mutant, (verdict, diff) in mutants.items():
            if verdict not in ("killed", "timed out"):
                survivors.append(f"{name}.{mutant.replace('__mutmut', '')}: {verdict}\n{diff}\n")
    score = row("all", total)
    (WORK / "survivors.diff").write_text("\n".join(survivors), "utf-8")
    print(f"\nsurvivors: {WORK.relative_to(ROOT)}/survivors.diff")
    return score


def main() -> int:
    names = sorted(path.stem for path in (ROOT / CODE).glob("*.py") if path.stem != "__init__")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE", help=f"of {', '.join(names)}; all by default")
    parser.add_argument("--numpy", action="store_true", help="run the tests on NumPy only")
    parser.add_argument("--report", action="store_true", help="only print what the last run found")
    arguments = parser.parse_args()
    if unknown := set(arguments.files) - set(names):
        parser.error(f"xpcnn/functional has no {', '.join(sorted(unknown))}.py")
    if arguments.numpy:
        names.remove("fused")
    files = arguments.files or names
    if arguments.report:  # mutmut keeps the mutants of the last run alone
        copies = {path.stem: path.read_text("utf-8") for path in (MUTANTS / CODE).glob("*.py")}
        files = [name for name in files if "__mutmut_" in copies.get(name, "")]
    for backend in () if arguments.report else ("numpy",) if arguments.numpy else ("numpy", "cupy"):
        copy_tree(files, backend)
        forget_what_was_not_killed()
        command = [sys.executable, "-m", "mutmut", "run", "--max-children", "1"]
        if backend == "cupy":
            command.insert(0, str(ROOT / "ci" / "cudasim" / "with-cuda-sim"))
        with (WORK / f"{backend}.log").open("wb") as log:
            done = subprocess.run(command, cwd=WORK, stdout=log, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            sys.exit(f"mutmut stopped; the tests may fail without any change: see {WORK / backend}.log")
    return 0 if report(files) >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
