"""The `promote` stage: moves an alias step by step, and rolls back when a condition does not hold.

The state is in the rows of the promotion and of the alias, which change in one transaction. An attempt that
follows one which was killed therefore continues the same step, and moves nothing again.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlmodel import Session, select

from app.aliases.changes import find_version
from app.aliases.promotions import (
    AliasMoved,
    PromotionImpossible,
    begin_next_step,
    begin_promotion,
    check_unmoved,
    end_promotion,
    find_promotion,
    list_others,
)
from app.routing_table.traffic import read_traffic
from app.runs import lifecycle
from app.runs.attempt_outcome import AttemptOutcome, NewEvent
from app.runs.lifecycle import StaleAttempt
from app.scheduling.incidents import describe_error
from app.storage.database import DATABASE_UNAVAILABLE, database_now, read_session, transaction
from app.tables import Deployment, DeploymentStatus, EventType, Promotion, Run, RunStatus
from serving.gateway.traffic.counts import TrafficCounts
from trainers.configs import PromoteConfig
from trainers.configs.stages.serving.promote import FailureAction, UndecidedAction
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import TunesmithError
from workers.hosts.lease import Lease
from workers.hosts.worker import WorkerContext
from workers.promotions.decision import (
    Assessment,
    ConditionState,
    StepOutcome,
    assess,
    count_requests,
    decide_step,
    describe_measurement,
)
from workers.promotions.judge import PromotionJudge, assess_judgement, describe_judgement

POLL_SECONDS = 1.0
# An event with the values follows each such growth of the requests: few, however long a step lasts.
METRICS_GROWTH = 1.25

logger = logging.getLogger(__name__)


class PromotionRolledBack(TunesmithError):
    code = ErrorCode.promotion_rolled_back


class PromotionStopped(TunesmithError):
    code = ErrorCode.promotion_stopped


class PromotionUndecided(TunesmithError):
    code = ErrorCode.promotion_undecided


@dataclass(frozen=True)
class StepSnapshot:
    """The state of a promotion at one look."""

    status: RunStatus
    promotion: Promotion | None
    seconds: float
    """Time since the step began, by the database's clock."""
    candidate: TrafficCounts
    """Requests to the new deployment in this step."""
    present: TrafficCounts
    """Requests to the present deployments in all steps."""
    present_deployment: str
    """The present deployment with the largest share."""
    failure: Assessment | None
    """Why the new deployment can serve no more, if it cannot."""


def run_promote_stage(worker: WorkerContext, run: Run, lease: Lease) -> None:
    """Move the alias until the last step has passed, a condition fails, or the run must stop."""
    config = run.stage_config()
    assert isinstance(config, PromoteConfig)
    execution = _PromotionExecution(worker, run, lease, config)
    try:
        while not execution.poll():
            if lease.lost.wait(POLL_SECONDS):
                raise StaleAttempt(f"attempt {run.attempt} of {run.id} lost its lease")
    finally:
        execution.close()


