r"""Check that a final answer occurs once, in the required form, with at most a unit after it."""

import re
from itertools import islice

from trainers.configs.rewards import AnswerForm
from trainers.metrics.maths.final_answer import BOX, CUE, MARK, last_box, parse_box, parse_line

_UNIT = re.compile(r"[^0-9\n]{0,24}\s*")
_CLOSING = re.compile(r"[\s.。*$)\]\\]{0,20}")
_MAX_LINE = 200
_MAX_TEXT = 65_536


def find_form_fault(text: str, form: AnswerForm) -> str:
    """Return what is wrong with the form of the final answer, as a sentence; empty if nothing is."""
    if form is AnswerForm.hashes:
        return _hashes_fault(text)
    return _boxed_fault(text) if form is AnswerForm.boxed else _sentence_fault(text)


def _hashes_fault(text: str) -> str:
    count = text.count(MARK)
    if count != 1:
        return f"The completion contains {MARK} {count} times instead of once."
    before, _, line = text.rpartition(MARK)
    if before and not before.endswith("\n"):
        return f"{MARK} is not at the start of a line."
    return _end_fault(line, MARK)


def _boxed_fault(text: str) -> str:
    count = text.count(BOX)
    box = last_box(text)
    if count != 1 or box is None:
        return f"The completion contains {count} boxes instead of one."
    content, end = box
    if end is None:
        return "The box is not closed."
    if parse_box(content).number is None:
        return "The box contains no plain number."
    return "" if _CLOSING.fullmatch(text, end) else "More text follows the box."


def _sentence_fault(text: str) -> str:
    text = text[-_MAX_TEXT:]
    cues = list(islice(CUE.finditer(text), 2))
    if len(cues) != 1:
        return f'The completion contains "the answer is" {"more than once" if cues else "nowhere"}.'
    return _end_fault(text[cues[0].end() :], '"the answer is"')


def _end_fault(line: str, after: str) -> str:
    line = line.rstrip()
    match = parse_line(line[:_MAX_LINE])
    if match is None:
        return f"No plain number follows {after}."
    if len(line) > _MAX_LINE or not _UNIT.fullmatch(match.string, match.end()):
        return "More text follows the answer."
    return ""
