"""Where runs are reported: tracking services and webhooks."""

from pathlib import Path
from typing import Literal

from pydantic import (
    Field,
    field_validator,
)
from pydantic_settings import BaseSettings

from app.settings.web_address import WebAddress


class ReportSettings(BaseSettings):
    """Where runs are reported: tracking services and webhooks."""

    mlflow_uri: WebAddress = Field(
        "", description="Address of the MLflow server to which workers export runs; empty exports none."
    )
    mlflow_public_url: WebAddress = Field(
        "", description="Address of that server for a browser; empty means the same address."
    )
    mlflow_experiment: str = Field("tunesmith", min_length=1, description="MLflow experiment of the runs.")
    wandb_project: str = Field(
        "",
        pattern=r"^([^/]+/)?[^/]*$",
        description="W&B project, or `entity/project`, to which workers export runs; empty exports none.",
    )
    wandb_mode: Literal["online", "offline"] = Field(
        "online",
        description="`offline` stores W&B runs in `wandb` in the worker's data directory, for `wandb sync`.",
    )
    tensorboard_dir: str = Field(
        "", description="Folder to which workers write TensorBoard files; empty writes none."
    )
    tracking_retry_seconds: float = Field(
        86_400,
        gt=0,
        description="Seconds after the end of a run during which an unavailable tracking service is retried.",
    )
    webhook_allowed_hosts: list[str] = Field(
        default_factory=list,
        description="Hosts and networks to which webhooks may be sent although they are private, or without "
        'TLS, as a JSON list of names, addresses and networks, such as `["hooks.internal", "10.1.0.0/16"]`.',
    )
    webhook_disable_seconds: float = Field(
        432_000,
        gt=0,
        description="Seconds without a successful delivery after which a webhook that fails is disabled.",
    )
    webhook_retry_seconds: float = Field(
        259_200,
        gt=0,
        description="Seconds for which the delivery of an event to a webhook is repeated until it succeeds.",
    )

    @field_validator("tensorboard_dir")
    @classmethod
    def _resolve_folder(cls, value: str) -> str:
        return str(Path(value).expanduser().resolve()) if value else value
