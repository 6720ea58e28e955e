r"""Whether a worked answer ends in the right number.

The final answer is the number after `####`, as GSM8K writes it, else the content of the last `\boxed{}`, else
the last number of the text.
"""

import re
from decimal import Decimal

# Thousands are grouped by commas; a minus after something that it can subtract from is no sign.
NUMBER = re.compile(r"(?:(?<![\w)\].])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+")
MARK = "####"
BOX = r"\boxed{"
UNITS = str.maketrans({**dict.fromkeys("$€£¥₩%", None), "−": "-", "\N{NO-BREAK SPACE}": " "})


def exact_match(prediction: str, reference: str) -> bool:
    """Whether both texts end in the same number; a text without a number matches nothing."""
    predicted = final_answer(prediction)
    return predicted is not None and predicted == final_answer(reference)


def final_answer(text: str) -> Decimal | None:
    """The number that the text gives as its answer, or None; a mark without a number after it gives none."""
    if MARK in text:
        return _first_number(text.split(MARK, 1)[1])
    boxed = _last_boxed(text)
    if boxed is not None:
        return _first_number(boxed)
    numbers = _numbers(text)
    return numbers[-1] if numbers else None


def _first_number(text: str) -> Decimal | None:
    numbers = _numbers(text.strip().split("\n", 1)[0])
    return numbers[0] if numbers else None


def _numbers(text: str) -> list[Decimal]:
    plain = text.replace("\\", "").translate(UNITS)
    return [Decimal(match.group().replace(",", "")) for match in NUMBER.finditer(plain)]


def _last_boxed(text: str) -> str | None:
    """The content of the last box, in which braces may nest; up to the end if a brace is left open."""
    start = text.rfind(BOX)
    if start < 0:
        return None
    content = text[start + len(BOX) :]
    depth = 1
    for i, character in enumerate(content):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return content[:i]
    return content
