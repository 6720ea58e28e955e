"""Reading and aborting promotions, which are runs of the stage `promote`."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlmodel import Session, col

from app.aliases.promotions import list_others
from app.aliases.targets import find_name_holders
from app.http.errors import NotFound
from app.http.paging import PageQuery, paginate_newest_first
from app.jobs import actions
from app.promotions.decision import assess, assess_judgement, describe_measurement
from app.promotions.schemas import PromotionStepState, PromotionStepView, PromotionView
from app.routing_table.traffic import sum_traffic
from app.settings import Settings
from app.storage.database import json_text
from app.tables import (
    FINISHED,
    Alias,
    Deployment,
    Event,
    EventType,
    Promotion,
    PromotionStatus,
    Run,
    RunStatus,
)
from trainers.configs import StageKind
from trainers.configs.base import NAME_PATTERN
from trainers.configs.engines import EngineTask
from trainers.configs.stages.serving.promote import PromotionConditions
from trainers.runtime.error_codes import ErrorCode

MAX_UNFINISHED = 50


class PromotionNotFound(NotFound):
    """The alias has no promotion of this run."""

    code = ErrorCode.run_not_found


def list_promotions(
    session: Session, alias: str, paging: PageQuery
) -> tuple[list[PromotionView], str | None]:
    """Return a page of an alias's promotions, newest first, also those whose runs have not started."""
    statement = select(Run).where(
        col(Run.stage) == StageKind.promote, json_text(col(Run.config), "alias") == alias
    )
    runs, after = paginate_newest_first(session, statement, col(Run.id), paging)
    return _view_runs(session, runs), after


def find_active_promotion(session: Session, alias: str) -> PromotionView | None:
    """Return the promotion that moves an alias now."""
    of_alias = col(Promotion.alias) == alias, col(Promotion.status) == PromotionStatus.active
    statement = select(Run).join(Promotion, col(Promotion.run_id) == col(Run.id)).where(*of_alias)
    return next(iter(_view_runs(session, session.scalars(statement).all())), None)


def list_unfinished_promotions(session: Session) -> list[PromotionView]:
    """Return the promotions of all aliases that have not ended, the newest first."""
    unfinished = col(Run.stage) == StageKind.promote, col(Run.status).not_in(FINISHED)
    statement = select(Run).where(*unfinished).order_by(col(Run.id).desc()).limit(MAX_UNFINISHED)
    return _view_runs(session, session.scalars(statement).all())


def abort_promotion(session: Session, alias: str, run_id: str) -> None:
    """Cancel the job of a promotion; the alias gets the targets from before its first step.

    Raises PromotionNotFound, and JobStatusConflict if the job has ended.
    """
    run = session.get(Run, run_id)
    if run is None or run.stage is not StageKind.promote or run.config.get("alias") != alias:
        raise PromotionNotFound(
            f"The run {run_id!r} is not a promotion of the alias {alias!r}.",
            hint=f"GET /api/v1/aliases/{alias}/history names the runs that have moved it.",
        )
    actions.cancel(session, run.job_id)


def list_candidates(session: Session, alias: Alias) -> list[Deployment]:
    """Return the deployments that can be given a share of an alias's requests next to others.

    Those that have a share come first, and that with the largest share last.
    """
    holders = find_name_holders(session)
    shares = {each["deployment"]: each["share"] for each in alias.targets}
    tasks = {holders[each["deployment"]].task for each in alias.targets if each["deployment"] in holders}
    return [
        holder
        for name, holder in sorted(holders.items(), key=lambda each: (_rank(shares, each[0]), each[0]))
        if list_others(alias.targets, name) and (not tasks or holder.task in tasks)
    ]


def list_judges(session: Session, settings: Settings) -> list[str]:
    """Return what can judge: deployments that generate, and the start of each `ENDPOINT/MODEL`."""
    holders = find_name_holders(session)
    names = [name for name, holder in holders.items() if holder.task is EngineTask.generate]
    return [*sorted(names), *(f"{name}/" for name in sorted(settings.evaluation_endpoints))]


def can_be_promoted(deployment: str) -> bool:
    """Return whether a `promote` stage can name a deployment; those of fine-tuning jobs have other names."""
    return re.fullmatch(NAME_PATTERN, deployment) is not None


