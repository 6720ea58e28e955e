"""Requests to the control plane's API for a host that joins or leaves."""

from collections.abc import Mapping
from typing import Any

import httpx2
from pydantic import BaseModel, ConfigDict

TIMEOUT_SECONDS = 60
PATH = "/api/v1/worker-credentials"


class JoinFailed(Exception):
    """The control plane cannot be reached, or refuses the host."""


class JoinedHost(BaseModel):
    """What the control plane has returned; fields of a later version are ignored."""

    model_config = ConfigDict(extra="ignore")

    id: str
    database_url: str
    broker_url: str
    artifacts_url: str
    control_version: str
    database_role: str | None
    broker_user: str | None
    settings: dict[str, str]
    notices: list[str]


def request_credentials(url: str, key: str, body: Mapping[str, str]) -> JoinedHost:
    """Return what a worker of this host needs; raises JoinFailed with the reason of the control plane."""
    return JoinedHost.model_validate(_send("POST", url, key, PATH, body))


def revoke_credentials(url: str, key: str, credential_id: str) -> None:
    """Revoke the credentials of this host; ones that do not exist any more are no error."""
    try:
        _send("DELETE", url, key, f"{PATH}/{credential_id}", None)
    except JoinFailed as error:
        if "credential_not_found" not in str(error):
            raise


def _send(method: str, url: str, key: str, path: str, body: Mapping[str, str] | None) -> Any:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        response = httpx2.request(
            method, url.rstrip("/") + path, json=body, headers=headers, timeout=TIMEOUT_SECONDS
        )
    except httpx2.HTTPError as error:
        raise JoinFailed(
            f"The control plane at {url} cannot be reached: {error or type(error).__name__}. Check the "
            "address; from outside of its network, use --via ssh://user@control."
        ) from error
    if response.is_success:
        return response.json()
    try:
        error_body = response.json()["error"]
        parts = [str(error_body["message"]), str(error_body.get("hint") or ""), f"({error_body['code']})"]
    except (ValueError, KeyError, TypeError):
        raise JoinFailed(f"{url} returned status {response.status_code}: is it Tunesmith?") from None
    raise JoinFailed(" ".join(filter(None, parts)))
