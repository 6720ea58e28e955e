"""Source, response and reference of each row, as every metric of translations reads them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from trainers.configs.metrics.translation import TranslationMetric
from trainers.data.recipes.translation import extract_source
from trainers.metrics.metric import EvaluatedRow
from trainers.metrics.translation import cleaning
from trainers.metrics.translation.cleaning import Cleaning, clean_response

# An endless response costs a second of CPU and 100 MB of n-grams for each million characters.
MAX_CHARACTERS: Final = 100_000
# Of each kind of cleaning in the details.
MAX_NAMED_ROWS: Final = 100

_LINE_BREAKS: Final = re.compile(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+")
# A tokenizer in C ends a text at NUL; a lone surrogate cannot be encoded.
_UNUSABLE: Final = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True)
class TranslationText:
    """The texts of a row, each on one line."""

    row: int
    source: str
    response: str
    reference: str
    cleanings: tuple[Cleaning, ...]
    is_cut: bool
    """Whether the response was longer than MAX_CHARACTERS."""


def check_texts(row: EvaluatedRow, config: TranslationMetric) -> str | None:
    """Return why the row cannot be scored, or None."""
    if not row.reference.strip():
        return "has no reference translation"
    if config.source_field is not None and not isinstance(row.fields.get(config.source_field), str):
        return f"has no text in the field {config.source_field!r}, which the metric's `source_field` names"
    return None


def read_texts(rows: Sequence[EvaluatedRow], config: TranslationMetric) -> list[TranslationText]:
    """Return the texts of the rows; a row without a response has an empty one."""
    return [_read_text(row, config) for row in rows]


def describe_cleaning(texts: Sequence[TranslationText]) -> dict[str, Any]:
    """Return the details of a score: for each kind of cleaning its count and its first rows."""
    found: dict[str, Any] = {}
    for kind in Cleaning:
        rows = [text.row for text in texts if kind in text.cleanings]
        if rows:
            found[kind.value] = {"count": len(rows), "rows": rows[:MAX_NAMED_ROWS]}
    cut = [text.row for text in texts if text.is_cut]
    return {"cleaned": found, **({"cut_responses": cut[:MAX_NAMED_ROWS]} if cut else {})}


def sign(signature: str, config: TranslationMetric) -> str:
    """Return a signature with the version of the cleaning, or unchanged without cleaning."""
    return f"{signature}|cleaning:{cleaning.VERSION}" if config.clean else signature


def as_line(text: str) -> str:
    """Return a text on one line, as sacreBLEU's command reads it from a file."""
    return _UNUSABLE.sub("\N{REPLACEMENT CHARACTER}", _LINE_BREAKS.sub(" ", text.strip()))


def _read_text(row: EvaluatedRow, config: TranslationMetric) -> TranslationText:
    if config.source_field is None:
        source = extract_source(row.source) or row.source
    else:
        source = str(row.fields[config.source_field])
    response = row.response[:MAX_CHARACTERS]
    cleaned = clean_response(response, source) if config.clean else None
    return TranslationText(
        row=row.row,
        source=as_line(source),
        response=as_line(response if cleaned is None else cleaned.text),
        reference=as_line(row.reference),
        cleanings=() if cleaned is None else cleaned.cleanings,
        is_cut=len(row.response) > MAX_CHARACTERS,
    )
