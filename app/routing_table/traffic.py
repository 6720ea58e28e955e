"""The traffic of aliases during a promotion, as the gateways report it."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col

from app.storage.database import database_now
from app.tables import AliasTraffic, Promotion, PromotionStatus
from serving.gateway.traffic.counts import TrafficCounts


def record_traffic(session: Session, reporter: str, items: Sequence[dict[str, Any]]) -> None:
    """Replace the counts of a gateway process; those of versions that no promotion wrote are ignored."""
    active = select(Promotion).where(col(Promotion.status) == PromotionStatus.active)
    promotions = {promotion.alias: promotion for promotion in session.scalars(active)}
    for item in items:
        promotion = promotions.get(item["alias"])
        if promotion is not None and promotion.version_before < item["version"] <= promotion.version:
            _replace(session, {"reporter": reporter, **item})


def read_traffic(session: Session, promotion: Promotion) -> dict[int, dict[str, TrafficCounts]]:
    """Return the counts of a promotion by version of the alias and id of the deployment."""
    rows = session.scalars(
        select(AliasTraffic).where(
            col(AliasTraffic.alias) == promotion.alias,
            col(AliasTraffic.version) > promotion.version_before,
            col(AliasTraffic.version) <= promotion.version,
        )
    )
    found: dict[int, dict[str, TrafficCounts]] = defaultdict(lambda: defaultdict(TrafficCounts))
    for row in rows:
        found[row.version][row.deployment_id].add(TrafficCounts.from_json(row.counts))
    return found


def sum_traffic(session: Session, promotion: Promotion) -> tuple[TrafficCounts, TrafficCounts]:
    """Return the requests to the new deployment in this step, and those to the present ones in all steps."""
    candidate, present = TrafficCounts(), TrafficCounts()
    for version, counts in read_traffic(session, promotion).items():
        for deployment_id, count in counts.items():
            if deployment_id != promotion.deployment_id:
                present.add(count)
            elif version == promotion.version:
                candidate.add(count)
    return candidate, present


def _replace(session: Session, row: dict[str, Any]) -> None:
    key = [
        col(AliasTraffic.alias) == row["alias"],
        col(AliasTraffic.version) == row["version"],
        col(AliasTraffic.deployment_id) == row["deployment_id"],
        col(AliasTraffic.reporter) == row["reporter"],
    ]
    changed = update(AliasTraffic).where(*key).values(counts=row["counts"], updated_at=database_now())
    changed = changed.execution_options(synchronize_session=False)
    if session.scalar(changed.returning(col(AliasTraffic.version))) is not None:
        return
    # The gateway may have repeated a report that is being written: the next one replaces it.
    with suppress(IntegrityError), session.begin_nested():
        session.add(AliasTraffic(**row))
