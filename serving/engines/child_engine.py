"""An engine that runs as the child of a program, until the program no longer needs it."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from serving.engines.engine import START_TIMEOUT_SECONDS, Engine, EngineConfig, EngineRequestFailed
from trainers.runtime.errors import EngineFailed
from trainers.runtime.process_tree import kill_abandoned_processes, kill_processes, mark, new_marker

POLL_SECONDS = 0.2
LOG_TAIL_BYTES = 4000


@contextmanager
def run_engine(
    engine: Engine,
    config: EngineConfig,
    log: Path,
    *,
    own_session: bool = False,
    extra_arguments: Sequence[str] = (),
) -> Iterator[str]:
    """Start an engine, yield its address when it generates tokens, and stop it at the end.

    Args:
        engine: The engine to start.
        config: The model and address.
        log: File to which the engine's output is appended.
        own_session: Start it in a session of its own, which does not receive the terminal's Ctrl-C.
        extra_arguments: Arguments of the engine's own program.

    Raises:
        EngineFailed: The engine did not start.
    """
    command = [*engine.command(config), *extra_arguments]
    kill_abandoned_processes()
    marker = new_marker()
    try:
        with log.open("ab") as output:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **engine.environment(config), **mark(marker)},
                start_new_session=own_session,
            )
    except OSError as error:
        raise EngineFailed(
            f"The engine {engine.kind} cannot be started: {command[0]}: {error.strerror}.",
            "Install it, or pass the path of its program.",
        ) from error
    address = f"http://{config.host}:{config.port}"
    try:
        _wait_until_ready(engine, config, address, child, log)
        yield address
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(engine.stop_seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        # An engine that was killed, or that crashed, leaves its workers.
        kill_processes(marker)


def latest_model_name(engine: Engine, config: EngineConfig) -> str:
    """Return the request name of the last adapter, or of the base if there is none."""
    adapter = next(reversed(config.adapters), None)
    return engine.request_name(config.served_name, adapter) if adapter else config.served_name


def log_tail(log: Path, lines: int = 5) -> str:
    """Return the last lines of a program's log."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
        printed = file.read().decode("utf-8", "replace").strip().splitlines()
    return "\n".join(printed[-lines:]) or "its log is empty"


def _wait_until_ready(
    engine: Engine, config: EngineConfig, address: str, child: "subprocess.Popen[bytes]", log: Path
) -> None:
    hint = f"The whole log is in {log}."
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while not engine.is_healthy(address):
        if (status := child.poll()) is not None:
            raise EngineFailed(
                f"The engine {engine.kind} exited with status {status} before it was ready: {log_tail(log)}",
                hint,
            )
        if time.monotonic() > deadline:
            raise EngineFailed(
                f"The engine {engine.kind} was not ready after {START_TIMEOUT_SECONDS:.0f} s.", hint
            )
        time.sleep(POLL_SECONDS)
    try:
        engine.probe(address, latest_model_name(engine, config), task=config.task)
    except EngineRequestFailed as error:
        raise EngineFailed(
            f"The engine {engine.kind} is healthy but serves no request: {error}", hint
        ) from error
