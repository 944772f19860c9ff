"""What does `xpcnn serve` do when four times as much is asked of it as it can answer?

    python benchmarks/serve_load.py [--seconds 600] [--times 4] [--json FILE]

It needs wrk (Debian: apt-get install wrk) and the extra "serve". A server of its own, with a ResNet-20 for 64x64 images
(random weights) and room for 16 requests, answers 16 different JPEG images of 256x256 pixels:

1. calm: each image alone. These answers must be those of the library, all different, and are what is expected below.
2. capacity: 16 and then 32 connections, each asking again as soon as it is answered; the most answers a second.
3. overload: 64 connections that together ask `times` as often, at random moments. Each thread of wrk has one image and
   compares every answer, byte for byte. Beside it a client of ours asks 20 times a second, one time in 20 for Grad-CAM
   too, checks, and takes the time; the memory of the server is sampled every second.
4. afterwards: each image alone again, then SIGTERM.

On a shared machine all of it may be stopped for a while. Such times are noticed, counted out and made up for; what our
client asked meanwhile has no part in the quantiles, and connections that broke then (for the server they had been idle
for too long) are counted apart.

The exit code is 1 if an answer was wrong, anything but 200 and 503 with Retry-After came back, memory grew by more than
16 MB, one in a hundred refusals took longer than 0.5 s, or too little was asked for all that to mean anything.
"""

from __future__ import annotations

import argparse
import datetime
import http.client
import io
import itertools
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xpcnn import Classifier, load, zoo
from xpcnn.inspection.doctor import versions

IMAGES, QUEUE, CONNECTIONS = 16, 16, 64
OUTCOMES = ("right", "wrong", "refused", "other")
ROUND = 30.0  # s of overload at a time
GROWTH = 16.0  # MB
SLOWEST_REFUSAL = 0.5  # s, for 99 of 100
STANDSTILL = 1.0  # s without a tick: the machine was busy elsewhere, and what overlaps says nothing about the server
WRK = """
local threads = {}
function setup(thread)
  thread:set("number", #threads)
  table.insert(threads, thread)
end

local function content(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read("*a")
  file:close()
  return text
end

right, wrong, refused, other = 0, 0, 0, 0
function init(arguments)
  local folder = arguments[1]
  pause = tonumber(arguments[2])
  expected = content(folder .. "/" .. number .. ".json")
  local image = content(folder .. "/" .. number .. ".jpg")
  text = wrk.format("POST", "/predict?top=10", {["Content-Type"] = "image/jpeg"}, image)
  math.randomseed(number)
end

function request() return text end

function delay()
  if pause == 0 then return 0 end
  return math.floor(-pause * math.log(1 - math.random()))
end

function response(status, headers, body)
  if status == 200 and body == expected then right = right + 1
  elseif status == 200 then wrong = wrong + 1
  elseif status == 503 and headers["retry-after"] == "1" then refused = refused + 1
  else other = other + 1 end
end

function done(summary, latency, requests)
  local sums = {}
  for _, name in ipairs({"right", "wrong", "refused", "other"}) do
    local sum = 0
    for _, thread in ipairs(threads) do sum = sum + thread:get(name) end
    table.insert(sums, string.format('"%s": %d', name, sum))
  end
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write
  io.write(string.format('\\nRESULT {"seconds": %f, "socket_errors": %d, "timeouts": %d, %s}\\n',
    summary.duration / 1e6, failed, errors.timeout, table.concat(sums, ", ")))
end
"""


class Clock:
    """Knows when the machine stood still: a thread that should tick ten times a second notes when it could not."""

    def __init__(self) -> None:
        self.stood_still: list[tuple[float, float]] = []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._tick, daemon=True)
        self.thread.start()

    def _tick(self) -> None:
        last = time.perf_counter()
        while not self.over.wait(0.1):
            now = time.perf_counter()
            if now - last > STANDSTILL:
                self.stood_still.append((last, now))
            last = now

    def still(self, begin: float, end: float) -> float:
        """Return for how many seconds between two times it stood still."""
        return sum(max(0.0, min(last, end) - max(first, begin)) for first, last in self.stood_still)


