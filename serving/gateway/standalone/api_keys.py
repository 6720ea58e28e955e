"""Keys as the service knows them, for a gateway that stands alone."""

import asyncio
import json
import logging
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field, replace

from serving.addresses import from_here
from serving.gateway.errors import ApiError, EngineUnavailable, Forbidden, InvalidApiKey
from serving.gateway.gateway import Sender
from serving.gateway.rate_limits import Caller

API_TIMEOUT_SECONDS = 5.0
# How long what the service said of a key is taken as it was said.
KEPT_SECONDS = 5.0
MOST_KEPT = 10_000
SCOPES = {"inference", "admin"}
REFUSALS: dict[int, type[ApiError]] = {401: InvalidApiKey, 403: Forbidden}
logger = logging.getLogger("tunesmith.gateway.keys")


@dataclass(frozen=True)
class Verdict:
    """What the service said of a token: whose it is, or why it is refused."""

    caller: Caller | None = None
    refusal: ApiError | None = None
    at: float = field(default_factory=time.monotonic)


class ApiKeys:
    """Asks the service whose a token is, with the token itself: `GET /api/v1/keys/self`.

    While the service cannot be reached, what it said last of a token stays.
    """

    def __init__(self, api_url: str) -> None:
        self.url = f"{api_url.rstrip('/')}/api/v1/keys/self"
        self.verdicts: dict[str, Verdict] = {}

    async def __call__(self, sender: Sender) -> Caller:
        """Who sends; raises InvalidApiKey, Forbidden and EngineUnavailable."""
        verdict = await self._verdict(sender.token() or "")
        if verdict.refusal is not None:
            raise verdict.refusal
        assert verdict.caller is not None
        if not verdict.caller.key_id and not from_here(sender.host.decode("latin-1"), sender.address):
            raise Forbidden("The service has no API key yet, so only its own machine is served.")
        return verdict.caller

    async def _verdict(self, token: str) -> Verdict:
        known = self.verdicts.get(token)
        if known is not None and time.monotonic() - known.at < KEPT_SECONDS:
            return known
        try:
            verdict = await asyncio.to_thread(self._ask, token)
        except OSError as fault:
            if known is None:
                raise EngineUnavailable("The service that knows the API keys cannot be reached.") from fault
            logger.warning("API keys cannot be looked up, what is known stays: %r", fault)
            verdict = replace(known, at=time.monotonic())
        if len(self.verdicts) >= MOST_KEPT:
            self.verdicts.clear()
        self.verdicts[token] = verdict
        return verdict

    def _ask(self, token: str) -> Verdict:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(self.url, headers=headers)  # noqa: S310 — the operator's address
        try:
            with urllib.request.urlopen(request, timeout=API_TIMEOUT_SECONDS) as answer:  # noqa: S310
                told = json.loads(answer.read())
        except urllib.error.HTTPError as fault:
            if fault.code not in REFUSALS:
                raise
            error = json.loads(fault.read())["error"]
            refusal = REFUSALS[fault.code]
            return Verdict(refusal=refusal(f"{error['message']} {error.get('hint') or ''}".strip()))
        if not SCOPES & set(told["scopes"]):
            return Verdict(refusal=Forbidden("This API key lacks the scope inference."))
        return Verdict(Caller(told["key_id"], told["requests_per_minute"], told["concurrent_requests"]))
