r"""Parser of a number in a text as an exact fraction: plain, mixed, percent, scientific, LaTeX, time of day.

Text comes from models, so nothing is evaluated, and every pattern takes linear time. A number of more than
400 characters or with an exponent above 400 is not parsed. A comma is a decimal separator only where the
number is unambiguous: `1.234,56` and `1.234.567` have dots as group separators, but `1.234` is a decimal and
`1,5` is two numbers.
"""

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from trainers.metrics.maths.korean_numbers import write_in_digits

MAX_LENGTH = 400
MAX_EXPONENT = 400

_PLAIN = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]++)(?:\.[0-9]++)?|(?<![0-9])\.[0-9]++"
_BY_DOTS = (
    r"[1-9][0-9]{0,2}(?:(?:\.[0-9]{3}){1,8}+,[0-9]{1,2}|(?:\.[0-9]{3}){2,8}+)(?![0-9]|[.,][0-9])"  # 1.234,56
)
# A minus after an operand is a subtraction, not a sign.
NUMBER = re.compile(
    rf"""
    (?P<sign>(?<![\w)\].])-)?
    (?:
      (?P<clock>(?<![0-9:.,])[0-9]{{1,2}}(?::[0-5][0-9]){{1,2}}(?![0-9:]))
      (?:[ ]?(?P<half>[aApP])\.?[mM]\b)?
    |
      (?:(?P<by_dots>{_BY_DOTS})|(?P<plain>{_PLAIN}))
      (?:
        [ ]{{1,3}}(?P<top>[0-9]++)/(?P<bottom>[0-9]++)(?![.,/][0-9])
      | [ ]?/[ ]?(?P<over>{_PLAIN})
      | [ ]?[×*x·][ ]?10[ ]?\^[ ]?[{{(]?(?P<ten>[+-]?[0-9]{{1,3}})(?![0-9])[}})]?
      | [ ]?\^[ ]?[{{(]?(?P<power>-?[0-9]{{1,3}})(?![0-9]|\.[0-9])[}})]?
      | [eE](?P<exponent>[+-]?[0-9]++)(?![A-Za-z])
      )?
      (?:(?P<percent>[ ]?(?:%|(?i:percent|per[ ]cent)\b|퍼센트))
      | [ ](?P<scale>(?i:hundred|thousand|million|billion|trillion))\b
      # 25k, 2.5M; before an operator it is a variable.
      | (?P<short>[kKM])(?![A-Za-z0-9]|[ ]?[-+*/^=×÷]))?
    )
    """,
    re.VERBOSE,
)
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALES |= {"k": 10**3, "m": 10**6}

# Symbols that make an adjacent number part of a formula: a root, π, an unparsed power or fraction, a
# variable.
_SYMBOL_BEFORE = re.compile(r"(?:√(?:\[[0-9]\])?[ ]?[{(]?|π[ ]?[/*][ ]?|\^[ ]?[{(]?-?|\}[ ]?\{)$")
_SYMBOL_AFTER = re.compile(r"[ ]?[)}]?[ ]?(?:[·×*/][ ]?)?(?:√|π)|[ ]?\^|[xyzn](?![A-Za-z])|\}[ ]?\{")

_VULGAR = {c: Fraction(unicodedata.numeric(c)).limit_denominator(10) for c in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒"}
_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("$€£¥₩￦\\", None),
        **dict.fromkeys("−–－﹣‐‑", "-"),
        **dict.fromkeys("\N{NO-BREAK SPACE}\N{THIN SPACE}\N{NARROW NO-BREAK SPACE}~\t", " "),
        **{chr(ord("０") + n): str(n) for n in range(10)},
        "⋅": "·",
        "∙": "·",
        "％": "%",
    }
)
_LENGTHS = "[cdkm]?m|in|ft|yd|mi|s|units?|feet|inches|met(?:er|re)s?"
_COMMANDS = (
    (re.compile(r"\\[$!]|\\(?:left|right)(?![A-Za-z])"), ""),
    (re.compile(r"\\(?:,|;|:|thinspace(?![A-Za-z]))"), "\N{THIN SPACE}"),
    (re.compile(r"\\[ ]|\\quad(?![A-Za-z])"), " "),
    (re.compile(r"\{,\}"), ","),
    # Between numbers a tilde is a range; elsewhere it is a space of LaTeX.
    (re.compile(r"(?<=[0-9])[ ]?[~〜～][ ]?(?=[0-9])"), " to "),
    (re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)[ ]?\{([^{}]{0,100})\}"), r"\1"),
    (re.compile(r"\\(?:times|cdot)(?![A-Za-z])"), "×"),
    (re.compile(r"\\div(?![A-Za-z])"), "÷"),
    (re.compile(r"\\sqrt(?![A-Za-z])"), "√"),
    (re.compile(r"\\pi(?![A-Za-z])"), "π"),
    (re.compile(r"\^[ ]?\{?[ ]?\\circ(?![A-Za-z])[ ]?\}?"), ""),
    # The power of a unit is not a number of its own: `50 cm^2`.
    (re.compile(rf"(?<![A-Za-z])({_LENGTHS})[ ]?\^[ ]?\{{?[23]\}}?"), r"\1"),
    (re.compile("(?<=[0-9])[\N{THIN SPACE}\N{NARROW NO-BREAK SPACE}](?=[0-9]{3}(?![0-9]))"), ","),
)
_NUMERAL = r"[0-9][0-9.,]{0,60}"
_FRACTION = re.compile(
    rf"\\[dtc]?frac[ ]?(?:\{{[ ]?(?P<sign>-?)(?P<top>{_NUMERAL})[ ]?\}}|(?P<digit>[0-9]))"
    rf"[ ]?(?:\{{[ ]?(?P<bottom>{_NUMERAL})[ ]?\}}|(?P<under>[0-9]))"
    rf"|(?P<vulgar>[{''.join(_VULGAR)}])"
)


