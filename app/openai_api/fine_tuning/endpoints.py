"""OpenAI's Fine-tuning API: a job is one of ours, and its models can be requested once it has succeeded."""

from functools import partial
from typing import Annotated, Literal

from anyio import to_thread
from fastapi import APIRouter, Depends, Path, Query

from app.fine_tuning import actions, checkpoints, events, service
from app.http.auth import CallerDependency, require_admin
from app.http.paging import CursorQuery
from app.idempotency.creation import Creation
from app.jobs.endpoints import SUBMISSIONS
from app.openai_api.fine_tuning.requests import FineTuningCreate, PermissionsCreate, read_spec
from app.openai_api.fine_tuning.schemas import (
    CheckpointPermissionDeleted,
    CheckpointPermissionObject,
    FineTuningCheckpointObject,
    FineTuningEventObject,
    FineTuningJobId,
    FineTuningJobObject,
    view_checkpoint,
    view_event,
    view_job,
    view_permission,
)
from app.openai_api.paging import After, ListPage, NewestFirst, list_page
from app.openai_api.parameters import MetadataQuery
from app.settings import get_settings
from app.storage.database import ReadSession, WriteSession, read_session

router = APIRouter(prefix="/fine_tuning", tags=["fine-tuning"])

ModelName = Annotated[
    str, Path(max_length=500, description="Name of a fine-tuned model or of a checkpoint, `ft:…`.")
]
PERMISSIONS = "/checkpoints/{model_name}/permissions"


@router.post("/jobs")
async def create_fine_tuning_job(
    body: FineTuningCreate, caller: CallerDependency, creation: Creation
) -> FineTuningJobObject:
    """Create a fine-tuning job."""
    create = partial(service.create_job, get_settings(), read_spec(body), caller.key_id)
    job_id = await to_thread.run_sync(creation.once, create, limiter=SUBMISSIONS)
    return await to_thread.run_sync(_load_view, job_id)


@router.get("/jobs")
def list_fine_tuning_jobs(
    session: ReadSession,
    cursor: NewestFirst,
    pairs: MetadataQuery,
    metadata: Annotated[Literal["null"] | None, Query(description="`null`: jobs without metadata.")] = None,
) -> ListPage[FineTuningJobObject]:
    """List the fine-tuning jobs, newest first."""
    found, has_more = service.list_states(session, cursor, pairs, without_metadata=metadata is not None)
    return list_page([view_job(state) for state in found], has_more)


@router.get("/jobs/{fine_tuning_job_id}")
def get_fine_tuning_job(session: ReadSession, fine_tuning_job_id: FineTuningJobId) -> FineTuningJobObject:
    """Return a fine-tuning job."""
    return view_job(service.get_state(session, fine_tuning_job_id))


@router.post("/jobs/{fine_tuning_job_id}/cancel")
def cancel_fine_tuning_job(session: WriteSession, fine_tuning_job_id: FineTuningJobId) -> FineTuningJobObject:
    """Cancel a fine-tuning job."""
    actions.cancel_job(session, fine_tuning_job_id)
    return view_job(service.get_state(session, fine_tuning_job_id))


@router.post("/jobs/{fine_tuning_job_id}/pause")
def pause_fine_tuning_job(session: WriteSession, fine_tuning_job_id: FineTuningJobId) -> FineTuningJobObject:
    """Pause a fine-tuning job after a checkpoint."""
    actions.pause_job(session, fine_tuning_job_id)
    return view_job(service.get_state(session, fine_tuning_job_id))


@router.post("/jobs/{fine_tuning_job_id}/resume")
def resume_fine_tuning_job(
    session: WriteSession, caller: CallerDependency, fine_tuning_job_id: FineTuningJobId
) -> FineTuningJobObject:
    """Continue a paused fine-tuning job from its checkpoint."""
    actions.resume_job(session, fine_tuning_job_id, caller.key_id)
    return view_job(service.get_state(session, fine_tuning_job_id))


@router.get("/jobs/{fine_tuning_job_id}/events")
def list_fine_tuning_events(
    session: ReadSession, cursor: NewestFirst, fine_tuning_job_id: FineTuningJobId
) -> ListPage[FineTuningEventObject]:
    """List the events of a fine-tuning job, newest first."""
    state = service.get_state(session, fine_tuning_job_id)
    found, has_more = events.list_events(session, state, cursor)
    return list_page([view_event(event) for event in found], has_more)


@router.get("/jobs/{fine_tuning_job_id}/checkpoints")
def list_fine_tuning_checkpoints(
    session: ReadSession, cursor: NewestFirst, fine_tuning_job_id: FineTuningJobId
) -> ListPage[FineTuningCheckpointObject]:
    """List the checkpoints of a job that has succeeded, the last step first."""
    state = service.get_state(session, fine_tuning_job_id)
    found, has_more = checkpoints.list_checkpoints(session, state.job, cursor)
    return list_page([view_checkpoint(checkpoint) for checkpoint in found], has_more)


@router.post(PERMISSIONS, dependencies=[Depends(require_admin)])
def create_checkpoint_permissions(
    session: WriteSession, model_name: ModelName, body: PermissionsCreate
) -> ListPage[CheckpointPermissionObject]:
    """Record that projects may use a fine-tuned model; it needs the scope `admin`."""
    created = checkpoints.create_permissions(session, model_name, body.project_ids)
    return list_page([view_permission(permission) for permission in created], False)


@router.get(PERMISSIONS, dependencies=[Depends(require_admin)])
def list_checkpoint_permissions(
    session: ReadSession,
    model_name: ModelName,
    limit: Annotated[int, Query(ge=1, le=100, description="Maximum number of permissions.")] = 10,
    after: After = None,
    order: Annotated[
        Literal["ascending", "descending"], Query(description="Order of the creation times.")
    ] = "descending",
    project_id: Annotated[str | None, Query(max_length=200, description="Only of this project.")] = None,
) -> ListPage[CheckpointPermissionObject]:
    """List the permissions for a fine-tuned model; it needs the scope `admin`."""
    cursor = CursorQuery(limit, after, order == "descending")
    found, has_more = checkpoints.list_permissions(session, model_name, cursor, project_id)
    return list_page([view_permission(permission) for permission in found], has_more)


@router.delete(PERMISSIONS + "/{permission_id}", dependencies=[Depends(require_admin)])
def delete_checkpoint_permission(
    session: WriteSession,
    model_name: ModelName,
    permission_id: Annotated[str, Path(max_length=64, description="Id of the permission, `cp_…`.")],
) -> CheckpointPermissionDeleted:
    """Delete a permission; it needs the scope `admin`."""
    checkpoints.delete_permission(session, model_name, permission_id)
    return CheckpointPermissionDeleted(id=permission_id, object="checkpoint.permission", deleted=True)


def _load_view(job_id: str) -> FineTuningJobObject:
    with read_session() as session:
        return view_job(service.get_state(session, job_id))
