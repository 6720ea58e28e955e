"""The authority that signs the control plane's certificate, where this host does not trust it already."""

import hashlib
import os
import re
import ssl
from pathlib import Path

import httpx2

from app.storage.api_store.trust import create_trust
from workers.joining.control_plane import TIMEOUT_SECONDS, JoinFailed

NAME = "control-ca.pem"
NEW_NAME = f".{NAME}.new"
# Where `deploy/caddy/Caddyfile` serves the certificate of Caddy's own authority.
PATH = "/ca.crt"


def find_authority(folder: Path, url: str, ca_file: Path | None, fingerprint: str) -> Path | None:
    """Return a file with the certificate that a person names, or has named before; None if there is none.

    With a fingerprint, the control plane sends the certificate over a connection that is not verified. The
    key is not sent there, and another certificate is refused. The worker uses what it has until
    `keep_authority`.

    Raises:
        JoinFailed: The file or the response has no such certificate.
    """
    stored, new = folder / NAME, folder / NEW_NAME
    if ca_file is not None:
        text = _read(ca_file)
    elif fingerprint:
        text = _download(url, _parse(fingerprint))
    else:
        return stored if stored.is_file() else None
    new.unlink(missing_ok=True)
    # Exclusively: in the folder of the worker's user, a link could lead root to any file of this host.
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(text)
        os.fchmod(file.fileno(), 0o644)
    return new


def keep_authority(folder: Path, found: Path | None) -> Path | None:
    """Keep the certificate with which the control plane has accepted this host, and return its file."""
    return found if found is None else found.replace(folder / NAME)


def _read(path: Path) -> str:
    try:
        create_trust(path)
        return path.read_text(encoding="ascii")
    except ValueError as error:
        raise JoinFailed(f"--ca-file {error}") from error


def _download(url: str, fingerprint: str) -> str:
    address = url.rstrip("/") + PATH
    try:
        # The hash of the content is compared.
        response = httpx2.get(address, timeout=TIMEOUT_SECONDS, verify=False)
        certificate = ssl.PEM_cert_to_DER_cert(response.text.strip() if response.is_success else "")
    except (httpx2.HTTPError, ValueError) as error:
        raise JoinFailed(
            f"{address} has no certificate of an authority. Copy the file from the control host, and pass it "
            "by --ca-file."
        ) from error
    found = hashlib.sha256(certificate).hexdigest()
    if found != fingerprint:
        raise JoinFailed(
            f"The certificate at {address} has the SHA-256 fingerprint {found}, not {fingerprint}: another "
            "machine may respond at this address. Compare with the control host's: `openssl x509 -noout "
            "-fingerprint -sha256 -in tunesmith-ca.crt`."
        )
    return ssl.DER_cert_to_PEM_cert(certificate)


def _parse(fingerprint: str) -> str:
    """Return a fingerprint as openssl and others print it in lower-case digits without colons."""
    digits = fingerprint.strip().rpartition("=")[2].lower().removeprefix("sha256:").replace(":", "")
    if not re.fullmatch("[0-9a-f]{64}", digits):
        raise JoinFailed(
            f"--ca-fingerprint {fingerprint[:100]!r} is not a SHA-256 fingerprint of 64 hexadecimal digits, "
            "which `openssl x509 -noout -fingerprint -sha256 -in tunesmith-ca.crt` prints."
        )
    return digits
