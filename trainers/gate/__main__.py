"""Decide whether an evaluation is good enough for a job to continue; no model is needed.

The exit status is 0 if the condition holds. Otherwise it is 1, and `error.json` has the code `gate_not_met`
with the values.

    python -m trainers.gate --config gate.yaml --run-dir runs/gate
"""

from pathlib import Path
from typing import Any

from trainers.configs.stages.evaluations.gate import GateConfig
from trainers.gate.decision import decide
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ProgramError
from trainers.runtime.events import EventWriter
from trainers.runtime.program import run_program


class GateNotMet(ProgramError):
    code = ErrorCode.gate_not_met


def run(config: GateConfig, run_dir: Path, events: EventWriter) -> dict[str, Any]:
    """Return the decision of a gate that is met; raises GateNotMet."""
    decision = decide(config)
    events.write_progress(1, 1)
    values = {"value": decision.value, "difference": decision.difference, "limit": decision.limit}
    events.write_metrics(1, 1, {name: value for name, value in values.items() if value is not None})
    for warning in decision.warnings:
        events.write_warning("gate_weakened", warning)
    if not decision.met:
        raise GateNotMet(
            f"The gate is not met: {decision.message}",
            "Train a better model, or change the gate if it asks for more than you need.",
            details=decision.model_dump(mode="json"),
        )
    return decision.model_dump(mode="json")


def plan(config: GateConfig) -> dict[str, Any]:
    """Return the decision without ending in an error."""
    return decide(config).model_dump(mode="json")


if __name__ == "__main__":
    run_program(GateConfig, run, plan)