class _PromotionExecution:
    """One attempt at a promotion."""

    def __init__(self, worker: WorkerContext, run: Run, lease: Lease, config: PromoteConfig) -> None:
        self._worker = worker
        self._run = run
        self._lease = lease
        self._config = config
        judge = config.conditions.judge
        self._judge = PromotionJudge(worker, run, judge) if judge is not None else None
        self._shown_requests = 0

    def close(self) -> None:
        """Kill the judge's program, if it runs."""
        if self._judge is not None:
            self._judge.close()

    def poll(self) -> bool:
        """Look at the traffic once, and act; return whether the attempt has ended."""
        try:
            snapshot = read_snapshot(self._run)
            if snapshot.status is not RunStatus.running or self._worker.stopping.is_set():
                return self._end(AttemptOutcome(reason="the worker is shutting down"))
            if snapshot.promotion is None:
                return self._begin()
            judgement = self._poll_judge(snapshot, snapshot.promotion)
            return self._act(snapshot, snapshot.promotion, self._list_assessments(snapshot, judgement))
        except DATABASE_UNAVAILABLE as error:
            logger.warning(
                "cannot watch the promotion: %s", describe_error(error), extra={"run_id": self._run.id}
            )
        except (AliasMoved, PromotionImpossible) as error:
            return self._end(AttemptOutcome(error), roll_back=False)
        except TunesmithError as error:
            # Of the judge. Its infrastructure errors are retried, with the alias as it is.
            return self._end(AttemptOutcome(error))
        return False

    def _list_assessments(self, snapshot: StepSnapshot, judgement: dict[str, Any] | None) -> list[Assessment]:
        conditions = self._config.conditions
        assessments = [snapshot.failure] if snapshot.failure is not None else []
        assessments += assess(conditions, snapshot.candidate, snapshot.present)
        if conditions.judge is not None:
            assessments.append(assess_judgement(conditions.judge, judgement))
        return assessments

    def _begin(self) -> bool:
        config = self._config
        assert config.deployment is not None, "the API has resolved it"
        with transaction() as session:
            self._lock_run(session)
            promotion = begin_promotion(
                session, self._run, config.alias, config.deployment, config.steps[0].share
            )
            self._write_step(session, promotion)
        return False

    def _poll_judge(self, snapshot: StepSnapshot, promotion: Promotion) -> dict[str, Any] | None:
        if self._judge is None or promotion.judgement is not None:
            return promotion.judgement
        result = self._judge.poll(promotion.deployment, snapshot.present_deployment, self._lease)
        if result is None:
            return None
        judgement = describe_judgement(result)
        with transaction() as session:
            values = {"log_artifact": f"runs/{self._run.id}/{self._run.attempt}/log.txt"}
            lifecycle.append_events(session, self._run.id, self._run.attempt, [], values)
            session.get_one(Promotion, self._run.id).judgement = judgement
        return judgement

    def _act(self, snapshot: StepSnapshot, promotion: Promotion, assessments: Sequence[Assessment]) -> bool:
        step = self._config.resolve_step(promotion.step)
        outcome = decide_step(step, snapshot.seconds, snapshot.candidate, assessments)
        if outcome is StepOutcome.wait:
            self._show_progress(snapshot, promotion)
            return False
        measured = self._describe_step(snapshot, promotion, assessments)
        if outcome is StepOutcome.passed:
            return self._advance(measured, [])
        reason = _explain(
            promotion, measured, assessments, outcome, snapshot.candidate, step.min_requests or 0
        )
        if outcome is StepOutcome.violated:
            keeps = self._config.on_failure is FailureAction.keep
            kind: type[TunesmithError] = PromotionStopped if keeps else PromotionRolledBack
        elif self._config.on_undecided is UndecidedAction.advance:
            return self._advance(measured, [NewEvent.warning("promotion_undecided", reason)])
        else:
            keeps = self._config.on_undecided is UndecidedAction.keep
            kind = PromotionUndecided
        error = kind(*_conclude(reason, promotion, keeps=keeps), details=measured)
        return self._end(AttemptOutcome(error), roll_back=not keeps, measured=measured)

    def _advance(self, measured: dict[str, Any], events: list[NewEvent]) -> bool:
        """Begin the next step, or succeed after the last one; return whether the attempt has ended."""
        run, steps = self._run, self._config.steps
        with transaction() as session:
            self._lock_run(session)
            promotion = find_promotion(session, run.id)
            assert promotion is not None, "only this attempt ends it"
            check_unmoved(session, promotion)
            events = [*events, NewEvent(EventType.metrics, _numbers(measured), promotion.step + 1)]
            if promotion.step + 1 < len(steps):
                lifecycle.append_events(session, run.id, run.attempt, events)
                begin_next_step(session, promotion, steps[promotion.step + 1].share, measured)
                self._write_step(session, promotion)
                return False
            result = {
                "stage": "promote",
                "alias": promotion.alias,
                "deployment": promotion.deployment,
                "deployment_id": promotion.deployment_id,
                "version": promotion.version,
                "version_before": promotion.version_before,
                "steps": [*promotion.steps, measured],
                "judgement": promotion.judgement,
            }
            values = {"result": result, "step": len(steps), "total_steps": len(steps)}
            guards = lifecycle.lease_guards(run.attempt)
            moved = lifecycle.move(
                session, run.id, RunStatus.succeeded, guards=guards, values=values, events=events
            )
            # Otherwise a cancellation came first, which the next look handles.
            return moved is not None

    def _end(
        self,
        outcome: AttemptOutcome,
        *,
        roll_back: bool | None = None,
        measured: dict[str, Any] | None = None,
    ) -> bool:
        """End the attempt; a run that fails or is cancelled rolls back unless `roll_back` is False.

        If somebody else has moved the alias by then, this becomes the error.
        """
        run = self._run
        with transaction() as session:
            self._lock_run(session)
            promotion = find_promotion(session, run.id)
            if promotion is not None and roll_back is not None:
                error = None
                try:
                    check_unmoved(session, promotion)
                except AliasMoved as moved:
                    error = moved
                step = {"step": promotion.step + 1, "step_values": measured} if measured is not None else {}
                ended = end_promotion(session, run.id, roll_back=roll_back and error is None)
                event = NewEvent(EventType.promotion, {**ended, **step})
                lifecycle.append_events(session, run.id, run.attempt, [event])
                outcome = AttemptOutcome(error) if error is not None else outcome
            guards = lifecycle.lease_guards(run.attempt)
            failures = self._worker.settings.max_failures
            ended_run = lifecycle.end_attempt(session, run.id, outcome, guards, failures)
        if ended_run is not None and ended_run.status.finished and self._judge is not None:
            self._judge.close()
            self._judge.remove_files()
        return ended_run is not None

    def _show_progress(self, snapshot: StepSnapshot, promotion: Promotion) -> None:
        n = count_requests(snapshot.candidate)
        if n <= self._shown_requests * METRICS_GROWTH:
            return
        values = describe_measurement(snapshot.candidate, snapshot.present)
        share = self._config.steps[promotion.step].share
        event = NewEvent(EventType.metrics, {"share": share, **values}, promotion.step + 1)
        with transaction() as session:
            lifecycle.append_events(session, self._run.id, self._run.attempt, [event])
        self._shown_requests = n

    def _write_step(self, session: Session, promotion: Promotion) -> None:
        """Write the event of a step that begins, and the run's progress."""
        self._shown_requests = 0
        steps = self._config.steps
        data = {
            "alias": promotion.alias,
            "promotion": promotion.status,
            "deployment": promotion.deployment,
            "step": promotion.step + 1,
            "share": steps[promotion.step].share,
            "version": promotion.version,
        }
        values = {"step": promotion.step, "total_steps": len(steps)}
        event = NewEvent(EventType.promotion, data, promotion.step + 1)
        lifecycle.append_events(session, self._run.id, self._run.attempt, [event], values)

    def _describe_step(
        self, snapshot: StepSnapshot, promotion: Promotion, assessments: Sequence[Assessment]
    ) -> dict[str, Any]:
        return {
            "share": self._config.steps[promotion.step].share,
            "version": promotion.version,
            "seconds": round(snapshot.seconds, 3),
            **describe_measurement(snapshot.candidate, snapshot.present),
            "conditions": [assessment.as_dict() for assessment in assessments],
        }

    def _lock_run(self, session: Session) -> None:
        """Lock the run's row before the alias, as everybody does; raises StaleAttempt."""
        lifecycle.append_events(session, self._run.id, self._run.attempt, [])


