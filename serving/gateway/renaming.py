"""A client gets the name that it asked for, not the one by which the engine knows the model."""

import json
from functools import lru_cache

Names = tuple[tuple[bytes, bytes], ...]


def renamed(chunk: bytes, names: Names) -> bytes:
    """A part of an answer under the other name; an engine writes JSON in one way throughout."""
    for engines, asked in names:
        if engines in chunk:
            return chunk.replace(engines, asked)
    return chunk


@lru_cache(maxsize=1024)
def names_in_answers(engines: str, asked: str) -> Names:
    """What to replace in an answer by what; a quote inside a JSON string is escaped, so no text can match."""
    if engines == asked:
        return ()
    known, wanted = json.dumps(engines, ensure_ascii=False), json.dumps(asked, ensure_ascii=False)
    return tuple((f'"model":{gap}{known}'.encode(), f'"model":{gap}{wanted}'.encode()) for gap in ("", " "))
