"""The address of the API, and what it accepts."""

import re
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    field_validator,
)
from pydantic_settings import BaseSettings

from serving.http.cross_site import parse_origin

LogLevelName = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]

LogLevel = Annotated[LogLevelName, BeforeValidator(str.upper)]

Origin = Annotated[str, AfterValidator(parse_origin)]


FIRST_KEY = re.compile(r"ts_[A-Za-z0-9_-]{32,253}")


class HttpSettings(BaseSettings):
    """The address of the API, and what it accepts."""

    host: str = Field(
        "127.0.0.1",
        description="Address that the API binds to; any other than loopback requires an API key.",
    )
    port: int = Field(8000, ge=0, le=65535, description="Port of the API; 0 chooses a free one.")
    processes: int = Field(
        1,
        ge=1,
        le=64,
        description="Number of processes of the API on its port, about one for each core to use. More than "
        "one requires Linux.",
    )
    first_admin_key: SecretStr = Field(
        SecretStr(""),
        description="API key with the scope `admin` that the API creates when it starts without any key: "
        "`ts_` and at least 32 letters, digits, `-` or `_` (`echo ts_$(openssl rand -hex 24)`).",
    )
    allowed_origins: list[Origin] = Field(
        default_factory=list,
        description="Origins of web pages that may send requests from a browser, as a JSON list, such as "
        '`["https://chat.example"]`; empty allows none but the service\'s own.',
    )
    log_level: LogLevel = Field("INFO", description="Minimum level to log, by Python's names.")
    max_upload_bytes: int = Field(20 * 2**30, gt=0, description="Maximum size of an uploaded dataset file.")
    max_artifact_bytes: int = Field(
        200 * 2**30,
        gt=0,
        description="Maximum size of one file that a worker sends through the API; a model has several.",
    )
    max_artifact_uploads: int = Field(
        64, ge=1, description="Maximum number of files that workers send through the API at once."
    )
    max_staged_bytes_per_key: int = Field(
        500 * 2**30,
        gt=0,
        description="Maximum size of the files that hosts with one API key have sent and not published yet.",
    )
    reserved_disk_bytes: int = Field(
        2**30,
        ge=0,
        description="Space that files of workers leave free on the disk of the artifact store.",
    )
    max_joined_hosts: int = Field(
        64,
        ge=0,
        le=1000,
        description="Maximum number of hosts that may have credentials at once; each has a PostgreSQL role "
        "with up to 24 connections. 0 allows none to join.",
    )
    max_joined_hosts_per_key: int = Field(
        8, ge=1, le=1000, description="Maximum number of hosts that may join with one API key."
    )
    max_downloads: int = Field(
        32,
        ge=1,
        description="Maximum number of downloads that a process of the API sends at once; one more gets 503.",
    )

    @field_validator("first_admin_key")
    @classmethod
    def _check_key(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value() and not FIRST_KEY.fullmatch(value.get_secret_value()):
            raise ValueError(
                "a key is `ts_` and at least 32 letters, digits, `-` or `_`; "
                "`echo ts_$(openssl rand -hex 24)` prints a new one"
            )
        return value
