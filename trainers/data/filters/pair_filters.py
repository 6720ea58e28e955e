"""Filters of Korean-English pairs, against noise in web corpora and news archives.

A language is detected by its script: the share of Hangul, or of Latin letters, among all letters.
"""

from collections.abc import Iterable, Iterator

from trainers.data.files.aligned import TranslationPair
from trainers.data.filters.drops import DropReason, DropRecorder
from trainers.data.texts.folding import fold_text, is_blank
from trainers.data.texts.scripts import HANGUL, LATIN, MIN_ENGLISH_SHARE, MIN_KOREAN_SHARE, script_share

Pairs = Iterable[TranslationPair]


def filter_by_language(
    pairs: Pairs,
    drops: DropRecorder,
    *,
    korean_share: float = MIN_KOREAN_SHARE,
    english_share: float = MIN_ENGLISH_SHARE,
) -> Iterator[TranslationPair]:
    """Yield the pairs with text on both sides and at least these shares of Hangul and of Latin letters.

    A side without letters, such as a date, passes.
    """
    for pair in pairs:
        shares = (script_share(HANGUL, pair.korean), script_share(LATIN, pair.english))
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
