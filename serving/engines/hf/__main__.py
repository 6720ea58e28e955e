"""Serve one base model and its LoRA adapters with transformers.

    python -m serving.engines.hf --model PATH_OR_ID --adapter ko-en=PATH --host 127.0.0.1 --port 8001

Exit status: 0 after SIGTERM or SIGINT, 1 if the address cannot be had, 3 if the model cannot be loaded, 4 if
generation failed.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys

from aiohttp import web

from serving.__main__ import named_path
from serving.engines.hf.adapters import load_adapter
from serving.engines.hf.loop import GenerationLoop
from serving.engines.hf.model import DTYPES, Base, load_base
from serving.engines.hf.server import STATE, make_app

DRAIN_SECONDS = 5.0
DRAIN_POLL_SECONDS = 0.05
THREAD_END_SECONDS = 2.0
ADDRESS_TAKEN = 1


def main(arguments: list[str]) -> None:
    """Serve until a signal comes."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    adapters = [named_path(value) for value in options.adapter]
    loop = GenerationLoop(lambda: load(options, adapters), options.max_batch_size)
    status = asyncio.run(serve(loop, options.host, options.port))
    loop.stop()
    if loop.thread.is_alive():
        loop.thread.join(THREAD_END_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    # A thread that is still loading, or inside a long step, would hold up or crash an ordinary exit.
    os._exit(status)


def parser() -> argparse.ArgumentParser:
    """The engine's options."""
    options = argparse.ArgumentParser(
        prog="python -m serving.engines.hf", description="Serve a model over HTTP."
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
    options.add_argument("--max-batch-size", type=int, default=16, help="answers that are decoded together")
    options.add_argument(
        "--max-model-len", type=int, help="tokens of prompt and answer; default: what the model knows"
    )
    options.add_argument("--dtype", choices=list(DTYPES), default="auto")
    return options


def load(options: argparse.Namespace, adapters: list[tuple[str, str]]) -> Base:
    """The base with the adapters of the command line; raises ValueError or the loader's error."""
    name = options.served_name or options.model
    base = load_base(options.model, name, options.dtype, options.max_model_len)
    for adapter, path in adapters:
        if adapter in base.names:
            raise ValueError(f"The name {adapter!r} is given twice; every served name must be different.")
        base.names[adapter] = load_adapter(base, adapter, path)
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
        print(f"Cannot listen on {host}:{port}: {fault.strerror}", file=sys.stderr)
        return ADDRESS_TAKEN
    loop.thread.start()
    await asked.wait()
    app[STATE].draining = True
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
    for _ in range(round(DRAIN_SECONDS / DRAIN_POLL_SECONDS)):
        if not app[STATE].open_requests:
            return
        await asyncio.sleep(DRAIN_POLL_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1:])
