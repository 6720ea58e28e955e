"""The settings that must be equal on all hosts, which a host that joins receives."""

import json
from typing import Any

from pydantic import BaseModel
from pydantic_settings import BaseSettings

PREFIX = "TUNESMITH_"
# No secret is among them: keys of endpoints and of OpenAI are set on the hosts that use them.
SHARED_SETTINGS = (
    "lease_seconds",
    "heartbeat_seconds",
    "sweep_seconds",
    "renotify_seconds",
    "max_failures",
    "max_overtake_seconds",
    "stop_grace_seconds",
    "pause_grace_seconds",
    "stage_limits",
    "python_graders",
    "python_grader_seconds",
    "hub_push_namespaces",
    "parity",
    "organization",
    "mlflow_uri",
    "mlflow_experiment",
    "wandb_project",
    "wandb_mode",
    "s3_endpoint_url",
    "s3_addressing",
    "s3_encryption",
    "s3_kms_key_id",
)


def list_shared_values(settings: BaseSettings) -> dict[str, str]:
    """Return the shared settings that differ from their defaults, as variables and their values."""
    fields = type(settings).model_fields
    values = {name: getattr(settings, name) for name in SHARED_SETTINGS}
    changed = {
        name: value
        for name, value in values.items()
        if value != fields[name].get_default(call_default_factory=True)
    }
    return {f"{PREFIX}{name.upper()}": _write(value) for name, value in changed.items()}


def _write(value: Any) -> str:
    """Return a value as a variable contains it: text as it is, all else as JSON."""
    if isinstance(value, str):
        return str(value)
    return json.dumps(
        value,
        default=lambda one: (
            one.model_dump(mode="json", exclude_unset=True) if isinstance(one, BaseModel) else str(one)
        ),
    )
