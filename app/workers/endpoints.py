"""Workers over HTTP."""

from fastapi import APIRouter

from app.http.paging import Page, Paging
from app.settings import get_settings
from app.storage.database import ReadSession
from app.workers import service
from app.workers.schemas import WorkerView

router = APIRouter(prefix="/workers", tags=["workers"])


@router.get("")
def list_workers(session: ReadSession, paging: Paging, alive: bool = False) -> Page[WorkerView]:
    """Workers from new to old, with their hardware and what they hold now."""
    found, following = service.list_workers(session, get_settings(), paging, alive)
    items = [
        WorkerView(**worker.model_dump(), alive=is_alive, runs=held.runs, deployments=held.deployments)
        for worker, is_alive, held in found
    ]
    return Page(items=items, next=following)
