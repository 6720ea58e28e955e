"""The tracking services that the settings name, and what the exporter needs for them."""

import importlib.util
import os

from sqlmodel import select

from app.settings import Settings
from app.storage.database import read_session
from app.tables import FineTuningJob, Run
from workers.tracking.protocol import MlflowTarget, TensorboardTarget, TrackingTarget, WandbTarget

SERVICE_TITLES = {"mlflow": "MLflow", "wandb": "W&B", "tensorboard": "TensorBoard"}
SETTINGS = {
    "mlflow": "TUNESMITH_MLFLOW_URI",
    "wandb": "TUNESMITH_WANDB_PROJECT",
    "tensorboard": "TUNESMITH_TENSORBOARD_DIR",
}
# The exporter gets these variables of the worker and the services' own: not the passwords of the database
# and the broker, which the clients of the services could send in a report.
ENVIRONMENT = (
    "PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "LD_LIBRARY_PATH",
    "OMP_NUM_THREADS", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip
SERVICE_PREFIXES = ("MLFLOW_", "WANDB_", "TENSORBOARD_")
# The exporter retries by itself, and only the services in the settings may receive anything.
DEFAULTS = {
    "PYTHONUNBUFFERED": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "WANDB_ERROR_REPORTING": "false",
}


def list_targets(settings: Settings) -> list[TrackingTarget]:
    """Return the services that the settings name."""
    targets: list[TrackingTarget] = []
    if settings.mlflow_uri:
        url = settings.mlflow_public_url or settings.mlflow_uri
        targets.append(MlflowTarget(uri=settings.mlflow_uri, url=url, experiment=settings.mlflow_experiment))
    if settings.wandb_project:
        *entity, project = settings.wandb_project.split("/")
        targets.append(
            WandbTarget(
                project=project,
                entity=entity[0] if entity else None,
                mode=settings.wandb_mode,
                folder=settings.data_dir,
            )
        )
    if settings.tensorboard_dir:
        targets.append(TensorboardTarget(folder=settings.tensorboard_dir))
    return targets


def list_run_targets(settings: Settings, run: Run) -> list[TrackingTarget]:
    """Return the services of the settings, and the W&B project of the run's fine-tuning job in its place."""
    targets = list_targets(settings)
    with read_session() as session:
        job = session.exec(select(FineTuningJob).where(FineTuningJob.job_id == run.job_id)).one_or_none()
    if job is None:
        return targets
    for integration in job.integrations:
        wandb = integration["wandb"]
        default_tags = ["openai/finetune", f"openai/{job.base_name}", f"openai/{job.id}"]
        own = WandbTarget(
            project=wandb["project"],
            entity=wandb["entity"],
            mode=settings.wandb_mode,
            folder=settings.data_dir,
            name=wandb["name"] or job.id,
            tags=[*default_tags, *wandb["tags"]],
        )
        targets = [target for target in targets if target.service != own.service] + [own]
    return targets


def explain_missing_packages(settings: Settings) -> str | None:
    """Return which settings need a package that is not installed, with the fix, or None."""
    missing = [
        SETTINGS[target.service]
        for target in list_targets(settings)
        if importlib.util.find_spec(target.service) is None
    ]
    if not missing:
        return None
    return (
        f"{' and '.join(missing)} cannot be used: the tracking packages are not installed. "
        'Run `pip install -c constraints.txt ".[tracking]"`, or leave the setting empty.'
    )


def exporter_environment() -> dict[str, str]:
    """Return the environment variables of the exporter."""
    passed = {
        name: value
        for name, value in os.environ.items()
        if name in ENVIRONMENT or name.startswith(SERVICE_PREFIXES)
    }
    return DEFAULTS | passed
