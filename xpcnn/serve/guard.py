"""Around every request: who may ask, which headers an answer has, what is counted and logged."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Guard", "refusal"]

log = logging.getLogger("xpcnn.serve")


def refusal(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return an error as all of them are answered."""
    return JSONResponse({"status": status, "error": message}, status, headers)


class Guard:
    """An ASGI application around another.

    Args:
        app: the one inside.
        hosts: names by which the server may be called; None for any. Without it a page of somebody else could point a
            name of its own at this machine and then read the answers (DNS rebinding).
        headers: of every answer.
        answered: is told the status and the seconds of every answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: frozenset[str] | None,
        headers: Mapping[str, str],
        answered: Callable[[int, float], None],
    ) -> None:
        self.app, self.hosts, self.headers, self.answered = app, hosts, headers, answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.perf_counter()

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
                status, seconds = message["status"], time.perf_counter() - begun
                self.answered(status, seconds)
                log.info("%d %.1f ms", status, 1e3 * seconds)
            await send(message)

        if self.hosts is not None and _name(Headers(scope=scope).get("host", "")) not in self.hosts:
            known = ", ".join(sorted(self.hosts))
            answer = refusal(421, f"This server answers to {known}. Call it so, or start it with --allow-host NAME.")
            await answer(scope, receive, send_on)
            return
        try:
            await self.app(scope, receive, send_on)
        except Exception as error:  # has been answered with 500; its text might quote the request, so it is not logged
            where = "".join(traceback.format_tb(error.__traceback__))
            log.error("a bug: %s\n%s", type(error).__name__, where)


def _name(host: str) -> str:
    """Return the name in a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
