"""Joining: what the control plane returns becomes an env file, a checked host and a running worker."""

import itertools
import json
import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from app.scheduling.version import own_version
from app.storage import migrate
from serving.http.addresses import is_loopback, is_private
from workers.joining.authority import NAME as CA_NAME
from workers.joining.authority import find_authority, keep_authority
from workers.joining.control_plane import JoinedHost, JoinFailed, request_credentials
from workers.joining.env_file import NAME, read_env_file, write_env_file
from workers.joining.units import WorkerUnit
from workers.tunnels.forwards import API_PORT, BROKER_PORT, DATABASE_PORT, LOOPBACK, Forward
from workers.tunnels.worker_tunnel import hold_tunnel, is_listening

DEFAULT_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "redis": 6379, "rediss": 6379}
MAX_PORTS_TRIED = 100


@dataclass(frozen=True)
class JoinOptions:
    """What a person or a cloud's user data asks for.

    Attributes:
        url: Address of the API; with `via` as the SSH server sees it.
        key: API key of the scope `worker`.
        name: Name of the host.
        data_dir: Folder of the host's files.
        queues: Queues of the worker; none means those of the hardware.
        user: User that runs the worker, if root joins.
        via: SSH server in front of the control plane, or empty.
        identity: File of the private key for it.
        ca_file: File of the authority that signs the certificate of the API.
        ca_fingerprint: SHA-256 of that certificate, which the control plane then sends.
    """

    url: str
    key: str
    name: str
    data_dir: Path
    queues: tuple[str, ...] = ()
    user: str = ""
    via: str = ""
    identity: Path | None = None
    ca_file: Path | None = None
    ca_fingerprint: str = ""

    @property
    def env_file(self) -> Path:
        """The file with the variables of the worker."""
        return self.data_dir / NAME

    @property
    def is_tunnel_end(self) -> bool:
        """Whether the API appears on this host's loopback at the end of the control host's own tunnel."""
        parts = urlsplit(self.url)
        return not self.via and parts.port == API_PORT and is_loopback(parts.hostname or "")

    @property
    def unit(self) -> WorkerUnit:
        """How the worker is started."""
        return WorkerUnit(
            python=Path(sys.executable),
            folder=self.data_dir,
            env_file=self.env_file,
            name=self.name,
            queues=self.queues,
            user=self.user,
        )


def default_data_dir(user: str) -> Path:
    """Return the folder of a worker's files: the home of a named user, or the usual one of this system.

    Users of the system such as `daemon` have a folder as home that belongs to root.
    """
    if user:
        entry = pwd.getpwnam(user)
        home = Path(entry.pw_dir)
        if entry.pw_uid != 0 and home.is_dir() and home.stat().st_uid == entry.pw_uid:
            return home
    if os.geteuid() == 0:
        return Path("/var/lib/tunesmith")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "Tunesmith"
    return Path.home() / ".local" / "share" / "tunesmith"


def find_joined_env_file() -> Path | None:
    """Return the env file of the joined worker of this host, unless other settings name a database."""
    path = default_data_dir("") / NAME
    has_settings = "TUNESMITH_DATABASE_URL" in os.environ or Path(".env").is_file()
    return path if path.is_file() and not has_settings else None


def write_variables(options: JoinOptions) -> JoinedHost:
    """Ask the control plane for what the worker needs, and write it into the env file.

    Variables of the file that joining does not know are kept, such as HF_TOKEN.

    Raises:
        JoinFailed: The control plane cannot be reached, or refuses the host.
        TunnelBroken: The SSH server cannot be reached, or refuses the key.
    """
    _prepare_folder(options)
    body = {"name": options.name, "version": own_version(), "revision": migrate.list_revisions()[-1]}
    with reach_control_plane(options) as url:
        found = find_authority(options.data_dir, url, options.ca_file, options.ca_fingerprint)
        joined = request_credentials(url, options.key, body, found)
    ca_file = keep_authority(options.data_dir, found)
    earlier = read_env_file(options.env_file)
    values = earlier | list_variables(options, joined, earlier)
    values["TUNESMITH_CONTROL_CA_FILE"] = str(ca_file or "")
    write_env_file(options.env_file, values, _find_owner(options.user))
    _give_to_user(options)
    return joined


@contextmanager
def reach_control_plane(options: JoinOptions) -> Iterator[str]:
    """Yield the address of the API from this host; with `via`, through a tunnel that ends with the block."""
    if urlsplit(options.url).scheme not in ("http", "https"):
        raise JoinFailed(
            f"--url {options.url} needs a scheme, such as http://{options.url.rpartition('/')[2]}."
        )
    if not options.via:
        yield options.url
        return
    host, port = _find_address(options.url)
    if urlsplit(options.url).scheme != "http":
        raise JoinFailed(
            "With --via the address of the API is the one on the control host, without TLS, such as "
            "http://127.0.0.1:8000: the tunnel encrypts it."
        )
    forward = Forward(_find_free_port(API_PORT), host, port)
    with hold_tunnel(options.via, options.identity, options.data_dir, [forward]):
        yield f"http://{LOOPBACK}:{forward.listen_port}"


