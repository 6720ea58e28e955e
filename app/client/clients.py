"""The two clients: the blocking one, and the asynchronous one. Both have the same collections and methods."""

from collections.abc import AsyncIterator
from typing import Any, ClassVar, Self

from app.client.address import ServiceAddress, find_address
from app.client.api.connection import API, Connection, read_json
from app.client.api.modes import Blocking, Concurrent, Iteration, Mode, ModeBound, Operation, run_blocking
from app.client.api.transport import BlockingTransport, ConcurrentTransport, Transport
from app.client.resources.aliases import Aliases
from app.client.resources.chat import ChatReply, Messages, complete_chat, stream_chat
from app.client.resources.datasets import Datasets
from app.client.resources.evaluations import Comparisons, Evaluations
from app.client.resources.jobs import Jobs
from app.client.resources.machines import Hosts, Queues, Storage, Workers
from app.client.resources.models import Deployments, Models
from app.client.views.machines import CallerRecord, ReadinessRecord

TIMEOUT_SECONDS = 60.0
RETRY_SECONDS = 10.0


class ServiceClient(ModeBound[Mode]):
    """What both clients have: collections, chats, and the state of the service."""

    transport_type: ClassVar[type[Transport]]

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout: float = TIMEOUT_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        """Use an address and key, by default those of the environment or of `tunesmith login`."""
        connection = Connection(
            self.transport_type(), find_address(url, key), timeout=timeout, retry_seconds=retry_seconds
        )
        self.connection = connection
        self.jobs: Jobs[Mode] = Jobs(connection)
        self.datasets: Datasets[Mode] = Datasets(connection)
        self.evaluations: Evaluations[Mode] = Evaluations(connection)
        self.comparisons: Comparisons[Mode] = Comparisons(connection)
        self.models: Models[Mode] = Models(connection)
        self.deployments: Deployments[Mode] = Deployments(connection)
        self.aliases: Aliases[Mode] = Aliases(connection)
        self.workers: Workers[Mode] = Workers(connection)
        self.queues: Queues[Mode] = Queues(connection)
        self.hosts: Hosts[Mode] = Hosts(connection)
        self.storage: Storage[Mode] = Storage(connection)

    def is_blocking(self) -> bool:
        """Return whether operations return values instead of awaitables."""
        return self.connection.transport.is_blocking

    @property
    def address(self) -> ServiceAddress:
        """Where the service is."""
        return self.connection.address

    @Operation
    async def chat(self, /, model: str, messages: Messages, **options: Any) -> ChatReply:
        """Return a deployment's completion of a text or of messages; options are those of OpenAI's API."""
        return await complete_chat(self.connection, model, messages, options)

    @Iteration
    async def stream_chat(self, /, model: str, messages: Messages, **options: Any) -> AsyncIterator[str]:
        """Yield a deployment's completion as it is generated."""
        async for text in stream_chat(self.connection, model, messages, options):
            yield text

    @Operation
    async def whoami(self) -> CallerRecord:
        """Return the API key of this client as the service knows it; raises AccessRefused."""
        return await self.connection.get("/keys/self", CallerRecord)

    @Operation
    async def readiness(self) -> ReadinessRecord:
        """Return the state of what the service depends on."""
        response = await self.connection.request("GET", "/readyz", accepted=[503])
        return self.connection.read_view(response, ReadinessRecord)

    @Operation
    async def request(self, /, method: str, path: str, **options: Any) -> Any:
        """Return the JSON of any request of the API, such as `client.request("GET", "/presets")`.

        Options are `params` and `json`. None if the response has no body.
        """
        response = await self.connection.request(method, API + path, **options)
        return read_json(response) if response.content else None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address.url!r})"


class Client(ServiceClient[Blocking]):
    """The blocking client."""

    transport_type = BlockingTransport

    def close(self) -> None:
        """Close all connections."""
        run_blocking(self.connection.transport.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(ServiceClient[Concurrent]):
    """The asynchronous client."""

    transport_type = ConcurrentTransport

    async def close(self) -> None:
        """Close all connections."""
        await self.connection.transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
