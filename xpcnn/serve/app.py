"""The routes of the server: the page, predictions, health and metrics."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ..backend import threads
from ..data.images import TooManyPixelsError
from ..errors import ArgumentError, DataError
from ..version import __version__
from .batching import Batcher, QueueFullError
from .guard import Guard, refusal
from .metrics import Metrics
from .model import ServedModel
from .question import Question
from .upload import check_kind, image_in, read_body

__all__ = ["Limits", "make_app"]

PAGE = files("xpcnn.serve").joinpath("page.html").read_text("utf-8")
AGAIN = {"Retry-After": "1"}


@dataclass(frozen=True)
class Limits:
    """What the server takes on.

    Args:
        bytes: of one request.
        pixels: of one image file, whatever it is scaled to.
        seconds: for one request, from its head to its answer.
        queue: requests at once; one more is refused with 503 before it is read.
        batch: images in one forward pass.
        wait: seconds that the first image of a pass waits for others.
    """

    bytes: int = 10_000_000
    pixels: int = 50_000_000
    seconds: float = 10.0
    queue: int = 64
    batch: int = 8
    wait: float = 0.002

    def __post_init__(self) -> None:
        for name in ("bytes", "pixels", "seconds", "queue", "batch"):
            if getattr(self, name) <= 0:
                raise ArgumentError(f"{name} must be above 0; received {getattr(self, name)}.")
        if not 0 <= self.wait < self.seconds:
            raise ArgumentError(f"wait must lie in 0 to {self.seconds}, the seconds of a request; it is {self.wait}.")


class Service:
    """A model, the threads that compute, and the endpoints."""

    def __init__(self, model: ServedModel, limits: Limits) -> None:
        self.model, self.limits = model, limits
        self.open = 0  # requests that are read, decoded, queued or computed
        self.batcher = Batcher(self._run, model.width, limits.wait, limits.queue)
        self.metrics = Metrics(model.width, model.classifier.net.device, lambda: self.batcher.waiting)
        self.decoders = ThreadPoolExecutor(min(4, threads()), "xpcnn-serve-decode")
        self.explainer = ThreadPoolExecutor(1, "xpcnn-serve-explain")  # one copy of the network at a time

    def _run(self, images: list[np.ndarray]) -> np.ndarray:
        self.metrics.batches.add(len(images))
        return self.model.predict(images)

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """End the threads after the last request."""
        yield
        self.batcher.close()
        for pool in (self.decoders, self.explainer):
            pool.shutdown(wait=True, cancel_futures=True)

    async def page(self, request: Request) -> Response:
        """GET /: the page."""
        return HTMLResponse(PAGE)

    async def health(self, request: Request) -> Response:
        """GET /health: what is served, and whether it works."""
        ready = self.batcher.alive
        facts = {
            "status": "ready" if ready else "stopped",
            "model": self.model.name,
            "classes": self.model.classes,
            "input_shape": self.model.shape,
            "explains": self.model.explains,
            "device": str(self.model.classifier.net.device),
            "batch": self.model.width,
            "max_bytes": self.limits.bytes,
            "max_pixels": self.limits.pixels,
            "version": __version__,
        }
        return JSONResponse(facts, 200 if ready else 503)

    async def counters(self, request: Request) -> Response:
        """GET /metrics: for Prometheus."""
        return PlainTextResponse(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def predict(self, request: Request) -> Response:
        """POST /predict: the probabilities of an image, and where the network looked."""
        question = Question.read(request.query_params, self.model)
        check_kind(request)
        if self.open >= self.limits.queue:
            raise _busy(f"{self.limits.queue} requests are in work.")
        self.open += 1
        try:
            return JSONResponse(await self._answer(request, question))
        finally:
            self.open -= 1

    async def _answer(self, request: Request, question: Question) -> dict[str, Any]:
        clock = asyncio.get_running_loop().time
        end = clock() + self.limits.seconds
        try:
            body = await asyncio.wait_for(read_body(request, self.limits.bytes), self.limits.seconds)
        except asyncio.TimeoutError:
            text = f"The request did not arrive within {self.limits.seconds:g} s. Send a smaller image."
            raise HTTPException(408, text, {"Connection": "close"}) from None
        try:
            return await asyncio.wait_for(self._compute(request, body, question), max(0.0, end - clock()))
        except asyncio.TimeoutError:
            raise _busy(f"The answer was not there within {self.limits.seconds:g} s.") from None
        except QueueFullError:
            raise _busy(f"{self.limits.queue} images are waiting.") from None

    async def _compute(self, request: Request, body: bytes, question: Question) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        pixels = await loop.run_in_executor(self.decoders, self._decode, request.headers["content-type"], body)
        row: np.ndarray = await asyncio.wrap_future(self.batcher.submit(pixels))
        classes = self.model.classes
        order = np.argsort(-row, kind="stable").tolist()
        found = {
            "class": classes[order[0]],
            "probabilities": [
                {"class": classes[i], "index": i, "probability": float(row[i])} for i in order[: question.top]
            ],
        }
        if question.explain:
            wanted = order[0] if question.wanted is None else question.wanted
            explanation = await loop.run_in_executor(self.explainer, self.model.explain, pixels, wanted)
            found["explanation"] = explanation | {"probability": float(row[wanted])}
        return found

    def _decode(self, kind: str, body: bytes) -> np.ndarray:
        try:
            return self.model.decode(image_in(kind, body))
        except TooManyPixelsError as error:
            raise HTTPException(413, str(error)) from None
        except DataError as error:
            raise HTTPException(422, str(error)) from None


def _busy(reason: str) -> HTTPException:
    return HTTPException(503, f"{reason} Try again in a moment.", AGAIN)


async def _failed(request: Request, error: Exception) -> Response:
    """Answer with a status and a message, whatever it was."""
    if isinstance(error, HTTPException):
        known = {404: "There are /, /predict, /health and /metrics.", 405: f"Use {(error.headers or {}).get('Allow')}."}
        return refusal(error.status_code, known.get(error.status_code, error.detail), error.headers)
    if isinstance(error, MemoryError):
        return refusal(503, "There is no memory for this at the moment. Try again, or send a smaller image.", AGAIN)
    return refusal(500, "Something went wrong here, not with your request.")


def _policy() -> str:
    """Return the Content-Security-Policy: nothing but the style and the script that stand in the page."""
    allowed = ["default-src 'none'", "connect-src 'self'", "img-src blob: data:", "base-uri 'none'"]
    allowed += ["form-action 'none'", "frame-ancestors 'none'"]
    for tag in ("style", "script"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        allowed.append(f"{tag}-src 'sha256-{digest}'")
    return "; ".join(allowed)


def make_app(model: ServedModel, limits: Limits, hosts: frozenset[str] | None = None) -> ASGIApp:
    """Return the ASGI application.

    Args:
        model: what is served.
        limits: what is taken on.
        hosts: names by which it may be called; None for any.
    """
    service = Service(model, limits)
    routes = [
        Route("/", service.page),
        Route("/health", service.health),
        Route("/metrics", service.counters),
        Route("/predict", service.predict, methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {HTTPException: _failed, MemoryError: _failed, Exception: _failed}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=service.lifespan)
    app.router.redirect_slashes = False
    headers = {
        "Content-Security-Policy": _policy(),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
        "Cross-Origin-Resource-Policy": "same-origin",
    }
    return Guard(app, hosts, headers, service.metrics.answered)
