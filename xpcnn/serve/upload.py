"""From a request to the bytes of one image. All stays in memory, and nothing of it is taken for a name or a path."""

from __future__ import annotations

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

__all__ = ["check_kind", "image_in", "read_body"]

FORM = "multipart/form-data"
EXPECTED = (
    f"Expected an image: its bytes with Content-Type: image/png (or another image type), or a form ({FORM}) with one "
    "file."
)


def check_kind(request: Request) -> None:
    """Refuse what cannot be an image before any of it is read.

    Raises:
        HTTPException: 415 for another media type, or a compressed body.
    """
    kind = request.headers.get("content-type", "")
    plain = kind.partition(";")[0].strip().lower()
    if plain != FORM and not plain.startswith("image/"):
        raise HTTPException(415, f"{EXPECTED} Received {plain or 'no Content-Type'}.", {"Accept": f"image/*, {FORM}"})
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPException(415, "Send the image without Content-Encoding.", {"Accept-Encoding": "identity"})


async def read_body(request: Request, most: int) -> bytes:
    """Return the body of a request.

    Raises:
        HTTPException: 413 as soon as it is known to have more than `most` bytes; 400 if it breaks off.
    """
    too_large = HTTPException(413, f"The request may have {most} bytes; this one has more. Send a smaller image.")
    if int(request.headers.get("content-length", 0)) > most:
        raise too_large
    body = bytearray()
    try:
        async for piece in request.stream():
            if len(body) + len(piece) > most:
                raise too_large
            body += piece
    except ClientDisconnect:
        raise HTTPException(400, "The request broke off.") from None
    return bytes(body)


def image_in(kind: str, body: bytes) -> bytes:
    """Return the bytes of the one image that a body is, or holds as a form.

    Args:
        kind: the Content-Type of the request.
        body: all of it.

    Raises:
        HTTPException: 400 if there is none, or more than one, or the form is broken.
    """
    media, options = parse_options_header(kind)
    image = _only_part(body, options.get(b"boundary", b"")) if media.decode("latin-1") == FORM else body
    if not image:
        raise HTTPException(400, f"{EXPECTED} Received nothing.")
    return image


def _only_part(body: bytes, boundary: bytes) -> bytes:
    """Return the content of the one part of a form; its headers, and so the name of a file, are passed over."""
    part = bytearray()
    seen: list[str] = []

    def begin() -> None:
        if seen:
            raise HTTPException(400, f"{EXPECTED} Received a form with more than one part.")
        seen.append("begin")

    def data(chunk: bytes, start: int, end: int) -> None:
        part.extend(memoryview(chunk)[start:end])

    def end() -> None:
        seen.append("end")

    try:
        parser = MultipartParser(boundary, {"on_part_begin": begin, "on_part_data": data, "on_end": end})
        parser.write(body)
    except FormParserError:
        seen.clear()
    if not seen or seen[-1] != "end":
        raise HTTPException(400, f"The form is broken or cut off. {EXPECTED}")
    return bytes(part)
