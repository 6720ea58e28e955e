"""The published list of preflight's codes, and the schema of a finding."""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, Field

MAX_EXAMPLES = 5
MAX_EXAMPLE_CHARACTERS = 120

FindingPlace = tuple[int | None, str]
"""A line of the dataset, from 1, and its text."""


class FindingCode(StrEnum):
    """Kinds of findings."""

    # The rows.
    dataset_unusable = "dataset_unusable"  # A row cannot be read, or the template cannot render it.
    rows_invalid = "rows_invalid"  # Faults that make the upload of a dataset fail.
    roles_out_of_order = "roles_out_of_order"  # User and assistant do not alternate.
    completion_empty = "completion_empty"  # The model would learn to return nothing.
    completion_repeated = "completion_repeated"  # One completion is a large share of the rows.
    completion_equals_prompt = "completion_equals_prompt"  # The model would learn to echo.
    completion_in_prompt = "completion_in_prompt"  # The prompt gives the answer away.
    prompt_empty = "prompt_empty"  # The user's messages have no visible character.
    prompt_with_unlike_answers = "prompt_with_unlike_answers"  # The prompt does not decide the answer.
    missing_values = "missing_values"  # A message is only `nan`, `null`, `None` or `N/A`.
    unfilled_placeholders = "unfilled_placeholders"  # Such as `{text}` or `[Your Name]`.
    wrong_encoding = "wrong_encoding"  # Characters that were decoded wrongly, such as `â€™`.
    html_entities = "html_entities"  # Such as `&amp;` in text that is not about markup.
    escaped_line_breaks = "escaped_line_breaks"  # The characters `\n` instead of line breaks, in many rows.
    other_template_marks = "other_template_marks"  # Such as `</s>` or `<|eot_id|>` of another model.
    chosen_equals_rejected = "chosen_equals_rejected"  # A pair without a preference.
    labels_of_one_kind = "labels_of_one_kind"  # Nothing shows what to avoid, or what to prefer.
    labels_unbalanced = "labels_unbalanced"  # One label has almost all of the weight.
    special_tokens_in_text = "special_tokens_in_text"  # Text that was already rendered by a template.
    duplicates = "duplicates"  # Rows with the same content.
    near_duplicates = "near_duplicates"  # Rows with almost the same content.
    test_rows_in_training = "test_rows_in_training"  # A later score would measure memorization.
    test_rows_nearly_in_training = "test_rows_nearly_in_training"  # The same, with small changes.
    # The rendered rows.
    end_of_turn_not_trained = "end_of_turn_not_trained"  # The model would not learn to stop.
    labels_all_masked = "labels_all_masked"  # The row has no token that carries loss.
    rows_truncated = "rows_truncated"  # The completion loses its end, and with it the end of the turn.
    unknown_tokens = "unknown_tokens"  # The model would learn to write the unknown token.
    double_bos = "double_bos"  # Two BOS tokens, a sequence that no model was trained on.
    template_not_prefix_preserving = "template_not_prefix_preserving"  # Prompts differ in training.
    completion_not_rendered = "completion_not_rendered"  # The model would learn to write nothing.
    text_not_rendered = "text_not_rendered"  # The template leaves out the text of a message.
    reasoning_not_rendered = "reasoning_not_rendered"  # The template leaves out reasoning.
    tool_calls_not_rendered = "tool_calls_not_rendered"  # The template leaves out tool calls.
    tools_not_rendered = "tools_not_rendered"  # The template leaves out the tools on offer.
    fields_not_read = "fields_not_read"  # No format reads a field with text for the model.
    other_fields_not_read = "other_fields_not_read"  # The same, for fields whose names say nothing.
    template_changes_rows = "template_changes_rows"  # White space, JSON or earlier reasoning differ.
    # The model and the settings.
    template_of_ours = "template_of_ours"  # The base has no chat template of its own.
    rows_are_text = "rows_are_text"  # No chat template is used.
    model_unfit = "model_unfit"  # The settings do not suit the architecture, tokenizer or adapter.
    encoders_not_trained = "encoders_not_trained"  # Those of images and sound stay as they are.
    memory_unknown = "memory_unknown"  # There is no formula for the kind of layers.
    memory_short = "memory_short"  # A host needs other settings, or has too little in any case.
    vocabulary_mismatch = "vocabulary_mismatch"  # Tokens without an embedding.
    length_beyond_model = "length_beyond_model"  # Positions that the model was not trained on.
    cpu_training_slow = "cpu_training_slow"  # Hours on a CPU.
    few_steps = "few_steps"  # Too few to change the model.
    learning_rate_unusual = "learning_rate_unusual"  # Far from the usual range for the model's size.
    loss_depends_on_micro_batch = "loss_depends_on_micro_batch"  # Its size changes the objective.
    reference_without_answer = "reference_without_answer"  # No completion can be correct.
    teacher_mismatch = "teacher_mismatch"  # Other tokens than the student's, so nothing can be compared.
    teacher_template_differs = "teacher_template_differs"  # The teacher reads prompts in a foreign form.
    reward_constant = "reward_constant"  # The reward does not distinguish completions.


class PlaceCounter:
    """Number of places with a fault, and the first of them: its memory does not grow with the rows."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[FindingPlace] = []

    def add(self, line: int, text: str) -> None:
        """Count a place."""
        self.count += 1
        if len(self.first) < MAX_EXAMPLES:
            self.first.append((line, text))


class FindingLevel(StrEnum):
    """The severity: an error wastes the run, a warning may, and an information needs no action."""

    error = "error"
    warning = "warning"
    info = "info"


class FindingExample(BaseModel):
    """A row with the finding."""

    line: int | None = Field(None, description="Line of the dataset, from 1.")
    text: str


class Finding(BaseModel):
    """A fault of a training stage: how often and where it occurs, and the fix."""

    code: FindingCode
    level: FindingLevel
    message: str
    count: int = Field(description="Affected rows or completions, or 1 if it concerns the run as a whole.")
    share: float | None = Field(None, description="Share of all rows or completions.")
    examples: list[FindingExample] = []
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
    """Return a finding in `count` of `rows` rows, with the first places as examples."""
    return Finding(
        code=code,
        level=level,
        message=message,
        count=count,
        share=count / rows if rows else None,
        examples=[FindingExample(line=line, text=_shorten(text)) for line, text in places[:MAX_EXAMPLES]],
        hint=hint,
    )


def findings_to_json(found: Iterable[Finding]) -> list[dict[str, Any]]:
    """Return the findings as JSON."""
    return [one.model_dump(mode="json") for one in found]


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_EXAMPLE_CHARACTERS else line[: MAX_EXAMPLE_CHARACTERS - 1] + "…"
