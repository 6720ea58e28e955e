"""Responses with the content of stored files: ranges, validators, and a bound on how many are sent at once.

A download holds a file and one chunk, but no database session and no thread while its client is slow.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from starlette.datastructures import Headers
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.downloads.ranges import ByteRange, find_range, is_unchanged
from app.downloads.stored_files import Chunks
from app.http.errors import ServiceUnavailable
from app.settings import get_settings
from trainers.runtime.error_codes import ErrorCode

BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}


class TooManyDownloads(ServiceUnavailable):
    """This process sends as many downloads as its setting allows."""

    code = ErrorCode.too_many_downloads


@dataclass(frozen=True)
class Download:
    """A file to send. `etag` is a strong tag, in quotes: another content has another one."""

    filename: str
    media_type: str
    size_bytes: int
    etag: str
    open: Callable[[ByteRange | None], Chunks]
    """Opens the file, and returns the chunks of the range, or all of them."""
    accepts_ranges: bool = True
    is_inline: bool = False
    """Whether a browser shows it in place of saving it."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Further headers, such as a policy of what it may load."""


def download_response(request_headers: Headers, download: Download) -> Response:
    """Return the response to a request for the file: 200, 206 for a range, or 304.

    The file is opened here, so that an error is still an error response. Raises RangeNotSatisfiable and
    TooManyDownloads.
    """
    disposition = "inline" if download.is_inline else "attachment"
    headers = {
        "ETag": download.etag,
        "Accept-Ranges": "bytes" if download.accepts_ranges else "none",
        "Content-Disposition": f'{disposition}; filename="{download.filename}"',
        # The tag decides whether a copy is still right: a model may be deleted at any time.
        "Cache-Control": "private, no-cache",
        **download.headers,
    }
    if is_unchanged(request_headers, download.etag):
        return Response(status_code=304, headers=headers)
    part = None
    if download.accepts_ranges:
        part = find_range(request_headers, download.etag, download.size_bytes)
    n_bytes = part.end - part.start if part else download.size_bytes
    headers["Content-Length"] = str(n_bytes)
    if part is not None:
        headers["Content-Range"] = f"bytes {part.start}-{part.end - 1}/{download.size_bytes}"
    content = _Content(lambda: download.open(part))
    return DownloadResponse(content, 206 if part else 200, headers, download.media_type)


def download_responses(media_type: str, description: str) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of the responses to a download."""
    content = {media_type.partition(";")[0]: BINARY}
    return {
        200: {"description": description, "content": content},
        206: {"description": "The bytes of the requested range.", "content": content},
        304: {"description": "The client has this content already."},
    }


class DownloadResponse(StreamingResponse):
    """A response that closes its content, also when the client disconnects."""

    def __init__(
        self, content: "_Content", status_code: int, headers: Mapping[str, str], media_type: str
    ) -> None:
        super().__init__(content, status_code, headers, media_type)
        self._content = content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._content.close()


class _Slots:
    """The downloads that this process may still start."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_taken = 0

    def take(self) -> None:
        """Take a slot; raises TooManyDownloads."""
        allowed = get_settings().max_downloads
        with self._lock:
            if self._n_taken >= allowed:
                raise TooManyDownloads(
                    f"This process is sending {allowed} downloads already.",
                    hint="Send the request again in some seconds, or raise TUNESMITH_MAX_DOWNLOADS.",
                )
            self._n_taken += 1

    def release(self) -> None:
        """Give a slot back."""
        with self._lock:
            self._n_taken -= 1


_SLOTS = _Slots()


class _Content:
    """The chunks of a download, which holds a slot until it is closed, read to its end, or forgotten."""

    def __init__(self, open_content: Callable[[], Chunks]) -> None:
        self._is_closed = True
        _SLOTS.take()
        self._is_closed = False
        self._chunks: Chunks | None = None
        try:
            self._chunks = open_content()
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        try:
            assert self._chunks is not None, "the content was opened"
            return next(self._chunks)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file and give the slot back, once."""
        if not self._is_closed:
            self._is_closed = True
            _SLOTS.release()
            if self._chunks is not None:
                self._chunks.close()

    def __del__(self) -> None:
        """Release the slot of a response that was never sent."""
        self.close()