def list_variables(options: JoinOptions, joined: JoinedHost, earlier: dict[str, str]) -> dict[str, str]:
    """Return the variables of the worker; addresses that a tunnel replaces are on loopback."""
    forwards = _list_forwards(options, joined, earlier)
    ports = [forward.listen_port for forward in forwards]
    if options.is_tunnel_end:
        ports = [API_PORT, DATABASE_PORT, BROKER_PORT]
    url, database_url, broker_url = options.url, joined.database_url, joined.broker_url
    if ports:
        url, database_url, broker_url = (
            _move(one, port) for one, port in zip((url, database_url, broker_url), ports, strict=True)
        )
    return {
        **joined.settings,
        "TUNESMITH_DATA_DIR": str(options.data_dir),
        "TUNESMITH_DATABASE_URL": database_url,
        "TUNESMITH_BROKER_URL": broker_url,
        "TUNESMITH_ARTIFACTS_URL": joined.artifacts_url or f"api+{url}",
        "TUNESMITH_WORKER_KEY": options.key,
        "TUNESMITH_CONTROL_URL": options.url,
        "TUNESMITH_CREDENTIAL_ID": joined.id,
        "TUNESMITH_GC_STORE": "false",
        "TUNESMITH_TUNNEL_URL": options.via,
        "TUNESMITH_TUNNEL_KEY_FILE": str(options.identity or ""),
        "TUNESMITH_TUNNEL_FORWARDS": json.dumps([forward.to_text() for forward in forwards]),
        **_engine_host(options, earlier),
    }


def run_doctor(options: JoinOptions) -> subprocess.CompletedProcess[str]:
    """Check this host as the user and with the variables of its worker; the output is the report as JSON."""
    command = [sys.executable, "-m", "workers", "--env-file", str(options.env_file), "doctor", "--json"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TUNESMITH_")}
    owner = _find_owner(options.user)
    if owner is not None:
        environment |= {"HOME": pwd.getpwnam(options.user).pw_dir, "USER": options.user}
    return subprocess.run(
        command,
        cwd=options.data_dir,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        user=owner[0] if owner else None,
        group=owner[1] if owner else None,
        extra_groups=[] if owner else None,
    )


def _list_forwards(options: JoinOptions, joined: JoinedHost, earlier: dict[str, str]) -> list[Forward]:
    """Return the forwards of the worker's tunnel to API, database and broker; none without one."""
    if not options.via:
        return []
    known = [Forward.from_text(text) for text in json.loads(earlier.get("TUNESMITH_TUNNEL_FORWARDS") or "[]")]
    targets = [_find_address(url) for url in (options.url, joined.database_url, joined.broker_url)]
    if len(known) == len(targets):
        # A worker that runs keeps its ports.
        return [
            replace(forward, host=host, port=port)
            for forward, (host, port) in zip(known, targets, strict=True)
        ]
    first = (API_PORT, DATABASE_PORT, BROKER_PORT)
    return [Forward(_find_free_port(port), *target) for port, target in zip(first, targets, strict=True)]


def _find_address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    scheme = parts.scheme.partition("+")[0]
    if not parts.hostname or (parts.port is None and scheme not in DEFAULT_PORTS):
        raise JoinFailed(f"The address {parts.scheme}://… names no host and port.")
    return parts.hostname, parts.port or DEFAULT_PORTS[scheme]


def _move(url: str, port: int) -> str:
    """Return a URL that leads to a port of loopback, with its user and password."""
    parts = urlsplit(url)
    user, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user}{at}{LOOPBACK}:{port}"))


def _find_free_port(first: int) -> int:
    ports = range(first, first + MAX_PORTS_TRIED)
    return next(port for port in ports if not is_listening(port))


def _engine_host(options: JoinOptions, earlier: dict[str, str]) -> dict[str, str]:
    """Return the address at which the gateway reaches this host's engines: the one that reaches the API."""
    if "TUNESMITH_ENGINE_HOST" in earlier or options.via or options.is_tunnel_end:
        return {}
    host, port = _find_address(options.url)
    try:
        with socket.create_connection((host, port), timeout=5) as connection:
            own = str(connection.getsockname()[0])
    except OSError:
        return {}
    return {} if is_loopback(own) or not is_private(own) else {"TUNESMITH_ENGINE_HOST": own}


def _find_owner(user: str) -> tuple[int, int] | None:
    if not user:
        return None
    entry = pwd.getpwnam(user)
    if entry.pw_uid == os.geteuid():
        return None
    return entry.pw_uid, entry.pw_gid


def _prepare_folder(options: JoinOptions) -> None:
    """Create the data directory for the user of the worker; raise JoinFailed for one of another user."""
    owner = _find_owner(options.user)
    if options.data_dir.is_dir():
        if owner is not None and options.data_dir.stat().st_uid != owner[0]:
            raise JoinFailed(
                f"The folder {options.data_dir} does not belong to the user {options.user}. Name another one "
                "with --data-dir."
            )
        return
    options.data_dir.mkdir(mode=0o700, parents=True)
    if owner is not None:
        os.chown(options.data_dir, *owner)


def _give_to_user(options: JoinOptions) -> None:
    """Give the files that root has written to the user of the worker."""
    if (owner := _find_owner(options.user)) is not None:
        paths = (options.data_dir.glob(pattern) for pattern in (CA_NAME, "tunnel", "tunnel/*"))
        for path in itertools.chain.from_iterable(paths):
            os.chown(path, *owner, follow_symlinks=False)
