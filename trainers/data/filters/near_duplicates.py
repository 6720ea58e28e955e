"""Near duplicates by MinHash over pieces of five characters, with datasketch's index.

Letters' case and white space do not count. The similarity is the share of pieces that two texts have in
common, estimated from 128 hashes: its standard error is 0.035 at 0.8. Pieces of characters suit Korean,
whose words change their endings, and English alike; texts that differ in a number only are very similar, so
for word problems take a threshold near 1, or exact duplicates alone.

datasketch takes scipy along, so only programs import this module.
"""

import re
from collections.abc import Callable, Iterator
from typing import Final
from zlib import crc32

from datasketch import MinHash, MinHashLSH  # It ships no types.

from trainers.data.filters.drops import DropReason, DropRecorder
from trainers.data.filters.row_filters import NumberedRows
from trainers.data.fingerprint import row_text
from trainers.data.formats import Row, RowFormat

PIECE_CHARACTERS: Final = 5
HASHES: Final = 128
# Nearly all of the index: buckets of about 6 kB a text at a threshold of 0.8.
MAX_REMEMBERED_TEXTS: Final = 50_000
# A missed pair is worse than a comparison too many, since every candidate is compared once more.
WEIGHTS: Final = (0.1, 0.9)


class NearDuplicateIndex:
    """Texts by what they are made of; finds those that are alike, by the number they were added with."""

    def __init__(self, threshold: float = 0.8, max_remembered: int = MAX_REMEMBERED_TEXTS) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"The similarity threshold is {threshold}: give one above 0, up to 1.")
        self.threshold = threshold
        self._left = max_remembered
        self._empty = MinHash(num_perm=HASHES, hashfunc=crc32)
        self._index = MinHashLSH(threshold=threshold, num_perm=HASHES, weights=WEIGHTS)
        self._sketches: dict[int, MinHash] = {}

    def matches(self, text: str) -> list[tuple[int, float]]:
        """(number, estimated similarity) of every text that is at least as similar as the threshold."""
        sketch = self._sketch(text)
        return self._similar(sketch)

    def add(self, number: int, text: str) -> bool:
        """Remembers a text; False when the memory is full."""
        return self._remember(number, self._sketch(text))

    def match_or_add(self, number: int, text: str) -> tuple[list[tuple[int, float]], bool]:
        """The texts that are alike and, only if there are none, whether this one could be remembered."""
        sketch = self._sketch(text)
        found = self._similar(sketch)
        return found, not found and self._remember(number, sketch)

    def _sketch(self, text: str) -> MinHash:
        sketch = self._empty.copy()
        sketch.update_batch([piece.encode() for piece in shingles(text)])
        return sketch

    def _similar(self, sketch: MinHash) -> list[tuple[int, float]]:
        candidates = sorted(self._index.query(sketch))
        compared = [(number, float(sketch.jaccard(self._sketches[number]))) for number in candidates]
        return [(number, similarity) for number, similarity in compared if similarity >= self.threshold]

    def _remember(self, number: int, sketch: MinHash) -> bool:
        if not self._left:
            return False
        self._left -= 1
        self._index.insert(number, sketch)
        self._sketches[number] = sketch
        return True


def shingles(text: str) -> set[str]:
    """All runs of five characters; of a shorter text, the text itself."""
    plain = re.sub(r"\s+", " ", text.casefold()).strip()
    return {plain[start : start + PIECE_CHARACTERS] for start in range(max(1, len(plain) - 4))}


def drop_near_duplicates(
    rows: NumberedRows,
    drops: DropRecorder,
    row_format: RowFormat,
    *,
    threshold: float = 0.8,
    max_remembered: int = MAX_REMEMBERED_TEXTS,
    text_of: Callable[[Row, RowFormat], str] = row_text,
) -> Iterator[tuple[int, Row]]:
    """Keeps the first of all rows whose texts are alike; a row is compared with kept rows only.

    The first `max_remembered` kept rows are compared with; the report says how many came after them.
    """
    index = NearDuplicateIndex(threshold, max_remembered)
    # A recipe may make several rows of one line, so they are told apart by their own number.
    lines: dict[int, int] = {}
    for number, (line, row) in enumerate(rows):
        found, remembered = index.match_or_add(number, text_of(row, row_format))
        # The two directions of one translation hold the same two texts, and both are wanted.
        others = [match for match in found if lines[match[0]] != line]
        if others:
            nearest, similarity = max(others, key=lambda match: match[1])
            first = lines[nearest]
            drops.add(
                line,
                DropReason.near_duplicate,
                f"The row has about {similarity:.0%} of its text in common with line {first}.",
            )
            continue
        if remembered:
            lines[number] = line
        elif not found:
            drops.not_remembered += 1
        yield line, row
