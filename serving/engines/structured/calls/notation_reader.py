"""Reads arguments in notations of Gemma and of Python as JSON, while they arrive."""

import json
from dataclasses import dataclass

import regex

CONSTANTS = {
    "True": "true",
    "False": "false",
    "None": "null",
    "true": "true",
    "false": "false",
    "null": "null",
}
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "0": "\0", "\n": ""}
CODES = {"x": 2, "u": 4, "U": 8}
NUMBER = regex.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
BRACKETS = {"{": "}", "[": "]", "(": "]"}


@dataclass
class _Container:
    """An object or an array that is read."""

    closing: str
    n_members: int = 0
    has_name: bool = False
    """Whether the name of the next member is read, so that its value follows."""

    @property
    def expects_name(self) -> bool:
        return self.closing == "}" and not self.has_name


class NotationReader:
    """Reads the members of an object up to its closing bracket, as the text of a JSON object."""

    def __init__(self, delimiter: str | None, closing: str) -> None:
        self.is_complete = False
        self._delimiter = delimiter
        self._closing = closing
        self._containers = [_Container("}")]
        self._opening = "{"
        # The delimiter of the string that is read.
        self._string: str | None = None
        words = r"[^\s,:=(){}\[\]\"']" if delimiter is None else r"[^,:{}\[\]]"
        self._word = regex.compile(f"{words}+")

    def read(self, text: str) -> tuple[str, int]:
        """Return the JSON of a piece, and how many of its characters were read."""
        output, position = self._opening, 0
        self._opening = ""
        while position < len(text) and not self.is_complete:
            written, size = (
                self._read_string(text, position) if self._string else self._read_token(text, position)
            )
            if not size:
                break
            output += written
            position += size
        return output, position

    def _read_token(self, text: str, start: int) -> tuple[str, int]:
        """Return the JSON of the token at a position, and its length; 0 if the token may continue."""
        character, top = text[start], self._containers[-1]
        if character.isspace() or character in ",:=":
            return "", 1
        if character in BRACKETS:
            opening = self._open(top)
            self._containers.append(_Container(BRACKETS[character]))
            return opening + ("{" if character == "{" else "["), 1
        if character in "}])":
            return self._close(top), 1
        for quote in ("'", '"') if self._delimiter is None else (self._delimiter,):
            if text.startswith(quote, start):
                self._string = quote
                return self._open(top) + '"', len(quote)
            if quote.startswith(text[start:]):
                return "", 0
        return self._read_word(text, start, top)

    def _read_word(self, text: str, start: int, top: _Container) -> tuple[str, int]:
        found = self._word.match(text, start)
        end = start + 1 if found is None else found.end()
        if end == len(text):
            return "", 0
        word = text[start:end].strip()
        if top.expects_name:
            return self._open(top) + json.dumps(word, ensure_ascii=False) + self._end_member(top), end - start
        return self._open(top) + _scalar(word) + self._end_member(top), end - start

    def _open(self, top: _Container) -> str:
        """Return the comma before a member that is not the first."""
        if top.has_name:
            return ""
        top.n_members += 1
        return ", " if top.n_members > 1 else ""

    def _end_member(self, top: _Container) -> str:
        """Return the colon after a name."""
        is_name, top.has_name = top.expects_name, top.expects_name
        return ": " if is_name else ""

    def _close(self, top: _Container) -> str:
        self._containers.pop()
        if not self._containers:
            self.is_complete = True
        else:
            self._end_member(self._containers[-1])
        return top.closing

    def _read_string(self, text: str, start: int) -> tuple[str, int]:
        """Return the JSON of the part of a string that has arrived, and its length."""
        quote = self._string
        assert quote is not None
        if text.startswith(quote, start):
            self._string = None
            return '"' + self._end_member(self._containers[-1]), len(quote)
        if self._delimiter is None and text[start] == "\\":
            return _read_escape(text, start)
        end = start
        while end < len(text) and not quote.startswith(text[end : end + len(quote)]):
            if self._delimiter is None and text[end] == "\\":
                break
            end += 1
        return _escape(text[start:end]), end - start


def _read_escape(text: str, start: int) -> tuple[str, int]:
    """Return the JSON of an escape of Python, and its length; 0 if it is not complete."""
    if len(text) < start + 2:
        return "", 0
    letter = text[start + 1]
    if letter in CODES:
        size = 2 + CODES[letter]
        if len(text) < start + size:
            return "", 0
        try:
            code = int(text[start + 2 : start + size], 16)
            # Two halves of a character are one in JSON.
            return (f"\\u{code:04x}" if code < 2**16 else _escape(chr(code))), size
        except (ValueError, OverflowError):
            return "\\\\", 1
    if letter in "\\'\"/":
        return _escape(letter), 2
    return (_escape(ESCAPES[letter]) if letter in ESCAPES else _escape("\\" + letter)), 2


def _scalar(word: str) -> str:
    """Return the JSON of a word without quotation marks."""
    if word in CONSTANTS:
        return CONSTANTS[word]
    if NUMBER.fullmatch(word):
        return word
    try:
        return str(int(word))
    except ValueError:
        return json.dumps(word, ensure_ascii=False)


def _escape(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
