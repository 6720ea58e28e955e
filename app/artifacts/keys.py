"""The keys and paths that a worker may name: those that workers publish, and nothing else of the store."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from app.http.errors import UnprocessableContent, field_error
from app.storage.inventory import KEY_PARTS, PARTIAL_SUFFIX, ArtifactKind
from app.storage.manifest import MANIFEST

MAX_KEY_LENGTH = 1024
MAX_NAME_BYTES = 255
MAX_DEPTH = 16
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", re.ASCII)
# Files of a run, such as its log; the key of the other kinds is that of the whole artifact.
RUN_FILE_PARTS = 4
CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True)
class ArtifactKey:
    """The key of an artifact of a known kind."""

    kind: ArtifactKind
    text: str


def parse_key(key: str) -> ArtifactKey:
    """Return the key of a whole artifact, such as `models/ID`; raises UnprocessableContent for any other."""
    parts = key.split("/")
    kind = _find_kind(parts[0])
    n_parts = RUN_FILE_PARTS if kind is ArtifactKind.runs else KEY_PARTS.get(kind or ArtifactKind.other)
    if kind is None or len(key) > MAX_KEY_LENGTH or len(parts) != n_parts or not all(map(_is_name, parts)):
        raise field_error("key", f"{key[:100]!r} is not the key of an artifact.")
    return ArtifactKey(kind, key)


def check_file_key(key: str) -> str:
    """Return the key of a file to read, which may be in a folder; raises UnprocessableContent."""
    parts = key.split("/")
    kind = _find_kind(parts[0])
    n_parts = KEY_PARTS.get(kind or ArtifactKind.other, 0)
    has_length = n_parts <= len(parts) <= n_parts + MAX_DEPTH
    if kind is None or not has_length or not all(map(_is_name, parts[:n_parts])):
        raise field_error("key", f"{key[:100]!r} is not the key of a stored file.")
    if len(parts) > n_parts:
        _check_path("/".join(parts[n_parts:]), "key")
    return key


def check_member(path: str) -> str:
    """Return the path of a file in a folder to publish; raises UnprocessableContent."""
    _check_path(path, "files")
    if path == MANIFEST:
        raise field_error("files", f"{MANIFEST} is written by the service.")
    return path


def _check_path(path: str, field: str) -> None:
    parts = path.split("/")
    is_path = (
        len(path) <= MAX_KEY_LENGTH
        and len(parts) <= MAX_DEPTH
        and not CONTROL.search(path)
        and PurePosixPath(path).parts == tuple(parts)
        and not {".", ".."} & set(parts)
        and all(len(part.encode()) <= MAX_NAME_BYTES for part in parts)
        and not any(part.endswith(PARTIAL_SUFFIX) for part in parts)
    )
    if not is_path:
        raise _bad_path(path, field)


def _bad_path(path: str, field: str) -> UnprocessableContent:
    return field_error(field, f"{path[:100]!r} is not the relative path of a file.")


def _find_kind(name: str) -> ArtifactKind | None:
    return next((kind for kind in KEY_PARTS if kind == name), None)


def _is_name(part: str) -> bool:
    is_short = len(part) <= MAX_NAME_BYTES
    return is_short and NAME.fullmatch(part) is not None and not part.endswith(PARTIAL_SUFFIX)
