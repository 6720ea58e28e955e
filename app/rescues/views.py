"""The state of a rescue, from its rows and those of its jobs."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlmodel import Session, col, select

from app.jobs.graph.status import find_deciding_run
from app.rescues.plan import AGREEMENT, EVALUATE, GATE, RECORD, estimate_cost
from app.rescues.schemas import RescueComparisonView, RescueStart, RescueStatus, RescueView
from app.rescues.service import list_job_runs
from app.runs.schemas import ErrorView
from app.settings import Settings
from app.tables import Evaluation, FineTuningJob, Rescue, Run, RunStatus
from trainers.runtime.error_codes import ErrorCode

_STATUSES = {
    RunStatus.succeeded: RescueStatus.succeeded,
    RunStatus.failed: RescueStatus.failed,
    RunStatus.cancelled: RescueStatus.cancelled,
}


def view_rescue(session: Session, settings: Settings, rescue: Rescue) -> RescueView:
    """Build the view of a rescue."""
    fetching = list_job_runs(session, rescue.fetch_job_id)
    runs = list_job_runs(session, rescue.job_id)
    by_name = {run.name: run for run in runs}
    fetched = fetching[0].result if fetching and fetching[0].status is RunStatus.succeeded else None
    start = RescueStart.model_validate(rescue.start) if rescue.start is not None else None
    comparison = _view_comparison(session, by_name)
    status, error = _find_status(fetching, runs, comparison)
    recording = by_name.get(RECORD)
    evaluation = _find_evaluation(session, by_name.get(EVALUATE))
    return RescueView(
        id=rescue.id,
        status=status,
        fine_tuned_model=rescue.fine_tuned_model,
        source=fetched["source"] if fetched is not None else None,
        rows=fetched["rows"] if fetched is not None else None,
        fetched_files=fetched["files"] if fetched is not None else None,
        estimate=estimate_cost(settings, fetched, start) if fetched is not None else None,
        recorded=_view_recorded(recording.result) if recording is not None and recording.result else None,
        fetch_job_id=str(rescue.fetch_job_id),
        job_id=rescue.job_id,
        fine_tuning_job_id=rescue.fine_tuning_job_id,
        new_model=_find_new_model(session, rescue, runs),
        files=rescue.files,
        evaluation_id=evaluation.id if evaluation is not None else None,
        comparison=comparison,
        error=ErrorView.model_validate(error) if error is not None else None,
        created_at=rescue.created_at,
    )


def _find_status(
    fetching: Sequence[Run], runs: Sequence[Run], comparison: RescueComparisonView | None
) -> tuple[RescueStatus, dict[str, Any] | None]:
    if not runs:
        # Without a job, it was deleted, and with it what was fetched.
        first = fetching[0] if fetching else None
        status = RunStatus.cancelled if first is None else first.status
        if status is RunStatus.succeeded:
            return RescueStatus.ready, None
        return _STATUSES.get(status, RescueStatus.fetching), first.error if first is not None else None
    deciding = find_deciding_run(runs)
    if not deciding.status.finished:
        return RescueStatus.running, None
    if comparison is not None:
        # That the new model is not as good is an outcome of the rescue, not its failure.
        return RescueStatus.succeeded, None
    return _STATUSES.get(deciding.status, RescueStatus.running), deciding.error


def _view_comparison(session: Session, by_name: Mapping[str, Run]) -> RescueComparisonView | None:
    gate = by_name.get(GATE)
    if gate is None or not gate.status.finished:
        return None
    decision = gate.result
    if gate.error is not None and gate.error.get("code") == ErrorCode.gate_not_met:
        decision = gate.error.get("details")
    if decision is None:
        return None
    agreement = _find_evaluation(session, by_name.get(AGREEMENT))
    return RescueComparisonView(
        as_good=decision["met"],
        metric=decision["metric"],
        n=decision["n"],
        value=decision["value"],
        other_value=decision["other_value"],
        difference=decision["difference"],
        interval_95=decision["interval_95"],
        margin=gate.config["margin"],
        message=decision["message"],
        agreement=agreement.scores[0]["value"] if agreement is not None else None,
    )


def _find_evaluation(session: Session, run: Run | None) -> Evaluation | None:
    if run is None:
        return None
    of_model = select(Evaluation).where(Evaluation.run_id == run.id, col(Evaluation.role) == "model")
    return session.exec(of_model).one_or_none()


def _find_new_model(session: Session, rescue: Rescue, runs: Sequence[Run]) -> str | None:
    if not runs or runs[0].status is not RunStatus.succeeded:
        return None
    job = session.get(FineTuningJob, rescue.fine_tuning_job_id)
    return job.fine_tuned_model if job is not None else None


def _view_recorded(result: Mapping[str, Any]) -> dict[str, Any]:
    names = ("rows", "counts", "asked_again", "tokens", "cost", "with_logprobs")
    return {name: result.get(name) for name in names}
