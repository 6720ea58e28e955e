"""Korean numbers of digits and units, such as `3만 5천`, in plain digits."""

import re
from fractions import Fraction

_SMALL = {"": 1, "십": 10, "백": 100, "천": 1000}
_LARGE = {"": 1, "만": 10**4, "억": 10**8, "조": 10**12}
# Words that begin with a unit: 조각 (piece), 조끼 (vest), 만큼 (as much as), 만에 (within).
_UNIT = r"(?:[십백천]?(?:만(?!큼|약|에|든)|억|조(?!각|끼|림))|[십백천])"
_DIGITS = r"[0-9][0-9,]{0,20}(?:\.[0-9]{1,10})?"
# Digits after the last unit belong to the number if they touch it, or are too many for a number of their own.
_TAIL = r"(?:[0-9]{1,4}|[ ][0-9]{3,4})(?![0-9.,:/])"
_NUMBER = re.compile(rf"(?<![0-9.,]){_DIGITS}{_UNIT}(?:[ ]?{_DIGITS}{_UNIT}){{0,7}}(?:{_TAIL})?(?![0-9])")
_PART = re.compile(rf"({_DIGITS})([십백천]?)([만억조]?)")


def write_in_digits(text: str) -> str:
    """Return the text with Korean numbers in plain digits; one whose units do not fall is left as it is."""
    return _NUMBER.sub(_to_digits, text)


def _to_digits(match: re.Match[str]) -> str:
    total = section = Fraction(0)
    # Units fall within the whole number, and small ones within each section before a large one.
    last_large, last_small = 10**16, 10**4
    for digits, small, large in _PART.findall(match.group()):
        size = Fraction(digits.replace(",", ""))
        if _SMALL[small] >= last_small or (section and size * _SMALL[small] >= last_small):
            return match.group()
        section += size * _SMALL[small]
        last_small = _SMALL[small]
        if large:
            if _LARGE[large] >= last_large:
                return match.group()
            total, section = total + section * _LARGE[large], Fraction(0)
            last_large, last_small = _LARGE[large], 10**4
    total += section
    if total.denominator != 1 or section >= last_large:
        return match.group()
    return str(total.numerator)
