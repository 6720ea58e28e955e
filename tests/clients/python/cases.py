"""What the programs share: where the service is, what they ask, and one JSON line for each case.

A case is a function that raises if the service does not respond as the client expects.
"""

import json
import os
import traceback
from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel

BASE_URL, API_KEY, MODEL = (os.environ[name] for name in ("BASE_URL", "API_KEY", "MODEL"))
GREET, PAINT = "Greet me.", "Paint the wall red."
GREETING, ANSWER, PAINTED = "Good morning, 안녕하세요.", "The wall is red now.", "painted"

PAINT_PARAMETERS = {
    "type": "object",
    "properties": {"color": {"type": "string", "enum": ["red", "green"]}},
    "required": ["color"],
    "additionalProperties": False,
}
PAINT_FUNCTION = {"name": "paint", "description": "Paint the wall.", "parameters": PAINT_PARAMETERS}
PAINT_TOOL = {"type": "function", "function": PAINT_FUNCTION}


class Coat(BaseModel):
    """A coat of paint."""

    color: Literal["red", "green"]
    layers: Literal[1, 2]


def run(*cases: Callable[[], object]) -> None:
    """Run each case, whose name is that of its function, and print the result."""
    for case in cases:
        error = None
        try:
            case()
        except Exception as caught:
            traceback.print_exc()
            error = f"{type(caught).__name__}: {caught}"
        print(json.dumps({"case": case.__name__, "error": error}), flush=True)


def expect(found: object, expected: object) -> None:
    """Raise unless both are equal."""
    if found != expected:
        raise AssertionError(f"expected {expected!r}, found {found!r}")
