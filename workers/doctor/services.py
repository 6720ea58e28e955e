"""Checks of the database, its clock, the broker and the artifact store."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from sqlalchemy import select

from app.scheduling.availability import TimedCheck, check_store
from app.scheduling.incidents import describe_error
from app.scheduling.queue import check_broker
from app.scheduling.startup import SettingUnusable, explain_database_settings
from app.settings import Settings
from app.storage import migrate
from app.storage.database import DATABASE_UNAVAILABLE, database_now, get_engine, read_session
from app.worker_credentials.rights.postgresql_role import explain_connections
from trainers.runtime.redaction import redact
from workers.doctor.check_result import CheckResult
from workers.nodes.address import find_interface, find_node_address, is_container_bridge

# Leases use the database's clock. Times in logs, signatures of S3 (15 minutes) and TLS use the host's.
GOOD_SKEW_SECONDS, MAX_SKEW_SECONDS = 2.0, 60.0
DATABASE_FIX = (
    "Check that its server runs and can be reached from this host, and TUNESMITH_DATABASE_URL; behind a "
    "firewall, join with `--via ssh://user@control`."
)
BROKER_FIX = (
    "Check that Redis runs and can be reached from this host, and the user and password in "
    "TUNESMITH_BROKER_URL; `python -m workers join` writes new ones."
)
STORE_FIX = (
    "Check TUNESMITH_ARTIFACTS_URL, the credentials of the store, and that a shared file system is mounted."
)


def check_services(settings: Settings) -> Iterator[CheckResult]:
    """Yield the checks of what the worker shares with the control plane."""
    database = _check_database()
    yield database
    if database.state != "error":
        yield check_clock()
        yield from _check_connections(settings)
    broker_url = settings.broker_url.get_secret_value()
    yield _try("broker", check_broker, redact(broker_url), BROKER_FIX)
    yield _try("artifact store", check_store, redact(settings.artifacts_url), STORE_FIX)
    yield _check_node_address(settings)


def _check_database() -> CheckResult:
    name = "database"
    try:
        with explain_database_settings():
            started = time.monotonic()
            current, head = migrate.get_revisions(get_engine())
            milliseconds = 1000 * (time.monotonic() - started)
    except SettingUnusable as error:
        return CheckResult.error(name, str(error), DATABASE_FIX)
    except (OSError, *DATABASE_UNAVAILABLE) as error:
        return CheckResult.error(name, describe_error(error), DATABASE_FIX)
    kind = get_engine().dialect.name
    if current is None and kind == "sqlite":
        return CheckResult.ok(name, "SQLite, created at the first start")
    if current != head:
        fix = "Install the version of the control plane here, or run `python -m app migrate` there."
        return CheckResult.error(name, f"at revision {current}, but this version needs {head}", fix)
    return CheckResult.ok(name, f"{kind} at revision {current}, {milliseconds:.0f} ms")


def _check_connections(settings: Settings) -> Iterator[CheckResult]:
    """Yield the check of the connections that all hosts may open, if the server is PostgreSQL."""
    if get_engine().dialect.name == "postgresql":
        with read_session() as session:
            warning = explain_connections(session.connection(), settings.processes)
        if warning is None:
            yield CheckResult.ok("connections", "the database accepts those of all hosts")
        else:
            found, _, fix = warning.partition(" Set ")
            yield CheckResult.warning("connections", found, f"Set {fix}")


def check_clock() -> CheckResult:
    """Return the check of this host's clock against that of the database."""
    name = "clock"
    with read_session() as session:
        session.scalar(select(database_now()))
        sent = datetime.now(UTC)
        theirs = session.scalar(select(database_now()))
        received = datetime.now(UTC)
        is_own = session.get_bind().dialect.name == "sqlite"
    if is_own or theirs is None:
        return CheckResult.ok(name, "the database uses this host's clock")
    skew = ((sent + (received - sent) / 2) - theirs).total_seconds()
    found = f"{abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} the database's"
    fix = "Synchronize it: `timedatectl set-ntp true` on Linux, `sntp -sS time.apple.com` on a Mac."
    if abs(skew) > MAX_SKEW_SECONDS:
        return CheckResult.error(name, found, fix)
    return (
        CheckResult.warning(name, found, fix)
        if abs(skew) > GOOD_SKEW_SECONDS
        else CheckResult.ok(name, found)
    )


def _check_node_address(settings: Settings) -> CheckResult:
    """Return the address for runs on several hosts; whether others reach it cannot be seen from here."""
    name = "several hosts"
    address = find_node_address(settings)
    if address is None:
        reason = (
            "it is behind a tunnel"
            if settings.tunnel_url
            else "the database is on this host or is a file, so no address is known"
        )
        return CheckResult.ok(name, f"takes no part in runs on several: {reason}")
    interface = find_interface(address)
    found = f"others reach this one at {address}, ports {settings.node_ports}"
    if interface is None:
        fix = "Set TUNESMITH_NODE_ADDRESS to an address of an interface of this host."
        return CheckResult.warning(name, f"{found}; no interface has this address", fix)
    if not settings.node_address and is_container_bridge(interface):
        fix = (
            "Give the worker the network of its host (`network_mode: host`), or set TUNESMITH_NODE_ADDRESS "
            "to an address of this container that other hosts reach."
        )
        return CheckResult.warning(
            name, f"{found}, on {interface}: a network of containers, which ends at this host", fix
        )
    return CheckResult.ok(name, f"{found}, on {interface}")


def _try(name: str, check: Callable[[], None], found: str, fix: str) -> CheckResult:
    started = time.monotonic()
    try:
        TimedCheck(name, check).run()
    except Exception as error:
        # A broker or a store raises errors of its own packages.
        return CheckResult.error(name, f"{found}: {describe_error(error)}", fix)
    return CheckResult.ok(name, f"{found}, {1000 * (time.monotonic() - started):.0f} ms")
