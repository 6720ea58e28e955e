"""Findings in single messages: what programs left in them, and characters that were damaged."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from trainers.data.texts.damage import find_entity, find_mojibake
from trainers.data.texts.leftovers import (
    find_escaped_line_break,
    find_missing_value,
    find_placeholder,
    find_template_mark,
)
from trainers.preflight.findings import (
    Finding,
    FindingCode,
    FindingLevel,
    PlaceCounter,
    new_finding,
)
from trainers.rendering.render import PromptCompletion

# Characters of a text before the place that an example shows.
EXAMPLE_LEAD = 30


_OTHER_MARKS = (
    "contain marks of another model's chat template, which this model reads and writes as text",
    "Remove the marks, or use `messages`, which the template of this model renders.",
)


@dataclass(frozen=True)
class TextFault:
    """A fault of a message: how it is found, and from which share of the rows it is reported or an error."""

    code: FindingCode
    find: Callable[[str], int | None]
    what: str
    hint: str
    min_rows: int = 1
    min_share: float = 0.0
    error_share: float = 1.1


TEXT_FAULTS = (
    TextFault(
        FindingCode.missing_values,
        find_missing_value,
        "have a message that is only the name of a missing value, such as `nan`, `null` or `N/A`",
        "Drop these rows, or correct the program that wrote them. If the word is a label, it may stay.",
        error_share=0.5,
    ),
    TextFault(
        FindingCode.unfilled_placeholders,
        find_placeholder,
        "contain a placeholder that was not filled, such as `{text}` or `[Your Name]`",
        "Fill in the values, or drop these rows: the model would write the placeholder.",
    ),
    TextFault(
        FindingCode.wrong_encoding,
        find_mojibake,
        "contain characters that were decoded with the wrong encoding, such as `â€™`, `¡¯` or `\ufffd`",
        "Read the source as UTF-8, or as CP949 if it is an older Korean file, and write the rows again.",
        error_share=0.5,
    ),
    TextFault(
        FindingCode.html_entities,
        find_entity,
        "contain entities of HTML, such as `&amp;` or `&#39;`",
        "Decode them once (`html.unescape` in Python); the recipe `translation` of `prepare` does so.",
    ),
    TextFault(
        FindingCode.escaped_line_breaks,
        find_escaped_line_break,
        r"contain the two characters `\n` where a line break was meant",
        "Decode the JSON once more, or replace the two characters by a line break.",
        # One row may be about the characters themselves.
        min_rows=3,
        min_share=0.05,
    ),
)


class MessageCheck:
    """Counts the rows of which a message has a fault, for each kind of fault.

    `special_tokens` of the model itself are another finding.
    """

    def __init__(self, special_tokens: Collection[str]) -> None:
        self._rows = 0
        find_other_mark = partial(find_template_mark, known=frozenset(special_tokens))
        self._faults = [
            *TEXT_FAULTS,
            TextFault(FindingCode.other_template_marks, find_other_mark, *_OTHER_MARKS),
        ]
        self._places = [PlaceCounter() for _ in self._faults]

    def add(self, pairs: Sequence[PromptCompletion]) -> None:
        """Check the next row."""
        self._rows += 1
        texts = _message_texts(pairs)
        for fault, places in zip(self._faults, self._places, strict=True):
            for text in texts:
                start = fault.find(text)
                if start is not None:
                    places.add(pairs[-1].row, text[max(0, start - EXAMPLE_LEAD) : start + 200])
                    break

    def findings(self) -> Iterator[Finding]:
        """Yield a finding for each fault that enough rows have."""
        for fault, places in zip(self._faults, self._places, strict=True):
            if places.count and places.count >= max(fault.min_rows, fault.min_share * self._rows):
                is_error = places.count > fault.error_share * self._rows
                yield new_finding(
                    fault.code,
                    FindingLevel.error if is_error else FindingLevel.warning,
                    f"{places.count} of {self._rows} rows {fault.what}.",
                    fault.hint,
                    places=places.first,
                    count=places.count,
                    rows=self._rows,
                )


def _message_texts(pairs: Sequence[PromptCompletion]) -> list[str]:
    """Return the text of each message once; results of tools are data, in which anything may occur."""
    messages = [*pairs[-1].prompt, *(message for pair in pairs for message in pair.completion)]
    distinct = {id(message): message for message in messages}.values()
    return [message["content"] for message in distinct if message["role"] != "tool"]
