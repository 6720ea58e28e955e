"""The threads that turn requests into token ids, and the bounded queue before them."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from aiohttp import web

from serving.http.errors import EngineUnavailable
from trainers.rendering.template_renderer import TemplateRenderer

# Two, so that one long prompt does not stop the short ones. A tokenizer uses one core.
N_THREADS = 2
MAX_WAITING_PROMPTS = 1024
MAX_WAITING_BYTES = 64 * 2**20

Result = TypeVar("Result")


@dataclass(frozen=True)
class PromptWorker:
    """The tools of a thread that prepares one request's prompts."""

    renderer: TemplateRenderer
    is_cancelled: Callable[[], bool]
    """Whether the client has left."""


class PromptQueue:
    """Prepares the prompts of requests in threads; used in the event loop only."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(N_THREADS, thread_name_prefix="prompts")
        self._sizes: dict[Future[Any], int] = {}
        self._local = threading.local()

    @property
    def waiting_count(self) -> int:
        """The number of requests that wait for a thread."""
        return len(self._waiting_sizes())

    @property
    def active_count(self) -> int:
        """The number of requests whose prompts are being rendered and tokenized."""
        return sum(future.running() for future in list(self._sizes))

    async def run(self, work: Callable[[PromptWorker], Result], size_bytes: int) -> Result:
        """Run `work` in a thread and return its result; if the client leaves before it starts, it never does.

        Raises:
            EngineUnavailable: Too many prompts wait, or too long ones.
        """
        waiting = self._waiting_sizes()
        if len(waiting) >= MAX_WAITING_PROMPTS or (waiting and sum(waiting) + size_bytes > MAX_WAITING_BYTES):
            raise EngineUnavailable(
                f"{len(waiting)} prompts of {sum(waiting):,} bytes are waiting already. Try again later."
            )
        left = threading.Event()
        future = self._executor.submit(lambda: work(PromptWorker(self._renderer(), left.is_set)))
        self._sizes[future] = size_bytes
        future.add_done_callback(lambda done: self._sizes.pop(done, None))
        try:
            # The cancellation of this coroutine also cancels a future that has not started.
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            left.set()
            raise

    def _waiting_sizes(self) -> list[int]:
        return [
            size for future, size in list(self._sizes.items()) if not future.running() and not future.done()
        ]

    def _renderer(self) -> TemplateRenderer:
        """Return the renderer of this thread."""
        if not hasattr(self._local, "renderer"):
            self._local.renderer = TemplateRenderer()
        renderer: TemplateRenderer = self._local.renderer
        return renderer


PROMPT_QUEUE: web.AppKey[PromptQueue] = web.AppKey("prompt_queue", PromptQueue)
