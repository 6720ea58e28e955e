"""Parser of a multipart form (RFC 7578): files go to a folder as they arrive, and the rest is bounded.

python-multipart's own `FormParser` keeps a field of any size in memory. It also keeps the file of a form
that ends early open, and with it the space of the file, until garbage is collected.
"""

import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

MAX_FIELD_BYTES = 4 << 10
# The bytes of a part are taken as they are; RFC 7578 deprecates every other encoding.
IDENTITY_ENCODINGS = {b"binary", b"8bit", b"7bit"}


@dataclass(frozen=True)
class UploadedFile:
    """A file of the form on disk, and the name that the client gave it."""

    path: Path
    name: str


class FormReader:
    """Reads a form piece by piece; its files are written to `folder`.

    `files` has the name of the field of each file, in order; `fields` has the other fields. The methods raise
    FormParserError for an invalid form, and OSError if a file cannot be written.
    """

    def __init__(self, boundary: bytes, folder: Path, max_parts: int) -> None:
        self.files: list[tuple[str, UploadedFile]] = []
        self.fields: dict[str, str] = {}
        self._folder = folder
        self._parts_left = self._max_parts = max_parts
        self._header = b"", b""
        self._headers: dict[bytes, bytes] = {}
        self._is_complete = False
        self._part: _FilePart | _FieldPart | None = None
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": lambda data, start, end: self._extend_header(data[start:end], b""),
                "on_header_value": lambda data, start, end: self._extend_header(b"", data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._open_part,
                "on_part_data": self._write,
                "on_part_end": self._end_part,
                "on_end": self._complete,
            },
        )

    def feed(self, chunk: bytes) -> None:
        """Read the next bytes of the form."""
        self._parser.write(chunk)

    def finish(self) -> None:
        """Check that the form is complete."""
        self._parser.finalize()
        if not self._is_complete:
            raise FormParserError("it ends before its last boundary")

    def close(self) -> None:
        """Close the file of a part that has not ended."""
        part, self._part = self._part, None
        # The file is incomplete in any case; a full disk does not take its last bytes either.
        with suppress(OSError):
            if isinstance(part, _FilePart):
                part.file.close()

    def _begin_part(self) -> None:
        self._headers = {}
        self._parts_left -= 1
        if self._parts_left < 0:
            raise FormParserError(f"it has more than {self._max_parts} parts")

    def _extend_header(self, name: bytes, value: bytes) -> None:
        self._header = self._header[0] + name, self._header[1] + value

    def _end_header(self) -> None:
        name, value = self._header
        self._headers[name.lower()] = value.strip(b" \t")
        self._header = b"", b""

    def _open_part(self) -> None:
        disposition = self._headers.get(b"content-disposition")
        _, options = parse_options_header(disposition)
        if b"name" not in options:
            raise FormParserError(f"a part has no name in its Content-Disposition: {disposition!r}")
        name = options[b"name"].decode("utf-8", "replace")
        encoding = self._headers.get(b"content-transfer-encoding", b"binary").lower()
        if encoding not in IDENTITY_ENCODINGS:
            shown = encoding.decode("latin-1")
            raise FormParserError(f"its part `{name}` is encoded as {shown}; send it as it is")
        if b"filename" in options:
            self._part = _FilePart(name, options[b"filename"].decode("utf-8", "replace"), self._folder)
        else:
            self._part = _FieldPart(name)

    def _write(self, data: bytes, start: int, end: int) -> None:
        assert self._part is not None
        self._part.write(data[start:end])

    def _complete(self) -> None:
        self._is_complete = True

    def _end_part(self) -> None:
        part = self._part
        if isinstance(part, _FilePart):
            part.file.close()
            self.files.append((part.name, UploadedFile(part.path, part.file_name)))
        elif part is not None:
            self.fields[part.name] = part.value.decode("utf-8", "replace")
        self._part = None


class _FilePart:
    def __init__(self, name: str, file_name: str, folder: Path) -> None:
        self.name, self.file_name = name, file_name
        descriptor, path = tempfile.mkstemp(dir=folder)
        self.file, self.path = os.fdopen(descriptor, "wb"), Path(path)

    def write(self, data: bytes) -> None:
        self.file.write(data)


class _FieldPart:
    def __init__(self, name: str) -> None:
        self.name, self.value = name, bytearray()

    def write(self, data: bytes) -> None:
        self.value += data
        if len(self.value) > MAX_FIELD_BYTES:
            raise FormParserError(f"its field `{self.name}` is longer than {MAX_FIELD_BYTES} bytes")