def _rank(shares: Mapping[str, float], name: str) -> int:
    if name not in shares:
        return 1
    return 2 if shares[name] == max(shares.values()) else 0


def _view_runs(session: Session, runs: Sequence[Run]) -> list[PromotionView]:
    found = session.scalars(select(Promotion).where(col(Promotion.run_id).in_([run.id for run in runs])))
    promotions = {promotion.run_id: promotion for promotion in found}
    return [_view_run(session, run, promotions.get(run.id)) for run in runs]


def _view_run(session: Session, run: Run, promotion: Promotion | None) -> PromotionView:
    if promotion is not None and promotion.status is not PromotionStatus.active and not run.status.finished:
        # Of an earlier attempt: a retry begins from the first step.
        promotion = None
    return PromotionView(
        run_id=run.id,
        job_id=run.job_id,
        alias=run.config["alias"],
        deployment=run.config["deployment"],
        deployment_id=promotion.deployment_id if promotion is not None else None,
        status=run.status,
        outcome=promotion.status if promotion is not None else None,
        steps=_view_steps(session, run, promotion),
        error=run.error,
        created_at=run.created_at,
        started_at=run.started_at,
        finished_at=run.finished_at,
    )


def _view_steps(session: Session, run: Run, promotion: Promotion | None) -> list[PromotionStepView]:
    ended, position = _list_ended(run, promotion), promotion.step if promotion is not None else None
    views = []
    for index, step in enumerate(run.config["steps"]):
        common: dict[str, Any] = {
            "share": step["share"],
            "min_seconds": _resolve(run.config, step, "min_seconds"),
            "min_requests": _resolve(run.config, step, "min_requests"),
        }
        if index < len(ended):
            stopped = run.status is not RunStatus.succeeded and index == position
            state = PromotionStepState.stopped if stopped else PromotionStepState.passed
            measured = dict(ended[index])
            conditions = measured.pop("conditions", ())
            view = PromotionStepView(**common, state=state, measured=measured, conditions=conditions)
        elif promotion is not None and index == position:
            view = _view_current(session, run, promotion, common)
        else:
            view = PromotionStepView(**common, state=PromotionStepState.planned)
        views.append(view)
    return views


def _list_ended(run: Run, promotion: Promotion | None) -> list[Mapping[str, Any]]:
    """Return what was measured in each step that has ended, the one that was stopped among them."""
    if run.status is RunStatus.succeeded and run.result is not None:
        return list(run.result["steps"])
    if promotion is None:
        return []
    details = (run.error or {}).get("details") if run.status is RunStatus.failed else None
    return [*promotion.steps, *([details] if details and "share" in details else [])]


def _view_current(
    session: Session, run: Run, promotion: Promotion, common: Mapping[str, Any]
) -> PromotionStepView:
    """Return the step that is served now, with the counts that gateways have reported until now."""
    if promotion.status is not PromotionStatus.active:
        # The counts are gone; the events of the run have those of its last reports.
        measured = _read_last_metrics(session, run.id, promotion.step + 1)
        return PromotionStepView(**common, state=PromotionStepState.stopped, measured=measured)
    candidate, present = sum_traffic(session, promotion)
    conditions = PromotionConditions.model_validate(run.config["conditions"])
    assessments = assess(conditions, candidate, present)
    if conditions.judge is not None:
        assessments.append(assess_judgement(conditions.judge, promotion.judgement))
    return PromotionStepView(
        **common,
        state=PromotionStepState.current,
        started_at=promotion.step_started_at,
        measured=describe_measurement(candidate, present),
        conditions=[each.as_dict() for each in assessments],
    )


def _read_last_metrics(session: Session, run_id: str, step: int) -> dict[str, Any]:
    of_step = col(Event.run_id) == run_id, col(Event.type) == EventType.metrics, col(Event.step) == step
    statement = select(col(Event.data)).where(*of_step).order_by(col(Event.seq).desc()).limit(1)
    return dict(session.scalars(statement).first() or {})


def _resolve(config: Mapping[str, Any], step: Mapping[str, Any], name: str) -> Any:
    return config[name] if step.get(name) is None else step[name]
