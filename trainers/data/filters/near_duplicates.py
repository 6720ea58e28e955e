"""Near duplicates by MinHash over shingles of five characters, with datasketch's LSH index.

Case is ignored, and texts are compared as people read them (`fold_text`). The similarity of two texts is the
Jaccard index of their shingles, estimated from 128 hashes: its standard error is 0.035 at 0.8. Shingles of
characters suit both English and Korean, whose words are inflected. Texts that differ only in a number are
very similar, so use a threshold near 1, or exact duplicates alone, for word problems.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final
from zlib import crc32

from trainers.data.filters.drops import DropReason, DropRecorder
from trainers.data.filters.row_filters import NumberedRows
from trainers.data.fingerprint import row_text
from trainers.data.formats import Row, RowFormat
from trainers.data.texts.folding import fold_text

if TYPE_CHECKING:
    from datasketch import MinHash

SHINGLE_CHARACTERS: Final = 5
HASHES: Final = 128
# The index uses about 6 kB of memory per text at a threshold of 0.8.
MAX_REMEMBERED_TEXTS: Final = 50_000
# False negatives weigh more than false positives, because every candidate is compared again.
WEIGHTS: Final = (0.1, 0.9)


class NearDuplicateIndex:
    """Index of texts, which finds similar ones by the number they were added with."""

    def __init__(self, threshold: float = 0.8, max_remembered: int = MAX_REMEMBERED_TEXTS) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"The similarity threshold is {threshold}: it must be above 0 and at most 1.")
        # It imports scipy and a client of Redis: a third of the start of `evaluate`, which often needs none.
        from datasketch import MinHash, MinHashLSH

        self.threshold = threshold
        self._left = max_remembered
        self._empty = MinHash(num_perm=HASHES, hashfunc=crc32)
        self._index = MinHashLSH(threshold=threshold, num_perm=HASHES, weights=WEIGHTS)
        self._sketches: dict[int, MinHash] = {}

    def matches(self, text: str) -> list[tuple[int, float]]:
        """Return (number, estimated similarity) of every text whose similarity reaches the threshold."""
        sketch = self._sketch(text)
        return self._similar(sketch)

    def add(self, number: int, text: str) -> bool:
        """Add a text; return False if the index is full."""
        return self._insert(number, self._sketch(text))

    def match_or_add(self, number: int, text: str) -> tuple[list[tuple[int, float]], bool]:
        """Return the similar texts and, if there are none, whether this one could be added."""
        sketch = self._sketch(text)
        found = self._similar(sketch)
        return found, not found and self._insert(number, sketch)

    def _sketch(self, text: str) -> "MinHash":
        sketch = self._empty.copy()
        sketch.update_batch([shingle.encode() for shingle in shingles(text)])
        return sketch

    def _similar(self, sketch: "MinHash") -> list[tuple[int, float]]:
        candidates = sorted(self._index.query(sketch))
        compared = [(number, float(sketch.jaccard(self._sketches[number]))) for number in candidates]
        return [(number, similarity) for number, similarity in compared if similarity >= self.threshold]

    def _insert(self, number: int, sketch: "MinHash") -> bool:
        if not self._left:
            return False
        self._left -= 1
        self._index.insert(number, sketch)
        self._sketches[number] = sketch
        return True


def shingles(text: str) -> set[str]:
    """Return all substrings of five characters; for a shorter text, the text itself."""
    plain = fold_text(text).casefold()
    return {plain[start : start + SHINGLE_CHARACTERS] for start in range(max(1, len(plain) - 4))}


def drop_near_duplicates(
    rows: NumberedRows,
    drops: DropRecorder,
    row_format: RowFormat,
    *,
    threshold: float = 0.8,
    max_remembered: int = MAX_REMEMBERED_TEXTS,
    text_of: Callable[[Row, RowFormat], str] = row_text,
) -> Iterator[tuple[int, Row]]:
    """Yield the first of several rows with similar texts.

    Rows are compared with the first `max_remembered` rows that were kept; the report counts the rows after
    them.
    """
    index = NearDuplicateIndex(threshold, max_remembered)
    # A recipe may make several rows from one line, so rows are identified by their position.
    lines: dict[int, int] = {}
    for number, (line, row) in enumerate(rows):
        found, remembered = index.match_or_add(number, text_of(row, row_format))
        # Both directions of a translation have the same two texts, and both must be kept.
        others = [match for match in found if lines[match[0]] != line]
        if others:
            nearest, similarity = max(others, key=lambda match: match[1])
            first = lines[nearest]
            drops.add(
                line,
                DropReason.near_duplicate,
                f"About {similarity:.0%} of the text is common with line {first}.",
            )
            continue
        if remembered:
            lines[number] = line
        elif not found:
            drops.not_remembered += 1
        yield line, row