def read_snapshot(run: Run) -> StepSnapshot:
    """Read the state of a promotion; raises AliasMoved if somebody else has changed the alias."""
    with read_session() as session:
        current = session.get_one(Run, run.id)
        if current.attempt != run.attempt:
            raise StaleAttempt(f"attempt {run.attempt} no longer holds {run.id}")
        promotion = find_promotion(session, run.id)
        if promotion is None:
            empty = TrafficCounts()
            return StepSnapshot(current.status, None, 0.0, empty, empty, "", None)
        if current.status is RunStatus.running:
            check_unmoved(session, promotion, lock=False)
        now: datetime = session.exec(select(database_now())).one()
        candidate, present = _sum_traffic(session, promotion)
        return StepSnapshot(
            status=current.status,
            promotion=promotion,
            seconds=(now - promotion.step_started_at).total_seconds(),
            candidate=candidate,
            present=present,
            present_deployment=_find_present(session, promotion),
            failure=_find_failure(session, promotion),
        )


def _sum_traffic(session: Session, promotion: Promotion) -> tuple[TrafficCounts, TrafficCounts]:
    candidate, present = TrafficCounts(), TrafficCounts()
    for version, counts in read_traffic(session, promotion).items():
        for deployment_id, count in counts.items():
            if deployment_id != promotion.deployment_id:
                present.add(count)
            elif version == promotion.version:
                candidate.add(count)
    return candidate, present


