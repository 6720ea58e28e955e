"""The outcomes of the runs of a sweep, from which the program of `select` chooses."""

import math
from typing import Any

from sqlmodel import col, select

from app.storage.database import read_session
from app.tables import Model, Run, RunStatus
from trainers.configs import SelectConfig
from trainers.configs.stages.evaluations.select import TryOutcome
from trainers.configs.validation import MAX_LOSS_BLOCKS


def read_tries(job_id: str, config: SelectConfig) -> SelectConfig:
    """Return the config with the outcome of each try."""
    names = [each.stage for each in config.tries]
    with read_session() as session:
        of_job = select(Run).where(col(Run.job_id) == job_id, col(Run.name).in_(names))
        runs = {run.name: run for run in session.exec(of_job)}
        ids = [run.model_id for run in runs.values() if run.model_id is not None]
        existing = select(Model.id).where(col(Model.id).in_(ids), col(Model.deleted_at).is_(None))
        models = set(session.exec(existing))
    tries = [
        each.model_copy(update={"outcome": _read_outcome(runs[each.stage], models)}) for each in config.tries
    ]
    return config.model_copy(update={"tries": tries})


def _read_outcome(run: Run, models: set[str]) -> TryOutcome:
    seconds = (
        (run.finished_at - run.started_at).total_seconds() if run.finished_at and run.started_at else None
    )
    if run.status is not RunStatus.succeeded or run.model_id not in models:
        error = str((run.error or {}).get("message", "Its model was deleted."))[:1000]
        return TryOutcome(run_id=run.id, error=error, seconds=seconds)
    # The result is of a program, which is not trusted: what is not a number is left out.
    metrics = (run.result or {}).get("metrics", {})
    losses = (run.result or {}).get("validation_block_losses", [])
    usable = len(losses) <= MAX_LOSS_BLOCKS and all(map(_is_number, losses))
    loss, step = metrics.get("best_validation_loss"), metrics.get("best_step")
    return TryOutcome(
        run_id=run.id,
        model_id=run.model_id,
        loss=float(loss) if _is_number(loss) else None,
        step=step if isinstance(step, int) else None,
        block_losses=[float(value) for value in losses] if usable else [],
        seconds=seconds,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and abs(value) <= 1e9
