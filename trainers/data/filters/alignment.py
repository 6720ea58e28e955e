"""Filter of pairs whose sides cannot be translations of each other, judged by several kinds of evidence.

Aligned corpora contain lines that slipped by one, headlines, and glossary entries such as
`embattled 곤경에 처한` next to a whole sentence. No single sign decides: a translation may be free, and a
name may stay in Latin letters. Strong evidence, or two weak signs, drops a pair. A wrong sentence of a
plausible length without numbers or names is not recognized: that needs a dictionary or a model.
"""

import re
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Final, NamedTuple

from trainers.data.files.aligned import TranslationPair
from trainers.data.filters.drops import DropReason, DropRecorder
from trainers.data.texts.folding import fold_text

# English letters for each Hangul syllable: in news the median is 2.3, and 97 of 100 pairs are plausible.
MIN_PLAUSIBLE_LETTERS: Final = 1.0
MAX_PLAUSIBLE_LETTERS: Final = 4.5
MIN_POSSIBLE_LETTERS: Final = 0.7
MAX_POSSIBLE_LETTERS: Final = 6.5
# The ratio of shorter sides varies too much: `25도` is "77 degrees".
MIN_LETTERS: Final = 20
# A shorter phrase may be a title that the English side has too.
MIN_PHRASE_WORDS: Final = 4
MIN_SENTENCE_WORDS: Final = 6
STRONG, WEAK = 2, 1
# A source uses about 100 bytes of memory.
MAX_REMEMBERED_SOURCES: Final = 1_000_000

_HANGUL: Final = re.compile("[가-힣]")
_LATIN_WORD: Final = re.compile(r"[A-Za-z]+(?:['’][a-z]+)?")
# Text in brackets or quotation marks, and addresses, may stay in the other language.
_QUOTED: Final = re.compile(
    r"\([^()]*\)|[“「『《][^”」』》]{0,200}[”」』》]|``[^`]{0,200}''|\"[^\"]*\"|(?<!\w)['‘][^'’]{1,60}['’]|"
    r"https?:\S+"
)
_HEADWORD: Final = re.compile(r"[a-z][a-z'’ ,-]*[a-z] ?[가-힣…]")
_PHRASE: Final = re.compile(
    rf"(?:\b[A-Za-z][A-Za-z'’.-]{{,30}}[ ,:]{{1,3}}){{{MIN_PHRASE_WORDS - 1},}}[A-Za-z]+"
)
_DIGITS: Final = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
_KOREAN_PART: Final = re.compile(rf"({_DIGITS.pattern}) ?([천백]?)([만억조]?)")
# Such as `12조 3천억`.
_KOREAN_NUMBER: Final = re.compile(
    rf"(?:{_DIGITS.pattern} ?[천백]?[만억조] ?)*{_DIGITS.pattern} ?[천백]?[만억조]?"
)
_KOREAN_UNITS: Final = {"": 1, "백": 1e2, "천": 1e3, "만": 1e4, "억": 1e8, "조": 1e12}
_ENGLISH_UNITS: Final = {"trillion": 12, "billion": 9, "bn": 9, "million": 6, "m": 6, "thousand": 3}


class Evidence(NamedTuple):
    """A sign that the sides of a pair are not translations of each other."""

    strength: int
    detail: str


class SourceIndex:
    """Sides that occurred before, to find those that return with another translation."""

    def __init__(self, max_remembered: int = MAX_REMEMBERED_SOURCES) -> None:
        self._translations: dict[bytes, tuple[int, bytes]] = {}
        self._max_remembered = max_remembered

    def remember(self, pair: TranslationPair) -> None:
        """Add the sides of a pair that are new."""
        for _, source, target in _directions(pair):
            if len(self._translations) < self._max_remembered:
                self._translations.setdefault(source, (pair.line, target))

    def first_unlike(self, pair: TranslationPair) -> tuple[str, int] | None:
        """Return a side that an earlier line translates differently, and that line."""
        for name, source, target in _directions(pair):
            line, earlier = self._translations.get(source, (pair.line, target))
            if earlier != target:
                return name, line
        return None


def remember_sources(pairs: Iterable[TranslationPair], sources: SourceIndex) -> Iterator[TranslationPair]:
    """Yield all pairs, and remember their sides, also of those that a later filter drops."""
    for pair in pairs:
        sources.remember(pair)
        yield pair


def filter_by_alignment(
    pairs: Iterable[TranslationPair], drops: DropRecorder, sources: SourceIndex
) -> Iterator[TranslationPair]:
    """Yield the pairs without strong evidence, or two weak signs, against a translation."""
    for pair in pairs:
        found = find_evidence(pair.korean, pair.english)
        if unlike := sources.first_unlike(pair):
            side, line = unlike
            found.append(Evidence(WEAK, f"line {line} has the same {side} side with another translation"))
        if sum(evidence.strength for evidence in found) < STRONG:
            yield pair
        else:
            drops.add(pair.line, DropReason.misaligned, f"{'; '.join(one.detail for one in found)}.")


