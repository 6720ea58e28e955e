"""Start of an engine as a guarded process: its address, its command, and the wait until it is ready."""

import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

from serving.engines import Engine, EngineConfig
from serving.engines.child_engine import log_tail
from serving.engines.engine import START_TIMEOUT_SECONDS
from serving.http.addresses import is_private
from trainers.runtime.launch_command import HeldPort
from workers.hosts.devices import Devices
from workers.hosts.environments import empty_folder, engine_environment
from workers.hosts.guarded_process import GuardedProcess, start_guarded_process
from workers.hosts.warm_start import ForkServer

POLL_SECONDS = 0.5
# A small model is ready within a second or two, a large one after minutes.
QUICK_SECONDS, QUICK_POLL_SECONDS = 10.0, 0.05
LOG = "log.txt"


class EngineProcessFailed(Exception):
    """The engine did not start, or it stopped working; `was_ready` distinguishes the two."""

    def __init__(self, message: str, *, was_ready: bool = False) -> None:
        super().__init__(message)
        self.was_ready = was_ready


def hold_address(host: str) -> tuple[str, HeldPort]:
    """Hold a port on `TUNESMITH_ENGINE_HOST` for an engine, and return its URL too.

    Raises:
        EngineProcessFailed: The host name is unknown, cannot be bound, or resolves to a public address.
    """
    try:
        *_, resolved = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        if not is_private(str(resolved[0])):
            raise EngineProcessFailed(
                f"TUNESMITH_ENGINE_HOST is {host}, which resolves to {resolved[0]}: engines listen on "
                "loopback or a private address only."
            )
        port = HeldPort(str(resolved[0]))
    except OSError as error:
        raise EngineProcessFailed(
            f"TUNESMITH_ENGINE_HOST is {host}, which cannot be used: {error}."
        ) from error
    return f"http://{host}:{port.number}", port


def start_engine(
    engine: Engine,
    config: EngineConfig,
    folder: Path,
    devices: Devices,
    seconds: float,
    fork_server: ForkServer | None = None,
) -> GuardedProcess:
    """Start the engine in an empty folder that takes its log; it is killed after `seconds` unless extended.

    Raises:
        EngineProcessFailed: The engine does not support the configuration.
    """
    try:
        command = engine.command(config)
    except ValueError as error:
        raise EngineProcessFailed(f"The engine {engine.kind} cannot be started: {error}") from error
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    environment = engine_environment(devices) | engine.environment(config)
    return start_guarded_process(
        command,
        log=folder / LOG,
        folder=empty_folder(folder),
        environment=environment,
        seconds=seconds,
        locks=devices.locks,
        fork_server=fork_server,
    )


def wait_until_ready(
    engine: Engine, process: GuardedProcess, address: str, folder: Path, is_cancelled: Callable[[], bool]
) -> bool:
    """Wait until the engine accepts requests; return False when `is_cancelled` returned True first.

    Raises:
        EngineProcessFailed: The engine exited, or was not ready in time.
    """
    started_at = asked_at = time.monotonic()
    poll_seconds = QUICK_POLL_SECONDS
    while (exit_status := process.wait(poll_seconds)) is None:
        if engine.is_healthy(address):
            return True
        now = time.monotonic()
        if now - asked_at >= POLL_SECONDS:
            # It may read the database.
            asked_at = now
            if is_cancelled():
                return False
        seconds = now - started_at
        poll_seconds = QUICK_POLL_SECONDS if seconds < QUICK_SECONDS else POLL_SECONDS
        if seconds > START_TIMEOUT_SECONDS:
            raise EngineProcessFailed(f"The engine was not ready after {START_TIMEOUT_SECONDS:.0f} s.")
    message = (
        f"The engine exited with status {exit_status} before it was ready: {log_tail(folder / LOG, lines=1)}"
    )
    raise EngineProcessFailed(message)
