"""The program around an engine of ours: its options, its life from the first answer to the last, its exit."""

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial

from aiohttp import web
from pydantic import ValidationError

from serving.__main__ import parse_adapter
from serving.engines.decoding.base import ModelRunner
from serving.engines.decoding.loop import GenerationLoop
from serving.engines.openai_server.server import SERVER_STATE, make_app
from serving.http.addresses import is_private
from trainers.configs.engines import SUPPORTED_QUANTIZATIONS, EngineKind, EngineOptions

DRAIN_SECONDS = 5.0
DRAIN_POLL_SECONDS = 0.05
THREAD_END_SECONDS = 2.0
ADDRESS_TAKEN = 1
DEFAULT_BATCH_SIZE = 16

Load = Callable[[str, str, EngineOptions], ModelRunner]


def run_server(kind: EngineKind, load_base: Load, arguments: list[str]) -> None:
    """Serve until a signal comes."""
    program = parser(kind)
    given = program.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    if not is_private(given.host):
        program.error(f"--host {given.host} is open to everyone, and an engine asks for no key.")
    options = engine_options(program, given)
    adapters = [parse_adapter(value) for value in given.adapter]
    name = given.served_name or given.model
    load = partial(with_adapters, partial(load_base, given.model, name, options), adapters)
    loop = GenerationLoop(load, options.max_batch_size or DEFAULT_BATCH_SIZE)
    status = asyncio.run(serve(loop, given.host, given.port))
    loop.stop()
    if loop.thread.is_alive():
        loop.thread.join(THREAD_END_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    # A thread that is still loading, or inside a long step, would hold up or crash an ordinary exit.
    os._exit(status)


def parser(kind: EngineKind) -> argparse.ArgumentParser:
    """The engine's options."""
    options = argparse.ArgumentParser(
        prog=f"python -m serving.engines.{kind}", description="Serve a model over HTTP."
    )
    options.add_argument(
        "--model", required=True, help="folder or hub id of the base model; safetensors only"
    )
    options.add_argument(
        "--adapter", action="append", default=[], metavar="NAME=PATH", help="LoRA adapter; repeatable"
    )
    options.add_argument("--served-name", help="name of the base model in requests; default: --model")
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--port", type=int, required=True)
    options.add_argument("--max-batch-size", type=int, help="answers that are decoded together; default: 16")
    options.add_argument(
        "--max-model-len", type=int, help="tokens of prompt and answer; default: what the model knows"
    )
    options.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"])
    options.add_argument(
        "--quantization",
        choices=sorted(SUPPORTED_QUANTIZATIONS[kind]),
        help="quantise the weights on loading",
    )
    options.add_argument("--max-adapters", type=int, help="adapters held at once; default: 8")
    options.add_argument("--max-adapter-rank", type=int, help="largest LoRA rank; default: 64")
    return options


def engine_options(program: argparse.ArgumentParser, given: argparse.Namespace) -> EngineOptions:
    """The options as others know them; ends the program with a sentence where one is out of bounds."""
    fields = {
        name: value for name in EngineOptions.model_fields if (value := vars(given).get(name)) is not None
    }
    try:
        return EngineOptions.model_validate(fields)
    except ValidationError as fault:
        first = fault.errors(include_url=False)[0]
        program.error(f"--{str(first['loc'][0]).replace('_', '-')}: {first['msg']}")


def with_adapters(load_base: Callable[[], ModelRunner], adapters: list[tuple[str, str]]) -> ModelRunner:
    """The base with the adapters of the command line; raises ValueError or the loader's error."""
    base = load_base()
    for adapter, path in adapters:
        if adapter in base.names:
            raise ValueError(f"The name {adapter!r} is given twice; every served name must be different.")
        base.names[adapter] = base.load_adapter(adapter, path)
    return base


async def serve(loop: GenerationLoop, host: str, port: int) -> int:
    """Answer from the first moment, with 503 until the model is loaded; returns the exit status."""
    asked = stop_signal()
    app = make_app(loop)
    # A handler must be cancelled when its client leaves, or nobody would stop the generation.
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.5, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    try:
        await site.start()
    except OSError as fault:
        print(f"Cannot listen on {host}:{port}: {fault.strerror}", file=sys.stderr)  # noqa: T201
        return ADDRESS_TAKEN
    loop.thread.start()
    await asked.wait()
    app[SERVER_STATE].draining = True
    await site.stop()
    await drained(app)
    await runner.cleanup()
    return 0


def stop_signal() -> asyncio.Event:
    """Set when SIGTERM or SIGINT comes."""
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    return asked


async def drained(app: web.Application) -> None:
    """Wait until no request is open, or until patience ends."""
    # By the clock: on a loop that is busy with answers each look takes longer than it asks for.
    deadline = time.monotonic() + DRAIN_SECONDS
    while app[SERVER_STATE].open_requests and time.monotonic() < deadline:
        await asyncio.sleep(DRAIN_POLL_SECONDS)