@dataclass(frozen=True)
class Number:
    """An exact value and its notation: in percent, or a time of day in hours, with its half of the day."""

    value: Fraction
    text: str
    percent: bool = False
    clock: bool = False
    half: str = ""


def normalize_text(text: str) -> str:
    """Return text without currency signs, with one notation of LaTeX, minus signs, digits and separators."""
    for pattern, replacement in _COMMANDS:
        text = pattern.sub(replacement, text)
    return write_in_digits(_FRACTION.sub(_format_fraction, text).translate(_CHARACTERS))


def parse_number(match: re.Match[str]) -> Number | None:
    """Return the value of a match of NUMBER; None if too large, divided by zero or part of a formula."""
    text = match.group()
    if len(text) > MAX_LENGTH or _is_part_of_formula(match):
        return None
    size = _hours(match["clock"]) if match["clock"] else _size(match)
    if size is None:
        return None
    return Number(
        value=-size if match["sign"] else size,
        text=text.strip(),
        percent=bool(match["percent"]),
        clock=bool(match["clock"]),
        half=(match["half"] or "").lower(),
    )


def is_same_number(
    answer: Number, reference: Number, absolute: Fraction = Fraction(0), relative: Fraction = Fraction(0)
) -> bool:
    """Return whether two numbers differ by at most `absolute`, or at most `relative` times the reference.

    If only one of them has a percent sign, the notation of the reference decides. `50` and `0.5` both equal a
    reference of `50%`. A reference below 1 that is not an integer, such as `0.5`, is a share and equals
    `50%`; any other reference, such as `50`, is in percent without the sign and also equals `50%`.
    """
    if answer.clock != reference.clock or (answer.half and reference.half and answer.half != reference.half):
        return False
    margin = max(absolute, relative * abs(reference.value))
    return any(abs(value - reference.value) <= margin for value in _possible_values(answer, reference))


def _possible_values(answer: Number, reference: Number) -> list[Fraction]:
    if answer.percent == reference.percent:
        return [answer.value]
    if reference.percent:
        return [answer.value, answer.value * 100]
    is_share = abs(reference.value) < 1 and reference.value.denominator != 1
    return [answer.value / 100] if is_share else [answer.value]


def _format_fraction(match: re.Match[str]) -> str:
    if match["vulgar"]:
        fraction = str(_VULGAR[match["vulgar"]])
    else:
        fraction = (
            f"{match['sign'] or ''}{match['top'] or match['digit']}/{match['bottom'] or match['under']}"
        )
    before = match.string[max(0, match.start() - 1) : match.start()]
    return f" {fraction}" if before.isdigit() else fraction


def _is_part_of_formula(match: re.Match[str]) -> bool:
    start, end = match.span()
    before = match.string[max(0, start - 8) : start]
    return bool(_SYMBOL_BEFORE.search(before) or _SYMBOL_AFTER.match(match.string, end))


def _hours(clock: str) -> Fraction:
    parts = [int(part) for part in clock.split(":")]
    return sum((Fraction(part, 60**place) for place, part in enumerate(parts)), Fraction(0))


def _size(match: re.Match[str]) -> Fraction | None:
    first = match["plain"] or match["by_dots"].replace(".", "").replace(",", ".")
    size = _apply_suffix(match, _decimal(first), len(first))
    scale = match["scale"] or match["short"] or ""
    return None if size is None else size * _SCALES.get(scale.lower(), 1)


def _apply_suffix(match: re.Match[str], first: Fraction, digits: int) -> Fraction | None:
    if match["bottom"]:
        top, bottom = int(match["top"]), int(match["bottom"])
        # Only a proper fraction forms a mixed number; `2 7/3` is two numbers.
        return first + Fraction(top, bottom) if top < bottom and first.denominator == 1 else None
    if match["over"]:
        below = _decimal(match["over"])
        return first / below if below else None
    if match["power"]:
        return _power(first, int(match["power"]), digits)
    exponent = match["ten"] or match["exponent"]
    return _scale_by_ten(first, exponent) if exponent else first


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


def _power(base: Fraction, exponent: int, digits: int) -> Fraction | None:
    if abs(exponent) * digits > MAX_LENGTH or (base == 0 and exponent <= 0):
        return None
    return base**exponent


def _scale_by_ten(size: Fraction, exponent: str) -> Fraction | None:
    if len(exponent) > len(str(MAX_EXPONENT)) + 1 or abs(int(exponent)) > MAX_EXPONENT:
        return None
    return size * Fraction(10) ** int(exponent)
