"""The numbers of a text by value, so that a translation may write them in another way.

`13억 5천만` is 1.35 billion, `5월` is May, and `2명` may be "two people". Only numbers in digits of the
source count: a word such as "one" is often not a number.
"""

import re
from fractions import Fraction
from typing import Final

from trainers.metrics.maths.numbers import NUMBER, normalize_text, parse_number


def _number(names: str, start: int, step: int = 1) -> dict[str, int]:
    """Return the values of words in ascending order; those of one value are joined by a bar."""
    return {
        word: start + step * position
        for position, words in enumerate(names.split())
        for word in words.split("|")
    }


_UNITS: Final = _number(
    "one|once|single|a|an two|twice|pair three four five six seven eight nine ten eleven twelve|dozen "
    "thirteen fourteen fifteen sixteen seventeen eighteen nineteen",
    start=1,
)
_TENS: Final = _number("twenty thirty forty fifty sixty seventy eighty ninety", start=20, step=10)
_ORDINALS: Final = _number(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth", start=1
)
_MONTHS: Final = _number(
    "jan|january feb|february mar|march apr|april may jun|june jul|july aug|august sep|sept|september "
    "oct|october nov|november dec|december",
    start=1,
)
_WORDS: Final = _UNITS | _TENS | _ORDINALS | _MONTHS
_SCALES: Final = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_WORD: Final = re.compile(r"[a-z]+", re.IGNORECASE)
_CLOCK: Final = re.compile(r"(?<![0-9:])([0-9]{1,2}):([0-9]{2})(?![0-9:])")
_BILLIONS: Final = re.compile(r"(?<=[0-9])[ ]?bn\b", re.IGNORECASE)
_ORDINAL_ENDING: Final = re.compile(r"(?<=[0-9])(?:st|nd|rd|th)\b", re.IGNORECASE)


def find_numbers(text: str) -> frozenset[Fraction]:
    """Return the values of the numbers in digits, without signs; a percentage is its number."""
    text = _ORDINAL_ENDING.sub("", _BILLIONS.sub(" billion", _CLOCK.sub(r"\1 \2", text)))
    parsed = (parse_number(match) for match in NUMBER.finditer(normalize_text(text)))
    return frozenset(abs(number.value) for number in parsed if number is not None)


def find_number_words(text: str) -> frozenset[int]:
    """Return the values of English number words, months and ordinals, each word also on its own."""
    found, value = set[int](), 0
    for word in _WORD.findall(text.lower()):
        if word in _SCALES:
            # 60 digits are more than any number has, and keep a repeated word from growing without bound.
            value = min((value or 1) * _SCALES[word], 10**60)
        elif word in _UNITS and 20 <= value < 100 and value % 10 == 0:
            value += _UNITS[word]
        else:
            value = _WORDS.get(word, 0)
        found.add(value)
    return frozenset(found - {0})


def share_kept(numbers: frozenset[Fraction], translation: str) -> float | None:
    """Return the share of the numbers that a translation has, in digits or words; None without numbers."""
    if not numbers:
        return None
    return len(numbers & (find_numbers(translation) | find_number_words(translation))) / len(numbers)
