"""A server in a thread, on a free port, and a client for it."""

from __future__ import annotations

import http.client
import io
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from toys import SHAPE, small_classifier

from xpcnn.serve import Limits, ServedModel, make_server
from xpcnn.serve.server import listen

HOSTS = frozenset({"127.0.0.1"})
PATIENCE = 200.0  # s: what hangs fails, a machine that is busy elsewhere does not


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Running:
    """A server that runs, and its model."""

    port: int
    server: Any
    model: ServedModel
    thread: threading.Thread = field(repr=False)

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, host: str = ""
    ) -> Answer:
        """Send one request on a connection of its own. A body that is an iterator is sent in chunks."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            given = dict(headers or {}) | ({"Host": host} if host else {})
            connection.request(method, path, body, given)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def predict(self, content: bytes, query: str = "", kind: str = "image/png") -> Answer:
        return self.ask("POST", f"/predict{query}", content, {"Content-Type": kind})

    def get(self, path: str) -> Answer:
        return self.ask("GET", path)

    def metric(self, name: str) -> float:
        """Return a sample of /metrics."""
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.get("/metrics").body.decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)


@contextmanager
def running(
    limits: Limits | None = None,
    classifier: Any = None,
    hosts: frozenset[str] | None = HOSTS,
    change: Callable[[ServedModel], None] = lambda model: None,
) -> Iterator[Running]:
    """Run a server; a new network of toys unless a classifier is given. `change` may spoil the model before it runs."""
    limits = limits or Limits(seconds=PATIENCE)
    if classifier is None:
        classifier = small_classifier()
        classifier.build(SHAPE)
    model = ServedModel(classifier, "toy", limits.batch, limits.pixels)
    change(model)
    with listen("127.0.0.1", 0) as listening:
        server = make_server(model, limits, hosts)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            wait_for(lambda: server.started)
            yield Running(listening.getsockname()[1], server, model, thread)
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()


def wait_for(truth: Callable[[], bool]) -> None:
    """Wait until something is true."""
    end = time.monotonic() + PATIENCE
    while not truth():
        assert time.monotonic() < end, "this never came true"
        time.sleep(0.005)


def png(pixels: np.ndarray, **options: Any) -> bytes:
    """Return an image file; pixels are (H, W) or (H, W, channels)."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, **{"format": "PNG"} | options)
    return out.getvalue()


def noise(number: int, height: int = 8, width: int = 8) -> bytes:
    """Return a grey image file that is like no other."""
    return png(np.random.default_rng(number).integers(0, 256, (height, width), np.uint8))


def form(*contents: bytes, boundary: str = "xxxx", name: str = "photo.png") -> bytes:
    """Return a form with files."""
    head = f'Content-Disposition: form-data; name="image"; filename="{name}"\r\nContent-Type: image/png\r\n\r\n'
    parts = [f"--{boundary}\r\n{head}".encode() + content + b"\r\n" for content in contents]
    return b"".join([*parts, f"--{boundary}--\r\n".encode()])


FORM = "multipart/form-data; boundary=xxxx"
