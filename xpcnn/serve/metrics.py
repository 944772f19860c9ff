"""Counters and histograms in the text format that Prometheus reads."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence

from ..backend import Device, memory_info

__all__ = ["Histogram", "Metrics"]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Histogram:
    """How often a value was at most each of `bounds`, and the sum of all values."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str) -> list[str]:
        """Return the samples: cumulative counts, the sum and the number of values."""
        found, below = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            below += count
            found.append(f'{name}_bucket{{le="{bound}"}} {below}')
        return [*found, f"{name}_sum {self.total}", f"{name}_count {below}"]


class Metrics:
    """What the server counts about itself.

    Args:
        most: images in one forward pass.
        device: of the network.
        waiting: says how many images wait.
    """

    def __init__(self, most: int, device: Device, waiting: Callable[[], int]) -> None:
        self.statuses: Counter[int] = Counter()
        self.seconds = Histogram(SECONDS)
        self.batches = Histogram([2**i for i in range(most.bit_length()) if 2**i < most] + [most])
        self.device = device
        self.waiting = waiting

    def answered(self, status: int, seconds: float) -> None:
        """Count an answer."""
        self.statuses[status] += 1
        self.seconds.add(seconds)

    def text(self) -> str:
        """Return everything, for one scrape."""
        requests = [f'xpcnn_requests_total{{status="{status}"}} {n}' for status, n in sorted(self.statuses.items())]
        memory = [f"xpcnn_resident_bytes {memory_info('cpu').used}"]
        if self.device.kind == "cuda":
            memory.append(f"xpcnn_device_bytes {memory_info(self.device).reserved}")
        parts = [
            ("xpcnn_requests_total", "counter", "Answers by status code.", requests),
            (
                "xpcnn_request_seconds",
                "histogram",
                "From the head of a request to the head of its answer.",
                self.seconds.lines("xpcnn_request_seconds"),
            ),
            ("xpcnn_queue_images", "gauge", "Images that wait.", [f"xpcnn_queue_images {self.waiting()}"]),
            (
                "xpcnn_batch_images",
                "histogram",
                "Images in a forward pass.",
                self.batches.lines("xpcnn_batch_images"),
            ),
            ("xpcnn_resident_bytes", "gauge", "Memory of the process.", memory[:1]),
            ("xpcnn_device_bytes", "gauge", "Memory that CuPy's pool holds on the GPU.", memory[1:]),
        ]
        lines = []
        for name, kind, help, samples in parts:
            if samples:
                lines += [f"# HELP {name} {help}", f"# TYPE {name} {kind}", *samples]
        return "\n".join(lines) + "\n"
