"""The API under uvicorn, in one process or several, with a worker as a child process."""

import asyncio
import gc
import logging
import signal
import socket
import sys
import threading
import time
from types import FrameType

import uvicorn
from starlette.concurrency import run_in_threadpool

from app.http.edges.protocol import HttpProtocol
from app.http.processes.worker_process import WorkerProcess
from app.main import create_app
from app.scheduling.availability import report_unavailable
from app.settings import Settings, get_settings
from app.storage.database import get_engine
from app.workers.host_hardware import HostHardware, local_hardware
from serving.gateway.rate_limits import RateLimits
from serving.http.limits import KEEP_ALIVE_SECONDS
from serving.processes.supervisor import ProcessSupervisor, ServerProcess, bind_socket, reserve_port
from trainers.configs import Queue

logger = logging.getLogger(__name__)

# Time for the gateway's responses in progress. Event streams end at once, since clients can resume them.
DRAIN_SECONDS = 30
# In addition to the time that a program has to save a checkpoint: the worker stores it.
WORKER_STORE_SECONDS = 15
EXAMPLES_STOP_SECONDS = 5
TICKS_PER_SECOND = 10


def serve(host: str, port: int, processes: int, *, with_worker: bool, with_examples: bool) -> None:
    """Serve until SIGTERM or SIGINT, then stop the API, and the worker after it.

    Of several processes, the first one also starts the worker and creates the examples.
    """
    if processes > 1 and sys.platform != "linux":
        sys.exit(
            f"--processes {processes} requires Linux, which distributes the connections of a port over "
            "processes. Use 1, or start several services behind a proxy."
        )
    try:
        listener = reserve_port(host, port, shared=processes > 1)
    except OSError as error:
        sys.exit(f"--host {host} --port {port}: {error}")
    # Created before the processes are forked, which share its memory.
    limits = RateLimits(processes)
    if processes == 1:
        if not _serve_process(listener, limits, None, with_worker, with_examples):
            sys.exit(1)
        return
    port = listener.getsockname()[1]
    # A connection cannot be shared.
    get_engine().dispose()
    gc.freeze()

    def work(process: ServerProcess) -> None:
        limits.use_column(process.index)
        is_first = process.index == 0
        own = bind_socket(host, port, shared=True)
        _serve_process(own, limits, process, with_worker and is_first, with_examples and is_first)

    ProcessSupervisor(processes, work).run()


def _serve_process(
    listener: socket.socket,
    limits: RateLimits,
    process: ServerProcess | None,
    with_worker: bool,
    with_examples: bool,
) -> bool:
    """Serve in this process until it is stopped; return False if the server did not start."""
    # uvicorn raises its signal again after its shutdown, when the worker still has to be stopped.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    app = create_app(limits, process.metrics) if process is not None else create_app(limits)
    config = uvicorn.Config(
        app,
        http=HttpProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        timeout_keep_alive=int(KEEP_ALIVE_SECONDS),
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    server = _Server(config, app.state.stopping, process, with_examples)
    settings = get_settings()
    worker = WorkerProcess(_list_queues(local_hardware(), settings)) if with_worker else None
    if worker is not None:
        worker.start()
    threading.Thread(target=report_unavailable, name="checks at the start", daemon=True).start()
    try:
        server.run(sockets=[listener])
    finally:
        if worker is not None:
            worker.stop(settings.pause_grace_seconds + WORKER_STORE_SECONDS)
    return server.started


def _list_queues(hardware: HostHardware, settings: Settings) -> list[Queue]:
    """Return the queues of the worker: those of the host, and the one that the settings name."""
    if hardware.unused is not None:
        logger.warning(hardware.unused)
    return list(dict.fromkeys([*hardware.queues, *filter(None, [settings.default_queue])]))


class _Server(uvicorn.Server):
    """A server that prints its address, and ends event streams as soon as it receives a signal."""

    def __init__(
        self,
        config: uvicorn.Config,
        stopping: threading.Event,
        process: ServerProcess | None,
        with_examples: bool,
    ) -> None:
        super().__init__(config)
        self._stopping = stopping
        self._process = process
        self._with_examples = with_examples
        self._examples_thread = threading.Thread(
            target=_create_examples, args=(stopping,), name="examples", daemon=True
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # The objects of the application are never freed. A collection that reads them stops all requests for
        # a tenth of a second.
        gc.collect()
        gc.freeze()
        if self._process is not None:
            asyncio.get_running_loop().add_reader(self._process.parent_alive, self._stop_without_parent)
        if self._with_examples:
            self._examples_thread.start()
        if self._process is None or self._process.index == 0:
            print(f"Tunesmith is up. Docs: {self._url()}/docs", flush=True)  # noqa: T201

    async def on_tick(self, counter: int) -> bool:
        if counter % TICKS_PER_SECOND == 0:
            now = time.monotonic()
            for connection in list(self.server_state.connections):
                assert isinstance(connection, HttpProtocol)
                connection.check_timeout(now)
            if self._process is not None:
                self._process.metrics.write()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self._examples_thread.is_alive():
            await run_in_threadpool(self._examples_thread.join, EXAMPLES_STOP_SECONDS)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._stopping.set()
        super().handle_exit(sig, frame)

    def _stop_without_parent(self) -> None:
        assert self._process is not None
        asyncio.get_running_loop().remove_reader(self._process.parent_alive)
        self.handle_exit(signal.SIGTERM, None)

    def _url(self) -> str:
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _create_examples(stopping: threading.Event) -> None:
    # Imported here, since a service without examples does not need the module.
    from app.demos.examples import create_examples

    create_examples(get_settings(), stopping)
