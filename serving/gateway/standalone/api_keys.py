"""Authorization by the service's API keys, for a standalone gateway."""

import asyncio
import hashlib
import logging
import time
from dataclasses import dataclass, field, replace

import httpx2

from serving.gateway.downstream import ClientIdentity
from serving.gateway.rate_limits import AuthorizedClient
from serving.gateway.standalone.api_client import create_api_client
from serving.http.addresses import is_local_request
from serving.http.errors import ApiError, EngineUnavailable, InvalidApiKey, PermissionDenied

# How long a result is used, and how long a request with an older one waits for a new one.
CACHE_SECONDS = 5.0
MAX_WAIT_SECONDS = 1.0
MAX_KEYS, MAX_REJECTIONS = 10_000, 1_000
MAX_TOKEN_CHARACTERS = 200
SCOPES = {"inference", "admin"}
REJECTIONS: dict[int, type[ApiError]] = {401: InvalidApiKey, 403: PermissionDenied}
# The service is unreachable, or something else responds at its address.
LOOKUP_ERRORS = (httpx2.HTTPError, ValueError, KeyError, TypeError)
logger = logging.getLogger("tunesmith.gateway.keys")


@dataclass(frozen=True)
class KeyLookup:
    """The service's response for a token: the client, or the error with which to reject it."""

    client: AuthorizedClient | None = None
    rejection: tuple[type[ApiError], str] | None = None
    at: float = field(default_factory=time.monotonic)


class KeyVerifier:
    """Looks tokens up at the service, with the token itself: `GET /api/v1/keys/self`.

    While the service is unreachable, the last result of a token stays valid.
    """

    def __init__(self, api_url: str) -> None:
        self.api = create_api_client(api_url)
        self.keys: dict[bytes, KeyLookup] = {}
        # Separate from the keys, so that a flood of wrong tokens does not evict valid ones.
        self.rejections: dict[bytes, KeyLookup] = {}
        self.lookups: dict[bytes, asyncio.Task[None]] = {}

    async def __call__(self, identity: ClientIdentity) -> AuthorizedClient:
        """Authorize a client; raises InvalidApiKey, PermissionDenied and EngineUnavailable."""
        token = identity.token() or ""
        if len(token) > MAX_TOKEN_CHARACTERS or not (token.isascii() and token.isprintable()):
            raise InvalidApiKey(
                f"The API key is not valid. It must have at most {MAX_TOKEN_CHARACTERS} printable ASCII "
                "characters."
            )
        found = await self._look_up(token)
        if found.rejection is not None:
            error_class, message = found.rejection
            raise error_class(message)
        assert found.client is not None
        if not found.client.key_id and not (
            is_local_request(identity.host, identity.address, identity.forwarded)
        ):
            raise PermissionDenied(
                "The service has no API key yet and accepts requests from its own machine only, "
                "and not through a proxy. Create an API key there."
            )
        return found.client

    async def _look_up(self, token: str) -> KeyLookup:
        digest = hashlib.sha256(token.encode()).digest()
        cached = self._get_cached(digest)
        if cached is not None and time.monotonic() - cached.at < CACHE_SECONDS:
            return cached
        lookup = self.lookups.get(digest)
        if lookup is None:
            lookup = self.lookups[digest] = asyncio.create_task(self._update(digest, token))
            lookup.add_done_callback(lambda done: done.cancelled() or done.exception())
        if cached is None:
            # Concurrent requests share one lookup, and the first of them may be cancelled before it ends.
            await asyncio.shield(lookup)
        else:
            await asyncio.wait({lookup}, timeout=MAX_WAIT_SECONDS)
        result = self._get_cached(digest) or cached
        assert result is not None
        return result

    def _get_cached(self, digest: bytes) -> KeyLookup | None:
        return self.keys.get(digest) or self.rejections.get(digest)

    async def _update(self, digest: bytes, token: str) -> None:
        try:
            found = await self._request(token)
        except LOOKUP_ERRORS as error:
            cached = self._get_cached(digest)
            if cached is None:
                raise EngineUnavailable(
                    "The API key cannot be checked: the service is unreachable. Try again soon."
                ) from error
            logger.warning("cannot look up API keys, the last known ones stay valid: %r", error)
            found = replace(cached, at=time.monotonic())
        finally:
            del self.lookups[digest]
        self._store(digest, found)

    def _store(self, digest: bytes, found: KeyLookup) -> None:
        cache, other, max_entries = self.keys, self.rejections, MAX_KEYS
        if found.rejection is not None:
            cache, other, max_entries = self.rejections, self.keys, MAX_REJECTIONS
        other.pop(digest, None)
        # The oldest result leaves: a request that still waits for a newer one must find it.
        if digest not in cache and len(cache) >= max_entries:
            del cache[next(iter(cache))]
        cache[digest] = found

    async def _request(self, token: str) -> KeyLookup:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        response = await self.api.get("/keys/self", headers=headers)
        if response.status_code in REJECTIONS:
            error = response.json()["error"]
            message = f"{error['message']} {error.get('hint') or ''}".strip()
            return KeyLookup(rejection=(REJECTIONS[response.status_code], message))
        response.raise_for_status()
        key = response.json()
        if not SCOPES & set(key["scopes"]):
            message = "The API key lacks the scope inference. Use a key with this scope."
            return KeyLookup(rejection=(PermissionDenied, message))
        return KeyLookup(
            AuthorizedClient(
                key["key_id"],
                key["requests_per_minute"],
                key["concurrent_requests"],
                # Absent from an older service.
                key.get("tokens_per_day"),
                key.get("tokens_today") or 0,
                None if key.get("models") is None else tuple(key["models"]),
            )
        )
