"""A JSON array, whose elements become lines as they are written, without reading the file whole."""

import codecs
import json
from typing import BinaryIO, Final

from trainers.data.conversion.conversion import LineWriter, SourceUnreadable
from trainers.data.faults import Fault, FaultCode
from trainers.data.files.file_checks import UTF8_MARK
from trainers.data.files.jsonl import MAX_LINE_BYTES

CHUNK_BYTES: Final = 1 << 20
_SPACE: Final = " \t\r\n"


def convert_json_array(file: BinaryIO, writer: LineWriter) -> None:
    """Write each element of the array; raises SourceUnreadable where the file is not a JSON array."""
    if file.read(len(UTF8_MARK)) != UTF8_MARK:
        file.seek(0)
    text = _Text(file)
    if text.next_character() != "[":
        raise _failure(writer, "the array does not begin with `[`")
    text.position += 1
    if text.next_character() != "]":
        _convert_elements(text, writer)
    text.position += 1
    if text.next_character():
        raise _failure(writer, "more text follows the end of the array")


def _convert_elements(text: "_Text", writer: LineWriter) -> None:
    while True:
        element = _read_element(text, writer)
        # A line break in JSON is white space: within a string it is written as `\n`.
        writer.write_line(
            element.replace("\n", " ").replace("\r", " ").encode() + b"\n", f"Element {writer.rows + 1}"
        )
        match text.next_character():
            case ",":
                text.position += 1
            case "]":
                return
            case "":
                raise _failure(writer, "the file ends before the array does; it was probably cut")
            case other:
                raise _failure(writer, f"{other!r} follows the element, where a comma is expected")


def _read_element(text: "_Text", writer: LineWriter) -> str:
    """Return the text of the next element; a longer piece of the file is read until it is complete."""
    decoder = json.JSONDecoder()
    text.next_character()
    size = 0
    while True:
        try:
            # The value itself is dropped: validation parses the line, and reports duplicate keys and so on.
            _, end = decoder.raw_decode(text.buffer, text.position)
        except (ValueError, RecursionError) as error:
            # The rest of the element may be missing.
            problem = (
                error.msg if isinstance(error, json.JSONDecodeError) else "the value is nested too deeply"
            )
            size = max(2 * size, CHUNK_BYTES)
            if len(text.buffer) - text.position > MAX_LINE_BYTES or not text.read_more(size):
                raise _failure(writer, problem) from None
            continue
        # A number could continue in the next piece.
        if end < len(text.buffer) or not text.read_more(CHUNK_BYTES):
            element = text.buffer[text.position : end]
            text.position = end
            return element


def _failure(writer: LineWriter, problem: str) -> SourceUnreadable:
    return SourceUnreadable(
        Fault(
            code=FaultCode.invalid_json,
            message=f"The JSON array is invalid after {writer.rows:,} elements: {problem}. Correct the file, "
            "or write one JSON object per line.",
        )
    )


class _Text:
    """The part of the file that is in memory, as text, and the position in it."""

    def __init__(self, file: BinaryIO) -> None:
        self.buffer = ""
        self.position = 0
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def next_character(self) -> str:
        """Move to the next character that is not white space and return it; empty at the end."""
        while True:
            while self.position < len(self.buffer):
                if self.buffer[self.position] not in _SPACE:
                    return self.buffer[self.position]
                self.position += 1
            if not self.read_more(CHUNK_BYTES):
                return ""

    def read_more(self, size: int) -> bool:
        """Append up to `size` bytes of the file and drop what was read; return whether there was more."""
        piece = self._file.read(size)
        if not piece:
            return False
        try:
            more = self._decoder.decode(piece)
        except UnicodeDecodeError:
            raise SourceUnreadable(
                Fault(
                    code=FaultCode.invalid_utf8,
                    message=f"The file contains bytes that are not UTF-8, before byte {self._file.tell():,}: "
                    "write it as UTF-8.",
                )
            ) from None
        self.buffer = self.buffer[self.position :] + more
        self.position = 0
        return True
