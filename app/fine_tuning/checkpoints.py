"""The checkpoints of fine-tuning jobs, and the permissions of projects to use fine-tuned models."""

from collections.abc import Sequence

from sqlalchemy import Select, select
from sqlmodel import Session, col

from app.fine_tuning.names import find_model_id
from app.http.errors import NotFound
from app.http.paging import CursorQuery, paginate_by_id
from app.tables import CheckpointPermission, FineTuningCheckpoint, FineTuningJob
from app.tables.base import new_id
from trainers.runtime.error_codes import ErrorCode


class FineTunedModelNotFound(NotFound):
    """No fine-tuned model or checkpoint has this name."""

    code = ErrorCode.model_not_found


class PermissionNotFound(NotFound):
    """The model has no permission with this id."""


def list_checkpoints(
    session: Session, job: FineTuningJob, cursor: CursorQuery
) -> tuple[Sequence[FineTuningCheckpoint], bool]:
    """Return a page of a job's checkpoints, the last step first, and whether more follow."""
    statement = select(FineTuningCheckpoint).where(col(FineTuningCheckpoint.fine_tuning_job_id) == job.id)
    return paginate_by_id(session, statement, col(FineTuningCheckpoint.id), cursor)


def create_permissions(
    session: Session, model_name: str, project_ids: Sequence[str]
) -> list[CheckpointPermission]:
    """Record that projects may use a model, once for each; raises FineTunedModelNotFound."""
    _require_model(session, model_name)
    rows = {row.project_id: row for row in session.scalars(_select_permissions(model_name))}
    missing = [project_id for project_id in dict.fromkeys(project_ids) if project_id not in rows]
    for project_id in missing:
        # The ids, by which they are listed, are in this order.
        rows[project_id] = CheckpointPermission(id=new_id("cp"), model_name=model_name, project_id=project_id)
        session.add(rows[project_id])
    session.flush()
    return [rows[project_id] for project_id in dict.fromkeys(project_ids)]


def list_permissions(
    session: Session, model_name: str, cursor: CursorQuery, project_id: str | None
) -> tuple[Sequence[CheckpointPermission], bool]:
    """Return a page of the permissions for a model, and whether more follow."""
    _require_model(session, model_name)
    statement = _select_permissions(model_name)
    if project_id is not None:
        statement = statement.where(col(CheckpointPermission.project_id) == project_id)
    return paginate_by_id(session, statement, col(CheckpointPermission.id), cursor)


def delete_permission(session: Session, model_name: str, permission_id: str) -> None:
    """Delete a permission; raises PermissionNotFound."""
    permission = session.get(CheckpointPermission, permission_id)
    if permission is None or permission.model_name != model_name:
        raise PermissionNotFound(
            f"{model_name!r} has no permission {permission_id!r}.",
            hint="List them with GET /v1/fine_tuning/checkpoints/{model}/permissions.",
        )
    session.delete(permission)


def _require_model(session: Session, model_name: str) -> None:
    if find_model_id(session, model_name) is None:
        raise FineTunedModelNotFound(
            f"There is no fine-tuned model {model_name!r}.",
            hint="A job that has succeeded names its model in `fine_tuned_model`.",
        )


def _select_permissions(model_name: str) -> Select[CheckpointPermission]:
    return select(CheckpointPermission).where(col(CheckpointPermission.model_name) == model_name)
