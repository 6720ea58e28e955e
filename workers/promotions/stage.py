"""The `promote` stage: moves an alias step by step, and rolls back when a condition does not hold.

The state is in the rows of the promotion and of the alias, which change in one transaction. An attempt that
follows one which was killed therefore continues the same step, and moves nothing again.
"""

import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from sqlmodel import Session

from app.aliases.promotions import (
    begin_next_step,
    begin_promotion,
    check_unmoved,
    end_promotion,
    find_promotion,
)
from app.promotions.decision import (
    Assessment,
    StepOutcome,
    assess,
    assess_judgement,
    count_requests,
    decide_step,
    describe_measurement,
)
from app.runs import lifecycle
from app.runs.attempt_outcome import AttemptOutcome, NewEvent
from app.runs.lifecycle import StaleAttempt
from app.scheduling.incidents import describe_error
from app.storage.database import DATABASE_UNAVAILABLE, read_session, transaction
from app.tables import EventType, Promotion, Run, RunStatus
from trainers.configs import PromoteConfig
from trainers.configs.stages.serving.promote import FailureAction, UndecidedAction
from trainers.runtime.errors import TunesmithError
from workers.hosts.lease import Lease
from workers.hosts.worker import WorkerContext
from workers.promotions.errors import (
    PromotionRolledBack,
    PromotionStopped,
    PromotionUndecided,
    build_error,
    explain_outcome,
)
from workers.promotions.judge import PromotionJudge, describe_judgement
from workers.promotions.snapshot import StepSnapshot, read_snapshot

POLL_SECONDS = 1.0
# An event with the values follows each such growth of the requests: few, however long a step lasts.
METRICS_GROWTH = 1.25

logger = logging.getLogger(__name__)


def run_promote_stage(worker: WorkerContext, run: Run, lease: Lease) -> None:
    """Move the alias until the last step has passed, a condition fails, or the run must stop."""
    config = run.stage_config()
    assert isinstance(config, PromoteConfig)
    execution = _PromotionExecution(worker, run, lease, config)
    try:
        while not _poll(execution, run):
            if lease.lost.wait(POLL_SECONDS):
                raise StaleAttempt(f"attempt {run.attempt} of {run.id} lost its lease")
    finally:
        execution.close()


def _poll(execution: "_PromotionExecution", run: Run) -> bool:
    try:
        return execution.poll()
    except DATABASE_UNAVAILABLE as error:
        logger.warning("cannot watch the promotion: %s", describe_error(error), extra={"run_id": run.id})
        return False


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
        """Kill the judge's program, if it runs; its files stay for the next attempt, if there is one."""
        if self._judge is None:
            return
        self._judge.close()
        with suppress(*DATABASE_UNAVAILABLE), read_session() as session:
            if session.get_one(Run, self._run.id).status.finished:
                self._judge.remove_files()

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
        except TunesmithError as error:
            # The alias was moved, or the judge failed: after an infrastructure error, the run is retried.
            return self._end(AttemptOutcome(error))

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
        reason = explain_outcome(
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
        return self._fail(kind, reason, measured, keeps=keeps)

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

    def _fail(
        self, kind: type[TunesmithError], reason: str, measured: dict[str, Any], *, keeps: bool
    ) -> bool:
        """Fail, and roll back unless `keeps`; return whether the attempt has ended."""
        run = self._run
        with transaction() as session:
            self._lock_run(session)
            promotion = find_promotion(session, run.id)
            assert promotion is not None, "only this attempt ends it"
            check_unmoved(session, promotion)
            ended = end_promotion(session, run.id, roll_back=not keeps)
            restored = "restored_version" in ended
            error = build_error(kind, reason, promotion, measured, keeps=keeps, restored=restored)
            step = {"step": promotion.step + 1, "step_values": measured}
            event = NewEvent(EventType.promotion, {**ended, **step}, promotion.step + 1)
            lifecycle.append_events(session, run.id, run.attempt, [event])
            return self._end_attempt(session, AttemptOutcome(error))

    def _end(self, outcome: AttemptOutcome) -> bool:
        """End the attempt; a run that becomes failed or cancelled rolls back, unless the alias was moved."""
        with transaction() as session:
            return self._end_attempt(session, outcome)

    def _end_attempt(self, session: Session, outcome: AttemptOutcome) -> bool:
        guards = lifecycle.lease_guards(self._run.attempt)
        failures = self._worker.settings.max_failures
        ended = lifecycle.end_attempt(session, self._run.id, outcome, guards, failures)
        if ended is None:
            # Raises StaleAttempt unless this attempt still holds the run; then the next look decides again.
            self._lock_run(session)
        return ended is not None

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


def _numbers(measured: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in measured.items() if isinstance(value, float | int)}
