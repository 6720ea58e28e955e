"""Promotions: the steps by which a run moves an alias, each written in one transaction with the alias.

Another change of the alias meanwhile wins: its version is then not the one that the step has written, and the
promotion changes it no more, not even to roll back.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, select
from sqlmodel import Session, col

from app.aliases.changes import Targets, find_version, write_targets
from app.aliases.targets import find_name_holders
from app.storage.database import database_now, lock_name
from app.tables import Alias, AliasTraffic, Deployment, Promotion, PromotionStatus, Run
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError


class PromotionImpossible(TunesmithError):
    """The alias or the deployment is not in a state in which the promotion can begin."""

    code = ErrorCode.promotion_impossible


class AliasMoved(TunesmithError):
    """Somebody else has changed the alias during the promotion."""

    code = ErrorCode.alias_moved


def find_promotion(session: Session, run_id: str) -> Promotion | None:
    """Return the active promotion of a run; None before its first step, and after its end."""
    promotion = session.get(Promotion, run_id, populate_existing=True)
    return promotion if promotion is not None and promotion.status is PromotionStatus.active else None


def begin_promotion(session: Session, run: Run, alias_name: str, deployment: str, share: float) -> Promotion:
    """Give the deployment its first share of the alias; raises PromotionImpossible.

    The run's row must be locked by an earlier statement: everybody locks the run before the alias.
    """
    lock_name(session, alias_name)
    alias = session.get(Alias, alias_name, populate_existing=True)
    if alias is None:
        raise PromotionImpossible(
            f"There is no alias {alias_name!r} any more.", f"Create it: PUT /api/v1/aliases/{alias_name}."
        )
    candidate = _require_candidate(session, deployment)
    if not list_others(alias.targets, deployment):
        raise PromotionImpossible(
            f"The alias {alias_name!r} routes to {deployment!r} alone: there is nothing to promote.",
            "Deploy the new model under another name than the present one's.",
        )
    _check_no_other(session, alias_name, run.id)
    # A run that is retried after its promotion has ended begins again.
    session.execute(delete(Promotion).where(col(Promotion.run_id) == run.id))
    version = write_targets(
        session, alias_name, shift_targets(alias.targets, deployment, share), changed_by=run.id
    )
    assert version is not None, "the alias is locked"
    promotion = Promotion(
        run_id=run.id,
        alias=alias_name,
        deployment=deployment,
        deployment_id=candidate.id,
        version_before=version - 1,
        version=version,
    )
    promotion.step_started_at = database_now()  # type: ignore[assignment]
    session.add(promotion)
    session.flush()
    return promotion


def begin_next_step(session: Session, promotion: Promotion, share: float, measured: dict[str, Any]) -> None:
    """Give the deployment the share of the next step, after `check_unmoved` in the same transaction.

    `measured` is what was measured in the step that ends. The counts of the new step begin at 0.
    """
    before = _targets_before(session, promotion)
    targets = shift_targets(before, promotion.deployment, share)
    version = write_targets(session, promotion.alias, targets, changed_by=promotion.run_id)
    assert version is not None, "the alias is locked"
    promotion.version = version
    promotion.step += 1
    promotion.steps = [*promotion.steps, measured]
    promotion.step_started_at = database_now()  # type: ignore[assignment]
    session.flush()


def check_unmoved(session: Session, promotion: Promotion, *, lock: bool = True) -> None:
    """Raise AliasMoved, which names who it was, if somebody else has changed the alias.

    With `lock`, nobody can until the transaction ends.
    """
    if lock:
        lock_name(session, promotion.alias)
    alias = session.get(Alias, promotion.alias, populate_existing=True)
    if alias is None:
        raise AliasMoved(
            f"The alias {promotion.alias!r} was deleted during the promotion.",
            "Create it again, and retry the job.",
        )
    if alias.version == promotion.version:
        return
    by = f" by {alias.changed_by}" if alias.changed_by else ""
    raise AliasMoved(
        f"The alias {promotion.alias!r} was changed{by} during the promotion: it has version "
        f"{alias.version}, and the promotion wrote version {promotion.version}. It stays as it is now.",
        f"Read GET /api/v1/aliases/{promotion.alias}/history. A retry begins from the first step.",
    )


def end_promotion(
    session: Session, run_id: str, *, roll_back: bool, succeeded: bool = False
) -> dict[str, Any]:
    """End the promotion of a run, if one is active; return what the event of its end contains.

    A rollback restores the targets from before the first step, unless somebody else has moved the alias or no
    deployment of them is left, which would leave the alias without any.
    """
    promotion = find_promotion(session, run_id)
    if promotion is None:
        return {}
    restored = _roll_back(session, promotion) if roll_back else None
    if succeeded:
        promotion.status = PromotionStatus.succeeded
    else:
        promotion.status = PromotionStatus.ended if restored is None else PromotionStatus.rolled_back
    session.execute(delete(AliasTraffic).where(col(AliasTraffic.alias) == promotion.alias))
    session.flush()
    event: dict[str, Any] = {"alias": promotion.alias, "promotion": promotion.status}
    return event if restored is None else event | {"restored_version": promotion.version_before}


def list_measured_versions(session: Session) -> dict[str, int]:
    """Return the version of each alias whose requests gateways count, by name."""
    active = col(Promotion.status) == PromotionStatus.active
    rows = session.execute(select(col(Promotion.alias), col(Promotion.version)).where(active))
    return {row.alias: row.version for row in rows}


def shift_targets(targets: Sequence[dict[str, Any]], deployment: str, share: float) -> Targets:
    """Return targets of which the deployment has this share; the others keep their proportions."""
    moved = {"deployment": deployment, "share": share}
    if share == 1:
        return [moved]
    others = list_others(targets, deployment)
    total = sum(target["share"] for target in others)
    kept = [{**target, "share": target["share"] * (1 - share) / total} for target in others]
    return [*kept, moved]


def list_others(targets: Sequence[dict[str, Any]], deployment: str) -> Targets:
    """Return the targets other than the deployment."""
    return [target for target in targets if target["deployment"] != deployment]


def _require_candidate(session: Session, deployment: str) -> Deployment:
    holder = find_name_holders(session, [deployment]).get(deployment)
    if holder is None:
        raise PromotionImpossible(
            f"The deployment {deployment!r} is neither ready nor asleep, so no request can be moved to it.",
            f"Create it and wait until it is ready: GET /api/v1/deployments?name={deployment}.",
        )
    return holder


def _check_no_other(session: Session, alias_name: str, run_id: str) -> None:
    active = col(Promotion.alias) == alias_name, col(Promotion.status) == PromotionStatus.active
    other = session.scalars(select(col(Promotion.run_id)).where(*active)).first()
    if other is not None and other != run_id:
        raise PromotionImpossible(
            f"The run {other} is promoting a deployment of the alias {alias_name!r} now.",
            "Wait until it has ended, or cancel its job; then retry this one.",
        )


def _roll_back(session: Session, promotion: Promotion) -> int | None:
    targets = _targets_before(session, promotion)
    if not find_name_holders(session, [target["deployment"] for target in targets]):
        return None
    lock_name(session, promotion.alias)
    return write_targets(
        session,
        promotion.alias,
        targets,
        changed_by=promotion.run_id,
        restored_version=promotion.version_before,
        guards=[col(Alias.version) == promotion.version],
    )


def _targets_before(session: Session, promotion: Promotion) -> Targets:
    before = find_version(session, promotion.alias, promotion.version_before)
    assert before is not None, "retention keeps far more versions than a promotion writes"
    return before.targets
