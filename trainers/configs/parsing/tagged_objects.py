"""Objects whose form one member decides, such as `{"method": "lora"}`: the error for another value."""

import json
from typing import Any

from pydantic import BaseModel, BeforeValidator


def expect_object(tag: str, *kinds: str) -> BeforeValidator:
    """Return a check before a union that `tag` discriminates; its error has an example of an object."""

    def check(value: Any) -> Any:
        if isinstance(value, dict | BaseModel):
            return value
        named = value if isinstance(value, str) and value in kinds else kinds[0]
        found = f"the text {value!r}" if isinstance(value, str) else json.dumps(value, default=str)
        raise ValueError(
            f"Input should be an object with {tag!r} ({', '.join(kinds)}), and not {found[:100]}: write "
            f"{json.dumps({tag: named})}"
        )

    return BeforeValidator(check)
