"""Requests to the control plane's API for a host that joins or leaves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
from pydantic import BaseModel, ConfigDict

from app.storage.api_store.trust import create_trust

TIMEOUT_SECONDS = 60
PATH = "/api/v1/worker-credentials"
TRUST_HINT = (
    "If the control plane has an authority of its own, as Caddy with `tls internal`, join with its "
    "certificate (--ca-file) or the SHA-256 fingerprint of that (--ca-fingerprint)."
)
KEY_HINT = (
    "Pass the host's API key by --key; an admin creates one with the scope `worker` by POST /api/v1/keys."
)


class JoinFailed(Exception):
    """The control plane cannot be reached, or refuses the host; `code` is that of its error."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


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


def request_credentials(url: str, key: str, body: Mapping[str, str], ca_file: Path | None) -> JoinedHost:
    """Return what a worker of this host needs; raises JoinFailed with the reason of the control plane."""
    return JoinedHost.model_validate(_send("POST", url, key, PATH, body, ca_file))


def revoke_credentials(url: str, key: str, credential_id: str, ca_file: Path | None) -> bool:
    """Revoke the credentials of this host; ones that do not exist any more are no error.

    Return False if the API key of this host is revoked, which has revoked the credentials.
    """
    try:
        _send("DELETE", url, key, f"{PATH}/{credential_id}", None, ca_file)
    except JoinFailed as error:
        if error.code == "unauthorized":
            return False
        if error.code != "credential_not_found":
            raise
    return True


def _send(
    method: str, url: str, key: str, path: str, body: Mapping[str, str] | None, ca_file: Path | None
) -> Any:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        trust = create_trust(ca_file)
    except ValueError as error:
        raise JoinFailed(
            f"The certificate of the control plane's authority cannot be used: {error}. Join again with "
            "--ca-file or --ca-fingerprint, or without them if its certificate is a public one."
        ) from error
    try:
        response = httpx2.request(
            method,
            url.rstrip("/") + path,
            json=body,
            headers=headers,
            timeout=TIMEOUT_SECONDS,
            verify=trust,
        )
    except httpx2.HTTPError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            trusted = f" with the authority in {ca_file}" if ca_file else ""
            raise JoinFailed(
                f"This host{trusted} does not trust the certificate of {url}: {error}. {TRUST_HINT}"
            ) from error
        raise JoinFailed(
            f"The control plane at {url} cannot be reached: {error or type(error).__name__}. Check the "
            "address; from outside of its network, use --via ssh://user@control."
        ) from error
    if response.is_success:
        return response.json()
    try:
        error_body = response.json()["error"]
        code = str(error_body["code"])
        hint = KEY_HINT if code == "unauthorized" else str(error_body.get("hint") or "")
        parts = [str(error_body["message"]), hint, f"({code})"]
    except (ValueError, KeyError, TypeError):
        raise JoinFailed(f"{url} returned status {response.status_code}: is it Tunesmith?") from None
    raise JoinFailed(" ".join(filter(None, parts)), code)
