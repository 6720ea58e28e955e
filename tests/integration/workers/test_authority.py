"""A host trusts the certificate of Caddy's own authority, and no other.

Goal: with the profile `tls` and `tls internal`, a host joins, and its system is not changed.
Method: a real Caddy with the configuration of `docker-compose.yml`, in front of a server with one response.
"""

import subprocess
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from app.storage.api_store.client import ArtifactsApi
from app.storage.remote.errors import StoreUnreachable
from tests.tls_proxy import TlsControlPlane, tls_proxy
from workers.joining.authority import NAME, find_authority, keep_authority
from workers.joining.control_plane import JoinFailed, revoke_credentials


class EmptyResponses(BaseHTTPRequestHandler):
    """Responds to each request with an empty JSON object."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def do_DELETE(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing."""


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsControlPlane]:
    upstream = ThreadingHTTPServer(("127.0.0.1", 0), EmptyResponses)
    Thread(target=upstream.serve_forever, daemon=True).start()
    with tls_proxy(tmp_path_factory.mktemp("caddy"), upstream.server_port) as proxy:
        yield proxy
    upstream.shutdown()
    upstream.server_close()


def test_a_host_without_the_authority_learns_what_to_pass(control_plane: TlsControlPlane) -> None:
    with pytest.raises(JoinFailed, match=r"does not trust the certificate .*--ca-file.*--ca-fingerprint"):
        revoke_credentials(control_plane.url, "ts_x", "credential_x", None)


def test_a_host_trusts_the_authority_in_a_file(control_plane: TlsControlPlane, tmp_path: Path) -> None:
    found = find_authority(tmp_path, control_plane.url, control_plane.certificate, "")
    stored = keep_authority(tmp_path, found)
    assert stored is not None and revoke_credentials(control_plane.url, "ts_x", "credential_x", stored)
    with closing(ArtifactsApi(f"api+{control_plane.url}", "ts_x", ca_file=stored)) as api:
        api.check()
    # It is kept when the host joins again.
    assert find_authority(tmp_path, control_plane.url, None, "") == stored == keep_authority(tmp_path, stored)


def test_another_authority_is_written_to_no_file_in_use_before_the_host_has_joined_with_it(
    control_plane: TlsControlPlane, tmp_path: Path
) -> None:
    victim, stored = tmp_path / "victim", tmp_path / NAME
    victim.write_text("as it was")
    stored.symlink_to(victim)
    (tmp_path / ".control-ca.pem.new").symlink_to(victim)
    found = find_authority(tmp_path, control_plane.url, control_plane.certificate, "")
    assert stored.read_text() == "as it was"
    assert keep_authority(tmp_path, found) == stored and not stored.is_symlink()
    assert victim.read_text() == "as it was"
    stored.unlink()
    with pytest.raises(JoinFailed, match=r"does not exist\. Join again with --ca-file"):
        revoke_credentials(control_plane.url, "ts_x", "credential_x", stored)


def test_a_host_gets_the_authority_by_its_fingerprint(control_plane: TlsControlPlane, tmp_path: Path) -> None:
    digits = control_plane.fingerprint.upper()
    printed = "sha256 Fingerprint=" + ":".join(digits[i : i + 2] for i in range(0, 64, 2))
    stored = find_authority(tmp_path, control_plane.url, None, printed)
    assert stored is not None
    assert stored.read_text().split() == control_plane.certificate.read_text().split()
    assert revoke_credentials(control_plane.url, "ts_x", "credential_x", stored)


def test_another_fingerprint_and_another_authority_are_refused(
    control_plane: TlsControlPlane, tmp_path: Path
) -> None:
    with pytest.raises(JoinFailed, match=f"SHA-256 fingerprint {control_plane.fingerprint}, not 0000"):
        find_authority(tmp_path, control_plane.url, None, "0" * 64)
    with pytest.raises(JoinFailed, match="64 hexadecimal digits"):
        find_authority(tmp_path, control_plane.url, None, "sha256:abc")
    (tmp_path / "empty").touch()
    for name in ("empty", "missing"):
        with pytest.raises(JoinFailed, match=r"contains no certificate|does not exist"):
            find_authority(tmp_path, control_plane.url, tmp_path / name, "")
    other = tmp_path / "other.pem"
    openssl = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=other"
    command = [*openssl.split(), "-keyout", str(tmp_path / "key"), "-out", str(other)]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(JoinFailed, match=f"with the authority in {other} does not trust"):
        revoke_credentials(control_plane.url, "ts_x", "credential_x", other)
    with (
        closing(ArtifactsApi(f"api+{control_plane.url}", "ts_x", ca_file=other)) as api,
        pytest.raises(StoreUnreachable, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        api.check()
