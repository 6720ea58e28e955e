"""Cleaning of sentence pairs: the sides of every source get the same form before they are filtered.

Entities of HTML are decoded, wrongly decoded characters are decoded again, invisible characters are removed,
Hangul is composed, and white space is folded. What cannot be repaired is dropped.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Final

from pydantic import BaseModel, Field

from trainers.data.files.aligned import TranslationPair
from trainers.data.filters.alignment import SourceIndex, remember_sources
from trainers.data.filters.drops import DropReason, DropRecorder
from trainers.data.texts.damage import decode_entities, find_mojibake, repair_encoding
from trainers.data.texts.folding import INVISIBLE

MAX_LISTED: Final = 100
# Joiners and variation selectors are part of an emoji and of some scripts.
_JOINERS: Final = re.compile("[\u200c\u200d\ufe0e\ufe0f]")
# A text that was split at the semicolon of an entity ends within a word: `raw jalape&ntilde;`.
_CUT_OFF: Final = re.compile(r"[^\W\d_](&(?:#\w+|\w+);)\s*\Z")


class UnlikeTargets(BaseModel):
    """A side that occurs with different translations."""

    line: int = Field(description="Line of the source, from 1.")
    first_line: int = Field(description="Earlier line with the same text and another translation.")
    side: str = Field(description="Side that both lines have, `Korean` or `English`.")


class TranslationReport(BaseModel):
    """Sentence pairs that were cleaned, and sides that have several translations."""

    entities_decoded: int = Field(0, description="Pairs with entities of HTML, such as `&amp;`.")
    encoding_repaired: int = Field(0, description="Pairs with characters that were decoded wrongly.")
    first_cleaned: list[int] = Field([], description="Lines of the first such pairs.")
    unlike_targets: int = Field(
        0,
        description="Pairs that are used although an earlier one translates one of their sides differently.",
    )
    first_unlike: list[UnlikeTargets] = Field([], description="The first such pairs.")

    def describe_unlike(self) -> str:
        """Return the pairs with several translations as a sentence, with the remedy."""
        places = ", ".join(f"{one.line} (and {one.first_line})" for one in self.first_unlike[:3])
        return (
            f"{self.unlike_targets} sentence pairs have a side that an earlier pair translates differently: "
            f"lines {places}. Correct the wrong ones, unless they are alternatives."
        )


def clean_pairs(
    pairs: Iterable[TranslationPair], drops: DropRecorder, report: TranslationReport
) -> Iterator[TranslationPair]:
    """Yield the pairs in a form that does not depend on their source, and count those that were damaged."""
    for pair in pairs:
        sides = pair.korean, pair.english
        decoded = [decode_entities(side) for side in sides]
        repaired = [repair_encoding(side) for side in decoded]
        cleaned = TranslationPair(pair.line, *map(_fold_white_space, repaired))
        if any(find_mojibake(side) is not None for side in repaired):
            drops.add(pair.line, DropReason.broken_text, "A side has characters that were lost in decoding.")
        elif any(map(_is_cut_off, sides)):
            drops.add(
                pair.line, DropReason.broken_text, "A side ends within a word, after an entity of HTML."
            )
        else:
            _count(report, pair.line, (*sides,) != (*decoded,), decoded != repaired)
            yield cleaned


def report_unlike_targets(
    pairs: Iterable[TranslationPair], report: TranslationReport
) -> Iterator[TranslationPair]:
    """Yield all pairs, and report those of which an earlier pair translates one side differently."""
    sources = SourceIndex()
    for pair in remember_sources(pairs, sources):
        if unlike := sources.first_unlike(pair):
            report.unlike_targets += 1
            if len(report.first_unlike) < MAX_LISTED:
                side, first_line = unlike
                report.first_unlike.append(UnlikeTargets(line=pair.line, first_line=first_line, side=side))
        yield pair


def _count(report: TranslationReport, line: int, had_entities: bool, was_repaired: bool) -> None:
    report.entities_decoded += had_entities
    report.encoding_repaired += was_repaired
    if (had_entities or was_repaired) and len(report.first_cleaned) < MAX_LISTED:
        report.first_cleaned.append(line)


def _fold_white_space(text: str) -> str:
    if text.isascii():
        return " ".join(text.split())
    visible = INVISIBLE.sub(lambda found: "".join(_JOINERS.findall(found.group())), text)
    return " ".join(unicodedata.normalize("NFC", visible).split())


def _is_cut_off(text: str) -> bool:
    end = text[-40:]
    found = _CUT_OFF.search(end) if "&" in end else None
    return found is not None and decode_entities(found.group(1)).isalpha()
