"""The program of our own engines: its command line, and its life from the first request to the exit."""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import typer
from aiohttp import web

from serving.engines.cli_options import (
    Adapters,
    Host,
    Model,
    PoolingOption,
    ServedName,
    Task,
    parse_adapters,
    read_engine_options,
    with_engine_options,
)
from serving.engines.decoding.base import ModelRunner
from serving.engines.decoding.loop import GenerationLoop
from serving.engines.decoding.sampling import LogprobsMode
from serving.engines.model_thread import ModelThread
from serving.engines.openai_server.engine import ARGUMENTS
from serving.engines.openai_server.server import SERVER_STATE, make_app
from serving.http.addresses import is_private
from trainers.configs.engines import EngineKind, EngineOptions, EngineTask, Pooling, check_task
from trainers.runtime.command_line import make_typer
from trainers.runtime.process_tree import die_with_parent

DRAIN_SECONDS = 5.0
DRAIN_POLL_SECONDS = 0.05
THREAD_END_SECONDS = 2.0
ADDRESS_IN_USE = 1
DEFAULT_BATCH_SIZE = 16

Load = Callable[[str, str, EngineOptions], ModelRunner]


class TaskServer(NamedTuple):
    """The thread of an engine's model, and what makes the application that serves it on a host."""

    loop: ModelThread[Any]
    make_app: Callable[[str], web.Application]


PrepareEmbeddings = Callable[[str, str, EngineOptions, Pooling | None], TaskServer]


def run_server(
    kind: EngineKind,
    load_runner: Load,
    arguments: list[str],
    prepare_embeddings: PrepareEmbeddings | None = None,
) -> None:
    """Parse the command line, and serve until a signal arrives.

    `prepare_embeddings` makes the server for `--task embed`, which an engine without it refuses.
    """
    die_with_parent()
    program = make_typer()

    @program.command()
    @with_engine_options(*ARGUMENTS)
    def serve_model(
        *,
        model: Model,
        port: Annotated[int, typer.Option(help="Port to listen on.")],
        adapter: Adapters = None,
        served_name: ServedName = None,
        host: Host = "127.0.0.1",
        task: Task = EngineTask.generate,
        pooling: PoolingOption = None,
        logprobs_mode: Annotated[
            LogprobsMode, typer.Option(help="Logits of which log-probabilities of completions are reported.")
        ] = LogprobsMode.raw,
        options: dict[str, Any],
    ) -> None:
        """Serve a model over HTTP, with an API that is compatible with OpenAI's."""
        if not is_private(host):
            raise typer.BadParameter(
                f"--host {host} is a public address, and an engine does not check API keys. Use a "
                "loopback or private address."
            )
        try:
            engine_options = read_engine_options(kind, options)
            adapters = parse_adapters(adapter)
            check_task(kind, task, pooling, engine_options, adapters)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        name = served_name or model
        if task is EngineTask.embed and prepare_embeddings is not None:
            run_until_signal(prepare_embeddings(model, name, engine_options, pooling), host, port)
            return
        load = partial(load_with_adapters, partial(load_runner, model, name, engine_options), adapters)
        max_batch_size = engine_options.max_batch_size or DEFAULT_BATCH_SIZE
        loop = GenerationLoop(load, max_batch_size, logprobs_mode)
        run_until_signal(TaskServer(loop, partial(make_app, loop)), host, port)

    program(arguments, prog_name=f"python -m serving.engines.{kind}")


def load_with_adapters(load_runner: Callable[[], ModelRunner], adapters: dict[str, str]) -> ModelRunner:
    """Load the base, and the adapters of the command line. Raises ValueError, or the loader's error."""
    runner = load_runner()
    for name, path in adapters.items():
        if name in runner.models:
            raise ValueError(f"The name {name!r} occurs twice; every served name must be unique.")
        runner.models[name] = runner.load_adapter(name, path)
    return runner


def run_until_signal(server: TaskServer, host: str, port: int) -> None:
    """Serve, and exit the process after SIGTERM or SIGINT."""
    loop = server.loop
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    status = asyncio.run(serve(server, host, port))
    loop.stop()
    if loop.thread.is_alive():
        loop.thread.join(THREAD_END_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    # A thread that is still loading, or inside a long step, would delay or crash a regular exit.
    os._exit(status)


async def serve(server: TaskServer, host: str, port: int) -> int:
    """Respond from the start, with 503 until the model is loaded; return the exit status."""
    stop = stop_signal()
    app = server.make_app(host)
    # Without cancellation, a handler would continue to generate after its client has disconnected.
    # Bodies are unpacked where they are read, within the limit of their size.
    runner = web.AppRunner(
        app, handler_cancellation=True, shutdown_timeout=0.5, access_log=None, auto_decompress=False
    )
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    try:
        await site.start()
    except OSError as error:
        print(f"Cannot listen on {host}:{port}: {error.strerror}.", file=sys.stderr)  # noqa: T201
        return ADDRESS_IN_USE
    server.loop.thread.start()
    await stop.wait()
    app[SERVER_STATE].draining = True
    await site.stop()
    await drain(app)
    await runner.cleanup()
    return 0


def stop_signal() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def drain(app: web.Application) -> None:
    """Wait until no request is open, for at most DRAIN_SECONDS."""
    # Measured by the clock: a busy event loop returns late from each sleep.
    deadline = time.monotonic() + DRAIN_SECONDS
    while app[SERVER_STATE].open_requests and time.monotonic() < deadline:
        await asyncio.sleep(DRAIN_POLL_SECONDS)