def find_evidence(korean: str, english: str) -> list[Evidence]:
    """Return the signs that the sides are not translations of each other."""
    found = [_compare_lengths(korean, english), _find_glossary_entry(korean, english)]
    found += [_compare_numbers(korean, english), _compare_names(korean, english)]
    found += [_compare_questions(korean, english)]
    return [evidence for evidence in found if evidence is not None]


def _compare_lengths(korean: str, english: str) -> Evidence | None:
    """Compare what has to be translated: Hangul, and the English letters that the Korean side lacks."""
    kept, words = set(_words(korean)), _words(english)
    letters, syllables = sum(map(len, words)), len(_HANGUL.findall(korean))
    to_translate = sum(len(word) for word in words if word not in kept)
    if max(to_translate, syllables) < MIN_LETTERS:
        return None
    if to_translate > MAX_PLAUSIBLE_LETTERS * syllables:
        strength = STRONG if to_translate > MAX_POSSIBLE_LETTERS * syllables else WEAK
    elif letters < MIN_PLAUSIBLE_LETTERS * syllables:
        strength = STRONG if letters < MIN_POSSIBLE_LETTERS * syllables else WEAK
    else:
        return None
    return Evidence(strength, f"{to_translate} English letters stand for {syllables} Hangul syllables")


def _find_glossary_entry(korean: str, english: str) -> Evidence | None:
    if _HEADWORD.match(korean):
        return Evidence(WEAK, "the Korean side begins with an English word, as a glossary entry does")
    known = set(_words(english))
    for phrase in _PHRASE.findall(_QUOTED.sub(" ", korean)):
        words = _words(phrase)
        if len(words) >= MIN_SENTENCE_WORDS or sum(word not in known for word in words) * 3 >= len(words):
            return Evidence(STRONG, "the Korean side contains an English phrase")
    return None


def _compare_numbers(korean: str, english: str) -> Evidence | None:
    ours, theirs = re.findall(r"\d+", korean), re.findall(r"\d+", english)
    if not ours or not theirs or not set(ours).isdisjoint(theirs):
        return None
    if not _korean_values(korean).isdisjoint(_english_values(english)):
        return None
    return Evidence(
        WEAK, f"the sides have no number in common ({', '.join(ours[:3])}; {', '.join(theirs[:3])})"
    )


def _compare_names(korean: str, english: str) -> Evidence | None:
    names = list(dict.fromkeys(word for word in _words(_QUOTED.sub(" ", korean)) if len(word) > 2))
    folded = english.casefold()
    missing = [name for name in names if name not in folded]
    if len(missing) * 2 <= len(names):
        return None
    return Evidence(WEAK, f"the English side lacks {', '.join(missing[:3])}")


def _compare_questions(korean: str, english: str) -> Evidence | None:
    # A Korean question may end with a full stop.
    if "?" in korean[-3:] and "?" not in english:
        return Evidence(WEAK, "only the Korean side is a question")
    return None


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _LATIN_WORD.findall(text)]


def _korean_values(text: str) -> set[str]:
    """Return the significant digits of the numbers of a text with their units: `13억` is 1.3 billion."""
    values = set()
    for number in _KOREAN_NUMBER.findall(text):
        total = section = 0.0
        for digits, small, large in _KOREAN_PART.findall(number):
            section += float(digits.replace(",", "") or 0) * _KOREAN_UNITS[small]
            if large:
                total, section = total + section * _KOREAN_UNITS[large], 0.0
        values.add(_significant(total + section))
    return values


def _english_values(text: str) -> set[str]:
    pattern = rf"({_DIGITS.pattern})(?:[ -]?({'|'.join(_ENGLISH_UNITS)})\b)?"
    return {
        _significant(float(number.replace(",", "")) * 10 ** _ENGLISH_UNITS.get(unit, 0))
        for number, unit in re.findall(pattern, text)
    }


def _significant(value: float) -> str:
    return f"{value:.5e}".split("e")[0].rstrip("0")


def _directions(pair: TranslationPair) -> tuple[tuple[str, bytes, bytes], ...]:
    """Return name, source and target for both directions."""
    korean, english = _digest(pair.korean), _digest(pair.english)
    return ("Korean", b"k" + korean, english), ("English", b"e" + english, korean)


def _digest(text: str) -> bytes:
    return blake2b(fold_text(text).casefold().encode(), digest_size=12).digest()
