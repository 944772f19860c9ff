"""Mutation testing of the CUDA source in xpcnn/functional/fused.py, on the simulated GPU.

    python ci/mutation_kernels.py             # 40 changes, drawn by chance, always the same
    python ci/mutation_kernels.py --seed 1    # 40 others, but for some
    python ci/mutation_kernels.py --all       # every change

Each changes one place of one line of a kernel, in a copy of the tree, and runs the tests on CuPy that reach kernels.
What does not compile is left out of the score. The survivors are printed; docs/mutation.md explains them.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import re
import subprocess
import sys
from collections import Counter

from mutation import CODE, LEAST, ROOT, WORK, copy_tree

SWAPS = {
    " + ": " - ", " - ": " + ", " * ": " / ", " / ": " * ", " % ": " / ", " < ": " <= ", " <= ": " < ", " > ": " >= ",
    " >= ": " > ", " == ": " != ", " != ": " == ", " && ": " || ", " || ": " && ", " += ": " -= ", " -= ": " += ",
    " ^= ": " |= ", " >> ": " << ", "sqrt(": "(", "exp(": "(", "!": "", "continue;": "break;", "__syncthreads();": ";",
}  # fmt: skip
PLACE = re.compile("|".join(re.escape(text) for text in SWAPS) + r"|(?<![\w.])\d+(?![\w.])")
TESTS = [
    f"tests/functional/test_{name}.py"
    for name in ("fused", "every_function", "pool", "norm", "conv", "loss", "dropout")
]
ENVIRONMENT = os.environ | {"CUPY_CACHE_DIR": str(WORK / "compiled"), "CUDASIM_RACECHECK": "1"}


def kernel_lines(code: str) -> list[int]:
    """Return the numbers, from 0, of the lines with strings that hold statements of C."""
    numbers: set[int] = set()
    for node in ast.walk(ast.parse(code)):
        text = ast.get_source_segment(code, node) if isinstance(node, ast.Constant | ast.JoinedStr) else None
        if text and re.search(r';( *//.*)?(\n|"$)', text):
            several = node.end_lineno > node.lineno  # quotes then have lines of their own
            numbers.update(range(node.lineno - 1 + several, node.end_lineno - several))
    return sorted(numbers)


def mutants(code: str) -> list[tuple[int, str]]:
    """Return (line, what it becomes) for every place that can be changed."""
    lines, found = code.splitlines(), []
    for number in kernel_lines(code):
        statement, comment, rest = lines[number].partition("//")
        for place in PLACE.finditer(statement):
            new = SWAPS.get(place[0]) if place[0] in SWAPS else str(int(place[0]) + 1)
            found.append((number, statement[: place.start()] + new + statement[place.end() :] + comment + rest))
    return found


def verdict(limit: float | None) -> str:
    command = [str(ROOT / "ci/cudasim/with-cuda-sim"), sys.executable, "-m", "pytest", "-x", "-q", "--backend", "cupy"]
    command += ["-p", "no:cacheprovider", *TESTS]
    try:
        run = subprocess.run(command, cwd=WORK, env=ENVIRONMENT, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return "timed out"
    if "CompileException" in run.stdout:
        return "does not compile"
    return "killed" if run.returncode else "survived"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.add_argument("--all", action="store_true", help="try every change")
    arguments = parser.parse_args()
    copy_tree(["fused"], "cupy")
    path = WORK / CODE / "fused.py"
    code = path.read_text("utf-8")
    lines, chosen = code.splitlines(), mutants(code)
    if not arguments.all:
        chosen = sorted(random.Random(arguments.seed).sample(chosen, 40))
    if verdict(None) != "survived":
        sys.exit("the tests fail without any change")
    count: Counter[str] = Counter()
    for number, new in chosen:
        path.write_text("\n".join([*lines[:number], new, *lines[number + 1 :], ""]), "utf-8")
        result = verdict(120.0)
        count[result] += 1
        if result == "survived":
            print(f"fused.py:{number + 1}\n-{lines[number].strip()}\n+{new.strip()}\n", flush=True)
    path.write_text(code, "utf-8")
    tried = count.total() - count["does not compile"]
    score = 100 * (tried - count["survived"]) / tried
    print(", ".join(f"{number} {name}" for name, number in count.items()), f"of {len(mutants(code))}: {score:.1f} %")
    return 0 if score >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
