"""The API under uvicorn, with a worker as a child process, and their shutdown in order."""

import logging
import socket
import subprocess
import sys
import threading
from types import FrameType

import uvicorn
from starlette.concurrency import run_in_threadpool

from app.main import create_app
from app.settings import Settings, get_settings

# Time for the gateway's responses in progress. Event streams end at once, since clients can resume them.
DRAIN_SECONDS = 30
# In addition to the time that a program has to save a checkpoint: the worker stores it.
WORKER_STORE_SECONDS = 15
EXAMPLES_STOP_SECONDS = 5

logger = logging.getLogger(__name__)


def serve(host: str, port: int, *, with_worker: bool, with_examples: bool) -> None:
    """Serve until SIGTERM or SIGINT, then stop the API, and the worker after it."""
    app = create_app()
    config = uvicorn.Config(
        app, host=host, port=port, log_config=None, access_log=False, timeout_graceful_shutdown=DRAIN_SECONDS
    )
    server = _Server(config, app.state.stopping, with_examples)
    worker = _start_worker(get_settings()) if with_worker else None
    try:
        server.run()
    finally:
        if worker is not None:
            _stop_worker(worker, get_settings().pause_grace_seconds + WORKER_STORE_SECONDS)
    if not server.started:
        sys.exit(1)


class _Server(uvicorn.Server):
    """A server that prints its address, and ends event streams as soon as it receives a signal."""

    def __init__(self, config: uvicorn.Config, stopping: threading.Event, with_examples: bool) -> None:
        super().__init__(config)
        self._stopping = stopping
        self._with_examples = with_examples
        self._examples_thread = threading.Thread(
            target=_create_examples, args=(stopping,), name="examples", daemon=True
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._with_examples:
            self._examples_thread.start()
        print(f"Tunesmith is up. Docs: {self._url()}/docs", flush=True)  # noqa: T201

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self._examples_thread.is_alive():
            await run_in_threadpool(self._examples_thread.join, EXAMPLES_STOP_SECONDS)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._stopping.set()
        super().handle_exit(sig, frame)

    def _url(self) -> str:
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _create_examples(stopping: threading.Event) -> None:
    # Imported here, since a service without examples does not need the module.
    from app.demos.examples import create_examples

    create_examples(get_settings(), stopping)


def _start_worker(settings: Settings) -> "subprocess.Popen[bytes]":
    """Start a worker that ends with this process, because its standard input closes.

    The worker has its own session: Ctrl-C in a terminal reaches only this process, which stops both in order.
    """
    command = [sys.executable, "-m", "workers", "--queue", settings.default_queue, "--exit-with-stdin"]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    threading.Thread(target=_log_exit, args=(worker,), name="worker", daemon=True).start()
    return worker


def _log_exit(worker: "subprocess.Popen[bytes]") -> None:
    status = worker.wait()
    if status:
        logger.error(
            "the worker ended with exit status %s; start another with python -m workers --queue …", status
        )


def _stop_worker(worker: "subprocess.Popen[bytes]", seconds: float) -> None:
    worker.terminate()
    try:
        worker.wait(seconds)
    except subprocess.TimeoutExpired:
        logger.warning("the worker did not stop within %s s and is killed", seconds)
        worker.kill()
        worker.wait()
