"""Parity check: comparison of a served model with the trained one before the deployment accepts requests."""

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.settings import Settings
from app.storage.database import read_session
from app.storage.manifest import ArtifactCorrupt
from app.tables import Dataset, Deployment, Model, Run
from serving.engines import Engine
from serving.engines.child_engine import log_tail
from serving.parity.spot_check import passes_spot_check
from trainers.configs import EngineOptions, ExportConfig, MergeConfig
from workers.hosts.devices import NO_DEVICES
from workers.hosts.environments import empty_folder, program_environment
from workers.hosts.guard_options import EXIT_SIGNAL_BASE
from workers.hosts.guarded_process import start_guarded_process
from workers.hosts.lease import Lease
from workers.hosts.worker import WorkerContext
from workers.inputs.datasets import fetch_dataset
from workers.inputs.errors import LaunchError
from workers.inputs.models import ResolvedModel, fetch_model

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
COMPARISON_TIMEOUT_SECONDS = 1800.0


@dataclass(frozen=True)
class ParityTarget:
    """A model on an engine; `name` is the model name that the engine expects in requests."""

    engine: Engine
    address: str
    name: str
    model: ResolvedModel


@dataclass(frozen=True)
class ParityReference:
    """The model in the form in which it was trained, and its dataset, whose prompts are compared too."""

    model: ResolvedModel
    template_sha256: str | None = None
    dataset: Path | None = None


def check_parity(
    worker: WorkerContext,
    deployment: Deployment,
    target: ParityTarget,
    folder: Path,
    lease: Lease,
    poll: Callable[[], None],
) -> dict[str, Any]:
    """Compare the served model with the trained one and return a report with `passed` and `message`.

    If an earlier start of the deployment passed, one chat from its report is compared. Otherwise a program
    compares both models; it writes to `folder` and is bound to the lease. `poll` is called while it runs
    and may raise to abort it.

    Raises:
        EngineRequestFailed: The engine does not respond.
    """
    earlier = deployment.parity
    if (
        earlier
        and earlier["passed"]
        and passes_spot_check(target.engine, target.address, target.name, earlier)
    ):
        return earlier
    report_file = folder / f"parity-{deployment.id}.json"
    log = folder / f"parity-{deployment.id}.log"
    report_file.unlink(missing_ok=True)
    reference = _load_reference(deployment, target.model, worker.settings)
    command = _build_command(worker.settings, deployment, target, reference, report_file)
    status = _run_comparison(worker, command, log, lease, poll)
    if not report_file.exists():
        message = (
            "Parity of the served model and the trained model could not be checked; the comparison exited "
            f"with status {status}: {log_tail(log)}"
        )
        return {"passed": False, "message": message}
    report: dict[str, Any] = json.loads(report_file.read_text(encoding="utf-8"))
    return report | {"message": report["difference"]["message"] if report["difference"] else "They agree."}


def _load_reference(deployment: Deployment, model: ResolvedModel, settings: Settings) -> ParityReference:
    """Return the trained model; for merged weights, the adapter from which they were merged and its base."""
    if deployment.model_id is None:
        return ParityReference(model)
    with read_session() as session:
        row = session.get_one(Model, deployment.model_id)
        run = session.get(Run, row.run_id) if row.run_id else None
        dataset = session.get(Dataset, row.dataset_id) if row.dataset_id else None
    path = None
    try:
        if dataset is not None and dataset.deleted_at is None:
            path = fetch_dataset(dataset)
        if run is not None and isinstance(merge := run.stage_config(), MergeConfig | ExportConfig):
            model = fetch_model(run.job_id, merge.model, settings)
    except (OSError, ArtifactCorrupt, LaunchError) as error:
        logger.warning("%s: an input of its training cannot be compared: %s", deployment.id, error)
    return ParityReference(model, row.template_sha256, path)


def _build_command(
    settings: Settings,
    deployment: Deployment,
    target: ParityTarget,
    reference: ParityReference,
    report_file: Path,
) -> list[str]:
    options = EngineOptions.model_validate(deployment.options)
    precision = options.quantization or (None if options.dtype == "auto" else options.dtype)
    arguments = {
        "--engine": deployment.engine.value,
        "--address": target.address,
        "--name": target.name,
        "--base": reference.model.base,
        "--adapter": reference.model.adapter,
        "--precision": precision,
        "--template-sha256": reference.template_sha256,
        "--dataset": reference.dataset,
        "--task": deployment.task.value,
        "--pooling": deployment.pooling,
        "--report": report_file,
    }
    command = [settings.trainer_python or sys.executable, "-m", "serving.parity"]
    for option, value in arguments.items():
        if value is not None:
            command += [option, str(value)]
    return command


def _run_comparison(
    worker: WorkerContext, command: list[str], log: Path, lease: Lease, poll: Callable[[], None]
) -> int:
    """Run the program and return its exit status; it runs on the CPU because the engine owns the devices."""
    process = start_guarded_process(
        command,
        log=log,
        folder=empty_folder(log.parent, ".empty-parity"),
        environment=program_environment(NO_DEVICES),
        seconds=lease.seconds_left,
        fork_server=worker.fork_server,
    )
    lease.bind(process)
    try:
        for _ in range(int(COMPARISON_TIMEOUT_SECONDS / POLL_SECONDS)):
            if (status := process.wait(POLL_SECONDS)) is not None:
                return status
            poll()
        return EXIT_SIGNAL_BASE
    finally:
        lease.unbind(process)
        process.kill()
