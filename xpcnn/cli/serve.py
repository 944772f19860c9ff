"""`xpcnn serve`: a model behind HTTP, with a page that predicts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ArgumentError
from ..training.memory import bytes_of
from .common import DeviceName


def serve(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A saved model (.safetensors, .json) or .onnx.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on: 127.0.0.1 is this machine only, 0.0.0.0 all networks.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8000,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A name by which the server may be called. Repeat it for more."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Images in one forward pass.")] = 8,
    wait: Annotated[
        float, typer.Option(min=0.0, metavar="MS", help="Milliseconds an image waits for others to join its pass.")
    ] = 2.0,
    queue: Annotated[int, typer.Option(min=1, metavar="N", help="Requests at once; more are refused with 503.")] = 64,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="For one request.")] = 10.0,
    max_bytes: Annotated[str, typer.Option(metavar="SIZE", help="Of one request: 10MB, 512KiB.")] = "10MB",
    max_pixels: Annotated[int, typer.Option(min=1, metavar="N", help="Of one image file.")] = 50_000_000,
    names: Annotated[
        Path | None,
        typer.Option("--classes", metavar="FILE", help="Names of the classes of an .onnx file, one in a line."),
    ] = None,
    log: Annotated[bool, typer.Option("--log", help="Print status and time of each answer.")] = False,
    device: DeviceName = "auto",
) -> None:
    """Answer over HTTP what is in an image: a page for people, JSON for programs. Ctrl-C ends it.

    GET / is the page, POST /predict answers programs, GET /health and /metrics are for those who watch over it.

    It needs Starlette, uvicorn and python-multipart: pip install "xpcnn\\[serve]".
    """
    from ..serve import Limits
    from ..serve import serve as run

    if names is not None and not names.exists():
        raise ArgumentError(f"{names} does not exist; expected a text file with the name of a class in each line.")
    classes = None if names is None else names.read_text("utf-8").splitlines()
    limits = Limits(bytes_of(max_bytes, "--max-bytes"), max_pixels, timeout, queue, batch, wait / 1000)
    if log:
        logging.getLogger("xpcnn.serve").setLevel(logging.INFO)
    run(model, host, port, device, limits, allow_host or (), classes, lambda text: print(text, flush=True))
