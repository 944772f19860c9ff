"""Open a port, answer until a signal comes, and end in good order."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from ..errors import ArgumentError
from ..training import Classifier
from .app import Limits, make_app
from .model import ServedModel, open_model

__all__ = ["listen", "make_server", "serve"]


def serve(
    model: str | os.PathLike[str] | Classifier,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "auto",
    limits: Limits | None = None,
    hosts: Sequence[str] = (),
    classes: Sequence[str] | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Answer questions about images over HTTP, until SIGINT or SIGTERM; what is queued then is answered first.

    Args:
        model: a file (see `open_model`), or a classifier.
        host: address to listen on; 127.0.0.1 is this machine only, 0.0.0.0 all networks.
        port: 0 for any that is free.
        device: where the network of a file goes.
        limits: see `Limits`.
        hosts: names by which the server may be called. By default any, but on a loopback address only its own.
        classes: names for the classes of an .onnx file.
        say: is told what is served, and where, once requests are taken.

    Raises:
        ArgumentError: if the model cannot be served, or the port cannot be had.
        KeyboardInterrupt: after SIGINT; SystemExit with code 143 after SIGTERM.
    """
    limits = limits or Limits()
    if isinstance(model, Classifier):
        classifier, name = model, "model"
    else:
        classifier, name = open_model(model, device, classes), Path(model).name
    with listen(host, port) as listening:
        served = ServedModel(classifier, name, limits.batch, limits.pixels)
        server = make_server(served, limits, _names(host, hosts))
        shape = "x".join(map(str, served.shape))
        say(
            f"{name}: {len(served.classes)} classes, images of {shape}, {served.width} a forward pass, on "
            f"{classifier.net.device}"
        )
        if not _is_loopback(host):
            say(f"anybody who can reach {host} can use it: there is no password and no encryption")
        shown = f"[{host}]" if ":" in host else host
        say(f"http://{shown}:{listening.getsockname()[1]}/ (Ctrl-C ends it)")
        with _exit_on_sigterm():
            server.run([listening])


def make_server(served: ServedModel, limits: Limits, hosts: frozenset[str] | None = None) -> uvicorn.Server:
    """Return the server; `run([socket])` runs it until `should_exit` is set, or a signal comes in the main thread."""
    options: dict[str, Any] = {"http": "h11", "ws": "none", "loop": "asyncio", "lifespan": "on", "interface": "asgi3"}
    options |= {"log_config": None, "access_log": False, "server_header": False, "proxy_headers": False}
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it quotes what it cannot read
    app = make_app(served, limits, hosts)
    return uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=int(limits.seconds) + 5, **options))


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        ArgumentError: if that cannot be.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise ArgumentError(
            f"cannot listen on port {port} of {host}: {reason}. Choose another port, or 0 for any that is free."
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _names(host: str, hosts: Sequence[str]) -> frozenset[str] | None:
    """Return the names that a Host header may have."""
    if _is_loopback(host):
        return frozenset({"localhost", "127.0.0.1", "::1", host.lower(), *(name.lower() for name in hosts)})
    return frozenset(name.lower() for name in hosts) if hosts else None


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the program as an exception does: uvicorn first ends in good order, then sends it once more."""

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # which signals do not reach
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
