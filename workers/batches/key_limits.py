"""The limits of the key that has created a batch: the models that it may use, and its tokens of a day.

Its requests a minute do not count: the engines decide how fast a batch is.
"""

from sqlalchemy.orm import defer
from sqlmodel import Session

from app.keys.token_use import count_tokens_today, record_total
from app.routing_table.schemas import RouteView
from app.routing_table.service import list_routes
from app.tables import ApiKey, Batch, Job
from serving.batch.files import BatchTokens
from serving.gateway.rate_limits import AuthorizedClient


def find_creator(session: Session, batch: Batch) -> ApiKey | None:
    """Return the key that has created a batch; None for one without, or whose record is deleted."""
    job = session.get(Job, batch.job_id)
    if job is None or not job.created_by:
        return None
    # A worker on another host may not read the hashes of keys.
    return session.get(ApiKey, job.created_by, options=[defer(ApiKey.sha256)])  # type: ignore[arg-type]


def list_allowed_routes(session: Session, creator: ApiKey | None) -> list[RouteView]:
    """Return the routes that the creator of a batch may use."""
    names = None if creator is None or creator.models is None else tuple(creator.models)
    client = AuthorizedClient(models=names)
    return [route for route in list_routes(session) if client.may_use(route.name)]


def has_tokens_left(session: Session, creator: ApiKey | None) -> bool:
    """Return whether the creator of a batch may use tokens today."""
    if creator is None or creator.tokens_per_day is None:
        return True
    return count_tokens_today(session, [creator.id]).get(creator.id, 0) < creator.tokens_per_day


def record_batch_tokens(session: Session, batch: Batch, usage: BatchTokens) -> None:
    """Count the tokens of a batch, of which `usage` is the total, for its creator."""
    tokens = usage.input_tokens + usage.output_tokens
    if tokens and (creator := find_creator(session, batch)) is not None:
        record_total(session, creator.id, batch.id, tokens)
