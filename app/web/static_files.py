"""The static files, under a path with a hash of them all, so that browsers keep them without asking again.

ES modules import each other by relative paths, which stay below the same hash.
"""

import gzip
import hashlib
import mimetypes
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response

from app.http.errors import NotFound

FOLDER = Path(__file__).with_name("static")
IMMUTABLE = "public, max-age=31536000, immutable"
MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".txt": "text/plain"}

# A comment of a whole line, which browsers need not load.
COMMENT = re.compile(rb"(?m)^[ \t]*(?://[^\n]*|/\*(?:[^*\n]|\*(?!/))*\*/[ \t]*)\n")

router = APIRouter()


@dataclass(frozen=True)
class StaticFile:
    """A file in memory, as it is and compressed."""

    content: bytes
    compressed: bytes
    media_type: str


class StaticFileNotFound(NotFound):
    """No static file has this name."""


@cache
def load_files() -> dict[str, StaticFile]:
    """Return the files by their path in the folder."""
    return {
        path.relative_to(FOLDER).as_posix(): _load(path)
        for path in sorted(FOLDER.rglob("*"))
        if path.is_file()
    }


@cache
def files_hash() -> str:
    """Return the hash of the names and contents of all files."""
    digest = hashlib.sha256()
    for name, file in load_files().items():
        digest.update(name.encode() + b"\0" + hashlib.sha256(file.content).digest())
    return digest.hexdigest()[:16]


def static_url(name: str) -> str:
    """Return the path of a file; raises KeyError if there is none with this name."""
    load_files()[name]
    return f"/assets/{files_hash()}/{name}"


@router.get("/assets/{version}/{name:path}")
async def get_static_file(request: Request, version: str, name: str) -> Response:
    """Return a static file; a page of another version gets the current one, which is not to be kept."""
    file = load_files().get(name)
    if file is None:
        raise StaticFileNotFound(f"There is no static file {name}.", hint="Reload the page.")
    headers = {
        "Cache-Control": IMMUTABLE if version == files_hash() else "no-store",
        "Vary": "Accept-Encoding",
    }
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
        return Response(file.compressed, headers=headers, media_type=file.media_type)
    return Response(file.content, headers=headers, media_type=file.media_type)


def _load(path: Path) -> StaticFile:
    content = path.read_bytes()
    if path.suffix in (".js", ".css") and path.parent == FOLDER:
        content = COMMENT.sub(b"", content)
    media_type = MEDIA_TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0]
    assert media_type is not None, f"{path} has an unknown type"
    return StaticFile(content, gzip.compress(content, 9, mtime=0), media_type)
