"""The settings of a process, read once from `TUNESMITH_*` variables and `.env`."""

from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from serving.http.addresses import is_private
from serving.http.cross_site import parse_origin
from trainers.configs import EngineKind, EngineOptions, ParityMode, Queue, StageKind, StageLimits
from trainers.configs.base import MAX_NEEDS, EndpointName
from trainers.configs.stages.serving.batch import MAX_CONCURRENCY


def _check_web_address(url: str) -> str:
    """Reject credentials: the API shows these addresses to every key with the scope `read`."""
    if url and not url.startswith(("http://", "https://")):
        raise ValueError("the address must begin with http:// or https://")
    if "@" in url:
        raise ValueError(
            "the address must not contain credentials: set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, on the workers; an endpoint has `api_key`"
        )
    return url.rstrip("/")


class SucceededCheckpoints(StrEnum):
    """What stays of the checkpoints of a succeeded run."""

    all = "all"
    weights = "weights"
    none = "none"


LogLevelName = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
LogLevel = Annotated[LogLevelName, BeforeValidator(str.upper)]
Origin = Annotated[str, AfterValidator(parse_origin)]
WebAddress = Annotated[str, AfterValidator(_check_web_address)]


class EvaluationEndpoint(BaseModel):
    """An OpenAI-compatible endpoint of the operator's."""

    model_config = ConfigDict(extra="forbid")

    url: WebAddress = Field(min_length=1, description="Base URL, up to the version, such as `…/v1`.")
    api_key: SecretStr = Field(SecretStr(""), description="Key that requests carry; empty sends none.")


class FineTuningBase(BaseModel):
    """The model that is trained in place of one of OpenAI's, and how the result is served."""

    model_config = ConfigDict(extra="forbid")

    base: str = Field(min_length=1, max_length=1024, description="A hub id, a folder, or a registry id.")
    engine: EngineKind | None = Field(None, description="Engine that serves the trained models.")
    options: EngineOptions = Field(EngineOptions(), description="Options of that engine.")
    training: dict[str, Any] = Field(
        default_factory=dict, description="Fields of the training stage, such as `preset` and `max_length`."
    )


