"""An engine that runs for as long as one program needs it, as its child."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from serving.engines.engine import Engine, EngineRefused, Serve
from trainers.errors import EngineFailed

LOOK_SECONDS = 0.2
START_SECONDS = 1800.0
STOP_SECONDS = 20.0
LAST_LINES = 5


@contextmanager
def running(
    engine: Engine, serve: Serve, log: Path, *, own_session: bool = False, more: Sequence[str] = ()
) -> Iterator[str]:
    """The address of an engine that answers; it is stopped at the end. Raises EngineFailed.

    Its words go to `log`. In a session of its own it does not hear the terminal's Ctrl-C. `more` are the
    engine's own arguments.
    """
    with log.open("ab") as output:
        child = subprocess.Popen(
            [*engine.command(serve), *more],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | engine.environment(serve),
            start_new_session=own_session,
        )
    address = f"http://{serve.host}:{serve.port}"
    try:
        _wait(engine, serve, address, child, log)
        yield address
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def free_port(host: str) -> int:
    """A port of this host that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port


def last_words(log: Path) -> str:
    """The end of what an engine has printed."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return "\n".join(lines[-LAST_LINES:]) or "It printed nothing."


def _wait(engine: Engine, serve: Serve, address: str, child: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not engine.is_up(address):
        if (status := child.poll()) is not None:
            raise EngineFailed(
                f"The engine {engine.kind} ended with status {status} before it was ready: {last_words(log)}",
                f"Its whole log is {log}.",
            )
        if time.monotonic() > deadline:
            raise EngineFailed(
                f"The engine {engine.kind} was not ready after {START_SECONDS:.0f} s.",
                f"Its whole log is {log}.",
            )
        time.sleep(LOOK_SECONDS)
    try:
        engine.probe(address, next(iter(serve.adapters), serve.served_name))
    except EngineRefused as refused:
        raise EngineFailed(
            f"The engine {engine.kind} is up but does not generate: {refused}", f"Its whole log is {log}."
        ) from refused
