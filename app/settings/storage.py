"""Where the service and its workers keep rows, messages, files and secrets."""

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import quote, urlsplit

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    SecretStr,
    model_validator,
)
from pydantic_settings import BaseSettings


class StorageSettings(BaseSettings):
    """Where the service and its workers keep rows, messages, files and secrets."""

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
    database_password: SecretStr = Field(
        SecretStr(""), description="Password of the database, if its URL contains none; any characters."
    )
    broker_password: SecretStr = Field(
        SecretStr(""), description="Password of Redis, if its URL contains none; any characters."
    )
    artifacts_url: str = Field(
        "",
        description="URL of the artifact store: `s3://BUCKET/PREFIX`, `file:///FOLDER`, or another one of "
        "fsspec; on a host that reaches neither, `api+https://CONTROL-HOST`, which sends artifacts through "
        "the API. Empty means `artifacts` in the data directory.",
    )
    s3_endpoint_url: str = Field(
        "",
        validation_alias=AliasChoices("TUNESMITH_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
        description="Address of a store with the API of S3, such as `https://minio.internal:9000`; empty "
        "means AWS. `AWS_ENDPOINT_URL_S3` and `AWS_ENDPOINT_URL` are used if this is unset.",
    )
    s3_access_key_id: str = Field(
        "",
        max_length=256,
        description="Id of the key for the store, if it differs from the one that boto3 finds "
        "(`AWS_ACCESS_KEY_ID`, a profile, the role of the machine).",
    )
    s3_secret_access_key: SecretStr = Field(
        SecretStr(""), description="Secret of that key; without its id it is not used."
    )
    s3_addressing: Literal["auto", "path", "virtual"] = Field(
        "auto",
        description="Whether the bucket is in the path of a request or in its host name (`virtual`); `auto` "
        "means in the path with an endpoint, and else in the host name.",
    )
    s3_encryption: Literal["none", "AES256", "aws:kms"] = Field(
        "none",
        description="Server-side encryption that uploads ask for; `none` leaves it to the default of the "
        "bucket.",
    )
    s3_kms_key_id: str = Field(
        "", max_length=2048, description="Key of `aws:kms`; empty means the one of AWS for S3."
    )
    worker_key: SecretStr = Field(
        SecretStr(""),
        description="API key with the scope `worker`, with which a joined host reaches the API.",
    )
    worker_database_url: SecretStr = Field(
        SecretStr(""),
        description="URL at which workers on other hosts reach the database, without user and password if "
        "they get their own; empty means the one above.",
    )
    worker_broker_url: SecretStr = Field(
        SecretStr(""),
        description="URL at which workers on other hosts reach Redis; empty means the one above.",
    )
    worker_artifacts_url: str = Field(
        "",
        description="URL at which workers on other hosts reach the artifact store, such as the path where "
        "they mount it; empty means the one above.",
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
    kernel_roots: list[Path] = Field(
        default_factory=list,
        description="Folders whose kernels training stages may name in `kernels`, as a JSON list; empty "
        "means none. A kernel is code that runs in the training program.",
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

    @property
    def is_team(self) -> bool:
        """Whether workers on other hosts can reach the database and the broker."""
        urls = self.database_url.get_secret_value(), self.broker_url.get_secret_value()
        return not urls[0].startswith("sqlite") and not urls[1].startswith("filesystem")

    @model_validator(mode="after")
    def _fill_locations(self) -> Self:
        """Fill the locations that depend on the data directory, and make paths absolute."""
        if self.s3_access_key_id and not self.s3_secret_access_key.get_secret_value():
            raise ValueError("s3_access_key_id needs s3_secret_access_key, or its file")
        self.data_dir = self.data_dir.expanduser().resolve()
        self.database_url = _add_password("database", self.database_url, self.database_password)
        self.broker_url = _add_password("broker", self.broker_url, self.broker_password)
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
        self.kernel_roots = [root.expanduser().resolve() for root in self.kernel_roots]
        return self


def _add_password(name: str, url: SecretStr, password: SecretStr) -> SecretStr:
    """Return the URL with the password, which is a setting of its own so that it can be in a file."""
    if not password.get_secret_value():
        return url
    parts = urlsplit(url.get_secret_value())
    if not parts.hostname or parts.password is not None:
        raise ValueError(
            f"{name}_password completes a URL of a server that contains no password: "
            f"correct TUNESMITH_{name.upper()}_URL, or leave the password out"
        )
    user, _, server = parts.netloc.rpartition("@")
    netloc = f"{user}:{quote(password.get_secret_value(), safe='')}@{server}"
    return SecretStr(parts._replace(netloc=netloc).geturl())
