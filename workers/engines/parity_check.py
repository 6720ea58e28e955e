"""The proof that an engine serves what was trained, before a deployment opens to requests."""

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.settings import Settings
from app.storage.artifacts import ArtifactCorrupt
from app.storage.database import read_session
from app.tables import Dataset, Deployment, Model, Run
from serving.engines import Engine
from serving.engines.child_engine import log_tail
from serving.parity import spot_check
from trainers.configs import EngineOptions, Queue, StageKind
from workers.hosts import guarded_process
from workers.hosts.lease import Lease
from workers.runs.launch import LaunchError, ResolvedModel, fetch_dataset, fetch_model, program_environment

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
PROOF_SECONDS = 1800.0


@dataclass(frozen=True)
class ParityTarget:
    """A model on an engine, under the name by which the engine knows it."""

    engine: Engine
    address: str
    name: str
    model: ResolvedModel


@dataclass(frozen=True)
class Trained:
    """The form in which a deployment's model was trained, and what its training has left."""

    model: ResolvedModel
    template_sha256: str | None = None
    dataset: Path | None = None


def check_parity(
    settings: Settings,
    deployment: Deployment,
    served: ParityTarget,
    folder: Path,
    lease: Lease,
    look: Callable[[], None],
) -> dict[str, Any]:
    """How the served model compares with the trained one: a report with `passed` and `message`.

    What has passed before is proved by one chat of it, which its report holds. Else a program compares, in
    `folder`; it is bound to the lease as every child is, and meanwhile `look` is called, which may raise to
    leave. Raises EngineRefused when the engine does not answer.
    """
    before = deployment.parity
    if (
        before
        and before["passed"]
        and spot_check.passes_spot_check(served.engine, served.address, served.name, before)
    ):
        return before
    report, log = folder / f"parity-{deployment.id}.json", folder / f"parity-{deployment.id}.log"
    report.unlink(missing_ok=True)
    command = _command(settings, deployment, served, _trained(deployment, served.model, settings), report)
    status = _carry_out(command, log, lease, look)
    if not report.exists():
        return {"passed": False, "message": _untold(status, log)}
    told: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return told | {"message": told["difference"]["message"] if told["difference"] else "They agree."}


def _trained(deployment: Deployment, model: ResolvedModel, settings: Settings) -> Trained:
    """What was trained: of merged weights, the adapter on its base that they were merged from."""
    if deployment.model_id is None:
        return Trained(model)
    with read_session() as session:
        row = session.get_one(Model, deployment.model_id)
        run = session.get(Run, row.run_id) if row.run_id else None
        dataset = session.get(Dataset, row.dataset_id) if row.dataset_id else None
    path = None
    try:
        path = fetch_dataset(dataset, settings) if dataset is not None else None
        if run is not None and run.stage is StageKind.merge:
            model = fetch_model(run.job_id, run.config["model"], settings)
    except (OSError, ArtifactCorrupt, LaunchError) as gone:
        logger.warning("%s is proved without all that it was made from: %s", deployment.id, gone)
    return Trained(model, row.template_sha256, path)


def _command(
    settings: Settings, deployment: Deployment, served: ParityTarget, trained: Trained, report: Path
) -> list[str]:
    options = EngineOptions.model_validate(deployment.options)
    precision = options.quantization or (None if options.dtype == "auto" else options.dtype)
    asked = {
        "--engine": deployment.engine.value,
        "--address": served.address,
        "--name": served.name,
        "--base": trained.model.base,
        "--adapter": trained.model.adapter,
        "--precision": precision,
        "--template-sha256": trained.template_sha256,
        "--dataset": trained.dataset,
        "--report": report,
    }
    command = [settings.trainer_python or sys.executable, "-m", "serving.parity"]
    return command + [str(part) for pair in asked.items() if pair[1] is not None for part in pair]


def _carry_out(command: list[str], log: Path, lease: Lease, look: Callable[[], None]) -> int:
    """Run the comparison on the CPU, whose memory no engine has taken, and answer its exit status."""
    child = guarded_process.start_guarded_process(
        command, log=log, environment=program_environment(Queue.cpu, []), seconds=lease.seconds_left
    )
    lease.bind(child)
    try:
        for _ in range(int(PROOF_SECONDS / LOOK_SECONDS)):
            if (status := child.wait(LOOK_SECONDS)) is not None:
                return status
            look()
        return guarded_process.EXIT_SIGNAL_BASE
    finally:
        lease.unbind(child)
        child.kill()


def _untold(status: int, log: Path) -> str:
    return (
        f"It could not be told whether the engine serves what was trained; the comparison ended with status "
        f"{status}: {log_tail(log)}"
    )
