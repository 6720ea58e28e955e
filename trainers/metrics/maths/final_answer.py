r"""The final answer of a solution, and its comparison with a reference.

The final answer is the first of these that exists: the number in the last `<answer>`, after `####` (in the
first such line, because a base model may continue with another problem), in the last `\boxed{}`, after the
last "the answer is" (or the field `answer` of JSON), the last number. A `####` without a number and a box
without exactly one plain number mean that there is no answer, even if the text contains other numbers. So do
ranges, lists and alternatives in any of these places.

Hostile text takes no longer than long text: marks are found by substring search, and only short parts of the
text are parsed. "The answer is" and the last number are searched in the last 4,000 characters only.
"""

import re
from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice

from trainers.configs.rewards import AnswerForm
from trainers.metrics.maths.numbers import NUMBER, Number, is_same_number, normalize_text, parse_number
from trainers.metrics.maths.several_answers import MAX_LINE, has_more_answers, is_range

BOX = r"\boxed{"
MARK = "####"
TAG, TAG_END = "<answer>", "</answer>"
WINDOW = 4_000
MAX_FIELD = 1_000
MAX_MARKS = 64

_MARKED_LINE = re.compile(rf"{MARK}(?!#)([^\n]{{0,200}})")
CUE = re.compile(
    r"(?i:(?<![A-Za-z])answer[*_\"']{0,3}[ ]{0,3}(?:is|was|equals|would be|will be|:|=))"
    r"|정답은|정답[ ]?:|답은|(?<!\w)답[ ]?:"
)
# Words and signs between "the answer is" or a mark and the number.
_LEAD = re.compile(
    r"(?:[\s:=≈*_(\[{`\"']|(?i:\b(?:the|final|answer|is|thus|therefore|so|simply|just|exactly|equal to|"
    r"approximately|about|around|roughly|US|USD|약)(?![A-Za-z])))*+"
)
_OPERATION = re.compile(r"[ ]?[A-Za-z]?[ ]?[-+*/×÷·:][ ]?\(?-?[0-9.]")
_SEVERAL = re.compile(r"[ ]{0,3}(?:,[ ]|(?:and|or)[ ]|;)[ ]{0,3}-?[0-9]")
# Values of the field `answer` that mean that there is none.
_NOTHING = re.compile(r"[\s\"']*(?:null|None|N/A)\b")
# The label of an answer at the start of a line, such as `A:` or `(b)`.
_LABEL = re.compile(r"\(?[A-Za-z](?:\)|\)?[ ]?[:=.])[ ]?")
_COLLECTION = re.compile(r"[(\[{][^,;]*+[,;]|[^,;]*+[,;][ ]?[A-Za-z][ ]?=")
_SHORT_HEAD = re.compile(r"(?:[^A-Za-z]|[A-Za-z](?![A-Za-z]))*+")


@dataclass(frozen=True)
class FoundAnswer:
    """The final answer of a text and where it was found; or None and why there is none, as a clause."""

    number: Number | None
    reason: str


@dataclass(frozen=True)
class Judgement:
    """The result of comparing an answer with the reference: both numbers, and the reason as a sentence."""

    correct: bool
    answer: Number | None
    reference: Number | None
    reason: str


def judge_answer(
    prediction: str, reference: str, absolute: Fraction = Fraction(0), relative: Fraction = Fraction(0)
) -> Judgement:
    """Compare the final answers of two texts, exactly or within a tolerance, for evaluation and rewards.

    A text without a final answer is never correct.
    """
    answer, expected = find_answer(prediction), find_answer(reference)
    if expected.number is None:
        reason = f"The reference has no final answer: {expected.reason}."
        return Judgement(False, answer.number, None, reason)
    if answer.number is None:
        return Judgement(
            False, None, expected.number, f"The completion has no final answer: {answer.reason}."
        )
    correct = is_same_number(answer.number, expected.number, absolute, relative)
    verb = "equals" if correct else "differs from"
    reason = (
        f"The answer {_shorten(answer.number)} ({answer.reason}) {verb} the reference "
        f"{_shorten(expected.number)}."
    )
    return Judgement(correct, answer.number, expected.number, reason)


def exact_match(prediction: str, reference: str) -> bool:
    """Return whether both texts have the same final answer; a text without one never matches."""
    return judge_answer(prediction, reference).correct


def final_answer(text: str) -> Fraction | None:
    """Return the final answer of a text as an exact number, a time of day in hours, or None."""
    number = find_answer(text).number
    return None if number is None else number.value


def find_answer(text: str) -> FoundAnswer:
    """Return the final answer of a text and where it was found, or why there is none."""
    start = text.rfind(TAG)
    if start >= 0:
        return _find_in_tag(text[start + len(TAG) :][:MAX_FIELD].partition(TAG_END)[0])
    marked = _after_mark(text)
    if marked is not None:
        return marked
    boxed = last_box(text)
    if boxed is not None:
        return parse_box(boxed[0])
    tail = normalize_text(text[-WINDOW:])
    return _after_cue(tail) or _last_number(tail)


