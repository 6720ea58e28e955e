"""Korean-English sentence pairs from TMX, the XML format of translation memories, read as a stream.

Nothing outside the file is read: a document type is not fetched. A file that declares or uses its own
entities is rejected, so that none is expanded.
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Final
from xml.parsers import expat

from trainers.data.files.aligned import TranslationPair
from trainers.data.filters.drops import DropReason, DropRecorder

CHUNK_BYTES: Final = 2**16
# Expat buffers a whole tag or text; a segment is a sentence.
MAX_BUFFERED_BYTES: Final = 2**22
MAX_SEGMENT_CHARACTERS: Final = 2**18
MAX_DEPTH: Final = 64
# These elements contain formatting codes of the tool that wrote the file, not text.
CODE_ELEMENTS: Final = frozenset({"bpt", "ept", "ph", "it", "ut"})


def read_tmx(path: Path, drops: DropRecorder) -> Iterator[TranslationPair]:
    """Yield the pairs of every unit with both languages, with the line on which the unit begins.

    A unit without one of them is recorded as dropped; one with several variants yields every combination.
    Raises ValueError for a file that is not well-formed XML, is not TMX, or declares entities.
    """
    reader, fed_bytes = _Reader(path.name, drops), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            fed_bytes += len(chunk)
            reader.feed(chunk)
            yield from reader.take()
            if fed_bytes - reader.parsed_bytes > MAX_BUFFERED_BYTES:
                raise ValueError(
                    f"{path.name} contains a tag of more than {MAX_BUFFERED_BYTES:,} bytes. Export the "
                    "file again."
                )
    reader.feed(b"", is_last=True)
    yield from reader.take()


class _Reader:
    """Parser state between two chunks of the file: the open elements and the current unit."""

    def __init__(self, name: str, drops: DropRecorder) -> None:
        self._name, self._drops = name, drops
        self._open: list[str] = []
        self._line, self._language = 0, ""
        self._segment: list[str] | None = None
        self._characters = 0
        self._unit: dict[str, list[str]] = {}
        self._pairs: list[TranslationPair] = []
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text
        self._parser.EntityDeclHandler = self._refuse_entity
        self._parser.SkippedEntityHandler = self._refuse_entity

    @property
    def parsed_bytes(self) -> int:
        return self._parser.CurrentByteIndex

    def feed(self, chunk: bytes, is_last: bool = False) -> None:
        try:
            self._parser.Parse(chunk, is_last)
        except expat.ExpatError as error:
            raise ValueError(
                f"{self._name}, line {error.lineno}: the file is not well-formed XML: "
                f"{expat.ErrorString(error.code)}. Export it again."
            ) from error

    def take(self) -> list[TranslationPair]:
        pairs, self._pairs = self._pairs, []
        return pairs

    def _start(self, element: str, attributes: dict[str, str]) -> None:
        if not self._open and element != "tmx":
            raise ValueError(
                f"{self._name} is not TMX: its first element is `{element[:40]}` instead of `tmx`."
            )
        if len(self._open) >= MAX_DEPTH:
            raise self._error(f"elements are nested more than {MAX_DEPTH} deep")
        self._open.append(element)
        if element == "tu":
            self._line, self._unit = self._parser.CurrentLineNumber, {}
        elif element == "tuv":
            language = attributes.get("xml:lang") or attributes.get("lang") or ""
            self._language = language.replace("_", "-").split("-")[0].lower()
        elif element == "seg":
            self._segment, self._characters = [], 0

    def _text(self, text: str) -> None:
        if self._segment is None or not CODE_ELEMENTS.isdisjoint(self._open):
            return
        self._characters += len(text)
        if self._characters > MAX_SEGMENT_CHARACTERS:
            raise self._error(f"a segment is longer than {MAX_SEGMENT_CHARACTERS:,} characters")
        self._segment.append(text)

    def _end(self, element: str) -> None:
        self._open.pop()
        if element == "seg" and self._segment is not None:
            # A segment is one line of text; its line breaks come from the layout of the file.
            self._unit.setdefault(self._language, []).append(" ".join("".join(self._segment).split()))
            self._segment = None
        elif element == "tu":
            self._finish_unit()

    def _finish_unit(self) -> None:
        korean, english = self._unit.get("ko", []), self._unit.get("en", [])
        if not korean or not english:
            found = ", ".join(sorted(self._unit)) or "none"
            detail = f"The unit needs the languages ko and en, but has {found}."
            self._drops.add(self._line, DropReason.empty_side, detail)
        self._pairs += [TranslationPair(self._line, *texts) for texts in product(korean, english)]

    def _refuse_entity(self, name: str, *_: object) -> None:
        raise self._error(f"the entity `{name[:40]}` is declared or used; write its characters instead")

    def _error(self, problem: str) -> ValueError:
        return ValueError(f"{self._name}, line {self._parser.CurrentLineNumber}: {problem}.")
