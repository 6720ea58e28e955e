"""The length of a model's context, by which clients limit prompts, and an adapter's base, from its engine."""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from serving.gateway.connection_pool import UpstreamBroken, UpstreamConnection, UpstreamError
from serving.gateway.routes import Route, Target

# A model's context never changes. An engine that did not respond, or loads an adapter, is asked again soon.
KNOWN_SECONDS = 60.0
INCOMPLETE_SECONDS = 5.0
# The list of models does not wait longer for an engine that is busy or hangs.
TIMEOUT_SECONDS = 1.0
MAX_BYTES = 2**20


class EngineModel(msgspec.Struct):
    """A model in the list of an engine; vLLM and our own engines have the same fields."""

    id: str
    max_model_len: int | None = None
    parent: str | None = None


class EngineModels(msgspec.Struct):
    """The list of an engine."""

    data: list[EngineModel]


class ResponseBuffer:
    """A handler that collects one response."""

    upstream: UpstreamConnection | None = None

    def __init__(self) -> None:
        self.body: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._chunks: list[bytes] = []
        self._status = 0

    def on_head(self, status: int, headers: dict[bytes, bytes]) -> None:
        self._status = status

    def on_data(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        if sum(map(len, self._chunks)) > MAX_BYTES:
            raise UpstreamBroken(f"The response is larger than {MAX_BYTES} bytes.")

    def on_end(self, chunk: bytes) -> None:
        if self._status == 200 and not self.body.done():
            self.body.set_result(b"".join([*self._chunks, chunk]))
        else:
            self.on_error(UpstreamBroken(f"The status is {self._status}."))

    def on_error(self, error: UpstreamError) -> None:
        self.on_exception(error)

    def on_exception(self, error: Exception) -> None:
        if not self.body.done():
            self.body.set_exception(error)


@dataclass
class _KnownEngine:
    models: dict[str, EngineModel]
    asked_at: float

    def is_current(self, names: set[str]) -> bool:
        """Return whether the engine need not be asked for models of these names."""
        age = time.monotonic() - self.asked_at
        return age < (KNOWN_SECONDS if names <= self.models.keys() else INCOMPLETE_SECONDS)


class ModelDetails:
    """The lists of engines, asked for when models are listed; `request` sends a GET to an engine."""

    def __init__(self, request: Callable[[str, str, ResponseBuffer], None]) -> None:
        self._request = request
        self._engines: dict[str, _KnownEngine] = {}

    def are_known(self, routes: Iterable[Route]) -> bool:
        """Return whether no engine of these routes must be asked."""
        return not self._unknown(routes)

    async def learn(self, routes: Iterable[Route]) -> None:
        """Ask the engines of routes; one that does not respond is left out."""
        await asyncio.gather(*map(self._ask, self._unknown(routes)))

    def view(self, route: Route, routes: Collection[Route]) -> dict[str, Any]:
        """Return the details of a route that are known: of several engines the shortest context."""
        targets = {target: model for target in route.targets if (model := self._find(target)) is not None}
        lengths = [model.max_model_len for model in targets.values() if model.max_model_len is not None]
        details: dict[str, Any] = {"max_model_len": min(lengths)} if lengths else {}
        if tasks := {target.task for target in route.targets if target.task is not None}:
            details["task"] = min(tasks)
        for target, model in targets.items():
            if model.parent is not None:
                details["parent"] = _route_name(target.base_url, model.parent, routes)
        return details

    def _unknown(self, routes: Iterable[Route]) -> set[str]:
        names: dict[str, set[str]] = {}
        for route in routes:
            for target in route.targets:
                if target.base_url:
                    names.setdefault(target.base_url, set()).add(target.upstream_model)
        return {
            address
            for address, wanted in names.items()
            if address not in self._engines or not self._engines[address].is_current(wanted)
        }

    def _find(self, target: Target) -> EngineModel | None:
        engine = self._engines.get(target.base_url)
        return None if engine is None else engine.models.get(target.upstream_model)

    async def _ask(self, address: str) -> None:
        buffer = ResponseBuffer()
        models: dict[str, EngineModel] = {}
        try:
            self._request(address, "/v1/models", buffer)
            body = await asyncio.wait_for(buffer.body, TIMEOUT_SECONDS)
            models = {model.id: model for model in msgspec.json.decode(body, type=EngineModels).data}
        except (UpstreamError, TimeoutError, msgspec.MsgspecError):
            if buffer.upstream is not None:
                buffer.upstream.abort()
        self._engines[address] = _KnownEngine(models, time.monotonic())


def _route_name(address: str, upstream_model: str, routes: Collection[Route]) -> str:
    """Return the name by which clients request an engine's model; the engine's own if there is none."""
    names = (
        route.name
        for route in routes
        for target in route.targets
        if target.base_url == address and target.upstream_model == upstream_model
    )
    return next(names, upstream_model)
