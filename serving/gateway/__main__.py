"""Run the gateway alone, over a routes file or over the deployments of a service.

    python -m serving.gateway --routes routes.json --port 8000
    python -m serving.gateway --api http://127.0.0.1:8080 --api-key-env TUNESMITH_KEY --port 8000

With `--api` the service's own keys let clients in, with the limits that they have there. Over a routes file
without `--client-key-env` every client is let in, and so only a loopback address is served.
"""

import argparse
import asyncio
import gc
import hmac
import logging
import os
import socket
import sys
from pathlib import Path

import uvloop
from prometheus_client import PROCESS_COLLECTOR, REGISTRY

from serving.gateway.gateway import Authorize, ClientIdentity, Gateway, allow_all
from serving.gateway.rate_limits import AuthorizedClient, RateLimits
from serving.gateway.request_body import RequestLimits
from serving.gateway.routes import RouteTable, StaticRoutes
from serving.gateway.standalone.access_log import AccessLog
from serving.gateway.standalone.api_keys import KeyVerifier
from serving.gateway.standalone.api_routes import ApiRoutes
from serving.gateway.standalone.server import GatewayServer, bind_socket, stop_on_signals
from serving.gateway.standalone.workers import SHARE_SECONDS, ProcessSupervisor, SharedMetrics
from serving.http.addresses import is_loopback
from serving.http.errors import InvalidApiKey


def main(arguments: list[str]) -> None:
    """Serve until a signal comes."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    if options.routes and not options.client_key_env and not is_loopback(options.host):
        sys.exit(f"--host {options.host} is open to others; set --client-key-env, or serve 127.0.0.1.")
    table, authorize = routes(options), callers(options)
    caps = RequestLimits(options.most_choices, options.most_prompts, options.most_tokens)
    # Made before the processes are forked, which share it.
    rate_limits = RateLimits(options.workers)
    log = AccessLog(sys.stdout.fileno())
    try:
        # Held without listening, so that a port in use is told at once and port 0 is the same for all.
        held = bind_socket(options.host, options.port, shared=options.workers > 1)
    except OSError as fault:
        sys.exit(f"--host {options.host} --port {options.port}: {fault}")
    port = held.getsockname()[1]
    print(f"The gateway serves http://{options.host}:{port}/v1", file=sys.stderr, flush=True)
    if options.workers == 1:
        uvloop.run(serve(Gateway(table, authorize, caps, log, rate_limits), held))
        return

    def work(shared: SharedMetrics) -> None:
        REGISTRY.unregister(PROCESS_COLLECTOR)
        rate_limits.count_as(shared.index)
        gateway = Gateway(table, authorize, caps, log, rate_limits)
        uvloop.run(serve(gateway, bind_socket(options.host, port, shared=True), shared))

    ProcessSupervisor(options.workers, work).run()


async def serve(gateway: Gateway, listener: socket.socket, shared: SharedMetrics | None = None) -> None:
    """One process of the gateway."""
    # What is loaded by now stays for good, and looking through it again and again would cost time.
    gc.freeze()
    stop = stop_on_signals()
    if shared is not None:
        asyncio.get_running_loop().add_reader(shared.parent, stop.set)
        sharing = asyncio.create_task(keep_shared(shared))
    await GatewayServer(gateway).serve(listener, stop)
    if shared is not None:
        asyncio.get_running_loop().remove_reader(shared.parent)
        sharing.cancel()
        shared.write()


async def keep_shared(shared: SharedMetrics) -> None:
    """Show the counts once a second."""
    while True:
        shared.write()
        await asyncio.sleep(SHARE_SECONDS)


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
    options.add_argument("--client-key-env", help="environment variable with a key for all clients")
    options.add_argument("--workers", type=positive, default=1, help="processes, one for each core to use")
    options.add_argument(
        "--most-choices", type=positive, default=RequestLimits.most_choices, help="largest n"
    )
    options.add_argument("--most-prompts", type=positive, default=RequestLimits.most_prompts)
    options.add_argument(
        "--most-tokens", type=positive, default=RequestLimits.most_tokens, help="for one answer"
    )
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--port", type=int, default=8000)
    return options


def positive(text: str) -> int:
    """A whole number from 1 on."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def routes(options: argparse.Namespace) -> RouteTable:
    """The route table that the options ask for."""
    if options.api:
        return ApiRoutes(options.api, secret(options.api_key_env) if options.api_key_env else None)
    try:
        return StaticRoutes.from_file(options.routes)
    except (OSError, ValueError) as fault:
        sys.exit(f"--routes: {fault}")


def callers(options: argparse.Namespace) -> Authorize:
    """Who is let in."""
    if options.client_key_env:
        return single_key_authorizer(secret(options.client_key_env))
    return KeyVerifier(options.api) if options.api else allow_all


def secret(name: str) -> str:
    """The value of an environment variable that must not be empty."""
    value = os.environ.get(name)
    if not value:
        sys.exit(f"The environment variable {name} is empty.")
    return value


def single_key_authorizer(expected: str) -> Authorize:
    """Let in who sends this key."""

    async def authorize(sender: ClientIdentity) -> AuthorizedClient:
        token = sender.token()
        if token is None or not hmac.compare_digest(token.encode(), expected.encode()):
            raise InvalidApiKey("The API key is missing or not valid; send it as 'Authorization: Bearer …'.")
        return AuthorizedClient("client")

    return authorize


if __name__ == "__main__":
    main(sys.argv[1:])
