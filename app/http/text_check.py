"""Refusal of text that no database can store, wherever a request has it: NUL and unpaired surrogates."""

import re
from collections.abc import Iterator
from typing import Any

from fastapi import Request

from app.http.errors import UnprocessableContent

UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
# In a body these can only be escapes: raw ones are not valid JSON in UTF-8. Most bodies have none, and are
# not searched further.
ESCAPE = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
MESSAGE = "It must not contain the character NUL or an unpaired surrogate."


async def refuse_unstorable_text(request: Request) -> None:
    """Raise UnprocessableContent if a parameter or a string of the JSON body cannot be stored."""
    parameters = [*request.path_params.items(), *request.query_params.multi_items()]
    fields = [name for name, value in parameters if UNSTORABLE.search(str(value))]
    # FastAPI has parsed the body of a route that takes JSON, and no other.
    body = getattr(request, "_json", None)
    if body is not None and ESCAPE.search(await request.body()):
        fields += find_unstorable(body)
    if fields:
        printable = [UNSTORABLE.sub("�", name) for name in fields]
        raise UnprocessableContent(
            f"The request is malformed. {printable[0]}: {MESSAGE}",
            fields=[{"field": name, "message": MESSAGE} for name in printable],
        )


def find_unstorable(body: Any) -> Iterator[str]:
    """Yield the path of each string and key that cannot be stored, without recursion: a body may be deep."""
    waiting: list[tuple[str, Any]] = [("", body)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, str):
            if UNSTORABLE.search(value):
                yield path.removeprefix(".")
        elif isinstance(value, dict):
            waiting += [(f"{path}.{key}", key) for key in value if UNSTORABLE.search(key)]
            waiting += [(f"{path}.{key}", item) for key, item in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{path}.{index}", item) for index, item in enumerate(value)]
