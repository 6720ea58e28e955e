"""Our embedding engine in a thread of this process, so that many tiny models share one torch."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from aiohttp import web

from serving.engines.embedding.server import prepare_embeddings
from trainers.configs.engines import EngineOptions, Pooling


@contextlib.contextmanager
def serve_model(folder: Path, name: str, pooling: Pooling | None = None) -> Iterator[str]:
    """Serve a model as the program does, and yield the URL once it is loaded."""
    server = prepare_embeddings(str(folder), name, EngineOptions(), pooling)
    # Here, since a model that cannot be loaded ends the program, and two threads cannot load at once:
    # transformers replaces functions of torch meanwhile.
    model = server.loop.load()
    server.loop.load = lambda: model
    events = asyncio.new_event_loop()
    thread = threading.Thread(target=events.run_forever)
    thread.start()

    async def start() -> web.AppRunner:
        runner = web.AppRunner(
            server.make_app("127.0.0.1"), handler_cancellation=True, access_log=None, auto_decompress=False
        )
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    runner = asyncio.run_coroutine_threadsafe(start(), events).result()
    server.loop.thread.start()
    while not server.loop.healthy:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        server.loop.stop()
        server.loop.thread.join()
        asyncio.run_coroutine_threadsafe(runner.cleanup(), events).result()
        events.call_soon_threadsafe(events.stop)
        thread.join()
        events.close()