def find_formed_answer(text: str, form: AnswerForm | None) -> FoundAnswer:
    r"""Return the answer after `####` or in the last `\boxed{}`, one of them if `form` names it."""
    found = None
    if form is not AnswerForm.boxed:
        found = _after_mark(text)
    if found is None and form is not AnswerForm.hashes and (box := last_box(text)) is not None:
        found = parse_box(box[0]) if box[1] is not None else FoundAnswer(None, "the box is not closed")
    return found or FoundAnswer(None, "it has none in the required form")


def last_box(text: str) -> tuple[str, int | None] | None:
    r"""Return the content of the last `\boxed{}` and the position after its closing brace.

    Braces may be nested. If the box is not closed within 1,000 characters, the content is those characters
    and the position is None.
    """
    start = text.rfind(BOX)
    if start < 0:
        return None
    start += len(BOX)
    content = text[start : start + MAX_FIELD]
    depth = 1
    for position, character in enumerate(content):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return content[:position], start + position + 1
    return content, None


def parse_box(content: str) -> FoundAnswer:
    """Return the single plain number in the content of a box; a pair, an interval or a formula is not one."""
    plain = normalize_text(content).strip()
    if _COLLECTION.match(plain):
        return FoundAnswer(None, "the box contains several values")
    match = _search_sides(plain)
    if match is None:
        return FoundAnswer(None, "the box contains no plain number")
    if _SEVERAL.match(match.string, match.end()) or has_more_answers(match.string, match.end()):
        return FoundAnswer(None, "the box contains several values")
    return _make_answer(match, "in a box")


def parse_line(line: str) -> re.Match[str] | None:
    """Match the number at the start of a line, after words such as "about" or a left side such as `x =`."""
    plain = normalize_text(line)
    for side in _sides(plain):
        match = NUMBER.match(side, _lead_end(side))
        if match and not _OPERATION.match(side, match.end()):
            return match
    return None


def _find_in_tag(content: str) -> FoundAnswer:
    found = _after_mark(content)
    if found is None and (box := last_box(content)) is not None:
        found = parse_box(box[0])
    if found is None:
        plain = normalize_text(content)
        found = _after_cue(plain) or _read_line(plain.strip(), "in <answer>") or _last_number(plain)
    return found


def _after_mark(text: str) -> FoundAnswer | None:
    # None if the marks are only Markdown headings.
    lines = [match[1] for match in islice(_MARKED_LINE.finditer(text), MAX_MARKS)]
    for line in lines:
        if found := _read_line(line, f"after {MARK}"):
            return found
    if any(not line.strip() for line in lines):
        return FoundAnswer(None, f"nothing follows {MARK}")
    return None


def _after_cue(tail: str) -> FoundAnswer | None:
    cues = list(CUE.finditer(tail))
    if not cues:
        return None
    line = tail[cues[-1].end() :].lstrip()[:200].split("\n", 1)[0]
    if _NOTHING.match(line):
        return FoundAnswer(None, "the answer is given as missing")
    return _read_line(line, 'after "the answer is"')


def _read_line(line: str, where: str) -> FoundAnswer | None:
    """Return the answer with which a line starts, or that it has several; None if it starts with none."""
    plain = normalize_text(line)
    match = parse_line(line)
    if (match and has_more_answers(match.string, match.end())) or is_range(plain, _lead_end(plain)):
        return FoundAnswer(None, f"there are several numbers {where}")
    return _make_answer(match, where) if match else None


def _last_number(tail: str) -> FoundAnswer:
    last = deque(NUMBER.finditer(tail), maxlen=1)
    if not last:
        return FoundAnswer(None, "it contains no number")
    if _is_list(tail, last[0]):
        return FoundAnswer(None, "its last line has several numbers")
    return _make_answer(last[0], "the last number")


def _is_list(tail: str, last: re.Match[str]) -> bool:
    """Return whether the whole line of the last number is a range, a list or alternatives."""
    line = tail[tail.rfind("\n", 0, last.start()) + 1 :].partition("\n")[0]
    if len(line) > MAX_LINE:
        return False
    label = _LABEL.match(line)
    start = _lead_end(line, label.end() if label else 0)
    first = NUMBER.match(line, start)
    return is_range(line, start) or (first is not None and has_more_answers(line, first.end()))


def _search_sides(plain: str) -> re.Match[str] | None:
    for side in _sides(plain):
        match = NUMBER.search(side)
        if match and not _OPERATION.match(side, match.end()):
            return match
    return None


def _sides(plain: str) -> list[str]:
    # The sides of an equation from the last one, so that `x = 3 + 4 = 7` is 7; a sentence is a single side.
    head, equals, _ = plain.rpartition("=")
    if not equals or not _SHORT_HEAD.fullmatch(head):
        return [plain]
    return plain.split("=")[:-9:-1]


def _lead_end(side: str, start: int = 0) -> int:
    match = _LEAD.match(side, start)
    return match.end() if match else start


def _make_answer(match: re.Match[str], where: str) -> FoundAnswer:
    number = parse_number(match)
    if number is None:
        return FoundAnswer(None, f"the number {where} is part of a formula, too large, or divided by zero")
    return FoundAnswer(number, where)


def _shorten(number: Number) -> str:
    return number.text if len(number.text) <= 40 else f"{number.text[:40]}…"
