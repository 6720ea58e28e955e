"""Filters of Korean-English pairs, against noise in web corpora and news archives.

A language is detected by its script: the share of Hangul, or of Latin letters, among all letters. That finds
untranslated sentences, swapped columns and other alphabets; it does not distinguish English from French.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from trainers.data.files.aligned import TranslationPair
from trainers.data.filters.drops import DropReason, DropRecorder
from trainers.data.texts.folding import fold_text, is_blank

Pairs = Iterable[TranslationPair]

HANGUL: Final = re.compile(r"[가-힣\u1100-\u11FF\u3130-\u318F\uA960-\uA97F\uD7B0-\uD7FF]")
LATIN: Final = re.compile(r"[A-Za-z\u00AA-\u024F\u1E00-\u1EFF]")


def filter_by_language(
    pairs: Pairs, drops: DropRecorder, *, korean_share: float = 0.3, english_share: float = 0.8
) -> Iterator[TranslationPair]:
    """Yield the pairs with text on both sides and at least these shares of Hangul and of Latin letters.

    The minimum for Korean is low because names stay in Latin letters, of which a syllable needs several. A
    side without letters, such as a date, passes.
    """
    for pair in pairs:
        shares = (_share(HANGUL, pair.korean), _share(LATIN, pair.english))
        if is_blank(pair.korean) or is_blank(pair.english):
            drops.add(pair.line, DropReason.empty_side, "One side of the pair is empty.")
        elif shares[0] is not None and shares[0] < korean_share:
            detail = f"{shares[0]:.0%} of the Korean letters are Hangul; the minimum is {korean_share:.0%}."
            drops.add(pair.line, DropReason.wrong_language, detail)
        elif shares[1] is not None and shares[1] < english_share:
            detail = f"{shares[1]:.0%} of the English letters are Latin; the minimum is {english_share:.0%}."
            drops.add(pair.line, DropReason.wrong_language, detail)
        else:
            yield pair


def filter_by_length_ratio(
    pairs: Pairs, drops: DropRecorder, *, minimum: float = 0.6, maximum: float = 6.0
) -> Iterator[TranslationPair]:
    """Yield the pairs with `minimum` to `maximum` English characters per Korean one.

    In news the median is 2, and 98 of 100 pairs are between 0.8 and 5; pairs outside are mostly truncated,
    misaligned or labels.
    """
    for pair in pairs:
        ratio = len(pair.english) / max(1, len(pair.korean))
        if minimum <= ratio <= maximum:
            yield pair
        else:
            detail = f"{ratio:.2f} English characters per Korean one; the range is {minimum} to {maximum}."
            drops.add(pair.line, DropReason.length_ratio, detail)


def drop_identical_sides(pairs: Pairs, drops: DropRecorder) -> Iterator[TranslationPair]:
    """Yield the pairs whose sides differ in more than case and white space."""
    for pair in pairs:
        if fold_text(pair.korean).casefold() == fold_text(pair.english).casefold():
            drops.add(pair.line, DropReason.identical_sides, "Both sides have the same text.")
        else:
            yield pair


def _share(script: re.Pattern[str], text: str) -> float | None:
    letters = sum(map(str.isalpha, text))
    return len(script.findall(text)) / letters if letters else None
