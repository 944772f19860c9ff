"""Errors that say what was expected, what was received and what to do.

Every error of xpcnn derives from `XpcnnError` and from the built-in class a caller would expect, so that
`except ValueError` keeps working.
"""

from __future__ import annotations

__all__ = [
    "ArgumentError",
    "DataError",
    "DeviceError",
    "FileFormatError",
    "MissingExtraError",
    "ShapeError",
    "StateDictError",
    "XpcnnError",
]


class XpcnnError(Exception):
    """Base class of every error that xpcnn raises on purpose."""


class ArgumentError(XpcnnError, ValueError):
    """A hyper-parameter or option outside what is possible."""


class ShapeError(XpcnnError, ValueError):
    """An array or a layer input of the wrong shape or dtype."""


class DeviceError(XpcnnError, RuntimeError):
    """Arrays on different devices, or a device that is not there."""


class StateDictError(XpcnnError, ValueError):
    """A state dict whose keys or shapes do not fit the network."""


class DataError(XpcnnError, ValueError):
    """Images, labels or data sets that cannot be used."""


class FileFormatError(XpcnnError, ValueError):
    """A file that is broken, truncated or not of the format it should be."""


class MissingExtraError(XpcnnError, ImportError):
    """An optional package is needed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f'{purpose} needs {package}, which is not installed. Install it with: pip install "xpcnn[{extra}]"'
        )
