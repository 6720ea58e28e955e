"""A user's own task: its templates become columns of text, so that lm-eval renders no template of a user."""

from collections.abc import Iterator, Sequence
from typing import Any

from trainers.configs.stages.harness.tasks import TaskDefinition
from trainers.rendering.template_renderer import ChatTemplateError, RenderedRow, TemplateRenderer
from trainers.runtime.errors import DatasetInvalid, ProgramError

Row = dict[str, Any]

# Columns of the rendered rows, which the task's config names instead of templates.
ROW, TEXT, TARGET, CHOICES = "row", "prompt_text", "target", "choices"
# All rows of a request share the renderer's limit of time.
ROWS_PER_REQUEST = 32
_TEMPLATES = ("doc_to_text", "doc_to_target", "doc_to_choice", "description")


class TaskTemplateInvalid(ProgramError):
    """A template of a task that cannot be used; its code is that of the renderer's error."""

    def __init__(self, field: str, task: str, error: ChatTemplateError) -> None:
        reason = error.message.removeprefix("The chat template ")
        super().__init__(
            f"The template {field} of the task {task} {reason}", "Correct the task's definition."
        )
        self.code = error.code


def task_config(definition: TaskDefinition) -> dict[str, Any]:
    """Return the config of lm-eval's task, whose templates are names of the columns of `render_rows`."""
    config = definition.model_dump(mode="json", exclude_none=True, exclude=set(_TEMPLATES))
    config |= {"doc_to_text": TEXT, "doc_to_target": TARGET, "description": definition.description}
    return config | ({"doc_to_choice": CHOICES} if definition.doc_to_choice is not None else {})


def render_rows(definition: TaskDefinition, rows: Sequence[Row], renderer: TemplateRenderer) -> list[Row]:
    """Return rows with the rendered prompt, reference and choices.

    Raises:
        TaskTemplateInvalid: A template leaves its sandbox, exceeds a limit, or has a syntax error.
        DatasetInvalid: A row lacks a field that a template reads.
    """
    texts = _render(definition, "doc_to_text", definition.doc_to_text, rows, renderer)
    targets = _render(definition, "doc_to_target", str(definition.doc_to_target), rows, renderer)
    rendered: list[Row] = [
        {ROW: number, TEXT: text, TARGET: target}
        for number, (text, target) in enumerate(zip(texts, targets, strict=True), start=1)
    ]
    if definition.doc_to_choice is not None:
        for row, choices in zip(rendered, _list_choices(definition, rows, renderer), strict=True):
            row |= {CHOICES: choices, TARGET: _find_choice(row, choices, definition.task)}
    return rendered


def _render(
    definition: TaskDefinition, field: str, template: str, rows: Sequence[Row], renderer: TemplateRenderer
) -> list[str]:
    if rows and template in rows[0]:
        return [str(row.get(template, "")) for row in rows]
    return [found.text for found in _render_all(definition, field, template, rows, renderer)]


def _list_choices(
    definition: TaskDefinition, rows: Sequence[Row], renderer: TemplateRenderer
) -> list[list[str]]:
    choices = definition.doc_to_choice
    if isinstance(choices, list):
        return [choices for _ in rows]
    assert choices is not None
    if rows and choices in rows[0]:
        return [[str(item) for item in row[choices]] for row in rows]
    found = _render_all(definition, "doc_to_choice", choices, rows, renderer, as_list=True)
    return [list(one.items) for one in found]


def _render_all(
    definition: TaskDefinition,
    field: str,
    template: str,
    rows: Sequence[Row],
    renderer: TemplateRenderer,
    as_list: bool = False,
) -> Iterator[RenderedRow]:
    for start in range(0, len(rows), ROWS_PER_REQUEST):
        try:
            found = renderer.render_rows(template, rows[start : start + ROWS_PER_REQUEST], as_list)
        except ChatTemplateError as error:
            raise TaskTemplateInvalid(field, definition.task, error) from error
        for number, one in enumerate(found, start=start + 1):
            if one.rejected is not None:
                raise DatasetInvalid(
                    f"Row {number} of the data of the task {definition.task} cannot be rendered by {field}: "
                    f"{one.rejected}.",
                    f"The row has the fields {', '.join(rows[number - 1])}.",
                )
        yield from found


def _find_choice(row: Row, choices: Sequence[str], task: str) -> int:
    """Return the number of the right choice, from 0; the target is that number or the choice itself."""
    target = row[TARGET].strip()
    number = choices.index(target) if target in choices else int(target) if target.isdecimal() else -1
    if not 0 <= number < len(choices):
        raise DatasetInvalid(
            f"Row {row[ROW]} of the data of the task {task} has the target {target[:100]!r}, which is "
            f"neither one of its {len(choices)} choices nor the number of one.",
            "Number the choices from 0, or repeat the right one.",
        )
    return number
