"""Workers' credentials over HTTP: a host that joins gets them with a key of the scope `worker`."""

from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Body, Depends, Path

from app.http.auth import CallerDependency, require_admin, require_worker
from app.http.edges.query import check_query
from app.http.paging import Page, Paging
from app.settings import get_settings
from app.storage.database import ReadSession, WriteSession
from app.worker_credentials import service
from app.worker_credentials.reconciler import reconcile
from app.worker_credentials.schemas import (
    CREATE_EXAMPLES,
    WorkerCredentialCreate,
    WorkerCredentialSecretView,
    WorkerCredentialView,
)

router = APIRouter(
    prefix="/worker-credentials",
    tags=["workers"],
    dependencies=[Depends(require_worker), Depends(check_query)],
)


@router.post("", status_code=201)
def create_worker_credential(
    caller: CallerDependency,
    body: Annotated[WorkerCredentialCreate, Body(openapi_examples=CREATE_EXAMPLES)],
) -> WorkerCredentialSecretView:
    """Return what the worker of a host needs. Only this response contains the passwords.

    Where the servers allow it, the host gets a PostgreSQL role and a Redis user of its own, with the rights
    of a worker only. `notices` contains what it shares with the control plane.
    """
    return service.join_host(get_settings(), caller, body)


@router.get("", dependencies=[Depends(require_admin)])
def list_worker_credentials(session: ReadSession, paging: Paging) -> Page[WorkerCredentialView]:
    """List the credentials of hosts, newest first, including revoked ones. Requires the scope `admin`."""
    credentials, after = service.list_credentials(session, paging)
    return Page(items=[WorkerCredentialView.model_validate(one) for one in credentials], next=after)


@router.delete("/{credential_id}")
def revoke_worker_credential(
    session: WriteSession,
    caller: CallerDependency,
    credential_id: Annotated[str, Path(max_length=100, description="Id of the credentials, `credential_…`.")],
    after_response: BackgroundTasks,
) -> WorkerCredentialView:
    """Revoke the credentials of a host that leaves; its connections end within seconds.

    A key without the scope `admin` can revoke those that it created only.
    """
    credential = service.revoke_credential(session, caller, credential_id)
    after_response.add_task(reconcile)
    return WorkerCredentialView.model_validate(credential)