class TokenPrices(BaseModel):
    """US dollars for a million tokens of a model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: float = Field(ge=0, le=1_000_000, description="Of prompts.")
    output: float = Field(ge=0, le=1_000_000, description="Of responses.")


def _name_base(value: Any) -> Any:
    return {"base": value} if isinstance(value, str) else value


class Settings(BaseSettings):
    """Settings of the service and its workers; the defaults need no server, GPU or network."""

    model_config = SettingsConfigDict(env_prefix="TUNESMITH_", env_file=".env", extra="ignore")

    data_dir: Path = Field(
        Path("data"), description="Folder of the embedded database, the queue and the artifacts."
    )
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
        description="Folders from which models may be read, as a JSON list; empty means `models` in the data "
        "directory.",
    )
    dataset_roots: list[Path] = Field(
        default_factory=list,
        description="Folders from which `prepare` may read files, as a JSON list; empty means `sources` in "
        "the data directory.",
    )

    host: str = Field(
        "127.0.0.1",
        description="Address that the API binds to; any other than loopback requires an API key.",
    )
    allowed_origins: list[Origin] = Field(
        default_factory=list,
        description="Origins of web pages that may send requests from a browser, as a JSON list, such as "
        '`["https://chat.example"]`; empty allows none but the service\'s own.',
    )
    port: int = Field(8000, ge=0, le=65535, description="Port of the API; 0 chooses a free one.")
    log_level: LogLevel = Field("INFO", description="Minimum level to log, by Python's names.")

    default_queue: Annotated[Queue | None, BeforeValidator(lambda value: value or None)] = Field(
        None,
        description="Queue of stages and deployments that name none; empty chooses the best hardware that a "
        "live worker has.",
    )
    max_upload_bytes: int = Field(20 * 2**30, gt=0, description="Maximum size of an uploaded dataset file.")

    max_downloads: int = Field(
        32,
        ge=1,
        description="Maximum number of downloads that a process of the API sends at once; one more gets 503.",
    )

    lease_seconds: float = Field(
        30, gt=0, description="Seconds after which a lease that is not renewed expires."
    )
    heartbeat_seconds: float = Field(
        10, gt=0, description="Seconds between two renewals of a worker's leases."
    )
    sweep_seconds: float = Field(
        5,
        gt=0,
        description="Seconds between two sweeps, which release expired leases and notify queues. A worker "
        "also looks for runs at this interval.",
    )
    renotify_seconds: float = Field(
        15, gt=0, description="Seconds that a run waits in the queue before its queue is notified again."
    )
    max_runs_per_queue: int = Field(
        1,
        ge=1,
        description="Maximum number of runs that a worker executes at once on the queue `cpu`, and on `mlx`. "
        "On `cuda`, each run has GPUs of its own, and their number is the limit.",
    )
    max_overtake_seconds: float = Field(
        600,
        ge=0,
        description="Seconds for which runs that need fewer GPUs may start before an older run that waits "
        "for more GPUs; after that, GPUs that become free are kept for it.",
    )
    device_locks_dir: Path = Field(
        Path("/tmp/tunesmith-gpus"),  # noqa: S108 — all users of the host must use the same folder
        description="Folder of the lock files with which the workers of a host share its GPUs.",
    )
    max_failures: int = Field(
        3,
        ge=0,
        description="Maximum number of infrastructure failures since the last checkpoint; one more fails "
        "the run.",
    )
    max_sweep_runs: int = Field(
        16, ge=1, le=MAX_NEEDS, description="Maximum number of runs that the sweeps of a job may add."
    )
    stop_grace_seconds: float = Field(
        5, gt=0, description="Seconds between the request to stop a cancelled program and killing it."
    )
    pause_grace_seconds: float = Field(
        120,
        gt=0,
        description="Seconds between the request to save a checkpoint and stop, and killing the program.",
    )

    gc_seconds: float = Field(
        3600,
        ge=0,
        description="Seconds between two collections, which apply the retention settings and delete files "
        "that no row names; 0 means that only `python -m app gc` collects.",
    )
    gc_grace_seconds: float = Field(
        86_400,
        ge=600,
        description="Age in seconds from which a file that no row has ever named is deleted: it may be part "
        "of a publication in progress.",
    )
    succeeded_checkpoints: SucceededCheckpoints = Field(
        SucceededCheckpoints.weights,
        description="What stays of the checkpoints of a succeeded run: `all`; `weights`, without optimizer "
        "and random state; or `none`.",
    )
    checkpoint_weights_days: float = Field(
        0,
        ge=0,
        description="Days after which the weights of a succeeded run's checkpoints are deleted; 0 means "
        "never. The model that the run produced stays.",
    )
    failed_checkpoint_days: float = Field(
        30,
        ge=0,
        description="Days until the checkpoints of a failed or cancelled run are deleted; 0 means never.",
    )
    event_detail_days: float = Field(
        7,
        ge=0,
        description="Days from the end of a run until its log and progress events are deleted and its "
        "metrics are reduced; 0 means never. The files `log.txt` and `events.jsonl` stay.",
    )
    max_metric_points: int = Field(
        1000, ge=10, description="Values of each metric that stay then, with first, last and extremes."
    )
    max_run_files_bytes: int = Field(
        20 * 2**30,
        ge=0,
        description="Maximum size of the files of finished runs; the oldest are deleted. 0 means unlimited.",
    )
    max_cache_bytes: int = Field(
        100 * 2**30,
        ge=0,
        description="Maximum size of a host's copies of remote artifacts; those unused for longest are "
        "deleted. 0 means unlimited.",
    )
    max_row_cache_bytes: int = Field(
        50 * 2**30,
        ge=0,
        description="Maximum size of a host's cache of datasets that training stages have rendered and "
        "tokenized; of those that no run uses, the ones unused for longest are deleted. 0 means unlimited.",
    )
    record_days: float = Field(
        90,
        ge=0,
        description="Days after which the records of absent workers, ended deployments and deliveries of "
        "webhooks, revoked keys and deleted datasets and models are removed; 0 means never.",
    )

    stage_limits: dict[StageKind, StageLimits] = Field(
        default_factory=dict,
        description='Limits of one attempt by kind of stage, as JSON, such as `{"prepare": {"max_seconds": '
        '3600, "max_memory_bytes": null}}`; null means no limit. A limit that is not named keeps its '
        "default. A job may set lower ones, and a worker's own apply as well.",
    )

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
    trainer_python: str = Field(
        "",
        description="Python interpreter with the trainer packages; empty means the worker's own.",
    )

    warm_start: bool = Field(
        True,
        description="Whether a worker on Linux keeps a process with the trainers' packages loaded, from "
        "which programs without a GPU start in a tenth of a second. It takes about 430 MiB of memory.",
    )

    evaluation_endpoints: dict[EndpointName, EvaluationEndpoint] = Field(
        default_factory=dict,
        description="OpenAI-compatible endpoints that evaluations may use as judges or evaluate, as JSON: "
        '`{"openai": {"url": "https://api.openai.com/v1", "api_key": "sk-…"}}`. A job names the endpoint; '
        "set the same names on the API, which checks them, and on the workers, which send the requests.",
    )
    grader_models: dict[str, str] = Field(
        default_factory=dict,
        description="Models of graders by the names in requests, as JSON: "
        '`{"gpt-4o-2024-08-06": "openai/gpt-4o-2024-08-06", "o4-mini": "judge"}`. Each is ENDPOINT/MODEL '
        "with an endpoint of TUNESMITH_EVALUATION_ENDPOINTS, or the name of a deployment.",
    )
    grader_embedding_model: str = Field(
        "",
        description="Embedding model of graders by `cosine` that name none, as ENDPOINT/MODEL, such as "
        "`openai/text-embedding-3-large`; empty refuses them.",
    )
    python_graders: bool = Field(
        False,
        description="Whether graders may be code in Python, which runs in a sandbox of bubblewrap without "
        "network and files. Set it on the API and on the workers.",
    )
    python_grader_seconds: float = Field(
        60, gt=0, le=600, description="Seconds that a grader in Python may take for one completion."
    )
    hub_push_namespaces: list[str] = Field(
        default_factory=list,
        description="Users and organizations of the hub to which the stage `export` may upload with the "
        "worker's `HF_TOKEN`, as a JSON list; empty allows none. The API and the workers check it.",
    )
    gguf_environment: str = Field(
        "",
        description="Folder of the environment of llama.cpp that `make gguf` creates; empty means that this "
        "worker writes no GGUF.",
    )
    comet_environment: str = Field(
        "",
        description="Folder of the environment of COMET that `make comet` creates; empty means that this "
        "worker scores no translations by COMET.",
    )

    openai_models: dict[str, Annotated[FineTuningBase, BeforeValidator(_name_base)]] = Field(
        default_factory=dict,
        description='Models that are trained in place of OpenAI\'s, as JSON: `{"gpt-4o-mini-2024-07-18": '
        '"Qwen/Qwen2.5-7B-Instruct"}`. In place of the base, an object may set `base`, `engine`, `options` '
        "of the engine, and `training`, fields of the training stage.",
    )
    openai_api_key: SecretStr = Field(
        SecretStr(""),
        validation_alias=AliasChoices("TUNESMITH_OPENAI_API_KEY", "OPENAI_API_KEY"),
        description="Key of an organization at OpenAI whose fine-tuned models are rescued; empty uses "
        "`OPENAI_API_KEY`. Set it on the workers that fetch and record, and on the API to list the models.",
    )
    openai_base_url: WebAddress = Field(
        "https://api.openai.com/v1",
        validation_alias=AliasChoices("TUNESMITH_OPENAI_BASE_URL", "OPENAI_BASE_URL"),
        description="Base URL of OpenAI's API for rescues, up to the version; empty uses `OPENAI_BASE_URL`.",
    )
    openai_prices: dict[str, TokenPrices] = Field(
        default_factory=dict,
        description="US dollars for a million tokens of fine-tuned models at OpenAI by the name of their "
        'base, as JSON: `{"gpt-4o-mini-2024-07-18": {"input": 0.3, "output": 1.2}}`; they precede those of '
        "the guide on rescues.",
    )
    organization: str = Field(
        "tunesmith",
        pattern=r"^[a-z0-9][a-z0-9-]{0,62}$",
        description="Name of the organization in the names of fine-tuned models, and in `owned_by`.",
    )
    fine_tuned_engine: EngineKind = Field(
        EngineKind.hf, description="Engine of fine-tuned models whose base names none in OPENAI_MODELS."
    )
    fine_tuned_idle_seconds: float = Field(
        900,
        ge=0,
        description="Seconds without a request until a fine-tuned model is put to sleep; 0 means never.",
    )

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

    encryption_key: SecretStr = Field(
        SecretStr(""),
        description="Key with which the API encrypts the signing secrets of webhooks: 32 random bytes in "
        "base64 (`openssl rand -base64 32`). Of several, separated by spaces, the first encrypts and all "
        "decrypt. Empty reads the file below.",
    )
    encryption_key_file: Annotated[Path | None, BeforeValidator(lambda value: value or None)] = Field(
        None,
        description="File with that key; empty means `encryption.key` in the data directory, which is "
        "created if the database is the embedded one. A backup does not contain it.",
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

    batch_concurrency: int = Field(
        32,
        ge=1,
        le=MAX_CONCURRENCY,
        description="Maximum number of requests of a batch in progress at each model; while the engine "
        "responds that it is busy, there are fewer.",
    )
    max_batches_per_worker: int = Field(
        4, ge=1, description="Maximum number of batches that a worker sends at once, besides its other runs."
    )

    webhook_retry_seconds: float = Field(
        259_200,
        gt=0,
        description="Seconds for which the delivery of an event to a webhook is repeated until it succeeds.",
    )

    def limits_of(self, stage: StageKind) -> StageLimits:
        """Return the limits of one attempt at a stage of this kind."""
        return stage.stage.limits.overridden_by(self.stage_limits.get(stage))

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

    @model_validator(mode="after")
    def _fill_defaults(self) -> Self:
        """Fill the defaults that depend on the data directory, and make paths absolute."""
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError(
                "lease_seconds must be at least twice heartbeat_seconds, or one late heartbeat loses a run"
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
        if self.gguf_environment:
            self.gguf_environment = str(Path(self.gguf_environment).expanduser().absolute())
        if self.comet_environment:
            self.comet_environment = str(Path(self.comet_environment).expanduser().absolute())
        if self.tensorboard_dir:
            self.tensorboard_dir = str(Path(self.tensorboard_dir).expanduser().resolve())
        return self


@lru_cache
def get_settings() -> Settings:
    """Return the process's settings."""
    return Settings()
