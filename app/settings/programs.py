"""The programs of stages: their environments, and what they may do."""

from pathlib import Path

from pydantic import (
    Field,
    field_validator,
)
from pydantic_settings import BaseSettings

from trainers.configs.stages.serving.batch import MAX_CONCURRENCY


class ProgramSettings(BaseSettings):
    """The programs of stages: their environments, and what they may do."""

    trainer_python: str = Field(
        "",
        description="Python interpreter with the trainer packages; empty means the worker's own.",
    )
    warm_start: bool = Field(
        True,
        description="Whether a worker on Linux keeps a process with the trainers' packages loaded, from "
        "which programs without a GPU start in a tenth of a second. It takes about 430 MiB of memory.",
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
    batch_concurrency: int = Field(
        32,
        ge=1,
        le=MAX_CONCURRENCY,
        description="Maximum number of requests of a batch in progress at each model; while the engine "
        "responds that it is busy, there are fewer.",
    )

    @field_validator("gguf_environment", "comet_environment")
    @classmethod
    def _make_absolute(cls, value: str) -> str:
        """Keep the path of the environment itself, which may be a link."""
        return str(Path(value).expanduser().absolute()) if value else value
