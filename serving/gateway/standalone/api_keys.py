"""Keys as the service knows them, for a gateway that stands alone."""

import asyncio
import hashlib
import http.client
import json
import logging
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from serving.gateway.gateway import ClientIdentity
from serving.gateway.rate_limits import AuthorizedClient
from serving.http.addresses import is_local_request
from serving.http.errors import ApiError, EngineUnavailable, InvalidApiKey, PermissionDenied

API_TIMEOUT_SECONDS = 5.0
# How long what the service said of a key holds, and how long a request then waits to hear it anew.
KEPT_SECONDS = 5.0
PATIENCE_SECONDS = 1.0
LOOK_UPS_AT_ONCE = 4
MOST_KEYS, MOST_REFUSALS = 10_000, 1_000
MOST_TOKEN_CHARACTERS = 200
SCOPES = {"inference", "admin"}
REFUSALS: dict[int, type[ApiError]] = {401: InvalidApiKey, 403: PermissionDenied}
# The service is away, or something else answers in its place.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, http.client.HTTPException)
logger = logging.getLogger("tunesmith.gateway.keys")


@dataclass(frozen=True)
class Verdict:
    """What the service said of a token: whose it is, or why it is refused."""

    caller: AuthorizedClient | None = None
    refusal: tuple[type[ApiError], str] | None = None
    at: float = field(default_factory=time.monotonic)


class KeyVerifier:
    """Asks the service whose a token is, with the token itself: `GET /api/v1/keys/self`.

    While the service cannot be reached, what it said last of a token stays.
    """

    def __init__(self, api_url: str) -> None:
        self.url = f"{api_url.rstrip('/')}/api/v1/keys/self"
        self.keys: dict[bytes, Verdict] = {}
        # Apart, so that a flood of wrong tokens pushes no right one out.
        self.refusals: dict[bytes, Verdict] = {}
        self.asking: dict[bytes, asyncio.Task[None]] = {}
        self.threads = ThreadPoolExecutor(LOOK_UPS_AT_ONCE, thread_name_prefix="keys")

    async def __call__(self, sender: ClientIdentity) -> AuthorizedClient:
        """Who sends; raises InvalidApiKey, Forbidden and EngineUnavailable."""
        token = sender.token() or ""
        if len(token) > MOST_TOKEN_CHARACTERS or not (token.isascii() and token.isprintable()):
            raise InvalidApiKey(f"An API key is at most {MOST_TOKEN_CHARACTERS} printable ASCII characters.")
        verdict = await self._verdict(token)
        if verdict.refusal is not None:
            kind, message = verdict.refusal
            raise kind(message)
        assert verdict.caller is not None
        if not verdict.caller.key_id and (
            sender.forwarded or not is_local_request(sender.host.decode("latin-1"), sender.address)
        ):
            raise PermissionDenied("The service has no API key yet, so only its own machine is served.")
        return verdict.caller

    async def _verdict(self, token: str) -> Verdict:
        mark = hashlib.sha256(token.encode()).digest()
        known = self._known(mark)
        if known is not None and time.monotonic() - known.at < KEPT_SECONDS:
            return known
        asking = self.asking.get(mark)
        if asking is None:
            asking = self.asking[mark] = asyncio.create_task(self._learn(mark, token))
            asking.add_done_callback(lambda done: done.cancelled() or done.exception())
        if known is None:
            # Those who ask together wait together, and the first may leave before it is known.
            await asyncio.shield(asking)
        else:
            await asyncio.wait({asking}, timeout=PATIENCE_SECONDS)
        learnt = self._known(mark)
        assert learnt is not None
        return learnt

    def _known(self, mark: bytes) -> Verdict | None:
        return self.keys.get(mark) or self.refusals.get(mark)

    async def _learn(self, mark: bytes, token: str) -> None:
        try:
            verdict = await asyncio.get_running_loop().run_in_executor(self.threads, self._ask, token)
        except UNREADABLE as fault:
            known = self._known(mark)
            if known is None:
                raise EngineUnavailable("The service that knows the API keys cannot be reached.") from fault
            logger.warning("API keys cannot be looked up, what is known stays: %r", fault)
            verdict = replace(known, at=time.monotonic())
        finally:
            del self.asking[mark]
        self._keep(mark, verdict)

    def _keep(self, mark: bytes, verdict: Verdict) -> None:
        kept, other, most = self.keys, self.refusals, MOST_KEYS
        if verdict.refusal is not None:
            kept, other, most = self.refusals, self.keys, MOST_REFUSALS
        if len(kept) >= most:
            kept.clear()
        other.pop(mark, None)
        kept[mark] = verdict

    def _ask(self, token: str) -> Verdict:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(self.url, headers=headers)  # noqa: S310 — the operator's address
        try:
            with urllib.request.urlopen(request, timeout=API_TIMEOUT_SECONDS) as answer:  # noqa: S310
                told = json.loads(answer.read())
        except urllib.error.HTTPError as fault:
            with fault:
                if fault.code not in REFUSALS:
                    raise
                error = json.loads(fault.read())["error"]
            words = f"{error['message']} {error.get('hint') or ''}".strip()
            return Verdict(refusal=(REFUSALS[fault.code], words))
        if not SCOPES & set(told["scopes"]):
            return Verdict(refusal=(PermissionDenied, "This API key lacks the scope inference."))
        return Verdict(
            AuthorizedClient(told["key_id"], told["requests_per_minute"], told["concurrent_requests"])
        )
