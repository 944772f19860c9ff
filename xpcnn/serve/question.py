"""What the query of a request asks."""

from __future__ import annotations

import re
from dataclasses import dataclass

from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException

from .model import ServedModel

__all__ = ["Question"]

TRUTH = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class Question:
    """What a request asks about its image: how many classes to name, and which one to explain, if any."""

    top: int
    explain: bool
    wanted: int | None

    @classmethod
    def read(cls, query: QueryParams, model: ServedModel) -> Question:
        """Read the query.

        Raises:
            HTTPException: 400 for a parameter or value that is unknown.
        """
        unknown = sorted(set(query) - {"top", "explain", "class"})
        if unknown:
            raise HTTPException(400, f"The query takes top, explain and class; received {unknown[0][:80]}.")
        count = len(model.classes)
        top, explain, wanted = query.get("top", str(min(5, count))), query.get("explain", "false"), query.get("class")
        if not (re.fullmatch("[0-9]{1,9}", top) and 1 <= int(top) <= count):
            raise HTTPException(400, f"top must be a number of classes, 1 to {count}; received {top[:80]}.")
        if explain not in TRUTH:
            raise HTTPException(400, f"explain must be true or false; received {explain[:80]}.")
        if not TRUTH[explain]:
            if wanted is not None:
                raise HTTPException(400, "class says which class to explain; it needs explain=true.")
        elif not model.explains:
            raise HTTPException(400, "This network has no feature map that Grad-CAM could show. Ask without explain.")
        return cls(int(top), TRUTH[explain], None if wanted is None else _class(wanted, model.classes))


def _class(wanted: str, classes: list[str]) -> int:
    """Return the number of a class given by name or number."""
    if wanted in classes:
        return classes.index(wanted)
    if re.fullmatch("[0-9]{1,9}", wanted) and int(wanted) < len(classes):
        return int(wanted)
    raise HTTPException(
        400, f"class must be the name of a class or its number, 0 to {len(classes) - 1}; received {wanted[:80]}."
    )
