"""Run the gateway alone, over a routes file or over the deployments of a service.

    python -m serving.gateway --routes routes.json --port 8000
    python -m serving.gateway --api http://127.0.0.1:8080 --api-key-env TUNESMITH_KEY --port 8000

Without `--client-key-env` every client is let in, and so only a loopback address is served.
"""

import argparse
import hmac
import ipaddress
import logging
import os
import sys
from pathlib import Path

import uvicorn
from prometheus_client import make_asgi_app

from serving.gateway.api_routes import ApiRoutes
from serving.gateway.app import Authorize, Gateway, allow_all
from serving.gateway.asgi import Application, Receive, Scope, Send, send_json
from serving.gateway.errors import InvalidApiKey
from serving.gateway.routes import RouteTable, StaticRoutes

DRAIN_SECONDS = 10


def main(arguments: list[str]) -> None:
    """Serve until a signal comes."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    authorize: Authorize = allow_all
    if options.client_key_env:
        authorize = one_key(secret(options.client_key_env))
    elif not loopback(options.host):
        sys.exit(f"--host {options.host} is open to others; set --client-key-env, or serve 127.0.0.1.")
    app = alone(Gateway(routes(options), authorize))
    uvicorn.run(
        app,
        host=options.host,
        port=options.port,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )


def parser() -> argparse.ArgumentParser:
    """The gateway's options."""
    options = argparse.ArgumentParser(
        prog="python -m serving.gateway", description="One front for all engines."
    )
    source = options.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--routes", type=Path, help="JSON list of {name, base_url, upstream_model} or {name, targets}"
    )
    source.add_argument("--api", help="address of a service whose deployments are served")
    options.add_argument("--api-key-env", help="environment variable with the key for --api")
    options.add_argument("--client-key-env", help="environment variable with the key that clients must send")
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--port", type=int, default=8000)
    return options


def routes(options: argparse.Namespace) -> RouteTable:
    """The route table that the options ask for."""
    if options.api:
        return ApiRoutes(options.api, secret(options.api_key_env) if options.api_key_env else None)
    try:
        return StaticRoutes.from_file(options.routes)
    except (OSError, ValueError) as fault:
        sys.exit(f"--routes: {fault}")


def secret(name: str) -> str:
    """The value of an environment variable that must not be empty."""
    value = os.environ.get(name)
    if not value:
        sys.exit(f"The environment variable {name} is empty.")
    return value


def one_key(expected: str) -> Authorize:
    """Let in who sends this key."""

    async def authorize(token: str | None) -> None:
        if token is None or not hmac.compare_digest(token.encode(), expected.encode()):
            raise InvalidApiKey("The API key is missing or not valid; send it as 'Authorization: Bearer …'.")

    return authorize


def loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def alone(gateway: Gateway) -> Application:
    """The gateway with /health and /metrics beside it."""
    metrics = make_asgi_app()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/health":
            await send_json(send, [], {"status": "ok"})
        elif scope["type"] == "http" and scope["path"] == "/metrics":
            await metrics(scope, receive, send)
        else:
            await gateway(scope, receive, send)

    return app


if __name__ == "__main__":
    main(sys.argv[1:])
