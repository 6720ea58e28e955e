"""Run the gateway alone, over a routes file or over the deployments of a service.

    python -m serving.gateway --routes routes.json --port 8000
    python -m serving.gateway --api http://127.0.0.1:8080 --api-key-env TUNESMITH_KEY --port 8000

Without `--client-key-env` every client is let in, and so only a loopback address is served.
"""

import argparse
import asyncio
import gc
import hmac
import ipaddress
import logging
import os
import socket
import sys
from pathlib import Path

import uvloop
from prometheus_client import PROCESS_COLLECTOR, REGISTRY

from serving.gateway.access_log import AccessLog
from serving.gateway.api_routes import ApiRoutes
from serving.gateway.errors import InvalidApiKey
from serving.gateway.gateway import Authorize, Caller, Gateway, Sender, allow_all
from serving.gateway.plan import Limits
from serving.gateway.routes import RouteTable, StaticRoutes
from serving.gateway.server import Server, listen, stop_on_signals
from serving.gateway.workers import SHARE_SECONDS, SharedCounts, Workers


def main(arguments: list[str]) -> None:
    """Serve until a signal comes."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    if not options.client_key_env and not loopback(options.host):
        sys.exit(f"--host {options.host} is open to others; set --client-key-env, or serve 127.0.0.1.")
    table = routes(options)
    authorize = one_key(secret(options.client_key_env)) if options.client_key_env else allow_all
    limits = Limits(options.most_choices, options.most_prompts, options.most_tokens)
    try:
        # Held without listening, so that a port in use is told at once and port 0 is the same for all.
        held = listen(options.host, options.port, shared=options.workers > 1)
    except OSError as fault:
        sys.exit(f"--host {options.host} --port {options.port}: {fault}")
    port = held.getsockname()[1]
    print(f"The gateway serves http://{options.host}:{port}/v1", file=sys.stderr, flush=True)
    if options.workers == 1:
        uvloop.run(serve(table, authorize, limits, held))
        return

    def work(shared: SharedCounts) -> None:
        REGISTRY.unregister(PROCESS_COLLECTOR)
        uvloop.run(serve(table, authorize, limits, listen(options.host, port, shared=True), shared))

    Workers(options.workers, work).run()


async def serve(
    table: RouteTable,
    authorize: Authorize,
    limits: Limits,
    listener: socket.socket,
    shared: SharedCounts | None = None,
) -> None:
    """One process of the gateway."""
    # What is loaded by now stays for good, and looking through it again and again would cost time.
    gc.freeze()
    log = AccessLog(sys.stdout.fileno())
    stop = stop_on_signals()
    if shared is not None:
        asyncio.get_running_loop().add_reader(shared.parent, stop.set)
        sharing = asyncio.create_task(keep_shared(shared))
    await Server(Gateway(table, authorize, limits, log)).serve(listener, stop)
    if shared is not None:
        asyncio.get_running_loop().remove_reader(shared.parent)
        sharing.cancel()
        shared.write()


async def keep_shared(shared: SharedCounts) -> None:
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
    options.add_argument("--client-key-env", help="environment variable with the key that clients must send")
    options.add_argument("--workers", type=positive, default=1, help="processes, one for each core to use")
    options.add_argument("--most-choices", type=positive, default=Limits.most_choices, help="largest n")
    options.add_argument("--most-prompts", type=positive, default=Limits.most_prompts)
    options.add_argument("--most-tokens", type=positive, default=Limits.most_tokens, help="for one answer")
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


def secret(name: str) -> str:
    """The value of an environment variable that must not be empty."""
    value = os.environ.get(name)
    if not value:
        sys.exit(f"The environment variable {name} is empty.")
    return value


def one_key(expected: str) -> Authorize:
    """Let in who sends this key."""

    async def authorize(sender: Sender) -> Caller:
        token = sender.token()
        if token is None or not hmac.compare_digest(token.encode(), expected.encode()):
            raise InvalidApiKey("The API key is missing or not valid; send it as 'Authorization: Bearer …'.")
        return Caller("client")

    return authorize


def loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    main(sys.argv[1:])
