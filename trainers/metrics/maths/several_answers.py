"""Ranges, lists and alternatives, which are not one answer: `5 to 10`, `5 apples, 6 pears`, `A: 3 B: 4`."""

import re

MAX_LINE = 400

_NUMERAL = r"-?[0-9]++(?:[.,][0-9]++)*+"
_JOINING = r"(?:and|or|to|through|versus|vs)\b"
_WORD = rf"(?!{_JOINING})[^\W\d_]{{1,20}}+"
_UNITS = rf"(?:[ ]?{_WORD}(?:[ ]{_WORD}){{0,2}})?"
_KOREAN_JOINING = r"(?:또는|혹은|에서|부터)"
_SEPARATOR = (
    rf"(?:(?:[ ]?,[ ]|[ ]?[;&][ ]?)(?:{_JOINING}[ ])?|[ ]{_JOINING}\.?[ ]"
    rf"|[ ]?{_KOREAN_JOINING}[ ]|(?<=[와과])[ ])"
)
# To the end of the line: `18, 3 of which are red` is 18.
_LIST = re.compile(rf"(?:{_UNITS}{_SEPARATOR}{_NUMERAL}%?{_UNITS}){{1,8}}[^\w]{{0,20}}$")
_LABELLED = re.compile(rf"{_UNITS}[ ,;]{{1,3}}\(?[A-Za-z]\)?[ ]?[:=)][ ]?{_NUMERAL}")
_END = r"[^\w]{0,20}$"
_RANGE = re.compile(rf"([0-9]+(?:\.[0-9]+)?)[kKM%]?[ ]?-[ ]?([0-9]+(?:\.[0-9]+)?)%?{_UNITS}{_END}")
_ALTERNATIVES = re.compile(
    rf"(?i:between|either)[ ]{_NUMERAL}%?{_UNITS}[ ](?:and|or)[ ]{_NUMERAL}%?{_UNITS}{_END}"
)


def has_more_answers(line: str, end: int) -> bool:
    """Return whether the rest of a normalized line, after a number, contains another answer."""
    rest = line[end : end + MAX_LINE]
    return bool(_LIST.match(rest) or _LABELLED.match(rest))


def is_range(line: str, start: int) -> bool:
    """Return whether `between 5 and 10`, or a rising range such as `5-10`, fills a line from `start`."""
    rest = line[start : start + MAX_LINE]
    match = _RANGE.match(rest)
    return _ALTERNATIVES.match(rest) is not None or (match is not None and float(match[1]) < float(match[2]))