def wrk(clock: Clock, folder: Path, port: int, connections: int, pause: float, seconds: float) -> dict[str, float]:
    """Let wrk ask for so many seconds; return what it has counted, and for how many seconds the machine moved."""
    command = ["wrk", "-t", str(IMAGES), "-c", str(connections), "-d", f"{seconds:.0f}s", "--timeout", "60s"]
    command += ["-s", str(folder / "load.lua"), f"http://127.0.0.1:{port}/", "--", str(folder), f"{pause:.2f}"]
    begin = time.perf_counter()
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    time.sleep(0.3)  # the clock sees the end of a standstill after it
    found: dict[str, float] = json.loads(re.search(r"^RESULT (.*)$", output, re.MULTILINE)[1])
    still = clock.still(begin, begin + found["seconds"])
    found["seconds"] -= still
    errors = found.pop("socket_errors") + found.pop("timeouts")
    return found | {"socket_errors": 0 if still else errors, "socket_errors_at_a_standstill": errors if still else 0}


def summed(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Return the counts of several runs of wrk, and requests and answers a second."""
    found = {name: sum(one[name] for one in rounds) for name in rounds[0]}
    found["asked_per_second"] = sum(found[name] for name in OUTCOMES) / found["seconds"]
    found["answered_per_second"] = found["right"] / found["seconds"]
    return {name: round(value, 1) for name, value in found.items()}


def ask(port: int, content: bytes, query: str = "?top=10") -> tuple[int, str | None, bytes, float]:
    """Return status, Retry-After, body and seconds of one request on a new connection."""
    begun = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    try:
        connection.request("POST", f"/predict{query}", content, {"Content-Type": "image/jpeg"})
        answer = connection.getresponse()
        return answer.status, answer.getheader("Retry-After"), answer.read(), time.perf_counter() - begun
    finally:
        connection.close()


def photograph(seed: int) -> bytes:
    """Return a JPEG file of coloured clouds."""
    small = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize((256, 256), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


class Watch:
    """Samples the server's memory every second, and asks 20 times a second."""

    def __init__(
        self, clock: Clock, pid: int, port: int, images: list[bytes], expected: list[bytes], explained: list[bytes]
    ) -> None:
        self.clock, self.pid, self.port, self.images = clock, pid, port, images
        self.expected, self.explained = expected, explained
        self.memory: list[tuple[float, float]] = []
        self.answers: list[tuple[str, float, float]] = []  # outcome, when it began, seconds
        self.over = threading.Event()
        self.begun = time.perf_counter()
        self.threads = [threading.Thread(target=work) for work in (self._sample, *[self._ask] * 4)]
        for thread in self.threads:
            thread.start()

    def end(self) -> None:
        """Stop all of it."""
        self.over.set()
        for thread in self.threads:
            thread.join()

    def _sample(self) -> None:
        while not self.over.wait(1.0):
            self.memory.append((round(time.perf_counter() - self.begun, 1), resident_mb(self.pid)))

    def _ask(self) -> None:
        rng = np.random.default_rng()
        while not self.over.wait(rng.exponential(0.2)):
            i, explain = int(rng.integers(IMAGES)), rng.random() < 0.05
            begun = time.perf_counter()
            status, again, body, seconds = ask(self.port, self.images[i], "?top=10" + "&explain=true" * explain)
            if status == 200:
                right = body == (self.explained if explain else self.expected)[i]
                outcome = ("explained" if explain else "answered") if right else "wrong"
            else:
                outcome = "refused" if status == 503 and again == "1" else f"status {status}"
            self.answers.append((outcome, begun, seconds))

    def moving(self, outcome: str) -> list[float]:
        """Return the seconds of an outcome, where the machine did not stand still."""
        return [
            seconds
            for found, begun, seconds in self.answers
            if found == outcome and not self.clock.still(begun, begun + seconds)
        ]


def resident_mb(pid: int) -> float:
    """Return the memory that a process has."""
    with open(f"/proc/{pid}/statm") as file:
        return round(int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20, 2)


def times(seconds: list[float]) -> dict[str, float]:
    """Return quantiles in milliseconds."""
    if not seconds:
        return {"count": 0}
    found = {"count": len(seconds)}
    for name, share in (("median", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0)):
        found[f"{name}_ms"] = round(1e3 * float(np.quantile(seconds, share)), 2)
    return found


def start(model: Path) -> tuple[subprocess.Popen[str], int]:
    """Start a server; return it and its port."""
    command = [sys.executable, "-m", "xpcnn", "serve", str(model), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen([*command, "--queue", str(QUEUE)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    print(process.stdout.readline(), end="")
    return process, int(re.search(r":(\d+)/", process.stdout.readline())[1])


def prepare(folder: Path) -> list[bytes]:
    """Write the model, the images and wrk's script; return the images."""
    classifier = Classifier(zoo.build("resnet20", 10), device="cpu")
    classifier.build((3, 64, 64))
    classifier.save(folder / "resnet20.safetensors")
    images = [photograph(i) for i in range(IMAGES)]
    for i, content in enumerate(images):
        (folder / f"{i}.jpg").write_bytes(content)
    (folder / "load.lua").write_text(WRK)
    return images


def calm(folder: Path, port: int, images: list[bytes]) -> tuple[list[bytes], list[bytes], list[str]]:
    """Ask for each image alone; return the answers, those with Grad-CAM, and what is wrong with them."""
    problems = []
    answers = [ask(port, content)[2] for content in images]
    if len(set(answers)) < IMAGES:
        problems.append("two images have the same answer, so that a mix-up would not be seen")
    expected = load(folder / "resnet20.safetensors", "cpu").predict_proba([folder / f"{i}.jpg" for i in range(IMAGES)])
    for i, (answer, row) in enumerate(zip(answers, expected, strict=True)):
        for part in json.loads(answer)["probabilities"]:
            if abs(part["probability"] - row[part["index"]]) > 1e-5:
                problems.append(f"image {i} is answered otherwise than by the library: {part}, {row}")
        (folder / f"{i}.json").write_bytes(answer)
    return answers, [ask(port, content, "?top=10&explain=true")[2] for content in images], problems


def capacity(clock: Clock, folder: Path, port: int) -> dict[str, float]:
    """Return the figures of the number of connections that got the most answers."""
    found = [summed([wrk(clock, folder, port, count, 0, 10)]) for count in (QUEUE, 2 * QUEUE)]
    return max(found, key=lambda one: one["answered_per_second"])


def overload(clock: Clock, folder: Path, port: int, rate: float, seconds: float, within: float) -> dict[str, float]:
    """Ask so often a second for so long; after each round the pause between requests of a connection is adapted."""
    pause, rounds, end = 1e3 * CONNECTIONS / rate, [], time.perf_counter() + within
    for length in itertools.chain([5, 5], itertools.repeat(min(ROUND, seconds))):
        one = wrk(clock, folder, port, CONNECTIONS, pause, length)
        last = summed([one])
        print(last, flush=True)
        if last["seconds"] > 3:
            pause = max(1.0, pause + 1e3 * CONNECTIONS / rate - 1e3 * CONNECTIONS / last["asked_per_second"])
        if length > 5:  # the first two only find the pause
            rounds.append(one)
        if sum(one["seconds"] for one in rounds) >= seconds or time.perf_counter() > end:
            break
    return summed(rounds)


def run(folder: Path, seconds: float, within: float, factor: float) -> tuple[dict[str, Any], list[str]]:
    """Do all of it; return the figures, and what is wrong."""
    images, clock = prepare(folder), Clock()
    process, port = start(folder / "resnet20.safetensors")
    try:
        answers, explained, problems = calm(folder, port, images)
        most = capacity(clock, folder, port)
        print(f"capacity: {most['answered_per_second']:.0f} answers a second", flush=True)
        begun = time.perf_counter()
        watch = Watch(clock, process.pid, port, images, answers, explained)
        try:
            too_much = overload(clock, folder, port, factor * most["answered_per_second"], seconds, within)
        finally:
            watch.end()
        still = clock.still(begun, time.perf_counter())
        after, after_explained, more = calm(folder, port, images)
        problems += more
        if (after, after_explained) != (answers, explained):
            problems.append("after the overload the answers are others")
        begun = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    finally:
        process.kill()
        process.wait()
        clock.over.set()
    quarter = len(watch.memory) // 4
    memory = [mb for _, mb in watch.memory]
    figures = {
        "capacity": most,
        "overload": too_much,
        "asked_of_capacity": round(too_much["asked_per_second"] / most["answered_per_second"], 2),
        "our_client": dict(Counter(outcome for outcome, *_ in watch.answers)),
        "time_of_refusals": times(watch.moving("refused")),
        "time_of_answers": times(watch.moving("answered")),
        "time_of_explanations": times(watch.moving("explained")),
        "stood_still_seconds": round(still, 1),
        "resident_mb": {
            "second_quarter": min(memory[quarter : 2 * quarter]),
            "last_quarter": min(memory[3 * quarter :]),
            "most": max(memory),
            "samples": watch.memory[:: max(1, len(memory) // 60)],
        },
        "seconds_to_end_after_sigterm": round(time.perf_counter() - begun, 2),
    }
    return figures, problems + judge(figures, code, factor)


def judge(figures: dict[str, Any], code: int, factor: float) -> list[str]:
    """Return what is wrong."""
    problems, client, memory = [], figures["our_client"], figures["resident_mb"]
    for part in ("capacity", "overload"):
        for what in ("wrong", "other", "socket_errors"):
            if figures[part][what]:
                problems.append(f"{part}: {figures[part][what]} {what}")
    problems += [
        f"our client: {n} {what}" for what, n in client.items() if what not in ("answered", "explained", "refused")
    ]
    if figures["asked_of_capacity"] < 0.85 * factor:
        problems.append(f"only {figures['asked_of_capacity']:.2f} times the capacity was asked")
    if memory["last_quarter"] - memory["second_quarter"] > GROWTH:
        problems.append(f"memory grew from {memory['second_quarter']} to {memory['last_quarter']} MB")
    if figures["time_of_refusals"].get("p99_ms", 1e9) > 1e3 * SLOWEST_REFUSAL:
        problems.append(f"refusals are slow, or there were none: {figures['time_of_refusals']}")
    if code != 128 + signal.SIGTERM:
        problems.append(f"the server ended with exit code {code}")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="of overload")
    parser.add_argument("--within", type=float, default=3600.0, help="seconds after which no more is made up for")
    parser.add_argument("--times", type=float, default=4.0, help="how much more than the capacity is asked")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is missing: apt-get install wrk")
    with tempfile.TemporaryDirectory() as folder:
        figures, problems = run(Path(folder), options.seconds, options.within, options.times)
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    about = {"date": datetime.date.today().isoformat(), "machine": machine, "versions": versions()}
    about["versions"] |= {name: metadata.version(name) for name in ("starlette", "uvicorn", "python-multipart")}
    about |= {"seconds": options.seconds, "times": options.times, "problems": problems}
    print(json.dumps({name: value for name, value in figures.items() if name != "resident_mb"}, indent=1))
    print({name: value for name, value in figures["resident_mb"].items() if name != "samples"})
    print("\n".join(problems) or "every answer was right, memory is flat, and what was too much was refused at once")
    if options.json:
        options.json.write_text(json.dumps(about | figures, indent=1) + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
