"""The control plane that this host has joined; `python -m workers join` writes these settings."""

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings


class JoiningSettings(BaseSettings):
    """The control plane that this host has joined; `python -m workers join` writes these settings."""

    control_url: str = Field(
        "", max_length=2048, description="Address of the control plane's API that the host has joined."
    )
    control_ca_file: Annotated[Path | None, BeforeValidator(lambda value: value or None)] = Field(
        None,
        description="File in PEM of the authority that signs the certificate of that address; empty means "
        "those that the system trusts.",
    )
    credential_id: str = Field(
        "",
        max_length=100,
        description="Id of the host's credentials, which `python -m workers leave` revokes.",
    )
    tunnel_url: str = Field(
        "",
        max_length=2048,
        description="SSH server through which the worker reaches the control plane, such as "
        "`ssh://user@control.example:22`; empty means directly.",
    )
    tunnel_key_file: Annotated[Path | None, BeforeValidator(lambda value: value or None)] = Field(
        None, description="File of the private key for that server; empty means ssh's default keys."
    )
    tunnel_forwards: list[str] = Field(
        default_factory=list,
        description="Ports of this host's loopback that lead through the tunnel, as a JSON list such as "
        '`["15432=127.0.0.1:5432"]`; the address is as the SSH server sees it.',
    )
