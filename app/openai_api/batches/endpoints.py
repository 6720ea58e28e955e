"""OpenAI's Batch API: a batch is a job of one stage, which a worker carries out."""

from fastapi import APIRouter

from app.batches import service
from app.http.auth import CallerDependency
from app.idempotency.creation import Creation
from app.openai_api.batches.schemas import BatchCreate, BatchId, BatchObject, view_batch
from app.openai_api.paging import ListPage, NewestFirst, list_page
from app.settings import get_settings
from app.storage.database import ReadSession, read_session

router = APIRouter(prefix="/batches", tags=["batches"])


@router.post("")
def create_batch(body: BatchCreate, caller: CallerDependency, creation: Creation) -> BatchObject:
    """Create a batch; a worker validates its file, sends the requests and writes their responses."""
    request = body.to_request()
    batch_id = creation.once(
        lambda record: service.create_batch(get_settings(), request, caller.key_id, record)
    )
    with read_session() as session:
        return view_batch(service.get_batch(session, batch_id))


@router.get("")
def list_batches(session: ReadSession, cursor: NewestFirst) -> ListPage[BatchObject]:
    """List the batches, newest first."""
    batches, has_more = service.list_batches(session, cursor)
    return list_page([view_batch(batch) for batch in batches], has_more)


@router.get("/{batch_id}")
def get_batch(session: ReadSession, batch_id: BatchId) -> BatchObject:
    """Return a batch; its counts are those of the last second."""
    return view_batch(service.get_batch(session, batch_id))


@router.post("/{batch_id}/cancel")
def cancel_batch(batch_id: BatchId) -> BatchObject:
    """Cancel a batch; what has a response is kept in its output file."""
    return view_batch(service.cancel_batch(batch_id))
