"""The conditions and the byte range of a request for a file (RFC 9110, sections 13 and 14)."""

import re
from dataclasses import dataclass

from starlette.datastructures import Headers

from app.http.errors import HttpError
from trainers.runtime.error_codes import ErrorCode

# A range has more digits than any file's size needs, or is refused before it becomes a number.
RANGE = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})", re.ASCII | re.IGNORECASE)


class RangeNotSatisfiable(HttpError):
    """The requested range begins after the end of the file."""

    status = 416
    code = ErrorCode.range_not_satisfiable

    def __init__(self, size_bytes: int) -> None:
        super().__init__(
            f"The requested range begins after the end of the file, which has {size_bytes:,} bytes.",
            hint="Send a Range within the file, or none to download all of it.",
        )
        self.headers = {"Content-Range": f"bytes */{size_bytes}"}


@dataclass(frozen=True)
class ByteRange:
    """The bytes from `start` up to, but not including, `end`."""

    start: int
    end: int


def is_unchanged(headers: Headers, etag: str) -> bool:
    """Return whether the client already has the content: `If-None-Match` names its tag."""
    tags = [tag.strip().removeprefix("W/") for tag in headers.get("if-none-match", "").split(",")]
    return etag in tags or "*" in tags


def find_range(headers: Headers, etag: str, size_bytes: int) -> ByteRange | None:
    """Return the range to send, or None for the whole file; raises RangeNotSatisfiable.

    As the standard allows, a header that is malformed or names several ranges is ignored. So is a range of
    another version of the file, which `If-Range` names by its tag or by a date.
    """
    match = RANGE.fullmatch(headers.get("range", "").strip())
    if match is None or headers.get("if-range", etag) != etag:
        return None
    first, last = match.groups()
    if not first and not last:
        return None
    if not first:
        length = min(int(last), size_bytes)
        if not length:
            raise RangeNotSatisfiable(size_bytes)
        return ByteRange(size_bytes - length, size_bytes)
    start = int(first)
    if last and int(last) < start:
        return None
    if start >= size_bytes:
        raise RangeNotSatisfiable(size_bytes)
    return ByteRange(start, min(int(last) + 1, size_bytes) if last else size_bytes)
