"""An engine that runs for as long as one program needs it, as its child."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from serving.engines.engine import START_TIMEOUT_SECONDS, Engine, EngineConfig, EngineRequestFailed
from trainers.runtime.errors import EngineFailed

LOOK_SECONDS = 0.2
LOG_TAIL_BYTES = 4000


@contextmanager
def run_engine(
    engine: Engine, serve: EngineConfig, log: Path, *, own_session: bool = False, more: Sequence[str] = ()
) -> Iterator[str]:
    """The address of an engine that answers; it is stopped at the end. Raises EngineFailed.

    Its words go to `log`. In a session of its own it does not hear the terminal's Ctrl-C. `more` are the
    engine's own arguments.
    """
    command = [*engine.command(serve), *more]
    try:
        with log.open("ab") as output:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | engine.environment(serve),
                start_new_session=own_session,
            )
    except OSError as error:
        raise EngineFailed(
            f"The engine {engine.kind} cannot be started: {command[0]}: {error.strerror}.",
            "Install it, or name its program where it lies.",
        ) from error
    address = f"http://{serve.host}:{serve.port}"
    try:
        _wait(engine, serve, address, child, log)
        yield address
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(engine.stop_seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def free_port(host: str) -> int:
    """A port of this host that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port


def latest_model_name(engine: Engine, serve: EngineConfig) -> str:
    """The name by which requests ask for the last adapter, or for the base if there is none."""
    adapter = next(reversed(serve.adapters), None)
    return engine.request_name(serve.served_name, adapter) if adapter else serve.served_name


def log_tail(log: Path, lines: int = 5) -> str:
    """The end of what a program has printed."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
        printed = file.read().decode("utf-8", "replace").strip().splitlines()
    return "\n".join(printed[-lines:]) or "it printed nothing"


def _wait(
    engine: Engine, serve: EngineConfig, address: str, child: "subprocess.Popen[bytes]", log: Path
) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while not engine.is_up(address):
        if (status := child.poll()) is not None:
            raise EngineFailed(
                f"The engine {engine.kind} ended with status {status} before it was ready: {log_tail(log)}",
                f"Its whole log is {log}.",
            )
        if time.monotonic() > deadline:
            raise EngineFailed(
                f"The engine {engine.kind} was not ready after {START_TIMEOUT_SECONDS:.0f} s.",
                f"Its whole log is {log}.",
            )
        time.sleep(LOOK_SECONDS)
    try:
        engine.probe(address, latest_model_name(engine, serve))
    except EngineRequestFailed as refused:
        raise EngineFailed(
            f"The engine {engine.kind} is up but does not generate: {refused}", f"Its whole log is {log}."
        ) from refused
