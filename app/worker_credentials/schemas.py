"""Requests and responses of the endpoints of workers' credentials."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from trainers.configs.base import Config

HostName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
VersionName = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9.+_-]+$")]

CREATE_EXAMPLES = {
    "host": {
        "summary": "A host that joins; `python -m workers join` sends this",
        "value": {"name": "gpu-1", "version": "0.1.0", "revision": "0031"},
    }
}


class WorkerCredentialCreate(Config):
    """A host that asks for what its worker needs."""

    name: HostName = Field(
        description="Name of the host. The same key and name get new passwords for the same credentials."
    )
    version: VersionName = Field(description="Version of Tunesmith on the host.")
    revision: VersionName = Field(description="Newest schema of the database that this version knows.")


class WorkerCredentialView(BaseModel):
    """Credentials of the worker of one host, without their secrets."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(description="Id of the credentials, `credential_…`.")
    key_id: str = Field(description="Id of the API key with which the host joined; it ends with that key.")
    name: str = Field(description="Name of the host.")
    version: str = Field(description="Version of Tunesmith on the host when it joined.")
    database_role: str | None = Field(
        description="PostgreSQL role of this host; null if it uses the control plane's, because that may not "
        "create roles."
    )
    broker_user: str | None = Field(
        description="Redis user of this host; null if it uses the control plane's, because that may not "
        "create users."
    )
    created_at: datetime = Field(description="Time at which the host joined.")
    updated_at: datetime = Field(description="Time at which the passwords were created.")
    revoked_at: datetime | None = Field(description="Time of the revocation.")
    ended_at: datetime | None = Field(
        description="Time from which the role and the user cannot log in, and their connections are closed."
    )


class WorkerCredentialSecretView(WorkerCredentialView):
    """What a worker needs; only this response contains the passwords."""

    database_url: str = Field(description="URL of the database, with its password.")
    broker_url: str = Field(description="URL of the broker, with its password.")
    artifacts_url: str = Field(
        description="URL of the artifact store; empty if the artifacts travel through this API, with the "
        "key of the request."
    )
    control_version: str = Field(description="Version of the control plane.")
    settings: dict[str, str] = Field(
        description="Further settings that must be equal on all hosts, as variables and their values."
    )
    notices: list[str] = Field(description="What is weaker than it could be, such as shared credentials.")
