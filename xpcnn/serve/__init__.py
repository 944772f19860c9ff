"""`xpcnn serve`: a saved model behind HTTP, with a page for people and JSON for programs.

It needs Starlette, uvicorn and python-multipart: pip install "xpcnn[serve]". What the endpoints take and answer is
described in docs/serve.md.

    app.py        routes, limits, status codes
    guard.py      around all of them: Host, headers, counting, the log
    server.py     opens a port, begins and ends
    question.py   what the query asks
    upload.py     from a request to the bytes of one image
    batching.py   requests of the same moment become one forward pass
    model.py      a Classifier as the server uses it: bytes -> pixels -> probabilities, Grad-CAM
    metrics.py    counters in the text format of Prometheus
    page.html     the page
"""

from __future__ import annotations

from ..errors import MissingExtraError

try:
    import python_multipart  # noqa: F401
    import starlette  # noqa: F401
    import uvicorn  # noqa: F401
except ImportError as error:
    raise MissingExtraError(f"the package {error.name}", "serve", "xpcnn.serve") from error

from .app import Limits
from .model import ServedModel, open_model
from .server import make_server, serve

__all__ = ["Limits", "ServedModel", "make_server", "open_model", "serve"]
