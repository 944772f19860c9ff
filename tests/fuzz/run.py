"""Try many damaged files on every reader, each reader in a process of its own, and keep the figures.

    python -m tests.fuzz.run --json FILE [--inputs 100000] [--reader NAME] [--seconds 80]
    python -m tests.fuzz.run --reader NAME --show NUMBER > input

It goes on where FILE ends, so it can be run in pieces. The exit code is 1 if something was found. Where a reader starts
an interpreter for each file, a process is forked instead (forkserver.py) unless --start is given.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tests.fuzz.harness import MB, READERS, SECONDS, Finding, check, resident, scratch

ADDRESS_SPACE = 8 << 30  # of a process that reads: what goes beyond is a MemoryError


@dataclass
class Result:
    """What is known of one reader."""

    reader: str
    seed: int
    inputs: int = 0
    errors: int = 0
    reads: int = 0
    slowest_ms: float = 0.0
    peak_mb: float = 0.0
    grown_mb: float = 0.0  # of the process, over all inputs
    findings: list[tuple[int, str]] = field(default_factory=list)
    date: str = ""

    def add(self, other: dict[str, Any]) -> None:
        """Take in what a process has found out."""
        self.inputs += other["inputs"]
        self.errors += other["errors"]
        self.reads += other["reads"]
        self.slowest_ms = max(self.slowest_ms, other["slowest_ms"])
        self.peak_mb = max(self.peak_mb, other["peak_mb"])
        self.grown_mb = max(self.grown_mb, other["grown_mb"])
        self.findings += [(int(number), text) for number, text in other["findings"]]


def work(name: str, seed: int, first: int, count: int, seconds: float, folder: Path) -> None:
    """Read inputs first, first+1, ...; the file `state` always says how far it has come."""
    reader, found = READERS[name], Result(name, seed)
    reader.prepare(folder)
    check(reader, reader.seeds()[0], folder)  # what is imported and compiled on first use counts for no input
    deadline, before = time.monotonic() + seconds, resident()
    state = os.open(folder / "state", os.O_RDWR | os.O_CREAT)
    for number in range(first, first + count):
        content = reader.content(seed, number)
        os.pwrite(state, json.dumps(asdict(found)).encode().ljust(20_000), 0)
        found.inputs += 1
        try:
            outcome = check(reader, content, folder)
        except Finding as finding:
            found.findings = [*found.findings, (number, str(finding)[:300])][-20:]
            continue
        found.errors += outcome.error is not None
        found.reads += outcome.error is None
        found.slowest_ms = max(found.slowest_ms, 1000 * outcome.seconds)
        found.peak_mb = max(found.peak_mb, outcome.memory / MB)
        found.grown_mb = max(0, resident() - before) / MB
        if time.monotonic() > deadline:
            break
    print(json.dumps(asdict(found)))


def limit_memory() -> None:
    """Limit the address space of this process and of those that it starts, where the system can do that."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))


def run(result: Result, inputs: int, seconds: float, start: bool) -> None:
    """Bring a result to so many inputs, or as far as it comes in the time."""
    deadline = time.monotonic() + seconds
    while result.inputs < inputs and (left := deadline - time.monotonic()) > 0:
        with tempfile.TemporaryDirectory(dir=scratch()) as folder:
            done = worker(result, inputs - result.inputs, left, folder, start)
            if done.returncode == 0:
                result.add(json.loads(done.stdout))
                continue
            state = Path(folder, "state")
            if not state.exists():
                raise SystemExit(f"{result.reader} could not begin:\n{done.stderr}")
            result.add(json.loads(state.read_text()))
            done_again = worker(result, 1, 60, folder, start)  # alone: the machine may have been busy
            if done_again.returncode == 0:
                result.add(json.loads(done_again.stdout))
                continue
            why = f"the process ended with exit code {done.returncode}: {done.stderr.strip()[-600:]}"
            result.findings.append((result.inputs, why))
            result.inputs += 1


def worker(result: Result, count: int, seconds: float, folder: str, start: bool) -> subprocess.CompletedProcess[str]:
    """Let a process read the next inputs of a reader."""
    rest = [str(v) for v in (result.seed, result.inputs, count, seconds, folder)]
    command = [sys.executable, "-m", "tests.fuzz.run", "--worker", result.reader, *rest, *["--start"] * start]
    return subprocess.run(command, capture_output=True, text=True)


def table(results: list[Result]) -> str:
    """Return the results as a table in Markdown."""
    lines = [
        "| reader | inputs | refused | read | slowest ms | most MB for one | bound | process grew by MB | found |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.reader} | {r.inputs:,} | {r.errors:,} | {r.reads:,} | {r.slowest_ms:.0f} | {r.peak_mb:.0f} | "
        f"{READERS[r.reader].bound // MB} | {r.grown_mb:.0f} | {len(r.findings)} |"
        for r in results
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", action="append", choices=READERS, help="all of them if not given")
    parser.add_argument("--inputs", type=int, default=100_000, help="for each reader, in all")
    parser.add_argument("--seed", type=int, default=20261122)
    parser.add_argument("--seconds", type=float, default=1e9, help="for each reader, in this run")
    parser.add_argument("--json", type=Path, help="where the figures are kept")
    parser.add_argument("--show", type=int, metavar="NUMBER", help="write this input of a reader to standard output")
    parser.add_argument("--start", action="store_true", help="start interpreters as xpcnn does, do not fork")
    parser.add_argument("--worker", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        name, seed, first, count, seconds, folder = options.worker
        limit_memory()
        with nullcontext() if options.start else READERS[name].forking():
            work(name, int(seed), int(first), int(count), float(seconds), Path(folder))
        return 0
    if options.show is not None:
        sys.stdout.buffer.write(READERS[options.reader[0]].content(options.seed, options.show))
        return 0

    results: dict[str, Result] = {}
    if options.json and options.json.exists():
        results = {row["reader"]: Result(**row) for row in json.loads(options.json.read_text())["results"]}
    for name in options.reader or READERS:
        result = results.setdefault(name, Result(name, options.seed))
        run(result, options.inputs, options.seconds, options.start)
        result.date = datetime.now(timezone.utc).date().isoformat()
        for number, text in result.findings:
            print(f"{name}, seed {result.seed}, input {number}: {text}", file=sys.stderr)
        if options.json:
            machine = (
                f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {sys.version.split()[0]}"
            )
            rows = [asdict(results[known]) for known in READERS if known in results]
            about = {"machine": machine, "seconds_allowed": SECONDS, "results": rows}
            options.json.write_text(json.dumps(about, indent=2) + "\n")
    print(table([results[name] for name in READERS if name in results]))
    return 1 if any(result.findings for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