def _find_present(session: Session, promotion: Promotion) -> str:
    before = find_version(session, promotion.alias, promotion.version_before)
    assert before is not None, "the promotion began from it"
    others = list_others(before.targets, promotion.deployment)
    name: str = max(others, key=lambda target: target["share"])["deployment"]
    return name


def _find_failure(session: Session, promotion: Promotion) -> Assessment | None:
    deployment = session.get(Deployment, promotion.deployment_id)
    if deployment is None:
        message = f"the deployment {promotion.deployment!r} was deleted"
    elif deployment.status.finished or deployment.status is DeploymentStatus.stopping:
        reason = f": {deployment.error['message']}" if deployment.error else ""
        message = f"the deployment {promotion.deployment!r} is {deployment.status}{reason}"
    else:
        return None
    return Assessment("deployment", ConditionState.violated, None, 0.0, 0, None, message)


def _explain(
    promotion: Promotion,
    measured: dict[str, Any],
    assessments: Sequence[Assessment],
    outcome: StepOutcome,
    candidate: TrafficCounts,
    min_requests: int,
) -> str:
    """Return why a step has not passed."""
    where = (
        f"In step {promotion.step + 1} (share {measured['share']:g}) of {promotion.alias!r}, after "
        f"{measured['seconds']:.0f} s"
    )
    if outcome is StepOutcome.violated:
        found = [one for one in assessments if one.state is ConditionState.violated]
        return f"{where}: " + "; ".join(f"{one.condition}: {one.message}" for one in found) + "."
    open_ones = [one for one in assessments if one.state is ConditionState.undecided]
    parts = [f"{one.condition}: {one.message}" for one in open_ones]
    if (n := count_requests(candidate)) < min_requests:
        parts.insert(0, f"{n} of the {min_requests} requests that the step needs were served")
    return f"{where}, there is no decision: " + "; ".join(parts) + "."


def _conclude(reason: str, promotion: Promotion, *, keeps: bool) -> tuple[str, str]:
    """Return the message and the hint of a promotion that has failed."""
    if keeps:
        message = f"{reason} The alias keeps the share of this step."
        hint = f"Roll back: POST /api/v1/aliases/{promotion.alias}/rollback with version "
        return message, f"{hint}{promotion.version_before}; or move it on by hand."
    message = f"{reason} The alias has the targets of version {promotion.version_before} again."
    return message, "The values are in the run's error and events. A retry begins from the first step."


def _numbers(measured: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in measured.items() if isinstance(value, float | int)}
