"""Workers over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from app.http.paging import Page, Paging
from app.settings import get_settings
from app.storage.database import ReadSession, WriteSession
from app.workers import service
from app.workers.schemas import WorkerView

router = APIRouter(prefix="/workers", tags=["workers"])


@router.get("")
def list_workers(
    session: ReadSession,
    paging: Paging,
    alive: Annotated[bool, Query(description="Return only workers that are alive.")] = False,
) -> Page[WorkerView]:
    """List workers, newest first, with their hardware, runs and deployments."""
    workers, after = service.list_workers(session, get_settings(), paging, only_alive=alive)
    return Page(items=service.view_workers(session, get_settings(), workers), next=after)


@router.delete("/{worker_id}", status_code=204)
def delete_worker(
    worker_id: Annotated[str, Path(description="Id of the worker, `worker_…`.")], session: WriteSession
) -> None:
    """Delete the record of a worker that has stopped or is absent. Deleting it again returns 404."""
    service.delete_worker(session, get_settings(), worker_id)
