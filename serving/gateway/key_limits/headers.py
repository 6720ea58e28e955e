"""What a key may use, and what is left of its limits in the headers of OpenAI's API."""

from serving.gateway.downstream import Headers
from serving.gateway.key_limits.token_use import TokenRecorder, seconds_until_reset
from serving.gateway.rate_limits import AuthorizedClient, RateLimits
from serving.http.errors import ModelNotAllowed


def check_model(name: str, client: AuthorizedClient) -> None:
    """Raise ModelNotAllowed if the key may not use the model of this name."""
    if not client.may_use(name):
        raise ModelNotAllowed(name, client.models or ())


def make_limit_headers(client: AuthorizedClient, rates: RateLimits, tokens: TokenRecorder) -> Headers:
    """Return what is left of the limits of a key, in OpenAI's headers: requests and tokens."""
    headers: Headers = []
    if (limit := client.requests_per_minute) is not None:
        remaining, reset_seconds = rates.remaining(client)
        headers += _limit_headers(b"requests", limit, remaining, reset_seconds)
    if (limit := client.tokens_per_day) is not None:
        remaining = max(0, limit - tokens.used_today(client))
        headers += _limit_headers(b"tokens", limit, remaining, seconds_until_reset())
    return headers


def _limit_headers(what: bytes, limit: int, remaining: int, reset_seconds: float) -> Headers:
    values = (
        (b"limit", b"%d" % limit),
        (b"remaining", b"%d" % remaining),
        (b"reset", b"%.3fs" % reset_seconds),
    )
    return [(b"x-ratelimit-%b-%b" % (name, what), value) for name, value in values]
