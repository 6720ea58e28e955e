"""Check of the chat templates of model folders that this host can read, when a request names them.

A registry model needs no check: the stage that produced it rendered its data with the same template. The
templates of hub ids are checked by the worker that fetches the model.
"""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from app.http.errors import UnprocessableContent
from app.models.references import find_folder
from trainers.configs.references import ModelField, find_references
from trainers.configs.stage_config import AnyStage
from trainers.rendering.template_proof import list_template_files, prove_folder
from trainers.rendering.template_renderer import ChatTemplateError


class TemplateUnusable(UnprocessableContent):
    """The chat template of a model cannot be used; the code is that of the template's error."""

    def __init__(self, field: str, error: ChatTemplateError) -> None:
        message = f"{field}: {error.message}"
        super().__init__(message, hint=error.hint, fields=[{"field": field, "message": error.message}])
        self.code = error.code


def check_template(reference: str, field: str) -> None:
    """Prove the templates of a folder under an allowed root; raises TemplateUnusable naming the field.

    It may take seconds: call it before the first statement of a transaction.
    """
    folder = find_folder(reference)
    if folder is not None and (error := _prove(folder, _file_versions(folder))) is not None:
        raise TemplateUnusable(field, error)


def check_stage_templates(stages: Iterable[AnyStage]) -> None:
    """Prove the templates of all model folders in a job; raises TemplateUnusable."""
    for position, stage in enumerate(stages):
        for reference in find_references(stage):
            if isinstance(reference, ModelField) and isinstance(reference.value, str):
                check_template(reference.value, f"stages.{position}.{reference.path}")


@lru_cache(maxsize=256)
def _prove(folder: Path, versions: tuple[tuple[str, int, int], ...]) -> ChatTemplateError | None:
    """Return the error of the folder's templates; remembered while the files stay as they are."""
    try:
        prove_folder(folder)
    except ChatTemplateError as error:
        return error
    return None


def _file_versions(folder: Path) -> tuple[tuple[str, int, int], ...]:
    return tuple(
        (file.name, (status := file.stat()).st_mtime_ns, status.st_size)
        for file in list_template_files(folder)
    )
