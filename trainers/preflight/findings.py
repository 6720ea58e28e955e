"""What preflight can find: the published list of codes, and one finding."""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, Field

MAX_EXAMPLES = 5
SHOWN_CHARACTERS = 120

FindingPlace = tuple[int | None, str]
"""A line of the dataset, from 1, and what stands there."""


class FindingCode(StrEnum):
    """Kinds of findings; what each means stands beside it."""

    # The rows as they are written.
    dataset_unusable = "dataset_unusable"  # A row that cannot be read, or that the template refuses.
    rows_invalid = "rows_invalid"  # Faults that the upload of a dataset would refuse.
    roles_out_of_order = "roles_out_of_order"  # Turns that no chat brings forth.
    completion_empty = "completion_empty"  # The model would learn to say nothing.
    completion_repeated = "completion_repeated"  # One long answer fills a large share of the rows.
    chosen_equals_rejected = "chosen_equals_rejected"  # A pair without a preference.
    special_tokens_in_text = "special_tokens_in_text"  # Text that already went through a chat template.
    duplicates = "duplicates"  # Rows that say the same.
    near_duplicates = "near_duplicates"  # Rows that say almost the same.
    test_rows_in_training = "test_rows_in_training"  # A later score would tell what the model remembers.
    test_rows_nearly_in_training = "test_rows_nearly_in_training"  # The same, almost.
    # What tokenizer and template make of them.
    end_of_turn_not_trained = "end_of_turn_not_trained"  # The model would learn to answer, not to stop.
    labels_all_masked = "labels_all_masked"  # The row has no token to learn from.
    rows_truncated = "rows_truncated"  # The end of the answer, and of the turn, is cut off.
    double_bos = "double_bos"  # A row begins twice; the model has never seen that.
    template_not_prefix_preserving = "template_not_prefix_preserving"  # Prompts look otherwise in training.
    # What the model and its settings make of them.
    vocabulary_mismatch = "vocabulary_mismatch"  # Tokens that the model has no embedding for.
    length_beyond_model = "length_beyond_model"  # Positions that the model has never seen.
    learning_rate_unusual = "learning_rate_unusual"  # Far from what such a model bears.
    reference_without_answer = "reference_without_answer"  # No answer could ever be right.
    reward_constant = "reward_constant"  # Nothing to tell a better answer by.


class FindingLevel(StrEnum):
    """Whether a run would be wasted, or may be."""

    error = "error"
    warning = "warning"


class Sample(BaseModel):
    """A place where a finding was made."""

    line: int | None = Field(None, description="Line of the dataset, from 1.")
    text: str


class Finding(BaseModel):
    """Something that would waste a run, with how often, where, and what to do."""

    code: FindingCode
    level: FindingLevel
    message: str
    count: int = Field(description="Rows or answers concerned, or 1 for what concerns the run as a whole.")
    share: float | None = Field(None, description="Of all rows or answers.")
    examples: list[Sample] = []
    hint: str


def new_finding(
    code: FindingCode,
    level: FindingLevel,
    message: str,
    hint: str,
    *,
    places: Sequence[FindingPlace] = (),
    count: int = 1,
    rows: int | None = None,
) -> Finding:
    """A finding of `count` among `rows` rows; the first places are shown."""
    return Finding(
        code=code,
        level=level,
        message=message,
        count=count,
        share=count / rows if rows else None,
        examples=[Sample(line=line, text=_short(text)) for line, text in places[:MAX_EXAMPLES]],
        hint=hint,
    )


def findings_to_json(found: Iterable[Finding]) -> list[dict[str, Any]]:
    """Findings for a page."""
    return [told.model_dump(mode="json") for told in found]


def _short(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= SHOWN_CHARACTERS else plain[: SHOWN_CHARACTERS - 1] + "…"
