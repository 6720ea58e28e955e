"""The engines of deployments."""

from pydantic import (
    Field,
    field_validator,
)
from pydantic_settings import BaseSettings

from serving.http.addresses import is_private
from trainers.configs import EngineKind, ParityMode


class EngineSettings(BaseSettings):
    """The engines of deployments."""

    engine_host: str = Field(
        "127.0.0.1",
        description="Address on which a worker's engines listen, and at which the gateway reaches them.",
    )
    engine_commands: dict[EngineKind, list[str]] = Field(
        default_factory=dict,
        description='Commands that start engines on this host, as JSON: `{"vllm": ["/opt/vllm/bin/vllm", '
        '"serve"]}`.',
    )
    parity: ParityMode = Field(
        ParityMode.on,
        description="Comparison of an engine with the trained model: if they differ, `on` fails the "
        "deployment and `warn` serves it with a warning; `off` skips the comparison.",
    )
    idle_seconds: float = Field(
        0,
        ge=0,
        description="Seconds without a request after which a deployment is put to sleep; 0 means never.",
    )
    evict_idle_seconds: float = Field(
        0,
        ge=0,
        description="Seconds without a request after which a deployment that holds GPUs is put to sleep for "
        "another one that waits for them; 0 means never. One that never sleeps keeps them.",
    )
    wake_timeout_seconds: float = Field(
        60, gt=0, description="Seconds that a request waits for a sleeping deployment before it gets 503."
    )
    drain_seconds: float = Field(
        30, ge=0, description="Seconds that a stopping engine has to complete the responses in progress."
    )
    probe_seconds: float = Field(
        30, gt=0, description="Seconds between two chats by which a worker checks each model of an engine."
    )
    probe_timeout_seconds: float = Field(
        60,
        gt=0,
        description="Seconds that such a chat may take; three failures in a row restart the engine.",
    )

    @field_validator("engine_host")
    @classmethod
    def _check_private(cls, value: str) -> str:
        """Reject public addresses: engines check no key, so any client could load adapters."""
        if not is_private(value):
            raise ValueError(
                f"{value} is a public or wildcard address; engines check no key, so they must listen on "
                "loopback or a private address"
            )
        return value
