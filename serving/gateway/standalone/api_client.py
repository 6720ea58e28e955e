"""The HTTP client with which a standalone gateway calls the service's API."""

import httpx2

TIMEOUT_SECONDS = 5.0
MAX_CONNECTIONS = 4


def create_api_client(api_url: str, api_key: str | None = None) -> httpx2.AsyncClient:
    """Return a client for `/api/v1` of a service.

    Connections are not kept alive: there are a few requests per second at most, and a kept connection would
    belong to the event loop that opened it. Requests above the connection limit wait for a free one.
    """
    return httpx2.AsyncClient(
        base_url=f"{api_url.rstrip('/')}/api/v1",
        headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
        timeout=httpx2.Timeout(TIMEOUT_SECONDS, pool=None),
        limits=httpx2.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=0),
    )
