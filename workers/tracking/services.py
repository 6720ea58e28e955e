"""Which tracking services the settings turn on, and what each needs of this host."""

import importlib.util
import os

from app.settings import Settings
from workers.tracking.protocol import MlflowTarget, TensorboardTarget, TrackingTarget, WandbTarget

SETTINGS = {
    "mlflow": "TUNESMITH_MLFLOW_URI",
    "wandb": "TUNESMITH_WANDB_PROJECT",
    "tensorboard": "TUNESMITH_TENSORBOARD_DIR",
}
# A sender gets these of the worker's variables and those that begin with its service's name: neither the
# database's password, nor the broker's, nor another service's key.
ENVIRONMENT = (
    "PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "LD_LIBRARY_PATH",
    "OMP_NUM_THREADS", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip
# A sender tries again by itself, and nothing is sent to anyone but the service that the settings name.
DEFAULTS = {
    "mlflow": {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    },
    "wandb": {"WANDB_ERROR_REPORTING": "false"},
    "tensorboard": {},
}


def list_targets(settings: Settings) -> list[TrackingTarget]:
    """The services that are on."""
    found: list[TrackingTarget] = []
    if settings.mlflow_uri:
        url = settings.mlflow_public_url or settings.mlflow_uri
        found.append(MlflowTarget(uri=settings.mlflow_uri, url=url, experiment=settings.mlflow_experiment))
    if settings.wandb_project:
        *entity, project = settings.wandb_project.split("/")
        found.append(
            WandbTarget(
                project=project,
                entity=entity[0] if entity else None,
                mode=settings.wandb_mode,
                folder=settings.data_dir,
            )
        )
    if settings.tensorboard_dir:
        found.append(TensorboardTarget(folder=settings.tensorboard_dir))
    return found


def explain_missing_packages(settings: Settings) -> str | None:
    """What keeps this worker from the services that are on, as a sentence that says what to do."""
    missing = [
        target.service
        for target in list_targets(settings)
        if importlib.util.find_spec(target.service) is None
    ]
    if not missing:
        return None
    named = " and ".join(SETTINGS[service] for service in missing)
    return (
        f"{named} cannot be used: the tracking packages are not installed. "
        'Run `pip install -c constraints.txt ".[tracking]"`, or leave the setting empty.'
    )


def environment(target: TrackingTarget) -> dict[str, str]:
    """The variables of a sender."""
    prefix = f"{target.service.upper()}_"
    passed = {
        name: value for name, value in os.environ.items() if name in ENVIRONMENT or name.startswith(prefix)
    }
    return {"PYTHONUNBUFFERED": "1", **DEFAULTS[target.service], **passed}
