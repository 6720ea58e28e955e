"""The check of a draft: the validation and the dry run of the API, with errors by field."""

from dataclasses import dataclass, field
from typing import Any

from fastapi.exceptions import RequestValidationError
from sqlmodel import Session

from app.http.errors import HttpError
from app.jobs import service
from app.jobs.schemas import DryRunView, JobCreate
from app.settings import Settings
from app.web.errors import name_fields, parse_form
from app.web.views.new_job.draft import Spec


@dataclass(frozen=True)
class CheckedDraft:
    """The plan of a draft, or why there is none."""

    plan: DryRunView | None = None
    error: dict[str, Any] | None = None
    """Code, message and hint, if the errors are not those of fields alone."""
    fields: dict[str, str] = field(default_factory=dict)
    """Messages by the path of the field."""
    hint: str | None = None
    """What to do about the first of them."""


def parse_spec(spec: Spec) -> JobCreate:
    """Return the validated spec; raises UnprocessableContent with each invalid field, as the API does."""
    try:
        return parse_form(JobCreate, **spec)
    except RequestValidationError as error:
        raise name_fields(error) from error


def check_draft(session: Session, settings: Settings, spec: Spec, key_id: str) -> CheckedDraft:
    """Return the plan of a spec, or its errors."""
    try:
        return CheckedDraft(plan=service.dry_run(session, settings, parse_spec(spec), key_id))
    except HttpError as error:
        if error.status >= 500:
            raise
        return describe_error(error)


def describe_error(error: HttpError) -> CheckedDraft:
    """Return a refusal, with its fields if it names any."""
    fields = {each["field"]: each["message"] for each in error.fields or []}
    if fields:
        return CheckedDraft(fields=fields, hint=error.hint)
    return CheckedDraft(error=error.as_dict())
