"""Workers and queues over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from app.http.paging import Page, Paging
from app.settings import get_settings
from app.storage.database import ReadSession, WriteSession
from app.workers import queues, service
from app.workers.schemas import QueueView, WaitingRunView, WorkerView
from trainers.configs import Queue

router = APIRouter(prefix="/workers", tags=["workers"])
queue_router = APIRouter(prefix="/queues", tags=["workers"])


@router.get("")
def list_workers(
    session: ReadSession,
    paging: Paging,
    alive: Annotated[bool, Query(description="Return only workers that are alive.")] = False,
    stopped: Annotated[
        bool, Query(description="Return workers that have stopped in order, too. Others are alive or lost.")
    ] = True,
) -> Page[WorkerView]:
    """List workers, newest first, with their hardware, runs and deployments."""
    workers, after = service.list_workers(session, get_settings(), paging, only_alive=alive, stopped=stopped)
    return Page(items=service.view_workers(session, get_settings(), workers), next=after)


@router.delete("/{worker_id}", status_code=204)
def delete_worker(
    worker_id: Annotated[str, Path(description="Id of the worker, `worker_…`.")], session: WriteSession
) -> None:
    """Delete the record of a worker that has stopped or is absent. Deleting it again returns 404."""
    service.delete_worker(session, get_settings(), worker_id)


@queue_router.get("")
def list_queues(session: ReadSession) -> Page[QueueView]:
    """List the queues, with the slots of their live workers and the number of their runs."""
    alive = service.AliveWorkers(get_settings())
    return Page(items=queues.list_queues(session, alive), next=None)


@queue_router.get("/{queue}/waiting")
def list_waiting_runs(
    session: ReadSession, paging: Paging, queue: Annotated[Queue, Path(description="Kind of hardware.")]
) -> Page[WaitingRunView]:
    """List the runs that wait for a queue, in the order of their start, with what each waits for."""
    alive = service.AliveWorkers(get_settings())
    runs, after = queues.list_waiting_runs(session, alive, queue, paging)
    return Page(items=runs, next=after)
