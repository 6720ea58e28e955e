"""The Caddy of `docker-compose.yml` with an authority of its own, in front of an API of a test."""

import hashlib
import os
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests import services
from tests.conftest import ROOT

# The authority must not be added to those that this machine trusts, and port 80 may be taken.
FOR_TESTS = "admin off\n\tskip_install_trust\n\tauto_https disable_redirects"


@dataclass(frozen=True)
class TlsControlPlane:
    """The address of Caddy, and the certificate of its authority."""

    url: str
    certificate: Path

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(self.certificate.read_text())).hexdigest()


@contextmanager
def tls_proxy(folder: Path, upstream_port: int) -> Iterator[TlsControlPlane]:
    """Start Caddy for the block, with the profile's configuration and `tls internal`."""
    folder.mkdir(exist_ok=True)
    port, configuration = services.free_port(), folder / "Caddyfile"
    text = (ROOT / "deploy/caddy/Caddyfile").read_text(encoding="utf-8")
    configuration.write_text(text.replace("admin off", FOR_TESTS))
    environment = os.environ | {
        "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "TLS_OPTIONS": "tls internal",
        "TLS_DOMAIN": f"https://localhost:{port}", "API_UPSTREAM": f"127.0.0.1:{upstream_port}",
    }  # fmt: skip
    caddy = services.find_program("caddy")
    command = [caddy, "run", "--adapter", "caddyfile", "--config", str(configuration)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stderr=log, stdout=log)
    try:
        services.wait_until_open(port)
        yield TlsControlPlane(f"https://localhost:{port}", folder / "caddy/pki/authorities/local/root.crt")
    finally:
        process.terminate()
        process.wait(60)
