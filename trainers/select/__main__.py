"""Choose the best of several training stages by their validation loss; no model is loaded.

The loss of the chosen model is too good, because chance has helped it to be chosen: the result also contains
the loss to expect on new rows.

    python -m trainers.select --config select.yaml --run-dir runs/select
"""

from pathlib import Path
from typing import Any

import numpy as np

from trainers.configs.stages.evaluations.select import SelectConfig, SweepTry, TryOutcome
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ConfigInvalid, ProgramError
from trainers.runtime.events import EventWriter
from trainers.runtime.program import run_program
from trainers.statistics.selection import corrected_loss, loss_interval

# With fewer blocks of validation rows, an interval would be arbitrary.
MIN_BLOCKS = 5
NOTE = (
    "The loss of the chosen run is optimistic: the same rows have selected it. `corrected_loss` is the loss "
    "to expect on new rows; evaluate the model on rows that have selected nothing."
)


class SweepFailed(ProgramError):
    code = ErrorCode.sweep_failed


def run(config: SelectConfig, run_dir: Path, events: EventWriter) -> dict[str, Any]:
    """Return the table of tries and the name of the chosen one; raises SweepFailed if all have failed."""
    result = _select(config)
    events.write_progress(1, 1)
    events.write_metrics(1, 1, {"tries": len(config.tries), "best_validation_loss": result["loss"]})
    return result


def plan(config: SelectConfig) -> dict[str, Any]:
    """Return the choice."""
    return _select(config)


def _select(config: SelectConfig) -> dict[str, Any]:
    usable = [(each, _outcome(each)) for each in config.tries if _outcome(each).loss is not None]
    if not usable:
        errors = "; ".join(f"{each.stage}: {_outcome(each).error}" for each in config.tries)
        raise SweepFailed(
            f"No run of the sweep has a validation loss. {errors}",
            "Read the logs of its runs, and submit the job again with other values.",
        )
    best, outcome = min(usable, key=lambda pair: (pair[1].loss, config.tries.index(pair[0])))
    return {
        "stage": "select",
        "chosen": best.stage,
        "values": best.values,
        "chosen_run_id": outcome.run_id,
        "loss": outcome.loss,
        "corrected_loss": _correct([each for _, each in usable]),
        "combinations": config.combinations or len(config.tries),
        "seconds": sum(_outcome(each).seconds or 0.0 for each in config.tries),
        "tries": [_describe(each, chosen=each is best) for each in config.tries],
        "note": NOTE,
    }


def _outcome(each: SweepTry) -> TryOutcome:
    if each.outcome is None:
        raise ConfigInvalid(
            f"The try {each.stage!r} has no outcome.", "Submit the sweep as a job: its worker writes them."
        )
    return each.outcome


def _correct(outcomes: list[TryOutcome]) -> dict[str, float] | None:
    """Return the corrected loss with its interval; None unless the tries have losses of the same blocks."""
    lengths = {len(each.block_losses) for each in outcomes}
    if len(lengths) > 1 or min(lengths) < MIN_BLOCKS:
        return None
    corrected = corrected_loss(np.array([each.block_losses for each in outcomes]))
    return {"value": corrected.value, "low": corrected.low, "high": corrected.high}


def _describe(each: SweepTry, *, chosen: bool) -> dict[str, Any]:
    outcome = _outcome(each)
    interval = None
    if outcome.loss is not None and len(outcome.block_losses) >= MIN_BLOCKS:
        interval = loss_interval(outcome.loss, np.array(outcome.block_losses))
    return {
        "stage": each.stage,
        "values": each.values,
        "chosen": chosen,
        "run_id": outcome.run_id,
        "model_id": outcome.model_id,
        "loss": outcome.loss,
        "low": None if interval is None else interval.low,
        "high": None if interval is None else interval.high,
        "step": outcome.step,
        "seconds": outcome.seconds,
        "error": outcome.error,
    }


if __name__ == "__main__":
    run_program(SelectConfig, run, plan)
