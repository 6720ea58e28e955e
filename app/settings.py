"""Everything that the environment decides, read once from `TUNESMITH_*` variables and `.env`."""

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from serving.http.addresses import is_private
from trainers.configs import EngineKind, ParityMode, Queue


def _web_address(url: str) -> str:
    """The API shows these addresses to everyone who may read."""
    if url and not url.startswith(("http://", "https://")):
        raise ValueError("an address begins with http:// or https://")
    if "@" in url:
        raise ValueError(
            "an address holds no credentials: give workers MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    return url.rstrip("/")


LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(str.upper)]
WebAddress = Annotated[str, AfterValidator(_web_address)]


class Settings(BaseSettings):
    """Settings of the service and its workers; the defaults need no server, GPU or network."""

    model_config = SettingsConfigDict(env_prefix="TUNESMITH_", env_file=".env", extra="ignore")

    data_dir: Path = Field(Path("data"), description="Where the embedded database, queue and artifacts live.")
    database_url: SecretStr = Field(
        SecretStr(""), description="SQLAlchemy URL; empty means SQLite in the data directory."
    )
    broker_url: SecretStr = Field(
        SecretStr(""),
        description="Redis URL; empty means Celery's filesystem transport in the data directory.",
    )
    artifacts_url: str = Field(
        "", description="fsspec URL of the artifact store; empty means `artifacts` in the data directory."
    )
    model_roots: list[Path] = Field(
        default_factory=list,
        description="Folders under which models may be read, as a JSON list; `models` in the data directory.",
    )
    dataset_roots: list[Path] = Field(
        default_factory=list,
        description="Folders under which `prepare` may read files, as a JSON list; `sources` in the data "
        "directory.",
    )

    host: str = Field(
        "127.0.0.1", description="Address that the API binds to; other than loopback needs an API key."
    )
    port: int = Field(8000, ge=0, le=65535, description="Port of the API; 0 takes a free one.")
    log_level: LogLevel = Field("INFO", description="Python's name of the least level to log.")

    default_queue: Queue = Field(Queue.cpu, description="Queue of stages whose spec names none.")
    max_upload_bytes: int = Field(20 * 2**30, gt=0, description="Largest dataset file accepted.")

    lease_seconds: float = Field(30, gt=0, description="How long a worker holds a run without renewing.")
    heartbeat_seconds: float = Field(10, gt=0, description="How often a worker renews its leases.")
    sweep_seconds: float = Field(
        5, gt=0, description="How often expired leases and silent queues are looked for."
    )
    renotify_seconds: float = Field(
        15, gt=0, description="How long a run may stay queued before its bell is rung again."
    )
    max_faults: int = Field(
        3,
        ge=0,
        description="Infrastructure faults since the last checkpoint after which a run is failed.",
    )
    stop_grace_seconds: float = Field(
        5, gt=0, description="From asking a cancelled program to stop to killing it."
    )
    pause_grace_seconds: float = Field(
        120, gt=0, description="From asking a program to save and stop to killing it."
    )

    engine_host: str = Field(
        "127.0.0.1",
        description="Address on which a worker's engines listen and by which the gateway reaches them.",
    )
    engine_programs: dict[EngineKind, list[str]] = Field(
        default_factory=dict,
        description='Commands that start engines on this host, as JSON: `{"vllm": ["/opt/vllm/bin/vllm", '
        '"serve"]}`.',
    )
    parity: ParityMode = Field(
        ParityMode.on,
        description="What is done when an engine does not answer as the trained model does: `on` fails the "
        "deployment, `warn` serves it, `off` compares nothing.",
    )
    idle_seconds: float = Field(
        0, ge=0, description="A deployment that is unused for so long goes to sleep; 0 is never."
    )
    wake_seconds: float = Field(
        60, gt=0, description="How long a request to a sleeping deployment waits for it before it gets 503."
    )
    drain_seconds: float = Field(
        30, ge=0, description="How long an engine that is to stop may go on with answers under way."
    )
    probe_seconds: float = Field(
        30, gt=0, description="How often an engine has to prove by one token that it is well."
    )
    trainer_python: str = Field(
        "", description="Python that has the trainer packages; empty means the worker's own."
    )

    mlflow_uri: WebAddress = Field(
        "", description="Address of the MLflow server to which workers send runs; empty sends none."
    )
    mlflow_url: WebAddress = Field(
        "", description="Address at which people open that server; empty means the same."
    )
    mlflow_experiment: str = Field(
        "tunesmith", min_length=1, description="MLflow experiment that holds the runs."
    )
    wandb_project: str = Field(
        "",
        pattern=r"^([^/]+/)?[^/]*$",
        description="W&B project, or `entity/project`, to which workers send runs; empty sends none.",
    )
    wandb_mode: Literal["online", "offline"] = Field(
        "online",
        description="`offline` keeps W&B runs under `wandb` in the worker's data directory for `wandb sync`.",
    )
    tensorboard_dir: str = Field(
        "", description="Folder to which workers write TensorBoard files; empty writes none."
    )
    tracking_wait_seconds: float = Field(
        10, gt=0, description="How long the end of a run waits for a tracking service to take what is left."
    )

    @field_validator("engine_host")
    @classmethod
    def _private(cls, value: str) -> str:
        """Engines ask nobody for a key: whoever reaches one may use it and load adapters into it."""
        if not is_private(value):
            raise ValueError(
                f"{value} is an address for everyone or of the public network; engines listen on loopback "
                "or a private address only, since they ask for no key"
            )
        return value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        """Fill what depends on the data directory, which becomes absolute: children run elsewhere."""
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError(
                "lease_seconds must be at least twice heartbeat_seconds, or one late beat loses a run"
            )
        self.data_dir = self.data_dir.expanduser().resolve()
        if not self.database_url.get_secret_value():
            self.database_url = SecretStr(f"sqlite:///{self.data_dir / 'tunesmith.db'}")
        if not self.broker_url.get_secret_value():
            self.broker_url = SecretStr("filesystem://localhost")
        self.artifacts_url = self.artifacts_url or f"file://{self.data_dir / 'artifacts'}"
        self.model_roots = [
            root.expanduser().resolve() for root in self.model_roots or [self.data_dir / "models"]
        ]
        self.dataset_roots = [
            root.expanduser().resolve() for root in self.dataset_roots or [self.data_dir / "sources"]
        ]
        if self.tensorboard_dir:
            self.tensorboard_dir = str(Path(self.tensorboard_dir).expanduser().resolve())
        return self


@lru_cache
def get_settings() -> Settings:
    """The process's settings."""
    return Settings()
