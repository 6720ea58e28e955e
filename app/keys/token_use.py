"""The tokens that keys have used on a day, as gateways and workers report them."""

from collections.abc import Collection, Sequence
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import case, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, col

from app.tables import ApiKey, TokenUse
from app.tables.base import new_id


def record_tokens(session: Session, reporter: str, items: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Replace the counts of a gateway process; return the totals of today of the reported keys.

    A count never decreases: a report that arrives late changes nothing. Unknown keys are ignored.
    """
    reported = {item["key_id"] for item in items}
    known = set(session.scalars(select(col(ApiKey.id)).where(col(ApiKey.id).in_(reported))))
    rows = [
        {
            "id": new_id("tokens"),
            "key_id": item["key_id"],
            "day": _as_date(item["day"]),
            "reporter": reporter,
            "tokens": item["tokens"],
        }
        for item in items
        if item["key_id"] in known
    ]
    if rows:
        session.execute(_upsert(session), rows)
    return count_tokens_today(session, known)


def record_total(session: Session, key_id: str, reporter: str, tokens: int) -> None:
    """Record the tokens of a key since the reporter began, of which earlier days have been recorded."""
    today = datetime.now(UTC).date()
    earlier = session.scalar(
        select(func.sum(col(TokenUse.tokens))).where(
            col(TokenUse.key_id) == key_id, col(TokenUse.reporter) == reporter, col(TokenUse.day) < today
        )
    )
    if (new := tokens - int(earlier or 0)) > 0:
        record_tokens(session, reporter, [{"key_id": key_id, "day": today, "tokens": new}])


def add_tokens(session: Session, key_id: str, reporter: str, tokens: int) -> None:
    """Add tokens to those of a key today; unlike a report, it must not be repeated."""
    if not tokens or session.get(ApiKey, key_id) is None:
        return
    row = {"id": new_id("tokens"), "key_id": key_id, "day": datetime.now(UTC).date(), "reporter": reporter}
    statement = _insert(session)
    total = col(TokenUse.tokens) + statement.excluded.tokens
    session.execute(_on_conflict(statement, total), [row | {"tokens": tokens}])


def count_tokens_today(session: Session, key_ids: Collection[str]) -> dict[str, int]:
    """Return the tokens that each of these keys has used today; keys that have used none are absent."""
    statement = (
        select(col(TokenUse.key_id), func.sum(col(TokenUse.tokens)))
        .where(col(TokenUse.key_id).in_(key_ids), col(TokenUse.day) == datetime.now(UTC).date())
        .group_by(col(TokenUse.key_id))
    )
    return {key_id: int(tokens) for key_id, tokens in session.execute(statement)}


def _as_date(day: str | date) -> date:
    return day if isinstance(day, date) else date.fromisoformat(day)


def _upsert(session: Session) -> Any:
    statement = _insert(session)
    new = statement.excluded.tokens
    larger = case((new > col(TokenUse.tokens), new), else_=col(TokenUse.tokens))
    return _on_conflict(statement, larger)


def _insert(session: Session) -> Any:
    dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    return dialect.insert(TokenUse)


def _on_conflict(statement: Any, tokens: Any) -> Any:
    return statement.on_conflict_do_update(
        index_elements=["key_id", "day", "reporter"], set_={"tokens": tokens}
    )
